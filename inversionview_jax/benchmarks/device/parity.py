"""Whether this device gives the numbers of the goldens.

An error is the largest difference of an array, relative to the largest of its golden values; of the arrays of one line the worst counts.
Float32 at highest precision has to agree within 1e-5. The default precision of a device (TF32 on GPUs, bfloat16 on TPUs and, for decoders, on CPUs
with AMX) and targets in bfloat16 have bounds of their own, which are what these formats give and no more than a sign that nothing is broken.
"""

from collections.abc import Callable

import jax
import numpy as np

from inversionview_jax.benchmarks.device import golden, observations, searches
from inversionview_jax.benchmarks.device.parts import Record, Settings, short
from inversionview_jax.devices import cpu, parallel
from inversionview_jax.reading import load_reader

Arrays = dict[str, np.ndarray]

HIGHEST = 1e-5
# Ten units in the last place of the factors of a product, which have 10 bits behind the point in TF32 and 7 in bfloat16.
_TF32, _BFLOAT16 = 10 * 2**-10, 10 * 2**-7
_BACKWARD = 5  # gradients pass through each layer twice, and sums over texts cancel
_SAME_SAMPLES = {"highest": 0.95, "default": 0.5}  # share of a preimage's samples that has to be the same
_SIGMAS = 3.0  # of Monte Carlo's own error
_SMALLEST = 1e-2  # a gradient's error is relative to no less than this share of the largest entry of all gradients


def default_bound(decoder: bool = False) -> float:
  """The bound on relative errors at this device's default precision, of a target or of a decoder."""
  platform = jax.default_backend()
  if platform == "cpu":
    return _BFLOAT16 if decoder and cpu.has_amx() else HIGHEST
  return _TF32 if platform in ("gpu", "cuda", "rocm") else _BFLOAT16


def error_of(mine: np.ndarray, theirs: np.ndarray, scale: float = 0.0) -> float:
  """The largest difference of two arrays relative to the largest of `theirs`, or to `scale` if that is larger; inf where they cannot agree."""
  mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
  if mine.shape != theirs.shape or (np.isfinite(mine) != np.isfinite(theirs)).any():
    return np.inf
  finite = np.isfinite(theirs)
  if not finite.any():
    return 0.0
  largest = max(np.abs(theirs[finite]).max(), scale, 1e-30)
  return float(np.abs(mine[finite] - theirs[finite]).max() / largest)


def worst(mine: Arrays, theirs: Arrays, scale: float = 0.0) -> tuple[float, str]:
  """The largest error over arrays, and the name of the one that has it; inf for arrays that either side lacks."""
  if not theirs or set(mine) - set(theirs):
    return np.inf, "no golden numbers"
  errors = {name: error_of(mine[name], theirs[name], scale) for name in mine}
  name = max(errors, key=errors.__getitem__)
  return errors[name], name


def isolated(record: Record, names: tuple[str, ...], check: Callable[[], None]) -> None:
  """Runs a check; if it fails, its lines are red and the next check goes on."""
  try:
    check()
  except Exception as error:
    done = {line["name"] for line in record.data["lines"]}
    for name in names:
      if name not in done:
        record.line(name, None, None, False, short(error))


def highest(record: Record, settings: Settings) -> None:
  """Everything but preimages, in float32 at highest precision."""
  goldens = golden.load(settings.golden)
  with jax.default_matmul_precision("highest"):
    _forward(record, goldens, "", HIGHEST, HIGHEST)
    _gradients(record, goldens, "", HIGHEST)


def lower(record: Record, settings: Settings) -> None:
  """The same at this device's default precision, and with targets in bfloat16."""
  goldens = golden.load(settings.golden)
  _forward(record, goldens, " (default)", default_bound(), default_bound(decoder=True))
  _gradients(record, goldens, " (default)", _BACKWARD * default_bound(decoder=True))
  _preimage(record, goldens, "addition", " (default)", "default", default_bound())
  _forward(record, goldens, " (bfloat16)", _BFLOAT16, None, "bfloat16")


def _forward(
  record: Record, goldens: Arrays, suffix: str, bound: float, decoder_bound: float | None, dtype=None
) -> None:
  """Lines on forward passes: of targets, and with `decoder_bound` of decoders."""

  def compare(name: str, mine: Arrays) -> None:
    error, where = worst(mine, golden.group(goldens, name))
    record.line(f"{name}{suffix}", error, bound, error <= bound, where)

  def logits_and_captures() -> None:
    logits, captures = observations.forward(dtype)
    compare("logits", logits)
    compare("captures", captures)

  def cached() -> None:
    assert decoder_bound is not None
    observed = observations.cached_step()
    for key, title in (("shipped", "cached step"), ("cross", "cached step, cross-attention")):
      whole, steps = observed[key]
      expected = golden.group(goldens, "cached step")[key]
      error = max(error_of(steps, whole), error_of(whole, expected), error_of(steps, expected))
      record.line(f"{title}{suffix}", error, decoder_bound, error <= decoder_bound)

  isolated(record, (f"logits{suffix}", f"captures{suffix}"), logits_and_captures)
  isolated(record, (f"edits{suffix}",), lambda: compare("edits", observations.edits(dtype)))
  isolated(record, (f"distances{suffix}",), lambda: compare("distances", observations.distances(dtype)))
  if decoder_bound is not None:
    isolated(record, (f"cached step{suffix}", f"cached step, cross-attention{suffix}"), cached)


