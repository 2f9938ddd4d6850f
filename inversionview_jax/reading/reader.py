"""`Reader`: a target, its task and a decoder; queries in, preimages out.

Shapes: B texts, T tokens, L layers, H heads, D width of the activation, S sites.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from inversionview_jax import bounds
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import site_shapes
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.preimage import Preimage, Query
from inversionview_jax.reading import answers, log_prob, monte_carlo, overview
from inversionview_jax.reading.requests import Request, ResolvedRequest, resolve, resolve_mixture
from inversionview_jax.sampling import exact, mixtures, sampler
from inversionview_jax.sampling.candidates import ANYWHERE, Candidates, Queries, Rows
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.targets import Run, Target
from inversionview_jax.tasks import Mixture, Task

_CHUNK = 8  # queries of one program when there are many
_PROGRESS_ROWS = 256  # candidates of one program when progress is reported
_METHODS = ("decoder", "monte_carlo", "decoder+monte_carlo")


class Reader(ShowsTable):
  """Reads activations of one target.

  Attributes:
    target: the frozen model that is read.
    task: its inputs, positions and default settings.
    config: of the decoder; `config.sites` are the sites that can be read.
    variables: of the decoder.
    name: shown with every preimage.
    fingerprint: of the decoder as it was saved; "" for one that was not.
    sites: S sites, in the order of `config.sites`.
    sampler: decoder and target, compiled together.
  """

  def __init__(
    self,
    target: Target,
    task: Task,
    config: DecoderConfig,
    variables: dict,
    name: str = "",
    mesh: Mesh | None = None,
    fingerprint: str = "",
  ):
    self.target, self.task, self.config, self.name = target, task, config, name or task.name
    self.fingerprint = fingerprint
    self.variables = jax.tree.map(jnp.asarray, variables)
    if mesh is not None and mesh.shape[parallel.MODEL] > 1:
      self.variables = parallel.put(self.variables, sharding.shardings(self.variables, mesh))
    self.sites = tuple(target.site(site) for site in config.sites)
    self.sampler = sampler.Sampler(config, target.module, task, mesh)

  @functools.cached_property
  def bos_activations(self) -> jax.Array:
    """float32[S, D], z0 of every site; Monte Carlo does without."""
    return sampler.bos_activations(self.target.module, self.target.params, self.sites, self.task.tokenizer.bos_id)

  def preimage(
    self,
    text: str,
    site: str,
    position: int | str,
    *,
    epsilon: float | None = None,
    metric: str | None = None,
    match: str = "anywhere",
    temperatures: Sequence[float] | float | None = None,
    noise: Sequence[float] | float | None = None,
    num_samples: int | None = None,
    mixture: str | None = None,
    effects: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    method: str = "decoder",
    particles: int = 1024,
    budget: int = 200_000,
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
      mixture: a name among `task.mixtures`, such as "paper", or a `tasks.Mixture` of your own module named as "package.module:NAME"; None:
        the task's first.
      effects: whether to compute each token's effect, which takes two more passes of the decoder; without, `Sample.effect` is ().
      seed: the candidates are a function of it.
      progress: called with (candidates drawn so far, all of them), from (0, all) to (all, all); the candidates are then drawn in chunks
        of 256, so that one program serves any number of them. An exception that it raises ends the drawing. Of Monte Carlo: with
        (target runs so far, budget).
      method: "decoder": the decoder's candidates (the paper's method). "monte_carlo": Monte Carlo on the target from the task's prior, without
        the decoder. "decoder+monte_carlo": Monte Carlo from the decoder's candidates: fewer target runs, but what they lack and no move
        reaches is missing, and there are no bits. Monte Carlo computes no effects.
      particles, budget: of Monte Carlo; see `reading.monte_carlo.preimage`.

    Returns:
      All candidates, each re-run through the target, nearest first; of Monte Carlo the particles and the nearest proposals outside epsilon.

    Raises:
      InversionViewError: a text, site, position or number that cannot be used; names what could. Of Monte Carlo also: a task without moves
        or prior, or, of the prior alone, settings of the decoder.
    """
    if method not in _METHODS:
      raise one_of("method", method, _METHODS)
    if method != "decoder":
      request = self._resolve(Request(text, site, position, epsilon, metric, match))
      given = {"temperatures": temperatures, "noise": noise, "num_samples": num_samples, "mixture": mixture}
      if method == "monte_carlo" and (unused := [name for name, value in given.items() if value is not None]):
        raise InversionViewError(
          f"{unused[0]} belongs to the decoder, which method='monte_carlo' does not use: use 'decoder+monte_carlo'"
        )
      drawn_with = resolve_mixture(self.task, mixture, temperatures, noise, num_samples)
      return monte_carlo.sample(
        self.target,
        self.task,
        self.sites,
        [request],
        particles=particles,
        budget=budget,
        seed=seed,
        progress=progress,
        start=None
        if method == "monte_carlo"
        else lambda queries: np.asarray(self.draw_mixture(queries, drawn_with, seed)[0].tokens),
        reader="" if method == "monte_carlo" else self.name,
        mesh=self.sampler.mesh,
      )
    return self.preimages(
      [Request(text, site, position, epsilon, metric, match)],
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
    requests: Iterable[Request | tuple | Mapping | Query],
    *,
    temperatures: Sequence[float] | float | None = None,
    noise: Sequence[float] | float | None = None,
    num_samples: int | None = None,
    mixture: str | None = None,
    effects: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    chunk: int = 0,
  ) -> list[Preimage]:
    """The preimages of many activations over all devices, each as `preimage` returns it.

    Args:
      requests: `Request`s; or tuples (text, site, position), or dicts of a `Request`'s fields; or the `Query` of another preimage.
      temperatures, noise, num_samples, mixture, effects, seed, progress: as for `preimage`; progress counts the candidates of all queries.
      chunk: queries of one program, the last one padded to as many; 0: 8, or 1 for a single query.
    """
    drawn_with = resolve_mixture(self.task, mixture, temperatures, noise, num_samples)
    seed = bounds.whole("seed", seed, "own_seed")
    bounds.check(chunk=chunk)
    resolved = self.check(requests)
    size = chunk or (1 if len(resolved) == 1 or progress else _CHUNK)
    counter = None if progress is None else _Counter(progress, len(resolved) * drawn_with.num_samples)
    preimages: list[Preimage] = []
    for start in range(0, len(resolved), size):
      preimages += self._chunk(resolved[start : start + size], size, drawn_with, effects, seed, counter)
    return preimages

  def check(self, requests: Iterable[Request | tuple | Mapping | Query]) -> list[ResolvedRequest]:
    """The requests with the task's defaults filled in; raises `InversionViewError` for the first one that is not valid."""
    return [self._resolve(Request.of(request)) for request in requests]

  def _resolve(self, request: Request) -> ResolvedRequest:
    return resolve(request, self.site_index(request.site), self.task)

  def candidates(
    self,
    activation: np.ndarray | jax.Array,
    site: str,
    count: int,
    *,
    metric: str | None = None,
    position: int = ANYWHERE,
    seed: int = 0,
  ) -> Candidates:
    """Texts that the decoder writes for an activation, wherever it is from, by the task's own mixture, as arrays.

    Args:
      activation: float[D], such as that of a text that the reader's own vocabulary does not have.
      site: of the reader.
      count: R, how many.
      metric: of the distances; None: the task's.
      position: at which texts are compared; -1: the nearest one.
      seed: the texts are a function of it.

    Returns:
      R candidates, with their distances.

    Raises:
      InversionViewError: a site that the reader was not trained on, or an unknown metric.
    """
    padded = site_shapes.padded(np.asarray(activation, np.float32), self.config.d_activation)
    queries = Queries.of(padded[None], self.site_index(site), metric or self.task.metric, position)
    return self.draw_mixture(queries, resolve_mixture(self.task, None, None, None, count), seed)[0]

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
    """All inputs of the task that lie within epsilon, from running the target on every one of them; the decoder is not used.

    Arguments are those of `preimage`.

    Raises:
      InversionViewError: as `preimage` does, and for a task whose inputs cannot be enumerated.
    """
    index = exact.every_input(self.task)
    request = self._resolve(Request(text, site, position, epsilon, metric, match))
    query_site = self.sites[request.site]
    activation = self.target.run(request.tokens[None], [query_site])[query_site][0, request.position]
    queries = self._queries([request], [activation])
    distances = exact.distances(self.target, self.task, self.sites, queries, index, self.sampler.mesh)
    return exact.ExactPreimage.of(distances, 0, request.epsilon, self.task)

  def draw(
    self,
    queries: Queries,
    rows: Rows,
    seed: int,
    effects: bool = False,
    chunk: int = 0,
    progress: Callable[[int], object] | None = None,
  ) -> Candidates:
    """Candidates as arrays, for measurements over many queries; arguments as for `sampling.Sampler.run`."""
    variables, params, z0 = self.variables, self.target.params, self.bos_activations
    if parallel.spans_hosts(self.sampler.mesh):
      variables, params, z0 = self._replicated
    return self.sampler.run(variables, params, z0, queries, rows, seed, effects, chunk, progress)

  def draw_mixture(
    self,
    queries: Queries,
    mixture: Mixture,
    seed: int,
    effects: bool = False,
    progress: Callable[[int], object] | None = None,
  ) -> tuple[Candidates, Rows]:
    """Candidates of a mixture, those of each query together, and the rows they were drawn with; NumPy arrays.

    Args:
      queries: Q of them.
      mixture: how candidates are drawn.
      seed, effects: as for `draw`.
      progress: called with the number of candidates of each chunk of 256 once they are drawn.
    """
    draw = functools.partial(
      self.draw, seed=seed, effects=effects, chunk=_PROGRESS_ROWS if progress else 0, progress=progress
    )
    return mixtures.draw_mixture(draw, queries, mixture, self.task)

  @functools.cached_property
  def _replicated(self):
    """Decoder, target and z0 on the devices of all hosts, put there once."""
    arrays, mesh = (self.variables, self.target.params, self.bos_activations), self.sampler.mesh
    return tuple(parallel.put(tree, sharding.shardings(tree, mesh)) for tree in arrays)

  def log_prob(self, tokens: np.ndarray, activation: np.ndarray | jax.Array, site: str) -> jax.Array:
    """log p(text | activation, site) under the decoder, summed over the tokens of each text with its EOS.

    Args:
      tokens: int32[B, T], as `tokenizer.encode_batch(texts, eos=True)` makes them.
      activation: float32[D] or float32[B, D].
      site: one of the reader's sites.

    Returns:
      float32[B].
    """
    texts = self.target.check_tokens(tokens)
    activation = jnp.broadcast_to(jnp.asarray(activation, jnp.float32), (len(texts), self.config.d_activation))
    index = np.full(len(texts), self.site_index(site), np.int32)
    pad_id = self.task.tokenizer.pad_id
    return log_prob.plain_log_prob(Decoder(self.config), self.variables, texts, activation, index, pad_id)

  def attention(self, tokens: np.ndarray) -> np.ndarray:
    """The attention pattern of every head of the target: int[B, T] -> float32[B, L, H, T, T]."""
    run = self._run(np.asarray(tokens))
    return np.stack([np.asarray(run[f"p{layer}"], np.float32) for layer in range(self.target.config.n_layers)], axis=1)

  def site_index(self, site: str) -> int:
    """Index of a site among the reader's; raises `InversionViewError` listing them if it is none of them."""
    resolved = self.target.site(site)
    if resolved not in self.sites:
      raise one_of(f"site of the reader {self.name!r}:", resolved.short, self.config.sites)
    return self.sites.index(resolved)

  def _chunk(
    self,
    resolved: list[ResolvedRequest],
    size: int,
    mixture: Mixture,
    effects: bool,
    seed: int,
    progress: Callable[[int], object] | None,
  ) -> list[Preimage]:
    """The preimages of up to `size` queries, from one program call; a shorter list is padded to that size."""
    padded = resolved + [resolved[-1]] * (size - len(resolved))
    run = self._run(np.stack([request.tokens for request in padded]))
    activations = [
      np.asarray(run[self.sites[request.site]][i, request.position], np.float32) for i, request in enumerate(padded)
    ]
    candidates = self.draw_mixture(self._queries(padded, activations), mixture, seed, effects, progress)
    preimages, count = [], mixture.num_samples
    for i, request in enumerate(resolved):
      site, part = self.sites[request.site], slice(i * count, (i + 1) * count)
      attention = None
      if site.kind == "head":
        attention = np.asarray(run[f"p{site.layer}"][i, site.head, request.position, : request.position + 1])
      own, rows = jax.tree.map(lambda x, part=part: x[part], candidates)
      preimages.append(
        answers.preimage_of(
          answers.query_of(request, self.task, site, activations[i], attention),
          answers.samples_of(own, rows, request.epsilon, self.task),
          request,
          seed=seed,
          reader=self.name,
          task=self.task.name,
          convention=self.target.convention,
        )
      )
    return preimages

  def _run(self, tokens) -> Run:
    """The target with all of the reader's sites and all patterns captured, so that one program serves every query."""
    patterns = [f"p{layer}" for layer in range(self.target.config.n_layers)]
    return self.target.run(tokens, [*dict.fromkeys(self.sites), *patterns])

  def _queries(self, resolved: Sequence[ResolvedRequest], activations: Sequence) -> Queries:
    return Queries.of(
      np.stack([site_shapes.padded(x, self.config.d_activation) for x in activations]),
      [request.site for request in resolved],
      [request.metric for request in resolved],
      [request.compared_position for request in resolved],
    )

  def _table(self) -> Table:
    return overview.table_of(self)


class _Counter:
  """Adds up candidates and reports (drawn so far, all of them), at first (0, all)."""

  def __init__(self, report: Callable[[int, int], object], total: int):
    self._report, self._total, self._drawn = report, total, 0
    self(0)

  def __call__(self, count: int) -> None:
    self._drawn += count
    self._report(self._drawn, self._total)
