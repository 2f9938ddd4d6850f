"""What has to be known of a family of models to read its checkpoints: `Family`, for this package's and for a user's own."""

import dataclasses
from collections.abc import Callable, Mapping

from inversionview_jax.models.transformer import TransformerConfig


def _same(name: str) -> str:
  return name


def _none(name: str) -> bool:
  del name
  return False


@dataclasses.dataclass(frozen=True)
class Family:
  """How checkpoints of a family of models become parameters of `Transformer`.

  A family that this package does not have can live in the user's own module:
  ``load_target(folder, family="package.module:NAME")``, or `target.family` in a config.

  Attributes:
    model_types: values of "model_type" in config.json that are of this family.
    config: (attributes of config.json, the file's name for error messages) -> `TransformerConfig`. Raises `InversionViewError` for an
      attribute that is missing, or that would change what the model computes and is not handled (`attributes.refuse_unhandled`).
    layout: configuration -> name of a part ("embed", "pos_embed", "blocks_0", ..., "ln_f", "unembed") -> nested dicts of `Leaf`: which
      tensor each of our arrays is made of.
    rename: a tensor's name in the file -> its name in `layout`; by default the same.
    unused: whether a tensor that `layout` does not name may be left out; by default none may.
  """

  model_types: tuple[str, ...]
  config: Callable[[Mapping, str], TransformerConfig]
  layout: Callable[[TransformerConfig], dict]
  rename: Callable[[str], str] = _same
  unused: Callable[[str], bool] = _none
