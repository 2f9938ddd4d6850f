"""Cost of a compiled program: FLOPs of matrix products from its jaxpr, memory traffic and collectives from its HLO text.

XLA's own `cost_analysis` counts the body of a loop once and gives no collectives; here a loop's body counts as often as it runs. Of branches
the one that costs most counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from jax.extend import core

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b(pred|token|opaque|[a-z]+\d+(?:e\dm\d\w*)?)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*{$")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that name memory or control flow and move no bytes themselves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "partition-id", "replica-id",
  "copy-done", "opt-barrier", "optimization-barrier", "async-start", "async-update", "async-done",
}  # fmt: skip

Loop: TypeAlias = float | tuple[float, ...]  # iterations of a loop


@dataclasses.dataclass(frozen=True)
class Collectives:
  """One kind of collective, per device.

  Attributes:
    count: number of executions.
    bytes: size of the whole array that is reduced, gathered or sent, summed over the executions.
    sent: bytes that a device sends in a ring algorithm.
  """

  count: float
  bytes: float
  sent: float


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Memory traffic and communication of one execution of a program, per device.

  Attributes:
    bytes: read and written by its top-level instructions.
    collectives: by kind, one of `KINDS`.
  """

  bytes: float
  collectives: dict[str, Collectives]


def matmul_flops(jaxpr: core.ClosedJaxpr | core.Jaxpr, share: int, loop: Loop = 1) -> float:
  """FLOPs of the matrix products of a program, per device; multiply and add are two.

  Args:
    jaxpr: from `jax.jit(f).trace(...)`, whose `shard_map`s are manual over some mesh axes.
    share: devices over which the work outside of these is spread.
    loop: assumed number of iterations of a `while`; several, outermost first, for loops in loops; a `scan` has its own.
  """
  total = 0.0
  for equation in (jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr).eqns:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "bf16_dot"):
      contracted = params["dimension_numbers"][0][0] if name == "dot_general" else params["axes"][:1]
      left, out = (variables[0].aval.shape for variables in (equation.invars, equation.outvars))  # type: ignore[union-attr]
      total += 2.0 * math.prod(out) * math.prod(left[i] for i in contracted) / share
      continue
    times, inner, loop_inside = 1.0, share, loop
    if name == "scan":
      times = params["length"]
    elif name == "while":
      times, loop_inside = _next_loop(loop)
    elif name == "shard_map":  # shapes inside are a device's along the manual axes
      inner = math.prod(size for axis, size in params["mesh"].shape.items() if axis not in params["newly_manual_axes"])
    parts = [matmul_flops(part, inner, loop_inside) for part in _sub_jaxprs(params)]
    total += times * (max(parts, default=0.0) if name == "cond" else sum(parts))
  return total


