"""The scoreboard: what readers name for every component of compiled programs, and the circuits that patching finds, against the programs themselves;
and what they name for parts of trained models that are known to carry one variable."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from inversionview_jax import bounds
from inversionview_jax.benchmarks.scoreboard import answers as known
from inversionview_jax.benchmarks.scoreboard import circuits, naming, partitions, probes, reading, trained
from inversionview_jax.benchmarks.scoreboard.answers import Answers
from inversionview_jax.benchmarks.scoreboard.board import READERS, Answer, ProgramScore, Score, Scoreboard
from inversionview_jax.benchmarks.scoreboard.circuits import Found
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.programs import LIBRARY, program_named

METHODS = ("exact", "monte_carlo")
_INPUTS = 4096  # of a program, above which its preimages are sampled
_QUERIES = 24


def scoreboard(
  programs: Sequence[str] | None = None,
  *,
  trained_targets: Sequence[str] | None = None,
  method: str | None = None,
  queries: int | None = None,
  inputs: int = _INPUTS,
  particles: int | None = None,
  circuit: bool = True,
  seed: int = 0,
  progress: Callable[[ProgramScore], object] = lambda done: None,
) -> Scoreboard:
  """Scores readers and circuits on compiled programs, whose parts are known.

  Args:
    programs: names of programs, such as "hist" or "tracr:sort,max_seq_len=4"; None: all of Tracr's library.
    trained_targets: shipped targets of which answers are known (`trained.answers`); None: all of them where `programs` is None, else none.
    method: "exact" or "monte_carlo"; None: exact for a program with at most `inputs` inputs.
    queries: activations of a component, at most; None: 24 that differ by more than epsilon, and of a trained part 48, or 6 by Monte Carlo.
    inputs: of which base rates, probes and, if these are all, exact preimages are taken.
    particles: of Monte Carlo.
    circuit: whether to find nodes and edges.
    seed: of queries, folds and pairs.
    progress: called with the scores of each program when it is done.

  Raises:
    InversionViewError: an unknown program, trained target or method, or numbers out of range.
  """
  if method is not None and method not in METHODS:
    raise one_of("method", method, METHODS)
  if method == "exact" and particles is not None:
    raise InversionViewError("particles has no effect with method 'exact': leave it out, or use monte_carlo")
  bounds.check(queries=queries, inputs=inputs, seed=seed)
  if trained_targets is None:
    trained_targets = list(trained.answers()) if programs is None else []
  names = list(LIBRARY) if programs is None else list(programs)
  if not names and not trained_targets:
    raise InversionViewError("no programs: name at least one, such as hist")
  for name in names:  # all of them before the first one is compiled
    program_named(known.full_name(name))
  for name in trained_targets:
    trained.check(name)
  done = []
  for name in names:
    start = time.monotonic()
    one = known.load(name, inputs, seed)
    how = method or ("exact" if one.complete else "monte_carlo")
    if how == "exact" and not one.complete:
      raise InversionViewError(
        f"{one.task.name} has {one.task.num_inputs:,} inputs, more than the {inputs:,} that are enumerated: use monte_carlo"
      )
    answers, variables = _variables(one, how, queries or _QUERIES, particles, seed)
    found: dict[str, Found | None] = dict.fromkeys(("nodes", "edges", "changes"))
    if circuit:
      scores = circuits.find(one, seed)
      found = {
        "nodes": circuits.of_nodes(one, scores.nodes),
        "edges": circuits.of_edges(one, scores.edges),
        "changes": circuits.of_nodes(one, scores.changes),
      }
    seconds = time.monotonic() - start
    done.append(ProgramScore(one.task.name, one.task.num_inputs, how, answers, variables, seconds=seconds, **found))
    progress(done[-1])
  shipped = []
  for name in trained_targets:
    shipped.append(_trained(name, queries, seed))
    progress(shipped[-1])
  return Scoreboard(tuple(done), seed, tuple(shipped))


def _trained(name: str, queries: int | None, seed: int) -> ProgramScore:
  """The scores of a shipped target, over its parts that are known."""
  start = time.monotonic()
  one = trained.TrainedAnswers.of(name, seed)
  read = trained.read(one, queries, seed)
  text = reading.read_text(one, one.components, naming.certain)
  answers, variables = _scored(one, read, text, seed)
  how = "rejection" if one.task.enumerable else "monte_carlo"
  seconds = time.monotonic() - start
  return ProgramScore(name, one.task.num_inputs, how, answers, variables, None, None, None, seconds)


def _variables(
  answers: Answers, method: str, queries: int, particles: int | None, seed: int
) -> tuple[tuple[Answer, ...], dict[str, Score]]:
  """What every reader names for every component, and the scores."""
  components, task = answers.components, answers.task
  how: dict[str, Any] = {"most": queries, "epsilon": task.epsilon, "metric": task.metric, "seed": seed}
  if method == "exact":
    read = reading.read_exactly(answers, components, **how)
  else:
    read = reading.read_by_sampling(answers, components, **how, particles=particles)
  return _scored(answers, read, reading.read_text(answers, components), seed)


def _scored(
  answers: "Answers | trained.TrainedAnswers", read: Sequence[naming.Named], text: Sequence[naming.Named], seed: int
) -> tuple[tuple[Answer, ...], dict[str, Score]]:
  """The answers by preimages and by the text, with those of the other readers, and the scores of all."""
  components: Sequence[Any] = answers.components
  decoded = [_probed(answers, component, seed) for component in components]
  named: dict[str, list[tuple]] = {
    "preimages": [one.variables for one in read],
    "probes": [tuple(one) for one in decoded],
    "best probe": [(max(one, key=lambda name: one[name]),) if one else () for one in decoded],
    "text": [one.variables for one in text],
    "another": [one.variables for one in reading.read_others(components, read, seed)],
  }
  scores = dict.fromkeys(READERS, Score())
  rows = []
  for number, component in enumerate(components):
    exact = Score()
    written = answers.written(component)
    parts = answers.partitions(component.symbol)
    each = {reader: named[reader][number] for reader in READERS}
    for reader, variables in each.items():
      right, covered = partitions.matched(variables, written, parts)
      score = Score(len(right), len(variables), len(covered), len(written))
      scores[reader] += score
      exact = score if reader == "preimages" else exact
    one = read[number]
    is_right = exact.right == exact.named and exact.covered == exact.true
    about = (answers.expressions(component), written, each, one.constant, one.overlap, one.bits, is_right)
    rows.append(Answer(str(component), *about, getattr(component, "shown_by", "program")))
  return tuple(rows), scores


def _probed(answers: Any, component: Any, seed: int) -> dict[str, float]:
  names = answers.candidates(component.symbol)
  return probes.decoded(answers.activations(component), answers.partitions(component.symbol), names, seed)
