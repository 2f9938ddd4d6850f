"""What is planned: a config as a task, a target, a decoder and a training, all without parameters."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
from ml_collections import ConfigDict

from inversionview_jax import sites, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.planning import architectures
from inversionview_jax.training import model_shapes

_KEYS = ("target", "decoder", "length", "dtype")


@dataclasses.dataclass(frozen=True)
class Scenario:
  """The training of a decoder, as shapes.

  Attributes:
    task: a `Task`, or an object with the attributes of one that the programs use.
    target, decoder: architectures.
    config: of the training.
    target_dtype: of the target's parameters and of its computation.
  """

  task: Any
  target: TransformerConfig
  decoder: DecoderConfig
  config: ConfigDict
  target_dtype: str = "float32"

  @property
  def texts(self) -> bool:
    """Whether it is about any texts, of which only the target itself has a law."""
    return isinstance(self.task, _Texts)

  @property
  def target_module(self) -> Transformer:
    """The target's module, computed in `target_dtype`."""
    return Transformer(self.target, Compute(dtype=self.target_dtype))


class _Tokens:
  """A tokenizer's ids; one token is BOS, EOS and PAD, as in GPT-2."""

  def __init__(self, vocab_size: int):
    self.vocab_size, self.bos_id, self.eos_id, self.pad_id = (vocab_size, *(vocab_size - 1,) * 3)


class _Texts:
  """Texts of one length, in place of a task."""

  name = "texts"
  bos_attention = rare = None  # attributes of `Task`

  def __init__(self, vocab_size: int, length: int):
    self.tokenizer, self.length = _Tokens(vocab_size), length

  def query_mask(self, tokens: jax.Array) -> jax.Array:
    return tokens != self.tokenizer.pad_id

  counted_mask = query_mask


def scenario_of(config: ConfigDict) -> Scenario:
  """The scenario of a config.

  Args:
    config: with `plan` (target and decoder by the names of `architectures`, length of the texts in tokens, dtype of the target), or one that
      `inversionview train` takes.

  Raises:
    InversionViewError: a config that is neither, or an architecture that is not known.
  """
  task: Any
  forbidden: tuple[int, ...] = ()
  if "plan" in config:
    if missing := [key for key in _KEYS if key not in config.plan]:
      raise InversionViewError(f"config.plan has no {missing[0]}; it needs target, decoder, length and dtype")
    plan = config.plan
    target, dtype = architectures.architecture(plan.target), plan.dtype
    shape = architectures.architecture(plan.decoder, n_ctx=plan.length, vocab_size=target.vocab_size)
    if not 2 <= plan.length <= target.n_ctx:
      raise InversionViewError(f"config.plan.length = {plan.length} must be from 2 to {target.n_ctx}")
    task, names = _Texts(target.vocab_size, plan.length), config.sites
  elif {"task", "model", "target"} <= set(config):
    task = tasks.get(config.task)
    if not isinstance(config.target, ConfigDict) or "model" not in config.target:
      raise InversionViewError("the config has no shape for its target (target.model); give it a config.plan")
    dtype = (config.get("compute") or {}).get("target_dtype", "") or "float32"
    target, shape = (model_shapes.transformer_config(task, part) for part in (config.target, config))
    names = config.sites or task.default_sites(target.n_layers, target.n_heads)
    forbidden = (task.tokenizer.bos_id, task.tokenizer.pad_id)
  else:
    raise InversionViewError(
      "the config is not one of a training: it has neither a plan nor a task with target and model"
    )
  decoder = model_shapes.decoder_config(config, shape, _checked_sites(names, target), target.d_model, forbidden)
  return Scenario(task, target, decoder, config, dtype)


def _checked_sites(names: Iterable[str], target: TransformerConfig) -> tuple[str, ...]:
  """Short names of the sites; raises `InversionViewError` for one that the target does not have."""
  parsed = [sites.parse(name) for name in names]
  for site in parsed:
    if (site.layer or 0) >= target.n_layers or (site.head or 0) >= target.n_heads:
      raise InversionViewError(
        f"site {site.short} is not in the target, which has {target.n_layers} layers of {target.n_heads} heads"
      )
  return tuple(site.short for site in parsed)
