"""One compiled program per target that captures every head and MLP and takes every edit of a circuit: which edit it is, is data.

Shapes: B inputs of a batch, N inputs, T tokens, L layers, H heads, D width of the residual stream, O values of the output.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import parallel
from inversionview_jax.models.capture import SiteEdit
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target

BATCH = 256
# What the stream in front of attention or of the MLP is changed by, and what a head or an MLP writes instead.
_KINDS = (("pre", "add"), ("mid", "add"), ("head", "set"), ("mlp", "set"))
_NOWHERE = -1  # no layer, no position


@dataclasses.dataclass(frozen=True, eq=False)
class Ran:
  """What a batch of inputs leads to.

  Attributes:
    logits: float32[N, T, O].
    heads: float32[L, N, T, H, D].
    mlps: float32[L, N, T, D].
    stream: float32[N, T, D], behind the last layer.
  """

  logits: np.ndarray
  heads: np.ndarray
  mlps: np.ndarray
  stream: np.ndarray

  def written(self, site: Site) -> np.ndarray:
    """float32[N, T, D], by a head or an MLP."""
    return self.mlps[site.layer or 0] if site.kind == "mlp" else self.heads[site.layer or 0, :, :, site.head or 0]


@dataclasses.dataclass(frozen=True, eq=False)
class Change:
  """One edit of a run.

  Attributes:
    kind: "pre" or "mid", to which the value is added, "head" or "mlp", which becomes the value.
    layer, head: where; 0 for a kind without heads.
    column: int[N], the position in each input; -1: none.
    value: float32[N, D].
  """

  kind: str
  layer: int
  head: int
  column: np.ndarray
  value: np.ndarray


@functools.lru_cache(16)
def _program(module) -> Callable:
  config = module.config
  layers = range(config.n_layers)
  heads, mlps = ([Site(kind, layer) for layer in layers] for kind in ("heads", "mlp"))
  last = Site("post", config.n_layers - 1)

  def run(params, tokens, edits):
    out = module.apply({"params": params}, tokens, capture=[*heads, *mlps, last], edits=edits)
    each = [jnp.stack([out[site] for site in some]) for some in (heads, mlps)]
    return Ran(out.logits, *each, out[last])

  return jax.jit(run)


jax.tree_util.register_dataclass(Ran, [field.name for field in dataclasses.fields(Ran)], [])


def run(target: Target, tokens: np.ndarray, change: Change | None = None) -> Ran:
  """Runs int32[N, T] tokens, in batches of one shape, with at most one change."""
  parts = []
  for start in range(0, len(tokens), BATCH):
    rows = slice(start, start + BATCH)
    count = len(tokens[rows])
    edits = tuple(_edit(kind, mode, change, rows, target.config.d_model) for kind, mode in _KINDS)
    out = _program(target.module)(target.params, parallel.pad_rows(tokens[rows], BATCH), edits)
    parts.append(jax.tree.map(np.asarray, out))
    parts[-1] = dataclasses.replace(
      parts[-1],
      **{name: getattr(parts[-1], name)[:count] for name in ("logits", "stream")},
      **{name: getattr(parts[-1], name)[:, :count] for name in ("heads", "mlps")},
    )
  axes = {"logits": 0, "stream": 0, "heads": 1, "mlps": 1}
  return Ran(**{name: np.concatenate([getattr(part, name) for part in parts], axis) for name, axis in axes.items()})


def _edit(kind: str, mode: str, change: Change | None, rows: slice, width: int) -> SiteEdit:
  """The change as data; of another kind, or none, one that is made in no layer."""
  if change is None or change.kind != kind:
    layer, head = _NOWHERE, 0
    column, value = np.full(BATCH, _NOWHERE, np.int32), np.zeros((BATCH, width), np.float32)
  else:
    layer, head = change.layer, change.head
    column = np.full(BATCH, _NOWHERE, np.int32)
    column[: len(change.column[rows])] = change.column[rows]
    value = parallel.pad_rows(np.asarray(change.value[rows], np.float32), BATCH)
  return SiteEdit(kind, jnp.int32(layer), jnp.int32(head), jnp.asarray(column), jnp.asarray(value), mode=mode)
