"""What a compiled program costs: matrix products counted in its jaxpr, collectives and memory traffic in its compiled text.

XLA's own `cost_analysis` counts the body of a loop once and gives no collectives; here a loop's body counts as often as it runs.
"""

import collections
import dataclasses
import math
import re

from jax.extend import core

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b(pred|token|opaque|[a-z]+\d+(?:e\dm\d\w*)?)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*{$")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that name memory or control, and move nothing themselves.
_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "partition-id", "replica-id",
  "copy-done", "opt-barrier", "optimization-barrier", "async-start", "async-update", "async-done",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collectives:
  """One kind of collective, per device.

  Attributes:
    count: how many run.
    bytes: of the whole array that is reduced, gathered or sent, summed over them.
    sent: bytes that a device sends, by the ring algorithm.
  """

  count: float
  bytes: float
  sent: float


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Of one run of a program, per device: bytes read and written by its top-level instructions, and its collectives by kind."""

  bytes: float
  collectives: dict[str, Collectives]


def matmul_flops(jaxpr, share: int, loop: int = 1) -> float:
  """FLOPs of the matrix products of a program, per device (multiply and add are two).

  Args:
    jaxpr: from `jax.jit(f).trace(...)`, whose `shard_map`s are manual over some mesh axes.
    share: devices over which the work outside of these is spread.
    loop: how often the body of a `while` is taken to run; a `scan` says it itself.
  """

  def one(jaxpr, share):
    total = 0.0
    for equation in jaxpr.eqns:
      name, params = equation.primitive.name, equation.params
      if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        total += 2.0 * math.prod(out) * math.prod(left[i] for i in contracted) / share
        continue
      times, inner = 1, share
      if name == "scan":
        times = params["length"]
      elif name == "while":
        times = loop
      elif name == "shard_map":  # shapes inside are a device's along the manual axes
        inner = math.prod(
          size for axis, size in params["mesh"].shape.items() if axis not in params["newly_manual_axes"]
        )
      found = [one(part, inner) for part in _inside(params)]
      total += times * (max(found, default=0.0) if name == "cond" else sum(found))
    return total

  return one(jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr, share)


def _inside(params):
  for value in params.values():
    for part in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part


def traffic(text: str, loop: int = 1) -> Traffic:
  """Reads a compiled program.

  Args:
    text: `compiled.as_text()`.
    loop: how often a loop runs of which the text does not say it.
  """
  computations, entry = _computations(text)
  moved, found = 0.0, collections.defaultdict(lambda: [0.0, 0.0, 0.0])

  def visit(name, times, fused):
    nonlocal moved
    shapes = {}
    for instruction, shape, opcode, rest in computations.get(name, ()):
      shapes[instruction] = size = _size(shape)
      kind = opcode.removesuffix("-start")
      if kind in KINDS:
        operands = sum(shapes.get(x, 0.0) for x in _operands(rest))
        group = _group(rest)
      if kind in KINDS and group > 1:  # a group of one moves nothing
        whole = {"all-gather": size if kind == opcode else size - operands, "reduce-scatter": operands}.get(
          kind, operands
        )
        sent = (
          whole * (2 if kind == "all-reduce" else 1) * (group - 1) / group if kind != "collective-permute" else whole
        )
        for i, value in enumerate((1, whole, sent)):
          found[kind][i] += times * value
      if opcode == "while":
        said = re.search(r'known_trip_count"?:\s*{"n":"?(\d+)', rest)
        runs = int(said[1]) if said else loop
        for called in re.findall(r"(?:body|condition)=%?([\w.\-]+)", rest):
          visit(called, times * runs, fused)
      elif opcode == "conditional":
        listed = re.search(r"branch_computations={([^}]*)}", rest)
        names = re.split(r",\s*", listed[1]) if listed else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", rest)
        visit(names[0].lstrip("%"), times, fused)  # branches of one program cost about the same
      else:
        for called in re.findall(r"(?:calls|called_computation)=%?([\w.\-]+)", rest):
          visit(called, times, fused or opcode not in ("call", "async-start"))
        if opcode == "call":
          visit(re.search(r"to_apply=%?([\w.\-]+)", rest)[1], times, fused)
      if not fused and opcode not in _FREE and not opcode.endswith("-done"):
        if (
          "dynamic-update-slice" in instruction or opcode == "dynamic-update-slice"
        ):  # in place: what is new, read and written
          operands = sorted(shapes.get(x, 0.0) for x in _operands(rest))
          moved += times * 2 * sum(operands[:-1])
        elif (
          "dynamic-slice" in instruction
          or "gather" in instruction
          and kind not in KINDS
          or opcode in ("slice", "gather")
        ):
          moved += times * 2 * size
        else:
          moved += times * (size + sum(shapes.get(x, 0.0) for x in _operands(rest)))

  visit(entry, 1.0, False)
  return Traffic(moved, {kind: Collectives(*found[kind]) for kind in KINDS if kind in found})


def _computations(text: str):
  """-> {name: [(instruction, shape, opcode, the rest of its line)]}, name of the entry."""
  made, entry, current = {}, None, None
  for line in text.splitlines():
    if current is not None and line.startswith("}"):
      current = None
    elif match := _COMPUTATION.match(line):
      current = made[match[2]] = []
      entry = match[2] if match[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      current.append(match.groups())
  return made, entry


def _size(shape: str) -> float:
  """Bytes of a shape, or of all parts of a tuple: "(f32[2,3]{1,0}, bf16[4]{0})" -> 32."""
  total = 0.0
  for kind, sizes in _SHAPE.findall(shape):
    each = _BYTES.get(kind)
    if each is None:
      each = int(re.search(r"\d+", kind)[0]) / 8
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
  """Devices that take part: replica_groups={{0,1},{2,3}} or [2,16]<=[32]."""
  if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
    return int(found[2])
  if found := re.search(r"replica_groups={{([\d,]+)}", rest):
    return found[1].count(",") + 1
  return 2  # source_target_pairs
