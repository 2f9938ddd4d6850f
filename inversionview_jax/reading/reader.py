"""The `Reader` that users hold: a target, its task and a decoder; queries in, preimages out."""

import dataclasses
import functools
import numbers
import operator
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import distance, tasks
from inversionview_jax._version import __version__
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.distance import MATCHES
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import decoder, storage
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.sampling import exact, sampler
from inversionview_jax.targets import Target, shipped_folder, shipped_names, task_and_target
from inversionview_jax.tasks import Mixture, Task, tokenizers

_CHUNK = 8  # queries in one program when there are many
_PART = 256  # candidates in one program when progress is to be told


@dataclasses.dataclass(frozen=True)
class Request:
  """One query of `Reader.preimages`; the arguments of `Reader.preimage`."""

  text: str
  site: str
  position: int | str
  epsilon: float | None = None
  metric: str | None = None
  match: str = "anywhere"


class Reader:
  """Reads activations of one target.

  Attributes:
    target: the frozen model that is read.
    task: its inputs, positions and default settings.
    config: of the decoder; `config.sites` are the sites that can be read.
    variables: of the decoder.
    name: shown with every preimage.
  """

  def __init__(self, model: Target, task: Task, config: DecoderConfig, variables, name: str = "", mesh=None):
    self.target, self.task, self.config, self.name = model, task, config, name or task.name
    self.variables = jax.tree.map(jnp.asarray, variables)
    if mesh is not None and mesh.shape[parallel.MODEL] > 1:
      self.variables = parallel.put(self.variables, sharding.shardings(self.variables, mesh))
    self.sites = tuple(model.site(site) for site in config.sites)
    self.sampler = sampler.Sampler(config, model.module, task, mesh)
    self.bos_activations = sampler.bos_activations(model.module, model.params, self.sites, task.tokenizer.bos_id)

  def preimage(
    self,
    text: str,
    site: str,
    position: int | str,
    *,
    epsilon: float | None = None,
    metric: str | None = None,
    match: str = "anywhere",
    temperatures: Sequence[float] | None = None,
    noise: Sequence[float] | float | None = None,
    num_samples: int | None = None,
    mixture: str | None = None,
    effects: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
  ) -> Preimage:
    """The epsilon-preimage of one activation (paper, section 2).

    Args:
      text: an input of the task, or the beginning of one.
      site: one of the reader's sites, in either notation.
      position: an index (BOS is 0; negative ones count from the end), or a label of the task such as "=".
      epsilon: the threshold; None: the task's.
      metric: "euclidean" (normalized) or "cosine"; None: the task's.
      match: "anywhere" takes each candidate's minimum over positions, "position" compares at the query's position only.
      temperatures, noise: pairs of them make the sampling mixture; one number for `noise` goes with every temperature. None for
        both: those of `mixture`.
      num_samples: candidates; None: the mixture's (1,024).
      mixture: a name among `task.mixtures`, such as "paper"; None: the task's own.
      effects: whether to compute each token's effect, for which the decoder runs twice more; without, `Sample.effect` is ().
      seed: the candidates are a function of it.
      progress: called with (candidates drawn so far, all of them), from nothing to all; the candidates are then drawn in parts of
        256, so that the same program serves any number of them. What it raises ends the drawing.

    Returns:
      All candidates, each re-run through the target, by distance.

    Raises:
      InversionViewError: a text, site, position or number that cannot be used; says what could.
    """
    ask = Request(text, site, position, epsilon, metric, match)
    return self.preimages(
      [ask],
      temperatures=temperatures,
      noise=noise,
      num_samples=num_samples,
      mixture=mixture,
      effects=effects,
      seed=seed,
      progress=progress,
    )[0]

  def preimages(
    self,
    asks: Iterable[Request | tuple | dict | Query],
    *,
    temperatures: Sequence[float] | None = None,
    noise: Sequence[float] | float | None = None,
    num_samples: int | None = None,
    mixture: str | None = None,
    effects: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    chunk: int = 0,
  ) -> list[Preimage]:
    """Many queries over all devices, each answered as `preimage` would.

    Args:
      asks: `Request`s; or tuples (text, site, position), or dicts of an `Request`'s fields; or the `Query` of another preimage.
      temperatures, noise, num_samples, mixture, effects, seed, progress: as for `preimage`; the numbers are those of all queries.
      chunk: queries in one program, filled up to that many; 0: 8, or 1 for a single query.
    """
    drawn = self._mixture(temperatures, noise, num_samples, mixture)
    seed = _whole("seed", seed, 0, 2**32 - 1)
    checked = self.check(asks)
    found = []
    size = chunk or (1 if len(checked) == 1 or progress else _CHUNK)
    tell = _Progress(progress, len(checked) * drawn.num_samples)
    for start in range(0, len(checked), size):
      found += self._answer(checked[start : start + size], size, drawn, effects, seed, tell)
    return found

  def check(self, asks: Iterable[Request | tuple | dict | Query]) -> list["_Checked"]:
    """Raises `InversionViewError` for the first query that cannot be asked."""
    return [self._checked(_ask(ask)) for ask in asks]

  def exact_preimage(
    self,
    text: str,
    site: str,
    position: int | str,
    *,
    epsilon: float | None = None,
    metric: str | None = None,
    match: str = "anywhere",
  ) -> exact.ExactPreimage:
    """All inputs of the task that lie within epsilon, found by running the target on every one of them; the decoder has no part in it.

    Arguments are those of `preimage`.

    Raises:
      InversionViewError: as `preimage` does, and for a task whose inputs cannot be enumerated.
    """
    index = exact.every_input(self.task)
    asked = self._checked(Request(text, site, position, epsilon, metric, match))
    held = self.target.run(asked.tokens[None], [self.sites[asked.site]])[self.sites[asked.site]]
    found = exact.distances(
      self.target, self.task, self.sites, self._queries([asked], [held[0, asked.position]]), index, self.sampler.mesh
    )
    return exact.ExactPreimage.of(found, 0, asked.epsilon, self.task)

  def draw(
    self, queries: candidates.Queries, rows: candidates.Rows, seed: int, effects: bool = False, **parts
  ) -> candidates.Candidates:
    """Candidates as arrays, for measurements over many queries; arguments, `part` and `told` too, as for `sampling.Sampler.run`."""
    held = self.variables, self.target.params, self.bos_activations
    held = self._copies if parallel.spans_hosts(self.sampler.mesh) else held
    return self.sampler.run(*held, queries, rows, seed, effects=effects, **parts)

  def draw_mixture(
    self, queries: candidates.Queries, drawn: Mixture, seed: int, effects: bool = False, tell: "_Progress | None" = None
  ) -> tuple[candidates.Candidates, candidates.Rows]:
    """Candidates of a mixture, those of each query together, and what they were drawn with; NumPy arrays."""
    size = len(queries.site)
    how = {} if tell is None or tell.to is None else {"part": _PART, "told": tell.drawn}
    rows = candidates.mixture_rows(drawn.settings, drawn.num_samples, size, drawn.stratified, drawn.directions)
    if drawn.repeats and self.task.rare is None:
      raise InversionViewError(
        f"this mixture suppresses rare tokens, and the task {self.task.name} does not say which these are"
      )
    parts, asked = sampler.rounds_of(rows, drawn.num_samples, drawn.rounds), []
    for which in parts:
      if drawn.repeats:
        tokens = np.concatenate([np.zeros((0, self.task.length), np.int32), *(one.tokens for one in asked)])
        whose = rows.query[np.concatenate([np.zeros(0, int), *parts[: len(asked)]]).astype(int)]
        used = sampler.overused(tokens, whose, size, self.task.rare, drawn.repeats)
        queries = queries.replace(suppressed=used)
      found = self.draw(queries, jax.tree.map(lambda x, which=which: x[which], rows), seed, effects, **how)
      asked.append(jax.tree.map(np.asarray, found))
    back = np.argsort(np.concatenate(parts), kind="stable")
    return jax.tree.map(lambda *each: np.concatenate(each)[back], *asked), rows

  @functools.cached_property
  def _copies(self):
    """Decoder, target and z0 on the devices of all hosts, put there once."""
    held, mesh = (self.variables, self.target.params, self.bos_activations), self.sampler.mesh
    return tuple(parallel.put(tree, sharding.shardings(tree, mesh)) for tree in held)

  def log_prob(self, tokens, activation, site: str) -> jax.Array:
    """log p(text | activation, site) under the decoder, summed over the tokens of each text with its EOS.

    Args:
      tokens: int32[B, T], as `tokenizer.encode_batch` makes them.
      activation: float32[D] or float32[B, D].
      site: one of the reader's sites.

    Returns:
      float32[B].
    """
    tokens = self.target.check_tokens(tokens)
    activation = jnp.broadcast_to(jnp.asarray(activation, jnp.float32), (len(tokens), self.config.d_activation))
    index = np.full(len(tokens), self.site_index(site), np.int32)
    return _log_prob(Decoder(self.config), self.variables, tokens, activation, index, self.task.tokenizer.pad_id)

  def _mixture(self, temperatures, noise, num_samples, name: str | None) -> Mixture:
    base = self.task.mixture if name is None else self.task.mixture_named(name)
    if num_samples is not None:
      base = dataclasses.replace(base, num_samples=_whole("num_samples", num_samples, 1))
    if temperatures is None and noise is None:
      return base
    temperatures, noise = (
      _numbers("temperature", 1.0 if temperatures is None else temperatures),
      _numbers("noise", 0.0 if noise is None else noise),
    )
    if len(noise) not in (1, len(temperatures)):
      raise InversionViewError(
        f"{len(noise)} values of noise for {len(temperatures)} temperatures: give one, or one for each"
      )
    pairs = zip(temperatures.tolist(), np.broadcast_to(noise, len(temperatures)).tolist(), strict=True)
    return dataclasses.replace(base, settings=tuple(pairs), directions=False)  # eta, as it was typed

  def site_index(self, name: str) -> int:
    site = self.target.site(name)
    if site not in self.sites:
      raise one_of(f"site of the reader {self.name!r}:", site.short, self.config.sites)
    return self.sites.index(site)

  def _checked(self, ask: Request) -> "_Checked":
    """Validates everything a person typed, before anything runs."""
    site = self.site_index(ask.site)
    epsilon = self.task.epsilon if ask.epsilon is None else ask.epsilon
    if not (isinstance(epsilon, numbers.Real) and np.isfinite(epsilon) and epsilon > 0):
      raise InversionViewError(f"epsilon = {epsilon!r} must be a number above 0; this task's is {self.task.epsilon}")
    metric = self.task.metric if ask.metric is None else ask.metric
    if metric not in distance.METRICS:
      raise one_of("metric", metric, distance.METRICS)
    if ask.match not in MATCHES:
      raise one_of("match", ask.match, MATCHES)
    if not ask.text:
      raise InversionViewError("the text is empty: give an input of the task, such as one from its data")
    tokens = self.task.tokenizer.encode_batch([ask.text], length=self.task.length, eos=True)[0]
    return _Checked(ask, tokens, site, self.task.position(tokens, ask.position), float(epsilon), metric)

  def _answer(
    self, checked: list["_Checked"], size: int, drawn: Mixture, effects: bool, seed: int, tell: "_Progress"
  ) -> list[Preimage]:
    """One program call for up to `size` queries; a short list is filled up so that the shapes stay."""
    padded = checked + [checked[-1]] * (size - len(checked))
    tokens = np.stack([c.tokens for c in padded])
    run = self._run(tokens)
    activations = [np.asarray(run[self.sites[c.site]][i, c.position], np.float32) for i, c in enumerate(padded)]
    queries = self._queries(padded, activations)
    count = drawn.num_samples
    out, rows = self.draw_mixture(queries, drawn, seed, effects, tell)
    made = []
    for i, c in enumerate(checked):
      site, part = self.sites[c.site], slice(i * count, (i + 1) * count)
      attention = None
      if site.kind == "head":
        attention = np.asarray(run[f"p{site.layer}"][i, site.head, c.position, : c.position + 1])
      mine = jax.tree.map(lambda x, part=part: x[part], (out, rows))
      made.append(self._preimage(c, activations[i], attention, *mine, seed))
    return made

  def attention(self, tokens) -> np.ndarray:
    """The attention pattern of every head of the target: int[B, T] -> float32[B, L, H, T, T]."""
    run = self._run(np.asarray(tokens))
    return np.stack([np.asarray(run[f"p{layer}"], np.float32) for layer in range(self.target.config.n_layers)], axis=1)

  def _run(self, tokens):
    """One program for whatever is asked of a text: all sites, all patterns."""
    patterns = [f"p{layer}" for layer in range(self.target.config.n_layers)]
    return self.target.run(tokens, [*dict.fromkeys(self.sites), *patterns])

  def _queries(self, checked: list["_Checked"], activations) -> candidates.Queries:
    return candidates.Queries(
      np.stack(activations).astype(np.float32),
      np.array([c.site for c in checked], np.int32),
      np.array([c.position if c.ask.match == "position" else -1 for c in checked], np.int32),
      np.array([distance.metric_index(c.metric) for c in checked], np.int32),
    )

  def _preimage(
    self, c: "_Checked", activation, attention, out: candidates.Candidates, rows: candidates.Rows, seed: int
  ) -> Preimage:
    t = self.task.tokenizer
    used = [int(x) for x in c.tokens if x != t.pad_id]
    site = self.sites[c.site]
    query = Query(
      text=c.ask.text,
      tokens=used,
      token_strings=t.strings(used),
      position=c.position,
      label=self.task.labels(used)[c.position],
      site=site.short,
      hook=site.hook,
      activation=activation,
      attention=attention,
    )
    samples, out = [], jax.tree.map(np.asarray, out)
    effect = np.empty((len(out.tokens), 0)) if out.effect is None else out.effect
    ends = out.tokens == t.eos_id
    lengths = (~ends & (out.tokens != t.pad_id)).sum(axis=1)  # BOS and the text; EOS and PAD only follow it
    inside = out.distance <= np.float32(c.epsilon)
    columns = (out.tokens, lengths, ends.any(axis=1), out.distance, inside, out.position, effect)
    columns = (*columns, rows.temperature, rows.noise)
    for tokens, length, ended, far, near, where, effect, temperature, noise in zip(
      *(x.tolist() for x in columns), strict=True
    ):
      text = tokens[1:length]
      samples.append(
        Sample(
          tokens=text,
          token_strings=t.strings(text),
          text=t.text(text),
          distance=far,
          position=where,
          effect=effect[1:length],
          temperature=temperature,
          noise=noise,
          inside=near,
          ended=ended,
        )
      )
    return Preimage(
      query,
      samples,
      epsilon=c.epsilon,
      metric=c.metric,
      match=c.ask.match,
      seed=seed,
      reader=self.name,
      task=self.task.name,
      convention=self.target.convention,
      version=__version__,
    )


