"""Targets that were not trained but compiled: RASP programs, by Tracr (extra `tracr`)."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax

from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained.tracr import compile_program
from inversionview_jax.targets.target import Target
from inversionview_jax.tasks.program_task import ProgramTask, program_task
from inversionview_jax.tasks.programs import Program


def compile_rasp(
  program: Any,
  vocab: Iterable[Any],
  max_seq_len: int,
  causal: bool = False,
  *,
  distinct: bool = False,
  mlp_exactness: int = 100,
  name: str = "tracr:program",
  dtype: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Target, ProgramTask]:
  """Compiles a RASP program into a target and a task; the arguments are those of `tracr.compiler.compile_rasp_to_model`.

  Args:
    program: a `tracr.rasp.rasp.SOp`.
    vocab: the symbols of its inputs.
    max_seq_len: the most symbols of an input.
    causal: attention looks back only; otherwise in both directions.
    distinct: inputs in which a symbol occurs twice are left out.
    mlp_exactness: Tracr's.
    name: of the target and the task.
    dtype, mesh: as for `load_target`.

  Returns:
    The target, whose `program` knows what every residual dimension means and which part writes it, and the task: all texts over the vocabulary,
    with the value of every expression at every symbol as features.

  Raises:
    InversionViewError: Tracr is not installed or cannot compile this program, or the vocabulary cannot be used.
  """
  task = ProgramTask(Program(program, tuple(vocab), max_seq_len, causal, distinct, mlp_exactness, name))
  return _target(task, dtype, mesh), task


def load_program(
  name: str, convention: str | None = None, dtype: str | None = None, mesh: jax.sharding.Mesh | None = None
) -> Target:
  """The target of a program by its name, such as "tracr:hist" or "tracr:reverse,vocab=abc,max_seq_len=4"; see `tasks.programs.program_named`.

  Raises:
    InversionViewError: no such program, Tracr is not installed, or the convention "centered", which needs LayerNorm.
  """
  if convention not in (None, "raw"):
    raise InversionViewError(
      f"convention {convention!r} is for models with LayerNorm; compiled programs have no norms: use 'raw'"
    )
  return _target(program_task(name), dtype, mesh)


def _target(task: ProgramTask, dtype: str | None, mesh: jax.sharding.Mesh | None) -> Target:
  compiled = compile_program(task)
  made = Target.from_raw(
    compiled.parts, compiled.config, task.tokenizer, "raw", name=task.name, task=task.name, dtype=dtype, mesh=mesh
  )
  about = compiled.about
  return dataclasses.replace(made, _task=task, program=about, outputs=about.outputs)
