"""The model that is read: parameters, tokenizer and convention, with captures and edits by name."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import bounds, pretrained, sites, tasks
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import site_shapes, storage
from inversionview_jax.models.capture import Output
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.sites import Site
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.targets.arrays import to_array
from inversionview_jax.targets.edits import CAPTURABLE, Edit, resolve_edits
from inversionview_jax.targets.inputs import encode, resolve_inputs
from inversionview_jax.targets.positions import is_traced
from inversionview_jax.targets.run import NO_LOGITS, Run
from inversionview_jax.tasks import tokenizers


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Target(ShowsTable):
  """A frozen language model; `load_target` loads one, `Target.from_raw` makes one of raw parameters.

  Attributes:
    params: nested dicts of arrays, under `convention`.
    config: the architecture.
    tokenizer: may be None for a checkpoint that came without one; then only token ids can be given.
    convention: "centered" or "raw" (see `pretrained.conventions`).
    fingerprint: names the raw parameters and their configuration, so that a decoder knows what it was trained on.
    name: for messages and results.
    task: name of the task that it is a target of, or "".
    missing_tokenizer: why there is no tokenizer, where that is known.
    family: the user's own `pretrained.Family` with which its checkpoint was read, as ``package.module:NAME``; "": one of this package's.
    source: OWNER/NAME@COMMIT of a model of the Hugging Face Hub, otherwise "".
    ignored_config_keys: attributes of its config.json that were taken as left out.
    outputs: what the logits stand for, if not for tokens; () otherwise.
    program: of a compiled program, what is known of its weights; None for all others.
  """

  params: dict
  config: TransformerConfig
  tokenizer: tokenizers.Tokenizer | None
  convention: str
  fingerprint: str
  name: str = ""
  task: str = ""
  missing_tokenizer: str = ""
  family: str = ""
  source: str = ""
  ignored_config_keys: tuple[str, ...] = ()
  outputs: tuple[str, ...] = ()
  program: pretrained.CompiledProgram | None = None
  compute: Compute = Compute()
  _task: tasks.Task | None = None

  @classmethod
  def from_raw(
    cls,
    raw_params: Mapping,
    config: TransformerConfig,
    tokenizer: tokenizers.Tokenizer | None = None,
    convention: str | None = None,
    name: str = "",
    task: str = "",
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    missing_tokenizer: str = "",
    compute: Compute = Compute(),
    own_tokenizer: bool = False,
  ) -> "Target":
    """A target of raw parameters.

    Args:
      raw_params: name of a part ("embed", "blocks_0", ...) -> nested dicts of float32 arrays. Parts are taken one by one and go to the
        device one by one, so that a model that is read from disk meanwhile is never in memory twice.
      config: their architecture.
      tokenizer: of the model, if it has one.
      convention: None takes "centered" for LayerNorm and "raw" for RMSNorm.
      name, task, missing_tokenizer: as the attributes.
      dtype: of parameters and of what is computed with them, "float32" or "bfloat16"; norms, softmax and logits stay float32. None keeps
        the parameters float32 and computes as `compute` says.
      mesh: parts go to its devices by `sharding`'s rules, for a target that no single device can hold; None for the first device.
      compute: how the model is computed; a dtype here, other than float32, belongs to the model and its fingerprint.
      own_tokenizer: whether the tokenizer came with the model, whose embedding may then have many rows more.

    Raises:
      InversionViewError: an unknown convention or dtype, or a tokenizer that does not fit the parameters.
    """
    if dtype not in (None, "float32", "bfloat16"):
      raise one_of("dtype", dtype, ("float32", "bfloat16"))
    if tokenizer is not None:
      tokenizers.check_fits(tokenizer, config.vocab_size, own=own_tokenizer)
    convention = pretrained.resolve(convention, config)
    params, converted_config = {}, pretrained.converted(config, convention)
    stored_dtype = {} if compute.dtype == "float32" else {"dtype": compute.dtype}
    fingerprint = storage.Fingerprint(converted_config.non_defaults() | stored_dtype)
    kept = jnp.dtype(dtype or "float32")
    for part, raw, converted in pretrained.convert(raw_params, config, convention):
      if raw is not None:
        fingerprint.add(part, raw)
      if mesh is None:
        params[part] = jax.tree.map(lambda x: jnp.asarray(x, kept), converted)
      else:
        tree = {part: jax.tree.map(lambda x: np.asarray(x).astype(kept), converted)}
        params |= parallel.put(tree, sharding.shardings(tree, mesh))
    compute = dataclasses.replace(compute, dtype=dtype or compute.dtype)
    made = cls(params, converted_config, tokenizer, convention, fingerprint.hex(), name, task, missing_tokenizer)
    return dataclasses.replace(made, compute=compute)

  @property
  def module(self) -> Transformer:
    return Transformer(self.config, self.compute)

  @property
  def has_logits(self) -> bool:
    """Whether there are logits: not for the first layers of a model, and not for a base model without an unembedding."""
    return "ln_f" in self.params and (self.config.tied or "unembed" in self.params)

  def require_logits(self) -> None:
    """Raises `InversionViewError` if this target has no logits."""
    if not self.has_logits:
      raise InversionViewError(NO_LOGITS)

  def require_tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer; raises `InversionViewError` with what is missing if the model came without one."""
    if self.tokenizer is None:
      raise InversionViewError(
        self.missing_tokenizer or f"the target {self.name!r} has no tokenizer; load it with tokenizer=..."
      )
    return self.tokenizer

  @functools.cached_property
  def _resolved_task(self) -> tasks.Task | None:
    return self._task if self._task is not None or not self.task else tasks.get(self.task)

  def resolve_task(self) -> tasks.Task | None:
    """The task that this is a target of, whose labels and features are known; None if it belongs to none."""
    return self._resolved_task

  def for_task(self, task: tasks.Task) -> "Target":
    """This model over the tokens of a language task (`restrict_to`), as a target of that task."""
    tokenizer = cast(tokenizers.PartTokenizer, task.tokenizer)  # as language tasks have
    return dataclasses.replace(self.restrict_to(tokenizer), task=task.name, _task=task)

  def restrict_to(self, tokenizer: tokenizers.PartTokenizer) -> "Target":
    """The same model over some of its tokens, numbered as `tokenizer` does; activations and the logits of these tokens stay.

    EOS and PAD, which the model does not know, are embedded as zeros, and their logits are -1e9.

    Raises:
      InversionViewError: a tokenizer that is not a part of this model's own.
    """
    if self.tokenizer is not None and self.tokenizer.describe() != tokenizer.base.describe():
      raise InversionViewError(
        f"the tokenizer is not a part of that of the target {self.name} ({tokenizers.brief(self.tokenizer.describe())}) but of "
        f"{tokenizers.brief(tokenizer.base.describe())}"
      )
    if self.config.vocab_out:
      raise InversionViewError(
        f"the target {self.name} has logits of other things than its tokens: no part of its tokens can be taken"
      )
    tokenizers.check_fits(tokenizer.base, self.config.vocab_size, own=self.tokenizer is not None)
    if tokenizer.base_ids.max() >= self.config.vocab_size:
      raise InversionViewError(
        f"the tokenizer has tokens for which the target {self.name} has no embedding (it has {self.config.vocab_size} rows); "
        "give a task that keeps some tokens only, or the tokenizer that the model was trained with"
      )
    kept, embed = tokenizer.base_ids, self.params["embed"]
    config = dataclasses.replace(self.config, vocab_size=tokenizer.vocab_size)
    params = {**self.params, "embed": jnp.concatenate([embed[kept], jnp.zeros((2, embed.shape[1]), embed.dtype)])}
    if self.has_logits:
      kernel = embed.T if config.tied else params["unembed"]["kernel"]
      bias = jnp.zeros(len(embed)) if config.tied else params["unembed"].get("bias", jnp.zeros(len(embed)))
      params["unembed"] = {
        "kernel": jnp.pad(kernel[:, kept], ((0, 0), (0, 2))),
        "bias": jnp.pad(bias[kept], (0, 2), constant_values=-1e9),
      }
      config = dataclasses.replace(config, tied=False, biases=tuple(dict.fromkeys((*config.biases, "unembed"))))
    return dataclasses.replace(self, params=params, config=config, tokenizer=tokenizer)

  def site(self, name: str | Site, kinds: Iterable[str] = sites.VECTOR_KINDS) -> Site:
    """The site of this name; raises `InversionViewError` listing the closest names if there is none."""
    c = self.config
    site = site_shapes.resolve(c, name, kinds)
    if site_shapes.depth(c, site) == c.n_layers and site.layer is None and c.n_layers and not self.has_logits:
      raise InversionViewError(
        f"no site {site}: this target was loaded with its first layers only; load it without layers="
      )
    return site

  def run(
    self,
    inputs: str | Sequence[str] | Sequence[Sequence[int]] | np.ndarray | jax.Array,
    capture: Sequence[str | Site] = (),
    edits: Sequence[Edit] = (),
    mask: np.ndarray | jax.Array | None = None,
    in_order: bool = False,
  ) -> Run:
    """Runs the model on texts or token ids.

    It may stand under `jax.jit`, `grad`, `jvp` and `vmap`: the values of edits (of an edit at "embed", so, the embeddings), `params` and
    token ids may be traced. What is static is checked; traced values are not.

    Args:
      inputs: B texts (or one), which are encoded with one BOS and without EOS, so that ``run.last_logits`` predicts what follows them; or
        int[B, T], padding behind the texts unless there is a mask; or a list of B lists of ids, which may differ in length.
      capture: sites to return, in either notation; also "a0" (all heads, [B, T, H, D]) and "p0" (pattern, [B, H, T, T]).
      edits: activations to replace on the way. Captures see the edited values.
      in_order: whether edits may share an activation: they are made one after the other, each acting on what those before it in the list left
        (edits of different sites in the order of the forward pass). Otherwise two that do not commute, or of which one overwrites
        the other, are refused.
      mask: [B, T] of token ids, 1 (or True) for the tokens that are attended to, as Hugging Face's attention masks; positions are counted over
        them. What comes out at the others has no meaning.

    Returns:
      Logits float32[B, T, V] (of a whole model) and the captured activations, float[B, T, D] each.

    Raises:
      InversionViewError: a text that the tokenizer does not know, tokens outside the vocabulary or longer than the context, an unknown
        site (lists the closest), an edit that would touch nothing (position out of range or on padding) or does not fit, two edits of
        the same activation or one that another overwrites, padding in front of a text without a mask, or more texts than memory holds.
    """
    rows = resolve_inputs(self, inputs, mask)
    captured = tuple(self.site(name, CAPTURABLE) for name in capture)
    width = self.config.d_model * (1 + len(captured)) + self.config.vocab_size * self.has_logits
    count = rows.tokens.shape[0]
    what = f"the logits and activations of {count:,} texts of {rows.tokens.shape[1]:,} tokens"
    bounds.check_memory(4.0 * width * rows.tokens.size, what, "run fewer texts at a time")
    resolved = resolve_edits(self, edits, rows, in_order)
    out = _run(self.module, self.params, rows.tokens, captured, resolved, self.has_logits, rows.mask)
    activations = {site: out[site] for site in dict.fromkeys(captured)}
    return Run(rows.tokens, rows.lengths, out.logits, activations, self.tokenizer, self.outputs)

  def captured(
    self, tokens: np.ndarray | jax.Array, capture: Sequence[Site], mask: np.ndarray | jax.Array | None = None
  ) -> dict[Site, jax.Array]:
    """The activations at sites of this target, of token ids int32[B, T] that are known to be valid; no layer behind the last site is run."""
    return dict(_run(self.module, self.params, tokens, tuple(capture), (), False, mask).captured)

  def encode(self, texts: str | Sequence[str]) -> np.ndarray:
    """One text or B of them -> int32[B, T] with one BOS and without EOS, checked against the context.

    Raises:
      InversionViewError: a target without a tokenizer, or a text that it cannot encode.
    """
    return encode(self, texts)

  def check_tokens(self, tokens: np.ndarray | jax.Array) -> np.ndarray:
    """int[B, T] -> int32[B, T]; raises `InversionViewError` for another shape or type, ids outside the vocabulary, or too many of them."""
    try:
      ids: Any = tokens if is_traced(tokens) else np.asarray(to_array(tokens))
    except ValueError:
      raise InversionViewError("tokens must be integers of shape [B, T], got rows of different lengths") from None
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or 0 in ids.shape:
      raise InversionViewError(f"tokens must be integers of shape [B, T], got {ids.dtype}{list(ids.shape)}")
    if ids.shape[1] > self.config.n_ctx:
      raise InversionViewError(
        f"a text of {ids.shape[1]} tokens is longer than the model's context of {self.config.n_ctx}"
      )
    if not is_traced(ids) and (ids.min() < 0 or ids.max() >= self.config.vocab_size):
      wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)].flat[0]
      raise InversionViewError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}")
    longest = getattr(self.tokenizer, "longest", 0)
    if longest and not is_traced(ids) and ids.shape[1] > 1 + longest:
      symbols = (ids != self.tokenizer.eos_id) & (ids != self.tokenizer.pad_id)  # type: ignore[union-attr]
      if symbols[:, 1 + longest :].any():
        raise InversionViewError(
          f"a text has more than {longest} tokens behind BOS, the most that this model is made for"
        )
    return ids.astype(np.int32)

  def describe(self) -> dict[str, str]:
    """Plain data that names this target in a result."""
    source = {"source": self.source} if self.source else {}
    return {"name": self.name, "fingerprint": self.fingerprint, "convention": self.convention, **source}

  def save(self, folder: str | os.PathLike) -> None:
    """Writes the parameters back; not under "centered", whose raw weights are gone (training writes raw ones with `save_target`).

    Raises:
      InversionViewError: another convention than "raw", or parameters of less than float32.
    """
    if self.convention != "raw":
      raise InversionViewError("only a target loaded with convention='raw' can be written back")
    if self.compute.dtype != "float32":
      raise InversionViewError("only a target loaded with dtype='float32' can be written back")
    save_target(folder, self.params, self.config, self.tokenizer, self.name, self.task)

  def _table(self) -> Table:
    c = self.config
    sizes = [leaf.size for leaf in jax.tree.leaves(self.params)]
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(self.params)})
    rows = [
      ("task", self.task or "-"),
      (
        "size",
        f"{c.n_layers} layers, {c.n_heads} heads, width {c.d_model}, context {c.n_ctx}, {sum(sizes):,} parameters",
      ),
      (
        "tokenizer",
        tokenizers.brief(None if self.tokenizer is None else self.tokenizer.describe()) + f", {c.vocab_size:,} tokens",
      ),
      ("convention", self.convention),
      ("dtype", ", ".join(dtypes)),
      (
        "logits",
        "yes" if self.has_logits else f"no: {'no unembedding' if 'ln_f' in self.params else 'first layers only'}",
      ),
      ("fingerprint", self.fingerprint),
      *([("source", self.source)] if self.source else []),
    ]
    return Table(f"Target {self.name!r}", rows=tuple(rows))


@functools.partial(parallel.jit, static_argnums=(0, 3, 5))
def _run(module: Transformer, params, tokens, capture, edits, logits, mask) -> Output:
  out = module.apply({"params": params}, tokens, mask=mask, capture=capture, edits=edits, logits=logits, exact=True)
  return cast(Output, out)


def save_target(
  folder: str | os.PathLike,
  raw_params: Mapping,
  config: TransformerConfig,
  tokenizer: tokenizers.Tokenizer | None,
  name: str = "",
  task: str = "",
  notes: dict | None = None,
) -> None:
  """Writes raw parameters as a finished target model (safetensors + JSON)."""
  storage.save_model(
    folder,
    raw_params,
    {
      "kind": "target",
      "name": name,
      "task": task,
      "config": dataclasses.asdict(config),
      "tokenizer": None if tokenizer is None else tokenizer.describe(),
      "notes": notes or {},
    },
  )
