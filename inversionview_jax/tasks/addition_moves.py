"""Moves over sums, and their prior: the operands' digits change, and the answer is written anew.

Shapes: B rows, T tokens.
"""

import math

import numpy as np

from inversionview_jax.tasks.moves import Array, Move, choice, ranks, symmetric

_DIGITS = np.array([1, 2, 3, 5, 6, 7])  # where the operands' digits are: F1 F2 F3 S1 S2 S3


class SumMoves:
  """Moves and log prior of three-digit sums.

  Attributes:
    ids: token ids of BOS, "+", "=", EOS and PAD; digits are their own ids.
  """

  def __init__(self, ids: tuple[int, int, int, int, int]):
    self.ids = ids

  def write(self, digits: Array) -> Array:
    """The sum of two operands as tokens: int32[B, 6], in the order of `_DIGITS` -> int32[B, 14]."""
    xp = digits.__array_namespace__()
    f1, f2, f3, s1, s2, s3 = (digits[:, i] for i in range(6))
    bos, plus, equals, eos, pad = (xp.full_like(f1, token) for token in self.ids)
    ones = f3 + s3
    tens = f2 + s2 + ones // 10
    hundreds = f1 + s1 + tens // 10
    long = (hundreds // 10, hundreds % 10, tens % 10, ones % 10, eos)
    short = (*long[1:], pad)
    answer = [xp.where(hundreds >= 10, a, b) for a, b in zip(long, short, strict=True)]
    return xp.stack([bos, f1, f2, f3, plus, s1, s2, s3, equals, *answer], axis=1)

  def log_prior(self, tokens: Array, inputs: int) -> Array:
    """float[B]: uniform over all right sums of two three-digit numbers, -inf for every other text."""
    xp = tokens.__array_namespace__()
    digits = tokens[:, _DIGITS]
    right = ((digits >= 0) & (digits <= 9)).all(axis=1) & (digits[:, 0] > 0) & (digits[:, 3] > 0)
    right = right & (self.write(xp.clip(digits, 0, 9)) == tokens).all(axis=1)
    return xp.where(right, -math.log(inputs), -math.inf)

  def all(self) -> tuple[Move, ...]:
    """All kinds. Each is symmetric, as the prior is uniform."""
    return (
      Move("redraw digits", 13, self.redraw_digits, 6.0),
      Move("exchange operands", 1, self.exchange_operands, 1.0),
      Move("keep a column's sum", 2, self.keep_sum, 2.0),
      Move("redraw", 6, self.redraw, 1.0),
    )

  def _written(self, digits: Array, tokens: Array) -> tuple[Array, Array]:
    return self.write(digits).astype(tokens.dtype), symmetric(tokens)

  def redraw_digits(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """One to three of the six digits, each among all ten."""
    xp = tokens.__array_namespace__()
    changed = ranks(uniforms[:, 1:7]) <= choice(uniforms[:, :1], 3)
    return self._written(xp.where(changed, choice(uniforms[:, 7:13], 10), tokens[:, _DIGITS]), tokens)

  def exchange_operands(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """The first operand becomes the second, and the second the first."""
    del uniforms
    return self._written(tokens[:, np.roll(_DIGITS, 3)], tokens)

  def keep_sum(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """In one column, one digit grows by what the other loses; no change where a digit would leave 0 ... 9."""
    xp = tokens.__array_namespace__()
    digits, column, by = tokens[:, _DIGITS], choice(uniforms[:, :1], 3), choice(uniforms[:, 1:2], 19) - 9
    at = xp.arange(6)[None, :]
    new = digits + by * ((at == column).astype(xp.int32) - (at == column + 3).astype(xp.int32))
    fits = ((new >= 0) & (new <= 9)).all(axis=1)[:, None]
    return self._written(xp.where(fits, new, digits), tokens)

  def redraw(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """Another sum, drawn from the prior."""
    xp = tokens.__array_namespace__()
    low = xp.asarray([1, 0, 0, 1, 0, 0])[None, :]
    return self._written((low + choice(uniforms, 10 - low)).astype(tokens.dtype), tokens)
