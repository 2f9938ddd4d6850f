"""The program behind `interventions`: a batch of inputs, run once for every set of places whose activations are replaced.

What is replaced where is data (`capture.SiteEdit`): a place is a layer, a head and a position per row, and a step of a sweep is a row of
booleans over the places. So a sweep over heads, over positions or over orders is one compiled program; part of its shape are only the kinds
of the sites, and how many places, distinct positions and steps there are.

Shapes: B batch, N inputs, T tokens, L layers, H heads, D d_model, V vocabulary, M places, S steps, P distinct positions of places, Q
positions whose prediction is read.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import parallel, sharding
from inversionview_jax.models.capture import SiteEdit, rows_at
from inversionview_jax.sites import Site

METRICS = ("logit_difference", "kl", "top_logit", "top_logit_share", "top_changed")


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an activation is replaced.

  Attributes:
    site: a site with one vector per position.
    clean_at: int32[N], the position in each input; None for all of them.
    corrupted_at: int32[N], where the replacement is found in the corrupted input; None without one, or for all positions.
  """

  site: Site
  clean_at: np.ndarray | None
  corrupted_at: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Reading:
  """Whose prediction is compared, and how.

  Attributes:
    clean_at, corrupted_at: int32[N, Q], positions; `corrupted_at` None without corrupted inputs.
    answer, foil: int32[N, Q], the tokens of the logit difference; -1 for the target's own top token on the clean and on the corrupted input.
  """

  clean_at: np.ndarray
  corrupted_at: np.ndarray | None
  answer: np.ndarray
  foil: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
  """What came out, for every input by itself.

  Attributes:
    steps: metric -> float64[1 + S, N, Q]; the first row is the clean run. "logit_difference" is the logit of the answer less that of the foil;
      the others compare with the clean run: "kl" (clean || patched, in nats), "top_logit", by how much the logit of the clean run's top
      token fell, "top_logit_share", that fall as a share of the logit (under "centered", where logits are zero on average over V), and
      "top_changed", 1 where another token is now on top.
    corrupted: the same of the corrupted run, float64[N, Q]; None without one.
    answer, foil: int32[N, Q], the tokens that were compared.
  """

  steps: dict[str, np.ndarray]
  corrupted: dict[str, np.ndarray] | None
  answer: np.ndarray
  foil: np.ndarray


def measure(
  target, clean, places: Sequence[Place], steps, reading: Reading, *, corrupted=None, values=None, batch_size, mesh=None
) -> Measured:
  """Runs `clean` with the activations of some places replaced, once for each step.

  Args:
    target: a `Target`.
    clean: int32[N, T].
    places: M of them.
    steps: bool[S, M], which places are replaced in each step.
    reading: where and what to compare.
    corrupted: int32[N, T'], the inputs whose activations are put there; or
    values: float[M, D], what is put there in every input.
    batch_size: inputs per program; the result does not depend on it.
    mesh: all devices by default.
  """
  mesh = parallel.make_mesh() if mesh is None else mesh
  # The kinds are part of the compiled program; sorted, so that two orders of the same places share it.
  order = sorted(range(len(places)), key=lambda m: (places[m].site.kind, places[m].clean_at is None))
  places, steps = [places[m] for m in order], np.asarray(steps, bool)[:, order]
  clean_at, clean_slot = _columns([place.clean_at for place in places], len(clean))
  shared = {
    **_addresses(places, clean_slot),
    "steps": np.concatenate([np.zeros((1, len(places)), bool), steps]),
    "values": np.zeros((len(places), 1), np.float32) if values is None else np.asarray(values, np.float32)[order],
  }
  rows = {
    "clean": clean,
    "at": clean_at,
    "read": reading.clean_at,
    "answer": reading.answer,
    "foil": reading.foil,
  }
  if corrupted is not None:
    corrupted_at, shared["corrupted_slot"] = _columns([place.corrupted_at for place in places], len(clean))
    rows |= {"corrupted": corrupted, "corrupted_at": corrupted_at, "corrupted_read": reading.corrupted_at}
  program = _program(target.module, mesh, _kinds(places), corrupted is not None)
  found = _over_batches(program, target.params, shared, rows, batch_size, mesh)
  joined = {
    part: jax.tree.map(lambda *xs, axis=axis: np.concatenate(xs, axis=axis), *[one[part] for one in found])
    for part, axis in _OUT_AXES.items()
    if part in found[0]
  }
  n = len(clean)
  wide = {name: x[:, :n].astype(np.float64) for name, x in joined["steps"].items()}
  whole = {name: x[:n].astype(np.float64) for name, x in joined["corrupted"].items()} if corrupted is not None else None
  return Measured(wide, whole, joined["answer"][:n], joined["foil"][:n])