def _ask(ask) -> Request:
  if isinstance(ask, Request):
    return ask
  if isinstance(ask, Query):
    return Request(ask.text, ask.site, ask.position)
  try:
    return Request(**ask) if isinstance(ask, dict) else Request(*ask)
  except TypeError:
    fields = ", ".join(field.name for field in dataclasses.fields(Request))
    raise InversionViewError(f"a query is (text, site, position) or a dict of {fields}; got {ask!r}") from None


@dataclasses.dataclass(frozen=True)
class _Checked:
  """An `Request` with its tokens int32[T], site index, position, epsilon and metric resolved."""

  ask: Request
  tokens: np.ndarray
  site: int
  position: int
  epsilon: float
  metric: str


class _Progress:
  """Counts candidates and tells `to`, which may be None."""

  def __init__(self, to, total: int):
    self.to, self.total, self.done = to, total, 0
    self.drawn(0)

  def drawn(self, count: int) -> None:
    self.done += count
    if self.to is not None:
      self.to(self.done, self.total)


def _whole(name: str, value, low: int, high: int | None = None) -> int:
  """`value` as an int; raises `InversionViewError` for what is none, or is out of range."""
  wanted = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
  try:
    number = operator.index(value)
  except TypeError:
    raise InversionViewError(f"{name} = {value!r} must be {wanted}") from None
  if number < low or (high is not None and number > high):
    raise InversionViewError(f"{name} = {number} must be {wanted}")
  return number


