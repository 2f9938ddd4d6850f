"""The model that is read: parameters, tokenizer and convention, with captures and edits by name."""

import copy
import dataclasses
import functools
import importlib.resources
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import pretrained, sites, tasks
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import storage
from inversionview_jax.models.capture import Output, SiteEdit
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.sites import Site
from inversionview_jax.tasks import tokenizers

NO_LOGITS = "this target was loaded with its first layers only and has no logits; load it without layers="
CAPTURABLE = (*sites.VECTOR_KINDS, "heads", "pattern")


@dataclasses.dataclass(frozen=True)
class Edit:
  """Replace the activation at a site.

  Attributes:
    site: either notation; one vector per position (a head, not all heads of a layer; not the pattern).
    position: an index, int[B] with one index per row, or None for all positions. Negative ones count from the end of the row of T.
    value: float[D], float[B, D], or float[B, T, D] where `position` is None.
  """

  site: str | Site
  position: int | np.ndarray | None
  value: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Run:
  """What `Target.run` returns: ``run.logits`` float32[B, T, V]; ``run["a0.3"]`` the activation, under either name."""

  _logits: jax.Array | None
  _captured: dict[Site, jax.Array]

  @property
  def logits(self) -> jax.Array:
    if self._logits is None:
      raise InversionViewError(NO_LOGITS)
    return self._logits

  def __getitem__(self, name: str | Site) -> jax.Array:
    site = sites.parse(name)
    if site not in self._captured:
      have = ", ".join(s.short for s in self._captured) or "nothing"
      raise InversionViewError(f"{str(name)!r} was not captured; captured: {have}; add it to capture=[...]")
    return self._captured[site]

  def keys(self) -> list[str]:
    return [site.short for site in self._captured]


