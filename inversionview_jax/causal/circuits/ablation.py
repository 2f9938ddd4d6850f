"""Runs a target with every node outside of a set ablated: replaced by what it is in the run of the corrupted input (resample ablation).

Embeddings are kept. What is left alone is data, an array of booleans, so that every set of nodes runs in one compiled program; between
zero and one it is a straight line from the corrupted to the clean run, whose gradients attribute the difference to nodes (integrated
gradients over the ablation itself, as EAP-IG does over the embeddings: Hanna et al., 2024; the sum over nodes is the whole difference).

Shapes: N pairs, B pairs of a program call, T tokens, S sets of nodes, L layers, H heads, G groups of positions, V nodes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.causal.circuits.nodes import Grid, Node
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.capture import MixEdit
from inversionview_jax.models.transformer import TransformerConfig, texts_that_fit
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target

_SMALL = 10_000_000  # parameters of a target whose runs cost so little that a padded set does not matter
_BACKWARD = 3  # runs that a run with its gradient counts for


@dataclasses.dataclass(eq=False)
class Ablation:
  """Measures sets of nodes on the pairs of a grid, and counts what that takes.

  Attributes:
    target: that is run.
    grid: of the pairs.
    runs: of the target so far, one for each pair and set; a run with its gradient counts three times.
    most: after so many, `InversionViewError`; None: no limit.
    progress: called with the number of runs that each program call took.
  """

  target: Target
  grid: Grid
  mesh: jax.sharding.Mesh = dataclasses.field(default_factory=parallel.make_mesh)
  runs: int = 0
  most: int | None = None
  progress: Callable[[int], object] = lambda runs: None

  def __post_init__(self) -> None:
    self.target.require_logits()
    config = self.target.config
    self.params = parallel.put(self.target.params, sharding.shardings(self.target.params, self.mesh))
    kept = 3 * config.n_layers + 8  # z and MLP writes of a corrupted and of a clean run
    self._rows = texts_that_fit(config, self.grid.clean.shape[1], kept)

  def on(self, grid: Grid) -> "Ablation":
    """The same target on other pairs, from no runs."""
    return dataclasses.replace(self, grid=grid, runs=0)

  @property
  def sets_at_once(self) -> int:
    """Sets of nodes of one program call."""
    return 32 if sum(x.size for x in jax.tree.leaves(self.target.params)) < _SMALL else 4

  def logit_difference(self, sets: Sequence[Iterable[Node]]) -> np.ndarray:
    """float64[S, N]: the logit of the answer less that of the foil, with everything ablated but each set of nodes."""
    keep = np.stack([self.grid.keep(nodes) for nodes in sets])
    return self._over_rows(keep)

  def whole(self) -> np.ndarray:
    """float64[2, N]: the logit difference of the whole model, and with all nodes ablated."""
    return self.logit_difference([self.grid.nodes, ()])

  def _over_rows(self, keep: np.ndarray) -> np.ndarray:
    count, size = len(keep), self.sets_at_once
    self.spend(count * len(self.grid))
    program, out = _program(self.target.module, self.mesh), []
    for start in range(0, count, size):
      part = parallel.pad_rows(keep[start : start + size].astype(np.float32), size)
      shared = parallel.replicate(part, self.mesh)
      rows = parallel.in_chunks(
        lambda chunk, shared=shared: program(self.params, shared, parallel.shard(chunk, self.mesh)),
        self.columns(),
        self.chunk(),
      )
      out.append(rows.T[: count - start].astype(np.float64))
      self.progress(min(size, count - start) * len(self.grid))
    return np.concatenate(out)

  def attribution(self, nodes: Iterable[Node] | None = None, steps: int = 4) -> np.ndarray:
    """float64[V]: what each node adds to the mean logit difference, integrated from all ablated to this set kept.

    Args:
      nodes: those that are kept at the end of the path; None for all. The others are ablated throughout, and attributed 0.
      steps: points of the path (midpoint rule).
    """
    grid = self.grid
    keep = grid.keep(grid.nodes if nodes is None else nodes).astype(np.float32)
    self.spend(_BACKWARD * steps * len(grid))
    program, size, total = _gradient_program(self.target.module, self.mesh, steps), self.chunk(), 0.0
    shared = parallel.replicate(keep, self.mesh)
    for start in range(0, len(grid), size):
      rows = {name: x[start : start + size] for name, x in self.columns().items()}
      weight = np.arange(size) < len(rows["clean"])
      rows = {name: parallel.pad_rows(x, size) for name, x in rows.items()} | {"weight": weight.astype(np.float32)}
      part = program(self.params, shared, parallel.shard(rows, self.mesh))
      total = total + parallel.fetch(part).astype(np.float64)
      self.progress(_BACKWARD * steps * int(weight.sum()))
    return grid.of_nodes(total * keep) / len(grid)

  def spend(self, runs: int) -> None:
    if self.most is not None and self.runs + runs > self.most:
      raise InversionViewError(
        f"budget = {self.most:,} runs of the target do not suffice: the next step needs {runs:,} more than the {self.runs:,} so far; "
        "raise the budget or use fewer pairs"
      )
    self.runs += runs

  def columns(self) -> dict[str, np.ndarray]:
    names = ("clean", "corrupted", "read_at", "answer", "foil", "group")
    return {name: getattr(self.grid, name) for name in names}

  def chunk(self) -> int:
    return self.devices * min(self._rows, math.ceil(len(self.grid) / self.devices))

  @property
  def devices(self) -> int:
    """Over which the pairs are divided."""
    return self.mesh.shape[parallel.DATA]

  def shard(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Rows divided over the devices."""
    return parallel.shard(rows, self.mesh)


