"""Attributes of a config.json: those that every family may have, the refusal of those that are not handled, and typed reading of the rest."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_LAYERS

REQUIRED: Any = object()  # in place of a default

# Attributes of generation and of bookkeeping: they do not change the forward pass.
NO_EFFECT = {
  "_attn_implementation_autoset",
  "_name_or_path",
  "_num_labels",
  "architectures",
  "bad_words_ids",
  "begin_suppress_tokens",
  "bos_token_id",
  "cache_implementation",
  "chunk_size_feed_forward",
  "decoder_start_token_id",
  "diversity_penalty",
  "do_sample",
  "dtype",
  "early_stopping",
  "eos_token_id",
  "exponential_decay_length_penalty",
  "finetuning_task",
  "forced_bos_token_id",
  "forced_eos_token_id",
  "id2label",
  "initializer_range",
  "is_encoder_decoder",
  "label2id",
  "length_penalty",
  "max_length",
  "min_length",
  "model_type",
  "no_repeat_ngram_size",
  "num_beam_groups",
  "num_beams",
  "num_return_sequences",
  "output_attentions",
  "output_hidden_states",
  "output_past",
  "output_scores",
  "pad_token_id",
  "prefix",
  "problem_type",
  "remove_invalid_values",
  "repetition_penalty",
  "return_dict",
  "return_dict_in_generate",
  "sep_token_id",
  "suppress_tokens",
  "task_specific_params",
  "temperature",
  "tokenizer_class",
  "top_k",
  "top_p",
  "torch_dtype",
  "torchscript",
  "transformers.js_config",
  "transformers_version",
  "typical_p",
  "unk_token_id",
  "use_bfloat16",
  "use_cache",
}
# Attribute -> the values under which the model is the one that is built here.
MUST_BE: dict[str, tuple] = {
  "quantization_config": (None,),
  "pruned_heads": ({}, None),
  "add_cross_attention": (False,),
}


def refuse_unhandled(attributes: Mapping, where: str, handled: Set[str], must_be: Mapping[str, tuple]) -> None:
  """Refuses a config.json with an attribute that is not handled.

  Args:
    attributes: of config.json.
    where: its name, for error messages.
    handled: names of the attributes that the family reads, or that have no effect in it; those of `NO_EFFECT` are handled anyway.
    must_be: attribute -> the values that it may have; added to `MUST_BE`.

  Raises:
    InversionViewError: names the first attribute that is not handled, or whose value is not.
  """
  must_be = {**must_be, **MUST_BE}
  for name, value in attributes.items():
    if name in must_be:
      if not any(value == right and type(value) in (type(right), int, float) for right in must_be[name]):
        raise InversionViewError(f"{where}: {name} = {values.brief(value)} is not handled, only {must_be[name][0]!r}")
    elif name not in handled and name not in NO_EFFECT:
      raise InversionViewError(
        f"{where}: attribute {name} = {values.brief(value)} is not handled; the model might compute something else without it"
      )


def refuse_sizes(attributes: Mapping, where: str, names: Sequence[str]) -> None:
  """Raises `InversionViewError` naming the first of these attributes that is missing, or is no size: a whole number from 1 (layers: 0) on."""
  read = Attributes(attributes, where)
  for name in names:
    low, high = (0, MOST_LAYERS) if "layer" in name else (1, MOST_CONTEXT)  # a model may have no layers
    read.whole(name, low, high)


class Attributes:
  """The attributes of a config.json, each read with its type and range; a refusal names the file, the attribute and its value.

  Args:
    attributes: of config.json, or of a GGUF file's metadata.
    where: name of the file, for error messages.
  """

  def __init__(self, attributes: Mapping, where: str):
    self._attributes, self._where = attributes, where

  def whole(self, name: str, low: int, high: int, default: Any = REQUIRED, null: bool = False) -> Any:
    """A whole number from `low` to `high`.

    Args:
      name: of the attribute.
      low, high: the smallest and the largest value.
      default: where it is left out; it must be there without one.
      null: whether null means the default, too.
    """
    return self.read(name, functools.partial(values.whole, low=low, high=high), default, null)

  def number(self, name: str, low: float, high: float, default: Any = REQUIRED, null: bool = False) -> Any:
    """A finite number from `low` to `high`; arguments as for `whole`."""
    return self.read(name, functools.partial(values.number, low=low, high=high), default, null)

  def switch(self, name: str, default: Any = REQUIRED, null: bool = False) -> Any:
    """True or false; arguments as for `whole`."""
    return self.read(name, values.switch, default, null)

  def choice(self, name: str, choices: Collection[str], default: Any = REQUIRED, null: bool = False) -> Any:
    """One of a few texts; arguments as for `whole`."""
    value = self.read(name, values.text, default, null)
    if isinstance(value, str) and value not in choices:
      raise InversionViewError(
        f"{self._where}: {name} = {values.brief(value)} is not handled, only {', '.join(choices)}"
      )
    return value

  def read(self, name: str, check: Callable[[str, object], Any], default: Any = REQUIRED, null: bool = False) -> Any:
    """An attribute that `check` takes: (name, value) -> value; arguments as for `whole`."""
    if name not in self._attributes or (null and self._attributes[name] is None):
      if default is REQUIRED:
        raise InversionViewError(f"{self._where}: attribute {name} is missing")
      return default
    return check(f"{self._where}: {name}", self._attributes[name])
