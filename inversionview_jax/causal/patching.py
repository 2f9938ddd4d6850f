"""The compiled program of activation patching: a batch of inputs, run once for every set of addresses whose activations are replaced.

What is replaced where is data (`capture.SiteEdit`): an address is a layer, a head and a position per row, and a step of a sweep is a row
of booleans over the addresses. So a sweep over heads, over positions or over orders is one compiled program; static are only the kinds of
the sites, and the numbers of addresses, distinct positions and steps.

Shapes: B batch, N inputs, T tokens, L layers, H heads, D d_model, V vocabulary, M addresses, S steps, P distinct positions of addresses, Q
positions whose prediction is read.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.causal.addresses import Address
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.models.capture import SiteEdit, rows_at
from inversionview_jax.models.site_shapes import missing
from inversionview_jax.sites import KINDS, Site, whole
from inversionview_jax.targets import Target

METRICS = ("logit_difference", "kl", "top_logit", "top_logit_share", "top_changed")


@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
  """Whose predictions are compared.

  Attributes:
    clean_at, corrupted_at: int32[N, Q], positions; `corrupted_at` None without corrupted inputs.
    answer, foil: int32[N, Q], the tokens of the logit difference; -1 for the target's own top token on the clean and on the corrupted input.
  """

  clean_at: np.ndarray
  corrupted_at: np.ndarray | None
  answer: np.ndarray
  foil: np.ndarray

  @classmethod
  def of_pairs(cls, pairs) -> "Readout":
    """The one position of each pair at which `tasks.contrast.Pairs` or `tasks.pairs_file.TextPairs` have the answers."""
    return cls(pairs.clean_at[:, None], pairs.corrupted_at[:, None], pairs.answer[:, None], pairs.foil[:, None])


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """The metrics of every step, for every input.

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
  target: Target,
  clean: np.ndarray,
  addresses: Sequence[Address],
  steps: np.ndarray,
  readout: Readout,
  *,
  corrupted: np.ndarray | None = None,
  values: Sequence[np.ndarray] | None = None,
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Measured:
  """Runs `clean` with the activations at some addresses replaced, once for each step.

  Args:
    target: that is run.
    clean: int32[N, T].
    addresses: M of them.
    steps: bool[S, M], which addresses are replaced in each step.
    readout: where and what to compare.
    corrupted: int32[N, T'], the inputs whose activations are put there; or
    values: M of float[W], or float[T, W] for all positions: what is put there in every input.
    batch_size: inputs per program; the result does not depend on it.
    mesh: all devices by default.
  """
  mesh = parallel.make_mesh() if mesh is None else mesh
  # The kinds are part of the compiled program; sorted, so that two orders of the same addresses share it.
  order = sorted(range(len(addresses)), key=lambda m: (addresses[m].site.kind, addresses[m].clean_at is None))
  addresses, steps = [addresses[m] for m in order], np.asarray(steps, bool)[:, order]
  clean_at, clean_slot = _columns([address.clean_at for address in addresses], len(clean))
  shared = {
    **_sites_as_arrays(addresses, clean_slot),
    "steps": np.concatenate([np.zeros((1, len(addresses)), bool), steps]),
    "values": () if values is None else tuple(np.asarray(values[m], np.float32) for m in order),
  }
  rows: dict[str, np.ndarray | None] = {
    "clean": clean,
    "at": clean_at,
    "read": readout.clean_at,
    "answer": readout.answer,
    "foil": readout.foil,
  }
  if corrupted is not None:
    corrupted_at, shared["corrupted_slot"] = _columns([address.corrupted_at for address in addresses], len(clean))
    rows |= {"corrupted": corrupted, "corrupted_at": corrupted_at, "corrupted_read": readout.corrupted_at}
  program = _program(target.module, mesh, _kinds(addresses), corrupted is not None)
  out = _in_batches(program, target.params, shared, rows, batch_size, mesh)
  by_step = {metric: x.swapaxes(0, 1).astype(np.float64) for metric, x in out["steps"].items()}
  whole = {metric: x.astype(np.float64) for metric, x in out["corrupted"].items()} if corrupted is not None else None
  return Measured(by_step, whole, out["answer"], out["foil"])


