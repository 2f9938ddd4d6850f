"""The one way from the name of a task to the task and a target of it, for commands, training and readers."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets.language_model import load_language_target
from inversionview_jax.targets.loading import check_tokenizer, load_target
from inversionview_jax.targets.reference import load_reference, read_reference
from inversionview_jax.targets.target import Target
from inversionview_jax.tasks.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class TargetSettings:
  """What a config has about a target and its task.

  Attributes:
    path: of a language target's checkpoint; "" where the config names none.
    convention, dtype, family: see `load_target`; None for the defaults.
    inputs: the task's settings.
  """

  path: str = ""
  convention: str | None = None
  dtype: str | None = None
  family: str | None = None
  inputs: dict | None = None

  @classmethod
  def from_config(cls, config: Any) -> "TargetSettings":
    """Of a `ConfigDict` (or mapping) with, all optional, `task`, `inputs`, `compute.target_dtype` and, of a language task, `target.path`,
    `.convention`, `.dtype` and `.family` (of other tasks `target` is how the target is trained)."""
    values: Mapping = {} if config is None else config.to_dict() if hasattr(config, "to_dict") else config
    target = values.get("target") or {} if tasks.is_language(values.get("task", "")) else {}
    compute = values.get("compute") or {}
    return cls(
      path=target.get("path") or "",
      convention=target.get("convention") or None,
      dtype=target.get("dtype") or compute.get("target_dtype") or None,
      family=target.get("family") or None,
      inputs=values.get("inputs"),
    )


def task_and_target(
  task: str,
  source: "str | os.PathLike | Target | None" = None,
  config: Any = None,
  *,
  settings: dict | None = None,
  tokenizer: Tokenizer | None = None,
  sites: Sequence[str] | None = None,
  convention: str | None = None,
  dtype: str | None = None,
  family: str | None = None,
  ignore_config_keys: Sequence[str] = (),
  mesh: jax.sharding.Mesh | None = None,
  moved_to: "str | os.PathLike | Target | None" = None,
) -> tuple[tasks.Task, Target]:
  """The task of this name, and a target of it.

  Task targets were trained on the task and write its texts in its own tokenizer. Language targets are checkpoints of language models, of
  whose tokens a language task takes some; a folder with a reference to such a checkpoint stands for it.

  Args:
    task: name of the task.
    source: a target, or where it is; by default what the config names, or the target that ships under the task's name.
    config: see `TargetSettings.from_config`; what is given here comes first.
    settings: of the task.
    tokenizer: of a language task whose tokenizer is known before its checkpoint is opened (a saved reader's).
    sites: of a language target, those that are read; see `load_language_target`.
    convention, dtype, family, ignore_config_keys, mesh: see `load_target`.
    moved_to: where the target is now, if it is not where `source` has it, or the target itself; a reference's fingerprint must match.

  Raises:
    InversionViewError: no such task or target, a language task without a checkpoint, or a target with another tokenizer than the task.
  """
  configured = TargetSettings.from_config(config)
  settings = settings if settings is not None else configured.inputs
  loading: dict[str, Any] = {
    "convention": convention or configured.convention,
    "dtype": dtype or configured.dtype,
    "family": family or configured.family,
    "ignore_config_keys": tuple(ignore_config_keys),
    "mesh": mesh,
  }
  if moved_to is not None and (isinstance(moved_to, Target) or not tasks.is_language(task)):
    source, moved_to = moved_to, None
  if isinstance(source, Target):
    return tasks.get(task, tokenizer or source.tokenizer, settings), source
  if (
    tasks.is_language(task) and tokenizer is not None and source is not None
  ):  # of a saved reader, which carries a reference
    named_task = tasks.get(task, tokenizer, settings)
    return named_task, load_reference(source, named_task, moved_to, mesh)
  if tasks.is_language(task):
    return _language_target(task, source or configured.path, settings, sites, loading)
  named_task, source = tasks.get(task, tokenizer, settings), source or task
  target = load_target(source, tokenizer=named_task.tokenizer, **loading)
  check_tokenizer(target, named_task, source)
  return named_task, dataclasses.replace(target, task=named_task.name, _task=named_task)


def _language_target(task: str, source, settings, sites, loading: dict) -> tuple[tasks.Task, Target]:
  if not source:
    raise InversionViewError(
      f"the task {task} is about a language model: give its Hugging Face folder or .gguf file with --target, or its id on the Hub "
      "(OWNER/NAME), or set target.path"
    )
  if reference := read_reference(source) or read_reference(pathlib.Path(source) / "target"):
    source = reference["path"]
    for name in ("family", "ignore_config_keys"):
      loading |= {name: loading[name] or reference.get(name) or loading[name]}
  return load_language_target(source, task, settings, sites=sites, **loading)
