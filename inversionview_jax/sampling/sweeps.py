"""The program of Monte Carlo on the target: Metropolis-Hastings sweeps of all particles inside a threshold, by a task's moves.

One jitted function does all sweeps of a level. Particles are divided over the mesh's data axis where the target runs on them; each has
random numbers of its own, so they do not depend on the number of devices.

Shapes: N particles, T tokens, K kinds of moves, U uniforms of one move.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.nearness import Nearness
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.moves import Move

COMPOSED = 3  # moves of one proposal, at most
REJECTED = 256  # proposals just outside epsilon that are kept
_DRAWN = 24  # sweeps of one call, at most, for which inputs are drawn

State = dict[str, Any]  # see `new_state`


class TaskSweeps:
  """Starts and sweeps by the moves of a task, compiled once for all queries of its sites.

  Attributes:
    kinds: names of the moves.
    program: the jitted function of the sweeps of one call.
  """

  def __init__(self, target: Target, task: Task, nearness: Nearness):
    """Builds the program; nothing is compiled before it is called.

    Raises:
      InversionViewError: a task without moves or prior, or with one that does not run inside jit.
    """
    self._task, self._nearness, self._moves = task, nearness, task.moves()
    check_moves(task, self._moves)
    self.kinds = tuple(move.name for move in self._moves)
    self._drawn = np.array([move.drawn for move in self._moves])
    weights = np.array([move.weight for move in self._moves])
    # Of the first move of a proposal, and of those after it.
    each = [np.cumsum(w) for w in (weights, np.where(self._drawn, 0.0, weights))]
    self._cumulative = [(total / max(total[-1], 1e-30)).astype(np.float32) for total in each]
    platform = parallel.platform(nearness.mesh)
    self.program = parallel.jit(self._sweeps, platform)
    self._measure = parallel.jit(functools.partial(nearness, whole=True), platform)
    self._target = target

  @functools.cached_property
  def _params(self) -> Any:
    return on_mesh(self._target, self._nearness.mesh)

  def shapes(self, count: int) -> tuple:
    """The arguments of `program` behind `most` as shapes, for `count` particles: all that it takes to compile it."""

    def made():
      zero, whole = jnp.zeros(count), jnp.zeros(count, jnp.int32)
      tokens = jnp.zeros((count, self._task.length), jnp.int32)
      inputs = jnp.zeros((_DRAWN, *tokens.shape), jnp.int32) if self._drawn.any() else None
      return inputs, new_state(tokens, zero, whole, zero, whole)

    return jax.eval_shape(made)

  def begin(self, query: Queries, basis: Any, rng: np.random.Generator, start: np.ndarray | None, count: int) -> State:
    """`count` particles that follow the prior, or texts to begin with, and their distances.

    Args:
      query, basis: as for `Nearness`.
      rng: of the draws.
      start: int32[M, T]; draws from the prior take the place of those that are no inputs, and of those that `count` lacks.
      count: N.

    Returns:
      See `new_state`; NumPy arrays.
    """
    task = self._task
    tokens = np.asarray(task.tokens(rng.integers(task.num_inputs, size=count)), np.int32)
    if start is not None:
      texts = np.asarray(start, np.int32)
      valid = rng.permutation(texts[np.isfinite(np.asarray(task.log_prior(texts)))])[:count]
      tokens[: len(valid)] = valid
      tokens = tokens[rng.permutation(count)]
    distance, position = map(np.asarray, self._measure(self._params, query, basis, tokens))
    prior = np.asarray(task.log_prior(jnp.asarray(tokens)), np.float32)
    return new_state(tokens, distance, position, prior, np.zeros(count, np.int32))

  def sweep(
    self,
    query: Queries,
    basis: Any,
    key: jax.Array,
    limits: tuple[float, float],
    until: tuple[float, int],
    state: State,
  ):
    """Metropolis-Hastings sweeps inside a threshold.

    Args:
      query, basis: as for `Nearness`.
      key: of this call.
      limits: the threshold, and the run's epsilon, outside of which rejected proposals are kept.
      until: sweeps go on until the particles have moved so many times on average, or so many sweeps were done.
      state: as `begin` makes it.

    Returns:
      The state; proposals and accepted ones of each kind, int32[K]; and the number of sweeps. NumPy arrays.
    """
    threshold, epsilon = map(np.float32, limits)
    wanted, most, inputs = np.float32(until[0]), np.int32(until[1]), None
    if self._drawn.any():
      most = np.minimum(most, np.int32(_DRAWN))
      inputs = self._inputs(key, int(most), state["tokens"])
    out = self.program(self._params, query, basis, key, threshold, epsilon, wanted, most, inputs, state)
    return jax.tree.map(np.asarray, out)

  def _inputs(self, key, sweeps: int, tokens: np.ndarray) -> np.ndarray:
    """int32[24, N, T]: for every particle and sweep an input of its own, drawn from the prior."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    drawn = np.zeros((_DRAWN, *tokens.shape), np.int32)
    index = rng.integers(self._task.num_inputs, size=sweeps * len(tokens))
    drawn[:sweeps] = self._task.tokens(index).reshape(sweeps, *tokens.shape)
    return drawn

  def problem(self, tokens: np.ndarray, island: np.ndarray) -> str:
    """Why particles cannot be relied on though two islands of them, int[N], agree; "" if they can."""
    del tokens, island
    return ""

  def _sweeps(self, params, query: Queries, basis, key, threshold, epsilon, wanted, most, inputs, state):
    kinds = jnp.arange(len(self._moves))
    width = 1 + COMPOSED * (1 + max(move.uniforms for move in self._moves))

    def going(carry):
      return (carry[0] < most) & (jnp.mean(carry[1]["moves"].astype(jnp.float32)) < wanted)

    def sweep(carry):
      step, state, proposed, accepted = carry
      keys = parallel.fold_in_each(jax.random.fold_in(key, step), jnp.arange(len(state["tokens"])))
      uniforms = jax.vmap(lambda key: jax.random.uniform(key, (1 + width,)))(keys)
      drawn = None if inputs is None else inputs[step]
      new, prior, ratio, kind = self._propose(uniforms[:, 1:], state["tokens"], state["prior"], drawn)
      far, where = self._nearness(params, query, basis, new)
      accept = jnp.log(uniforms[:, 0]) < prior - state["prior"] + ratio
      moved = accept & (far <= threshold) & (new != state["tokens"]).any(axis=1)
      rejected = nearest_outside(state, new, far, where, far > epsilon)
      proposal = {"tokens": new, "distance": far, "position": where, "prior": prior}
      updated = {name: where_rows(moved, x, state[name]) for name, x in proposal.items()}
      mine = kind[:, None] == kinds
      state = {**updated, **rejected, "moves": state["moves"] + moved}
      return step + 1, state, proposed + mine.sum(axis=0), accepted + (mine & moved[:, None]).sum(axis=0)

    zero = jnp.zeros(len(self._moves), jnp.int32)
    step, state, proposed, accepted = jax.lax.while_loop(going, sweep, (jnp.int32(0), state, zero, zero))
    return state, proposed, accepted, step

  def _propose(self, uniforms, tokens, prior, drawn):
    """One to three moves in a row; a move to a text that is no input is not made, so that ratios need to hold between inputs only.

    A move with a drawn input is made by itself: of several in a row, the way back would have to draw the same input.

    Args:
      uniforms: float32[N, 1 + 3 (1 + U)].
      tokens: int32[N, T], inputs.
      prior: float32[N], their log prior.
      drawn: int32[N, T], inputs drawn from the prior; None where no move takes one.

    Returns:
      int32[N, T]; float32[N], its log prior; float32[N], log q(old | new) - log q(new | old); and int32[N], the kind of the first move.
    """
    width = max(move.uniforms for move in self._moves)
    count = 1 + (uniforms[:, 0] * COMPOSED).astype(jnp.int32)
    ratio, kinds = jnp.zeros(len(tokens)), []
    for i in range(1 if self._drawn.all() else COMPOSED):
      mine = uniforms[:, 1 + i * (1 + width) : 1 + (i + 1) * (1 + width)]
      kind = jnp.searchsorted(jnp.asarray(self._cumulative[min(i, 1)]), mine[:, 0], side="right")
      kind = jnp.minimum(kind, len(self._moves) - 1)
      if i == 0:
        count = jnp.where(jnp.asarray(self._drawn)[kind], 1, count)
      moved, log_q = tokens, jnp.zeros(len(tokens))
      for k, move in enumerate(self._moves):
        if move.drawn and i:
          continue
        more = (drawn,) if move.drawn else ()
        proposal, move_ratio = move.propose(mine[:, 1 : 1 + move.uniforms], tokens, *more)
        moved, log_q = jnp.where((kind == k)[:, None], proposal, moved), jnp.where(kind == k, move_ratio, log_q)
      moved_prior = self._task.log_prior(moved).astype(jnp.float32)
      used = (i < count) & jnp.isfinite(moved_prior)
      tokens, prior = jnp.where(used[:, None], moved, tokens), jnp.where(used, moved_prior, prior)
      ratio += jnp.where(used, log_q, 0.0)
      kinds.append(kind)
    return tokens, prior, ratio, kinds[0]