def mean_activations(
  target: Target,
  tokens: np.ndarray,
  addresses: Sequence[Address],
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
  padding: np.ndarray | None = None,
) -> list[np.ndarray]:
  """M of float64[W], or float64[T, W] for all positions: the mean activation at each address over inputs.

  Args:
    target: that is run.
    tokens: int32[N, T], the inputs; a position counts in those that have it.
    addresses: M of them, at their `clean_at`.
    batch_size, mesh: as for `measure`.
    padding: bool[N, T]; None: none.
  """
  mesh = parallel.make_mesh() if mesh is None else mesh
  at, slot = _columns([address.clean_at for address in addresses], len(tokens))
  program = _activations_program(target.module, mesh, _kinds(addresses))
  shared = {**_sites_as_arrays(addresses, slot), "corrupted_slot": slot}
  rows = {"corrupted": tokens, "corrupted_at": at, "corrupted_read": at[:, :1]}
  found = _in_batches(program, target.params, shared, rows, batch_size, mesh)
  counted = np.ones(tokens.shape) if padding is None else (~padding).astype(np.float64)
  weights = (counted / np.maximum(counted.sum(axis=0), 1))[..., None]
  return [
    (np.where(weights > 0, x.astype(np.float64), 0) * weights).sum(axis=0)
    if everywhere
    else x.astype(np.float64).mean(axis=0)
    for x, (_, everywhere) in zip(found, _kinds(addresses), strict=True)
  ]


def _kinds(addresses: Sequence[Address]) -> tuple[tuple[str, bool], ...]:
  """(kind of the site, whether all its positions are replaced) of each address: what is static in the program."""
  return tuple((address.site.kind, address.clean_at is None) for address in addresses)


def _sites_as_arrays(addresses: Sequence[Address], slot: np.ndarray) -> dict[str, np.ndarray]:
  return {
    "layer": np.array([address.site.layer or 0 for address in addresses], np.int32),
    "head": np.array([address.site.head or 0 for address in addresses], np.int32),
    "slot": slot,
  }


def _columns(columns: Sequence[np.ndarray | None], count: int) -> tuple[np.ndarray, np.ndarray]:
  """The distinct columns, int32[N, P], and the index of each column among them, int32[M]: heads at one position are looked up there once."""
  distinct: dict[bytes, tuple[int, np.ndarray]] = {}
  slot: list[int] = []
  for column in columns:
    column = np.zeros(count, np.int32) if column is None else np.asarray(column, np.int32)
    slot.append(distinct.setdefault(column.tobytes(), (len(distinct), column))[0])
  return np.stack([column for _, column in distinct.values()], axis=1), np.array(slot, np.int32)


