"""Training a target on its task.

Shapes: B batch of texts, T tokens.
"""

import copy
import dataclasses
import pathlib
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inversionview_jax import config_schema, targets
from inversionview_jax.devices import parallel
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.tasks import Task
from inversionview_jax.training import model_shapes, target_start
from inversionview_jax.training.losses import apply_with_dropout, summed_cross_entropy

_EVALUATED_AT_ONCE = 512  # texts per device


class TargetObjective:
  """Next-token prediction on the tokens that the task names (paper, appendix on training the target models).

  Args:
    task: what is learned.
    config: `model` (keys of `TransformerConfig`), `eval_examples`, `seed`; and, optional, `start` (`target_start.parameters`; without a
      target: random parameters) and `compute`.
    held_out: int[N, T].
    mesh: all devices by default.

  Raises:
    InversionViewError: settings that cannot be used; a `start` that does not fit.
  """

  frozen = ()

  def __init__(self, task: Task, config: ConfigDict, held_out: np.ndarray, mesh: Mesh | None = None):
    config_schema.check(config, config_schema.TARGET)
    self.task, self._config, self._held_out = task, config, held_out
    self.model = model_shapes.transformer_config(task, config)
    self._module = Transformer(self.model, model_shapes.compute_in_training(config))
    start = config.get("start")
    self.start = target_start.parameters(start, self.model, task, config.seed) if start and start.target else {}
    self._mesh = parallel.make_mesh() if mesh is None else mesh
    self._correct = parallel.pmap(self._answers_correct, self._mesh, in_axes=(None, 0), out_axes=0)

  def init(self, key: jax.Array) -> tuple[Any, dict]:
    return self._module.init(key, jnp.zeros((1, 1), jnp.int32))["params"], {}

  def loss(
    self, params: Any, extra: Any, frozen: Any, tokens: jax.Array, keys: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    del extra, frozen
    variables, at = {"params": params}, self.task.predicted_at(tokens)
    if at is None:
      logits = apply_with_dropout(self._module, variables, keys, tokens).logits
      return summed_cross_entropy(logits, tokens, self.task.loss_mask(tokens))
    # Few tokens are predicted: the last layer is computed at those positions only.
    log_p = jax.nn.log_softmax(apply_with_dropout(self._module, variables, keys, tokens, logits_at=at).logits)
    wanted = jnp.take_along_axis(tokens, at + 1, axis=1)
    return -jnp.sum(jnp.take_along_axis(log_p, wanted[..., None], axis=-1)), jnp.float32(wanted.size)

  def _answers_correct(self, params, tokens):
    """bool[B]: every token of the answer is the most likely one given those before it, as greedy generation would give."""
    best = jnp.argmax(self._module.apply({"params": params}, tokens).logits[:, :-1], axis=-1)
    return jnp.all((best == tokens[:, 1:]) | ~self.task.answer_mask(tokens)[:, 1:], axis=1)

  def evaluate(self, params: Any, extra: Any, final: bool) -> tuple[dict[str, float], Any]:
    """Accuracy of whole answers, over all held-out texts and over the task's groups of them."""
    rows = self._held_out if final else self._held_out[: self._config.eval_examples]
    rows = np.asarray(rows, np.int32)
    size = _EVALUATED_AT_ONCE * self._mesh.shape[parallel.DATA]
    correct = parallel.in_chunks(lambda part: self._correct(params, part), rows, size)
    metrics = {"accuracy": float(correct.mean()), "held_out": len(rows)}
    for name, member in self.task.groups(rows).items():
      metrics[f"accuracy_{name}"] = float(correct[member].mean())
    return metrics, extra

  def without_remat(self) -> Self:
    """The same loss without rematerialization, for counting the FLOPs of a step."""
    other = copy.copy(self)
    other._module = Transformer(self.model, dataclasses.replace(self._module.compute, remat=False))
    return other

  def finish(self, params: Any, metrics: dict[str, float], folder: pathlib.Path) -> None:
    targets.save_target(
      folder, params, self.model.for_inference(), self.task.tokenizer, self.task.name, self.task.name, metrics
    )
