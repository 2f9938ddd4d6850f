"""What preimages are drawn from: a reader or a target alone, methods and their settings."""

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.reading import Reader, Request
from inversionview_jax.reading.source import Source, methods

TASK = tasks.get("addition")
TEXT = "615+861=1476"

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def reader(small_target, small_decoder):
  return Reader(small_target, TASK, *small_decoder, "small")


class NoMoves(type(TASK)):
  """Addition whose inputs Monte Carlo cannot change."""

  def moves(self):
    raise InversionViewError("no moves")


def test_the_default_is_what_the_task_and_the_reader_allow(reader, small_target, small_decoder):
  assert Source.of(reader).method == "decoder+monte_carlo"
  assert Source.of(small_target).method == "monte_carlo" and Source.of(small_target).reader is None
  still = Reader(small_target, NoMoves(), *small_decoder, "still")
  assert Source.of(still).method == "decoder" and methods(NoMoves(), True) == ("decoder", "exact")
  with pytest.raises(InversionViewError, match="no moves"):
    Source.of(small_target, task=NoMoves())
  assert methods(tasks.get("counting"), False) == ("monte_carlo",)


@pytest.mark.parametrize(
  ("method", "settings", "named"),
  [
    ("montecarlo", {}, "did you mean monte_carlo"),
    ("monte_carlo", {"mixture": "paper"}, "mixture has no effect with method 'monte_carlo'"),
    ("decoder", {"budget": 9}, "budget has no effect"),
    ("exact", {"particles": 9}, "particles has no effect"),
    ("decoder", {"mixture": "papre"}, "did you mean paper"),
    ("decoder", {"num_samples": 0}, "num_samples = 0"),
  ],
)
def test_wrong_settings_are_refused_before_anything_is_drawn(reader, method, settings, named):
  with pytest.raises(InversionViewError, match=named):
    Source.of(reader, method, **settings)


def test_a_target_alone_reads_any_of_its_sites(small_target, reader):
  source = Source.of(small_target)
  source.check_site("m1")
  assert "x0.mid" in source.sites and source.name == small_target.name
  with pytest.raises(InversionViewError, match="a7.0"):
    source.check([(TEXT, "a7.0", "=")])
  with pytest.raises(InversionViewError, match="m1"):
    Source.of(reader).check_site("m1")  # no site of the reader
  with pytest.raises(InversionViewError, match="needs a reader"):
    Source.of(small_target, "decoder")


@pytest.mark.slow
def test_many_requests_are_those_one_by_one_and_progress_reaches_the_end(reader):
  requests = [Request(f"{100 + i}+861=", ("a0.0", "x1.post")[i % 2], "=") for i in range(9)]
  for method, some in (("decoder", {"num_samples": 16}), ("monte_carlo", {"particles": 32, "budget": 64})):
    source, reported = Source.of(reader, method, **some), []
    wanted = requests[: 9 if method == "decoder" else 2]
    preimages = source.preimages(wanted, seed=3, progress=lambda done, total: reported.append((done, total)))
    assert [(p.query.text, p.query.site, p.method) for p in preimages] == [(r.text, r.site, method) for r in wanted]
    assert preimages[-1] == source.preimage(wanted[-1], seed=3)
    done, totals = zip(*reported, strict=True)
    assert list(done) == sorted(done) and done[-1] == totals[-1] == 1000 * len(wanted) and len(set(totals)) == 1


def test_attention_is_that_of_the_reader(small_target, reader):
  tokens = TASK.tokenizer.encode_batch([TEXT], TASK.length, eos=True)
  np.testing.assert_allclose(Source.of(small_target).attention(tokens), reader.attention(tokens), atol=1e-6)
