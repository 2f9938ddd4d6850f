"""The scoreboard as data: what each reader named for each component, the scores over components and programs, and the table of them."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.benchmarks.scoreboard.circuits import Found
from inversionview_jax.files import write_whole
from inversionview_jax.tables import ShowsTable, Table

FORMAT, FORMAT_VERSION = "inversionview-scoreboard", 1
# Reader -> what it is, in the order of the table.
READERS = {
  "preimages": "variables whose level sets are the preimages of the activation",
  "probes": "every variable that a linear probe decodes from the activation",
  "best probe": "of these the one with the most bits",
  "text": "what stands at the position, without the activation",
  "another": "what the preimages of another component at the position lead to",
}
_SHOWN = 4  # misses of a program that are listed


@dataclasses.dataclass(frozen=True)
class Score:
  """Variables named against variables written, counted over components.

  Attributes:
    right, named: of the named variables, those that are right, and all.
    covered, true: of the written variables, those that are named, and all. Constants count nowhere: naming one is wrong.
  """

  right: int = 0
  named: int = 0
  covered: int = 0
  true: int = 0

  def __add__(self, other: "Score") -> "Score":
    return Score(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

  @property
  def precision(self) -> float:
    """Share of the named variables that are right; 1 where none is named."""
    return self.right / self.named if self.named else 1.0

  @property
  def recall(self) -> float:
    """Share of the written variables that are named; 1 where none is written."""
    return self.covered / self.true if self.true else 1.0

  @property
  def f1(self) -> float:
    """Harmonic mean of precision and recall."""
    total = self.precision + self.recall
    return 2 * self.precision * self.recall / total if total else 0.0

  def to_dict(self) -> dict[str, float]:
    """Plain data for JSON."""
    return dataclasses.asdict(self) | {"precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclasses.dataclass(frozen=True)
class Answer:
  """One component: what it writes, and what each reader named.

  Attributes:
    component: such as "a0.0@i2".
    expressions: labels of the expressions that it writes, () for a head or MLP that Tracr left empty.
    written: the variables among these that are not constant, one of those that split the inputs alike.
    named: reader -> variables.
    constant: whether the preimages call it constant.
    overlap, bits: of the preimages; see `naming.Named`.
    is_right: whether the preimages name all that it writes, and nothing else.
    shown_by: how it is known: by the "program", or of a trained model by "patching" or the "architecture".
  """

  component: str
  expressions: tuple[str, ...]
  written: tuple[str, ...]
  named: dict[str, tuple[str, ...]]
  constant: bool
  overlap: float
  bits: float
  is_right: bool
  shown_by: str = "program"


@dataclasses.dataclass(frozen=True)
class ProgramScore:
  """The scores of one program, or of one trained target.

  Attributes:
    program: its name.
    inputs: how many it has.
    method: by which the preimages were found.
    answers: of every component; of a trained target, of those that are known.
    variables: reader -> its score.
    nodes, edges: of patching, against the program's graph; None where circuits were left out, and of a trained target.
    changes: of ranking nodes by how much their activation changes, without patching.
    seconds: that it took.
  """

  program: str
  inputs: int
  method: str
  answers: tuple[Answer, ...]
  variables: dict[str, Score]
  nodes: Found | None
  edges: Found | None
  changes: Found | None
  seconds: float

  def __str__(self) -> str:
    """One line: the F1 of the variables that preimages name, of nodes and of edges."""
    scores = [("variables", self.variables["preimages"].f1)]
    scores += [(name, f1_of(found)) for name, found in (("nodes", self.nodes), ("edges", self.edges)) if found]
    return f"{self.program}: F1 of {', '.join(f'{name} {f1:.3f}' for name, f1 in scores)}; {self.seconds:.0f} s"

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON."""
    found = {name: _found(getattr(self, name)) for name in ("nodes", "edges", "changes")}
    return {
      "program": self.program,
      "inputs": self.inputs,
      "method": self.method,
      "seconds": self.seconds,
      "variables": {reader: score.to_dict() for reader, score in self.variables.items()},
      **found,
      "components": [dataclasses.asdict(answer) for answer in self.answers],
    }


def _found(found: Found | None) -> dict[str, Any] | None:
  return None if found is None else dataclasses.asdict(found) | {"f1": f1_of(found)}


def f1_of(found: Found) -> float:
  """Harmonic mean of the share of what was found that is true, and of what is true that was found; 1 where there is nothing to find and nothing was."""
  return 2 * found.right / (found.found + found.true) if found.found + found.true else 1.0


