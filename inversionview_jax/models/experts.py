"""A mixture of experts in place of an MLP: each token passes through the few gated MLPs that its router weighs most.

Every token's output is exact, whatever the other tokens are: no expert has a capacity. Experts are computed one after the other over all
tokens, and one that no token goes to is skipped, so that decoding a token takes its own experts only.

Shapes: B batch, T tokens, P positions, N = B T rows, E experts, D d_model, M expert_width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.models.capture import Recorder
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.layers import ACTIVATIONS, Linear
from inversionview_jax.sites import Site

Weights = dict[str, dict[str, jax.Array]]
"""The linear maps of experts, "gate", "fc" and "proj": "kernel" [E, in, out] and, if they have one, "bias" [E, out]."""


def has_experts(config: TransformerConfig, layer: int) -> bool:
  """Whether the MLP of a layer is a mixture of experts."""
  return bool(config.n_experts) and layer not in config.dense_layers


def gated(config: TransformerConfig, gate: jax.Array, fc: jax.Array) -> jax.Array:
  """What a gated MLP's last linear map reads: the activation of the gate times the other linear map's output."""
  activation = ACTIVATIONS[config.activation]
  if not config.gate_limit:
    return activation(gate) * fc
  limit = config.gate_limit
  return activation(jnp.minimum(gate, limit)) * (jnp.clip(fc, -limit, limit) + 1)


class _Stack(nn.Module):
  """The linear maps of one kind, of all experts."""

  count: int
  shape: tuple[int, int]
  std: float
  use_bias: bool

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    out = {"kernel": self.param("kernel", nn.initializers.normal(self.std), (self.count, *self.shape))}
    if self.use_bias:
      out["bias"] = self.param("bias", nn.initializers.zeros, (self.count, self.shape[1]))
    return out


class _Stacks(nn.Module):
  """The weights of all experts."""

  config: TransformerConfig

  @nn.compact
  def __call__(self) -> Weights:
    c = self.config
    inward, outward = (c.d_model, c.expert_width), (c.expert_width, c.d_model)
    last = c.init_std / (2 * c.n_layers) ** 0.5
    return {
      name: _Stack(c.n_experts, shape, std, "experts" in c.biases, name=name)()
      for name, shape, std in (("gate", inward, c.init_std), ("fc", inward, c.init_std), ("proj", outward, last))
    }


class Experts(nn.Module):
  """float[B, T, D] -> float[B, T, D]: the outputs of a token's experts, weighted and summed."""

  config: TransformerConfig
  compute: Compute
  layer: int

  def setup(self) -> None:
    c = self.config
    self.router = Linear(c.n_experts, c.init_std, "router" in c.biases, self.compute.dot_general)
    self.experts = _Stacks(c)
    self.dropout = nn.Dropout(c.dropout_resid)

  def __call__(self, x: jax.Array, deterministic: bool = True, recorder: Recorder | None = None) -> jax.Array:
    """The weighted sum.

    Args:
      x: float[B, T, D], what the MLP reads.
      deterministic: False applies dropout.
      recorder: captures and edits the sites "router" and "expert".
    """
    stacks = self.experts()
    probabilities = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
    if recorder is not None:
      probabilities = recorder.inner("router", self.layer, probabilities)
    weights = _of_chosen(probabilities, self.config).astype(x.dtype)
    out = self._sum(x, weights, stacks)
    if recorder is not None and recorder.uses("expert"):
      out = self._recorded(x, weights, stacks, out, recorder)
    return self.dropout(out, deterministic=deterministic)

  def _sum(self, x, weights, stacks: Weights):
    rows = x.reshape(-1, x.shape[-1])

    def add(total, each):
      one, weight = each
      out = jax.lax.cond(jnp.any(weight != 0), lambda: self._mlp(rows, one), lambda: jnp.zeros_like(rows))
      return total + weight[:, None] * out, None

    by_expert = weights.reshape(-1, self.config.n_experts).T  # [E, N]
    return jax.lax.scan(add, jnp.zeros_like(rows), (stacks, by_expert))[0].reshape(x.shape)

  def _mlp(self, rows, one):
    """float[N, D] -> float[N, D]: one expert."""

    def linear(name, x):
      out = self.compute.dot_general(x, one[name]["kernel"].astype(x.dtype), (((1,), (0,)), ((), ())))
      return out + one[name]["bias"].astype(x.dtype) if "bias" in one[name] else out

    return linear("proj", gated(self.config, linear("gate", rows), linear("fc", rows)))

  def _recorded(self, x, weights, stacks: Weights, out, recorder: Recorder):
    """The sum with the edits of experts, each as the difference it makes to what its expert adds; captures experts."""
    edits = [edit for edit in recorder.edits if edit.kind == "expert"]
    length = x.shape[1]
    x, out = recorder.boundary(x), recorder.boundary(out)

    def written(expert, before):
      """What an expert (an int or int32[]) adds, float[B, T, D], behind the edits of it that come before."""
      one = jax.tree.map(functools.partial(jnp.take, indices=expert, axis=0), stacks)
      result = self._mlp(x.reshape(-1, x.shape[-1]), one).reshape(x.shape)
      result = result * jnp.take(weights, expert, axis=-1)[..., None]
      for edit in before:
        hit = edit.hit(self.layer, length) & (edit.head == expert)
        result = jnp.where(hit[..., None], edit.changed(result), result)
      return result

    for i, edit in enumerate(edits):
      here = written(edit.head, edits[:i] if edit.chained else ())
      out = out + jnp.where(edit.hit(self.layer, length)[..., None], edit.changed(here) - here, 0)
    for expert in range(self.config.n_experts):
      site = Site("expert", self.layer, expert)
      recorder.keep(site, lambda site=site: recorder.at_positions(written(site.head, edits), site))
      recorder.choose_one(site, lambda site=site: written(site.head, edits))
    return recorder.boundary(out)


def _of_chosen(probabilities: jax.Array, config: TransformerConfig) -> jax.Array:
  """float32[..., E], the router's probabilities -> the weights of the experts, 0 for all but `experts_per_token` of them."""
  values, chosen = jax.lax.top_k(probabilities, config.experts_per_token)
  if config.expert_weights_sum:
    values = values / jnp.sum(values, axis=-1, keepdims=True)
  return jnp.sum(jax.nn.one_hot(chosen, config.n_experts, dtype=values.dtype) * values[..., None], axis=-2)
