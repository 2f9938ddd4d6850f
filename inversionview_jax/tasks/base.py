"""The interface of a task: inputs by index, a tokenizer, labels of positions, features, and settings for reading it.

Shapes: B batch, T tokens. Functions of tokens accept NumPy or JAX arrays and return the same kind, so that they also run inside jit.
"""

import abc
import dataclasses
import functools
import math
import operator
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from inversionview_jax import bounds, values
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.contrast import Pairs
from inversionview_jax.tasks.extension import is_named, load_named
from inversionview_jax.tasks.listed_inputs import ListedInputs, check_size
from inversionview_jax.tasks.moves import Move, exchange_moves
from inversionview_jax.tasks.tokenizers import CharTokenizer, PartTokenizer

RENAMED_MIXTURES = {"wide": "broad"}  # names of version 0.1
Array = Any  # an array of NumPy or JAX; tasks import no JAX
_MOST_LOOKED_THROUGH = 2_000_000  # inputs that are searched for one that begins as a text does
TINY = {"train": 20_000, "test": 5_000}  # inputs of a split that the "tiny" datasets hold


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Sampling settings: an equal share of the candidates at each (temperature, noise) (paper, appendix "auto" sampling).

  Attributes:
    settings: pairs of (temperature, eta); Gaussian noise of eta * std(z) is added to the query activation z.
    num_samples: candidates per query.
    stratified: whether the candidates of one setting are a stratified sample of the decoder's distribution instead of independent ones; fewer
      of them are equal (`sampling.Rows`).
    directions: the second of each setting is not eta but the cosine to z of random directions, with the norm of z times exp(U(-1, 1))
      (paper, factual recall).
    rounds: number of parts in which the candidates of a query are drawn.
    repeats: a rare token (`Task.rare`) that occurs more often than this at a position in the rounds before is not drawn there again; 0: no
      limit.
  """

  settings: tuple[tuple[float, float], ...]
  num_samples: int = 1024
  stratified: bool = False
  directions: bool = False
  rounds: int = 1
  repeats: int = 0

  def __post_init__(self):
    bounds.check(num_samples=self.num_samples, rounds=self.rounds)
    if self.directions and not all(-1 <= cosine <= 1 for _, cosine in self.settings):
      raise InversionViewError(f"directions are drawn at cosines from -1 to 1, not {[c for _, c in self.settings]}")
    if self.repeats and self.rounds < 2:
      raise InversionViewError("repeats limits tokens of earlier rounds: set rounds to 2 or more")


# Mixtures of tasks with characters for tokens. "paper" is the paper's, the others were chosen by measurement (configs/README.md).
MIXTURES = {
  "noisy": Mixture(((1.0, 0.0), (1.0, 0.1), (1.0, 0.2), (1.0, 0.3)), stratified=True),
  "stratified": Mixture(((0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 0.1)), stratified=True),
  "warm": Mixture(((1.0, 0.0), (1.5, 0.0), (1.5, 0.1), (2.0, 0.1)), stratified=True),
  "paper": Mixture(((0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 0.1))),
}


class Task(abc.ABC):
  """A set of inputs, addressed by index, and what is known about them.

  A task can live in the user's own module, named as ``package.module:Name`` in a config or flag. It needs `tokenizer`, `length`,
  `num_inputs`, `tokens` and `loss_mask`; the rest has defaults.

  Attributes:
    name: of the task in configs and saved files; of a class in the user's module that sets none, ``package.module:Name``.
    tokenizer: text to ids and back.
    length: T, tokens of an input including BOS, EOS and PAD.
    num_inputs: number of inputs; their indices are 0 ... num_inputs - 1.
    enumerable: whether these are all the inputs of the task, so that preimages can be enumerated exactly.
    epsilon, metric: the threshold and the distance of preimages; of this package's tasks, the paper's.
    mixtures: sampling mixtures by name; the first is the default.
    dataset: whether the inputs are kept as the TFDS dataset ``inversionview_NAME``; otherwise they are computed, or read, at every use.
    settings: plain data with which `tasks.get` makes the same task again.
    bos_attention: None, or a head's attention to BOS from which on its activation is no training pair (`sampling.collect`).
    rare: None, or bool[V]: the tokens to which `Mixture.repeats` applies.
    about: describes an input to someone who has never seen one.
    feature_names: describes each feature.
    position_names: describes each label of a position that is not the name of a feature; see `about_position`.
    expressions: over the features (`grammar.expression`), which a reading checks besides them.
  """

  name: str
  tokenizer: CharTokenizer | PartTokenizer
  length: int
  num_inputs: int
  enumerable: bool = False
  epsilon: float = 0.1
  metric: str = "euclidean"
  mixtures: dict[str, Mixture] = MIXTURES
  dataset: bool = False
  settings: dict = {}
  bos_attention: float | None = None
  rare: np.ndarray | None = None
  about: str = ""
  feature_names: dict[str, str] = {}
  position_names: dict[str, str] = {}
  expressions: tuple[str, ...] = ()

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    if "name" not in vars(cls):
      cls.name = f"{cls.__module__}:{cls.__qualname__}"

  @abc.abstractmethod
  def tokens(self, index: np.ndarray) -> np.ndarray:
    """The inputs with these indices, int64[B] -> int32[B, T]: BOS, the text, EOS, PAD; a pure function of the index."""

  def index(self, tokens: np.ndarray) -> np.ndarray:
    """The inverse of `tokens` of an enumerable task, int[B, T] -> int64[B]; -1 for a text that is no input. By default it is looked up."""
    if not self.enumerable:
      raise NotImplementedError(f"task {self.name!r} has no index of its texts")
    return self.listed.index(tokens)

  def may_be_input(self, tokens: Sequence[int]) -> bool:
    """Whether a text is an input of the task or the beginning of one; True where the inputs are not enumerated, so that it is not known, unless a
    task has a rule of its own.

    Args:
      tokens: int[T], the text with BOS; EOS and padding do not count.
    """
    if not (self.enumerable and self.dataset and self.num_inputs <= _MOST_LOOKED_THROUGH):
      return True
    t = self.tokenizer
    used = [int(token) for token in tokens if int(token) not in (t.eos_id, t.pad_id)]
    if len(used) >= self.length:
      return False
    whole = np.full((1, self.length), t.pad_id, np.int32)
    whole[0, : len(used) + 1] = [*used, t.eos_id]
    if self.index(whole)[0] >= 0:
      return True
    parts = (np.arange(i, min(i + 100_000, self.num_inputs)) for i in range(0, self.num_inputs, 100_000))
    return any((self.tokens(part)[:, : len(used)] == used).all(axis=1).any() for part in parts)

  def inputs_of(self, base: "type[Task]") -> bool:
    """Whether the inputs are those of `base`, a class that this one is derived from: moves and priors written for them know no others."""
    own = type(self)
    same = (getattr(own, name) is getattr(base, name) for name in ("tokens", "index"))
    return all(same) and own.num_inputs == base.num_inputs

  @property
  def has_log_prior(self) -> bool:
    """Whether `log_prior` is another than the default, which makes every listed input equally probable."""
    return type(self).log_prior is not Task.log_prior

  @functools.cached_property
  def listed(self) -> ListedInputs:
    """The inputs of an enumerable task as a list; raises `InversionViewError` where they are too many for one."""
    check_size(self.num_inputs, self.length, self.name)
    return ListedInputs(self.tokens(np.arange(self.num_inputs)), self.tokenizer.pad_id)

  def log_prior(self, tokens: Array) -> Array:
    """Log probability of texts under the task's distribution, int[B, T] -> float[B]; -inf for a text that is no input.

    Where the inputs are a sample of many more texts, it is the distribution that they were drawn from. Monte Carlo runs it on JAX arrays
    inside jit. By default the inputs of an enumerable task are equally probable; one that has two indices is twice as probable.

    Raises:
      InversionViewError: a task without any.
    """
    if not self.enumerable:
      raise InversionViewError(
        f"the task {self.name!r} has no log_prior, the probability of its inputs, which bits need; --no-bits measures the rest"
      )
    if isinstance(tokens, np.ndarray) and type(self).index is not Task.index:
      return np.where(self.index(tokens) >= 0, -math.log(self.num_inputs), -np.inf)
    return self.listed.log_prior(tokens)

  def moves(self) -> tuple[Move, ...]:
    """How Monte Carlo may change an input; see `moves.Move`.

    By default the inputs of an enumerable task without a `log_prior` of its own are listed, and a move leads to any of them, or to a near one;
    a task with one redraws an input, or exchanges parts with another (`moves.exchange_moves`). Moves that know the task do better.

    Raises:
      InversionViewError: a task that has neither.
    """
    if self.has_log_prior:
      return exchange_moves(self.log_prior)
    if self.enumerable:
      return self.listed.moves()
    raise InversionViewError(
      f"the task {self.name!r} has no moves and no log_prior, which Monte Carlo needs: define Task.log_prior() on the array namespace, and "
      "better moves than the default in Task.moves(), or use method='decoder'"
    )

  @abc.abstractmethod
  def loss_mask(self, tokens: Array) -> Array:
    """int32[B, T] -> bool[B, T]: tokens whose prediction the target model is trained on."""

  def answer_mask(self, tokens: Array) -> Array:
    """int32[B, T] -> bool[B, T]: tokens of the answer, all of which must be right for it to be right; by default those of `loss_mask`."""
    return self.loss_mask(tokens)

  def labels(self, tokens: Sequence[int]) -> list[str]:
    """A label for each position of one input ("=", "A1"); "" where the task has none, which is the default."""
    return [""] * len(tokens)

  def about_position(self, label: str) -> str:
    """What stands at the position of this label, in words; "" where the task has none for it."""
    return self.position_names.get(label) or self.feature_names.get(label, "")

  def default_sites(self, n_layers: int, n_heads: int) -> tuple[str, ...]:
    """Short names of the sites a decoder is trained on by default: the embedding, and heads, MLP and residual stream of every layer."""
    sites = ["x0.pre"]
    for layer in range(n_layers):
      sites += [f"a{layer}.{head}" for head in range(n_heads)] + [f"x{layer}.mid", f"m{layer}", f"x{layer}.post"]
    return tuple(sites)

  @property
  def mixture(self) -> Mixture:
    """The default mixture, the first of `mixtures`."""
    return next(iter(self.mixtures.values()))

  def mixture_named(self, name: str) -> Mixture:
    """The mixture of this name: one of `mixtures`, or a `Mixture` of the user's own module named as ``package.module:NAME``.

    Raises:
      InversionViewError: a name that no mixture has (of a renamed one, the message has the new name), or no such module or object.
    """
    if name in self.mixtures:
      return self.mixtures[name]
    if is_named(name):
      return load_named(name, Mixture, "mixture")
    if RENAMED_MIXTURES.get(name) in self.mixtures:
      raise InversionViewError(f"the mixture {name!r} is called {RENAMED_MIXTURES[name]!r} now")
    raise one_of(f"mixture of task {self.name!r}:", name, tuple(self.mixtures))

  def query_mask(self, tokens: Array) -> Array:
    """int32[B, T] -> bool[B, T]: positions where query activations are taken; by default all but special tokens."""
    return ~self._special(tokens)

  def counted_mask(self, tokens: Array) -> Array:
    """int32[B, T] -> bool[B, T]: positions of candidates that may match a query: all but EOS and PAD (paper, section 2.1)."""
    return (tokens != self.tokenizer.pad_id) & (tokens != self.tokenizer.eos_id)

  def predicted_at(self, tokens: Array) -> Array | None:
    """int32[B, T] -> int32[B, P], the positions where `loss_mask` tokens are predicted, if they are few; None: anywhere."""
    del tokens
    return None

  def groups(self, tokens: Array) -> dict[str, Array]:
    """Subsets of the inputs whose accuracy is reported separately: name -> bool[B]."""
    del tokens
    return {}

  def features(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The features of texts: properties that an activation may encode.

    Args:
      tokens: int[B, T], inputs of the task or candidates of a decoder; a text may also be the beginning of an input.

    Returns:
      Name of each feature -> int32[B]; -1 where the text is not of the task's form, or is too short to have it.
    """
    del tokens
    return {}

  def contrast(self, index: np.ndarray, seed: int = 0, **how: Any) -> Pairs:
    """Contrast pairs for patching: the inputs with these indices, int64[B], each with a corrupted input.

    The keywords, which determine how the two differ, are the task's own. A pair is a function of the index and the seed; inputs without such a
    contrast are left out.
    """
    raise InversionViewError(f"the task {self.name} has no contrast pairs")

  def contrast_aligned(self, index: np.ndarray, seed: int = 0, *, predict: str = "") -> Pairs:
    """Contrast pairs for circuits: the answers differ, and so may all that leads to them; the tokens of both inputs line up.

    Args:
      index: int64[B].
      seed: of the draws, which are functions of it and of the index.
      predict: label of the answer token; "" for the task's first.

    Raises:
      InversionViewError: an answer token that the task does not know, or a task without contrast pairs.
    """
    del predict
    return self.contrast(index, seed)

  def contrast_in(
    self, feature: str, vary: str, index: np.ndarray, seed: int = 0, *, predict: str, where: str = ""
  ) -> Pairs:
    """Contrast pairs that test whether an activation carries a feature.

    Args:
      feature: a name in `features`.
      vary: "only": the pair differs in the feature and, as far as possible, in nothing else; "rest": in everything but the feature.
      index: int64[B].
      seed: of the draws, which are functions of it and of the index.
      predict: label of the answer token whose prediction is compared.
      where: a condition on the features of the clean input.

    Raises:
      InversionViewError: a feature or an answer token that the task does not know.
    """
    raise InversionViewError(f"the task {self.name} has no contrast pairs")

  def behaviour(self, position: int | str) -> str:
    """Label of the answer token that measures the effect of a patch at this position: the one predicted there, else the first."""
    raise InversionViewError(f"the task {self.name} names no answer that follows from position {position!r}")

  def split(self, name: str, seed: int = 0) -> np.ndarray:
    """int64[N]: indices of "train" (75 %) or "test" (25 %), in a random order that depends on `seed` alone."""
    if name not in ("train", "test"):
      raise one_of("split", name, ("train", "test"))
    order = np.random.default_rng(seed).permutation(self.num_inputs)
    cut = int(0.75 * self.num_inputs)
    return order[:cut] if name == "train" else order[cut:]

  def position(self, tokens: Sequence[int], position: int | str) -> int:
    """The index of a position that is given as an index (negative ones count from the last token) or as a label.

    Args:
      tokens: int[T], one input with BOS; padding does not count.
      position: an index (BOS is 0; "-1" and -1 are the last token of the text), or a label such as "=" or "A1".

    Raises:
      InversionViewError: out of range, or a label this input does not have; lists those it has.
    """
    used = [int(t) for t in tokens if int(t) not in (self.tokenizer.pad_id, self.tokenizer.eos_id)]
    labels = self.labels(used)
    typed = index_or_label(position) if isinstance(position, str) else position
    try:
      index = None if isinstance(typed, str) else operator.index(typed)
    except TypeError:
      index = None
    # A digit is a label only if the task has it among the labels; otherwise it is an index.
    if index is None or str(position) in labels:
      if position in labels:
        return labels.index(position)
      known = ", ".join(label for label in labels if label)
      raise InversionViewError(
        f"unknown position {values.brief(position)}: "
        + (
          f"{self.tokenizer.text(used)!r} has the positions {known}"
          if known
          else f"{self.tokenizer.text(used)!r} has no named positions"
        )
        + f"; or give an index from 0 (BOS) to {len(used) - 1}"
      )
    if not -len(used) <= index < len(used):
      raise InversionViewError(
        f"position {values.brief(index)} is out of range: {self.tokenizer.text(used)!r} has the positions 0 (BOS) to {len(used) - 1}"
      )
    return index % len(used)

  def positions(self, tokens: np.ndarray, position: int | str) -> np.ndarray:
    """The index of a position in every row, int[B, T] -> int32[B]; see `position`."""
    return np.array([self.position(row, position) for row in np.asarray(tokens).tolist()], np.int32)

  def _special(self, tokens):
    t = self.tokenizer
    return (tokens == t.bos_id) | (tokens == t.eos_id) | (tokens == t.pad_id)


def index_or_label(typed: str) -> int | str:
  """A position from a flag: "8" -> 8, "-1" -> -1, "=" -> "="."""
  return int(typed) if re.fullmatch("-?[0-9]{1,9}", typed) else typed


def shift_left(array: Array, fill: int | bool) -> Array:
  """array[:, 1:] and a last column of `fill`: column t of the result is about token t + 1."""
  xp = array.__array_namespace__()
  return xp.concatenate([array[:, 1:], xp.full_like(array[:, :1], fill)], axis=1)
