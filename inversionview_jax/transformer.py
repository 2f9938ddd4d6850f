"""One decoder-only transformer, for target models and decoders alike: GPT-2, and the Llama family by configuration.

A forward pass can return the activation at any site and can replace it (`capture`). A decoder passes `slots`: vectors of each layer that
join that layer's keys and values and nothing else (paper, section 2.2).

Shapes: B batch, T tokens, P positions, L layers, H heads, G key/value heads, D d_model, K d_head, V vocabulary, C cached positions.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.capture import Output, Recorder, SiteEdit, rows_at
from inversionview_jax.cross_attention import CrossAttention
from inversionview_jax.layers import ACTIVATIONS, NORMS, LayerNorm, Linear, RMSNorm, for_a_cpu, normal, rotate
from inversionview_jax.sites import Site

__all__ = ["ACTIVATIONS", "LayerNorm", "Linear", "RMSNorm", "Transformer", "TransformerConfig"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a transformer; plain data that is stored beside its parameters.

  The defaults are GPT-2's; `pretrained` has the values of the other families.

  Attributes:
    vocab_size, n_ctx, n_layers, n_heads, d_model: V, the longest T, L, H, D.
    d_mlp: inner width of the MLP.
    activation: one of `ACTIVATIONS`.
    norm: "layer" (LayerNorm) or "rms" (RMSNorm, which does not subtract the mean).
    norm_eps: added to the variance in norms.
    tied: the unembedding is the transposed embedding; otherwise it has a matrix of its own.
    attn_scale: scores are divided by the square root of `query_width`.
    query_width: 0 for d_head.
    n_kv_heads: G; H / G heads read each of them. 0 for H.
    head_width: K; 0 for D / H, which must be whole.
    rotary: K / 2 frequencies, by which `rotate` turns queries and keys; empty for learned position embeddings.
    rotary_gain: cos and sin are multiplied by this.
    unrotated: layers that turn nothing, and so know of positions only what causality tells them.
    windows: for each layer how many positions a query sees, its own included; 0 for all. Empty for all in every layer.
    biases: which linear maps have one.
    gated: the MLP is (activation(gate) * fc) @ proj.
    qk_norm: each head's queries and keys pass a norm of their own before they are turned.
    post_norm: what attention and MLP write passes a norm before it joins the residual stream.
    embed_scale: token embeddings are multiplied by this.
    attn_cap, logit_cap: scores and logits x become cap * tanh(x / cap); 0 for as they are.
    embed_std, init_std: of the token embedding, and of every other matrix, when they are initialized.
    cross_width: above 0, slots have this width and do not join the keys and values of attention: each layer has an attention of its own
      over them and a learned place that says nothing, between attention and MLP (paper, the decoder's cross-attention variant).
    dropout_embed, dropout_attn, dropout_resid: rates, used in training only.
    dtype: compute type, "float32" or "bfloat16"; norms, softmax and logits stay float32.
    remat: gradients run each layer again instead of keeping what is inside of it (rematerialisation): less memory, a third more work.
  """

  vocab_size: int
  n_ctx: int
  n_layers: int
  n_heads: int
  d_model: int
  d_mlp: int
  activation: str = "gelu_new"
  norm_eps: float = 1e-5
  tied: bool = True
  attn_scale: bool = True
  embed_std: float = 0.02
  init_std: float = 0.02
  dropout_embed: float = 0.0
  dropout_attn: float = 0.0
  dropout_resid: float = 0.0
  dtype: str = "float32"
  norm: str = "layer"
  query_width: float = 0.0
  n_kv_heads: int = 0
  head_width: int = 0
  rotary: tuple[float, ...] = ()
  rotary_gain: float = 1.0
  unrotated: tuple[int, ...] = ()
  windows: tuple[int, ...] = ()
  biases: tuple[str, ...] = ("q", "k", "v", "o", "fc", "proj", "unembed")
  gated: bool = False
  qk_norm: bool = False
  post_norm: bool = False
  embed_scale: float = 1.0
  attn_cap: float = 0.0
  logit_cap: float = 0.0
  cross_width: int = 0
  remat: bool = False

  def __post_init__(self):
    for name in ("rotary", "unrotated", "windows", "biases"):  # JSON has lists; a module's configuration is hashed
      if not isinstance(value := getattr(self, name), (list, tuple)):
        raise TypeError(f"{name} = {value!r} is not a list")
      object.__setattr__(self, name, tuple(value))

  @property
  def d_head(self) -> int:
    return self.head_width or self.d_model // self.n_heads

  @property
  def kv_heads(self) -> int:
    return self.n_kv_heads or self.n_heads

  def stated(self) -> dict:
    """What differs from the defaults; so an attribute that a later version adds does not change what a model is called."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

  def for_use(self) -> "TransformerConfig":
    """The same without what matters to training only."""
    return dataclasses.replace(
      self, embed_std=0.02, init_std=0.02, dropout_embed=0.0, dropout_attn=0.0, dropout_resid=0.0, remat=False
    )


_MEMORY = 2**31  # bytes


def texts_that_fit(config: TransformerConfig, length: int, kept: int) -> int:
  """How many texts of `length` tokens run at a time if what a model holds of them shall stay near 2 GiB: `kept` vectors of a token, and the MLP's."""
  return max(8, _MEMORY // (4 * length * (kept * config.d_model + 4 * config.d_mlp)))


# Queries times keys, and width of a head, up to which attention on a CPU multiplies and sums: XLA's batched products of such small matrices
# are slower (with gradients 2.5 times at 14 x 14 and width 8, the same at 32), its fusions of larger ones slower still (7 times at 33 x 33),
# and sums over more than 32 places it writes out first (3 times at 14 x 14 and width 64).
_SHORT, _NARROW = 256, 32


class Attention(nn.Module):
  """Causal self-attention with optional extra keys and values (slots) in front and an optional cache."""

  config: TransformerConfig
  layer: int

  def setup(self):
    c = self.config
    self.q = Linear(c.n_heads * c.d_head, std=c.init_std, bias="q" in c.biases)
    self.k, self.v = (Linear(c.kv_heads * c.d_head, std=c.init_std, bias=name in c.biases) for name in "kv")
    # GPT-2 shrinks what writes to the residual stream by the number of writers.
    self.o = Linear(c.d_model, std=c.init_std / (2 * c.n_layers) ** 0.5, bias="o" in c.biases)
    if c.qk_norm:
      self.q_norm, self.k_norm = NORMS[c.norm](c.norm_eps), NORMS[c.norm](c.norm_eps)
    self.dropout, self.dropout_resid = nn.Dropout(c.dropout_attn), nn.Dropout(c.dropout_resid)

  @property
  def window(self) -> int:
    return self.config.windows[self.layer] if self.config.windows else 0

  def _heads(self, x):
    return x.reshape(*x.shape[:-1], -1, self.config.d_head)

  def _turned(self, x, positions):
    c = self.config
    if not c.rotary or self.layer in c.unrotated or positions is None:
      return x
    return rotate(x, positions, c.rotary, c.rotary_gain)

  def queries(self, x, positions):
    """float[B, T, D], int32[T] or int32[B, T] -> float[B, T, H, K]."""
    q = self._heads(self.q(x))
    return self._turned(self.q_norm(q) if self.config.qk_norm else q, positions)

  def keys_values(self, x, positions=None):
    """float[B, T, D], int32[T] -> two float[B, T, G, K]; a slot has no position, and its key is not turned."""
    k = self._heads(self.k(x))
    return self._turned(self.k_norm(k) if self.config.qk_norm else k, positions), self._heads(self.v(x))

  def keys_values_rows_last(self, x, positions=None):
    """float[B, T, D], int32[T] -> two float[T, G, K, B]: `keys_values`, as the cache holds them."""
    k = self._rows_last(self.k, x, lambda x: self.keys_values(x, positions)[0])
    return k, self._rows_last(self.v, x, None)

  def _rows_last(self, linear, x, made):
    """float[B, T, D] -> float[T, heads, K, B]: `linear` of x, or where its heads are normalized or turned what `made(x)` says."""
    c = self.config
    if made is not None and (c.qk_norm or c.rotary):
      return jnp.moveaxis(made(x), 0, -1)
    weights = linear.variables["params"]
    out = [jnp.einsum("bd,de->eb", x[:, t], weights["kernel"].astype(x.dtype)) for t in range(x.shape[1])]
    out = jnp.stack(out)
    if "bias" in weights:
      out = out + weights["bias"].astype(x.dtype)[:, None]
    return out.reshape(x.shape[1], -1, c.d_head, x.shape[0])

  def _scaled(self, scores):
    c = self.config
    if c.attn_scale:
      scores = scores / (c.query_width or c.d_head) ** 0.5
    return c.attn_cap * jnp.tanh(scores / c.attn_cap) if c.attn_cap else scores

  def _for_each_head(self, x):
    """float[B, T, G, K] -> float[B, T, H, K]: consecutive heads share a key/value head."""
    share = self.config.n_heads // self.config.kv_heads
    return x if share == 1 else jnp.repeat(x, share, axis=-2)

  def mix(self, x, slot=None, deterministic=True, at=None):
    """Each head's mixture of values before W_O.

    Args:
      x: float[B, T, D], normalized residual stream.
      slot: float[B, J, D] or None; J places in front that every position sees; never a query.
      at: int32[B, P] or None; the positions that query, all T by default.

    Returns:
      z float[B, T or P, H, K] and the pattern float32[B, H, T or P, T (+J with slots, in front)].
    """
    positions = jnp.arange(x.shape[1])
    asking = positions[None, :] if at is None else at  # [B or 1, T or P]
    q = self.queries(rows_at(x, at), asking)
    k, v = self.keys_values(x, positions)
    seen = positions <= asking[..., None]
    if self.window:
      seen &= positions > asking[..., None] - self.window
    seen = seen[:, None]  # [B or 1, 1, T or P, T]
    if slot is not None:
      slot_k, slot_v = self.keys_values(slot)
      k, v = jnp.concatenate([slot_k, k], axis=1), jnp.concatenate([slot_v, v], axis=1)
      seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (slot.shape[1], 0)), constant_values=True)
    k, v = self._for_each_head(k), self._for_each_head(v)
    short = q.shape[1] * k.shape[1] <= _SHORT and self.config.d_head <= _NARROW
    short = short and for_a_cpu()
    if short:
      scores = jnp.sum(q[:, :, None] * k[:, None], axis=-1).transpose(0, 3, 1, 2)
    else:
      scores = jnp.einsum("bqhk,bshk->bhqs", q, k)
    scores = self._scaled(scores.astype(jnp.float32))
    pattern = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    weights = self.dropout(pattern, deterministic=deterministic).astype(x.dtype)
    if short:
      return jnp.sum(weights.transpose(0, 2, 3, 1)[..., None] * v[:, None], axis=2), pattern
    return jnp.einsum("bhqs,bshk->bqhk", weights, v), pattern

  def mix_cached(self, x, cache, at, slots: int):
    """One new token, at position `at`, against a cache of J = `slots` and the tokens behind: x float[B, 1, D]; (keys, values) float[C, G, K, B].

    Rows are the last axis of the cache, so that a CPU sums many rows at a time: over the last axis it adds one number after the other.
    """
    index = at + slots
    q = self._rows_last(self.q, x, lambda x: self.queries(x, jnp.reshape(at, (1,))))
    q = q.reshape(self.config.kv_heads, -1, *q.shape[-2:])  # [G, H / G, K, B]: consecutive heads share a key/value head
    new = self.keys_values_rows_last(x, jnp.reshape(at, (1,)))
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), index, axis=0)
      for old, x in zip(cache, new, strict=True)
    )
    # Multiply and sum: with one query per row this beats a batched matrix product of tiny matrices. To be compiled with
    # `parallel.compiler_options`, without which XLA's CPU backend gets products of this form wrong (see there).
    scores = self._scaled(_dot(q, keys[:, :, None]).astype(jnp.float32))  # [C, G, H / G, B]
    places = jnp.arange(keys.shape[0])
    seen = places <= index
    if self.window:
      seen &= (places > index - self.window) | (places < slots)
    pattern = jax.nn.softmax(jnp.where(seen[:, None, None, None], scores, -jnp.inf), axis=0).astype(x.dtype)
    mixed = jnp.sum(pattern[..., None, :] * values[:, :, None], axis=0)  # [G, H / G, K, B]
    return mixed.reshape(-1, x.shape[0]), (keys, values)

  def write(self, z, deterministic=True):
    """float[B, T, H, K] -> float[B, T, D]: the sum of all heads' writes plus b_O."""
    out = self.o(z.reshape(*z.shape[:-2], -1))
    return self.dropout_resid(out, deterministic=deterministic)

  def write_rows_last(self, z):
    """float[H * K, B] -> float[B, 1, D]: the sum of all heads' writes plus b_O. The product takes z as it lies; to turn it costs a CPU more."""
    weights = self.o.variables["params"]
    out = jax.lax.dot_general(z, weights["kernel"].astype(z.dtype), (((0,), (0,)), ((), ())))
    return (out + weights["bias"].astype(z.dtype) if "bias" in weights else out)[:, None]

  def write_heads(self, z):
    """float[B, T, H, K] -> float[B, T, D]: the sum of all heads' writes, without b_O."""
    kernel = self.o.variables["params"]["kernel"]
    return z.reshape(*z.shape[:-2], -1) @ kernel.astype(z.dtype)

  def results(self, z):
    """float[B, T, H, K] -> float[B, T, H, D]: each head's write, without b_O."""
    return jnp.stack([self.result(z, head) for head in range(self.config.n_heads)], axis=-2)

  def result(self, z, head):
    """float[B, T, H, K], head (an int or int32[]) -> float[B, T, D]: one head's write, without b_O.

    Captures and edits both come through here, with the same shapes, so that writing a captured value back is exact.
    """
    c = self.config
    kernel = self.o.variables["params"]["kernel"].reshape(c.n_heads, c.d_head, c.d_model)
    return jnp.take(z, head, axis=-2) @ jnp.take(kernel, head, axis=0).astype(z.dtype)


