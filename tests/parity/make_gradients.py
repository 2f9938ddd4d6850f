"""Writes gradients.npz beside some of the checkpoints in tests/golden: what torch's autograd computes on them.

  pip install 'inversionview-jax[parity]'
  python tests/parity/make_gradients.py

Of the difference of two logits behind the last token, summed over the texts of expected.npz: "embed" float32[B, T, D], its gradient with
respect to the token embeddings; "x0.mid", "x0.post", "m0" and "a0" (the sum of the heads' writes), with respect to these sites; "value"
float32[B, D], random vectors, and "set/x0.mid", "set/x0.post", "set/m0", "set/a0.1" float32[B, D], the gradients with respect to a vector
that replaces this site at POSITION, taken at "value"; "difference/..." float32[B], the difference itself with that vector in place.
"""

import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden"
NAMES = ("default", "llama")
TOKENS, POSITION, HEAD = (3, 5), 4, 1
SITES = ("x0.mid", "x0.post", "m0", "a0")
EDITS = ("x0.mid", "x0.post", "m0", "a0.1")


def parts(model, layer: int):
  """(block, attention, MLP, output projection of the heads, its kernel [in, out]) of a layer."""
  if model.config.model_type == "gpt2":
    block = model.transformer.h[layer]
    return block, block.attn, block.mlp, block.attn.c_proj, block.attn.c_proj.weight
  block = model.model.layers[layer]
  return block, block.self_attn, block.mlp, block.self_attn.o_proj, block.self_attn.o_proj.weight.T


def first(output):
  return output[0] if isinstance(output, tuple) else output


def changed_output(module, change):
  """Hooks `change`, float[B, T, D] -> float[B, T, D], onto what a module returns."""

  def hook(module, inputs, output):
    new = change(first(output))
    return (new, *output[1:]) if isinstance(output, tuple) else new

  return module.register_forward_hook(hook)


def difference(model, embeds):
  logits = model(inputs_embeds=embeds).logits[:, -1]
  return logits[:, TOKENS[0]] - logits[:, TOKENS[1]]


def gradients(model, tokens) -> dict[str, np.ndarray]:
  embeds = model.get_input_embeddings()(tokens).detach().requires_grad_()
  deltas = {site: torch.zeros_like(embeds).requires_grad_() for site in SITES}
  block, attention, mlp, _, _ = parts(model, 0)
  # Behind attention an added vector moves the heads' writes and x0.mid alike; behind the MLP, m0 and x0.post.
  hooks = [
    changed_output(attention, lambda x: x + deltas["a0"] + deltas["x0.mid"]),
    changed_output(mlp, lambda x: x + deltas["m0"]),
    changed_output(block, lambda x: x + deltas["x0.post"]),
  ]
  difference(model, embeds).sum().backward()
  for hook in hooks:
    hook.remove()
  return {"embed": embeds.grad.numpy()} | {site: delta.grad.numpy() for site, delta in deltas.items()}


def replaced(x, value):
  """x with `value` at POSITION."""
  here = torch.arange(x.shape[1])[None, :, None] == POSITION
  return torch.where(here, value[:, None], x)


def edited(model, tokens, name: str, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The difference with this site replaced at POSITION, and its gradient with respect to the new value."""
  embeds = model.get_input_embeddings()(tokens).detach()
  value = torch.tensor(value).requires_grad_()
  block, attention, mlp, projection, kernel = parts(model, int(name[1]))
  kept = {}
  if name == "a0.1":

    def keep(module, inputs):
      width = kernel.shape[0] // model.config.num_attention_heads
      mine = slice(HEAD * width, (HEAD + 1) * width)
      kept["write"] = inputs[0].flatten(2)[..., mine] @ kernel[mine]

    hooks = [projection.register_forward_pre_hook(keep)]
    hooks.append(changed_output(attention, lambda x: x + replaced(kept["write"], value) - kept["write"]))
  elif name.startswith("m"):
    hooks = [changed_output(mlp, lambda x: replaced(x, value))]
  elif name.endswith("post"):
    hooks = [changed_output(block, lambda x: replaced(x, value))]
  else:  # x0.mid is the residual stream before the layer plus what attention writes
    hooks = [changed_output(attention, lambda x: x + replaced(kept["x"] + x, value) - (kept["x"] + x))]
    hooks.append(block.register_forward_pre_hook(lambda module, inputs, kwargs: kept.update(x=(*inputs, *kwargs.values())[0]), with_kwargs=True))  # fmt: skip
  out = difference(model, embeds)
  out.sum().backward()
  for hook in hooks:
    hook.remove()
  return out.detach().numpy(), value.grad.numpy()


def main() -> None:
  for seed, name in enumerate(NAMES):
    folder = FOLDER / name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model.requires_grad_(False)
    tokens = torch.tensor(np.load(folder / "expected.npz")["tokens"], dtype=torch.long)
    arrays = gradients(model, tokens)
    value = np.random.default_rng(seed).normal(size=(len(tokens), model.config.hidden_size)).astype(np.float32)
    arrays["value"] = value
    for site in EDITS:
      arrays[f"difference/{site}"], arrays[f"set/{site}"] = edited(model, tokens, site, value)
    np.savez(folder / "gradients.npz", **arrays)
    print(folder / "gradients.npz", {name: float(np.abs(array).max()) for name, array in arrays.items()})


if __name__ == "__main__":
  main()
