"""Causal checks: replaces activations by those of another input, by their mean or by zero, and measures how the predictions change.

Patching follows the paper (section 3 and its appendix on activation patching): the clean input runs with the activations that the corrupted
one has at some sites and positions, and the effect is how much of the logit difference between the two answers is lost.

Shapes: N pairs of inputs, T tokens, S steps, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from inversionview_jax import bounds
from inversionview_jax.causal import patching
from inversionview_jax.causal.addresses import (
  Inputs,
  Tokens,
  encode_inputs,
  refuse_overwritten_patches,
  refuse_unreachable,
  resolve_addresses,
  token_ids,
)
from inversionview_jax.causal.estimates import Estimate, estimate, share
from inversionview_jax.causal.patching import Measured, Readout
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import site_shapes
from inversionview_jax.sites import Site
from inversionview_jax.tables import ShowsTable, Table, plus_minus
from inversionview_jax.targets import Target
from inversionview_jax.targets.arrays import to_array
from inversionview_jax.targets.inputs import Rows
from inversionview_jax.targets.positions import Position, resolve_positions
from inversionview_jax.targets.replacements import drawn_rows

METRICS = patching.METRICS
ABLATIONS = ("mean", "resample", "zero")
ORDERS = ("together", "each", "forward", "backward")
_METRIC_NAMES = {
  "logit_difference": "loss of logit difference",
  "kl": "KL from the clean run (nats)",
  "top_logit": "fall of the top logit",
  "top_logit_share": "fall of the top logit, as a share of it",
  "top_changed": "share with another top token",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Effects(ShowsTable):
  """The effects of patching or ablation, one row per step.

  Attributes:
    steps: S names, such as "a0.3@=", "+ a1.0@=" (added to the step before) or "a0.0@= a0.1@=" (both at once).
    metric: one of `METRICS`.
    values: float64[S, N]. For "logit_difference" what the patch took from it: clean less patched. For the others the metric itself.
    original: float64[N], the logit difference of the clean run, or zeros for the other metrics.
    total: float64[N], the effect of running the corrupted input instead; None where there is none (ablation).
  """

  steps: tuple[str, ...]
  metric: str
  values: np.ndarray
  original: np.ndarray
  total: np.ndarray | None

  @property
  def estimates(self) -> tuple[Estimate, ...]:
    """The mean effect of every step with its standard error and number of pairs."""
    return tuple(map(estimate, self.values))

  @property
  def total_estimate(self) -> Estimate | None:
    """The mean effect of running the corrupted input instead; None where there is none."""
    return None if self.total is None else estimate(self.total)

  @property
  def shares(self) -> tuple[Estimate | None, ...]:
    """Each step's effect as a share of the effect of the whole corrupted input; None where that is zero or there is none."""
    return tuple(None if self.total is None else share(row, self.total) for row in self.values)

  def _table(self) -> Table:
    name = _METRIC_NAMES[self.metric]
    rows: list[tuple[str, ...]]
    if self.total is None:
      columns: tuple[str, ...] = ("step", name)
      rows = [(step, plus_minus(e.mean, e.se)) for step, e in zip(self.steps, self.estimates, strict=True)]
    else:
      rows = [
        (step, plus_minus(e.mean, e.se), "-" if part is None else plus_minus(part.mean, part.se, 100, " %"))
        for step, e, part in zip(self.steps, self.estimates, self.shares, strict=True)
      ]
      total = estimate(self.total)
      rows.append(("everything", plus_minus(total.mean, total.se), "100.0 %" if share(self.total, self.total) else "-"))
      columns = ("step", name, "share of everything")
    notes = "" if self.total is None else "everything: the corrupted input itself"
    return Table(f"Effects (n = {self.values.shape[1]:,})", columns, tuple(rows), notes)