class Mlp(nn.Module):
  config: TransformerConfig

  @nn.compact
  def __call__(self, x, deterministic=True):
    c = self.config
    inner = Linear(c.d_mlp, std=c.init_std, bias="fc" in c.biases, name="fc")(x)
    if c.gated:
      inner = (
        ACTIVATIONS[c.activation](Linear(c.d_mlp, std=c.init_std, bias="gate" in c.biases, name="gate")(x)) * inner
      )
    else:
      inner = ACTIVATIONS[c.activation](inner)
    x = Linear(c.d_model, std=c.init_std / (2 * c.n_layers) ** 0.5, bias="proj" in c.biases, name="proj")(inner)
    return nn.Dropout(c.dropout_resid)(x, deterministic=deterministic)


class Block(nn.Module):
  config: TransformerConfig
  layer: int

  def setup(self):
    c = self.config
    norm = NORMS[c.norm]
    self.ln1, self.ln2 = norm(c.norm_eps), norm(c.norm_eps)
    if c.post_norm:
      self.ln1_post, self.ln2_post = norm(c.norm_eps), norm(c.norm_eps)
    self.attn, self.mlp = Attention(c, self.layer), Mlp(c)
    if c.cross_width:
      self.cross, self.cross_ln = CrossAttention(c), norm(c.norm_eps)

  def _attention_write(self, x):
    return self.ln1_post(x) if self.config.post_norm else x

  def _mlp_write(self, x, deterministic=True):
    written = self.mlp(self.ln2(x), deterministic)
    return self.ln2_post(written) if self.config.post_norm else written

  def __call__(self, x, recorder, slot=None, deterministic=True, at=None):
    crossed = bool(self.config.cross_width)
    z, pattern = self.attn.mix(self.ln1(x), None if crossed else slot, deterministic, at)
    recorder.keep(Site("pattern", self.layer), lambda: pattern)
    written = recorder.through_heads(self.layer, self.attn, z, self.attn.write(z, deterministic), pattern)
    x = recorder.through("mid", self.layer, rows_at(x, at) + self._attention_write(written))
    if crossed:
      x = x + self.cross(self.cross_ln(x), *self.cross.keys_values(slot), deterministic)
    x = x + recorder.through("mlp", self.layer, self._mlp_write(x, deterministic))
    return recorder.through("post", self.layer, x)

  def cache(self, slot, length: int):
    """What `step` needs, before the first of `length` tokens: float[B, J, M] -> (keys, values), float[J + length, G, K, B]; with
    `cross_width` (keys, values), without those of slots, and (keys, values) of the slots."""
    c = self.config
    if c.cross_width:
      empty = jnp.zeros((length, c.kv_heads, c.d_head, slot.shape[0]), slot.dtype)
      return (empty, empty), self.cross.keys_values(slot)
    return self.longer(self.attn.keys_values_rows_last(slot), length)

  def longer(self, cache, tokens: int):
    """The same with room for so many tokens more."""
    if self.config.cross_width:
      return _longer(cache[0], tokens), cache[1]
    return _longer(cache, tokens)

  def step(self, x, cache, at, slots: int):
    if self.config.cross_width:
      cache, crossed = cache
      z, cache = self.attn.mix_cached(self.ln1(x), cache, at, 0)
      x = x + self._attention_write(self.attn.write_rows_last(z))
      x = x + self.cross(self.cross_ln(x), *crossed)
      return x + self._mlp_write(x), (cache, crossed)
    z, cache = self.attn.mix_cached(self.ln1(x), cache, at, slots)
    x = x + self._attention_write(self.attn.write_rows_last(z))
    return x + self._mlp_write(x), cache


