"""Resolves texts, sites and positions to arrays.

Shapes: N inputs, T tokens, Q positions whose prediction is read, K tokens whose logits are read.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias, cast

import jax
import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.targets.edits import refuse_overlap
from inversionview_jax.targets.positions import Position, resolve_positions, text_lengths
from inversionview_jax.targets.target import is_text

Inputs: TypeAlias = Sequence[str] | np.ndarray | jax.Array
"""N texts, or token ids int[N, T]."""
Tokens: TypeAlias = Sequence[str] | Sequence[int] | np.ndarray
"""K tokens for all inputs, as strings or ids, or [N, K]."""


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


def encode_inputs(target: Target, inputs: Inputs) -> np.ndarray:
  """Texts (with BOS, without EOS) or token ids -> int32[N, T]; raises `InversionViewError` for what is neither, or does not fit the target."""
  if isinstance(inputs, str):
    raise InversionViewError(f"inputs are a list of texts, not one text: write [{inputs!r}]")
  if is_text(inputs):
    return target.encode(cast(Sequence[str], inputs))
  return target.check_tokens(cast(np.ndarray, inputs))


def resolve_addresses(
  target: Target,
  sites: Sequence[str | Site],
  positions: Sequence[Position | None],
  clean: np.ndarray,
  corrupted: np.ndarray | None = None,
) -> list[Address]:
  """An address for each site and position, looked up in the clean inputs and, where there are any, in the corrupted ones.

  Args:
    target: whose sites, and whose task knows the labels.
    sites: M of them.
    positions: M of them; None for all positions.
    clean, corrupted: int32[N, T].

  Raises:
    InversionViewError: an unknown site or position, two of the same activation, or all positions of pairs that differ in length.
  """
  addresses, resolved = [], {}
  for name, position in zip(sites, positions, strict=True):
    site = target.site(name)
    if position is None:
      _refuse_unequal_lengths(target, site, clean, corrupted)
      addresses.append(Address(site.short, site, None))
      continue
    key = id(position) if isinstance(position, np.ndarray) else (type(position), position)
    if key not in resolved:  # once for many heads at one position
      resolved[key] = [
        None if tokens is None else resolve_positions(target, tokens, position) for tokens in (clean, corrupted)
      ]
    label = "..." if isinstance(position, np.ndarray) else position
    addresses.append(Address(f"{site.short}@{label}", site, *resolved[key]))
  refuse_overlap("patches", [(address.name, address.site, address.clean_at) for address in addresses])
  return addresses


def _refuse_unequal_lengths(target: Target, site: Site, clean: np.ndarray, corrupted: np.ndarray | None) -> None:
  if corrupted is None:
    return
  lengths = [text_lengths(target.tokenizer, tokens) for tokens in (clean, corrupted)]
  unequal = lengths[0] != lengths[1]
  if unequal.any() or clean.shape != corrupted.shape:
    row = int(np.argmax(unequal))
    raise InversionViewError(
      f"{site} at all positions needs pairs of the same length; pair {row} has {lengths[0][row]} and {lengths[1][row]} tokens "
      f"(in arrays of {clean.shape[1]} and {corrupted.shape[1]})"
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
    attended = site.layer is None or site.layer < target.config.n_layers - 1 or site.kind == "pre"
    if not ((distance == 0) | (distance > 0) & attended).any():
      raise InversionViewError(
        f"{address.name} cannot reach the prediction that is read, at position {read_at.flat[0]}: "
        + ("it comes later" if (distance < 0).any() else "no attention follows it")
        + "; read at that position, or patch an earlier one"
      )


def token_ids(target: Target, tokens: Tokens, count: int) -> np.ndarray:
  """Tokens as strings or ids, K of them for all inputs or [N, K] -> int32[N, K], where N = `count`.

  Raises:
    InversionViewError: a token that is not in the vocabulary, or another number of rows.
  """
  ids = np.asarray(tokens)
  if ids.dtype.kind == "U":
    if target.tokenizer is None:
      raise InversionViewError(f"token {str(ids.flat[0])!r}: this target came without a tokenizer; give ids")
    vocabulary = {token: i for i, token in enumerate(target.tokenizer.strings(range(target.config.vocab_size)))}
    if unknown := [str(token) for token in ids.flat if str(token) not in vocabulary]:
      raise InversionViewError(f"{unknown[0]!r} is not one token of the target's vocabulary")
    ids = np.vectorize(vocabulary.__getitem__, otypes=[np.int32])(ids)
  if not np.issubdtype(ids.dtype, np.integer) or ids.ndim not in (1, 2) or not ids.size:
    raise InversionViewError(f"tokens must be strings or ids, K of them or [N, K]; got {ids.dtype}{list(ids.shape)}")
  if ids.ndim == 2 and len(ids) != count:
    raise InversionViewError(f"tokens for {len(ids)} inputs where there are {count}; give as many, or one list for all")
  if outside := [int(token) for token in ids.flat if not 0 <= token < target.config.vocab_size]:
    raise InversionViewError(f"token id {outside[0]} is outside the vocabulary of {target.config.vocab_size}")
  return np.broadcast_to(ids, (count, ids.shape[-1])).astype(np.int32)