def patch(
  target: Target,
  clean: Inputs,
  corrupted: Inputs,
  sites: "str | Site | Sequence[str | Site]",
  position: "Position | Sequence[Position | None] | None" = None,
  metric: str = "logit_difference",
  *,
  order: str = "together",
  read_position: Position = -1,
  answers: "tuple[str | int | Tokens, str | int | Tokens] | None" = None,
  batch_size: int = 256,
  mesh: jax.sharding.Mesh | None = None,
) -> Effects:
  """How much of the behaviour is lost when the clean inputs run with activations of the corrupted ones.

  >>> import inversionview_jax as iv
  >>> target = iv.load_target("addition")
  >>> clean, corrupted = ["615+261=", "302+140="], ["615+291=", "372+140="]      # only there do the tens carry
  >>> effects = iv.patch(target, clean, corrupted, ["a0.0", "a0.1"], "=", order="each")
  >>> effects.steps, effects.values.shape                                       # a step for each head, a value for each pair
  (('a0.0@=', 'a0.1@='), (2, 2))
  >>> [share.mean > 0.9 for share in effects.shares]                            # a0.0 alone does what the corrupted inputs do
  [True, False]

  Args:
    target: any `Target`.
    clean, corrupted: N texts each, or int[N, T] token ids. Pair i is row i of both. A text may be the beginning of an input.
    sites: one or several, in either notation: a head, a residual site, an MLP's write, "embed" or "pos_embed".
    position: one for all sites, or a list with one for each: an index, a negative index (from the last token of the text), a label of the
      target's task, int[N] with one index per pair, or None for all positions. A label and a negative index are looked up in both inputs,
      which may differ in length; for None they must not.
    metric: "logit_difference" (what is lost of it), "kl" (of the patched run from the clean one, nats), "top_logit" (by how much the clean
      run's top logit falls), "top_logit_share" (the same as a share of it) or "top_changed" (whether another token is now on top).
    order: "together", one step with all sites; "each", a step per site; "forward", sites added one by one; "backward", from the last.
    read_position: the position whose prediction is read, like `position`; by default the last token of the text.
    answers: (answers, foils), N tokens each (strings or ids), or one for all; the logit difference is answer less foil. By default the
      target's own top token on the clean and on the corrupted input.
    batch_size: pairs per program; the result does not depend on it, nor on the number of devices.
    mesh: `parallel.make_mesh()` over all devices by default.

  Returns:
    `Effects`.

  Raises:
    InversionViewError: a site, position, metric, order or token that is not there; two patches of the same activation, or one that another
      in the same step overwrites; one with no path to the prediction; texts of different length where positions must match; answers that are the same in every pair, so that there is no
      logit difference to lose.
  """
  _check(metric, batch_size)
  rows, others = encode_inputs(target, clean), encode_inputs(target, corrupted)
  if len(rows) != len(others):
    raise InversionViewError(f"{len(rows)} clean inputs and {len(others)} corrupted ones do not make pairs")
  addresses = resolve_addresses(target, *_one_position_each(sites, position), rows, others)
  read_at = [resolve_positions(target, each, read_position)[:, None] for each in (rows, others)]
  refuse_unreachable(target, addresses, read_at[0])
  names, steps = ordered([[address.name] for address in addresses], order)
  refuse_overwritten_patches(target, addresses, steps, read_at[0], rows.tokens.shape[1])
  readout = Readout(*read_at, *(tokens[:, None] for tokens in _answer_tokens(target, answers, len(rows))))
  measured = patching.measure(
    target, rows.tokens, addresses, steps, readout, corrupted=others.tokens, batch_size=batch_size, mesh=mesh
  )
  if metric == "logit_difference" and (measured.answer == measured.foil).all():
    token = int(measured.answer.flat[0])
    name = token if target.tokenizer is None else repr(target.tokenizer.strings([token])[0])
    raise InversionViewError(
      f"answer and foil are the same in every pair (the first: {name}), so there is no logit difference; "
      "give answers=(answers, foils), or another metric such as kl"
    )
  return effects_of(measured, names, metric)


