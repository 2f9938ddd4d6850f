"""Training of targets and decoders: one loop, two objectives, optimizers, batches by index, checkpoints and the metrics log."""

from inversionview_jax.training.batches import Batches
from inversionview_jax.training.checkpoints import Checkpoints
from inversionview_jax.training.decoder_objective import DecoderObjective, save_decoder
from inversionview_jax.training.loop import train
from inversionview_jax.training.optimizers import learning_rate, make_optimizer
from inversionview_jax.training.target_objective import TargetObjective
from inversionview_jax.training.update import Objective, State, make_update

__all__ = [
  "Batches",
  "Checkpoints",
  "DecoderObjective",
  "Objective",
  "State",
  "TargetObjective",
  "learning_rate",
  "make_optimizer",
  "make_update",
  "save_decoder",
  "train",
]