def _gradients(record: Record, goldens: Arrays, suffix: str, bound: float) -> None:
  names = (f"gradients{suffix}", *(() if suffix else ("draws",)))

  def check() -> None:
    mine, draws = observations.gradients()
    theirs = golden.group(goldens, "gradients")
    entries = [array for name, array in theirs.items() if not name.endswith("/norm") and name != "loss"]
    scale = _SMALLEST * max(np.abs(array).max() for array in entries)
    error, where = worst(mine, theirs, scale)
    record.line(names[0], error, bound, error <= bound, where)
    if not suffix:
      same = worst(draws, golden.group(goldens, "draws"))[0] == 0
      record.line("draws", None, None, same, "sites and positions of a training step")

  isolated(record, names, check)


def _preimage(record: Record, goldens: Arrays, name: str, suffix: str, precision: str, bound: float) -> None:
  """One line: how many samples are those of the golden preimage, and the distances of the golden samples as this device measures them."""

  def check() -> None:
    counts, errors, total = [], [], 0
    for number, mine in enumerate(searches.preimages(name)):
      theirs = searches.Drawn(**golden.group(goldens, f"preimage/{name}/{number}"))
      same, difference = searches.matching(mine, theirs)
      again = searches.measured_again(name, searches.QUERIES[name][number], theirs.tokens)
      scale = float(theirs.distance[np.isfinite(theirs.distance)].max())
      errors += [difference / scale, error_of(again, theirs.distance)]
      counts.append(same)
      total += len(theirs.distance)
    share, error = sum(counts) / total, max(errors)
    note = f"{sum(counts)} of {total} samples are the same"
    record.line(f"preimage, {name}{suffix}", error, bound, error <= bound and share >= _SAME_SAMPLES[precision], note)

  isolated(record, (f"preimage, {name}{suffix}",), check)


def search(record: Record, settings: Settings) -> None:
  """Preimages of readers, exact ones and by Monte Carlo, in float32 at highest precision."""
  goldens = golden.load(settings.golden)

  def exact() -> None:
    mine, theirs = searches.enumerated(), searches.Enumerated(**golden.group(goldens, "exact"))
    low, _, high = np.moveaxis(theirs.counts, 1, 0)
    outside = int(((mine.counts[:, 1] < low) | (mine.counts[:, 1] > high)).sum())
    error = error_of(mine.distance, theirs.distance)
    members = " and ".join(f"{count:,} (golden: {other:,})" for count, other in zip(mine.members, theirs.members))
    note = f"{members} of 810,000 inputs inside" + (
      f"; {outside} groups differ by more than rounding" if outside else ""
    )
    record.line("exact preimages", error, HIGHEST, error <= HIGHEST and not outside, note)

  def monte_carlo() -> None:
    found = searches.monte_carlo()
    theirs = searches.Enumerated(**golden.group(goldens, "exact"))
    bits = -np.log2(theirs.members[0] / (theirs.counts.shape[-1] * searches.BLOCK))
    inside = sum(sample.inside for sample in found.samples)
    off = np.inf if found.bits is None else abs(found.bits - bits) / max(found.bits_error or 0.0, 1e-9)
    note = (
      f"{inside:,} inside epsilon, {found.bits:.3f} bits of {bits:.3f}, error {found.bits_error:.3f}"
      if found.bits
      else found.problem
    )
    green = bool(found.converged) and inside >= 1024 and off <= _SIGMAS
    record.line("Monte Carlo preimage", off, _SIGMAS, green, note + "; in units of its own error")

  with jax.default_matmul_precision("highest"):
    for name in searches.QUERIES:
      _preimage(record, goldens, name, "", "highest", HIGHEST)
    isolated(record, ("exact preimages",), exact)
    isolated(record, ("Monte Carlo preimage",), monte_carlo)


def devices(record: Record, settings: Settings) -> None:
  """The same preimage on one device and on all of them."""
  del settings
  name, count = "one device and all", len(jax.devices())

  def check() -> None:
    if count == 1:
      record.line(name, None, None, True, "this machine has one device: nothing to compare")
      return
    everywhere = load_reader("addition", mesh=parallel.make_mesh())
    samples = 64 * count
    error, same, total = 0.0, 0, 0
    for one, every in zip(
      searches.preimages("addition", samples), searches.preimages("addition", samples, everywhere), strict=True
    ):
      matched, difference = searches.matching(every, one)
      error = max(error, difference / float(one.distance[np.isfinite(one.distance)].max()))
      same, total = same + matched, total + len(one.distance)
    green = error <= HIGHEST and same >= _SAME_SAMPLES["highest"] * total
    record.line(name, error, HIGHEST, green, f"{count} devices; {same} of {total} samples are the same")

  with jax.default_matmul_precision("highest"):
    isolated(record, (name,), check)
