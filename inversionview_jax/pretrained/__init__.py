"""Other people's checkpoints -> parameters of `Transformer`: Hugging Face folders and GGUF files, one module per family.

Opening a checkpoint reads its configuration and the names and shapes of its tensors. The tensors are read part by part when the target
is made (`Parts`), so a model is never in memory twice. No pickle is opened. Attributes and tensors that are not handled are refused by name.
"""

from inversionview_jax.pretrained import transformer_lens
from inversionview_jax.pretrained.checkpoint import Checkpoint, open_checkpoint, tokenizer_from, tokenizer_of, with_bos
from inversionview_jax.pretrained.conventions import CONVENTIONS, convert, converted, resolve
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import FirstLayers, Leaf
from inversionview_jax.pretrained.tracr import CompiledProgram

__all__ = [
  "CONVENTIONS",
  "Checkpoint",
  "CompiledProgram",
  "Family",
  "FirstLayers",
  "Leaf",
  "convert",
  "converted",
  "open_checkpoint",
  "resolve",
  "tokenizer_from",
  "tokenizer_of",
  "with_bos",
  "transformer_lens",
]
