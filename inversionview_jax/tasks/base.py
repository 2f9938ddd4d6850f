"""What a task is: inputs by index, a tokenizer, positions with names, and the paper's settings for reading it.

Shapes: B batch, T tokens. Functions of tokens accept NumPy or JAX arrays and return the same kind, so that they also run inside jit.
"""

import abc
import dataclasses
import math
import operator
from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.contrast import Pairs
from inversionview_jax.tasks.extension import is_named, load_named
from inversionview_jax.tasks.tokenizers import CharTokenizer, PartTokenizer

RENAMED_MIXTURES = {"wide": "broad"}  # names of version 0.1
TINY = {"train": 20_000, "test": 5_000}  # inputs of a split that the "tiny" datasets hold


@dataclasses.dataclass(frozen=True)
class Mixture:
  """How candidates are drawn: an equal share of them at each (temperature, noise) (paper, appendix "auto" sampling).

  Attributes:
    settings: pairs of (temperature, eta); Gaussian noise of eta * std(z) is added to the query activation z.
    num_samples: candidates per query.
    stratified: whether candidates of one setting share the decoder's distribution out between them instead of being independent; fewer of
      them are the same (`sampling.Rows`).
    directions: the second of each setting is not eta but the cosine to z of the directions that are drawn, with the norm of z times
      exp(U(-1, 1)) (paper, factual recall).
    rounds: in how many parts the candidates of a query are drawn.
    repeats: tokens that are rare (`Task.rare`) and that the rounds before have more often than this at a position are not drawn there again;
      0: they are.
  """

  settings: tuple[tuple[float, float], ...]
  num_samples: int = 1024
  stratified: bool = False
  directions: bool = False
  rounds: int = 1
  repeats: int = 0

  def __post_init__(self):
    if self.directions and not all(-1 <= cosine <= 1 for _, cosine in self.settings):
      raise InversionViewError(f"directions are drawn at cosines from -1 to 1, not {[c for _, c in self.settings]}")
    if self.repeats and self.rounds < 2:
      raise InversionViewError(
        "tokens that were drawn before can be suppressed from the second round on only: set rounds"
      )