def _sub_jaxprs(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
  for value in params.values():
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part


def traffic(text: str, loop: Loop = 1) -> Traffic:
  """Memory traffic and collectives of a compiled program, per device.

  Args:
    text: `compiled.as_text()`.
    loop: assumed number of iterations of loops whose text gives none; several, outermost first, for loops in loops.
  """
  computations, entry = _computations(text)

  @functools.cache
  def cost(name: str, fused: bool, loop: Loop) -> np.ndarray:
    """Bytes moved; and executions, bytes and sent bytes of each of `KINDS`."""
    total, sizes = np.zeros(1 + 3 * len(KINDS)), {}
    for instruction, shape, opcode, rest in computations.get(name, ()):
      sizes[instruction] = size = _size(shape)
      operands = [sizes.get(x, 0.0) for x in _operands(rest)]
      kind = opcode.removesuffix("-start")
      if kind in KINDS and (group := _group(rest)) > 1:  # a group of one moves nothing
        at = 1 + 3 * KINDS.index(kind)
        total[at : at + 3] += 1, *_collective_bytes(kind, kind != opcode, size, sum(operands), group)
      if opcode == "conditional":
        total += max((cost(branch, fused, loop) for branch in _branches(rest)), key=lambda x: x[0])
      elif opcode == "while":
        condition, body = (re.search(rf"{part}=%?([\w.\-]+)", rest)[1] for part in ("condition", "body"))  # type: ignore[index]
        times, inner = _iterations(rest, computations.get(condition, []), loop)
        total += times * (cost(condition, fused, inner) + cost(body, fused, inner))
      else:
        for called, inside in _called(opcode, rest):
          total += cost(called, fused or inside, loop)
      if not fused and opcode not in _FREE and not opcode.endswith("-done"):
        total[0] += _moved_bytes(instruction, opcode, size, operands)
    return total

  moved, *totals = map(float, cost(entry, False, loop))
  each = {kind: Collectives(*totals[3 * i : 3 * i + 3]) for i, kind in enumerate(KINDS)}
  return Traffic(moved, {kind: found for kind, found in each.items() if found.count})


def _iterations(rest: str, condition: list[tuple[str, ...]], loop: Loop) -> tuple[float, Loop]:
  """How often a `while` runs, and what is assumed of the loops inside of it."""
  if count := re.search(r'known_trip_count"?:\s*{"n":"?(\d+)', rest):
    return int(count[1]), loop
  # The text for TPUs has no counts. A `scan` counts from 0 up to a constant, and has no other condition.
  name, _, opcode, arguments = condition[-1] if condition else ("", "", "", "")
  if opcode == "compare" and "direction=LT" in arguments:
    limits = {name: rest for name, _, opcode, rest in condition if opcode == "constant"}
    if value := re.match(r"(\d+)\)", limits.get(_operands(arguments)[-1], "")):
      return int(value[1]), loop
  return _next_loop(loop)


def _next_loop(loop: Loop) -> tuple[float, Loop]:
  """The assumed number of iterations of a loop, and what is assumed of those inside of it."""
  return (loop[0], loop[1:] if len(loop) > 1 else loop) if isinstance(loop, tuple) else (loop, loop)


def _collective_bytes(kind: str, started: bool, size: float, operands: float, group: int) -> tuple[float, float]:
  """(bytes of the whole array, bytes that a device sends) of one collective.

  Args:
    kind: one of `KINDS`.
    started: whether it is the asynchronous "-start", whose result holds the operands as well.
    size: of the result.
    operands: bytes of its operands.
    group: devices that take part.
  """
  whole = {"all-gather": size - operands if started else size}.get(kind, operands)
  if kind == "collective-permute":
    return whole, whole
  return whole, whole * (2 if kind == "all-reduce" else 1) * (group - 1) / group


def _called(opcode: str, rest: str) -> Iterator[tuple[str, bool]]:
  """The computations that an instruction runs once: (name, whether their instructions are fused into this one)."""
  for name in re.findall(r"(?:calls|called_computation)=%?([\w.\-]+)", rest):
    yield name, opcode not in ("call", "async-start")
  if opcode == "call" and (target := re.search(r"to_apply=%?([\w.\-]+)", rest)):
    yield target[1], False


def _branches(rest: str) -> list[str]:
  """The computations of which a `conditional` runs one."""
  branches = re.search(r"branch_computations={([^}]*)}", rest)
  pattern = r"(?:true|false)_computation=%?([\w.\-]+)"
  return [name.lstrip("%") for name in (re.split(r",\s*", branches[1]) if branches else re.findall(pattern, rest))]


def _moved_bytes(instruction: str, opcode: str, size: float, operands: list[float]) -> float:
  """Bytes that a top-level instruction reads and writes; names of fusions contain the opcodes that they are made of."""
  if "dynamic-update-slice" in instruction or opcode == "dynamic-update-slice":
    return 2 * sum(sorted(operands)[:-1])  # in place: reads and writes the update only
  collective = opcode.removesuffix("-start") in KINDS
  gathers = "gather" in instruction and not collective
  if "dynamic-slice" in instruction or gathers or opcode in ("slice", "gather"):
    return 2 * size
  return size + sum(operands)


def _computations(text: str) -> tuple[dict[str, list[tuple[str, ...]]], str]:
  """({name: [(instruction, shape, opcode, rest of the line)]}, name of the entry computation) of an HLO text."""
  computations: dict[str, list[tuple[str, ...]]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if current is not None and line.startswith("}"):
      current = None
    elif match := _COMPUTATION.match(line):
      current = computations[match[2]] = []
      entry = match[2] if match[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      current.append(match.groups())
  return computations, entry


def _size(shape: str) -> float:
  """Bytes of a shape, or of all parts of a tuple: 32 for "(f32[2,3]{1,0}, bf16[4]{0})"."""
  total = 0.0
  for kind, sizes in _SHAPE.findall(shape):
    each = _BYTES.get(kind)
    if each is None:  # the first number is the width in bits: s32, f8e4m3fn, c64
      width = re.search(r"\d+", kind)
      assert width is not None, kind
      each = int(width[0]) / 8
    total += each * math.prod(map(int, sizes.split(","))) if sizes else each
  return total


def _operands(rest: str) -> list[str]:
  """The names of an instruction's operands, from what follows its opening parenthesis."""
  depth = 1
  for i, character in enumerate(rest):
    depth += (character == "(") - (character == ")")
    if depth == 0:
      return re.findall(r"%([\w.\-]+)", rest[:i])
  return []


def _group(rest: str) -> int:
  """Devices of one replica group.

  In one of the forms replica_groups={{0,1},{2,3}}, [2,16]<=[32] and, since JAX 0.12, mesh['data'=4,'model'=2] {'data'}, where an axis may
  be a part of one: {'data':(1)2} has size 2.
  """
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*{([^}]*)}", rest):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
    return math.prod(int(part or sizes[name]) for name, part in axes)
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
    return int(match[2])
  if match := re.search(r"replica_groups={{([\d,]+)}", rest):
    return match[1].count(",") + 1
  return 2  # source_target_pairs
