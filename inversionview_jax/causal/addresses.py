"""Where: texts as token ids, positions in every row, and places for `patching`, looked up and checked.

Shapes: N inputs, T tokens, Q positions that are read, K tokens asked about.
"""

import operator
from collections.abc import Sequence

import numpy as np

from inversionview_jax import sites
from inversionview_jax.causal.patching import Place
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target


def as_tokens(target: Target, inputs) -> np.ndarray:
  """Texts or token ids -> int32[N, T], checked."""
  if isinstance(inputs, str):
    raise InversionViewError(f"inputs are a list of texts, not one text: write [{inputs!r}]")
  if not isinstance(inputs, np.ndarray) and len(inputs) and all(isinstance(text, str) for text in inputs):
    if target.tokenizer is None:
      raise InversionViewError("this target came without a tokenizer: give token ids, int[N, T]")
    inputs = target.tokenizer.encode_batch(inputs)
  return target.check_tokens(inputs)


def places_of(target: Target, names, positions, clean, corrupted=None) -> list[tuple[str, Place]]:
  """(name, `Place`) for each site and position, looked up in the clean inputs and, where they are given, in the corrupted ones.

  Raises:
    InversionViewError: an unknown site or position, two of one place, or all positions of pairs that differ in length.
  """
  places, found = [], {}

  def both(position):
    at = positions_of(target, clean, position)
    return at, None if corrupted is None else positions_of(target, corrupted, position)

  for name, position in zip(names, positions, strict=True):
    site = target.site(name)
    if position is None:
      _refuse_unequal(target, site, clean, corrupted)
      places.append((site.short, Place(site, None)))
      continue
    key = id(position) if isinstance(position, np.ndarray) else (type(position), position)
    if key not in found:  # of many heads at one position it is looked up once
      found[key] = both(position)
    label = "..." if isinstance(position, np.ndarray) else position
    places.append((f"{site.short}@{label}", Place(site, *found[key])))
  _refuse_overlap(places)
  return places


def positions_of(target: Target, tokens: np.ndarray, where) -> np.ndarray:
  """int32[N]: a position in every row; see `patch`.

  Raises:
    InversionViewError: out of range, on padding, or a label that a row does not have.
  """
  lengths = _lengths(target, tokens)
  if isinstance(where, str):
    if (task := target.resolve_task()) is None:
      raise InversionViewError(
        f"position {where!r}: this target belongs to no task whose labels are known; give an index"
      )
    return task.positions(tokens, where)
  try:
    at = np.asarray(where if isinstance(where, np.ndarray) else operator.index(where))
  except TypeError:
    raise InversionViewError(
      f"position {where!r} is neither an index, a label, nor an array of an index per input"
    ) from None
  if at.shape not in ((), (len(tokens),)) or not np.issubdtype(at.dtype, np.integer):
    raise InversionViewError(
      f"positions must be one index or one per input ({len(tokens)}), got {at.dtype}{list(at.shape)}"
    )
  at = np.broadcast_to(at, len(tokens))
  wrong = (at < -lengths) | (at >= lengths)
  if wrong.any():
    row = int(np.argmax(wrong))
    raise InversionViewError(
      f"position {at[row]} is out of range: input {row} has the positions 0 to {lengths[row] - 1}"
    )
  return (at % lengths).astype(np.int32)


def _lengths(target: Target, tokens: np.ndarray) -> np.ndarray:
  """int64[N]: tokens of each text, without padding and end-of-sequence behind it."""
  if target.tokenizer is None:
    return np.full(len(tokens), tokens.shape[1])
  used = (tokens != target.tokenizer.pad_id) & (tokens != target.tokenizer.eos_id)
  return tokens.shape[1] - np.argmax(used[:, ::-1], axis=1)


def _refuse_unequal(target: Target, site: Site, clean, corrupted) -> None:
  if corrupted is None:
    return
  lengths = _lengths(target, clean), _lengths(target, corrupted)
  unequal = lengths[0] != lengths[1]
  if unequal.any() or clean.shape != corrupted.shape:
    row = int(np.argmax(unequal))
    raise InversionViewError(
      f"{site} at all positions needs pairs of the same length; pair {row} has {lengths[0][row]} and {lengths[1][row]} tokens "
      f"(in arrays of {clean.shape[1]} and {corrupted.shape[1]})"
    )


def _refuse_overlap(places: Sequence[tuple[str, Place]]) -> None:
  """Two patches of one place: one of them would silently do nothing."""
  for i, (name, place) in enumerate(places):
    for other_name, other in places[:i]:
      if _stream(place.site) == _stream(other.site) and (
        place.clean_at is None or other.clean_at is None or (place.clean_at == other.clean_at).any()
      ):
        both = " and ".join(dict.fromkeys((other_name, name)))
        raise InversionViewError(f"two patches of one place, {both}: one of them would touch nothing; keep one")


def refuse_unreachable(target: Target, places: Sequence[tuple[str, Place]], read: np.ndarray) -> None:
  """A patch from which nothing leads to the prediction that is read, int32[N, Q]: it would silently do nothing.

  Activations flow to later positions through the attention of a later layer only.
  """
  for name, place in places:
    if place.clean_at is None:
      continue
    site, ahead = place.site, read - place.clean_at[:, None]
    attended = site.layer is None or site.layer < target.config.n_layers - 1 or site.kind == "pre"
    if not ((ahead == 0) | (ahead > 0) & attended).any():
      raise InversionViewError(
        f"{name} cannot reach the prediction that is read, at position {read.flat[0]}: "
        + ("it comes later" if (ahead < 0).any() else "no attention follows it")
        + "; read at that position, or patch an earlier one"
      )


def _stream(site: Site) -> Site:
  """The residual stream before a layer is that after the layer before it."""
  return sites.Site("post", site.layer - 1) if site.kind == "pre" and site.layer else site


def token_ids(target: Target, given, count: int) -> np.ndarray:
  """Tokens, as strings or ids, K of them for all inputs or [N, K] -> int32[N, K].

  Raises:
    InversionViewError: a token that is not in the vocabulary, or another number of rows.
  """
  given = np.asarray(given)
  if given.dtype.kind == "U":
    if target.tokenizer is None:
      raise InversionViewError(f"token {str(given.flat[0])!r}: this target came without a tokenizer; give ids")
    ids = {token: i for i, token in enumerate(target.tokenizer.strings(range(target.config.vocab_size)))}
    if wrong := [str(token) for token in given.flat if str(token) not in ids]:
      raise InversionViewError(f"{wrong[0]!r} is not one token of the target's vocabulary")
    given = np.vectorize(ids.__getitem__, otypes=[np.int32])(given)
  if not np.issubdtype(given.dtype, np.integer) or given.ndim not in (1, 2) or not given.size:
    raise InversionViewError(
      f"tokens must be strings or ids, K of them or [N, K]; got {given.dtype}{list(given.shape)}"
    )
  if given.ndim == 2 and len(given) != count:
    raise InversionViewError(
      f"tokens for {len(given)} inputs where there are {count}; give as many, or one list for all"
    )
  if wrong := [int(token) for token in given.flat if not 0 <= token < target.config.vocab_size]:
    raise InversionViewError(f"token id {wrong[0]} is outside the vocabulary of {target.config.vocab_size}")
  return np.broadcast_to(given, (count, given.shape[-1])).astype(np.int32)
