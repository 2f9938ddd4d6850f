"""Moves that a task has without giving any: of a list of its inputs, or exchanges with an input drawn from its prior."""

import jax
import numpy as np
import pytest
from detailed_balance import assert_balanced, assert_same_in_jit, grid
from extending.reversal_task import Reversal

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import CharTokenizer, Task
from inversionview_jax.tasks.choice_moves import ChoiceMoves

PAD = 4


class Bare(Task):
  """Not enumerable, without a prior: one to three letters a or b, shorter ones more often."""

  tokenizer = CharTokenizer(("a", "b", "<BOS>", "<EOS>", "<PAD>"))
  length = 5
  num_inputs = 24

  def tokens(self, index):
    rows = np.array([self._row(length, code) for length in (1, 2, 3) for code in range(2**length)], np.int32)
    share = np.repeat(np.arange(14), [4] * 2 + [2] * 4 + [1] * 8)  # each length equally often
    return rows[share[np.asarray(index)]]

  @staticmethod
  def _row(length, code):
    return [2, *(code >> i & 1 for i in range(length)), 3, *[PAD] * (3 - length)]

  def loss_mask(self, tokens):
    return tokens != PAD


class Letters(Bare):
  """The same with its prior: each length has a third, and its texts share that."""

  def log_prior(self, tokens):
    xp = tokens.__array_namespace__()
    length = (tokens[:, 1:] < 2).sum(axis=1)
    columns = xp.arange(5)
    form = xp.where(columns == 0, 2, xp.where(columns == length[:, None] + 1, 3, PAD))
    letter = (columns >= 1) & (columns <= length[:, None])
    right = xp.where(letter, tokens < 2, tokens == form).all(axis=1) & (length > 0)
    return xp.where(right, -np.log(3) - length * np.log(2), -np.inf)


def test_the_default_moves_of_a_prior_are_in_detailed_balance_with_it():
  task = Letters()
  rows = np.unique(task.tokens(np.arange(24)), axis=0)
  assert len(rows) == 14 and np.isinf(task.log_prior(rows[:, [0, 2, 1, 3, 4]])).any()
  moves = {move.name: move for move in task.moves()}
  assert list(moves) == ["redraw", "another ending", "another part"] and all(move.drawn for move in moves.values())
  for move in moves.values():
    there = assert_balanced(move, grid(*[12] * move.uniforms), rows, task.log_prior)  # up to 4 columns differ
    assert (there > 0).all()
    assert_same_in_jit(move, rows, task.log_prior)


def test_the_default_moves_of_an_enumerable_task_lead_to_every_input():
  class Plain(Reversal):
    moves = Task.moves

  task = Plain()
  rows = task.tokens(np.arange(task.num_inputs))
  redraw, *near = task.moves()
  assert [move.name for move in near] == ["near in order", "near in order of endings"]
  some = redraw.propose(grid(512), rows)[0]
  assert len(np.unique(some, axis=0)) == 512
  for move in task.moves():
    assert_same_in_jit(move, rows, task.log_prior)
  wrong = rows.copy()
  wrong[:, 2] = (wrong[:, 2] + 1) % 8
  assert np.isinf(jax.jit(task.log_prior)(wrong)).all() and np.isinf(task.log_prior(wrong)).all()


def test_choices_give_a_prior_and_moves_to_a_task_that_writes_them():
  sizes = {"first": 2, "second": 3, "third": 1}

  def write(choices):
    return choices[:, np.array([0, 1, 1, 2])] + np.array([0, 10, 20, 30], np.int32)

  choices = ChoiceMoves(sizes, lambda tokens: tokens[:, np.array([0, 1, 3])] - np.array([0, 10, 30], np.int32), write)
  rows = write(np.array([(a, b, 0) for a in range(2) for b in range(3)], np.int32))
  moves = {move.name: move for move in choices.all()}
  assert set(moves) == {"another first", "another second", "redraw"}
  for name, move in moves.items():
    uniforms = grid(2, 3, 1) if name == "redraw" else grid(2)
    there = assert_balanced(move, uniforms, rows, choices.log_prior)
    apart = (rows[:, None] != rows[None])[..., [0, 1]]
    wanted = {"another first": apart[..., 0] & ~apart[..., 1], "another second": apart[..., 1] & ~apart[..., 0]}
    np.testing.assert_array_equal(there > 0, wanted.get(name, np.ones((6, 6), bool)))
    assert_same_in_jit(move, rows, choices.log_prior)
  assert np.isinf(choices.log_prior(rows + np.array([0, 0, 1, 0]))).all()


def test_a_task_without_prior_is_refused_with_what_it_lacks_and_what_to_give():
  with pytest.raises(InversionViewError) as caught:
    Bare().moves()
  message = str(caught.value)
  assert "test_default_moves:Bare' has no moves and no log_prior" in message and "define Task.log_prior()" in message
  assert "method='decoder'" in message and "\n" not in message
