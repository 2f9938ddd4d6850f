"""Reversal, a task outside the package: three letters, a bar, the letters in reverse, such as ``abc|cba``."""

import numpy as np

from inversionview_jax.tasks import CharTokenizer, Task
from inversionview_jax.tasks.moves import Move, choice, symmetric

LETTERS = "abcdefgh"
N = 3  # letters of an input


class Reversal(Task):
  """512 inputs "BOS letters|letters EOS"; positions L1 L2 L3 | R1 R2 R3."""

  tokenizer = CharTokenizer((*LETTERS, "|", "<BOS>", "<EOS>", "<PAD>"))
  length = 2 * N + 3
  num_inputs = len(LETTERS) ** N
  enumerable = True
  about = 'An input is three letters, "|" and the same letters in reverse order, such as "abc|cba".'
  feature_names = {f"L{i}": f"letter {i}, as a number: a is 0" for i in range(1, N + 1)}

  def tokens(self, index):
    letters = np.asarray(index)[:, None] // len(LETTERS) ** np.arange(N) % len(LETTERS)
    columns = (self.tokenizer.bos_id, letters, self.tokenizer.encode("|"), letters[:, ::-1], self.tokenizer.eos_id)
    rows = [np.broadcast_to(c, (len(letters), np.shape(c)[-1] if np.ndim(c) else 1)) for c in columns]
    return np.concatenate(rows, axis=1).astype(np.int32)

  def index(self, tokens):
    index = np.clip(tokens[:, 1 : N + 1], 0, len(LETTERS) - 1) @ len(LETTERS) ** np.arange(N)
    return np.where((self.tokens(index) == tokens).all(axis=1), index, -1)

  def loss_mask(self, tokens):  # runs on NumPy and JAX arrays
    xp = tokens.__array_namespace__()
    return xp.broadcast_to(xp.arange(tokens.shape[1]) > N + 1, tokens.shape)

  def labels(self, tokens):
    names = ["", *(f"L{i + 1}" for i in range(N)), "|", *(f"R{i + 1}" for i in range(N)), ""]
    return (names + [""] * len(tokens))[: len(tokens)]

  def moves(self):  # the default ones, to any input or a near one, and one that knows what an input is
    return (*super().moves(), Move("another letter", 2, self.another_letter, weight=2.0))

  def another_letter(self, uniforms, tokens):  # in both places; as probable backwards. Runs on NumPy and JAX arrays
    xp = tokens.__array_namespace__()
    columns, at = xp.arange(tokens.shape[1]), 1 + choice(uniforms[:, :1], N)
    here = (columns == at) | (columns == 2 * N + 2 - at)
    return xp.where(here, choice(uniforms[:, 1:], len(LETTERS)), tokens), symmetric(tokens)

  def features(self, tokens):
    letter = np.pad(tokens, ((0, 0), (0, N)), constant_values=-1)[:, 1 : N + 1]
    return {f"L{i + 1}": np.where(letter[:, i] < len(LETTERS), letter[:, i], -1).astype(np.int32) for i in range(N)}
