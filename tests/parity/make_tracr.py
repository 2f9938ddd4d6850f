"""Writes tests/golden/tracr.npz: outputs of Tracr's own models on every input of its library's programs.

pip install 'inversionview-jax[tracr]'
python tests/parity/make_tracr.py
"""

import pathlib

import numpy as np

# Programs in both directions, causal ones, and those that work both ways; small enough to run on every input.
CASES = (
  "length",
  "reverse",
  "hist",
  "frac_prevs",
  "frac_prevs,causal",
  "pair_balance",
  "shuffle_dyck",
  "sort_unique",
  "sort,vocab=123,max_seq_len=4",
  "sort_freq,max_seq_len=4",
  "count",
  "count_less_freq",
  "shift_by,causal",
  "detect_pattern",
)


def run_by_tracr(task):
  """Yields (length, output, residual streams) of all inputs of each length, in the order of their indices: of Tracr's own Haiku model.

  The output is float32[B, 1 + length, O], or float32[B, 1 + length] of numbers; a residual stream float32[B, 1 + length, D].
  """
  import jax.numpy as jnp
  from tracr.compiler import compiling

  p = task.program
  model = compiling.compile_rasp_to_model(
    p.expression, set(p.vocabulary), p.longest, p.causal, mlp_exactness=p.mlp_exactness
  )
  categorical = hasattr(model.output_encoder, "encoding_map")
  unembedding = _unembedding(model, p) if categorical else None
  tokens = task.tokens(np.arange(task.num_inputs))
  lengths = (tokens == task.tokenizer.eos_id).argmax(axis=1) - 1
  for length in np.unique(lengths):
    out = model.forward(model.params, jnp.asarray(tokens[lengths == length][:, : length + 1]))
    residuals = [np.asarray(x) for x in out.transformer_output.residuals]
    output = np.asarray(out.unembedded_output) if unembedding is None else residuals[-1] @ unembedding
    yield int(length), output, residuals


def _unembedding(model, program):
  """float32[D, O] of a categorical output; Tracr's model returns the largest only."""
  label = program.expression.label
  columns = [f"{label}:{value}" for value in model.output_encoder.encoding_map]
  return np.array([[label == column for column in columns] for label in model.residual_labels], np.float32)


def main():
  from inversionview_jax import tasks

  golden = {}
  for case in CASES:
    task = tasks.get(f"tracr:{case}")
    # Inputs are in the order of their lengths, and so are the outputs.
    outputs = [out[:, 1:].reshape(-1, *out.shape[2:]) for _, out, _ in run_by_tracr(task)]
    flat = np.concatenate(outputs)
    golden[case] = flat.argmax(axis=-1).astype(np.int8) if flat.ndim == 2 else flat.astype(np.float32)
    print(case, golden[case].shape)
  np.savez_compressed(pathlib.Path(__file__).parent.parent / "golden" / "tracr.npz", **golden)


if __name__ == "__main__":
  main()
