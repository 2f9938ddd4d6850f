"""The common base of tasks over the texts of a language model, whose tokens are the model's, all or those that the task needs.

Shapes: B batch, T tokens.
"""

from collections.abc import Sequence

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks.base import Array, Mixture, Task
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.tokenizers import PartTokenizer, Tokenizer

# The paper's for IOI: 64 candidates each, four times.
PAPER_MIXTURE = Mixture(((0.5, 0.0), (1.0, 0.0), (1.0, 0.1)), num_samples=768)


class LanguageTask(Task):
  """A task over the texts of a language model; made with that model's tokenizer.

  Attributes:
    tokenizer: a `PartTokenizer` over the model's.
    settings: plain data; `tasks.get(name, base, settings)` makes the same task again.
  """

  metric = "cosine"
  epsilon = 0.1
  mixtures = {
    "noisy": Mixture(((1.0, 0.0), (1.0, 0.1), (1.0, 0.2), (1.0, 0.3)), stratified=True),
    "paper": PAPER_MIXTURE,
  }
  tokenizer: PartTokenizer

  def loss_mask(self, tokens: Array) -> Array:
    return tokens != self.tokenizer.pad_id

  def answer_mask(self, tokens: Array) -> Array:
    raise InversionViewError(f"the task {self.name} has no target of its own to train: give a language model")

  def labels(self, tokens: Sequence[int]) -> list[str]:
    return [""] * len(tokens)

  def default_sites(self, n_layers: int, n_heads: int) -> tuple[str, ...]:
    """x0.pre, every head and every MLP (paper, IOI: 157 sites of GPT-2 small)."""
    sites = ["x0.pre"]
    for layer in range(n_layers):
      sites += [f"a{layer}.{head}" for head in range(n_heads)] + [f"m{layer}"]
    return tuple(sites)


def base_of(tokenizer: Tokenizer | None, task: str) -> HuggingFaceTokenizer:
  """The model's own tokenizer; raises `InversionViewError` for None or a tokenizer of characters."""
  if isinstance(tokenizer, PartTokenizer):
    return tokenizer.base
  if not isinstance(tokenizer, HuggingFaceTokenizer):
    raise InversionViewError(
      f"the task {task} is for language models: give a checkpoint with its tokenizer (--target, or target.path in the config)"
    )
  return tokenizer
