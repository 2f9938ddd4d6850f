"""The benchmark's jobs on PyTorch with `transformers`, and on TransformerLens where it is installed.

Written as a user of those libraries would write them: GPT-2 models of the same shapes, AdamW, `generate` with its cache. The activation enters as an
embedding in front of the text, since GPT-2 has no slot for it. Parameters are random; no dropout on either side.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable

import numpy as np

from inversionview_jax.benchmarks import timing
from inversionview_jax.benchmarks.jobs import Jobs
from inversionview_jax.benchmarks.timing import Side
from inversionview_jax.devices import cpu
from inversionview_jax.models.transformer import TransformerConfig

Compile = Callable[[Callable], Callable]


def _as_it_is(function: Callable) -> Callable:
  return function


class Accelerated:
  """The same jobs as on a GPU: training and capture through `torch.compile`, everything under autocast to bfloat16."""

  def train(self, jobs: Jobs, batch: int) -> tuple[Side, ...]:
    """`train`."""
    import torch

    return _autocast(train(jobs, batch, torch.compile), "torch.compile, ")

  def train_target(self, jobs: Jobs, batch: int) -> tuple[Side, ...]:
    """`train_target`."""
    import torch

    return _autocast(train_target(jobs, batch, torch.compile), "torch.compile, ")

  def query(self, jobs: Jobs, samples: int, shape: TransformerConfig) -> tuple[Side, ...]:
    """`query`; `generate` is not compiled."""
    return _autocast(query(jobs, samples, shape))

  def capture(self, jobs: Jobs, tokens: np.ndarray) -> tuple[Side, ...]:
    """`capture`."""
    import torch

    return _autocast(capture(jobs, tokens, torch.compile), "torch.compile, ")


def _autocast(sides: tuple[Side, ...], how: str = "") -> tuple[Side, ...]:
  """The sides under autocast to bfloat16 on the device."""
  import torch

  def wrapped(side: Side) -> Side:
    def run():
      with torch.autocast(_device().type, torch.bfloat16):
        return side.run()

    return dataclasses.replace(side, name=f"{side.name}, {how}bfloat16", run=run)

  return tuple(map(wrapped, sides))


def available() -> bool:
  """Whether torch and transformers are installed."""
  return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def versions() -> dict[str, str]:
  """The versions of the libraries, and the number of threads that torch uses."""
  import torch
  import transformers

  versions = {
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "torch_threads": str(torch.get_num_threads()),
  }
  if importlib.util.find_spec("transformer_lens"):
    versions["transformer_lens"] = importlib.metadata.version("transformer_lens")
  return versions


def matmul_peak(size: int = 2048) -> float:
  """float32 GFLOP/s of a square matrix product, the best of several."""
  import torch

  a = torch.ones(size, size, device=_device())
  return timing.best_gflops(lambda: _done(a @ a), size)


def train(jobs: Jobs, batch: int, compiled: Compile = _as_it_is) -> tuple[Side, ...]:
  """The training step of a decoder, with the target's forward pass inside."""
  import torch

  decoder, target = _gpt2(jobs.decoder.transformer, jobs.task.length + 1).train(), _gpt2(jobs.target.config)
  width = jobs.decoder.transformer.d_model
  enter = torch.nn.Linear(jobs.target.config.d_model, width).to(_device())
  optimizer = torch.optim.AdamW([*decoder.parameters(), *enter.parameters()], lr=1e-4, weight_decay=0.01)
  tokens = torch.tensor(jobs.rows[:batch], dtype=torch.long, device=_device())
  rows, pad = torch.arange(batch, device=_device()), jobs.task.tokenizer.pad_id

  @compiled
  def hidden_states():
    return target(input_ids=tokens, output_hidden_states=True).hidden_states

  @compiled
  def loss_of(activation):
    embedded = torch.cat([enter(activation)[:, None], decoder.transformer.wte(tokens)], dim=1)
    logits = decoder(inputs_embeds=embedded).logits[:, 1:-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], ignore_index=pad)

  def run():
    with torch.no_grad():
      hidden = hidden_states()
      layer, at = int(torch.randint(len(hidden), ())), torch.randint(1, 9, (batch,), device=tokens.device)
      activation = hidden[layer][rows, at].float()
    _step(loss_of(activation), decoder, optimizer)

  return _with_bf16(Side("transformers", run, batch))


def train_target(jobs: Jobs, batch: int, compiled: Compile = _as_it_is) -> tuple[Side, ...]:
  """The training step of a target."""
  import torch

  model = _gpt2(jobs.target.config).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
  tokens = torch.tensor(jobs.rows[:batch], dtype=torch.long, device=_device())
  labels = tokens.masked_fill(tokens == jobs.task.tokenizer.pad_id, -100)

  @compiled
  def loss():
    return model(input_ids=tokens, labels=labels).loss

  def run():
    _step(loss(), model, optimizer)

  return (Side("transformers", run, batch),)


