"""Moves of Monte Carlo over texts whose prior is a language model: which tokens of each text are drawn anew, from some position on.

All texts of a sweep are changed at one position i, so that what the model computed for the tokens before it serves again; each text has a
kind of move of its own. Tokens are drawn from the model's own conditionals, p(token | tokens before it), which cancels them in the
Metropolis-Hastings ratio: what is left are the tokens behind those that were drawn, which stay, under the new and the old text.

Shapes: N texts, C positions (BOS and text), K kinds of moves.
"""

import flax.struct
import jax
import jax.numpy as jnp

# "recompute" changes nothing, and is how what a sweep keeps for each text is made.
KINDS = ("recompute", "replace", "phrase", "end", "insert", "delete")
RECOMPUTE, REPLACE, PHRASE, END, INSERT, DELETE = range(len(KINDS))
_PHRASE = (2, 4)  # tokens of a phrase, from and to
UNIFORMS = 2  # of `plan`, for each text


@flax.struct.dataclass
class Plan:
  """What happens to N texts from position i on.

  Attributes:
    given: int32[N, C], the new text where it is not drawn.
    length: int32[N], positions of the new text, BOS included.
    drawn: int32[N], the first position behind those that are drawn, which begin at i; i where none is.
    other: bool[N], whether the first drawn token must differ from the one that was there.
    kept, kept_before: int32[N], from which position on the tokens of the new and of the old text are the same ones.
    valid: bool[N], whether this move is possible; without it the text must stay.
  """

  given: jax.Array
  length: jax.Array
  drawn: jax.Array
  other: jax.Array
  kept: jax.Array
  kept_before: jax.Array
  valid: jax.Array


def plan(
  kind: jax.Array, at: jax.Array, uniforms: jax.Array, tokens: jax.Array, length: jax.Array, lengths: tuple[int, int]
) -> Plan:
  """The plan of a sweep; with the ratio of `log_ratio`, moves leave a model's law over texts of each length, and all lengths, as they are.

  A move back has the same kind (of "insert", "delete") at the same position, and is as probable. The lengths that "end" chooses among
  depend on i alone.

  Args:
    kind: int32[N], index into `KINDS`.
    at: int32[], i, at least 1.
    uniforms: float32[N, 2], in [0, 1).
    tokens, length: int32[N, C], int32[N], the texts.
    lengths: fewest and most positions, BOS included; all lengths between are equally probable.
  """
  fewest, most = lengths
  columns = jnp.arange(tokens.shape[1])[None, :]
  inside = at < length
  valid = _by_kind(
    kind,
    inside,
    {
      RECOMPUTE: jnp.ones(length.shape, bool),
      END: at <= length,
      INSERT: (at <= length) & (length < most),
      DELETE: inside & (length > fewest),
    },
  )
  kind = jnp.where(valid, kind, RECOMPUTE)
  few, many = _PHRASE
  words = few + _choice(uniforms[:, 0], many + 1 - few)
  shortest = jnp.maximum(fewest, at)
  ended = shortest + _choice(uniforms[:, 1], most + 1 - shortest)
  later = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]  # what is at t - 1
  earlier = jnp.pad(tokens, ((0, 0), (0, 1)))[:, 1:]
  given = jnp.where((kind == INSERT)[:, None] & (columns > at), later, tokens)
  given = jnp.where((kind == DELETE)[:, None] & (columns >= at), earlier, given)
  new_length = _by_kind(kind, length, {END: ended, INSERT: length + 1, DELETE: length - 1})
  until = {REPLACE: at + 1, PHRASE: jnp.minimum(at + words, length), END: new_length, INSERT: at + 1}
  drawn = _by_kind(kind, jnp.broadcast_to(at, length.shape), until)
  return Plan(
    given=given,
    length=new_length,
    drawn=drawn,
    other=kind == REPLACE,
    kept=_by_kind(kind, drawn, {RECOMPUTE: length}),
    kept_before=_by_kind(kind, drawn, {RECOMPUTE: length, END: length, INSERT: at, DELETE: at + 1}),
    valid=valid,
  )


def _choice(uniform, count):
  """float32[N] in [0, 1) -> int32[N], uniform among 0 ... count - 1."""
  return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)


def _by_kind(kind, default, values):
  for number, value in values.items():
    default = jnp.where(kind == number, value, default)
  return default


def log_ratio(plan: Plan, before: jax.Array, length_before: jax.Array, after: jax.Array, other: jax.Array) -> jax.Array:
  """Log of the Metropolis-Hastings ratio, float32[N].

  Args:
    plan: of the sweep.
    before, after: float32[N, C], log p(token | tokens before it) of the old texts and of the new.
    length_before: int32[N], of the old texts.
    other: float32[N], log of the probability of a token other than the old one at i, less that of one other than the new one.
  """
  columns = jnp.arange(before.shape[1])[None, :]

  def of_kept(log_p, start, length):
    return jnp.where((columns >= start[:, None]) & (columns < length[:, None]), log_p, 0.0).sum(axis=1)

  ratio = of_kept(after, plan.kept, plan.length) - of_kept(before, plan.kept_before, length_before)
  return ratio + jnp.where(plan.other, other, 0.0)


def changed(plan: Plan, kind: jax.Array, before: jax.Array, length_before: jax.Array, after: jax.Array) -> jax.Array:
  """int32[N]: how many tokens the plan changed: those that differ, and those by which the text is longer or shorter.

  Args:
    plan: of the sweep.
    kind: int32[N].
    before, length_before, after: int32[N, C], int32[N], int32[N, C], the old texts and the tokens of the new ones.
  """
  columns, both = jnp.arange(before.shape[1])[None, :], jnp.minimum(plan.drawn, length_before)
  differ = ((before != after) & (columns < both[:, None])).sum(axis=1)
  differ = jnp.where((kind == INSERT) | (kind == DELETE), 0, differ)
  return differ + jnp.abs(plan.length - length_before)
