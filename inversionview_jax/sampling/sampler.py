"""`Sampler`: queries -> candidates with their distances, in one jitted program over all devices.

Encode z (with noise), generate with a preallocated cache until every text has ended, re-run the target on the texts, take the distances
and their minimum over positions: only tokens, distances, positions and effects leave the device. Site, position, metric, temperature and
noise are data, so another query of the same shapes compiles nothing. Each device loops on its own; no collectives.

Shapes: Q queries, R rows (one candidate each, of any query), T tokens, D width of the activation, S sites.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from inversionview_jax import distance, sites
from inversionview_jax.devices import numerics, parallel
from inversionview_jax.models import site_shapes
from inversionview_jax.models.config import Compute
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer, texts_that_fit
from inversionview_jax.sampling.candidates import Candidates, Queries, Rows
from inversionview_jax.sampling.generation import generate
from inversionview_jax.sampling.mixtures import decoder_inputs
from inversionview_jax.sites import Site
from inversionview_jax.tasks import Task


def distances(
  activations: jax.Array, query: jax.Array, position: jax.Array, metric: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The distance of each row's nearest position to its query.

  Args:
    activations: float[R, T, D], at the query's site.
    query: float32[R, D].
    position: int32[R]; -1 for the minimum over positions, else the one position that is compared.
    metric: int32[R], index into `distance.METRICS`.
    counted: bool[R, T], positions that may match.

  Returns:
    The distance float32[R] and its position int32[R], as `distance.masked_min`.
  """
  each = [distance.distance(name, activations, query[:, None, :]) for name in distance.METRICS]
  nearest = jnp.where((metric == 0)[:, None], each[0], each[1])
  return distance.masked_min(nearest, counted, position)


class Sampler:
  """A decoder and its target, compiled together.

  Attributes:
    decoder, target: the modules.
    task: masks and special tokens.
    mesh: rows are divided over its data axis.
  """

  def __init__(self, config: DecoderConfig, target: Transformer, task: Task, mesh: Mesh | None = None):
    """Builds the modules; nothing is compiled before `run`.

    Args:
      config: of the decoder.
      target: module of the target.
      task: masks and special tokens.
      mesh: rows are divided over its data axis; all devices by default.
    """
    self.mesh = parallel.make_mesh() if mesh is None else mesh
    compute = Compute(dot_general=numerics.matmul_policy(self.mesh))
    self.decoder, self.target, self.task = Decoder(config, compute), target, task
    self._sites = tuple(sites.parse(name) for name in config.sites)
    t = task.tokenizer
    self._specials = {"bos_id": t.bos_id, "eos_id": t.eos_id, "pad_id": t.pad_id}
    self._programs: dict[bool, Any] = {}

  def run(
    self,
    variables: dict,
    target_params: dict,
    bos_activations: jax.Array,
    queries: Queries,
    rows: Rows,
    seed: int,
    effects: bool = True,
    chunk: int = 0,
    progress: Callable[[int], object] | None = None,
  ) -> Candidates:
    """Draws candidates and measures their distances.

    Each row has its own key and stratum, so candidates do not depend on how rows are chunked.

    Args:
      variables: of the decoder.
      target_params: of the target.
      bos_activations: float32[S, D], z0 of every site.
      queries: Q queries.
      rows: R rows, each of one of the queries.
      seed: candidates are a function of (seed, row.number, z, temperature, noise).
      effects: whether to compute each token's effect (two more passes of the decoder).
      chunk: rows of one program, the last one padded to as many; 0: all. At most `rows_at_once`.
      progress: called with the number of rows of each chunk once they are drawn.

    Returns:
      R candidates as NumPy arrays.
    """
    count = len(rows.query)
    size = min(chunk or count, self.rows_at_once)
    size += -size % self.mesh.shape[parallel.DATA]
    program, remaining = self.program(effects), count

    def run_chunk(some: Rows) -> Candidates:
      nonlocal remaining
      out = parallel.fetch(program(variables, target_params, bos_activations, queries, some, np.uint32(seed)))
      if progress is not None:
        progress(min(size, remaining))
      remaining -= size
      return out

    return parallel.in_chunks(run_chunk, rows, size)

  @property
  def rows_at_once(self) -> int:
    """How many rows run at a time: what re-running the target on them takes stays near 2 GiB on each device."""
    return self.mesh.shape[parallel.DATA] * texts_that_fit(self.target.config, self.task.length, 12)

  def program(self, effects: bool) -> Callable:
    """The compiled function behind `run`, whose arguments it takes in that order, with the seed as uint32[]."""
    if effects not in self._programs:
      self._programs[effects] = parallel.pmap(
        functools.partial(self._candidates, effects), self.mesh, in_axes=(None, None, None, None, 0, None), out_axes=0
      )
    return self._programs[effects]

  def compiled(self) -> int:
    """How many programs were compiled so far; a repeated query must not raise it."""
    return sum(program._cache_size() for program in self._programs.values())

  def _candidates(self, effects, variables, target_params, bos_activations, queries, rows, seed):
    decoder, task = self.decoder, self.task
    own = jax.tree.map(lambda x: x[rows.query], dataclasses.replace(queries, suppressed=None))  # each row's query
    keys = parallel.fold_in_each(jax.random.key(seed), rows.number)
    noise_keys, token_keys = jax.vmap(lambda key: jax.random.split(key), out_axes=1)(keys)
    slots = decoder.apply(variables, decoder_inputs(own, rows, noise_keys), own.site, method="slots")
    suppressed = None if queries.suppressed is None else (queries.suppressed, rows.query)
    tokens = generate(
      decoder,
      variables,
      slots,
      token_keys,
      rows.temperature,
      rows.stratum,
      suppressed,
      length=task.length,
      **self._specials,
    )
    # Only each row's own site: all sites of a model with hundreds of heads would not fit into memory.
    choose = self._sites, own.site[:, None]
    activations = self.target.apply({"params": target_params}, tokens, choose=choose, logits=False).chosen
    nearest, position = distances(activations, own.activation, own.position, own.metric, task.counted_mask(tokens))
    effect = None
    if effects:
      with_z = self._probabilities(variables, tokens, own.activation, own.site)
      with_z0 = self._probabilities(variables, tokens, bos_activations[own.site], own.site)
      effect = jnp.pad((with_z - with_z0) * (tokens != self._specials["pad_id"])[:, 1:], ((0, 0), (1, 0)))
    return Candidates(tokens, nearest, position, effect)

  def _probabilities(self, variables, tokens, activation, site):
    """float32[R, T - 1]: p(token | prefix, z)."""
    logits = self.decoder.apply(variables, tokens, activation, site)
    p = jax.nn.softmax(logits[:, :-1], axis=-1)
    return jnp.take_along_axis(p, tokens[:, 1:, None], axis=-1)[..., 0]


@functools.partial(parallel.jit, static_argnums=(0, 2, 3))
def bos_activations(target: Transformer, params: dict, site_list: Sequence[Site], bos_id: int) -> jax.Array:
  """float32[S, D]: z0, the activation of each site at BOS, which does not depend on the text (paper, section 2.3)."""
  out: Any = target.apply(
    {"params": params}, jnp.full((1, 1), bos_id, jnp.int32), capture=tuple(site_list), logits=False
  )
  size = site_shapes.widest(target.config, site_list)
  return jnp.stack([site_shapes.padded(out[site][0, 0], size) for site in site_list]).astype(jnp.float32)