class Target:
  """A frozen language model.

  Attributes:
    params: nested dicts of arrays of `dtype`, under `convention`.
    config: the shape.
    convention: "centered" or "raw" (see `pretrained.conventions`); None takes "centered" for LayerNorm and "raw" for RMSNorm.
    tokenizer: may be None for a checkpoint that came without one; then only token ids can be given.
    fingerprint: names the raw parameters and their configuration, so that a decoder knows what it was trained on.

  Args:
    raw_params: name of a part ("embed", "blocks_0", ...) -> nested dicts of float32 arrays. Parts are asked for one by one and go to the
      device one by one, so that a model that is read from disk meanwhile is never in memory twice.
    dtype: of parameters and of what is computed with them, "float32" or "bfloat16"; norms, softmax and logits stay float32. None keeps the
      parameters float32 and computes as `config` says.
    mesh: parts go to its devices by `layout`'s rules, for a target that no single device can hold; None for the first device.
  """

  def __init__(
    self,
    raw_params,
    config: TransformerConfig,
    tokenizer=None,
    convention: str | None = None,
    name: str = "",
    task: str = "",
    dtype: str | None = None,
    mesh=None,
  ):
    if dtype not in (None, "float32", "bfloat16"):
      raise one_of("dtype", dtype, ("float32", "bfloat16"))
    if tokenizer is not None:
      tokenizers.check_fits(tokenizer, config.vocab_size)
    self.convention = pretrained.resolve(convention, config)
    self.params, self.config = {}, pretrained.converted(config, self.convention)
    fingerprint = storage.Fingerprint(self.config.stated())
    for part, raw, converted in pretrained.convert(raw_params, config, self.convention):
      if raw is not None:
        fingerprint.add(part, raw)
      kept = jnp.dtype(dtype or "float32")
      if mesh is None:
        self.params[part] = jax.tree.map(lambda x: jnp.asarray(x, kept), converted)
      else:
        tree = {part: jax.tree.map(lambda x: np.asarray(x).astype(kept), converted)}
        self.params |= parallel.put(tree, sharding.shardings(tree, mesh))
    self.fingerprint = fingerprint.hex()
    if dtype:
      self.config = dataclasses.replace(self.config, dtype=dtype)
    self.tokenizer, self.name, self.task = tokenizer, name, task
    self.missing_tokenizer = ""  # why there is none, where that is known
    self._made_task = None

  @property
  def module(self) -> Transformer:
    return Transformer(self.config)

  @property
  def whole(self) -> bool:
    """Whether there are logits: not for the first layers of a model."""
    return "ln_f" in self.params

  def require_logits(self) -> None:
    """Raises `InversionViewError` if this target has no logits."""
    if not self.whole:
      raise InversionViewError(NO_LOGITS)

  def its_task(self) -> tasks.Task | None:
    """The task of which this is a target, whose labels and features are known; None if it belongs to none."""
    if self._made_task is None and self.task:
      self._made_task = tasks.get(self.task)
    return self._made_task

  def of(self, task: tasks.Task) -> "Target":
    """`over` the tokens of a language task, and a target of that task."""
    other = self.over(task.tokenizer)
    other.task, other._made_task = task.name, task
    return other

  def over(self, tokenizer: tokenizers.PartTokenizer) -> "Target":
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
    tokenizers.check_fits(tokenizer.base, self.config.vocab_size)
    kept, embed = tokenizer.base_ids, self.params["embed"]
    config = dataclasses.replace(self.config, vocab_size=tokenizer.vocab_size)
    params = {**self.params, "embed": jnp.concatenate([embed[kept], jnp.zeros((2, embed.shape[1]), embed.dtype)])}
    if self.whole:
      kernel = embed.T if config.tied else params["unembed"]["kernel"]
      bias = jnp.zeros(len(embed)) if config.tied else params["unembed"].get("bias", jnp.zeros(len(embed)))
      params["unembed"] = {
        "kernel": jnp.pad(kernel[:, kept], ((0, 0), (0, 2))),
        "bias": jnp.pad(bias[kept], (0, 2), constant_values=-1e9),
      }
      config = dataclasses.replace(config, tied=False, biases=tuple(dict.fromkeys((*config.biases, "unembed"))))
    other = copy.copy(self)
    other.params, other.config, other.tokenizer = params, config, tokenizer
    return other

  def require_tokenizer(self):
    """The tokenizer; raises `InversionViewError` saying what is missing if the model came without one."""
    if self.tokenizer is None:
      raise InversionViewError(
        self.missing_tokenizer or f"the target {self.name!r} has no tokenizer; load it with tokenizer=..."
      )
    return self.tokenizer

  def site(self, name: str | Site, kinds=sites.VECTOR_KINDS) -> Site:
    """The site of this name; raises `InversionViewError` listing the closest names if there is none."""
    if self.config.rotary:
      if sites.is_position_embedding(name):
        raise InversionViewError(
          f"no site {str(name)!r}: this model has rotary embeddings, which turn queries and keys instead"
        )
      kinds = [kind for kind in kinds if kind != "pos_embed"]
    return sites.resolve(name, self.config.n_layers, self.config.n_heads, kinds)

  def run(self, tokens, capture: Sequence[str | Site] = (), edits: Sequence[Edit] = ()) -> Run:
    """Runs the model on token ids.

    Args:
      tokens: int[B, T], padding on the right.
      capture: sites to return, in either notation; also "a0" (all heads, [B, T, H, D]) and "p0" (pattern, [B, H, T, T]).
      edits: activations to replace on the way. Captures see the edited values.

    Returns:
      logits float32[B, T, V] (of a whole model) and the captured activations, float[B, T, D] each.

    Raises:
      InversionViewError: tokens outside the vocabulary or longer than the context, an unknown site (lists the closest), an edit
        that would touch nothing (position out of range or on padding) or does not fit, or two edits of one place.
    """
    tokens = self._checked_tokens(tokens)
    wanted = tuple(self.site(name, CAPTURABLE) for name in capture)
    prepared = tuple(self._prepared(edit, tokens) for edit in edits)
    _refuse_overlap(prepared, edits)
    out = _run(self.module, self.params, tokens, wanted, prepared, self.whole)
    return Run(out.logits, {site: out[site] for site in dict.fromkeys(wanted)})

  def _checked_tokens(self, tokens) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or 0 in tokens.shape:
      raise InversionViewError(f"tokens must be integers of shape [B, T], got {tokens.dtype}{list(tokens.shape)}")
    if tokens.shape[1] > self.config.n_ctx:
      raise InversionViewError(
        f"a text of {tokens.shape[1]} tokens is longer than the model's context of {self.config.n_ctx}"
      )
    if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
      wrong = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)].flat[0]
      raise InversionViewError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}")
    return tokens.astype(np.int32)

  def _prepared(self, edit: Edit, tokens: np.ndarray) -> SiteEdit:
    site = self.site(edit.site, CAPTURABLE)
    if site.kind not in sites.VECTOR_KINDS:
      instead = (
        f"; edit its heads, a{site.layer}.0 to a{site.layer}.{self.config.n_heads - 1}" if site.kind == "heads" else ""
      )
      raise InversionViewError(
        f"{str(edit.site)!r} can be captured but not edited, being more than one vector per position{instead}"
      )
    batch, length, width = *tokens.shape, self.config.d_model
    value = jnp.asarray(edit.value, jnp.float32)
    shape = (batch, length, width) if edit.position is None else (batch, width)
    if value.shape not in (shape, (width,)):
      raise InversionViewError(f"the edit of {site} needs a value of shape {shape} or {(width,)}, got {value.shape}")
    value = jnp.broadcast_to(value, shape)
    position = None
    if edit.position is not None:
      position = np.asarray(edit.position)
      if position.shape not in ((), (batch,)) or not np.issubdtype(position.dtype, np.integer):
        raise InversionViewError(
          f"the edit of {site} needs one position, or one per row ({batch}), got {edit.position!r}"
        )
      if (position < -length).any() or (position >= length).any():
        raise InversionViewError(
          f"the edit of {site} touches nothing: position {edit.position!r} is outside 0 to {length - 1}"
        )
      position = np.broadcast_to(position % length, (batch,)).astype(np.int32)
      padding = self.tokenizer is not None and self.tokenizer.padding(tokens)[np.arange(batch), position]
      if np.any(padding):
        row = int(np.argmax(padding))
        raise InversionViewError(
          f"the edit of {site} touches nothing in row {row}: position {int(position[row])} is padding"
        )
    return SiteEdit(site.kind, jnp.int32(site.layer or 0), jnp.int32(site.head or 0), position, value)

  def save(self, folder: str | os.PathLike) -> None:
    """Not for a target under "centered", whose raw weights are gone; training writes raw ones with `save_target`."""
    if self.convention != "raw":
      raise InversionViewError("only a target loaded with convention='raw' can be written back")
    if self.config.dtype != "float32":
      raise InversionViewError("only a target loaded with dtype='float32' can be written back")
    save_target(folder, self.params, self.config, self.tokenizer, self.name, self.task)