def ablate(
  target: Target,
  inputs: Inputs,
  sites: "str | Site | Sequence[str | Site]",
  position: "Position | Sequence[Position | None] | None",
  to: str = "mean",
  metric: str = "kl",
  *,
  order: str = "together",
  read_position: Position = -1,
  answers: "tuple[str | int | Tokens, str | int | Tokens] | None" = None,
  data: Inputs | None = None,
  seed: int = 0,
  batch_size: int = 256,
  mesh: jax.sharding.Mesh | None = None,
) -> Effects:
  """How the predictions change when the activations at some sites are replaced by their mean, by another input's, or by zero.

  Args:
    target, sites, order, read_position, batch_size, mesh: as in `patch`.
    inputs: N texts or int[N, T].
    position: as in `patch`; None for all positions, each with the mean at that position.
    to: "mean", "resample" (what it is in another input, drawn at random) or "zero".
    metric: as in `patch`; a logit difference needs `answers`.
    answers: (answers, foils), N tokens each or one for all.
    data: inputs that "mean" and "resample" take activations from; None: these inputs.
    seed: of "resample".

  Raises:
    InversionViewError: as `patch`; `data` that lack a position, or with "zero".
  """
  _check(metric, batch_size)
  if metric == "logit_difference" and answers is None:
    raise InversionViewError("the logit difference of an ablation needs answers=(answers, foils); or take metric='kl'")
  rows = encode_inputs(target, inputs)
  where = _one_position_each(sites, position)
  clean, addresses = rows.tokens, resolve_addresses(target, *where, rows)
  read_at = resolve_positions(target, rows, read_position)[:, None]
  refuse_unreachable(target, addresses, read_at)
  names, steps = ordered([[address.name] for address in addresses], order)
  refuse_overwritten_patches(target, addresses, steps, read_at, clean.shape[1])
  readout = Readout(read_at, None, *(tokens[:, None] for tokens in _answer_tokens(target, answers, len(clean))))
  check_ablation(to)
  if to == "zero" and data is not None:
    raise InversionViewError("ablation to zero takes no data; leave it out, or take to='mean'")
  source = rows if data is None else encode_inputs(target, data)
  theirs = addresses if data is None else resolve_addresses(target, *where, source)
  how: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
  values: dict[str, Any]
  if to == "resample":
    addresses, readout, values = resampled(
      addresses, theirs, rows, source, readout, None if data is None else len(source), seed
    )
  else:
    _refuse_short(theirs, rows, source)
    made = replacement_values(target, source.tokens, theirs, to, padding=source.padding, **how)
    values = {"values": [_as_long(value, clean.shape[1]) for value in made]}
  measured = patching.measure(target, clean, addresses, steps, readout, **values, **how)
  return effects_of(dataclasses.replace(measured, corrupted=None), names, metric)


def resampled(
  addresses: Sequence[patching.Address],
  theirs: Sequence[patching.Address],
  rows: Rows,
  source: Rows,
  readout: Readout,
  others: int | None,
  seed: int,
) -> tuple[list[patching.Address], Readout, dict[str, Any]]:
  """Addresses, readout and inputs of a patch from other inputs that are drawn at random.

  Args:
    addresses, theirs: in the inputs, and in those that are drawn from.
    rows, source: the inputs, and those that are drawn from.
    readout: of the inputs.
    others: how many there are to draw from; None: the inputs themselves, of which none is drawn for itself.
    seed: of the draws.
  """
  row = drawn_rows(len(rows), others, seed, "the ablation")
  if any(address.clean_at is None for address in addresses):
    lengths = np.asarray(source.lengths)[row], np.asarray(rows.lengths)
    if (lengths[0] != lengths[1]).any() or source.tokens.shape[1] != rows.tokens.shape[1]:
      raise InversionViewError(
        "resampling at all positions needs inputs of the same length; give a position, or data of the length of the inputs"
      )
  drawn = [
    dataclasses.replace(one, corrupted_at=None if other.clean_at is None else other.clean_at[row])
    for one, other in zip(addresses, theirs, strict=True)
  ]
  last = np.broadcast_to((np.asarray(source.lengths)[row] - 1)[:, None], readout.clean_at.shape)
  return drawn, dataclasses.replace(readout, corrupted_at=last), {"corrupted": source.tokens[row]}


def _refuse_short(theirs: Sequence[patching.Address], rows: Rows, source: Rows) -> None:
  """Raises `InversionViewError` if means are wanted at all positions, and some position of the inputs is in none of the others."""
  longest = int(np.max(source.lengths))
  if any(address.clean_at is None for address in theirs) and longest < np.max(rows.lengths):
    raise InversionViewError(
      f"the mean at all positions needs data as long as the inputs: the longest has {longest} tokens, the inputs up to {int(np.max(rows.lengths))}"
    )


