"""Names of places in a network.

A site can be written the paper's way or TransformerLens' way; both are accepted everywhere (paper, section 3):

    x0.pre    blocks.0.hook_resid_pre         residual stream before layer 0         [B, T, D]
    x1.mid    blocks.1.hook_resid_mid         ... after layer 1's attention          [B, T, D]
    x1.post   blocks.1.hook_resid_post        ... after layer 1's MLP                [B, T, D]
    m1        blocks.1.hook_mlp_out           what the MLP writes                    [B, T, D]
    a0.3      blocks.0.attn.hook_result.3     what head 3 writes, without b_O        [B, T, D]
    a0        blocks.0.attn.hook_result       all heads of the layer                 [B, T, H, D]
    p0        blocks.0.attn.hook_pattern      attention pattern (to look at only)    [B, H, T, T]
    embed     hook_embed                      token embedding                        [B, T, D]
    pos_embed hook_pos_embed                  position embedding                     [B, T, D]

Models with rotary embeddings have no pos_embed. Gemma's embed is the scaled embedding; in Gemma 2 heads are read in front of the norm
through which attention writes, and m1 behind that of the MLP.
"""

import dataclasses
import difflib
import functools
import re

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError

# kind -> (short form, hook form); {l} is the layer and {h} the head.
_FORMS = {
  "embed": ("embed", "hook_embed"),
  "pos_embed": ("pos_embed", "hook_pos_embed"),
  "pre": ("x{l}.pre", "blocks.{l}.hook_resid_pre"),
  "mid": ("x{l}.mid", "blocks.{l}.hook_resid_mid"),
  "post": ("x{l}.post", "blocks.{l}.hook_resid_post"),
  "mlp": ("m{l}", "blocks.{l}.hook_mlp_out"),
  "head": ("a{l}.{h}", "blocks.{l}.attn.hook_result.{h}"),
  "heads": ("a{l}", "blocks.{l}.attn.hook_result"),
  "pattern": ("p{l}", "blocks.{l}.attn.hook_pattern"),
}
# The kinds whose activation is one vector of d_model per position: what a reader can be trained on and an edit can replace.
VECTOR_KINDS = ("embed", "pos_embed", "pre", "mid", "post", "mlp", "head")

_PATTERNS = {
  kind: [
    re.compile(re.escape(form).replace(r"\{l\}", r"(?P<l>[0-9]{1,6})").replace(r"\{h\}", r"(?P<h>[0-9]{1,6})") + r"\Z")
    for form in forms
  ]
  for kind, forms in _FORMS.items()
}


@dataclasses.dataclass(frozen=True, order=True)
class Site:
  """A place in a network.

  Attributes:
    kind: one of ``embed pos_embed pre mid post mlp head heads pattern``.
    layer: index of the layer; None for the embeddings.
    head: index of the head; None unless ``kind`` is ``head``.
  """

  kind: str
  layer: int | None = None
  head: int | None = None

  @property
  def short(self) -> str:
    """The paper's name, such as ``a0.3``."""
    return _FORMS[self.kind][0].format(l=self.layer, h=self.head)

  @property
  def hook(self) -> str:
    """TransformerLens' name, such as ``blocks.0.attn.hook_result.3``."""
    return _FORMS[self.kind][1].format(l=self.layer, h=self.head)

  def __str__(self) -> str:
    return self.short


def parse(name: "str | Site") -> Site:
  """Reads a site in either notation; raises `InversionViewError` for a name of neither form."""
  if isinstance(name, Site):
    return name
  for kind, patterns in _PATTERNS.items():
    for pattern in patterns:
      if found := pattern.match(name.strip()):
        groups = found.groupdict()
        layer, head = groups.get("l"), groups.get("h")
        return Site(kind, None if layer is None else int(layer), None if head is None else int(head))
  raise InversionViewError(
    f"unknown site {values.brief(name)}: a site looks like a0.3 (a head), x0.pre, x1.mid, x1.post, m1, embed or pos_embed, "
    "or like blocks.0.attn.hook_result.3"
  )


def enumerate_sites(n_layers: int, n_heads: int, kinds=VECTOR_KINDS) -> tuple[Site, ...]:
  """All sites of the given kinds, in the order in which a forward pass meets them."""
  found = [Site(kind) for kind in ("embed", "pos_embed") if kind in kinds]
  for layer in range(n_layers):
    for kind in ("pre", "pattern", "heads", "head", "mid", "mlp", "post"):
      if kind not in kinds:
        continue
      if kind == "head":
        found += [Site("head", layer, head) for head in range(n_heads)]
      else:
        found.append(Site(kind, layer))
  return tuple(found)


def resolve(name: "str | Site", n_layers: int, n_heads: int, kinds=VECTOR_KINDS) -> Site:
  """Parses a name and checks that a network of this size has it.

  Raises:
    InversionViewError: the name is of no known form, or there is no such layer, head or kind; names the closest sites.
  """
  known = _known(n_layers, n_heads, tuple(kinds))
  try:
    site = parse(name)
  except InversionViewError as error:
    near = _near(str(name), known)
    raise InversionViewError(f"{error}; closest here: {', '.join(near)}" if near else str(error)) from None
  if site in known:
    return site
  near = _near(str(name), known)
  raise InversionViewError(
    f"no site {values.brief(str(name))} in a network of {n_layers} layers and {n_heads} heads (both counted from 0)"
    + (f"; closest: {', '.join(near)}" if near else "")
  )


@functools.cache
def _known(n_layers: int, n_heads: int, kinds: tuple[str, ...]) -> dict[Site, None]:
  """`enumerate_sites`, made once and quick to look up: a large network has thousands, and a run may name them all."""
  return dict.fromkeys(enumerate_sites(n_layers, n_heads, kinds))


def is_position_embedding(name: "str | Site") -> bool:
  """Whether this names the position embedding, which not every network has."""
  return Site("pos_embed") in (name, *(Site(kind) for kind, forms in _FORMS.items() if name in forms))


def _near(name: str, known) -> list[str]:
  by_name = {s.hook if name.startswith(("blocks", "hook")) else s.short: s for s in known}
  return difflib.get_close_matches(name[:100], list(by_name), n=4, cutoff=0.4)
