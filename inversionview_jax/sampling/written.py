"""Texts that a language model writes, as the inputs of the task text: by index, on the device, so that no corpus is needed.

Text i is a function of i and the model: a number of tokens that is uniform from `SHORTEST` to the task's longest, and for that many tokens draws from
the model's distribution behind BOS, special tokens left out. Nothing is stored.

Shapes: B texts, T tokens, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import progress
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task, Text, hashing

SHORTEST = 4  # tokens of the shortest text, where the task's longest is not shorter
_SEED = 0  # of all texts: another seed would be another set of inputs
_BATCH = 64  # texts that are written together


def written_by(task: Task, target: Target) -> Task:
  """The task; where it is text without files, its inputs are those that the target writes.

  Raises:
    InversionViewError: a target without logits, or one that attends in both directions.
  """
  if not isinstance(task, Text) or task.settings["files"] or task.writer is not None:
    return task
  target.require_logits()
  if not target.config.causal:
    raise InversionViewError(
      f"the target {target.name!r} attends in both directions and writes no texts: give inputs.files"
    )
  task.be_written(functools.partial(_written, target, task.length))
  return task


def _written(target: Target, length: int, index: np.ndarray) -> np.ndarray:
  """int32[B, T]: BOS, the text, EOS, PAD."""
  tokenizer, index = target.require_tokenizer(), np.asarray(index, np.int64)
  specials: frozenset[int] = getattr(
    tokenizer, "special_ids", frozenset()
  )  # besides BOS, EOS and PAD; some have no more
  longest = length - 2
  shortest = min(SHORTEST, longest)
  lengths = shortest + hashing.uniform(longest - shortest + 1, _SEED, index)
  allowed = ~np.isin(np.arange(target.config.vocab_size), [*specials, tokenizer.eos_id, tokenizer.pad_id])

  def program(part):
    return _program(
      target.module, longest, target.params, jnp.asarray(allowed), part.astype(np.int32), tokenizer.bos_id
    )

  if len(index):
    with progress.following(f"texts that {target.name} writes", show=len(index) > _BATCH):
      drawn = parallel.in_chunks(program, index, min(_BATCH, len(index)))
  else:
    drawn = np.zeros((0, longest), np.int32)
  rows = np.full((len(index), length), tokenizer.pad_id, np.int32)
  rows[:, 0], rows[:, 1:-1] = tokenizer.bos_id, drawn
  columns = np.arange(length)[None]
  rows[columns > lengths[:, None] + 1] = tokenizer.pad_id
  rows[np.arange(len(index)), lengths + 1] = tokenizer.eos_id
  return rows


@functools.partial(parallel.jit, static_argnums=(0, 1))
def _program(module, longest, params, allowed, index, bos_id):
  """-> int32[B, longest]: tokens that depend on the index of the text and their own place alone."""
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(_SEED), i))(index)

  def step(carry, place):
    token, cache = carry
    x, cache, _ = module.apply({"params": params}, token, place, cache, 0, (), method="advance")
    logits = module.apply({"params": params}, x, method="logits")[:, 0]
    gumbel = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, place), logits.shape[-1:]))(keys)
    token = jnp.argmax(jnp.where(allowed, logits + gumbel, -jnp.inf), axis=-1).astype(jnp.int32)
    return (token, cache), token

  start = jnp.full(len(index), bos_id, jnp.int32), module.empty_cache(len(index), longest)
  _, tokens = jax.lax.scan(step, start, jnp.arange(longest, dtype=jnp.int32))
  return tokens.T
