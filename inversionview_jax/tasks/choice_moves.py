"""Moves over inputs that a few choices determine, each among a fixed number of values: one choice becomes another, and the input is written anew.

Shapes: B rows, T tokens, C choices.
"""

import math
from collections.abc import Callable, Mapping

from inversionview_jax.tasks.moves import Array, Move, choice, symmetric


class ChoiceMoves:
  """Moves and log prior of inputs that are determined by independent uniform choices.

  Attributes:
    sizes: name of each choice -> number of its values.
    read: int32[B, T] -> int32[B, C], the choices of each input, in the order of `sizes`; of a text that is no input, anything.
    write: int32[B, C] -> int32[B, T], the inputs with these choices, each from 0 to its size - 1; NumPy or JAX arrays, as in `read`.
    allowed: int32[B, C] -> bool[B], the combinations that are inputs; None: all.
    inputs: how many are allowed.
  """

  def __init__(
    self,
    sizes: Mapping[str, int],
    read: Callable[[Array], Array],
    write: Callable[[Array], Array],
    allowed: Callable[[Array], Array] | None = None,
    inputs: int | None = None,
  ):
    self.sizes, self.read, self.write, self.allowed = dict(sizes), read, write, allowed
    self.inputs = math.prod(self.sizes.values()) if inputs is None else inputs

  def log_prior(self, tokens: Array) -> Array:
    """float[B]: uniform over the inputs, -inf for every other text; an input is what its choices write."""
    xp = tokens.__array_namespace__()
    choices = xp.clip(self.read(tokens), 0, xp.asarray(list(self.sizes.values())) - 1)
    right = (self.write(choices) == tokens).all(axis=1)
    if self.allowed is not None:
      right = right & self.allowed(choices)
    return xp.where(right, -math.log(self.inputs), -math.inf)

  def all(self) -> tuple[Move, ...]:
    """Another value of each choice that has one, and another input. Each is symmetric, as the prior is uniform."""
    each = [
      Move(f"another {name}", 1, self._another(column, size))
      for column, (name, size) in enumerate(self.sizes.items())
      if size > 1
    ]
    return (*each, Move("redraw", len(self.sizes), self.redraw))

  def redraw(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """All choices anew."""
    xp = tokens.__array_namespace__()
    return self.written(choice(uniforms, xp.asarray(list(self.sizes.values()))), tokens)

  def written(self, choices: Array, tokens: Array) -> tuple[Array, Array]:
    """The proposal with these choices, int32[B, C], and the ratio of a symmetric move from `tokens`."""
    return self.write(choices).astype(tokens.dtype), symmetric(tokens)

  def _another(self, column: int, size: int) -> Callable[..., tuple[Array, Array]]:
    """One choice becomes another of its values."""

    def propose(uniforms, tokens):
      xp = tokens.__array_namespace__()
      choices = self.read(tokens)
      new = (choices + 1 + choice(uniforms[:, :1], size - 1)) % size
      return self.written(xp.where(xp.arange(len(self.sizes)) == column, new, choices), tokens)

    return propose
