"""The program of Monte Carlo over texts: Metropolis-Hastings sweeps inside a threshold, with a language model as the prior and the target.

A sweep changes all texts at one position and computes them again from there on, one token at a time over a key-value cache: one pass gives the draws,
the probabilities of the ratio, the distances, and the distributions that later proposals draw from. Texts are divided over the mesh's data
axis; each has random numbers of its own, so they do not depend on the number of devices.

Shapes: N texts, T tokens (BOS, text, EOS, PAD), C = T - 1 positions (BOS and text), K kinds of moves, L layers, G key/value heads, R activations
of a query.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from inversionview_jax.devices import parallel
from inversionview_jax.sampling import text_moves
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.language_prior import LanguagePrior, Texts
from inversionview_jax.sampling.particles import ISLANDS, variation
from inversionview_jax.sampling.sweeps import State, nearest_outside, new_state, on_mesh, where_rows
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.tokenizers import Tokenizer

# How often each kind of `text_moves.KINDS` is proposed: inside a threshold, and when texts are heated.
_WEIGHTS = (0.0, 4.0, 2.0, 1.0, 1.0, 1.0)
_HEATING = (0.0, 2.0, 1.0, 2.0, 1.0, 1.0)
_ANYWHERE = -1  # a position that is drawn


@dataclasses.dataclass(frozen=True)
class TextSettings:
  """How texts begin.

  Attributes:
    lengths: fewest and most tokens of a text, without BOS and EOS; those between are equally probable.
    heating: sweeps at any distance that texts to begin with go through, at most; each text has a number of its own, from 0 up, so that some lie
      close to the query whatever lies between.
    variation: mean total variation between the token marginals of two islands up to which they count as known.
  """

  lengths: tuple[int, int]
  heating: int = 8
  variation: float = 0.25


class TextSweeps:
  """Starts and sweeps by a language model's own conditionals, compiled once for all queries of its sites.

  Attributes:
    kinds: names of the moves.
    prior: the language model.
    program: the jitted function of the sweeps of one call.
  """

  def __init__(self, prior: LanguagePrior, task: Task, mesh: Mesh, settings: TextSettings):
    self.prior, self._settings, self._mesh, self._tokenizer = prior, settings, mesh, task.tokenizer
    self._length, self._lengths = task.length, (settings.lengths[0] + 1, settings.lengths[1] + 1)
    grows = settings.lengths[0] < settings.lengths[1]
    last = text_moves.INSERT if not grows else len(text_moves.KINDS)
    self._number = slice(1, last)
    self.kinds = text_moves.KINDS[self._number]
    self._inside, self._heating = (_cumulative(weights[:last]) for weights in (_WEIGHTS, _HEATING))
    self.program = parallel.jit(self._sweeps, parallel.platform(mesh))

  @functools.cached_property
  def _params(self) -> Any:
    return on_mesh(self.prior.target, self._mesh)

  def shapes(self, count: int) -> tuple:
    """The arguments of `program` behind `most` as shapes, for `count` texts: all that it takes to compile it."""

    def made():
      zero, whole = jnp.zeros(count), jnp.zeros(count, jnp.int32)
      state = new_state(jnp.zeros((count, self._length), jnp.int32), zero, whole, zero, zero)
      state |= _packed(self.prior.blank(count, self._length - 1))
      return jnp.zeros(len(text_moves.KINDS)), jnp.int32(0), whole, state

    return jax.eval_shape(made)

  def begin(self, query: Queries, basis: Any, rng: np.random.Generator, start: np.ndarray | None, count: int) -> State:
    """Draws from the model, or texts to begin with, and their distances.

    Args:
      query: R activations.
      basis: float32[P, D] or None, as for `LanguagePrior.advance`.
      rng: of the draws.
      start: int32[M, T], texts of allowed lengths, the first of which are particles, or all again and again where there are fewer. A single one is
        swept at any distance then; several lie apart already. None: draws.
      count: N.

    Returns:
      What `TaskSweeps.begin` returns, "target_runs", and for each text what the model computed for it.
    """
    key, columns = jax.random.key(int(rng.integers(2**31))), np.arange(self._length)[None, :]
    if start is None:
      tokens, length = np.zeros((count, self._length), np.int32), np.full(count, self._lengths[1])
      tokens[:, 0] = self._tokenizer.bos_id
    else:
      tokens = np.asarray(start, np.int32)[np.arange(count) % len(start)]
      length = ((tokens != self._tokenizer.eos_id) & (tokens != self._tokenizer.pad_id)).sum(axis=1)
    blank = self.prior.blank(count, self._length - 1)
    tokens = np.where(columns <= length[:, None], tokens, self._tokenizer.pad_id).astype(np.int32)
    far, nowhere, zeros = np.full(count, np.inf, np.float32), np.full(count, -1, np.int32), np.zeros(count, np.float32)
    state = {
      **new_state(tokens, far, nowhere, zeros, zeros),
      **jax.tree.map(np.asarray, _packed(dataclasses.replace(blank, length=jnp.asarray(length, jnp.int32)))),
    }
    first = text_moves.END if start is None else text_moves.RECOMPUTE
    weights = (np.arange(len(self._inside)) >= first).astype(np.float32)
    keys = jax.random.split(key)
    state, *_ = self._run(query, basis, keys[0], (np.inf, np.inf), (np.inf, 1), state, weights, 0)
    runs, heating = count, self._settings.heating
    if start is not None and len(start) == 1 and heating:
      # In both islands alike.
      sweeps = (np.arange(count) * (heating + 1) // max(count // ISLANDS, 1) % (heating + 1)).astype(np.int32)
      until = (np.inf, heating)
      state, *_ = self._run(query, basis, keys[1], (np.inf, np.inf), until, state, self._heating, sweeps=sweeps)
      runs += count * heating
    return state | {"moves": np.zeros(count, np.float32), "target_runs": runs}

  def sweep(
    self,
    query: Queries,
    basis: Any,
    key: jax.Array,
    limits: tuple[float, float],
    until: tuple[float, int],
    state: State,
  ):
    """Metropolis-Hastings sweeps inside a threshold; arguments and results as of `TaskSweeps.sweep`.

    "moves" counts how many times the tokens of a text have changed, each by itself: a change of one token of ten is 0.1.
    """
    state, proposed, accepted, sweeps = self._run(query, basis, key, limits, until, state, self._inside)
    return state, proposed[self._number], accepted[self._number], sweeps

  def problem(self, tokens: np.ndarray, island: np.ndarray) -> str:
    """Why particles cannot be relied on though two islands of them, int[N], agree; "" if they can."""
    found, alone = variation(tokens[:, 1 : self._lengths[1]], island, self._tokenizer.vocab_size)
    if found <= self._settings.variation:
      return ""
    return (
      f"the token marginals of two independent populations differ by {found:.2f} (total variation, mean over positions), of which {alone:.2f} is "
      "due to their size: more particles tell more"
    )

  def _run(self, query, basis, key, limits, until, state, weights, start=_ANYWHERE, sweeps=None):
    threshold, epsilon = map(np.float32, limits)
    sweeps = np.full(len(state["tokens"]), np.iinfo(np.int32).max, np.int32) if sweeps is None else sweeps
    numbers = np.float32(until[0]), np.int32(until[1]), weights, np.int32(start), sweeps
    out = self.program(self._params, query, basis, key, threshold, epsilon, *numbers, state)
    return jax.tree.map(np.asarray, out)

  def _sweeps(
    self, params, query: Queries, basis, key, threshold, epsilon, wanted, most, weights, start, sweeps, state
  ):
    """`sweep`, with more arguments.

    Args:
      weights: float32[K], cumulative, of all kinds.
      start: int32[], the position from which on texts are computed, whatever comes of it; -1: drawn.
      sweeps: int32[N], how many each text takes part in.
    """
    count, positions = len(state["tokens"]), self._length - 1
    numbers = jnp.arange(len(text_moves.KINDS))
    last = self._lengths[1] - 1  # the last position of the longest text

    def going(carry):
      return (carry[0] < most) & (jnp.mean(carry[2]["moves"]) < wanted)

    def sweep(carry):
      step, texts, state, proposed, accepted = carry
      # Every position once, in a random order, before any comes again.
      order = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), step // last), last)
      first = jnp.where(start < 0, 1 + order[step % last], start)
      at = jnp.maximum(first, 1)
      keys = parallel.fold_in_each(jax.random.fold_in(jax.random.fold_in(key, 2), step), jnp.arange(count))
      uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2 + text_moves.UNIFORMS + positions,)))(keys)
      kind = jnp.minimum(jnp.searchsorted(weights, uniforms[:, 0], side="right"), len(weights) - 1).astype(jnp.int32)
      plan = text_moves.plan(kind, at, uniforms[:, 2:4], texts.tokens, texts.length, self._lengths)
      new, far, where, other = self._pass(params, query, basis, first, at, plan, uniforms[:, 4:], texts)
      ratio = text_moves.log_ratio(plan, texts.log_p, texts.length, new.log_p, other)
      tokens, changed = self._rows(new), text_moves.changed(plan, kind, texts.tokens, texts.length, new.tokens)
      moved = plan.valid & (jnp.log(uniforms[:, 1]) < ratio) & (far <= threshold)
      moved &= ((changed > 0) | (start >= 0)) & (step < sweeps)
      rejected = nearest_outside(state, tokens, far, where, (far > epsilon) & plan.valid)
      columns = jnp.arange(positions)[None, :]
      prior = jnp.where(columns < new.length[:, None], new.log_p, 0.0).sum(axis=1)
      proposal = {"tokens": tokens, "distance": far, "position": where, "prior": prior}
      updated = {name: where_rows(moved, x, state[name]) for name, x in proposal.items()}
      share = jnp.where(moved, changed / jnp.maximum(texts.length - 1, 1), 0.0)
      state = {**updated, **rejected, "moves": state["moves"] + share}
      texts = _where_texts(moved, new, texts)
      mine = (kind[:, None] == numbers) & plan.valid[:, None]
      return step + 1, texts, state, proposed + mine.sum(axis=0), accepted + (mine & moved[:, None]).sum(axis=0)

    zero = jnp.zeros(len(numbers), jnp.int32)
    texts, rest = _unpacked(state, self.prior.target.config.n_layers)
    step, texts, rest, proposed, accepted = jax.lax.while_loop(going, sweep, (jnp.int32(0), texts, rest, zero, zero))
    return {**rest, **_packed(texts)}, proposed, accepted, step

  def _pass(self, params, query: Queries, basis, first, at, plan: text_moves.Plan, uniforms, texts: Texts):
    """The new texts, computed from position `first` on, over all devices.

    Args:
      first: int32[], 0 for everything.
      at: int32[], from where on tokens are drawn, as far as the plan has it.
      plan: of the sweep.
      uniforms: float32[N, C].
      texts: the old ones.

    Returns:
      The new `Texts`; their distances and positions, as `LanguagePrior.nearest`; and float32[N], `other` of `text_moves.log_ratio`.
    """

    def shard(params, query, basis, first, at, plan, uniforms, texts):
      before, stop = texts.tokens, jnp.max(plan.length)

      def token(t, carry):
        new, other = carry
        hidden = _at(new.hidden, jnp.maximum(t - 1, 0))
        draw = (t >= at) & (t < plan.drawn) & (t > 0)
        here, log_p, ratio = self.prior.next_token(
          params, hidden, _at(plan.given, t), draw, plan.other & (t == at), _at(before, t), _at(uniforms, t)
        )
        x, far, cache = self.prior.advance(params, query, basis, here, t, new.cache)
        columns = {"tokens": here, "log_p": jnp.where(t == 0, 0.0, log_p), "far": far, "hidden": x}
        columns = {name: _put(getattr(new, name), value, t) for name, value in columns.items()}
        return dataclasses.replace(new, cache=cache, **columns), other + ratio

      begun = dataclasses.replace(texts, tokens=plan.given, length=plan.length)
      new, other = jax.lax.fori_loop(first, stop, token, (begun, jnp.zeros(len(plan.length))))
      return new, *self.prior.nearest(query, new), other

    whole, data = PartitionSpec(), PartitionSpec(parallel.DATA)
    specs = Texts.specs(data, PartitionSpec(None, None, None, parallel.DATA))
    program = parallel.per_device(
      shard,
      self._mesh,
      (whole, whole, whole, whole, whole, data, data, specs),
      (specs, data, data, data),
    )
    return program(params, query, basis, first, at, plan, uniforms, texts)

  def _rows(self, texts: Texts) -> jax.Array:
    """int32[N, T]: BOS, the text, EOS, PAD."""
    return rows(self._tokenizer, texts.tokens, texts.length)


def rows(tokenizer: Tokenizer, tokens: jax.Array, length: jax.Array) -> jax.Array:
  """int32[N, C], int32[N], the positions of each -> int32[N, C + 1]: BOS, the text, EOS, PAD."""
  columns, padded = jnp.arange(tokens.shape[1] + 1)[None, :], jnp.pad(tokens, ((0, 0), (0, 1)))
  ends = jnp.where(columns == length[:, None], tokenizer.eos_id, tokenizer.pad_id)
  return jnp.where(columns < length[:, None], padded, ends).astype(jnp.int32)


def _cumulative(weights) -> np.ndarray:
  """float32[K], which end in 1; kinds behind the last weight are never chosen."""
  sums = np.cumsum(np.pad(weights, (0, len(text_moves.KINDS) - len(weights))))
  return (sums / sums[-1]).astype(np.float32)


def _at(x: jax.Array, t: jax.Array) -> jax.Array:
  """float[N, C, ...] -> float[N, ...] at position t."""
  return jax.lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False)


def _put(x: jax.Array, value: jax.Array, t: jax.Array) -> jax.Array:
  """`x` with float[N, ...] at position t."""
  return jax.lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), t, axis=1)


def _where_texts(condition: jax.Array, new: Texts, old: Texts) -> Texts:
  cache = jax.tree.map(lambda x, y: jnp.where(condition, x, y), new.cache, old.cache)  # rows are the last axis
  rest = jax.tree.map(
    lambda x, y: where_rows(condition, x, y), *(dataclasses.replace(x, cache=None) for x in (new, old))
  )
  return dataclasses.replace(rest, cache=cache)


_PACKED = ("length", "log_p", "far", "hidden")


def _packed(texts: Texts) -> State:
  """What a model computed for texts, as arrays with a row for each: "texts_length", ..., and "texts_cache", float[N, L, 2, C, G, K]."""
  cache = jnp.stack([jnp.stack(layer) for layer in texts.cache])
  columns = {f"texts_{name}": getattr(texts, name) for name in _PACKED}
  return {**columns, "texts_cache": jnp.moveaxis(cache, -1, 0)}


def _unpacked(state: State, layers: int) -> tuple[Texts, State]:
  """The inverse of `_packed`, and the rest of the state."""
  cache, tokens = jnp.moveaxis(state["texts_cache"], 0, -1), state["tokens"][:, :-1]
  texts = Texts(
    # EOS and PAD are no tokens of the model, whose activations there would be NaN.
    tokens=jnp.where(jnp.arange(tokens.shape[1])[None, :] < state["texts_length"][:, None], tokens, 0),
    **{name: state[f"texts_{name}"] for name in _PACKED},
    cache=tuple((cache[layer, 0], cache[layer, 1]) for layer in range(layers)),
  )
  return texts, {name: x for name, x in state.items() if not name.startswith("texts_")}
