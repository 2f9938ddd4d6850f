"""`Target`: the model that is read; running, capturing, editing and loading it."""

from inversionview_jax.targets.compiled import compile_rasp
from inversionview_jax.targets.edits import Edit
from inversionview_jax.targets.for_task import task_and_target
from inversionview_jax.targets.language_model import load_language_target
from inversionview_jax.targets.lens import LogitLens, logit_lens
from inversionview_jax.targets.loading import check_tokenizer, load_target, shipped_folder, shipped_names
from inversionview_jax.targets.reference import load_reference, read_reference, write_reference
from inversionview_jax.targets.run import Run
from inversionview_jax.targets.target import Target, save_target

__all__ = [
  "Edit",
  "LogitLens",
  "Run",
  "Target",
  "check_tokenizer",
  "compile_rasp",
  "load_language_target",
  "load_reference",
  "load_target",
  "logit_lens",
  "read_reference",
  "save_target",
  "shipped_folder",
  "shipped_names",
  "task_and_target",
  "write_reference",
]
