"""How far the activations of inputs are from those of a query: the target, run on inputs inside of jit.

It is compiled for several depths and lengths, so that a proposal costs no more than its query's site and its own tokens need.

Shapes: N inputs, T tokens, R activations of a query, D width of an activation, P directions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from inversionview_jax.devices import parallel
from inversionview_jax.models import site_shapes
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.collect import in_parts, in_pieces
from inversionview_jax.sampling.sampler import distances
from inversionview_jax.sites import KINDS, Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import LanguageTask, Task

_LENGTHS = 256  # inputs whose lengths are looked at
_DEPTHS, _DEPTHS_OF_WIDTHS = 3, 2  # of the target that are compiled, at most: for one width, for each of several
_AFTER_MLP = tuple(
  kind for kind in KINDS if kind.startswith(("mlp", "ln2_post", "expert", "post"))
)  # kinds of sites that need a layer's MLP
_PARTS = 8  # of the inputs, by length, that a CPU runs one after the other, each with as many columns as it needs


class Nearness:
  """How far an input's activations are from those of a query: the target, run on inputs.

  Attributes:
    sites: what `Queries.site` points into.
    joint: whether the query has several activations, the i-th of them at `sites[i]`; the distance is the largest of theirs.
  """

  def __init__(self, target: Target, task: Task, sites: tuple[Site, ...], mesh: Mesh, joint: bool = False):
    self.sites, self.joint, self.mesh = tuple(sites), joint, mesh
    self._target, self._task, self._widths = target, task, _widths(task)
    self._group, self._sites_of = (
      ((0,), (self.sites,))
      if joint
      else _by_depth(target.config, self.sites, _DEPTHS if len(self._widths) == 1 else _DEPTHS_OF_WIDTHS)
    )

  def __call__(
    self, params: Any, query: Queries, basis: Any, tokens: Any, *, whole: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """The distance of each input over all devices; inside jit.

    The target is compiled for several depths and lengths. It computes what the query's site needs, and of each part of the inputs the columns
    that the longest of the part needs.

    Args:
      params: of the target.
      query: R activations; more than one if `joint`.
      basis: float32[P, D], orthonormal rows that activations are projected on (those of the query are projected already); None: on nothing.
      tokens: int32[N, T].
      whole: compiles the target once, for everything, which is quicker where it runs once.

    Returns:
      float32[N], and int32[N], the position that is nearest to the query's first activation; (inf, -1) where nothing could be compared.
    """

    def run(params, query, basis, sites, width, tokens):
      tokens = tokens[:, :width]
      counted = self._task.counted_mask(tokens)
      far, where = zip(
        *(
          distances(x if basis is None else x @ basis.T, *self._rows(query, i, len(tokens)), counted)
          for i, x in enumerate(self._activations(params, query, tokens, sites))
        ),
        strict=True,
      )
      return jnp.stack(far).max(axis=0), where[0]

    def shard(params, query, basis, tokens, index):
      inputs = params, query, basis
      branches = [functools.partial(run, *inputs, sites, width) for sites in groups for width in widths]

      def part(tokens, index):
        return in_pieces(self._target.module, lambda tokens: jax.lax.switch(index[0], branches, tokens), tokens)

      count = max(1, parts // self.mesh.shape[parallel.DATA])
      return in_parts(count, part, tokens, index)

    groups, widths = (self._sites_of[-1:], self._widths[-1:]) if whole else (self._sites_of, self._widths)
    parts = self._parts(len(tokens), len(widths))
    everywhere, data = PartitionSpec(), PartitionSpec(parallel.DATA)
    specs = everywhere, everywhere, everywhere, data, data
    program = parallel.per_device(shard, self.mesh, specs, (data, data))
    # The columns that each input uses, and those of the longest of its part: no device rounds otherwise than the others.
    used = ((tokens != self._task.tokenizer.pad_id) * jnp.arange(1, tokens.shape[1] + 1)).max(axis=1)
    order: Any = jnp.argsort(used) if parts > 1 else slice(None)
    longest = jnp.repeat(used[order].reshape(parts, -1).max(axis=1), len(tokens) // parts)
    width = jnp.searchsorted(jnp.asarray(widths), jnp.maximum(longest, query.position.max() + 1))
    depth = 0 if whole or self.joint else jnp.asarray(self._group)[query.site[0]]
    out = program(params, query, basis, tokens[order], depth * len(widths) + width)
    return out if parts == 1 else jax.tree.map(lambda x: x[jnp.argsort(order)], out)

  def _parts(self, inputs: int, widths: int) -> int:
    """In how many parts so many inputs run: in one where all have the same number of columns, or the device has room for all at once."""
    several = widths > 1 and parallel.platform(self.mesh) == "cpu" and inputs % _PARTS == 0
    devices = self.mesh.shape[parallel.DATA]
    return _PARTS if several and (_PARTS % devices == 0 or devices % _PARTS == 0) else 1

  def _activations(self, params, query: Queries, tokens, sites: tuple[Site, ...]) -> list[jax.Array]:
    """float32[N, T, D] of each of the query's sites; a single one of `sites` is data, so that one program serves them all."""
    run: Any = self._target.module.apply
    inputs = {"params": params}
    if self.joint:
      out = run(inputs, tokens, capture=tuple(dict.fromkeys(self.sites)), logits=False)
      return [self._padded(out[site]) for site in self.sites]
    own = jnp.asarray([sites.index(site) if site in sites else 0 for site in self.sites])[query.site]
    site = jnp.broadcast_to(own, (len(tokens), 1))
    return [self._padded(run(inputs, tokens, choose=(sites, site), logits=False).chosen)]

  def _padded(self, x) -> jax.Array:
    """float32, of the largest width of the sites."""
    return site_shapes.padded(x.astype(jnp.float32), site_shapes.widest(self._target.config, self.sites))

  @staticmethod
  def _rows(query: Queries, i: int, count: int) -> list[jax.Array]:
    """Activation, position and metric of the i-th activation, once for each of `count` inputs."""
    values = (query.activation[i], query.position[i], query.metric[i])
    return [jnp.broadcast_to(x, (count, *x.shape)) for x in values]


def _widths(task: Task) -> tuple[int, ...]:
  """Numbers of columns, ascending, that the target is compiled for: where inputs are of different lengths, most leave many columns to PAD.

  Of a language model only the whole: compiling it several times takes longer than the columns cost.
  """
  length = task.length
  if isinstance(task, LanguageTask):
    return (length,)
  some = task.tokens(np.linspace(0, task.num_inputs - 1, _LENGTHS).astype(np.int64))
  shortest = int((some != task.tokenizer.pad_id).sum(axis=1).min())
  step = max(2, length // 6)
  return tuple(range(length, max(shortest, length // 2), -step))[::-1] or (length,)


def _by_depth(
  config: TransformerConfig, sites: tuple[Site, ...], most: int
) -> tuple[tuple[int, ...], tuple[tuple[Site, ...], ...]]:
  """Sites in groups, `most` of them, by how much of the target is computed for them.

  Returns:
    The group of each site, and the sites of each group and of those before it, from the shallowest to all of them.
  """
  depths = [(site_shapes.depth(config, site), site.kind in _AFTER_MLP) for site in sites]
  different = sorted(set(depths))
  parts = np.array_split(np.arange(len(different)), min(most, len(different)))
  group = {different[i]: number for number, part in enumerate(parts) for i in part}
  groups = tuple(group[depth] for depth in depths)
  upto = tuple(tuple(s for s, g in zip(sites, groups, strict=True) if g <= number) for number in range(len(parts)))
  return groups, upto
