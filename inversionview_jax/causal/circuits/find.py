"""From a target and a task to a verified circuit: effects, the search for the smallest set, its curve, edges, and what each node carries.

The search sees pairs of the train split; everything that is reported is measured on pairs of the test split.

Shapes: V nodes, N pairs.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from inversionview_jax import bounds, tasks
from inversionview_jax.causal import experiments
from inversionview_jax.causal.circuits import search
from inversionview_jax.causal.circuits.ablation import Ablation
from inversionview_jax.causal.circuits.contents import Contents, contents_of, tested
from inversionview_jax.causal.circuits.edges import Edge, find_edges
from inversionview_jax.causal.circuits.nodes import Grid, Node
from inversionview_jax.causal.circuits.result import Circuit, CircuitNode
from inversionview_jax.causal.circuits.stages import Stages
from inversionview_jax.causal.estimates import estimate, read_estimate, share
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.targets import Target
from inversionview_jax.tasks.base import Task
from inversionview_jax.tasks.pairs_file import TextPairs

_LARGE = 10_000_000  # parameters from which on a run of the target is dear
_LEADERS = {False: 200, True: 60}  # nodes whose effects are measured where there are too many, besides the circuit's
_TESTED = {False: 3, True: 1}  # features of a node that are tested causally
_EDGES = {False: 600, True: 100}  # edges into nodes that are measured, of a small and of a large target
_OF_READING = ("queries", "inputs", "monte_carlo")  # settings on which nothing but what nodes carry depends

Progress = Callable[[str, int, int], object]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a search is done with; None is a default that depends on the size of the target (below 10 million parameters, and above).

  Attributes:
    answer: label of the answer token; "" for the task's first.
    faithfulness: that the circuit must reach.
    most: the most nodes; None: as many as it takes.
    pairs: for the search (512, or 32).
    test_pairs: for what is reported (1,024, or 64).
    budget: runs of the target for search and measurement, without readings; None: no limit.
    queries: activations of each node that are read (16, or 6); 0: what nodes carry is not read.
    inputs: random inputs from which their preimages are drawn (65,536, or 4,096).
    random_sets: of each size, as a baseline (10, or 3).
    monte_carlo: how many activations of each node are read by Monte Carlo where random inputs do not reach them; seconds to minutes each.
    seed: of all that is drawn.
    objective: of the search, see `search.OBJECTIVES`.
  """

  answer: str = ""
  faithfulness: float = 0.95
  most: int | None = None
  pairs: int | None = None
  test_pairs: int | None = None
  budget: int | None = None
  queries: int | None = None
  inputs: int | None = None
  random_sets: int | None = None
  monte_carlo: int = 0
  seed: int = 0
  objective: str = "faithfulness"

  def filled(self, target: Target) -> "Settings":
    """With the defaults for this target, checked."""
    large = is_large(target)
    defaults = {"pairs": (512, 32), "test_pairs": (1024, 64), "queries": (16, 6), "inputs": (65_536, 4096)}
    defaults |= {"random_sets": (10, 3)}
    given = {name: own[large] for name, own in defaults.items() if getattr(self, name) is None}
    made = dataclasses.replace(self, **given)  # type: ignore[arg-type]
    if not 0 < made.faithfulness <= 1:
      raise InversionViewError(f"faithfulness = {made.faithfulness} must be above 0 and at most 1")
    if made.objective not in search.OBJECTIVES:
      raise one_of("objective", made.objective, search.OBJECTIVES)
    bounds.check(pairs=made.pairs, budget=made.budget, seed=made.seed)
    bounds.whole("inputs", made.inputs, "all_inputs")
    for name, low in (("most", 1), ("test_pairs", 2), ("queries", 0), ("random_sets", 0), ("monte_carlo", 0)):
      value = getattr(made, name)
      if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise InversionViewError(f"{name} = {value!r} must be a whole number of at least {low}")
    return made


def is_large(target: Target) -> bool:
  """Whether a run of the target is dear: 10 million parameters or more."""
  return sum(x.size for x in jax.tree.leaves(target.params)) >= _LARGE


def circuit(
  target: Target,
  task: Task | str | None = None,
  *,
  answer: str = "",
  faithfulness: float = 0.95,
  most: int | None = None,
  pairs: int | None = None,
  test_pairs: int | None = None,
  budget: int | None = None,
  queries: int | None = None,
  inputs: int | None = None,
  random_sets: int | None = None,
  monte_carlo: int = 0,
  objective: str = "faithfulness",
  contrast: TextPairs | None = None,
  seed: int = 0,
  out: "str | pathlib.Path | None" = None,
  mesh: jax.sharding.Mesh | None = None,
  progress: Progress = lambda step, done, total: None,
) -> Circuit:
  """Finds the smallest circuit of an answer: heads and MLPs at positions that keep it while all else is resample-ablated.

  Args:
    target: the model.
    task: whose inputs, labels and features; by default the target's. None with `contrast`: positions are indices, and nothing is read.
    answer, faithfulness, most, pairs, test_pairs, budget, queries, inputs, random_sets, monte_carlo, objective, seed: see `Settings`.
    contrast: pairs of texts that take the place of the task's (`tasks.pairs_file.read`); half of them are for the search.
    out: a folder for what is done already, so that an interrupted search goes on; None: nothing is kept.
    mesh: all devices by default.
    progress: called with the step, how much of it is done and of how much.

  Raises:
    InversionViewError: no pairs that differ in this answer and line up, an answer or a number that cannot be used, or a budget that is too
      small.
  """
  task = tasks.get(task) if isinstance(task, str) else task or target.resolve_task()
  if target.tokenizer is None and task is not None:
    target = dataclasses.replace(target, tokenizer=task.tokenizer)
  given = Settings(
    answer, faithfulness, most, pairs, test_pairs, budget, queries, inputs, random_sets, monte_carlo, seed, objective
  )
  settings = given.filled(target)
  finder = _Finder.of(target, task, settings, contrast, out, mesh, progress)
  return finder.run()


