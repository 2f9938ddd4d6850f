"""Language targets: checkpoints of other people, of which a task needs some tokens and a reader some layers."""

import os
from collections.abc import Sequence

import jax

from inversionview_jax import pretrained, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import site_shapes
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.targets.loading import load_checkpoint, locate
from inversionview_jax.targets.target import Target


def load_language_target(
  source: str | os.PathLike,
  task: str,
  settings: dict | None = None,
  *,
  sites: Sequence[str] | None = None,
  convention: str | None = None,
  dtype: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
  family: str | None = None,
  ignore_config_keys: Sequence[str] = (),
) -> tuple[tasks.Task, Target]:
  """A task over the texts of a language model, and that model over the task's tokens.

  Args:
    source: a Hugging Face folder or a GGUF file ("~" is the home folder), or the id of a model of the Hugging Face Hub.
    task: name of a language task.
    settings: of the task.
    sites: those that are read, in either notation; the layers behind them are neither loaded nor run. (): the task's own. None: all
      layers, with logits.
    convention, dtype, mesh, family, ignore_config_keys: see `load_target`.

  Raises:
    InversionViewError: no such checkpoint, no tokenizer with it, an unknown site or setting.
  """
  place = locate(source, shipped=False)
  checkpoint = pretrained.open_checkpoint(place.path, family, ignore_config_keys)
  base, missing = pretrained.tokenizer_of(place.path, checkpoint)
  if base is None:
    raise InversionViewError(missing)
  language_task = tasks.get(task, base, settings)
  config = checkpoint.config
  if language_task.length > config.n_ctx:
    raise InversionViewError(
      f"the task {task} has texts of {language_task.length} tokens, longer than the context of {place.name}, {config.n_ctx}"
    )
  layers = None
  if sites is not None:
    layers = layers_needed(sites or language_task.default_sites(config.n_layers, config.n_heads), config)
  loading = (convention, base, dtype, layers, mesh, family)
  target = load_checkpoint(place, *loading, own_tokenizer=True, ignore_config_keys=ignore_config_keys)
  return language_task, target.for_task(language_task)


def layers_needed(sites: Sequence[str], config: TransformerConfig) -> int:
  """How many layers must run for these sites; at least 1."""
  depths = [1]
  for name in sites:
    depths.append(site_shapes.depth(config, site_shapes.resolve(config, name)))
  return max(depths)