def _in_batches(program: Callable, params, shared: dict, rows: dict, batch_size: int, mesh):
  """The results of (params, shared, rows) -> pytree of [B, ...] for all N rows, as NumPy arrays; batches divide over the devices."""
  devices = mesh.shape[parallel.DATA]
  count = len(next(iter(rows.values())))
  size = -(-min(batch_size, count) // devices) * devices
  params, shared = parallel.put(params, sharding.shardings(params, mesh)), parallel.replicate(shared, mesh)
  return parallel.in_chunks(lambda chunk: program(params, shared, parallel.shard(chunk, mesh)), rows, size)


def _replacements(module, params, shared, rows, kinds):
  """The activations of the corrupted inputs at every address, float[B, D] or [B, T, D] each, and their logits float32[B, Q, V]."""
  c = module.config
  sites_of_kind, last = {}, Site("post", c.n_layers - 1)
  for kind in sorted({kind for kind, _ in kinds}):
    many = whole(Site(kind, 0, 0)).kind
    outside = "{l}" not in KINDS[kind].short
    sites_of_kind[kind] = [Site(many)] if outside else [Site(many, layer) for layer in range(c.n_layers)]
    sites_of_kind[kind] = [site if not missing(c, site) else None for site in sites_of_kind[kind]]
  columns = jnp.concatenate([rows["corrupted_at"], rows["corrupted_read"]], axis=1)
  all_positions = any(everywhere for _, everywhere in kinds)
  out = module.apply(
    {"params": params},
    rows["corrupted"],
    capture=[last, *(site for sites in sites_of_kind.values() for site in sites if site is not None)],
    at=None if all_positions else columns,
    logits=False,
  )

  def at_columns(x):
    return rows_at(x, columns) if all_positions else x

  values = []
  for m, (kind, everywhere) in enumerate(kinds):
    some = next(out[site] for site in sites_of_kind[kind] if site is not None)
    # A layer without such a site is never addressed.
    each = [jnp.zeros_like(some) if site is None else out[site] for site in sites_of_kind[kind]]
    x = jnp.stack([one if everywhere else at_columns(one) for one in each])
    x = jnp.take(x, shared["layer"][m], axis=0)
    x = x if everywhere else jnp.take(x, shared["corrupted_slot"][m], axis=1)
    values.append(jnp.take(x, shared["head"][m], axis=-2) if KINDS[kind].number else x)
  read = at_columns(out[last])[:, rows["corrupted_at"].shape[1] :]
  return values, _logits(module, params, read)


def _logits(module, params, x):
  return module.apply({"params": params}, x, method="logits")


def _compare(base, logits, answer, foil) -> dict[str, jax.Array]:
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
def _program(module, mesh, kinds, has_corrupted: bool) -> Callable:
  """(params, shared, rows) -> {"steps": metric -> [B, 1 + S, Q], "corrupted": metric -> [B, Q], "answer", "foil"}, compiled."""
  c = module.config

  def run(params, shared, rows):
    clean, read = rows["clean"], rows["read"]
    corrupted = None
    if has_corrupted:
      values, corrupted = _replacements(module, params, shared, rows, kinds)
    else:
      values = [jnp.broadcast_to(v, (len(clean), *((clean.shape[1],) if e else ()), v.shape[-1]))
                for (_, e), v in zip(kinds, shared["values"], strict=True)]  # fmt: skip

    def tokens(base):
      top = jnp.argmax(base, axis=-1)
      other = top if corrupted is None else jnp.argmax(corrupted, axis=-1)
      return jnp.where(rows["answer"] < 0, top, rows["answer"]), jnp.where(rows["foil"] < 0, other, rows["foil"])

    def step(base, now):
      first, on = now
      edits = [
        # An address that is left alone in this step is given a layer that no model has.
        SiteEdit(kind, jnp.where(on[m], shared["layer"][m], -1), shared["head"][m],
                 None if everywhere else jnp.take(rows["at"], shared["slot"][m], axis=1), values[m])
        for m, (kind, everywhere) in enumerate(kinds)
      ]  # fmt: skip
      logits = module.apply({"params": params}, clean, edits=edits, logits_at=read).logits
      base = jnp.where(first, logits, base)
      return base, _compare(base, logits, *tokens(base))

    # The clean run is the first step of the same loop, so that a step without any effect differs from it by exactly nothing.
    first = jnp.arange(len(shared["steps"])) == 0
    base, steps = jax.lax.scan(step, jnp.zeros((*read.shape, c.outputs), jnp.float32), (first, shared["steps"]))
    answer, foil = tokens(base)
    out = {"steps": {metric: x.swapaxes(0, 1) for metric, x in steps.items()}, "answer": answer, "foil": foil}
    return out | ({"corrupted": _compare(base, corrupted, answer, foil)} if has_corrupted else {})

  return parallel.pmap(run, mesh, (None, None, 0), 0)


@functools.cache
def _activations_program(module, mesh, kinds) -> Callable:
  """(params, shared, rows) -> the activation at every address, M of [B, W] or [B, T, W], compiled."""

  def run(params, shared, rows):
    return tuple(_replacements(module, params, shared, rows, kinds)[0])

  return parallel.pmap(run, mesh, (None, None, 0), 0)