def component_sites(config: TransformerConfig) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
  """The heads' mixtures of every layer, and the MLPs' writes, which a model may lack."""
  layers = range(config.n_layers)
  heads = tuple(Site("z_heads", layer) for layer in layers)
  return heads, () if config.attn_only else tuple(Site("mlp", layer) for layer in layers)


def captured_parts(module, params, tokens, more: Sequence[Site] = ()):
  """z float[B, L, T, H, K] and MLP writes float[B, L, T, D] (None without MLPs) of these inputs, and what else was captured."""
  heads, mlps = component_sites(module.config)
  out = module.apply({"params": params}, tokens, capture=[*heads, *mlps, *more], logits=False)
  z = jnp.stack([out[site] for site in heads], axis=1)
  return z, jnp.stack([out[site] for site in mlps], axis=1) if mlps else None, out


def mixed(z, mlp, keep, group) -> list[MixEdit]:
  """The edits that keep the nodes of float[L, H + 1, G] and mix in the given activations elsewhere; group is int32[B, T]."""
  whole = jnp.concatenate([keep, jnp.ones_like(keep[..., :1])], axis=-1)  # group -1: always kept
  each = jnp.moveaxis(jnp.take(whole, group, axis=-1), (2, 3), (0, 2))  # [L, H+1, B, T] -> [B, L, T, H+1]
  edits = [MixEdit("z_heads", z, each[..., :-1])]
  return edits if mlp is None else [*edits, MixEdit("mlp", mlp, each[..., -1])]


def difference(module, params, tokens, edits, rows) -> jax.Array:
  """float32[B]: the logit of the answer less that of the foil, where the answer is read."""
  at = rows["read_at"][:, None]
  logits = module.apply({"params": params}, tokens, edits=edits, logits_at=at).logits[:, 0]
  return _logit(logits, rows["answer"]) - _logit(logits, rows["foil"])


def _logit(logits, token):
  return jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]


@functools.cache
def _program(module, mesh) -> Callable:
  """(params, keep float[S, L, H + 1, G], rows) -> float32[B, S], compiled."""

  def run(params, keep, rows):
    z, mlp, _ = captured_parts(module, params, rows["corrupted"])

    def one(kept):
      return difference(module, params, rows["clean"], mixed(z, mlp, kept, rows["group"]), rows)

    return jax.lax.map(one, keep).T

  return parallel.pmap(run, mesh, (None, None, 0), 0)


@functools.cache
def _gradient_program(module, mesh, steps: int) -> Callable:
  """(params, keep float[L, H + 1, G], rows) -> float32[L, H + 1, G], the sum over pairs of the mean gradient on the path, compiled."""

  def run(params, keep, rows):
    z, mlp, _ = captured_parts(module, params, rows["corrupted"])

    def objective(kept):
      edits = mixed(z, mlp, kept, rows["group"])
      return jnp.sum(rows["weight"] * difference(module, params, rows["clean"], edits, rows))

    points = (jnp.arange(steps) + 0.5) / steps
    gradients = jax.lax.map(lambda t: jax.grad(objective)(t * keep), points)
    return jax.lax.psum(jnp.mean(gradients, axis=0), parallel.DATA)

  return parallel.pmap(run, mesh, (None, None, 0), None)