def mean_activations(target, tokens, places: Sequence[Place], *, batch_size, mesh=None) -> np.ndarray:
  """float64[M, D]: the mean activation at each place (its `clean_at`) over the inputs `tokens`, int32[N, T]."""
  mesh = parallel.make_mesh() if mesh is None else mesh
  at, slot = _columns([place.clean_at for place in places], len(tokens))
  program = _reader(target.module, mesh, _kinds(places))
  shared = {**_addresses(places, slot), "corrupted_slot": slot}
  rows = {"corrupted": tokens, "corrupted_at": at, "corrupted_read": at[:, :1]}
  found = _over_batches(program, target.params, shared, rows, batch_size, mesh)
  return np.concatenate(found)[: len(tokens)].astype(np.float64).mean(axis=0)


_OUT_AXES = {"steps": 1, "corrupted": 0, "answer": 0, "foil": 0}


def _kinds(places) -> tuple[tuple[str, bool], ...]:
  return tuple((place.site.kind, place.clean_at is None) for place in places)


def _addresses(places, slot) -> dict[str, np.ndarray]:
  return {
    "layer": np.array([place.site.layer or 0 for place in places], np.int32),
    "head": np.array([place.site.head or 0 for place in places], np.int32),
    "slot": slot,
  }


def _columns(columns: Sequence[np.ndarray | None], count: int) -> tuple[np.ndarray, np.ndarray]:
  """The distinct columns, int32[N, P], and which of them is whose, int32[M]: heads at one position are looked up there once."""
  distinct, slot = {}, []
  for column in columns:
    column = np.zeros(count, np.int32) if column is None else np.asarray(column, np.int32)
    slot.append(distinct.setdefault(column.tobytes(), (len(distinct), column))[0])
  return np.stack([column for _, column in distinct.values()], axis=1), np.array(slot, np.int32)


