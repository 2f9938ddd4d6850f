"""What a run of a target returns.

Shapes: B rows, T tokens, D d_model, V vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site
from inversionview_jax.tables import ShowsTable, Table, shape_of
from inversionview_jax.targets.positions import is_traced
from inversionview_jax.tasks.tokenizers import Tokenizer

NO_LOGITS = (
  "this target was loaded with its first layers only and has no logits; load it without layers= (a base model or classifier, whose checkpoint "
  "has no unembedding, never has any)"
)
_SHOWN = 8  # texts in a table


@flax.struct.dataclass(repr=False, eq=False)
class Run(ShowsTable):
  """Logits and captured activations; a pytree, so that it may leave `jax.jit` and `jax.vmap`.

  ``run["a0.3"]`` is the activation at a site, under either name.

  Attributes:
    tokens: int32[B, T], what was run.
    lengths: int[B], the index behind the last token of each text, where end-of-sequence and padding begin: the last token of row b is at
      lengths[b] - 1. Padding in front counts.
    tokenizer: of the target, to show texts; None for a target without one.
    outputs: what the logits stand for, if not for tokens; see `Target`.
  """

  tokens: jax.Array | np.ndarray
  lengths: jax.Array | np.ndarray
  _logits: jax.Array | None
  _captured: dict[Site, jax.Array]
  tokenizer: Tokenizer | None = flax.struct.field(pytree_node=False, default=None)
  outputs: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

  @property
  def logits(self) -> jax.Array:
    """float32[B, T, V]; raises `InversionViewError` if the target has none."""
    if self._logits is None:
      raise InversionViewError(NO_LOGITS)
    return self._logits

  @property
  def last_logits(self) -> jax.Array:
    """float32[B, V]: the logits at the last token of each text, which predict what follows it."""
    return self._at_last(self.logits)

  def last(self, site: str | Site) -> jax.Array:
    """float[B, D]: the captured activation at the last token of each text."""
    return self._at_last(self[site])

  def _at_last(self, x):
    return jnp.take_along_axis(x, (jnp.asarray(self.lengths) - 1).reshape(-1, *(1,) * (x.ndim - 1)), axis=1)[:, 0]

  def __getitem__(self, site: str | Site) -> jax.Array:
    wanted = sites.parse(site)
    if wanted not in self._captured:
      have = ", ".join(s.short for s in self._captured) or "nothing"
      raise InversionViewError(f"{str(site)!r} was not captured; captured: {have}; add it to capture=[...]")
    return self._captured[wanted]

  def keys(self) -> list[str]:
    """Short names of the sites that were captured."""
    return [site.short for site in self._captured]

  def _table(self) -> Table:
    if not all(hasattr(x, "dtype") for x in jax.tree.leaves(self)):  # a pytree may hold anything in place of its arrays
      return Table("Run")
    arrays = [("logits", self._logits)] if self._logits is not None else []
    arrays += [(site.short, x) for site, x in self._captured.items()]
    notes = ", ".join(f"{name} {shape_of(x)}" for name, x in arrays)
    title = f"Run: tokens {shape_of(self.tokens)}"
    if is_traced(self.tokens, self.lengths, self._logits) or np.ndim(self.tokens) != 2:
      return Table(title, notes=notes)
    tokens, lengths = np.asarray(self.tokens), np.asarray(self.lengths)
    columns, rows = ["text", "tokens"], []
    texts = [self._text(row[:length]) for row, length in zip(tokens[:_SHOWN], lengths, strict=False)]
    cells = [[text, str(length)] for text, length in zip(texts, lengths, strict=False)]
    if self._logits is not None and self._logits.shape[-1] == 1:  # a number
      columns.append("output at the last token")
      for row, value in zip(cells, np.asarray(self.last_logits[:_SHOWN, 0]), strict=True):
        row.append(f"{value:.4g}")
    elif self._logits is not None:
      columns += ["most probable output" if self.outputs else "most probable next token", "p"]
      p = np.asarray(jax.nn.softmax(self.last_logits[:_SHOWN], axis=-1))
      best = p.argmax(axis=-1)
      for row, token, probability in zip(cells, best, p.max(axis=-1), strict=True):
        row += [repr(self._token(token)), f"{probability:.3f}"]
    rows = [tuple(row) for row in cells]
    if len(tokens) > _SHOWN:
      rows.append((f"... {len(tokens) - _SHOWN:,} more", *[""] * (len(columns) - 1)))
    return Table(title, tuple(columns), tuple(rows), notes)

  def _text(self, ids) -> str:
    if self.tokenizer is None:
      return " ".join(map(str, ids[:12])) + (" ..." if len(ids) > 12 else "")
    text = self.tokenizer.text(ids)
    return repr(text if len(text) <= 60 else f"{text[:57]}...")

  def _token(self, token):
    if self.outputs:
      return self.outputs[int(token)]
    return int(token) if self.tokenizer is None else self.tokenizer.strings([int(token)])[0]
