"""Classes derived from this package's tasks that have other inputs: the moves and the prior of all inputs are not theirs."""

import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal

from inversionview_jax import tasks
from inversionview_jax.reading.source import has_moves
from inversionview_jax.tasks import IOI, Addition, Counting

SOME = 40


def derived(base, **members):
  return type("Derived", (base,), members)


def first(base):
  """Every tenth input of a task, as a task of its own."""
  return {"tokens": lambda self, index: base.tokens(self, 10 * np.asarray(index)), "num_inputs": SOME}


@pytest.mark.parametrize("members", [{"num_inputs": SOME}, first(Addition)], ids=["fewer", "others"])
def test_some_sums_have_the_prior_and_the_moves_of_a_list(members):
  task, every = derived(Addition, **members)(), tasks.get("addition")
  mine, outside = task.tokens(np.arange(SOME)), every.tokens(np.array([SOME + 1, 777_777]))
  assert task.index(mine).tolist() == list(range(SOME)) and task.index(outside).tolist() == [-1, -1]
  for xp in (np, jnp):
    prior = np.asarray(task.log_prior(xp.asarray(np.concatenate([mine, outside]))))
    assert np.allclose(prior[:SOME], -np.log(SOME)) and (prior[SOME:] == -np.inf).all()
  rng = np.random.default_rng(0)
  for move in task.moves():
    proposed, _ = move.propose(rng.random((SOME, move.uniforms)), mine)
    assert (task.index(proposed) >= 0).all(), move.name


def test_some_inputs_of_counting_need_a_prior_of_their_own_or_a_list():
  plain = derived(Counting, **first(Counting))()
  assert (
    not has_moves(plain)
    and "log_prior" in refusal(plain.moves)
    and "log_prior" in refusal(plain.log_prior, plain.tokens(np.arange(2)))
  )
  listed = derived(Counting, enumerable=True, **first(Counting))()
  prior = listed.log_prior(
    np.concatenate([listed.tokens(np.arange(SOME)), tasks.get("counting").tokens(np.array([1]))])
  )
  assert np.allclose(prior[:SOME], -np.log(SOME)) and prior[SOME] == -np.inf
  assert {move.name for move in listed.moves()} == {"redraw", "near in order", "near in order of endings"}
  own = derived(Counting, log_prior=lambda self, tokens: tokens[:, 0] * 0.0, **first(Counting))()
  assert has_moves(own) and "shuffle" not in {move.name for move in own.moves()}
  # A class that changes other things keeps both.
  assert "shuffle" in {move.name for move in derived(Counting, epsilon=0.2)().moves()}


def test_some_prompts_of_ioi_need_a_prior_of_their_own_or_a_list(ioi_target):
  base = ioi_target.require_tokenizer()
  assert not has_moves(derived(IOI, **first(IOI))(base)) and has_moves(derived(IOI, metric="euclidean")(base))
