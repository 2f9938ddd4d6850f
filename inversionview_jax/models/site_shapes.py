"""What a site of an architecture looks like: whether there is one, how wide it is, and how many layers it takes.

Shapes: B batch, T tokens, H heads, G key/value heads, D d_model, K d_head, M d_mlp, E experts.
"""

from collections.abc import Iterable
from typing import Any

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.sites import KINDS, Site, whole

_INNER = ("mlp_pre", "mlp_linear", "mlp_mid", "mlp_ln", "mlp_post")
_HEAD = ("q", "k", "v", "rot_q", "rot_k", "z")
_DIMENSIONS = {"d_head": "K", "d_mlp": "M", "d_model": "D", "one": "1", "experts": "E", "keys": "T"}


def _dimension(kind: str) -> str:
  """What the last axis of an activation at one position counts."""
  one = KINDS[kind].all_of or kind
  if one.endswith("_scale"):
    return "one"
  if one in _HEAD:
    return "d_head"
  if one in _INNER:
    return "d_mlp"
  if one in ("head_scores", "head_pattern"):
    return "keys"
  return "experts" if one == "router" else "d_model"


def width(config: TransformerConfig, site: Site) -> int:
  """The last dimension of the activation at one position of a site with one vector per position."""
  sizes = {"d_head": config.d_head, "d_mlp": config.d_mlp, "d_model": config.d_model, "one": 1}
  return sizes[_dimension(site.kind)] if _dimension(site.kind) != "experts" else experts(config)


def padded(activation: Any, size: int) -> Any:
  """float[..., W] with zeros up to width `size`, which change neither distance: one array holds activations of sites of several widths."""
  xp = activation.__array_namespace__()
  missing_zeros = size - activation.shape[-1]
  if not missing_zeros:
    return activation
  zeros = xp.zeros((*activation.shape[:-1], missing_zeros), activation.dtype)
  return xp.concatenate([activation, zeros], axis=-1)


def widest(config: TransformerConfig, some: Iterable[Site]) -> int:
  """The largest width of these sites."""
  return max(width(config, site) for site in some)


def shape(config: TransformerConfig, site: Site, length: int) -> tuple[int, ...]:
  """The shape of the activation at one position: () + (width,), or (H, width) of a site of all heads. Scores and patterns have T = `length` keys."""
  last = length if _dimension(site.kind) == "keys" else width(config, site)
  one = KINDS[site.kind].all_of
  if not one:
    return (last,)
  return (config.kv_heads if KINDS[one].number == "kv_head" else config.n_heads, last)


def shape_name(site: Site) -> str:
  """The shape of what is captured, in letters, such as "[B, T, H, K]"."""
  last, one = _DIMENSIONS[_dimension(site.kind)], KINDS[site.kind].all_of
  if last == "T":
    return "[B, H, T, T]" if one else "[B, T, T]"
  heads = {"": "", "kv_head": "G, "}.get(KINDS[one].number, "H, ") if one else ""
  return f"[B, T, {heads}{last}]"


def experts(config: TransformerConfig) -> int:
  """How many experts a layer has; 0 without a router."""
  return config.n_experts


def depth(config: TransformerConfig, site: Site) -> int:
  """How many layers must run for a site."""
  if site.layer is None:
    return config.n_layers if site.kind.startswith("ln_final") else 0
  return site.layer + (site.kind != "pre")


def missing(config: TransformerConfig, site: Site) -> str:
  """Why a model of this architecture has no such site; "" if it has one. Numbers of layers and heads are not looked at."""
  kind = KINDS[whole(site).kind].all_of or site.kind
  base = kind.removesuffix("_scale")
  if kind == "pos_embed" and config.rotary:
    return "this model has rotary embeddings, which turn queries and keys instead"
  if kind in ("rot_q", "rot_k") and (not config.rotary or site.layer in config.unrotated):
    return "queries and keys are not turned there (no rotary embedding)"
  if config.attn_only and (kind == "mid" or base in ("ln2", "ln2_post", "mlp", *_INNER)):
    return "its layers have attention only, no MLP"
  if base == "ln_final" and config.norm == "none":
    return "it has no norm in front of the unembedding"
  if kind == "mid" and config.parallel:
    return f"attention and MLP of its layers read the same residual stream (x{site.layer}.pre), and nothing lies between them"
  if base in ("ln1", "ln2") and not config.pre_norm:
    return "attention and MLP read the residual stream itself, without a norm"
  if kind == "mlp_linear" and not config.gated:
    return "its MLP has no gate"
  if base in ("ln1_post", "ln2_post") and not config.post_norm:
    return "it has no norm behind attention and MLP"
  if base in ("mlp_mid", "mlp_ln") and not config.activation.endswith("_ln"):
    return "it has no norm inside of the MLP"
  mixture = bool(experts(config)) and site.layer not in config.dense_layers
  if base in ("router", "expert") and not mixture:
    return "the MLP is no mixture of experts there"
  if base in _INNER and mixture:
    return f"the MLP is a mixture of experts there: what they add are e{site.layer}.0, e{site.layer}.1, ..."
  return ""


def resolve(config: TransformerConfig, name: "str | Site", kinds: Iterable[str] = sites.VECTOR_KINDS) -> Site:
  """The site of this name; raises `InversionViewError` with the reason or the closest names if this architecture has none."""
  kinds = tuple(kinds)
  try:
    site = sites.parse(name)
  except InversionViewError:
    pass  # with the closest names below
  else:
    if site.kind in kinds and (reason := missing(config, site)):
      raise InversionViewError(f"no site {str(name)!r}: {reason}")
  present = tuple(
    kind for kind in kinds if any(not missing(config, Site(kind, layer)) for layer in range(max(config.n_layers, 1)))
  )
  return sites.resolve(name, config.n_layers, config.n_heads, present, config.kv_heads, experts(config))


def every_site(config: TransformerConfig, kinds: Iterable[str] = sites.VECTOR_KINDS) -> tuple[Site, ...]:
  """All sites of the given kinds that this architecture has, in the order of a forward pass."""
  found = sites.enumerate_sites(config.n_layers, config.n_heads, tuple(kinds), config.kv_heads, experts(config))
  return tuple(site for site in found if not missing(config, site))
