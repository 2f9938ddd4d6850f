"""Names of places in a network.

A site can be written the paper's way or TransformerLens' way; both are accepted everywhere (paper, section 3):

    x0.pre    blocks.0.hook_resid_pre         residual stream before layer 0         [B, T, D]
    x1.mid    blocks.1.hook_resid_mid         ... after layer 1's attention          [B, T, D]
    x1.post   blocks.1.hook_resid_post        ... after layer 1's MLP                [B, T, D]
    m1        blocks.1.hook_mlp_out           what the MLP writes                    [B, T, D]
    a0.3      blocks.0.attn.hook_result.3     what head 3 writes, without b_O        [B, T, D]
    a0        blocks.0.attn.hook_result       all heads of the layer                 [B, T, H, D]
    p0        blocks.0.attn.hook_pattern      attention pattern                      [B, H, T, T]
    embed     hook_embed                      token embedding                        [B, T, D]
    pos_embed hook_pos_embed                  position embedding                     [B, T, D]

`targets/README.md` has the table of all of them: queries, keys, values, scores, norms, and what is inside of the MLP. Where there is one for each
head, the name with its number (q0.3, `blocks.0.attn.hook_q.3`) is one head's, and without it (q0) all heads'. Keys and values are numbered by key/value
head, of which there may be fewer.

Models with rotary embeddings have no pos_embed. Gemma's embed is the scaled embedding; in Gemma 2 heads are read in front of the norm
through which attention writes, and m1 behind that of the MLP.
"""

