"""A language model as the prior of its own preimages: texts that it writes itself, with no task, no files and no reader.

Shapes: N particles, R activations of a query.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from inversionview_jax import bounds
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.reading.requests import ResolvedRequest
from inversionview_jax.sampling.language_prior import LanguagePrior
from inversionview_jax.sampling.monte_carlo import MonteCarlo
from inversionview_jax.sampling.particles import Settings
from inversionview_jax.sampling.text_sweeps import TextSettings, TextSweeps
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import CharTokenizer, Text
from inversionview_jax.tasks.text import rows_of
from inversionview_jax.tasks.tokenizers import PartTokenizer

if TYPE_CHECKING:
  from inversionview_jax.reading.reader import Reader

PARTICLES, BUDGET = 128, 8_000  # defaults
STARTS = ("query", "prior")
CANDIDATES = 4  # that a decoder writes for each particle, of which the nearest are taken
_PRIORS = ("model",)
_SAMPLERS = 4  # compiled samplers that are kept
_CACHE = 4 * 2**30  # bytes of keys and values on a device, at most; those of CPUs share their memory


@dataclasses.dataclass(frozen=True)
class TextPrior:
  """The texts of a target that lie near a query: what they may be.

  Attributes:
    task: of these texts, without files.
    lengths: fewest and most tokens of a text, BOS not counted.
  """

  task: Text
  lengths: tuple[int, int]


def text_prior(target: Target, text: str, prior: str, growth: int = 0, start: "str | Reader" = "query") -> TextPrior:
  """The prior of this name around a text.

  Args:
    target: a whole language model.
    text: the query's.
    prior: "model": the target's own probability of a text.
    growth: how many tokens fewer or more than the query's a text may have.
    start: "query": copies of the text, heated and cooled; "prior": texts that the model writes, which gives bits; a reader:
      those that its decoder writes.

  Raises:
    InversionViewError: another prior or start, a target without logits or without a tokenizer of its own texts, or a text that is empty, too
      long, or spells out a special token.
  """
  if prior not in _PRIORS:
    raise one_of("prior", prior, _PRIORS)
  if isinstance(start, str) and start not in STARTS:
    raise one_of("start", start, STARTS)
  if not target.has_logits:
    raise InversionViewError(
      f"prior 'model' needs the probabilities of the whole model, and the target {target.name!r} has no logits: load it without layers="
    )
  tokenizer = target.require_tokenizer()
  if isinstance(tokenizer, CharTokenizer):
    raise InversionViewError(
      f"prior 'model' is for language models, and the target {target.name!r} has the characters of a task: leave prior out"
    )
  if not target.config.causal:
    raise InversionViewError(
      f"prior 'model' is for models that predict the next token, and the target {target.name!r} attends in both directions: leave prior out"
    )
  growth, texts = bounds.whole("growth", growth), Text(tokenizer).tokenizer
  ids = texts.encode(text)
  if not ids:
    raise InversionViewError(f"the text {text!r} has no tokens: give a text of at least one")
  if wrong := [token for token in ids if token in texts.special_ids]:
    raise InversionViewError(
      f"{text!r} spells out the special token {texts.strings(wrong[:1])[0]!r}, which no text of the model's prior has: leave it out"
    )
  longest = len(ids) + growth
  if longest + 1 > target.config.n_ctx:
    raise InversionViewError(
      f"a text of {longest} tokens is longer than the model's context of {target.config.n_ctx}, BOS included: shorten it"
      + (" or lower growth" if growth else "")
    )
  return TextPrior(Text(tokenizer, {"length": longest + 2}), (max(1, len(ids) - growth), longest))


def sampler(
  target: Target, prior: TextPrior, sites: tuple[Site, ...], mesh: Mesh, particles: int | None = None
) -> MonteCarlo:
  """The sampler of queries with activations at these R sites, compiled once for texts of the same lengths.

  Raises:
    InversionViewError: a number of particles that does not divide, or that needs too much memory.
  """
  particles = PARTICLES if particles is None else bounds.whole("particles", particles)
  check_memory(target.config, prior.lengths[1], particles, mesh)
  return _sampler(target, prior.lengths, tuple(sites), mesh, particles)


def check_memory(config: TransformerConfig, tokens: int, particles: int, mesh: Mesh) -> None:
  """Raises `InversionViewError` where the keys and values of so many texts, divided over a mesh, are too large.

  Args:
    config: of the model.
    tokens: of a text, BOS not counted.
    particles: texts on all devices.
    mesh: of the particles.
  """
  devices = 1 if parallel.platform(mesh) == "cpu" else mesh.shape[parallel.DATA]
  needed = _cache_bytes(config, tokens + 1) // devices
  if needed * particles > _CACHE:
    on_one = " on each device" if devices > 1 else ""
    raise InversionViewError(
      f"{particles} texts of {tokens} tokens take {needed * particles / 2**30:.1f} GiB of keys and values{on_one}, more than "
      f"{_CACHE / 2**30:.0f}: use at most {_CACHE // needed // 2 * 2} particles, or a shorter text"
    )


@functools.lru_cache(_SAMPLERS)
def _sampler(
  target: Target, lengths: tuple[int, int], sites: tuple[Site, ...], mesh: Mesh, particles: int
) -> MonteCarlo:
  task = Text(target.require_tokenizer(), {"length": lengths[1] + 2})
  program = TextSweeps(LanguagePrior(target, sites, allowed_tokens(target)), task, mesh, TextSettings(lengths))
  settings = Settings(particles=particles, moves=0.1, final_moves=2.0, sweeps=12, cooling=0.4)
  return MonteCarlo(target, task, sites, mesh, settings, program=program)


def written_for(
  reader: "Reader",
  activation: np.ndarray,
  prior: TextPrior,
  site: Site,
  request: ResolvedRequest,
  count: int,
  seed: int,
) -> np.ndarray:
  """int32[M, T]: the query's text, and up to `count` others that a reader's decoder writes for the activation, nearest first.

  Those that are too short are left out; of those that are too long the end is, where the activation lies before it.

  Args:
    reader: of the same model, on texts of its own.
    activation: float[D], that of the whole model at the query.
    prior: which texts may be.
    site: of the query.
    request: the query; its text may have tokens that the reader does not write.
    count: candidates.
    seed: of the candidates.

  Raises:
    InversionViewError: a reader of another model, or one that does not have the site.
  """
  base, whole = reader.task.tokenizer, prior.task.tokenizer
  if not isinstance(base, PartTokenizer) or base.base.describe() != whole.base.describe():
    raise InversionViewError(
      f"the reader {reader.name!r} is of another model, with another tokenizer: give one of the model that is read"
    )
  settings: dict[str, Any] = {"metric": request.metric, "position": request.compared_position, "seed": seed}
  written = reader.candidates(activation, site.short, count, **settings)
  rows = [whole.encode(request.text)]
  for i in np.argsort(written.distance, kind="stable"):
    ordinary = [token for token in written.tokens[i] if token not in (base.bos_id, base.eos_id, base.pad_id)]
    ids = base.to_base(ordinary)[: prior.lengths[1]]
    compared = 0 <= written.position[i] <= len(ids)  # what comes behind it changes nothing
    if compared and len(ids) >= prior.lengths[0] and not np.isin(ids, list(whole.special_ids)).any():
      rows.append(ids.tolist())
  return rows_of(whole, rows, prior.task.length)


def allowed_tokens(target: Target) -> np.ndarray:
  """bool[V]: the tokens that a text of this target may have: all of its tokenizer's but special ones."""
  tokenizer, number = Text(target.require_tokenizer()).tokenizer, np.arange(target.config.vocab_size)
  return (number < len(tokenizer.base_ids)) & ~np.isin(number, list(tokenizer.special_ids))


def _cache_bytes(config: TransformerConfig, length: int) -> int:
  """Bytes of the keys and values of one text."""
  return 4 * 2 * config.n_layers * config.kv_heads * config.d_head * length
