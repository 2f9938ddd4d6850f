"""RASP programs, compiled into parameters of `Transformer` by Tracr (Lindner et al., 2023).

Tracr finds the residual space and the matrices of every head and MLP; they are put together here in NumPy, as Tracr itself puts them into a
Haiku model, which is slow to make and not needed. The weights are Tracr's own, number by number.

Shapes: V tokens, D residual dimensions, K key size, H heads of a layer, M inner width of an MLP, O values of the output.
"""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.sites import Site
from inversionview_jax.tasks.program_task import COMPILER_BOS, COMPILER_PAD, ProgramTask
from inversionview_jax.tasks.programs import Program, Value, rasp, shown


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledProgram:
  """A program, and what is known of the transformer that it was compiled into.

  Attributes:
    program: the program.
    residual_labels: of each dimension of the residual stream, Tracr's label, such as "tokens:a", "indices:2" or "frac_prevs_1".
    writes: short name of a site -> the labels that it may write, in their order: "embed", "pos_embed", heads and MLPs; a head or MLP that Tracr
      left empty writes none.
    reads: the same for what it reads: of a head "a0.1 q", "a0.1 k" and "a0.1 v", of an MLP "m0".
    values: of the logits, if the output is categorical; () if it is a number, the one logit.
  """

  program: Program
  residual_labels: tuple[str, ...]
  writes: Mapping[str, tuple[str, ...]]
  reads: Mapping[str, tuple[str, ...]]
  values: tuple[Value, ...]

  @property
  def outputs(self) -> tuple[str, ...]:
    """A name for each logit."""
    return tuple(map(shown, self.values)) or ("value",)

  def decode(self, logits: Any) -> np.ndarray:
    """The program's output at each position: float32[..., O] -> object[...] of its values, or float32[...] where they are numbers."""
    logits = np.asarray(logits)
    if not self.values:
      return logits[..., 0]
    table = np.empty(len(self.values), object)
    table[:] = self.values
    return table[logits.argmax(axis=-1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
  """Parameters and architecture of a compiled program, with its task."""

  parts: dict[str, Any]
  config: TransformerConfig
  task: ProgramTask
  about: CompiledProgram


@dataclasses.dataclass(frozen=True)
class _Model:
  """Tracr's model in its residual space, and the spaces of what goes in and comes out."""

  blocks: Sequence[Any]
  residual: Any
  tokens: Any
  indices: Any
  output: Any
  categorical: bool


def compile_program(task: ProgramTask) -> Compiled:
  """Compiles the program of a task.

  Raises:
    InversionViewError: Tracr is not installed, or cannot compile this program; the message is Tracr's.
  """
  model = _by_tracr(task.program)
  layers = _layers(model.blocks)
  heads = [len(attention) for attention, _ in layers]
  matrices = [head.w_qk.matrix for attention, _ in layers for head in attention]
  inner = [mlp.fst.output_space.num_dims for _, mlp in layers if mlp is not None]
  width = model.residual.num_dims
  tokenizer = task.tokenizer
  config = TransformerConfig(
    vocab_size=tokenizer.vocab_size,
    n_ctx=task.length,
    n_layers=len(layers),
    n_heads=max([1, *heads]),
    d_model=width,
    d_mlp=max([1, *inner]),
    head_width=max([1, *(max(matrix.shape) for matrix in matrices)]),
    activation="relu",
    norm="none",
    pre_norm=False,
    tied=False,
    biases=(),
    causal=task.program.causal,
    unattended=tuple(sorted((tokenizer.eos_id, tokenizer.pad_id))),
    vocab_out=model.output.num_dims,
  )
  parts: dict[str, Any] = _embeddings(model, config)
  for number, (attention, mlp) in enumerate(layers):
    parts[f"blocks_{number}"] = {"attn": _attention(model, attention, config), "mlp": _mlp(model, mlp, config)}
  values = tuple(direction.value for direction in model.output.basis) if model.categorical else ()
  labels = tuple(map(str, model.residual.basis))
  about = CompiledProgram(task.program, labels, *_reads_and_writes(parts, labels, config), values)
  return Compiled(parts, config, task, about)


def _by_tracr(program: Program) -> _Model:
  """All of Tracr's compiler but its last step."""
  rasp()
  try:
    from tracr.compiler import (
      basis_inference,
      craft_graph_to_model,
      expr_to_craft_graph,
      nodes,
      rasp_to_graph,
      validating,
    )
    from tracr.craft import bases
  except ImportError as error:
    raise InversionViewError(f"Tracr is installed, but cannot be imported: {error}") from None
  r = rasp()
  unsupported = validating.static_validate(program.expression)
  if unsupported:
    each = "; ".join(f"{found.expr.name}: {found.reason}" for found in unsupported)
    raise InversionViewError(f"{program.name} cannot be compiled: {each}")
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      extracted = rasp_to_graph.extract_rasp_graph(program.expression)
      graph, sink, label = extracted.graph, extracted.sink, r.tokens.label
      if label not in graph.nodes:
        raise ValueError("it does not read the tokens (rasp.tokens)")
      basis_inference.infer_bases(graph, sink, set(program.vocabulary), program.longest)
      expr_to_craft_graph.add_craft_components_to_rasp_graph(
        graph, bos_dir=bases.BasisDirection(label, COMPILER_BOS), mlp_exactness=program.mlp_exactness
      )
      craft = craft_graph_to_model.craft_graph_to_model(graph, extracted.sources)
  except InversionViewError:
    raise
  except Exception as error:  # Tracr raises several kinds for what it cannot compile
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    raise InversionViewError(f"{program.name} cannot be compiled: {line}") from error
  tokens = bases.VectorSpaceWithBasis.from_values(label, {*program.vocabulary, COMPILER_BOS, COMPILER_PAD})
  indices = bases.VectorSpaceWithBasis.from_values(r.indices.label, range(program.longest))
  output = bases.VectorSpaceWithBasis(sink[nodes.OUTPUT_BASIS])
  residual = bases.join_vector_spaces(craft.residual_space, tokens, indices, output)
  return _Model(craft.blocks, residual, tokens, indices, output, r.is_categorical(sink[nodes.EXPR]))


def _layers(blocks: Sequence[Any]) -> list[tuple[list[Any], Any]]:
  """Heads and MLP of each layer; of neither kind two in a row share a layer."""
  layers: list[tuple[list[Any], Any]] = []
  for block in blocks:
    if not hasattr(block, "fst"):  # attention
      layers.append((list(block.as_multi().heads()), None))
    elif layers and layers[-1][1] is None:
      layers[-1] = (layers[-1][0], block)
    else:
      layers.append(([], block))
  return layers


def _into(space: Any, part: Any) -> np.ndarray:
  """float32[D, N] that takes a vector of the space to its coordinates in a part of it; the transposed puts them back."""
  out = np.zeros((space.num_dims, part.num_dims))
  rows = {direction: row for row, direction in enumerate(space.basis)}
  for column, direction in enumerate(part.basis):
    out[rows[direction], column] = 1.0
  return out


def _embeddings(model: _Model, config: TransformerConfig) -> dict[str, Any]:
  """Embeddings of tokens (EOS is zero) and positions (those of BOS and EOS are zero), the unembedding, and a last norm that does nothing."""
  project = functools.partial(_into, model.residual)
  embed = np.zeros((config.vocab_size, config.d_model), np.float32)
  embed[: model.tokens.num_dims] = project(model.tokens).T
  ones = [row for row, direction in enumerate(model.residual.basis) if str(direction) == "one"]
  embed[: model.tokens.num_dims, ones] = 1.0
  positions = np.zeros((config.n_ctx, config.d_model), np.float32)
  positions[1 : 1 + model.indices.num_dims] = project(model.indices).T
  return {
    "embed": embed,
    "pos_embed": positions,
    "ln_f": {"scale": np.ones(config.d_model, np.float32)},
    "unembed": {"kernel": np.float32(project(model.output))},
  }


def _attention(model: _Model, heads: Sequence[Any], config: TransformerConfig) -> dict[str, Any]:
  """Kernels of queries, keys, values and output, of which heads and dimensions that are not used are zero."""
  project: Callable[[Any], np.ndarray] = functools.partial(_into, model.residual)
  shape = (config.d_model, config.n_heads, config.d_head)
  q, k, v = (np.zeros(shape, np.float32) for _ in range(3))
  o = np.zeros((config.n_heads, config.d_head, config.d_model), np.float32)
  for number, head in enumerate(heads):
    keys, written = head.w_qk.matrix.shape[1], head.w_ov.matrix.shape[1]
    q[:, number, :keys] = project(head.w_qk.left_space) @ head.w_qk.matrix
    k[:, number, :keys] = project(head.w_qk.right_space)
    v[:, number, :written] = project(head.w_ov.input_space) @ head.w_ov.matrix
    o[number, :written] = project(head.w_ov.output_space).T
  return {
    "q": {"kernel": q.reshape(config.d_model, -1)},
    "k": {"kernel": k.reshape(config.d_model, -1)},
    "v": {"kernel": v.reshape(config.d_model, -1)},
    "o": {"kernel": o.reshape(-1, config.d_model)},
  }


def _mlp(model: _Model, mlp: Any, config: TransformerConfig) -> dict[str, Any]:
  """Kernels of the two linear maps; zero in a layer without an MLP."""
  fc = np.zeros((config.d_model, config.d_mlp), np.float32)
  proj = np.zeros((config.d_mlp, config.d_model), np.float32)
  if mlp is not None:
    size = mlp.fst.output_space.num_dims
    fc[:, :size] = _into(model.residual, mlp.fst.input_space) @ mlp.fst.matrix
    proj[:size] = mlp.snd.matrix @ _into(model.residual, mlp.snd.output_space).T
  return {"fc": {"kernel": fc}, "proj": {"kernel": proj}}


def _reads_and_writes(parts: Mapping, labels: Sequence[str], config: TransformerConfig) -> tuple[dict, dict]:
  """Labels that each part may write, and those that it reads, from where its matrices are not zero; as (writes, reads)."""

  def named(matrix: np.ndarray, axis: int) -> tuple[str, ...]:
    return tuple(label for label, used in zip(labels, (matrix != 0).any(axis=axis), strict=True) if used)

  writes = {"embed": named(parts["embed"], 0), "pos_embed": named(parts["pos_embed"], 0)}
  reads: dict[str, tuple[str, ...]] = {}
  for layer in range(config.n_layers):
    block = parts[f"blocks_{layer}"]
    attn = {name: part["kernel"] for name, part in block["attn"].items()}
    for head in range(config.n_heads):
      name, columns = Site("head", layer, head).short, slice(head * config.d_head, (head + 1) * config.d_head)
      used = named(attn["v"][:, columns] @ attn["o"][columns], 1)
      writes[name] = named(attn["o"][columns], 0) if used else ()
      for which in "qkv":
        reads[f"{name} {which}"] = named(attn[which][:, columns], 1)
    name = Site("mlp", layer).short
    writes[name] = named(block["mlp"]["proj"]["kernel"], 0)
    reads[name] = named(block["mlp"]["fc"]["kernel"], 1)
  return writes, reads