def query(jobs: Jobs, samples: int, shape: TransformerConfig) -> tuple[Side, ...]:
  """One query with a decoder of this shape, from text to sorted samples.

  Encodes, runs the target, calls `generate`, runs the target on the samples, takes distances, sorts and decodes.
  """
  import torch

  t, length = jobs.task.tokenizer, jobs.task.length
  decoder, target = _gpt2(shape, length + 1), _gpt2(jobs.target.config)
  enter = torch.nn.Linear(jobs.target.config.d_model, shape.d_model).to(_device())

  @torch.no_grad()
  def run():
    text = torch.tensor(t.encode_batch([jobs.texts[0]], length=length, eos=True), dtype=torch.long, device=_device())
    z = target(input_ids=text, output_hidden_states=True).hidden_states[1][0, 8]
    first = torch.stack([enter(z), decoder.transformer.wte(torch.tensor(t.bos_id, device=_device()))])
    written = decoder.generate(
      inputs_embeds=first.expand(samples, 2, -1),
      attention_mask=torch.ones(samples, 2, dtype=torch.long, device=_device()),
      do_sample=True,
      top_k=0,
      max_new_tokens=length - 1,
      bos_token_id=t.bos_id,
      eos_token_id=t.eos_id,
      pad_token_id=t.pad_id,
    )
    tokens = torch.nn.functional.pad(written, (1, length - 1 - written.shape[1]), value=t.pad_id)
    tokens[:, 0] = t.bos_id
    hidden = target(input_ids=tokens, output_hidden_states=True).hidden_states[1]
    distance = torch.linalg.vector_norm(hidden - z, dim=-1) / torch.linalg.vector_norm(z)
    distance = distance.masked_fill((tokens == t.pad_id) | (tokens == t.eos_id), float("inf")).min(dim=1)
    order = torch.argsort(distance.values)
    rows, distances, positions = (x[order].tolist() for x in (tokens, distance.values, distance.indices))
    return [
      (t.text([i for i in row if i not in (t.bos_id, t.eos_id, t.pad_id)]), d, p)
      for row, d, p in zip(rows, distances, positions, strict=True)
    ]

  return _with_bf16(Side("transformers", run, 1))


def capture(jobs: Jobs, tokens: np.ndarray, compiled: Compile = _as_it_is) -> tuple[Side, ...]:
  """Every site of a batch: the cache of TransformerLens, before 4.0, and the hidden states of `transformers`, which are fewer sites."""
  import torch

  ids = torch.tensor(tokens, dtype=torch.long, device=_device())
  model = _gpt2(jobs.target.config)

  @compiled
  def forward():
    return model(input_ids=ids, output_hidden_states=True).hidden_states

  @torch.no_grad()
  def hidden_states():
    _done(forward()[-1])

  sides = [Side("transformers (residual stream only)", hidden_states, ids.numel())]
  if _hooked_transformer():
    with contextlib.redirect_stdout(None):
      import transformer_lens

      c = jobs.target.config
      lens = transformer_lens.HookedTransformer(
        transformer_lens.HookedTransformerConfig(
          n_layers=c.n_layers,
          d_model=c.d_model,
          n_ctx=c.n_ctx,
          d_head=c.d_head,
          n_heads=c.n_heads,
          d_mlp=c.d_mlp,
          d_vocab=c.vocab_size,
          act_fn="gelu_new",
          normalization_type="LN",
          use_attn_result=True,
          device=str(_device()),
        )  # fmt: skip
      )
    names = {
      jobs.target.site(site).hook.rsplit(".", 1)[0]
      if ".hook_result." in jobs.target.site(site).hook
      else jobs.target.site(site).hook
      for site in jobs.sites
    }

    @torch.no_grad()
    def cached():
      _, cache = lens.run_with_cache(ids, names_filter=lambda name: name in names)
      _done(next(iter(cache.values())))

    sides.insert(0, Side("TransformerLens", cached, ids.numel()))
  return tuple(sides)


def _hooked_transformer() -> bool:
  """Whether a TransformerLens is installed that builds a model from a config; 4.0 has no `HookedTransformer`."""
  spec = importlib.util.find_spec("transformer_lens")
  return spec is not None and int(importlib.metadata.version("transformer_lens").split(".")[0]) < 4


def _with_bf16(side: Side) -> tuple[Side, ...]:
  """The side, and the same under autocast to bfloat16 where this package's decoders multiply in bfloat16 by default."""
  import torch

  if _device().type != "cpu" or not cpu.has_amx():
    return (side,)

  def run():
    with torch.autocast("cpu", torch.bfloat16):
      return side.run()

  return side, dataclasses.replace(side, name=f"{side.name}, autocast to bfloat16", run=run)


def _step(loss, model, optimizer) -> None:
  """The rest of a training step."""
  import torch

  optimizer.zero_grad()
  loss.backward()
  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
  optimizer.step()
  _done(loss)


def _gpt2(c, n_ctx: int | None = None):
  from transformers import GPT2Config, GPT2LMHeadModel

  config = GPT2Config(
    vocab_size=c.vocab_size, n_positions=n_ctx or c.n_ctx, n_embd=c.d_model, n_layer=c.n_layers, n_head=c.n_heads, n_inner=c.d_mlp,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
  )  # fmt: skip
  return GPT2LMHeadModel(config).to(_device()).eval()


def _device():
  import torch

  return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _done(tensor) -> None:
  """Waits for an accelerator."""
  import torch

  if tensor.is_cuda:
    torch.cuda.synchronize()
