"""Edits without effect: those whose activation reaches no prediction, because other edits replace all that it is passed on to.

Shapes: M edits, B rows, T tokens, S steps.
"""

from collections.abc import Sequence

import numpy as np

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.sites import KINDS, Site

Addresses = Sequence[tuple[str, Site, "np.ndarray | None"]]
"""(name, site, positions), where positions are int[B], bool[B, T], or None for all of them."""
_OUTSIDE = (*sites.PAPER_KINDS, "heads", "attn_out", "ln_final", "ln_final_scale")  # not inside of attention or MLP


def refuse_overwritten(
  what: str,
  addresses: Addresses,
  steps: np.ndarray,
  read: np.ndarray,
  config: TransformerConfig,
  sets: np.ndarray | None = None,
) -> None:
  """Raises `InversionViewError` if an edit has no effect because of others that are made with it.

  Args:
    what: what each of them is, such as "edits"; for the message.
    addresses: M of them.
    steps: bool[S, M], which are made together.
    read: bool[B, T], positions whose prediction matters.
    config: of the model.
    sets: bool[M], which of them leave nothing of what was there; None: all.
  """
  sets = np.ones(len(addresses), bool) if sets is None else sets
  largest = _largest(steps)
  if not largest:
    return
  rows, read = _distinct_rows(addresses, read)
  alone = np.stack(
    [_reaching(addresses, _only(m, len(addresses)), rows, read, config, sets)[m] for m in range(len(addresses))]
  )
  for on in largest:
    lost = alone & ~_reaching(addresses, on, rows, read, config, sets) & on[:, None]
    if lost.any():
      first = int(np.argmax(lost.any(axis=1)))
      others = [int(m) for m in np.flatnonzero(on) if m != first]
      single = [
        m
        for m in others
        if (alone & ~_reaching(addresses, _only((first, m), len(on)), rows, read, config, sets))[first].any()
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
  columns = [
    read.astype(np.int64),
    *(np.asarray(at, np.int64).reshape(len(read), -1) for _, _, at in addresses if at is not None),
  ]
  _, first = np.unique(np.concatenate(columns, axis=1), axis=0, return_index=True)
  return [None if at is None else np.asarray(at)[first] for _, _, at in addresses], read[first]


def _reaching(
  addresses: Addresses,
  on: np.ndarray,
  rows: list[np.ndarray | None],
  read: np.ndarray,
  config: TransformerConfig,
  sets: np.ndarray,
) -> np.ndarray:
  """bool[M, B]: which of the edits that are made change something on the way to a prediction. Walks the model from its end to its beginning."""
  where = [_cells(at, read.shape) for at in rows]
  replaced: dict[Site, np.ndarray] = {}  # site -> where it is replaced, [B, T]
  for (_, site, _), cells, made in zip(addresses, where, on & sets, strict=True):
    for one in _singles(site, config) if made else ():
      replaced[one] = replaced.get(one, np.zeros(read.shape, bool)) | cells
  walk = _Walk(config, replaced, inside=any(site.kind not in _OUTSIDE for _, site, _ in addresses))
  walk.run(read)
  none = np.zeros(read.shape, bool)
  reached = [
    cells & np.any([walk.matters.get(one, none) for one in _singles(site, config)], axis=0)
    for (_, site, _), cells in zip(addresses, where, strict=True)
  ]
  return np.stack([cells.any(axis=1) for cells in reached]) & on[:, None]


def _cells(at: "np.ndarray | None", shape: tuple[int, ...]) -> np.ndarray:
  """Positions int[B], bool[B, T] or None for all -> bool[B, T]."""
  if at is None:
    return np.ones(shape, bool)
  return np.arange(shape[1]) == at[:, None] if at.ndim == 1 else at


def _singles(site: Site, config: TransformerConfig) -> list[Site]:
  """The activations of which a site consists: those of single heads where it has all of them."""
  one = KINDS[site.kind].all_of
  if not one:
    return [residual(site)]
  count = config.kv_heads if KINDS[one].number == "kv_head" else config.n_heads
  return [Site(one, site.layer, head) for head in range(count)]


class _Walk:
  """From the end of the model to its beginning: where a change of each activation would matter for what is read.

  Attributes:
    matters: site of a single activation -> bool[B, T].
  """

  def __init__(self, config: TransformerConfig, replaced: dict[Site, np.ndarray], inside: bool):
    self.config, self.replaced, self.inside = config, replaced, inside
    self.matters: dict[Site, np.ndarray] = {}

  def through(self, live: np.ndarray, kind: str, layer: int | None, head: int | None = None) -> np.ndarray:
    """Where what an activation is made of matters, if the activation matters where `live`."""
    site = Site(kind, layer, head)
    self.matters[site] = live
    return live & ~self.replaced[site] if site in self.replaced else live

  def norm(self, live: np.ndarray, kind: str, layer: int | None) -> np.ndarray:
    live = self.through(live, kind, layer)
    self.matters[Site(f"{kind}_scale", layer)] = live  # what is divided still matters where the divisor is replaced
    return live

  def attended(self, live: np.ndarray) -> np.ndarray:
    """The positions that those of `live` can attend to: earlier ones, or all."""
    if not self.config.causal:
      return np.broadcast_to(live.any(axis=1, keepdims=True), live.shape)
    return np.logical_or.accumulate(live[:, ::-1], axis=1)[:, ::-1]

  def run(self, read: np.ndarray) -> None:
    live = self.norm(read, "ln_final", None)
    for layer in reversed(range(self.config.n_layers)):
      live = self.through(live, "post", layer)
      written = live
      if not self.config.attn_only:
        self.mlp(live, layer)
      live = written if self.config.attn_only or self.config.parallel else self.through(live, "mid", layer)
      self.attention(live, layer)
      # By attention to every earlier position, also where heads are replaced: published experiments replace every writer, one after the other.
      live = self.attended(live)
    live = self.through(live, "pre", 0)
    for kind in ("embed", "pos_embed"):
      self.through(live, kind, None)

  def mlp(self, live: np.ndarray, layer: int) -> None:
    live = self.through(live, "mlp", layer)
    if not self.inside:
      return
    live = self.norm(live, "ln2_post", layer)
    self.matters[Site("router", layer)] = live
    for expert in range(self.config.n_experts):
      self.matters[Site("expert", layer, expert)] = live
    live = self.through(self.norm(self.through(live, "mlp_post", layer), "mlp_ln", layer), "mlp_mid", layer)
    live = self.through(live, "mlp_pre", layer) | self.through(live, "mlp_linear", layer)
    # Of experts nothing is followed further: a norm in front of them matters.
    self.norm(live | self.matters[Site("router", layer)] if self.config.n_experts else live, "ln2", layer)

  def attention(self, live: np.ndarray, layer: int) -> None:
    config = self.config
    live = self.norm(self.through(live, "attn_out", layer), "ln1_post", layer)
    if not self.inside:
      self.matters |= {Site("head", layer, head): live for head in range(config.n_heads)}
      return
    share, read = config.n_heads // config.kv_heads, np.zeros(live.shape, bool)
    scored, mixed = (np.zeros((config.kv_heads, *live.shape), bool) for _ in range(2))
    for head in range(config.n_heads):
      own = self.through(self.through(live, "head", layer, head), "z", layer, head)
      mixed[head // share] |= own
      own = self.through(self.through(own, "head_pattern", layer, head), "head_scores", layer, head)
      scored[head // share] |= own
      read = read | self.through(self.through(own, "rot_q", layer, head), "q", layer, head)
    for head in range(config.kv_heads):
      key = self.through(self.attended(scored[head]), "rot_k", layer, head)
      read = read | self.through(key, "k", layer, head)
      read = read | self.through(self.attended(mixed[head]), "v", layer, head)
    self.norm(read, "ln1", layer)


def same_activation(site: Site, other: Site) -> bool:
  """Whether two sites share an activation: two names of one, or all heads and one of them."""
  site, other = residual(site), residual(other)
  return site == other or sites.whole(site) == other or sites.whole(other) == site


def residual(site: Site) -> Site:
  """The one name of an activation that has two: the residual stream before a layer is that after the layer before it."""
  return Site("post", site.layer - 1) if site.kind == "pre" and site.layer else site
