"""A config's transformer and decoder: their architectures, and how they are computed in training."""

import dataclasses

from jax.sharding import Mesh
from ml_collections import ConfigDict

from inversionview_jax import config_schema
from inversionview_jax.devices import numerics
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models.config import DTYPES, Compute, TransformerConfig
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.tasks import Task


def transformer_config(task: Task, config: ConfigDict) -> TransformerConfig:
  """The transformer of `config.model`, over the task's texts; raises `InversionViewError` for an impossible shape."""
  config_schema.check(config, config_schema.MODEL_BLOCK)
  if not config.model.get("head_width", 0) and config.model.d_model % config.model.n_heads:
    raise InversionViewError(
      f"model.d_model = {config.model.d_model} does not divide into {config.model.n_heads} heads (model.n_heads); use a multiple of it"
    )
  for name in ("dtype", "remat"):
    if name in config.model:
      raise InversionViewError(f"config key model.{name} is called compute.{name} since version 0.2; use that name")
  try:
    return TransformerConfig(vocab_size=task.tokenizer.vocab_size, n_ctx=task.length, **config.model)
  except InversionViewError as error:
    raise InversionViewError(f"model: {error}") from None
  except TypeError as error:  # a key that there is not
    raise InversionViewError(
      f"the config's block model: {str(error).removeprefix('TransformerConfig.__init__() ')}"
    ) from None


def decoder_config(
  config: ConfigDict,
  transformer: TransformerConfig,
  sites: tuple[str, ...],
  d_activation: int,
  forbidden: tuple[int, ...],
) -> DecoderConfig:
  """The decoder of a config around this transformer; raises `InversionViewError` for an impossible encoder.

  Args:
    config: encoder_blocks, encoder_width, n_slots, normalize; and, optional, encoder_inner, site_inputs.
    transformer: its transformer.
    sites: short names.
    d_activation: width of the activations.
    forbidden: ids of tokens that are never sampled.
  """
  if config.get("site_inputs", False) and not config.encoder_width:
    raise InversionViewError("site_inputs needs an encoder_width above 0, the width of each site's own input matrix")
  return DecoderConfig(
    transformer=transformer,
    sites=sites,
    d_activation=d_activation,
    encoder_blocks=config.encoder_blocks,
    encoder_width=config.encoder_width,
    encoder_inner=config.get("encoder_inner", 0),
    site_inputs=bool(config.get("site_inputs", False)),
    n_slots=config.n_slots,
    normalize=config.normalize,
    forbidden=forbidden,
  )


def compute_in_training(config: ConfigDict) -> Compute:
  """How a transformer is computed in training: with `compute.dtype` ("": float32) and `compute.remat` of the config, both optional."""
  compute = config.get("compute") or {}
  dtype = compute.get("dtype", "") or "float32"
  if dtype not in DTYPES:
    raise one_of("compute.dtype", dtype, DTYPES)
  return Compute(dtype=dtype, remat=bool(compute.get("remat", False)))


def decoder_compute_in_training(shape: DecoderConfig, config: ConfigDict, mesh: Mesh) -> Compute:
  """How a decoder is computed in training: `compute_in_training`, with bfloat16 matmuls where they are faster.

  Not if `compute.dtype` is float32; nor with dropout, for which each row goes through the model by itself.
  """
  compute = compute_in_training(config)
  if shape.transformer.has_dropout:
    return compute
  return dataclasses.replace(compute, dot_general=numerics.matmul_policy(mesh, config))