def on_mesh(target: Target, mesh: Mesh) -> Any:
  """The target's parameters on the devices of a mesh: a whole copy on each, or split where the mesh has a model axis."""
  return parallel.put(target.params, sharding.shardings(target.params, mesh))


def check_moves(task: Task, moves: tuple[Move, ...]) -> None:
  """Raises `InversionViewError` for a prior or a move that JAX cannot trace, or that gives arrays of other shapes, naming it."""
  rows, width = 2, task.length
  tokens = jax.ShapeDtypeStruct((rows, width), jnp.int32)

  def check(what, function, arguments, wanted):
    try:
      out = jax.eval_shape(function, *arguments)
    except InversionViewError:
      raise
    except Exception as error:  # the function may be the user's: whatever it raises is an error in what was given
      raise InversionViewError(
        f"{what} of the task {task.name!r} does not run on JAX arrays inside jit ({type(error).__name__}): use the functions of "
        "tokens.__array_namespace__(), and no branches on values"
      ) from error
    shapes = [getattr(x, "shape", None) for x in (out if isinstance(out, tuple) else (out,))]
    if shapes != wanted:
      raise InversionViewError(
        f"{what} of the task {task.name!r} gives arrays of shapes {shapes} for tokens of shape {(rows, width)}, not {wanted}"
      )

  check("log_prior", task.log_prior, (tokens,), [(rows,)])
  for move in moves:
    uniforms = jax.ShapeDtypeStruct((rows, move.uniforms), jnp.float32)
    more = (tokens,) if move.drawn else ()
    check(f"the move {move.name!r}", move.propose, (uniforms, tokens, *more), [(rows, width), (rows,)])


