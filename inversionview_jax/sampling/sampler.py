"""Queries -> candidates with their distances, in one jitted program over all devices.

Encode z (with noise), generate with a preallocated cache until every sample has ended, re-run the target on the samples, take the
distances, keep the smallest per sample: nothing but tokens, distances, positions and effects leaves the device. Site, position, metric,
temperature and noise are data, so another query on the same shapes compiles nothing. Each device loops on its own; no collectives.

Shapes: Q queries, R rows (one candidate each, of any query), T tokens, D width, S sites, V vocabulary.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import distance, sites
from inversionview_jax.devices import parallel
from inversionview_jax.models.decoder import NEVER, Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer, TransformerConfig, texts_that_fit
from inversionview_jax.tasks import Task

# Steps from which, and layers up to which, it pays that the cache grows once: compiling two loops takes longer.
_LONG, _SHALLOW = 24, 4


@flax.struct.dataclass
class Queries:
  """What is asked.

  Attributes:
    activation: float32[Q, D], the query activations z.
    site: int32[Q], index into the decoder's sites.
    position: int32[Q]; where a sample must match, or -1 for the minimum over positions.
    metric: int32[Q], index into `distance.METRICS`.
    suppressed: bool[Q, T, V], tokens that are not drawn at a position; None for none.
    told: float32[Q, D] or None; what the decoder is given in place of `activation`, to which distances are taken all the same.
  """

  activation: jax.Array
  site: jax.Array
  position: jax.Array
  metric: jax.Array
  suppressed: jax.Array | None = None
  told: jax.Array | None = None


@flax.struct.dataclass
class Rows:
  """The candidates to draw.

  Attributes:
    query: int32[R], which of the queries each is for.
    number: int32[R], its random key.
    temperature, noise: float32[R]; noise is eta, or 1 - cosine where `directions` says so.
    directions: bool[R] or None; whether a row is drawn in a direction of this cosine to z, with the norm of z times exp(U(-1, 1)), instead of
      with Gaussian noise of eta * std(z). None: no row is.
    stratum: float32[R, 2] or None. A row's part [low, low + width) of the unit interval over which its texts are laid out in the order
      of their tokens, each as wide as it is probable. Rows that share the interval out between them draw from it evenly: together they
      follow the decoder's distribution, and repeat themselves less than independent rows, which None asks for.
  """

  query: jax.Array
  number: jax.Array
  temperature: jax.Array
  noise: jax.Array
  stratum: jax.Array | None = None
  directions: jax.Array | None = None


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
  decoder: Decoder,
  variables,
  slots,
  keys,
  temperature,
  stratum=None,
  suppressed=None,
  *,
  length: int,
  bos_id: int,
  eos_id: int,
  pad_id: int,
):
  """Draws one text per row.

  Args:
    slots: float32[R, L, M].
    keys: key[R]; a row's text depends on its key, slots, temperature and stratum alone.
    temperature: float32[R]; 0 takes the most likely token.
    stratum: float32[R, 2] or None, as in `Rows`.
    suppressed: None, or (bool[Q, T, V], int32[R]): what is not drawn at a position, and whose row is which.
    length: T, with BOS.

  Returns:
    int32[R, T]: BOS, the text, EOS if it was written in time, PAD.
  """
  rows = slots.shape[0]
  hot = jnp.where(temperature > 0, temperature, 1.0)[:, None]

  def going(until, carry):
    step, _, _, ended, _ = carry
    return (step < until) & ~jnp.all(ended)

  def body(carry):
    step, tokens, cache, ended, interval = carry
    logits, cache = decoder.apply(variables, tokens[:, step], step, cache, method="step")
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    allowed = logits > NEVER
    if suppressed is not None:
      left = allowed & ~suppressed[0][:, step + 1][suppressed[1]]
      allowed = jnp.where(jnp.any(left, axis=-1, keepdims=True), left, allowed)
    logits = jnp.where(allowed, logits / hot, -jnp.inf)  # however hot
    if stratum is None:
      gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(step_keys)
      token = jnp.argmax(logits + jnp.where(temperature > 0, 1.0, 0.0)[:, None] * gumbel, axis=-1)
    else:
      token, interval = _within(logits, interval, jax.vmap(jax.random.uniform)(step_keys))
      token = jnp.where(temperature > 0, token, jnp.argmax(logits, axis=-1))
    token = jnp.where(ended, pad_id, token.astype(jnp.int32))
    return step + 1, tokens.at[:, step + 1].set(token), cache, ended | (token == eos_id), interval

  tokens = jnp.full((rows, length), pad_id, jnp.int32).at[:, 0].set(bos_id)
  # Attention reads all of the cache at each step, so that of long texts grows with them.
  ends = _ends(decoder.config.transformer, length - 1)
  cache = decoder.apply(variables, slots, ends[0], method="init_cache")
  carry = jnp.int32(0), tokens, cache, jnp.zeros(rows, bool), stratum
  for start, end in zip((0, *ends), ends, strict=False):
    if start:
      longer = decoder.apply(variables, carry[2], end - start, method="longer_cache")
      carry = carry[0], carry[1], longer, *carry[3:]
    carry = jax.lax.while_loop(functools.partial(going, end), body, carry)
  return carry[1]


def _ends(config: TransformerConfig, steps: int) -> tuple[int, ...]:
  """The steps at which the cache is full, the last of them all."""
  return (steps // 2, steps) if steps >= _LONG and config.n_layers <= _SHALLOW else (steps,)


def _within(logits, interval, uniform):
  """One token of each row from its part of the unit interval, and what that part is inside of the token's own.

  A row's place is drawn anew from its part at each step, as if it had been one place all along of which only the part was known; so no
  precision is lost, and once a token lies wholly inside of the part the row goes on freely.

  Args:
    logits: float32[R, V].
    interval: float32[R, 2], (low, width).
    uniform: float32[R], in [0, 1).

  Returns:
    int32[R] and float32[R, 2].
  """
  low, width = interval[:, 0], interval[:, 1]
  p = jax.nn.softmax(logits, axis=-1)
  ends = jnp.cumsum(p, axis=-1)
  ends = ends / ends[:, -1:]  # to end at 1 in spite of rounding
  token = jnp.argmax(ends > jnp.minimum(low + width * uniform, 1.0 - 1e-7)[:, None], axis=-1)
  high = jnp.take_along_axis(ends, token[:, None], axis=-1)[:, 0]
  start = jnp.where(token > 0, jnp.take_along_axis(ends, jnp.maximum(token - 1, 0)[:, None], axis=-1)[:, 0], 0.0)
  size = jnp.maximum(high - start, 1e-30)
  inner_low, inner_high = jnp.maximum(low, start), jnp.minimum(low + width, high)
  inner = (inner_low - start) / size, jnp.maximum(inner_high - inner_low, 0.0) / size
  return token.astype(jnp.int32), jnp.clip(jnp.stack(inner, axis=-1), 0.0, 1.0)


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
  return distance.masked_min(each, counted, position)


def turned(z, drawn, cosine, factor):
  """Vectors of this cosine to z and of its norm times a factor (paper, sampling for factual recall).

  Args:
    z: float32[R, D].
    drawn: float32[R, D], of any direction but that of z; it says which way to turn.
    cosine, factor: float32[R].

  Returns:
    float32[R, D].
  """
  norm = jnp.linalg.norm(z, axis=-1, keepdims=True)
  along = z / jnp.maximum(norm, 1e-30)
  across = drawn - jnp.sum(drawn * along, axis=-1, keepdims=True) * along
  across = across / jnp.linalg.norm(across, axis=-1, keepdims=True)
  sine = jnp.sqrt(jnp.maximum(0.0, 1 - cosine**2))
  return factor[:, None] * norm * (cosine[:, None] * along + sine[:, None] * across)


class Sampler:
  """A decoder and its target, compiled together.

  Args:
    config: of the decoder.
    target: module of the target.
    task: masks and special tokens.
    mesh: rows are divided over its data axis.
  """

  def __init__(self, config: DecoderConfig, target: Transformer, task: Task, mesh=None):
    self.mesh = parallel.make_mesh() if mesh is None else mesh
    self.decoder, self.target, self.task = Decoder(config.quick(self.mesh)), target, task
    self._sites = tuple(sites.parse(name) for name in config.sites)
    t = task.tokenizer
    self._specials = {"bos_id": t.bos_id, "eos_id": t.eos_id, "pad_id": t.pad_id}
    self._programs = {}

  def run(
    self,
    variables,
    target_params,
    bos_activations,
    queries: Queries,
    rows: Rows,
    seed: int,
    effects: bool = True,
    part: int = 0,
    told: Callable[[int], object] | None = None,
  ) -> Candidates:
    """Draws and measures candidates; each has its own key and stratum, so it does not matter in which part it is drawn.

    Args:
      variables: of the decoder.
      target_params: of the target.
      bos_activations: float32[S, D], z0 of every site.
      queries, rows: what is asked; the number of rows is rounded up to the devices and the surplus dropped.
      seed: candidates are a function of (seed, row.number, z, temperature, noise).
      effects: whether to compute each token's effect (two more passes of the decoder).
      part: rows of one program, filled up to that many; 0: all. Never more than `rows_at_once`.
      told: called with the number of rows of each part once they are drawn.
    """
    count = len(rows.query)
    size = min(part or count, self.rows_at_once)
    size += -size % self.mesh.shape[parallel.DATA]
    program, parts = self.program(effects), []
    for start in range(0, count, size):
      some = jax.tree.map(lambda x, start=start: parallel.pad_rows(x[start : start + size], size), rows)
      out = program(variables, target_params, bos_activations, queries, some, np.uint32(seed))
      parts.append(parallel.fetch(out) if parallel.spans_hosts(self.mesh) else out)
      if told is not None:
        jax.block_until_ready(parts[-1])
        told(min(size, count - start))
    out = parts[0] if len(parts) == 1 else jax.tree.map(lambda *each: np.concatenate(each), *parts)
    return out if len(parts) == 1 and size == count else jax.tree.map(lambda x: x[:count], out)

  @property
  def rows_at_once(self) -> int:
    """How many rows run at a time: what re-running the target on them takes stays near 2 GiB on each device."""
    return self.mesh.shape[parallel.DATA] * texts_that_fit(self.target.config, self.task.length, 12)

  def program(self, effects: bool):
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
    asked = jax.tree.map(lambda x: x[rows.query], queries.replace(suppressed=None))
    keys = parallel.fold_in_each(jax.random.key(seed), rows.number)
    noise_keys, token_keys = jax.vmap(lambda key: jax.random.split(key), out_axes=1)(keys)
    z = asked.activation
    told = z if asked.told is None else asked.told
    drawn = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(noise_keys)
    noisy = told + jnp.std(z, axis=-1, keepdims=True) * rows.noise[:, None] * drawn
    if rows.directions is not None:
      u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), minval=-1.0, maxval=1.0))(noise_keys)
      noisy = jnp.where(rows.directions[:, None], turned(told, drawn, 1 - rows.noise, jnp.exp(u)), noisy)
    slots = decoder.apply(variables, noisy, asked.site, method="slots")
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
    # Of each row its own site only: all sites of a model with hundreds of heads would not fit.
    choose = self._sites, asked.site[:, None]
    found = self.target.apply({"params": target_params}, tokens, choose=choose, logits=False).chosen
    best, where = distances(found, z, asked.position, asked.metric, task.counted_mask(tokens))
    effect = None
    if effects:
      with_z = self._probabilities(variables, tokens, z, asked.site)
      with_z0 = self._probabilities(variables, tokens, bos_activations[asked.site], asked.site)
      effect = jnp.pad((with_z - with_z0) * (tokens != self._specials["pad_id"])[:, 1:], ((0, 0), (1, 0)))
    return Candidates(tokens, best, where, effect)

  def _probabilities(self, variables, tokens, activation, site):
    """float32[R, T - 1]: p(token | prefix, z)."""
    logits = self.decoder.apply(variables, tokens, activation, site)
    p = jax.nn.softmax(logits[:, :-1], axis=-1)
    return jnp.take_along_axis(p, tokens[:, 1:, None], axis=-1)[..., 0]


@functools.partial(parallel.jit, static_argnums=(0, 2, 3))
def bos_activations(target: Transformer, params, site_list, bos_id: int) -> jax.Array:
  """float32[S, D]: what each site holds at BOS, where nothing is known of the text (z0; paper, section 2.3)."""
  out = target.apply({"params": params}, jnp.full((1, 1), bos_id, jnp.int32), capture=tuple(site_list), logits=False)
  return jnp.stack([out[site][0, 0] for site in site_list]).astype(jnp.float32)


def one_each(queries: int) -> Rows:
  """One candidate for each query, temperature 1 and no noise: what the in-epsilon rate is taken of (paper, section 3)."""
  number = np.arange(queries, dtype=np.int32)
  return Rows(number, number, np.ones(queries, np.float32), np.zeros(queries, np.float32))


def mixture_rows(
  settings, num_samples: int, queries: int = 1, stratified: bool = False, directions: bool = False
) -> Rows:
  """`num_samples` candidates for each query, an equal share at each (temperature, eta); the first settings take the remainder.

  With `stratified`, the candidates of a query at one setting share out the unit interval (`Rows.stratum`). With `directions`, the settings
  are (temperature, cosine).
  """
  number, kinds = np.arange(num_samples), len(settings)
  setting = np.asarray(settings, np.float32)[number % kinds]
  stratum = None
  if stratified:
    shares = (num_samples - number % kinds + kinds - 1) // kinds  # how many candidates have this one's setting
    stratum = np.stack([number // kinds / shares, 1.0 / shares], axis=1).astype(np.float32)
    stratum = np.tile(stratum, (queries, 1))
  return Rows(
    query=np.repeat(np.arange(queries, dtype=np.int32), num_samples),
    number=np.tile(number, queries).astype(np.int32),
    temperature=np.tile(setting[:, 0], queries),
    noise=np.tile(np.float32(1) - setting[:, 1] if directions else setting[:, 1], queries),
    stratum=stratum,
    directions=np.ones(queries * num_samples, bool) if directions else None,
  )


def rounds_of(rows: Rows, num_samples: int, rounds: int) -> list[np.ndarray]:
  """Which rows are drawn in each round, int64[...] each: of every query's candidates as equal parts as can be, in their order."""
  part = np.asarray(rows.number) * rounds // num_samples
  return [np.flatnonzero(part == number) for number in range(rounds)]


def overused(tokens: np.ndarray, query: np.ndarray, queries: int, rare: np.ndarray, repeats: int) -> np.ndarray:
  """Tokens that are rare, and were drawn more than `repeats` times at a position (paper, sampling for factual recall).

  Args:
    tokens: int32[R, T], of all rounds so far.
    query: int32[R], whose they are.
    queries: Q.
    rare: bool[V].
    repeats: how often a token may come.

  Returns:
    bool[Q, T, V].
  """
  out = np.zeros((queries, tokens.shape[1], len(rare)), bool)
  for q in range(queries):
    for place, column in enumerate(tokens[query == q].T):
      values, counts = np.unique(column, return_counts=True)
      out[q, place, values[(counts > repeats) & rare[values]]] = True
  return out
