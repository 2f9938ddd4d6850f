"""Direct logit attribution as an experiment, on a language model."""

import json

import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax import tasks
from inversionview_jax.causal import attribution
from inversionview_jax.cli import main
from inversionview_jax.targets import load_target

pytestmark = pytest.mark.usefixtures("quick_to_compile")
TINY = "configs/ioi_smollm2.py:tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", layers=3)


@pytest.fixture(scope="module")
def task(folder):
  return tasks.get("ioi", load_target(folder).tokenizer)


@pytest.mark.slow
def test_experiments_run_on_a_language_model(folder, tmp_path, capsys):
  argv = [
    "patch",
    "--config",
    "configs/verify_ioi.py",
    "--target",
    str(folder),
    "--out",
    str(tmp_path),
    "--config.pairs=6",
  ]
  assert main([*argv, "--config.batch_size=4"]) == 0
  assert "IO in top 30" in capsys.readouterr().out
  names, swapped = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("names", "S2"))
  assert {row["name"] for row in names["results"][0]["rows"]} == {
    f"a{layer}.{head}" for layer in range(3) for head in range(2)
  }
  assert len(swapped["results"][0]["rows"]) == 6 and swapped["pairs"] == 6
  assert (tmp_path / "names.png").exists() and (tmp_path / "S2.svg").exists()
  (by_four,) = names["results"]
  assert main([*argv, "--config.batch_size=6"]) == 0
  (by_six,) = json.loads((tmp_path / "names.json").read_text())["results"]
  for one, other in zip(by_four["rows"], by_six["rows"], strict=True):
    assert one["name"] == other["name"] and one["top"] == other["top"]
    assert one["logit_difference"]["mean"] == pytest.approx(other["logit_difference"]["mean"], abs=1e-6)


def test_ranks_are_those_of_the_contributions(folder, task):
  target = load_target(folder, "centered")
  tokens = task.tokenizer.to_base(task.tokens(np.arange(3))).astype(np.int32)
  of = np.array([5, 40, 300])
  ranks = attribution.ranks(target, tokens, np.array([7, 8, 9]), of, ["a0.1", "m2", "embed"])
  whole = attribution.attribute(target, tokens, np.array([7, 8, 9]), components=["a0.1", "m2", "embed"]).values
  np.testing.assert_allclose(ranks.values, whole[:, :, of], rtol=0, atol=1e-4)
  expected = (whole[:, :, None] > ranks.values[..., None] + 1e-5).sum(axis=-1)
  assert np.abs(ranks.above - expected).max() <= 1  # but for what rounding makes of a tie
  assert (ranks.above + ranks.below < whole.shape[-1]).all()
