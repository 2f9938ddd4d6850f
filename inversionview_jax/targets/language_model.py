"""Language targets: checkpoints of other people, of which a task needs some tokens and a reader some layers."""

import os
from collections.abc import Sequence

import jax

from inversionview_jax import pretrained, tasks
from inversionview_jax import sites as site_names
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.targets.loading import load_checkpoint
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
) -> tuple[tasks.Task, Target]:
  """A task over the texts of a language model, and that model over the task's tokens.

  Args:
    source: a Hugging Face folder or a GGUF file; "~" is the home folder.
    task: name of a language task.
    settings: of the task.
    sites: those that are read, in either notation; the layers behind them are neither loaded nor run. (): the task's own. None: all
      layers, with logits.
    convention, dtype, mesh, family: see `load_target`.

  Raises:
    InversionViewError: no such checkpoint, no tokenizer with it, an unknown site or setting.
  """
  path = path_of(source)
  if not path.exists():
    raise InversionViewError(
      f"no checkpoint {str(source)!r}: give a Hugging Face folder or a .gguf file (--target, or target.path in the config)"
    )
  checkpoint = pretrained.open_checkpoint(path, family)
  base, missing = pretrained.tokenizer_of(path, checkpoint)
  if base is None:
    raise InversionViewError(missing)
  language_task = tasks.get(task, base, settings)
  config = checkpoint.config
  if language_task.length > config.n_ctx:
    raise InversionViewError(
      f"the task {task} has texts of {language_task.length} tokens, longer than the context of {path.name}, {config.n_ctx}"
    )
  layers = None
  if sites is not None:
    layers = layers_needed(sites or language_task.default_sites(config.n_layers, config.n_heads), config)
  target = load_checkpoint(path, convention, base, dtype, layers, mesh, family, own_tokenizer=True)
  return language_task, target.for_task(language_task)


def layers_needed(sites: Sequence[str], config: TransformerConfig) -> int:
  """How many layers must run for these sites; at least 1."""
  depths = [1]
  for name in sites:
    site = site_names.resolve(name, config.n_layers, config.n_heads, site_names.VECTOR_KINDS)
    depths.append(0 if site.layer is None else site.layer + (site.kind != "pre"))
  return max(depths)