def _as_long(value: np.ndarray, length: int) -> np.ndarray:
  """float[W] as it is; float[T', W] as float[T, W], with zeros behind the texts."""
  if value.ndim == 1:
    return value
  return np.pad(value[:length], ((0, max(length - len(value), 0)), (0, 0)))


def effects_of(measured: Measured, names: Sequence[str], metric: str, read: int = 0) -> Effects:
  """The `Effects` by one metric at one of the positions that were read (its index among them)."""
  steps = measured.steps[metric][:, :, read]
  total = None if measured.corrupted is None else measured.corrupted[metric][:, read]
  if metric != "logit_difference":
    return Effects(tuple(names), metric, steps[1:], np.zeros(steps.shape[1]), total)
  return Effects(tuple(names), metric, steps[0] - steps[1:], steps[0], None if total is None else steps[0] - total)


def check_ablation(to: str) -> None:
  """Raises `InversionViewError` for anything but "mean", "resample" and "zero"."""
  if to not in ABLATIONS:
    raise one_of("ablation", to, ABLATIONS)


def replacement_values(
  target: Target,
  tokens: np.ndarray,
  addresses: Sequence[patching.Address],
  to: str,
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
  padding: np.ndarray | None = None,
) -> list[np.ndarray]:
  """M of float[W], or float[T, W] for all positions: the mean activation at each address over `tokens`, int32[N, T], or zeros."""
  if to == "zero":
    return [np.zeros(site_shapes.width(target.config, address.site), np.float32) for address in addresses]
  return patching.mean_activations(target, tokens, addresses, batch_size=batch_size, mesh=mesh, padding=padding)


def ordered(groups: Sequence[Sequence[str]], order: str) -> tuple[list[str], np.ndarray]:
  """Names of the steps and bool[S, M], which addresses are replaced in each; a group of addresses is replaced at once.

  Args:
    groups: names of addresses, in the order of the list; M in all.
    order: one of `ORDERS`.
  """
  if order not in ORDERS:
    raise one_of("order", order, ORDERS)
  named = [" ".join(group) for group in groups]
  of_group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
  each = np.arange(len(groups))[:, None] == of_group
  if order == "together":
    return [" ".join(named)], np.ones((1, len(of_group)), bool)
  if order == "each":
    return named, each
  if order == "backward":
    named, each = named[::-1], each[::-1]
  return [named[0], *(f"+ {name}" for name in named[1:])], np.cumsum(each, axis=0) > 0


def _check(metric: str, batch_size: int) -> None:
  if metric not in METRICS:
    raise one_of("metric", metric, METRICS)
  bounds.check(batch_size=batch_size)


def _one_position_each(sites, position) -> tuple[list, list]:
  """-> M sites and M positions."""
  sites = [sites] if isinstance(sites, str | Site) else list(sites)
  if not sites:
    raise InversionViewError("no site to patch; name one, such as a0.0")
  positions = position if isinstance(position, list | tuple) else [position] * len(sites)
  if len(positions) != len(sites):
    raise InversionViewError(f"{len(sites)} sites and {len(positions)} positions: give one position, or one per site")
  return sites, list(positions)


def _answer_tokens(target: Target, answers, count: int) -> tuple[np.ndarray, np.ndarray]:
  """int32[N] twice: answer and foil; -1 for the target's own top token."""
  if answers is None:
    return np.full(count, -1, np.int32), np.full(count, -1, np.int32)
  if not isinstance(answers, tuple) or len(answers) != 2:
    raise InversionViewError("answers must be a tuple (answers, foils), each one token or a list with one per input")

  def column(tokens):
    tokens = to_array(tokens)
    if isinstance(tokens, str) or np.ndim(tokens) == 0:
      return token_ids(target, [tokens], count)[:, 0]
    return token_ids(target, [[token] for token in tokens], count)[:, 0]

  return column(answers[0]), column(answers[1])