class Task(abc.ABC):
  """A set of inputs and what is known about them.

  Attributes:
    name: how configs, builders and readers call it.
    tokenizer: text to ids and back.
    length: T, tokens of an input including BOS, EOS and PAD.
    num_inputs: how many inputs there are; they are addressed 0 ... num_inputs - 1.
    enumerable: whether these are all the inputs of the task, so that preimages can be found exactly.
    epsilon, metric: the threshold and the distance of the paper's preimages.
    mixtures: sampling mixtures by name; "paper" is the paper's. The first is the one that is used unless another is asked for.
    dataset: whether the inputs are kept as a TFDS dataset; else they are made, or read, when they are asked for.
    settings: plain data with which `tasks.get` makes the same task again.
    bos_attention: None, or which attention of a head to BOS is too much for a training pair (`collect.collect`).
    rare: None, or bool[V]: tokens of which no more than `Mixture.repeats` are drawn at a position, if the mixture says so.
    about: what an input is, for someone who has never seen one.
    feature_names: what each feature is, in words.
    expressions: over the features (`grammar.expression`), for what a reading names besides them.
  """

  name: str
  tokenizer: CharTokenizer | PartTokenizer
  length: int
  num_inputs: int
  enumerable: bool = False
  epsilon: float
  metric: str
  mixtures: dict[str, Mixture]
  dataset: bool = True
  settings: dict = {}
  bos_attention: float | None = None
  rare: np.ndarray | None = None
  about: str = ""
  feature_names: dict[str, str] = {}
  expressions: tuple[str, ...] = ()

  @abc.abstractmethod
  def tokens(self, index: np.ndarray) -> np.ndarray:
    """int64[B] -> int32[B, T]: the inputs with these indices; a pure function of the index."""

  def index(self, tokens: np.ndarray) -> np.ndarray:
    """The inverse of `tokens`, where all inputs are enumerable: int[B, T] -> int64[B]; -1 for a text that is no input."""
    raise NotImplementedError(f"task {self.name!r} does not number its texts")

  def log_prior(self, tokens: np.ndarray) -> np.ndarray:
    """int[B, T] -> float64[B]: log of the probability that an input drawn from the task is this text; -inf for one that never is.

    Of a task whose inputs are a sample of many more, the distribution that they were drawn from.
    """
    if not self.enumerable:
      raise InversionViewError(
        f"the task {self.name!r} does not say how probable its inputs are, which bits need; --no-bits measures the rest"
      )
    return np.where(self.index(tokens) >= 0, -math.log(self.num_inputs), -np.inf)

  @abc.abstractmethod
  def loss_mask(self, tokens):
    """int32[B, T] -> bool[B, T]: tokens whose prediction the target model is trained on."""

  @abc.abstractmethod
  def answer_mask(self, tokens):
    """int32[B, T] -> bool[B, T]: tokens that make up the answer, all of which must be right for the answer to be right."""

  @abc.abstractmethod
  def labels(self, tokens: Sequence[int]) -> list[str]:
    """A name for each position of one input ("=", "A1"); "" where the task has none."""

  @abc.abstractmethod
  def default_sites(self, n_layers: int, n_heads: int) -> tuple[str, ...]:
    """The sites the paper trains a decoder on, short names."""

  @property
  def mixture(self) -> Mixture:
    """The one that is used unless another is asked for."""
    return next(iter(self.mixtures.values()))

  def mixture_named(self, name: str) -> Mixture:
    """One of `mixtures`, or a `Mixture` of a user's own module named as "package.module:NAME".

    Raises:
      InversionViewError: a name that no mixture has (one that was renamed is answered with the new name), or no such module or object.
    """
    if name in self.mixtures:
      return self.mixtures[name]
    if is_named(name):
      return load_named(name, Mixture, "mixture")
    if RENAMED_MIXTURES.get(name) in self.mixtures:
      raise InversionViewError(f"the mixture {name!r} is called {RENAMED_MIXTURES[name]!r} now")
    raise one_of(f"mixture of task {self.name!r}:", name, tuple(self.mixtures))

  def query_mask(self, tokens):
    """int32[B, T] -> bool[B, T]: positions where query activations are taken; here all that are not special tokens."""
    return ~self._special(tokens)

  def counted_mask(self, tokens):
    """int32[B, T] -> bool[B, T]: positions that may match a query: all but padding and end-of-sequence (paper, section 2.1)."""
    return (tokens != self.tokenizer.pad_id) & (tokens != self.tokenizer.eos_id)

  def predicted_at(self, tokens):
    """int32[B, T] -> int32[B, P], the positions where `loss_mask` tokens are predicted, if they are few in each input; else None."""
    del tokens
    return None

  def groups(self, tokens) -> dict:
    """Named subsets of the inputs whose accuracy is reported by itself: name -> bool[B]."""
    del tokens
    return {}

  def features(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What can be said of an input in words: the properties that a reading of an activation names.

    Args:
      tokens: int[B, T], as `tokens` makes them or as a decoder writes them; a text may also be the beginning of an input.

    Returns:
      A name for each feature -> int32[B]; -1 where the text is not of the task's form, or does not reach that far.
    """
    del tokens
    return {}

  def contrast(self, index: np.ndarray, seed: int = 0, **how) -> Pairs:
    """Contrast pairs for patching: the inputs with these indices, int64[B], each beside one that differs as asked.

    Which questions there are is the task's business, see there. A pair is a function of the index and the seed; inputs without such
    a contrast are left out.
    """
    raise InversionViewError(f"the task {self.name} has no contrast pairs")

  def contrast_in(
    self, feature: str, vary: str, index: np.ndarray, seed: int = 0, *, predict: str, where: str = ""
  ) -> Pairs:
    """Contrast pairs that test whether an activation carries a feature.

    Args:
      feature: one of those that `features` names.
      vary: "only": the pair differs in the feature and, as far as that can be, in nothing else; "rest": in everything but the feature.
      index: int64[B].
      seed: what is drawn is a function of it and of the index.
      predict: label of the answer token that is looked at.
      where: a condition on the features of the clean input.

    Raises:
      InversionViewError: a feature or an answer token that the task does not know.
    """
    raise InversionViewError(f"the task {self.name} has no contrast pairs")

  def behaviour(self, where: "int | str") -> str:
    """Label of the answer token by which a patch at this position is judged: the one predicted there, else the first."""
    raise InversionViewError(f"the task {self.name} does not say which answer follows from position {where!r}")

  def split(self, name: str, seed: int = 0) -> np.ndarray:
    """int64[N]: indices of "train" (75 %) or "test" (25 %), in a random order that depends on `seed` alone."""
    if name not in ("train", "test"):
      raise one_of("split", name, ("train", "test"))
    order = np.random.default_rng(seed).permutation(self.num_inputs)
    cut = int(0.75 * self.num_inputs)
    return order[:cut] if name == "train" else order[cut:]

  def position(self, tokens: Sequence[int], where: "int | str") -> int:
    """The index of a position given as an index (negative ones count from the last token) or as a label.

    Args:
      tokens: int[T], one input with BOS; padding does not count.
      where: an index (BOS is 0; "-1" and -1 are the last token of the text), or a label such as "=" or "A1".

    Raises:
      InversionViewError: out of range, or a label this input does not have; lists those it has.
    """
    used = [int(t) for t in tokens if int(t) not in (self.tokenizer.pad_id, self.tokenizer.eos_id)]
    labels = self.labels(used)
    try:
      index = int(where) if isinstance(where, str) else operator.index(where)
    except (TypeError, ValueError):
      index = None
    # A digit can be a label only where the task says so; everywhere else it is an index.
    if index is None or str(where) in labels:
      if where in labels:
        return labels.index(where)
      known = ", ".join(label for label in labels if label)
      raise InversionViewError(
        f"unknown position {where!r}: "
        + (
          f"{self.tokenizer.text(used)!r} has the positions {known}"
          if known
          else f"{self.tokenizer.text(used)!r} has no named positions"
        )
        + f"; or give an index from 0 (BOS) to {len(used) - 1}"
      )
    if not -len(used) <= index < len(used):
      raise InversionViewError(
        f"position {index} is out of range: {self.tokenizer.text(used)!r} has the positions 0 (BOS) to {len(used) - 1}"
      )
    return index % len(used)

  def positions(self, tokens: np.ndarray, where: "int | str") -> np.ndarray:
    """int[B, T] -> int32[B]: `position` of every row."""
    return np.array([self.position(row, where) for row in np.asarray(tokens).tolist()], np.int32)

  def _special(self, tokens):
    t = self.tokenizer
    return (tokens == t.bos_id) | (tokens == t.eos_id) | (tokens == t.pad_id)


def index_or_label(typed: str) -> "int | str":
  """A position as people type it: "8" -> 8, "-1" -> -1, "=" -> "="."""
  return int(typed) if typed.lstrip("-").isdigit() else typed


def shift_left(array, fill):
  """array[:, 1:] with a column of `fill` behind it, so that column t tells about token t + 1."""
  xp = array.__array_namespace__()
  return xp.concatenate([array[:, 1:], xp.full_like(array[:, :1], fill)], axis=1)