def _dot(q, keys):
  """float[..., K, B] each -> float[..., B]: summed over K, 32 at a time, because XLA's CPU backend would write the products of more out first."""
  parts = (slice(start, start + 32) for start in range(0, q.shape[-2], 32))
  return sum(jnp.sum(q[..., part, :] * keys[..., part, :], axis=-2) for part in parts)


def _longer(keys_values, tokens: int):
  return tuple(jnp.pad(x, ((0, tokens), (0, 0), (0, 0), (0, 0))) for x in keys_values)


class Transformer(nn.Module):
  """A language model of the GPT-2 or the Llama family."""

  config: TransformerConfig

  def setup(self):
    c = self.config
    self.embed = self.param("embed", normal(c.embed_std), (c.vocab_size, c.d_model))
    if not c.rotary:
      self.pos_embed = self.param("pos_embed", normal(0.02), (c.n_ctx, c.d_model))
    self.blocks = [Block(c, layer) for layer in range(c.n_layers)]
    self.ln_f = NORMS[c.norm](c.norm_eps)
    if not c.tied:
      self.unembed = Linear(c.vocab_size, bias="unembed" in c.biases)
    self.dropout = nn.Dropout(c.dropout_embed)

  def __call__(
    self,
    tokens,
    *,
    slots=None,
    capture: Sequence[Site] = (),
    at=None,
    choose=None,
    edits: Sequence[SiteEdit] = (),
    logits: bool = True,
    logits_at=None,
    exact: bool = False,
    deterministic: bool = True,
  ) -> Output:
    """Runs the model.

    Args:
      tokens: int32[B, T]. Padding belongs on the right, where causality keeps it from mattering.
      slots: float[B, L, J, D] or None; J extra keys and values per layer.
      capture: sites to return; the layers behind the last of them are not run if `logits` is False.
      at: int32[B, P] or None; return vector sites at these positions only. Or a dict with such positions for each site that is captured;
        those of a head may be a function of its attention, float32[B, T, T].
      choose: (sites, int32[B, P]) or None; return the activation of one of these sites for each of the positions `at`, `Output.chosen`. It
        takes far less room than to capture all of them and to choose then.
      edits: activations to replace; a later edit of the same residual site wins.
      logits: whether to compute them.
      logits_at: int32[B, P] or None; compute float32[B, P, V] at these positions only, and nothing else of the last layer. Takes no
        captures or edits.
      exact: round at every site, so that results are bit by bit the same whatever is captured and edited; costs some fusion.
      deterministic: False applies dropout, with the "dropout" random stream.
    """
    c = self.config
    # Token ids are never negative; the compiler does not know.
    recorder = Recorder(capture, at, edits, jnp.maximum(0, -jnp.min(tokens)) if exact else None, choose)
    wanted = (*capture, *(choose[0] if choose else ()))
    dtype = jnp.dtype(c.dtype)
    batch, length = tokens.shape
    x = recorder.through("embed", None, self._embedded(tokens))
    if not c.rotary:
      positions = jnp.broadcast_to(self.pos_embed[:length].astype(dtype), (batch, length, c.d_model))
      x = x + recorder.through("pos_embed", None, positions)
    x = self.dropout(x, deterministic=deterministic)
    last = (
      c.n_layers if logits else 1 + max([-1] + [s.layer for s in wanted if s.layer is not None and s.kind != "pre"])
    )
    depth = max([last] + [s.layer for s in wanted if s.kind == "pre"])
    if logits_at is not None and (wanted or edits):
      raise ValueError("logits_at cannot be combined with captures or edits")
    for layer, block in enumerate(self.blocks[:depth]):
      x = recorder.through("pre", layer, x)
      slot = None if slots is None else slots[:, layer].astype(dtype)
      last_at = logits_at if layer == c.n_layers - 1 else None
      if c.remat and not (capture or edits or self.is_initializing()):
        # Nothing is captured, so nothing but x leaves the layer. (A recorder's captures would not survive its being run twice.)
        x = nn.remat(lambda block, x, slot, at: block(x, recorder, slot, deterministic, at))(block, x, slot, last_at)
      else:
        x = block(x, recorder, slot, deterministic, last_at)
    if depth < c.n_layers:
      x = recorder.through("pre", depth, x)
    logits = logits or self.is_initializing()  # so that every parameter is made
    return Output(self.logits(x) if logits else None, recorder.captured, chosen=recorder.chosen)

  def _embedded(self, tokens):
    """int32[...] -> float[..., D]."""
    x = jnp.take(self.embed, tokens, axis=0).astype(jnp.dtype(self.config.dtype))
    return x if self.config.embed_scale == 1.0 else x * jnp.asarray(self.config.embed_scale, x.dtype)

  def logits(self, x):
    """float[..., D] -> float32[..., V]: final norm and unembedding."""
    x, cap = self.ln_f(x), self.config.logit_cap
    x = (x @ self.embed.T.astype(x.dtype) if self.config.tied else self.unembed(x)).astype(jnp.float32)
    return cap * jnp.tanh(x / cap) if cap else x

  def init_cache(self, slots, length: int):
    """An empty cache for `length` tokens behind the slots: what `Block.cache` makes, per layer."""
    dtype = jnp.dtype(self.config.dtype)
    return tuple(block.cache(slots[:, layer].astype(dtype), length) for layer, block in enumerate(self.blocks))

  def longer_cache(self, cache, tokens: int):
    """The same cache with room for so many tokens more."""
    return tuple(block.longer(each, tokens) for block, each in zip(self.blocks, cache, strict=True))

  def step(self, tokens, position, cache, slots: int = 1):
    """One token more: int32[B] at `position` (int32[], 0 for BOS), J = `slots` -> float32[B, V] logits of the next, and the cache."""
    x = self._embedded(tokens)[:, None, :]
    if not self.config.rotary:
      x = x + self.pos_embed[position].astype(x.dtype)
    new = []
    for block, layer_cache in zip(self.blocks, cache, strict=True):
      x, layer_cache = block.step(x, layer_cache, position, slots)
      new.append(layer_cache)
    return self.logits(x)[:, 0], tuple(new)