import dataclasses
import difflib
import functools
import re

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of site.

  Attributes:
    short, hook: the two notations; {l} is the layer and {h} the number of a head or expert.
    about: what it is.
    vector: whether its activation is one vector per position, which a preimage can be read from.
    number: what {h} counts, "head", "kv_head" or "expert"; "" where there is no {h}.
    all_of: of an activation of all heads, the kind of each single one.
  """

  short: str
  hook: str
  about: str
  vector: bool = True
  number: str = ""
  all_of: str = ""


def _norm(name: str, short: str, hook: str, about: str) -> dict[str, Kind]:
  """The two sites of a norm, as TransformerLens has them: the divisor, and what it divides, before weights and biases."""
  return {
    f"{name}_scale": Kind(f"{short}.scale", f"{hook}.hook_scale", f"divisor of {about}"),
    name: Kind(short, f"{hook}.hook_normalized", f"{about}, before its weights"),
  }


def _heads(name: str, short: str, about: str, number: str = "head") -> dict[str, Kind]:
  """The site of all heads, and that of one."""
  hook = f"blocks.{{l}}.attn.hook_{name}"
  return {
    f"{name}_heads": Kind(f"{short}{{l}}", hook, f"{about}, all heads", vector=False, all_of=name),
    name: Kind(f"{short}{{l}}.{{h}}", f"{hook}.{{h}}", about, number=number),
  }


# In the order in which a forward pass meets them.
KINDS: dict[str, Kind] = {
  "embed": Kind("embed", "hook_embed", "token embedding"),
  "pos_embed": Kind("pos_embed", "hook_pos_embed", "position embedding"),
  "pre": Kind("x{l}.pre", "blocks.{l}.hook_resid_pre", "residual stream before the layer"),
  **_norm("ln1", "x{l}.ln1", "blocks.{l}.ln1", "normalized stream that attention reads"),
  **_heads("q", "q", "query"),
  **_heads("k", "k", "key", "kv_head"),
  **_heads("v", "v", "value", "kv_head"),
  **_heads("rot_q", "rot_q", "query behind the rotary embedding"),
  **_heads("rot_k", "rot_k", "key behind the rotary embedding", "kv_head"),
  "scores": Kind(
    "s{l}", "blocks.{l}.attn.hook_attn_scores", "masked scores of keys", vector=False, all_of="head_scores"
  ),
  "head_scores": Kind(
    "s{l}.{h}", "blocks.{l}.attn.hook_attn_scores.{h}", "one head's scores", vector=False, number="head"
  ),
  "pattern": Kind("p{l}", "blocks.{l}.attn.hook_pattern", "attention pattern", vector=False, all_of="head_pattern"),
  "head_pattern": Kind(
    "p{l}.{h}", "blocks.{l}.attn.hook_pattern.{h}", "one head's pattern", vector=False, number="head"
  ),
  **_heads("z", "z", "mixture of values, before W_O"),
  "heads": Kind("a{l}", "blocks.{l}.attn.hook_result", "what each head writes", vector=False, all_of="head"),
  "head": Kind("a{l}.{h}", "blocks.{l}.attn.hook_result.{h}", "what one head writes, without b_O", number="head"),
  **_norm("ln1_post", "a{l}.ln", "blocks.{l}.ln1_post", "what attention wrote, normalized"),
  "attn_out": Kind("a{l}.out", "blocks.{l}.hook_attn_out", "what attention writes, with b_O"),
  "mid": Kind("x{l}.mid", "blocks.{l}.hook_resid_mid", "residual stream after attention"),
  **_norm("ln2", "x{l}.ln2", "blocks.{l}.ln2", "normalized stream that the MLP reads"),
  "router": Kind("r{l}", "blocks.{l}.mlp.hook_expert_weights", "weights of the experts"),
  "mlp_pre": Kind("m{l}.pre", "blocks.{l}.mlp.hook_pre", "MLP before its activation function"),
  "mlp_linear": Kind("m{l}.linear", "blocks.{l}.mlp.hook_pre_linear", "what the gate of a gated MLP multiplies"),
  "mlp_mid": Kind("m{l}.mid", "blocks.{l}.mlp.hook_mid", "MLP between its activation function and its norm"),
  **_norm("mlp_ln", "m{l}.ln", "blocks.{l}.mlp.ln", "norm inside of the MLP"),
  "mlp_post": Kind("m{l}.post", "blocks.{l}.mlp.hook_post", "MLP behind its activation function (and gate)"),
  "expert": Kind("e{l}.{h}", "blocks.{l}.mlp.hook_expert_out.{h}", "what one expert adds", number="expert"),
  **_norm("ln2_post", "m{l}.out.ln", "blocks.{l}.ln2_post", "what the MLP wrote, normalized"),
  "mlp": Kind("m{l}", "blocks.{l}.hook_mlp_out", "what the MLP writes"),
  "post": Kind("x{l}.post", "blocks.{l}.hook_resid_post", "residual stream after the MLP"),
  **_norm("ln_final", "ln_final", "ln_final", "normalized last residual stream"),
}
# The kinds of the paper whose activation is one vector of d_model per position: what is listed by default.
PAPER_KINDS = ("embed", "pos_embed", "pre", "head", "mid", "mlp", "post")
# The kinds whose activation is one vector per position, of any width: what a preimage can be read from.
VECTOR_KINDS = tuple(name for name, kind in KINDS.items() if kind.vector)
_LAST = ("ln_final_scale", "ln_final")  # behind all layers
_MOST_NAMES = 4000  # that are compared with an unknown one; of a larger network those of the paper

_PATTERNS = {
  name: [
    re.compile(re.escape(form).replace(r"\{l\}", r"(?P<l>[0-9]{1,6})").replace(r"\{h\}", r"(?P<h>[0-9]{1,6})") + r"\Z")
    for form in (kind.short, kind.hook)
  ]
  for name, kind in KINDS.items()
}


@dataclasses.dataclass(frozen=True, order=True)
class Site:
  """A place in a network.

  Attributes:
    kind: a name of `KINDS`.
    layer: index of the layer; None for the embeddings and the final norm.
    head: index of the head, of the key/value head or of the expert; None where the kind has none.
  """

  kind: str
  layer: int | None = None
  head: int | None = None

  @property
  def short(self) -> str:
    """The paper's name, such as ``a0.3``."""
    return KINDS[self.kind].short.format(l=self.layer, h=self.head)

  @property
  def hook(self) -> str:
    """TransformerLens' name, such as ``blocks.0.attn.hook_result.3``."""
    return KINDS[self.kind].hook.format(l=self.layer, h=self.head)

  @property
  def about(self) -> str:
    """What it is, in a few words."""
    return KINDS[self.kind].about

  def __str__(self) -> str:
    return self.short


def parse(name: "str | Site") -> Site:
  """Reads a site in either notation; raises `InversionViewError` for a name of neither form."""
  if isinstance(name, Site):
    return name
  if not isinstance(name, str) or (site := _parsed(name.strip())) is None:
    raise InversionViewError(
      f"unknown site {values.brief(name)}: a site looks like a0.3 (a head), x0.pre, x1.mid, x1.post, m1, embed or pos_embed, "
      "or like blocks.0.attn.hook_result.3"
    )
  return site


