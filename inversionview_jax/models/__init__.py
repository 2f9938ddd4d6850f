"""Pure Flax models: one transformer for targets and decoders, the decoder of activations, captures and edits, and their storage."""

from inversionview_jax.models.capture import Output, SiteEdit
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.decoder import ActivationEncoder, Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer

__all__ = [
  "ActivationEncoder",
  "Compute",
  "Decoder",
  "DecoderConfig",
  "Output",
  "SiteEdit",
  "Transformer",
  "TransformerConfig",
]
