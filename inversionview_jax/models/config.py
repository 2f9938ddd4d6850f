"""What a transformer is (`TransformerConfig`, stored beside its parameters) and how it is computed (`Compute`, chosen by whoever runs it).

Shapes: V vocabulary, T tokens, L layers, H heads, G key/value heads, D d_model, K d_head.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from inversionview_jax import values
from inversionview_jax.devices import numerics
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import storage

ATTENTIONS = ("auto", "plain", "multiply_and_sum")
DTYPES = ("float32", "bfloat16")
NORMS = ("layer", "rms", "none")
FINAL_NORMS = ("", "rms")
# The linear maps that may have a bias.
LINEAR = ("q", "k", "v", "o", "gate", "fc", "proj", "unembed", "router", "experts")
MOST_EXPERTS = 2**14
# The largest sizes that are taken for one: what is larger is a damaged file, and would be allocated or looped over before a tensor is missed.
MOST_LAYERS, MOST_WIDTH, MOST_INNER, MOST_TOKENS, MOST_CONTEXT = 10_000, 2**20, 2**24, 2**24, 2**27


def _whole(low: int, high: int) -> Callable[[str, object], int]:
  return functools.partial(values.whole, low=low, high=high)


def _number(low: float, high: float) -> Callable[[str, object], float]:
  return functools.partial(values.number, low=low, high=high)


def _list_of(check: Callable[[str, object], Any], most: int) -> Callable[[str, object], tuple]:
  return functools.partial(values.sequence, check=check, most=most)


# Attribute of `TransformerConfig` -> its type and range.
_CHECKS: dict[str, Callable[[str, object], Any]] = {
  "vocab_size": _whole(1, MOST_TOKENS),
  "n_ctx": _whole(1, MOST_CONTEXT),
  "n_layers": _whole(0, MOST_LAYERS),
  "n_heads": _whole(1, MOST_WIDTH),
  "d_model": _whole(1, MOST_WIDTH),
  "d_mlp": _whole(1, MOST_INNER),
  "activation": values.text,
  "norm_eps": _number(0, 1),
  "tied": values.switch,
  "attn_scale": values.switch,
  "embed_std": _number(0, 1e3),
  "init_std": _number(0, 1e3),
  "dropout_embed": _number(0, 1),
  "dropout_attn": _number(0, 1),
  "dropout_resid": _number(0, 1),
  "norm": values.text,
  "query_width": _number(0, MOST_INNER),
  "n_kv_heads": _whole(0, MOST_WIDTH),
  "head_width": _whole(0, MOST_WIDTH),
  "rotary": _list_of(_number(0, 1e6), MOST_WIDTH),
  "rotary_gain": _number(0, 1e6),
  "unrotated": _list_of(_whole(0, MOST_LAYERS), MOST_LAYERS),
  "windows": _list_of(_whole(0, MOST_CONTEXT), MOST_LAYERS),
  "biases": _list_of(functools.partial(values.choice, choices=LINEAR), len(LINEAR)),
  "gated": values.switch,
  "qk_norm": values.switch,
  "post_norm": values.switch,
  "embed_scale": _number(0, 1e6),
  "attn_cap": _number(0, 1e9),
  "logit_cap": _number(0, 1e9),
  "cross_width": _whole(0, MOST_WIDTH),
  "parallel": values.switch,
  "pre_norm": values.switch,
  "qk_norm_joint": values.switch,
  "attn_scale_by_layer": values.switch,
  "sinks": values.switch,
  "local_layers": _list_of(_whole(0, MOST_LAYERS), MOST_LAYERS),
  "local_rotary": _list_of(_number(0, 1e6), MOST_WIDTH),
  "local_rotary_gain": _number(0, 1e6),
  "long_rotary": _list_of(_number(0, 1e6), MOST_WIDTH),
  "long_from": _whole(0, MOST_CONTEXT),
  "n_experts": _whole(0, MOST_EXPERTS),
  "experts_per_token": _whole(0, MOST_EXPERTS),
  "expert_width": _whole(0, MOST_INNER),
  "expert_weights_sum": values.switch,
  "dense_layers": _list_of(_whole(0, MOST_LAYERS), MOST_LAYERS),
  "gate_limit": _number(0, 1e9),
  "causal": values.switch,
  "unattended": _list_of(_whole(0, MOST_TOKENS), 64),
  "attn_only": values.switch,
  "vocab_out": _whole(0, MOST_TOKENS),
  "rotary_adjacent": values.switch,
  "final_norm": values.text,
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The architecture of a transformer; plain data that is stored beside its parameters.

  The defaults are GPT-2's; `pretrained` has the values of the other families.

  Attributes:
    vocab_size, n_ctx, n_layers, n_heads, d_model: V, the longest T, L, H, D.
    d_mlp: inner width of the MLP.
    activation: one of `layers.ACTIVATIONS`.
    norm: "layer" (LayerNorm), "rms" (RMSNorm, which does not subtract the mean) or "none".
    norm_eps: added to the variance in norms.
    tied: the unembedding is the transposed embedding; otherwise it has a matrix of its own.
    attn_scale: scores are divided by the square root of `query_width`.
    query_width: 0 for d_head.
    n_kv_heads: G; H / G heads read each of them. 0 for H.
    head_width: K; 0 for D / H, which must be whole.
    rotary: up to K / 2 frequencies, by which `layers.rotate` turns the first dimensions of queries and keys, two for each frequency; empty for
      learned position embeddings.
    rotary_gain: cos and sin are multiplied by this.
    unrotated: layers whose queries and keys are not turned: all they know of positions is the causal mask.
    windows: for each layer how many positions a query sees, its own included; 0 for all. Empty for all in every layer.
    biases: which linear maps have one.
    gated: the MLP is (activation(gate) * fc) @ proj.
    qk_norm: each head's queries and keys pass a norm of their own before they are turned.
    post_norm: what attention and MLP write passes a norm before it joins the residual stream.
    embed_scale: token embeddings are multiplied by this.
    attn_cap, logit_cap: scores and logits x become cap * tanh(x / cap); 0 for no cap.
    embed_std, init_std: of the token embedding, and of every other matrix, when they are initialized.
    cross_width: above 0, slots have this width and do not join the keys and values of attention: between attention and MLP each layer has a
      cross-attention to them and to a learned null key and value (paper, the decoder's cross-attention variant).
    parallel: the MLP reads the residual stream in front of attention, as attention does, and both are added to it (GPT-NeoX); there is no
      residual stream between them.
    pre_norm: attention and MLP read a norm of the residual stream; otherwise the stream itself (OLMo 2, with `post_norm`).
    qk_norm_joint: the norm of `qk_norm` is one over all heads together.
    attn_scale_by_layer: scores of layer i are divided by i + 1.
    sinks: each head has a learned score of a key that holds nothing, so that the weights of the others sum up to less than 1 (gpt-oss).
    local_layers: layers whose queries and keys are turned by `local_rotary` and `local_rotary_gain` in place of `rotary` and `rotary_gain`
      (Gemma 3: those with a window).
    long_rotary: frequencies in place of `rotary` where more than `long_from` tokens are run (longrope).
    n_experts: above 0, the MLP is a mixture of so many gated ones (`experts.Experts`), each of inner width `expert_width`.
    experts_per_token: how many of them a token passes through: those with the largest weights, which a softmax over all of them gives.
    expert_weights_sum: the weights of these few are divided by their sum.
    dense_layers: layers with a plain MLP of inner width `d_mlp` nevertheless.
    gate_limit: above 0, the gate is at most this, fc at most this in size, and fc plus 1 is multiplied (gpt-oss).
    causal: a position attends to itself and those before it; otherwise to all.
    unattended: ids of tokens that nothing attends to, the end and the padding of a text for a model that attends in both directions.
    attn_only: layers have no MLP, and so no residual stream in front of it.
    vocab_out: how many logits there are; 0 for one of each token.
    rotary_adjacent: pairs that are turned lie side by side (GPT-J), not in two halves.
    final_norm: of the norm in front of the unembedding, "rms"; "" for the same as `norm`.
    dropout_embed, dropout_attn, dropout_resid: rates, used in training only.
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
  parallel: bool = False
  pre_norm: bool = True
  qk_norm_joint: bool = False
  attn_scale_by_layer: bool = False
  sinks: bool = False
  local_layers: tuple[int, ...] = ()
  local_rotary: tuple[float, ...] = ()
  local_rotary_gain: float = 1.0
  long_rotary: tuple[float, ...] = ()
  long_from: int = 0
  n_experts: int = 0
  experts_per_token: int = 0
  expert_width: int = 0
  expert_weights_sum: bool = False
  dense_layers: tuple[int, ...] = ()
  gate_limit: float = 0.0
  causal: bool = True
  unattended: tuple[int, ...] = ()
  attn_only: bool = False
  vocab_out: int = 0
  rotary_adjacent: bool = False
  final_norm: str = ""

  def __post_init__(self) -> None:
    """Raises `InversionViewError` for an attribute of another type or out of its range, and for sizes that do not go together."""
    for name, check in _CHECKS.items():
      checked = check(name, getattr(self, name))
      if isinstance(checked, tuple):  # JSON has lists; a module's configuration is hashed
        object.__setattr__(self, name, checked)
    if self.norm not in NORMS:
      raise one_of("norm", self.norm, NORMS)
    if not self.head_width and self.d_model % self.n_heads:
      raise InversionViewError(f"d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}")
    if self.n_heads % self.kv_heads:
      raise InversionViewError(f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}")
    for name in ("rotary", "local_rotary", "long_rotary"):
      if 2 * len(getattr(self, name)) > self.d_head:
        raise InversionViewError(
          f"{name} has {len(getattr(self, name))} frequencies for heads of {self.d_head} dimensions"
        )
    if not self.rotary and (self.local_rotary or self.long_rotary):
      raise InversionViewError("local_rotary and long_rotary need rotary, which other layers and shorter texts take")
    if bool(self.local_layers) != bool(self.local_rotary):
      raise InversionViewError("local_layers and local_rotary go together: give both or none")
    if self.n_experts and not 1 <= self.experts_per_token <= self.n_experts:
      raise InversionViewError(
        f"experts_per_token = {self.experts_per_token} must be from 1 to n_experts = {self.n_experts}"
      )
    if self.n_experts and not (self.expert_width and self.gated):
      raise InversionViewError("a mixture of experts (n_experts) needs expert_width, and gated experts (gated = True)")
    if self.parallel and self.cross_width:
      raise InversionViewError("cross_width is for layers in which the MLP follows attention; parallel is not handled")
    if self.windows and len(self.windows) < self.n_layers:
      raise InversionViewError(f"windows has {len(self.windows)} entries for {self.n_layers} layers")
    self._check_variants()

  def _check_variants(self) -> None:
    """Raises `InversionViewError` for combinations of what few models have that mean nothing or are not handled."""
    if self.final_norm not in FINAL_NORMS:
      raise one_of("final_norm", self.final_norm, FINAL_NORMS)
    if self.norm == "none" and (self.pre_norm or self.post_norm or self.qk_norm or self.cross_width):
      raise InversionViewError(
        "norm = 'none' goes with pre_norm = False, and without post_norm, qk_norm and cross_width"
      )
    if not self.causal and (any(self.windows) or self.cross_width):
      raise InversionViewError("causal = False is not handled together with windows or cross_width")
    if self.attn_only and (self.parallel or self.n_experts or self.gated or self.cross_width):
      raise InversionViewError("attn_only goes without parallel, n_experts, gated and cross_width: there is no MLP")
    if self.activation.endswith("_ln") and (self.gated or self.n_experts):
      raise InversionViewError(f"activation {self.activation!r}, with a norm in the MLP, is not handled in a gated MLP")
    if self.vocab_out and self.tied:
      raise InversionViewError("vocab_out needs an unembedding of its own (tied = False)")

  @classmethod
  def from_dict(cls, stored: dict) -> "TransformerConfig":
    """The inverse of `dataclasses.asdict`; also of version 0.1, whose keys about computation are dropped (`storage.COMPUTE_KEYS`).

    Raises:
      TypeError: a key that there is not, or a required one that is missing.
    """
    return cls(**{key: value for key, value in stored.items() if key not in storage.COMPUTE_KEYS})

  @property
  def d_head(self) -> int:
    return self.head_width or self.d_model // self.n_heads

  @property
  def kv_heads(self) -> int:
    return self.n_kv_heads or self.n_heads

  @property
  def outputs(self) -> int:
    """How many logits there are."""
    return self.vocab_out or self.vocab_size

  @property
  def has_dropout(self) -> bool:
    return bool(self.dropout_embed or self.dropout_attn or self.dropout_resid)

  def non_defaults(self) -> dict:
    """The attributes that differ from the defaults, so that one which a later version adds does not change a model's fingerprint."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

  def for_inference(self) -> "TransformerConfig":
    """The same without dropout and initialization, which matter to training only."""
    return dataclasses.replace(
      self, embed_std=0.02, init_std=0.02, dropout_embed=0.0, dropout_attn=0.0, dropout_resid=0.0
    )


@dataclasses.dataclass(frozen=True)
class Compute:
  """How a transformer is computed; the default is right under any JAX transformation, on any platform.

  Attributes:
    dtype: of activations, "float32" or "bfloat16"; norms, softmax and logits are computed in float32.
    remat: gradients run each layer again instead of keeping what is inside of it (rematerialisation): less memory, a third more work.
    attention: "plain" (matmuls), "multiply_and_sum" (`cpu_attention`; wrong on a CPU under a plain `jax.jit`, see `numerics.has_safe_sums`) or
      "auto": the second where it is right and faster.
    dot_general: matmul policy of the linear maps, with the signature of `jax.lax.dot_general` (`numerics.matmul_policy`).
  """

  dtype: str = "float32"
  remat: bool = False
  attention: str = "auto"
  dot_general: numerics.DotGeneral = numerics.matmul

  def __post_init__(self) -> None:
    if self.dtype not in DTYPES:
      raise one_of("dtype", self.dtype, DTYPES)
    if self.attention not in ATTENTIONS:
      raise one_of("attention", self.attention, ATTENTIONS)