def _over_batches(program, params, shared, rows, batch_size, mesh) -> list:
  """Runs a program on equally large batches; the last is filled up with its last row, which whoever calls cuts off again."""
  devices = mesh.shape[parallel.DATA]
  count = len(next(iter(rows.values())))
  size = -(-min(batch_size, count) // devices) * devices
  params = parallel.put(params, sharding.shardings(params, mesh))
  shared, found = parallel.replicate(shared, mesh), []
  for start in range(0, count, size):
    index = np.minimum(np.arange(start, start + size), count - 1)
    batch = parallel.shard({name: x[index] for name, x in rows.items()}, mesh)
    found.append(program(params, shared, batch))
  return parallel.fetch(found)


def _replacements(module, params, shared, rows, kinds):
  """The activations of the corrupted inputs at every place, float[B, D] or [B, T, D] each, and their logits float32[B, Q, V]."""
  c = module.config
  wanted, last = {}, Site("post", c.n_layers - 1)
  for kind in sorted({kind for kind, _ in kinds}):
    many = "heads" if kind == "head" else kind
    embeds = kind in ("embed", "pos_embed")
    wanted[kind] = [Site(many)] if embeds else [Site(many, layer) for layer in range(c.n_layers)]
  columns = jnp.concatenate([rows["corrupted_at"], rows["corrupted_read"]], axis=1)
  whole = any(everywhere for _, everywhere in kinds)
  out = module.apply(
    {"params": params},
    rows["corrupted"],
    capture=[last, *(site for every in wanted.values() for site in every)],
    at=None if whole else columns,
    logits=False,
  )

  def at_columns(x):
    return rows_at(x, columns) if whole else x

  values = []
  for m, (kind, everywhere) in enumerate(kinds):
    x = jnp.stack([out[site] if everywhere else at_columns(out[site]) for site in wanted[kind]])
    x = jnp.take(x, shared["layer"][m], axis=0)
    x = x if everywhere else jnp.take(x, shared["corrupted_slot"][m], axis=1)
    values.append(jnp.take(x, shared["head"][m], axis=-2) if kind == "head" else x)
  read = at_columns(out[last])[:, rows["corrupted_at"].shape[1] :]
  return values, _logits(module, params, read)


def _logits(module, params, x):
  return module.apply({"params": params}, x, method="logits")


def _compared(base, logits, answer, foil) -> dict[str, jax.Array]:
  """float32[B, Q, V] twice, tokens int32[B, Q] -> each metric, float32[B, Q]."""

  def of(x, token):
    return jnp.take_along_axis(x, token[..., None], axis=-1)[..., 0]

  before, now = jax.nn.log_softmax(base), jax.nn.log_softmax(logits)
  top = jnp.argmax(base, axis=-1)
  fall = of(base, top) - of(logits, top)
  return {
    "logit_difference": of(logits, answer) - of(logits, foil),
    "kl": _kl(before, now),
    "top_logit": fall,
    "top_logit_share": fall / of(base, top),
    "top_changed": (jnp.argmax(logits, axis=-1) != top).astype(jnp.float32),
  }


def _kl(before, now) -> jax.Array:
  """KL(before || now) of log-probabilities float32[..., V], float32[...].

  As sum p (e^d - 1 - d) with d = log q - log p, whose terms are all positive: sum -p d, which is the same since p and q both sum to 1, loses what is
  below 1e-6 to cancellation.
  """
  p, d = jnp.exp(before), now - before
  terms = jnp.where(jnp.abs(d) < 1, p * (jnp.expm1(d) - d), jnp.exp(now) - p - p * d)
  return jnp.sum(terms, axis=-1)


@functools.cache
def _program(module, mesh, kinds, has_corrupted: bool):
  c = module.config
  last = Site("post", c.n_layers - 1)

  def run(params, shared, rows):
    clean, read = rows["clean"], rows["read"]
    corrupted = None
    if has_corrupted:
      values, corrupted = _replacements(module, params, shared, rows, kinds)
    else:
      values = [jnp.broadcast_to(v, (len(clean), *((clean.shape[1],) if e else ()), c.d_model))
                for (_, e), v in zip(kinds, shared["values"], strict=True)]  # fmt: skip

    def tokens(base):
      top = jnp.argmax(base, axis=-1)
      other = top if corrupted is None else jnp.argmax(corrupted, axis=-1)
      return jnp.where(rows["answer"] < 0, top, rows["answer"]), jnp.where(rows["foil"] < 0, other, rows["foil"])

    def step(base, now):
      first, on = now
      edits = [
        # A place that is left alone in this step is given a layer that no model has.
        SiteEdit(kind, jnp.where(on[m], shared["layer"][m], -1), shared["head"][m],
                 None if everywhere else jnp.take(rows["at"], shared["slot"][m], axis=1), values[m])
        for m, (kind, everywhere) in enumerate(kinds)
      ]  # fmt: skip
      out = module.apply({"params": params}, clean, capture=[last], at=read, edits=edits, logits=False)
      logits = _logits(module, params, out[last])
      base = jnp.where(first, logits, base)
      return base, _compared(base, logits, *tokens(base))

    # The clean run is the first step of the same loop: what nothing was done to then differs from it by exactly nothing.
    first = jnp.arange(len(shared["steps"])) == 0
    base, steps = jax.lax.scan(step, jnp.zeros((*read.shape, c.vocab_size), jnp.float32), (first, shared["steps"]))
    answer, foil = tokens(base)
    found = {"steps": steps, "answer": answer, "foil": foil}
    return found | ({"corrupted": _compared(base, corrupted, answer, foil)} if has_corrupted else {})

  axes = {name: axis for name, axis in _OUT_AXES.items() if has_corrupted or name != "corrupted"}
  return parallel.pmap(run, mesh, (None, None, 0), axes)


@functools.cache
def _reader(module, mesh, kinds):
  def run(params, shared, rows):
    return jnp.stack(_replacements(module, params, shared, rows, kinds)[0], axis=1)

  return parallel.pmap(run, mesh, (None, None, 0), 0)