def _together(each: Sequence[Found]) -> Found | None:
  """Counts over programs; the AUROC is the mean of theirs."""
  if not each:
    return None
  known_auroc = [one.auroc for one in each if one.auroc is not None]
  right, found, true = (sum(getattr(one, name) for one in each) for name in ("right", "found", "true"))
  return Found(float(np.mean(known_auroc)) if known_auroc else None, right, found, true, ())


@dataclasses.dataclass(frozen=True, repr=False)
class Scoreboard(ShowsTable):
  """The scores of several programs.

  Attributes:
    programs: each by itself.
    seed: of queries, folds and pairs.
    trained: trained targets, each by itself; they count in no score over programs.
  """

  programs: tuple[ProgramScore, ...]
  seed: int
  trained: tuple[ProgramScore, ...] = ()

  @property
  def variables(self) -> dict[str, Score]:
    """Reader -> its score, counted over the components of all programs."""
    return {reader: sum((one.variables[reader] for one in self.programs), Score()) for reader in READERS}

  @property
  def nodes(self) -> Found | None:
    """Over all programs."""
    return _together([one.nodes for one in self.programs if one.nodes])

  @property
  def edges(self) -> Found | None:
    """Over all programs."""
    return _together([one.edges for one in self.programs if one.edges])

  @property
  def changes(self) -> Found | None:
    """Over all programs."""
    return _together([one.changes for one in self.programs if one.changes])

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "version": __version__,
      "seed": self.seed,
      "readers": READERS,
      "decoder": "none is trained for these programs",
      "variables": {reader: score.to_dict() for reader, score in self.variables.items()},
      **{name: _found(getattr(self, name)) for name in ("nodes", "edges", "changes")},
      "programs": [one.to_dict() for one in self.programs],
      "trained": [one.to_dict() for one in self.trained],
    }

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON; also written to `path`, whole or not at all."""
    text = json.dumps(self.to_dict(), allow_nan=False, indent=1, ensure_ascii=False)
    if path is not None:
      write_whole(path, text + "\n")
    return text

  def misses(self) -> list[str]:
    """A line for every component that the preimages name wrongly, and for every node that is missed or found beside the graph."""
    lines = []
    for one in (*self.programs, *self.trained):
      for answer in one.answers:
        if not answer.is_right:
          what = " and ".join(answer.named["preimages"]) or ("constant" if answer.constant else "nothing")
          writes = " and ".join(answer.written) or "a constant"
          lines.append(f"{one.program}: {answer.component} writes {writes}, named: {what}")
      for kind, found in (("node", one.nodes), ("edge", one.edges)):
        if found is not None and found.misses:
          shown = "; ".join(found.misses[:_SHOWN])
          left = f"; {len(found.misses) - _SHOWN} more" if len(found.misses) > _SHOWN else ""
          lines.append(f"{one.program}: {kind} {shown}{left}")
    return lines

  def _table(self) -> Table:
    columns = ("program", "inputs", "written", *READERS, "nodes AUROC", "F1", "edges AUROC", "F1", "s")
    rows = [_row(one) for one in self.programs]
    if self.programs:
      total = (sum(one.inputs for one in self.programs), sum(one.seconds for one in self.programs))
      rows.append(_cells_of("all", total[0], self.variables, self.nodes, self.edges, total[1]))
    rows += [_row(one) for one in self.trained]
    notes = (
      "F1 of the variables named, by each reader, counted over heads and MLPs at every position; circuits by patching"
    )
    if self.trained:
      notes += "; of trained targets over the parts that are known to carry one variable"
    return Table(_title(self), columns, tuple(rows), notes)


def _title(board: Scoreboard) -> str:
  counts = [(len(board.programs), "program"), (len(board.trained), "trained target")]
  return "Scoreboard: " + ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts if count)


def _row(one: ProgramScore) -> tuple[str, ...]:
  return _cells_of(one.program, one.inputs, one.variables, one.nodes, one.edges, one.seconds)


def _cells_of(
  name: str, inputs: int, variables: dict[str, Score], nodes: Found | None, edges: Found | None, seconds: float
) -> tuple[str, ...]:
  each = (f"{variables[reader].f1:.3f}" for reader in READERS)
  written = str(variables["preimages"].true)
  return name, f"{inputs:,}", written, *each, *_cells(nodes), *_cells(edges), f"{seconds:.0f}"


def _cells(found: Found | None) -> tuple[str, str]:
  if found is None:
    return "-", "-"
  return "-" if found.auroc is None else f"{found.auroc:.3f}", f"{f1_of(found):.3f}"