def _numbers(name: str, values) -> np.ndarray:
  """One number or several, as float64[N]; raises `InversionViewError` for what is not a finite number from 0 up."""
  try:
    found = np.atleast_1d(values).astype(float)
  except (TypeError, ValueError):
    raise InversionViewError(f"{name} {values!r} must be a number from 0 up, or a list of them") from None
  if found.ndim != 1 or not len(found):
    raise InversionViewError(f"{name} {values!r} must be a number from 0 up, or a list of at least one")
  for value in found:
    if not (np.isfinite(value) and value >= 0):
      raise InversionViewError(f"{name} {value:g} must be a number from 0 up")
  return found


_log_prob = parallel.jit(decoder.log_prob, static_argnums=(0, 5))


def load_reader(name: str | os.PathLike, model: Target | str | os.PathLike | None = None, mesh=None) -> Reader:
  """Loads a reader.

  Args:
    name: a shipped reader ("addition"), a workdir of `inversionview train`, or a folder with `target/` and `decoder/`.
    model: the target to use instead of the one stored with the reader, or where it is; must be the one the decoder was trained on. A reader
      of a language model names the checkpoint instead of carrying it: say here where it is now, if it was moved.
    mesh: from `parallel.make_mesh`; all devices by default.

  Raises:
    InversionViewError: no such reader, files missing or damaged, or a decoder trained on another target, convention or tokenizer.
  """
  parallel.use_compilation_cache()
  folder = pathlib.Path(name)
  if (shipped := shipped_folder(str(name))) and not folder.is_dir():
    folder = shipped
  if not folder.is_dir():
    raise InversionViewError(
      f"no reader {str(name)!r}: not a folder, and shipped are only: {', '.join(shipped_readers())}"
    )
  if not (folder / "decoder" / "model.json").exists():
    where = "W" if folder == shipped else folder
    raise InversionViewError(
      f"no reader in {name}: it has no decoder/model.json (shipped readers: {', '.join(shipped_readers())}); "
      f"train one with `inversionview train --workdir {where} ...`"
    )
  variables, said = storage.load_model(folder / "decoder", _expected_shapes)
  variables.pop("count_head", None)  # for a training that goes on
  written = tokenizers.from_description(said["tokenizer"]) if tasks.is_language(said["task"]) else None
  sharded = mesh if mesh is not None and mesh.shape[parallel.MODEL] > 1 else None
  task, model = task_and_target(
    said["task"],
    folder / "target",
    settings=said.get("task_settings"),
    tokenizer=written,
    convention=said["target"]["convention"],
    mesh=sharded,
    moved_to=model,
  )
  _check_belongs(said, model, task, folder)
  return Reader(model, task, DecoderConfig.from_dict(said["config"]), variables, said["name"], mesh)


