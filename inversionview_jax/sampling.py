"""Queries -> candidates with their distances, in one jitted program over all devices.

Encode z (with noise), generate with a preallocated cache until every sample has ended, re-run the target on the samples, take the
distances, keep the smallest per sample: nothing but tokens, distances, positions and effects leaves the device. Site, position, metric,
temperature and noise are data, so another query on the same shapes compiles nothing. Each device loops on its own; no collectives.

Shapes: Q queries, R rows (one candidate each, of any query), T tokens, D width, S sites, V vocabulary.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import collect, distance, parallel, sites
from inversionview_jax.decoder import NEVER, Decoder, DecoderConfig
from inversionview_jax.tasks import Task
from inversionview_jax.transformer import Transformer


@flax.struct.dataclass
class Queries:
  """What is asked.

  Attributes:
    activation: float32[Q, D], the query activations z.
    site: int32[Q], index into the decoder's sites.
    position: int32[Q]; where a sample must match, or -1 for the minimum over positions.
    metric: int32[Q], index into `distance.METRICS`.
  """

  activation: jax.Array
  site: jax.Array
  position: jax.Array
  metric: jax.Array


@flax.struct.dataclass
class Rows:
  """The candidates to draw: query int32[R], number int32[R] (its random key), temperature and noise (eta) float32[R]."""

  query: jax.Array
  number: jax.Array
  temperature: jax.Array
  noise: jax.Array


@flax.struct.dataclass
class Candidates:
  """What comes back.

  Attributes:
    tokens: int32[R, T], from BOS to EOS, then PAD.
    distance: float32[R], inf where nothing could be compared.
    position: int32[R], of the minimum; -1 where nothing could be compared.
    effect: float32[R, T], p(token | prefix, z) - p(token | prefix, z0) per token, 0 at BOS and PAD; None if not asked for.
  """

  tokens: jax.Array
  distance: jax.Array
  position: jax.Array
  effect: jax.Array | None


def generate(
  decoder: Decoder, variables, slots, keys, temperature, *, length: int, bos_id: int, eos_id: int, pad_id: int
):
  """Draws one text per row.

  Args:
    slots: float32[R, L, M].
    keys: key[R]; a row's text depends on its key, slots and temperature alone.
    temperature: float32[R]; 0 takes the most likely token.
    length: T, with BOS.

  Returns:
    int32[R, T]: BOS, the text, EOS if it was written in time, PAD.
  """
  rows = slots.shape[0]
  hot = jnp.where(temperature > 0, temperature, 1.0)[:, None]

  def going(carry):
    step, _, _, ended = carry
    return (step < length - 1) & ~jnp.all(ended)

  def body(carry):
    step, tokens, cache, ended = carry
    logits, cache = decoder.apply(variables, tokens[:, step], step, cache, method="step")
    gumbel = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[-1:]))(keys)
    logits = jnp.where(logits > NEVER, logits / hot, -jnp.inf)  # however hot
    token = jnp.argmax(logits + jnp.where(temperature > 0, 1.0, 0.0)[:, None] * gumbel, axis=-1).astype(jnp.int32)
    token = jnp.where(ended, pad_id, token)
    return step + 1, tokens.at[:, step + 1].set(token), cache, ended | (token == eos_id)

  tokens = jnp.full((rows, length), pad_id, jnp.int32).at[:, 0].set(bos_id)
  cache = decoder.apply(variables, slots, length, method="init_cache")
  return jax.lax.while_loop(going, body, (jnp.int32(0), tokens, cache, jnp.zeros(rows, bool)))[1]


def distances(activations, query, position, metric, counted):
  """Distance of each row's best position to its query.

  Args:
    activations: float[R, T, D], at the query's site.
    query: float32[R, D].
    position: int32[R]; -1 for the minimum over positions, else the one position that is compared.
    metric: int32[R], index into `distance.METRICS`.
    counted: bool[R, T].

  Returns:
    float32[R] and int32[R], as `distance.masked_min`.
  """
  each = [distance.distance(name, activations, query[:, None, :]) for name in distance.METRICS]
  each = jnp.where((metric == 0)[:, None], each[0], each[1])
  here = jnp.arange(counted.shape[1])[None, :] == position[:, None]
  return distance.masked_min(each, counted & (here | (position < 0)[:, None]))


class Sampler:
  """A decoder and its target, compiled together.

  Args:
    config: of the decoder.
    target: module of the target.
    task: masks and special tokens.
    mesh: rows are divided over its data axis.
  """

  def __init__(self, config: DecoderConfig, target: Transformer, task: Task, mesh=None):
    self.decoder, self.target, self.task = Decoder(config), target, task
    self.mesh = parallel.make_mesh() if mesh is None else mesh
    self._sites = tuple(sites.parse(name) for name in config.sites)
    t = task.tokenizer
    self._specials = {"bos_id": t.bos_id, "eos_id": t.eos_id, "pad_id": t.pad_id}
    self._programs = {}

  def run(
    self, variables, target_params, bos_activations, queries: Queries, rows: Rows, seed: int, effects: bool = True
  ) -> Candidates:
    """Draws and measures candidates.

    Args:
      variables: of the decoder.
      target_params: of the target.
      bos_activations: float32[S, D], z0 of every site.
      queries, rows: what is asked; the number of rows is rounded up to the devices and the surplus dropped.
      seed: candidates are a function of (seed, row.number, z, temperature, noise).
      effects: whether to compute each token's effect (two more passes of the decoder).
    """
    count = len(rows.query)
    surplus = -count % self.mesh.shape[parallel.DATA]
    if surplus:
      rows = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], surplus, axis=0)]), rows)
    out = self._program(effects)(variables, target_params, bos_activations, queries, rows, np.uint32(seed))
    return jax.tree.map(lambda x: x[:count], out)

  def _program(self, effects: bool):
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
    asked = jax.tree.map(lambda x: x[rows.query], queries)
    keys = parallel.fold_in_each(jax.random.key(seed), rows.number)
    noise_keys, token_keys = jax.vmap(lambda key: jax.random.split(key), out_axes=1)(keys)
    z = asked.activation
    spread = jnp.std(z, axis=-1, keepdims=True) * rows.noise[:, None]
    noisy = z + spread * jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(noise_keys)
    slots = decoder.apply(variables, noisy, asked.site, method="slots")
    tokens = generate(decoder, variables, slots, token_keys, rows.temperature, length=task.length, **self._specials)
    out = self.target.apply({"params": target_params}, tokens, capture=self._sites, logits=False)
    found = collect.select(out, self._sites, asked.site[:, None, None])
    best, where = distances(found, z, asked.position, asked.metric, task.counted_mask(tokens))
    effect = None
    if effects:
      told = self._probabilities(variables, tokens, z, asked.site)
      untold = self._probabilities(variables, tokens, bos_activations[asked.site], asked.site)
      effect = jnp.pad((told - untold) * (tokens != self._specials["pad_id"])[:, 1:], ((0, 0), (1, 0)))
    return Candidates(tokens, best, where, effect)

  def _probabilities(self, variables, tokens, activation, site):
    """float32[R, T - 1]: p(token | prefix, z)."""
    logits = self.decoder.apply(variables, tokens, activation, site)
    p = jax.nn.softmax(logits[:, :-1], axis=-1)
    return jnp.take_along_axis(p, tokens[:, 1:, None], axis=-1)[..., 0]


def bos_activations(target: Transformer, params, site_list, bos_id: int) -> jax.Array:
  """float32[S, D]: what each site holds at BOS, where nothing is known of the text (z0; paper, section 2.3)."""
  out = target.apply({"params": params}, jnp.full((1, 1), bos_id, jnp.int32), capture=tuple(site_list), logits=False)
  return jnp.stack([out[site][0, 0] for site in site_list]).astype(jnp.float32)


def mixture_rows(settings, num_samples: int, queries: int = 1) -> Rows:
  """`num_samples` candidates for each query, an equal share at each (temperature, eta); the first settings take the remainder."""
  number = np.arange(num_samples)
  setting = np.asarray(settings, np.float32)[number % len(settings)]
  return Rows(
    query=np.repeat(np.arange(queries, dtype=np.int32), num_samples),
    number=np.tile(number, queries).astype(np.int32),
    temperature=np.tile(setting[:, 0], queries),
    noise=np.tile(setting[:, 1], queries),
  )