@functools.lru_cache(100_000)
def _parsed(name: str) -> Site | None:
  for kind, patterns in _PATTERNS.items():
    for pattern in patterns:
      if found := pattern.match(name):
        groups = found.groupdict()
        layer, head = groups.get("l"), groups.get("h")
        return Site(kind, None if layer is None else int(layer), None if head is None else int(head))
  return None


def single(site: Site, head: int) -> Site:
  """One head of a site of all heads, such as q0.3 of q0."""
  return Site(KINDS[site.kind].all_of, site.layer, head)


def whole(site: Site) -> Site:
  """The site of all heads that this one's is part of, such as q0 of q0.3; itself where there is none."""
  parent = next((name for name, kind in KINDS.items() if kind.all_of == site.kind), None)
  return site if parent is None else Site(parent, site.layer)


def counts(n_heads: int, kv_heads: int | None = None, experts: int = 0) -> dict[str, int]:
  """How many of each there are in a layer, by `Kind.number`."""
  return {"": 1, "head": n_heads, "kv_head": n_heads if kv_heads is None else kv_heads, "expert": experts}


def enumerate_sites(
  n_layers: int, n_heads: int, kinds=PAPER_KINDS, kv_heads: int | None = None, experts: int = 0
) -> tuple[Site, ...]:
  """All sites of the given kinds, in the order in which a forward pass meets them."""
  many = counts(n_heads, kv_heads, experts)
  ordered = [kind for kind in KINDS if kind in kinds]

  def of_layer(layer):
    for kind in ordered:
      if "{l}" in KINDS[kind].short:
        number = KINDS[kind].number
        yield from [Site(kind, layer, i) for i in range(many[number])] if number else [Site(kind, layer)]

  outside = [kind for kind in ordered if "{l}" not in KINDS[kind].short]
  found = [Site(kind) for kind in outside if kind not in _LAST]
  for layer in range(n_layers):
    found += of_layer(layer)
  return (*found, *(Site(kind) for kind in outside if kind in _LAST))


def resolve(
  name: "str | Site", n_layers: int, n_heads: int, kinds=VECTOR_KINDS, kv_heads: int | None = None, experts: int = 0
) -> Site:
  """Parses a name and checks that a network of this size has it.

  Raises:
    InversionViewError: the name is of no known form, or there is no such layer, head or kind; names the closest sites.
  """
  size = (n_layers, n_heads, tuple(kinds), kv_heads, experts)
  try:
    site = parse(name)
  except InversionViewError as error:
    near = _near(str(name), size)
    raise InversionViewError(f"{error}; closest here: {', '.join(near)}" if near else str(error)) from None
  number = KINDS[site.kind].number
  exists = (site.layer or 0) < max(n_layers, 1 if site.layer is None else 0)
  if site.kind in kinds and exists and (site.head or 0) < counts(n_heads, kv_heads, experts)[number]:
    return site
  near = _near(str(name), size)
  heads = f"{n_heads} heads" + (f" ({kv_heads} of keys and values)" if kv_heads not in (None, n_heads) else "")
  raise InversionViewError(
    f"no site {values.brief(str(name))} in a network of {n_layers} layers and {heads} (both counted from 0)"
    + (f"; closest: {', '.join(near)}" if near else "")
  )


def is_position_embedding(name: "str | Site") -> bool:
  """Whether this names the position embedding, which not every network has."""
  return name in (Site("pos_embed"), "pos_embed", "hook_pos_embed")


@functools.lru_cache(32)
def _names(size: tuple, hooks: bool) -> list[str]:
  n_layers, n_heads, kinds, kv_heads, experts = size
  if n_layers * len(kinds) * n_heads > _MOST_NAMES:
    kinds = [kind for kind in kinds if kind in PAPER_KINDS]
  known = enumerate_sites(n_layers, n_heads, kinds, kv_heads, experts)
  return [site.hook if hooks else site.short for site in known]


def _near(name: str, size: tuple) -> list[str]:
  hooks = name.startswith(("blocks", "hook", "ln_final.hook"))
  return difflib.get_close_matches(name[:100], _names(size, hooks), n=4, cutoff=0.4)
