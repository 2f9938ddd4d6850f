"""Resolves texts, sites and positions to arrays.

Shapes: N inputs, T tokens, Q positions whose prediction is read, K tokens whose logits are read.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.targets.arrays import to_array
from inversionview_jax.targets.edits import refuse_overlap
from inversionview_jax.targets.inputs import Rows, resolve_inputs
from inversionview_jax.targets.overwritten import refuse_overwritten
from inversionview_jax.targets.positions import Position, resolve_positions

Inputs: TypeAlias = Sequence[str] | np.ndarray | jax.Array
"""N texts, or token ids int[N, T]."""
Tokens: TypeAlias = Sequence[str | int] | np.ndarray
"""K tokens for all inputs, as strings or ids, or [N, K]."""


# Kinds that reach other positions through the attention of their own layer.
_READ_BY_ATTENTION = ("embed", "pos_embed", "pre", "ln1", "ln1_scale", "k", "rot_k", "v")


@dataclasses.dataclass(frozen=True, eq=False)
class Address:
  """A site and its position in every input: where an activation is replaced.

  Attributes:
    name: such as "a0.3@=".
    site: a site with one vector per position.
    clean_at: int32[N], the position in each input; None for all of them.
    corrupted_at: int32[N], the position of the replacement in the corrupted input; None without one, or for all positions.
  """

  name: str
  site: Site
  clean_at: np.ndarray | None
  corrupted_at: np.ndarray | None = None


def encode_inputs(target: Target, inputs: Inputs) -> Rows:
  """Texts (with BOS, without EOS) or token ids, N of them; raises `InversionViewError` for what is neither, or does not fit the target."""
  if isinstance(inputs, str):
    raise InversionViewError(f"inputs are a list of texts, not one text: write [{inputs!r}]")
  return resolve_inputs(target, inputs)


def resolve_addresses(
  target: Target,
  sites: Sequence[str | Site],
  positions: Sequence[Position | None],
  clean: Rows,
  corrupted: Rows | None = None,
) -> list[Address]:
  """An address for each site and position, looked up in the clean inputs and, where there are any, in the corrupted ones.

  Args:
    target: whose sites, and whose task knows the labels.
    sites: M of them.
    positions: M of them; None for all positions.
    clean, corrupted: N inputs.

  Raises:
    InversionViewError: an unknown site or position, two of the same activation, or all positions of pairs that differ in length.
  """
  addresses, resolved = [], {}
  for name, position in zip(sites, positions, strict=True):
    site = target.site(name)
    if site.kind == "expert":
      raise InversionViewError(f"{site} is no site of patches and ablations here; edit it with Target.run")
    if position is None:
      _refuse_unequal_lengths(site, clean, corrupted)
      addresses.append(Address(site.short, site, None))
      continue
    single = isinstance(position, str | int | np.integer)
    key: Any = (type(position), position) if single else id(position)
    if key not in resolved:  # once for many heads at one position
      resolved[key] = [
        None if rows is None else resolve_positions(target, rows, position) for rows in (clean, corrupted)
      ]
    label = position if single else "..."
    addresses.append(Address(f"{site.short}@{label}", site, *resolved[key]))
  refuse_overlap("patches", [(address.name, address.site, address.clean_at) for address in addresses])
  return addresses


def _refuse_unequal_lengths(site: Site, clean: Rows, corrupted: Rows | None) -> None:
  if corrupted is None:
    return
  lengths = [np.asarray(rows.lengths) for rows in (clean, corrupted)]
  unequal = lengths[0] != lengths[1]
  if unequal.any() or clean.tokens.shape != corrupted.tokens.shape:
    row = int(np.argmax(unequal))
    raise InversionViewError(
      f"{site} at all positions needs pairs of the same length; pair {row} has {lengths[0][row]} and {lengths[1][row]} tokens "
      f"(in arrays of {clean.tokens.shape[1]} and {corrupted.tokens.shape[1]})"
    )


def refuse_unreachable(target: Target, addresses: Sequence[Address], read_at: np.ndarray) -> None:
  """Raises `InversionViewError` for a patch with no path to the prediction that is read, which could have no effect.

  An activation reaches later positions only through the attention of a later layer.

  Args:
    target: whose number of layers counts.
    addresses: of the patches.
    read_at: int32[N, Q], positions whose prediction is read.
  """
  for address in addresses:
    if address.clean_at is None:
      continue
    site, distance = address.site, read_at - address.clean_at[:, None]
    attended = site.kind in _READ_BY_ATTENTION or (site.layer is not None and site.layer < target.config.n_layers - 1)
    if not ((distance == 0) | (distance > 0) & attended).any():
      raise InversionViewError(
        f"{address.name} cannot reach the prediction that is read, at position {read_at.flat[0]}: "
        + ("it comes later" if (distance < 0).any() else "no attention follows it")
        + "; read at that position, or patch an earlier one"
      )


def refuse_overwritten_patches(
  target: Target, addresses: Sequence[Address], steps: np.ndarray, read_at: np.ndarray, length: int
) -> None:
  """Raises `InversionViewError` if in some step a patch has no effect because another one replaces all that it reaches.

  Args:
    target: whose architecture counts.
    addresses: M of them.
    steps: bool[S, M], which are replaced together.
    read_at: int32[N, Q], positions whose prediction is read.
    length: T, of the clean inputs.
  """
  read = (read_at[:, :, None] == np.arange(length)).any(axis=1)
  named = [(address.name, address.site, address.clean_at) for address in addresses]
  refuse_overwritten("patches", named, steps, read, target.config)


def token_ids(target: Target, tokens: Tokens, count: int) -> np.ndarray:
  """Tokens as strings or ids, K of them for all inputs or [N, K] -> int32[N, K], where N = `count`.

  Raises:
    InversionViewError: a token that is not in the vocabulary, a string that several tokens have, or another number of rows.
  """
  named = _lists(to_array(tokens))
  if _any_text(named):
    if target.tokenizer is None and not target.outputs:
      raise InversionViewError(f"token {next(_texts(named))!r}: this target came without a tokenizer; give ids")
    named = _looked_up(named, _ids_of_strings(target))
  try:
    ids = np.asarray(named)
  except ValueError:  # lists of different lengths
    ids = np.empty(0)
  if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (1, 2) or not ids.size:
    raise InversionViewError(f"tokens must be strings or ids, K of them or [N, K]; got {ids.dtype}{list(ids.shape)}")
  if ids.ndim == 2 and len(ids) != count:
    raise InversionViewError(f"tokens for {len(ids)} inputs where there are {count}; give as many, or one list for all")
  if outside := [int(token) for token in ids.flat if not 0 <= token < target.config.outputs]:
    raise InversionViewError(f"token id {outside[0]} is outside the vocabulary of {target.config.outputs}")
  return np.broadcast_to(ids, (count, ids.shape[-1])).astype(np.int32)


def _lists(tokens: Any) -> Any:
  """Arrays as lists, in which strings and ids may be mixed without one becoming the other."""
  if isinstance(tokens, list | tuple):
    return [_lists(token) for token in tokens]
  return _lists(tokens.tolist()) if isinstance(tokens, np.ndarray | jax.Array) and tokens.ndim else tokens


def _texts(tokens: Any) -> Iterator[str]:
  if isinstance(tokens, list):
    for token in tokens:
      yield from _texts(token)
  elif isinstance(tokens, str):
    yield str(tokens)


def _any_text(tokens: Any) -> bool:
  return next(_texts(tokens), None) is not None


def _looked_up(tokens: Any, ids_of: Mapping[str, list[int]]) -> Any:
  """The same with the id in place of each string."""
  if isinstance(tokens, list):
    return [_looked_up(token, ids_of) for token in tokens]
  if not isinstance(tokens, str):
    return tokens
  known = ids_of.get(tokens, [])
  if not known:
    raise InversionViewError(f"{str(tokens)!r} is not one token of the target's vocabulary")
  if len(known) > 1:
    ids = ", ".join(map(str, known[:4])) + (", ..." if len(known) > 4 else "")
    raise InversionViewError(f"{str(tokens)!r} is the text of {len(known):,} tokens (ids {ids}): give an id")
  return known[0]


def _ids_of_strings(target: Target) -> dict[str, list[int]]:
  """Text of a token -> the ids that have it; byte tokens only where no other has it, and special tokens also as they are spelled."""
  if target.outputs or target.config.vocab_out:  # of which the logits are, not of tokens
    return {name: [number] for number, name in enumerate(target.outputs)}
  tokenizer = target.require_tokenizer()
  ids: dict[str, list[int]] = {}
  bytes_of: dict[str, list[int]] = {}
  size = min(tokenizer.vocab_size, target.config.vocab_size)
  is_byte = getattr(tokenizer, "is_byte", lambda token: False)
  for token, text in enumerate(tokenizer.strings(range(size))):
    (bytes_of if is_byte(token) else ids).setdefault(text, []).append(token)
  for text, tokens in bytes_of.items():
    ids.setdefault(text, tokens)
  for token, text in getattr(tokenizer, "spelled", dict)().items():
    if token < size:
      ids.setdefault(text, [token])
  return ids
