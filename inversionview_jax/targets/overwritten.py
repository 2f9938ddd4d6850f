"""Edits without effect: those whose activation reaches no prediction, because other edits replace all that it is passed on to.

Shapes: M edits, B rows, T tokens, S steps.
"""

from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.sites import Site

Addresses = Sequence[tuple[str, Site, "np.ndarray | None"]]
"""(name, site, positions), where positions are int[B], or None for all of them."""


def refuse_overwritten(
  what: str, addresses: Addresses, steps: np.ndarray, read: np.ndarray, config: TransformerConfig
) -> None:
  """Raises `InversionViewError` if an edit has no effect because of others that are made with it.

  Args:
    what: what each of them is, such as "edits"; for the message.
    addresses: M of them.
    steps: bool[S, M], which are made together.
    read: bool[B, T], positions whose prediction matters.
    config: of the model.
  """
  largest = _largest(steps)
  if not largest:
    return
  rows, read = _distinct_rows(addresses, read)
  alone = np.stack(
    [_reaching(addresses, _only(m, len(addresses)), rows, read, config)[m] for m in range(len(addresses))]
  )
  for on in largest:
    lost = alone & ~_reaching(addresses, on, rows, read, config) & on[:, None]
    if lost.any():
      first = int(np.argmax(lost.any(axis=1)))
      others = [int(m) for m in np.flatnonzero(on) if m != first]
      single = [
        m
        for m in others
        if (alone & ~_reaching(addresses, _only((first, m), len(on)), rows, read, config))[first].any()
      ]
      names = " and ".join(addresses[m][0] for m in (single[:1] or others))
      raise InversionViewError(
        f"two {what} of which one has no effect: {addresses[first][0]} is overwritten by {names}, which replaces all that it reaches; keep one"
      )


def _only(m: int | tuple[int, ...], count: int) -> np.ndarray:
  on = np.zeros(count, bool)
  on[list(m) if isinstance(m, tuple) else m] = True
  return on


def _largest(steps: np.ndarray) -> list[np.ndarray]:
  """The steps with two edits or more that are not part of another: an edit that is lost in a part is lost in the whole."""
  steps = np.unique(np.asarray(steps, bool), axis=0)
  steps = steps[steps.sum(axis=1) > 1]
  return [on for i, on in enumerate(steps) if not any((on <= other).all() for j, other in enumerate(steps) if j != i)]


def _distinct_rows(addresses: Addresses, read: np.ndarray) -> tuple[list[np.ndarray | None], np.ndarray]:
  """Positions of the addresses and `read` in every row that differs in them from those before it: of many inputs, most are alike."""
  columns = [read.astype(np.int64), *(np.asarray(at)[:, None] for _, _, at in addresses if at is not None)]
  _, first = np.unique(np.concatenate(columns, axis=1), axis=0, return_index=True)
  return [None if at is None else np.asarray(at)[first] for _, _, at in addresses], read[first]


def _reaching(
  addresses: Addresses, on: np.ndarray, rows: list[np.ndarray | None], read: np.ndarray, config: TransformerConfig
) -> np.ndarray:
  """bool[M, B]: which of the edits that are made change something on the way to a prediction. Walks the model from its end to its beginning."""
  where = [np.ones(read.shape, bool) if at is None else np.arange(read.shape[1]) == at[:, None] for at in rows]
  replaced: dict[Site, np.ndarray] = {}  # site -> where it is replaced, [B, T]
  for (_, site, _), cells, made in zip(addresses, where, on, strict=True):
    if made:
      replaced[residual(site)] = replaced.get(residual(site), np.zeros(read.shape, bool)) | cells
  matters: dict[Site, np.ndarray] = {}  # site -> where a change of it would matter for what is read, [B, T]
  live = read  # the same of the residual stream, from its end to its beginning

  def through(site):
    matters[site] = live
    return live & ~replaced[site] if site in replaced else live

  for layer in reversed(range(config.n_layers)):
    live = through(Site("post", layer))
    matters[Site("mlp", layer)] = live
    live = through(Site("mid", layer))
    matters |= {Site("head", layer, head): live for head in range(config.n_heads)}
    # By attention to every later position, also where heads are replaced: published experiments replace every writer, one after the other.
    live = np.logical_or.accumulate(live[:, ::-1], axis=1)[:, ::-1]
  live = through(Site("pre", 0))
  matters |= {Site("embed"): live, Site("pos_embed"): live}
  reached = [cells & matters[residual(site)] for (_, site, _), cells in zip(addresses, where, strict=True)]
  return np.stack([cells.any(axis=1) for cells in reached]) & on[:, None]


def residual(site: Site) -> Site:
  """The one name of an activation that has two: the residual stream before a layer is that after the layer before it."""
  return Site("post", site.layer - 1) if site.kind == "pre" and site.layer else site