@functools.partial(parallel.jit, static_argnums=(0, 3, 5))
def _run(module: Transformer, params, tokens, capture, edits, logits) -> Output:
  return module.apply({"params": params}, tokens, capture=capture, edits=edits, logits=logits, exact=True)


def _refuse_overlap(prepared: Sequence[SiteEdit], edits: Sequence[Edit]) -> None:
  """Two edits of one place: one of them would silently do nothing."""

  def place(edit):  # the residual stream before a layer is that after the layer before it
    layer = int(edit.layer)
    return ("post", layer - 1, 0) if edit.kind == "pre" and layer else (edit.kind, layer, int(edit.head))

  for i, one in enumerate(prepared):
    for k, other in enumerate(prepared[:i]):
      everywhere = one.position is None or other.position is None
      if place(one) == place(other) and (everywhere or (np.asarray(one.position) == np.asarray(other.position)).any()):
        names = " and ".join(dict.fromkeys(sites.parse(edit.site).short for edit in (edits[k], edits[i])))
        raise InversionViewError(
          f"two edits of {names} at the same position: one of them would touch nothing; keep one"
        )


def save_target(
  folder, raw_params, config: TransformerConfig, tokenizer, name: str = "", task: str = "", notes: dict | None = None
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


def shipped_folder(name: str) -> pathlib.Path | None:
  """The folder of a model that ships with the package, or None."""
  folder = pathlib.Path(str(importlib.resources.files("inversionview_jax"))) / "shipped" / name
  return folder if folder.is_dir() else None


def shipped_names() -> list[str]:
  folder = pathlib.Path(str(importlib.resources.files("inversionview_jax"))) / "shipped"
  return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def load_target(
  name: str | os.PathLike,
  convention: str | None = None,
  tokenizer=None,
  dtype: str | None = None,
  layers: int | None = None,
  mesh=None,
) -> Target:
  """Loads a target model.

  Args:
    name: a shipped model ("addition", "counting"), a workdir or folder written by this package, a Hugging Face folder (config.json and
      safetensors, whole or in shards) of GPT-2, Llama, Mistral, Qwen2, Qwen3, SmolLM, Gemma or Gemma 2, or a GGUF file of one.
    convention: "centered" (what published distances are measured on; models with LayerNorm only) or "raw"; see `pretrained.conventions`.
      None takes "centered" for LayerNorm and "raw" for RMSNorm.
    tokenizer: in place of the checkpoint's own, or where it has none: a tokenizer, or the name of the task whose it is.
    dtype: of parameters on the device and of what is computed with them: "float32" (what None means for checkpoints) or "bfloat16".
    layers: load and run the first so many only, which is all that reading their activations takes; there are no logits then.
    mesh: as for `Target`.

  Raises:
    InversionViewError: no such model, files missing or damaged, an architecture or attribute that is not handled, a tokenizer that is not
      the model's, or a convention that the model does not have.
  """
  parallel.use_compilation_cache()
  task = ""
  if isinstance(tokenizer, str):
    task, tokenizer = tokenizer, tasks.get(tokenizer).tokenizer
  folder = pathlib.Path(name)
  if (shipped := shipped_folder(str(name))) and not folder.is_dir():
    folder = shipped
  if folder.is_file():
    return _from_checkpoint(folder, convention, tokenizer, dtype, layers, task, mesh)
  if not folder.is_dir():
    raise InversionViewError(
      f"no target {str(name)!r}: not a folder or a .gguf file, and shipped are only: {', '.join(shipped_names())}"
    )
  if (folder / "target" / "model.json").exists():
    folder = folder / "target"
  if not (folder / "model.json").exists():
    return _from_checkpoint(folder, convention, tokenizer, dtype, layers, task, mesh)
  params, said = storage.load_model(folder, _expected_shapes)
  tokenizer = tokenizers.from_description(said["tokenizer"]) if said["tokenizer"] else tokenizer
  params, config = _first(params, TransformerConfig(**said["config"]), layers)
  return Target(params, config, tokenizer, convention, said["name"], said["task"], dtype, mesh)


def refuse_other_tokenizer(target: Target, task: tasks.Task, source) -> None:
  """Raises `InversionViewError` if the target that came from `source` writes its texts in other tokens than the task."""
  if target.tokenizer.describe() != task.tokenizer.describe():
    raise InversionViewError(
      f"the target {source} has another tokenizer ({tokenizers.brief(target.tokenizer.describe())}) than the task "
      f"{task.name} ({tokenizers.brief(task.tokenizer.describe())}); give one that was trained on this task"
    )


def _from_checkpoint(
  path: pathlib.Path,
  convention: str | None,
  tokenizer,
  dtype: str | None,
  layers: int | None,
  task: str = "",
  mesh=None,
) -> Target:
  found = pretrained.open_checkpoint(path)
  missing = ""
  if tokenizer is None:
    tokenizer, missing = pretrained.tokenizer_of(path, found)
  target = Target(
    *_first(found.parts, found.config, layers),
    tokenizer,
    convention,
    name=path.stem if found.gguf else path.name,
    task=task,
    dtype=dtype,
    mesh=mesh,
  )
  target.missing_tokenizer = missing
  return target


def _first(parts, config: TransformerConfig, layers: int | None):
  """The parts and the configuration of the first `layers` of a model; None: of all of it."""
  if layers is None:
    return parts, config
  if not 1 <= layers <= config.n_layers:
    raise InversionViewError(f"layers = {layers} must be from 1 to {config.n_layers}, which the model has")
  return pretrained.FirstLayers(parts, layers), dataclasses.replace(config, n_layers=layers)


def _expected_shapes(said: dict):
  if said.get("kind") != "target":
    raise InversionViewError(f"this is a {said.get('kind')!r}, not a target model")
  if missing := {"name", "task", "config", "tokenizer"} - set(said):
    raise InversionViewError(f"model.json is damaged: it does not say {', '.join(sorted(missing))}")
  try:
    module = Transformer(TransformerConfig(**said["config"]))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
  except (KeyError, TypeError) as error:
    raise InversionViewError(
      f"model.json describes no model that this version knows: {str(error).splitlines()[0]}"
    ) from None
