"""The logit lens (nostalgebraist, 2020): what a residual stream would predict, read through the final norm and the unembedding.

Shapes: B rows, T tokens, S sites, D d_model, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import KINDS
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.targets.arrays import to_array
from inversionview_jax.targets.positions import is_traced
from inversionview_jax.targets.run import Run
from inversionview_jax.targets.target import Target

_STREAM = ("embed", "pre", "mid", "post", "attn_out", "mlp", "head")
_SHOWN = 5  # tokens of a row
_CAPTURED = tuple(KINDS)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogitLens(ShowsTable):
  """Logits of activations.

  Attributes:
    sites: S short names; ("given",) of an array.
    logits: float32[S, B, T, V] of a run, float32[1, ..., V] of an array.
    target: whose tokens they are of.
    lengths: int[B] of a run, the index behind the last token of each text; None of an array.
  """

  sites: tuple[str, ...]
  logits: jax.Array
  target: Target
  lengths: Any = None

  def __getitem__(self, site: str) -> jax.Array:
    """float32[B, T, V]: the logits of one site, by its short name or in TransformerLens' notation."""
    name = site if site in self.sites else self.target.site(site).short
    if name not in self.sites:
      raise InversionViewError(f"{site!r} is not among the sites of this lens: {', '.join(self.sites)}")
    return self.logits[self.sites.index(name)]

  def top(self, site: str, position: int = -1, row: int = 0, count: int = _SHOWN) -> list[tuple[str, float]]:
    """The most probable tokens of a site at one position of a row, with their probabilities; -1 is the last token of the text."""
    return self._top(self[site], position, row, count)

  def _top(self, logits: jax.Array, position: int, row: int, count: int) -> list[tuple[str, float]]:
    if self.lengths is not None and position < 0:
      position += int(np.asarray(self.lengths)[row])
    x = logits.reshape(-1, logits.shape[-1])[0] if logits.ndim < 3 else logits[row, position]
    p = np.asarray(jax.nn.softmax(x))
    best = np.argsort(-p, kind="stable")[:count]
    return [(self._name(int(token)), float(p[token])) for token in best]

  def _name(self, token: int) -> str:
    if self.target.outputs:
      return self.target.outputs[token]
    tokenizer = self.target.tokenizer
    return str(token) if tokenizer is None else tokenizer.strings([token])[0]

  def _table(self) -> Table:
    title = "Logit lens, most probable tokens" + (
      " at the last token of the first text" if self.lengths is not None else ""
    )
    if is_traced(self.logits):
      return Table(title)
    rows = [
      (site, *(f"{name!r} {p:.3f}" for name, p in self._top(self.logits[i], -1, 0, _SHOWN)))
      for i, site in enumerate(self.sites)
    ]
    return Table(title, ("site", *(f"{k + 1}." for k in range(len(rows[0]) - 1))), tuple(rows))


def logit_lens(of: "Run | np.ndarray | jax.Array", target: Target) -> LogitLens:
  """What activations would predict: final norm and unembedding of each.

  Args:
    of: a run, whose captured activations of the residual stream (and of what is written to it) are read; or one array, float[..., D].
    target: the model; of a run, the one that it is of.

  Raises:
    InversionViewError: a run without such an activation, an array of another width, or a target without logits.
  """
  target.require_logits()
  if isinstance(of, Run):
    names = [name for name in of.keys() if target.site(name, _CAPTURED).kind in _STREAM]
    if not names:
      raise InversionViewError(
        "the run has captured no residual stream for the logit lens: run with capture=['x0.post', ...], which sites as x0.pre, x1.mid and m1 "
        "are too"
      )
    logits = [_logits(target.module, target.params, of[name]) for name in names]
    return LogitLens(tuple(names), jnp.stack(logits), target, of.lengths)
  x = to_array(of)
  x = x if is_traced(x) else jnp.asarray(x, jnp.float32)
  if not x.ndim or x.shape[-1] != target.config.d_model:
    raise InversionViewError(
      f"the logit lens reads activations of width {target.config.d_model}, got an array of shape {list(x.shape)}"
    )
  return LogitLens(("given",), _logits(target.module, target.params, x)[None], target)


@functools.partial(parallel.jit, static_argnums=(0,))
def _logits(module, params, x):
  return module.apply({"params": params}, x, method="logits")
