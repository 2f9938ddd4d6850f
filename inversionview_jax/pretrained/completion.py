"""Attributes of a config.json as `transformers.AutoConfig` completes them: with every default of the family, under their present names.

AutoConfig knows for each model type what it means where an attribute is left out, and the older spellings: "rope_theta" and "rope_scaling"
for "rope_parameters", a sliding pattern for "layer_types". It needs no torch, but does not check much: the families check what they read.
"""

import contextlib
import copy
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_LAYERS
from inversionview_jax.pretrained.attributes import Attributes, Completed, refuse_values
from inversionview_jax.pretrained.no_effect import has_no_effect

# A config.json of a text model states these, under one of their names: a default of AutoConfig would be another model's.
_STATED = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "intermediate_size",
  "max_position_embeddings",
)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")  # lists of this length are made of them


class Refused(InversionViewError):
  """AutoConfig refuses a config.json.

  Attributes:
    attributes: of config.json, over the defaults of its model type; a family names more clearly what is wrong with one of them.
  """

  def __init__(self, message: str, attributes: Mapping):
    super().__init__(message)
    self.attributes = attributes


def completed(attributes: Mapping, where: str) -> Completed:
  """The attributes that determine a model, as AutoConfig reads them; "model_type" is among them.

  Those without effect on the forward pass (`attributes.has_no_effect`) are left out. Those that AutoConfig does not know stay as they are.

  Args:
    attributes: of config.json, with a "model_type" that transformers has. Not changed.
    where: name of the file, for error messages.

  Raises:
    InversionViewError: AutoConfig refuses them.
  """
  kept = {name: value for name, value in attributes.items() if name == "model_type" or not has_no_effect(name)}
  if kept["model_type"] == "gpt_oss" and _is_mxfp4(kept.get("quantization_config")):  # `weights` reads it
    del kept["quantization_config"]
  refuse_values(kept, where)  # before AutoConfig takes some of them for its own ends
  if "rope_theta" in kept:  # it is not looked at beside "rope_parameters"
    Attributes(kept, where).number("rope_theta", 1e-6, 1e30, null=True)
  _check_layers(kept, where)
  with quiet_transformers():
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = kept.pop("model_type")
    if model_type == "mistral" and "layer_types" in kept:  # as AutoConfig.from_pretrained has it
      model_type = "ministral"
    kind = CONFIG_MAPPING[model_type]
    _check_stated(kept, kind, where)
    try:
      return _attributes_of(AutoConfig.for_model(model_type, **copy.deepcopy(kept)), kept)
    except Exception as error:  # any is possible: it computes before it checks
      message = f"{where} is damaged or not the configuration of a model: {_reason(error)}"
      raise Refused(message, {"model_type": model_type, **_defaults(kind), **kept}) from None


def _is_mxfp4(quantization: object) -> bool:
  return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"


def _attributes_of(config: Any, given: Mapping) -> Completed:
  """A configuration object as plain attributes."""
  defaults = _defaults(type(config))
  own = [field.name for field in dataclasses.fields(config) if not has_no_effect(field.name)]
  others = [
    name for name in given if name in vars(config) and name not in defaults and name not in config.attribute_map
  ]
  made = Completed({"model_type": config.model_type})
  for name in (*own, *others):
    value = getattr(config, name)
    if hasattr(value, "model_type"):  # the configuration of a part, such as the text model of a multimodal one
      inner = given.get(name)
      value = _attributes_of(value, inner if isinstance(inner, Mapping) else {})
    made[name] = value
  made.unchanged = frozenset(name for name in own if name in defaults and _same(made[name], defaults[name]))
  return made


def _defaults(kind: Any) -> dict[str, Any]:
  found = {}
  for field in dataclasses.fields(kind):
    if field.default is not dataclasses.MISSING:
      found[field.name] = field.default
    elif field.default_factory is not dataclasses.MISSING:
      found[field.name] = field.default_factory()
  return found


def _same(one: object, other: object) -> bool:
  return type(one) is type(other) and one == other


def _check_stated(attributes: Mapping, kind: Any, where: str) -> None:
  """Refuses a config.json that leaves out a size; of a multimodal model's parts, some have the default ones."""
  if kind.sub_configs:
    return
  names, defaults = kind.attribute_map, _defaults(kind)
  stated = {names.get(name, name) for name in attributes}
  for name in (names.get(name, name) for name in _STATED):
    if defaults.get(name) is not None and name not in stated:
      raise InversionViewError(f"{where}: attribute {name} is missing")


def _check_layers(attributes: Mapping, where: str) -> None:
  """Refuses a number of layers of which AutoConfig would make endless lists, here and in configurations of parts."""
  for name, value in attributes.items():
    if isinstance(value, Mapping):
      _check_layers(value, f"{where}: {name}")
    elif name in _LAYERS and value is not None:
      values.whole(f"{where}: {name}", value, 0, MOST_LAYERS)


def _reason(error: Exception) -> str:
  """What transformers does not like, in one line."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  if not lines:
    return type(error).__name__
  line = lines[-1].partition(": ")[2] if len(lines) > 1 and "Error: " in lines[-1] else lines[-1]
  return line if len(line) <= 300 else f"{line[:297]}..."


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
  """Without the advice that `transformers` logs: there is no torch, a text is long, a key is deprecated."""
  name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
  before = os.environ.get(name)
  os.environ[name] = "1"
  try:
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    finally:
      logging.set_verbosity(verbosity)
  finally:
    if before is None:
      del os.environ[name]
    else:
      os.environ[name] = before