def shipped_readers() -> list[str]:
  """Names of the readers that come with the package."""
  return [name for name in shipped_names() if (shipped_folder(name) / "decoder" / "model.json").exists()]


def _check_belongs(said: dict, model: Target, task: Task, folder) -> None:
  """A decoder read against another target would put distances beside samples that mean nothing."""
  of = said["target"]
  if of["fingerprint"] != model.fingerprint:
    raise InversionViewError(
      f"the decoder in {folder} was trained on another target ({of['name']}, {of['fingerprint']}) than this one "
      f"({model.name}, {model.fingerprint}); use that target, or train a decoder on this one"
    )
  if of["convention"] != model.convention:
    raise InversionViewError(
      f"the decoder in {folder} was trained under convention {of['convention']!r}, the target is loaded as {model.convention!r}; "
      f"load it with convention={of['convention']!r}"
    )
  for whose, tokenizer in (("the target's", model.tokenizer), ("the task's", task.tokenizer)):
    if tokenizer is None or tokenizer.describe() != said["tokenizer"]:
      raise InversionViewError(
        f"the decoder in {folder} was trained with another tokenizer ({tokenizers.brief(said['tokenizer'])}) than {whose} "
        f"({tokenizers.brief(tokenizer and tokenizer.describe())}); train a decoder for this one"
      )


def _expected_shapes(said: dict):
  if said.get("kind") != "decoder":
    raise InversionViewError(f"this is a {said.get('kind')!r}, not a decoder")
  if missing := {"name", "task", "config", "tokenizer", "target"} - set(said):
    raise InversionViewError(f"model.json is damaged: it does not say {', '.join(sorted(missing))}")
  try:
    if missing := {"name", "fingerprint", "convention"} - set(said["target"]):
      raise InversionViewError(f"model.json is damaged: it does not say the target's {', '.join(sorted(missing))}")
    config = DecoderConfig.from_dict(said["config"])
    shapes = jax.eval_shape(lambda: decoder.initial(config, jax.random.key(0)))
    if times := said.get("count_classes"):
      said_of_one = shapes["params"]["encoder"]["ln_f"]["scale"]
      shapes["count_head"] = jax.eval_shape(decoder.token_count_head(config, times).init, jax.random.key(0), said_of_one)["params"]
    return shapes
  except (KeyError, TypeError) as error:
    raise InversionViewError(
      f"model.json describes no decoder that this version knows: {str(error).splitlines()[0]}"
    ) from None