@dataclasses.dataclass(eq=False)
class _Finder:
  """The steps of a search; each is kept when it is done."""

  target: Target
  task: Task | None
  settings: Settings
  seen: Ablation  # the pairs of the search
  unseen: Ablation
  stages: Stages
  readings: Stages  # apart, so that a circuit can be read again with more inputs
  progress: Progress

  @classmethod
  def of(cls, target, task, settings: Settings, contrast, out, mesh, progress: Progress) -> "_Finder":
    if contrast is not None:
      half = len(contrast) // 2
      if not half:
        raise InversionViewError("a circuit needs at least two contrast pairs: one to search with and one to measure")
      contrast.refuse_unequal("a position")
      grids = [Grid.of(target, task, _part(contrast, rows)) for rows in (slice(0, half), slice(half, None))]
    elif task is None:
      raise InversionViewError("this target belongs to no task: name the task, or give contrast pairs of your own")
    else:
      grids = [
        Grid.of(target, task, _drawn(task, settings, split, count))
        for split, count in (("train", settings.pairs), ("test", settings.test_pairs))
      ]
    seen = Ablation(target, grids[0], parallel.make_mesh() if mesh is None else mesh, most=settings.budget)
    unseen = seen.on(grids[1].like(grids[0]))
    made_with = dataclasses.asdict(settings) | {"target": target.describe(), "task": "" if task is None else task.name}
    made_with |= {"pairs_digest": [grid.digest() for grid in grids]}
    searched = {name: value for name, value in made_with.items() if name not in _OF_READING}
    return cls(target, task, settings, seen, unseen, Stages.of(out, searched), Stages.of(out, made_with), progress)

  @property
  def large(self) -> bool:
    return is_large(self.target)

  @property
  def runs(self) -> int:
    return self.seen.runs + self.unseen.runs

  def _step(self, name: str, make: Callable[[], Any]) -> Any:
    """The result of a step: that of before if it is there, else made and kept, with the runs that it took."""

    def counted() -> dict:
      before = self.runs
      return {"value": make(), "runs": self.runs - before}

    kept = self.stages.load(name)
    if kept is None:
      done = 0

      def moved(runs: int) -> None:
        nonlocal done
        done += runs
        self.progress(name, done, 0)

      self.seen.progress = self.unseen.progress = moved
      self.unseen.most = None if self.settings.budget is None else self.settings.budget - self.seen.runs
      kept = self.stages.save(name, counted())
    else:
      self.seen.runs += kept["runs"]
    self.progress(name, 1, 1)
    return kept["value"]

  def run(self) -> Circuit:
    grid = self.seen.grid
    attribution = dict(self._step("attribution", lambda: self._attribution()))
    names = self._step("search", self._eliminated)
    order = tuple(grid.named(name) for name in names)
    curve, size = self._curve(order)
    chosen = order[:size]
    effects = {
      name: read_estimate(value)
      for name, value in self._step("effects", lambda: self._effects(attribution, chosen)).items()
    }
    edges = [
      Edge(source, target, way, read_estimate(effect))
      for source, target, way, effect in self._step("edges", lambda: self._edges(chosen))
    ]
    contents = self._contents(chosen)
    nodes = tuple(self._node(node, n + 1, effects, attribution, contents) for n, node in enumerate(chosen))
    return self._circuit(nodes, order, edges, curve, effects, contents)

  def _eliminated(self) -> list[str]:
    few = 60 if self.large else search.FEW  # from which on every removal is measured
    return [node.name for node in search.eliminate(self.seen, few, objective=self.settings.objective).order]

  def _attribution(self) -> list[tuple[str, float]]:
    values, (clean, corrupted) = self.seen.attribution(), self.seen.whole().mean(axis=1)
    return [(node.name, float(x / (clean - corrupted))) for node, x in zip(self.seen.grid.nodes, values, strict=True)]

  def _curve(self, order: tuple[Node, ...]) -> tuple[search.Curve, int]:
    """The curve on unseen pairs, and the size that was chosen on those of the search."""
    elimination = search.Elimination(order, ())
    sizes = search.sizes_of(elimination, len(order))

    def measured(ablation: Ablation, random_sets: int) -> list:
      found = search.curve(ablation, elimination, sizes, self.settings.seed, random_sets)
      return [found.clean.tolist(), found.corrupted.tolist(), [search.point_to_data(p) for p in found.points]]

    seen = _read_curve(self._step("sizes", lambda: measured(self.seen, 0)))
    size = seen.smallest(self.settings.faithfulness, self.settings.most)
    return _read_curve(self._step("curve", lambda: measured(self.unseen, self.settings.random_sets or 0))), size

  def _effects(self, attribution: dict[str, float], chosen: tuple[Node, ...]) -> dict[str, dict]:
    """What each node alone brings: the loss when it is patched in the clean run."""
    nodes = list(self.unseen.grid.nodes)
    if len(nodes) > search.FEW:
      leaders = sorted(nodes, key=lambda node: -abs(attribution[node.name]))[: _LEADERS[self.large]]
      nodes = list(dict.fromkeys([*chosen, *leaders]))
    clean, corrupted = self.unseen.whole()
    every = self.unseen.grid.nodes
    without = self.unseen.logit_difference([[n for n in every if n is not node] for node in nodes])
    found = {}
    for node, values in zip(nodes, without, strict=True):
      effect = share(clean - values, clean - corrupted)
      assert effect is not None
      found[node.name] = effect.to_data()
    return found

  def _edges(self, chosen: tuple[Node, ...]) -> list:
    found = find_edges(self.unseen, chosen, _EDGES[self.large])
    return [(edge.source, edge.target, edge.through, edge.effect.to_data()) for edge in found]

  def _contents(self, chosen: tuple[Node, ...]) -> dict[str, Contents]:
    task, settings = self.task, self.settings
    if task is None or not settings.queries:
      return {}
    kept = self.readings.load_contents()
    if kept is not None:
      return kept
    assert settings.inputs is not None
    found = contents_of(
      self.target,
      task,
      chosen,
      queries=settings.queries,
      inputs=settings.inputs,
      monte_carlo=settings.monte_carlo,
      seed=settings.seed,
      progress=lambda done, total: self.progress("contents", done, total),
    )
    by_name = {node.name: node for node in chosen}
    for number, (name, one) in enumerate(found.items()):
      how: dict[str, Any] = {"features": _TESTED[self.large], "pairs": len(self.unseen.grid), "seed": settings.seed}
      found[name] = tested(self.target, task, by_name[name], one, predict=settings.answer or None, **how)
      self.progress("causal tests", number + 1, len(found))
    self.readings.save_contents(found)
    return found

  def _node(self, node: Node, number: int, effects, attribution, contents) -> CircuitNode:
    own = contents.get(node.name)
    is_head = node.part < self.target.config.n_heads
    return CircuitNode(
      node.name,
      node.site,
      node.position,
      node.layer,
      node.part if is_head else None,
      effects.get(node.name),
      attribution[node.name],
      number,
      () if own is None else own.carried,
      None if own is None else own.bits,
      0 if own is None else own.queries,
      "" if own is None else own.problem,
    )

  def _circuit(self, nodes, order, edges, curve: search.Curve, effects, contents) -> Circuit:
    config, grid = self.target.config, self.unseen.grid
    size = len(nodes)
    at = next(p for p in curve.points if p.size == size)
    text = self.target.require_tokenizer().text
    cut = [row[: last + 1] for row, last in ((x[0], grid.read_at[0]) for x in (grid.clean, grid.corrupted))]
    architecture = {"n_layers": config.n_layers, "n_heads": config.n_heads, "d_model": config.d_model}
    has_random = bool(self.settings.random_sets)
    return Circuit(
      target=self.target.name,
      task="" if self.task is None else self.task.name,
      answer=self.settings.answer,
      example=(text(cut[0]), text(cut[1])),
      pairs=len(grid),
      positions=grid.labels,
      clean=estimate(curve.clean),
      corrupted=estimate(curve.corrupted),
      size=size,
      faithfulness=at.faithfulness,
      nodes=nodes,
      inputs=tuple(grid.labels[group] for group in grid.differing),
      edges=tuple(edges),
      curve=curve.points,
      cpr=curve.area(),
      cmd=curve.distance(),
      random_cpr=curve.area(random=True) if has_random else None,
      random_cmd=curve.distance(random=True) if has_random else None,
      effects=effects,
      order=tuple(node.name for node in order),
      settings=dataclasses.asdict(self.settings),
      target_runs=self.runs,
      architecture=architecture | {"parallel": config.parallel},
      preimages={name: one.preimages for name, one in contents.items()},
    )


def _drawn(task: Task, settings: Settings, split: str, count: int | None):
  def draw(index):
    return task.contrast_aligned(index, settings.seed, predict=settings.answer)

  assert count is not None
  return experiments.collect_pairs(task, draw, count, split=split, seed=settings.seed)


def _part(pairs: TextPairs, rows: slice) -> TextPairs:
  return TextPairs(**{field.name: getattr(pairs, field.name)[rows] for field in dataclasses.fields(pairs)})


def _read_curve(data) -> search.Curve:
  clean, corrupted, points = data
  return search.Curve(tuple(map(search.point_from_data, points)), np.array(clean), np.array(corrupted))