def new_state(tokens: Any, distance: Any, position: Any, prior: Any, moves: Any) -> State:
  """N particles, and no rejected proposals yet.

  Args:
    tokens, distance, position: int32[N, T], float32[N], int32[N].
    prior: float32[N], their log prior.
    moves: int32[N] or float32[N], how often each has moved.

  Returns:
    These by their names, and "rejected_tokens", "rejected_distance" and "rejected_position" of the proposals that are kept.
  """
  return {
    "tokens": tokens,
    "distance": distance,
    "position": position,
    "prior": prior,
    "moves": moves,
    "rejected_tokens": np.zeros((REJECTED, tokens.shape[1]), np.int32),
    "rejected_distance": np.full(REJECTED, np.inf, np.float32),
    "rejected_position": np.full(REJECTED, -1, np.int32),
  }


def where_rows(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """x in the rows where bool[N], else y."""
  return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, y)


def nearest_outside(state: State, tokens: Any, distance: Any, position: Any, outside: Any) -> State:
  """The nearest different proposals outside epsilon so far: those of the state and those of this sweep, as many as before.

  Args:
    state: with "rejected_tokens", "rejected_distance" and "rejected_position".
    tokens, distance, position: int32[N, T], float32[N], int32[N], the proposals.
    outside: bool[N], whether they lie outside epsilon.
  """
  far = jnp.concatenate([state["rejected_distance"], jnp.where(outside, distance, jnp.inf)])
  tokens = jnp.concatenate([state["rejected_tokens"], tokens])
  position = jnp.concatenate([state["rejected_position"], position])
  # Sorted by distance and hash, equal texts are neighbours and are kept once; copies of a few would fill all rows otherwise.
  factors = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.uint32) * np.uint32(2654435761)
  order = jnp.lexsort(((tokens.astype(jnp.uint32) * factors).sum(axis=1), far))
  again = (tokens[order][1:] == tokens[order][:-1]).all(axis=1)
  far = far.at[order[1:]].set(jnp.where(again, jnp.inf, far[order[1:]]))
  nearest = jnp.argsort(far)[: len(state["rejected_distance"])]
  return {"rejected_tokens": tokens[nearest], "rejected_distance": far[nearest], "rejected_position": position[nearest]}
