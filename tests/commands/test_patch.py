"""`inversionview patch`: what it prints and writes, and what it refuses."""

import json
import pathlib

import pytest

from inversionview_jax.show import charts

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
ADDITION, COUNTING = CONFIGS / "verify_addition.py", CONFIGS / "verify_counting.py"

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def patch(config, *more, pairs=64):
  return ["patch", "--config", config, "--out", "out", f"--config.pairs={pairs}", "--config.batch_size=64", *more]


def test_patch_writes_data_and_charts_and_prints_tables(inversionview, tmp_path, monkeypatch):
  code, out, error = inversionview(*patch(f"{ADDITION}:A1_F2S2"))
  assert (code, error) == (0, "")
  names = {path.name for path in (tmp_path / "out").iterdir()}
  assert names == {"A1_F2S2.json", "A1_F2S2.png", "A1_F2S2.svg"} if charts.available() else {"A1_F2S2.json"}
  data = json.loads((tmp_path / "out" / "A1_F2S2.json").read_text())
  assert (data["task"], data["pairs"], data["pairs_asked"], data["settings"]["contrast"]["predict"]) == (
    "addition",
    64,
    64,
    "A1",
  )
  forward, backward = data["results"]
  assert [table["order"] for table in data["results"]] == ["forward", "backward"]
  rows = {row["name"]: row for row in forward["rows"]}
  assert list(rows) == ["a0.0@=", *(f"+ a{layer}.{head}@=" for layer in (0, 1) for head in range(4) if layer + head)]
  # In the model that ships, a0.0 brings the carry out of the tens; all heads together bring all that the pair changes.
  assert rows["a0.0@="]["share"]["mean"] > 0.9
  for table in (forward, backward):
    last = table["rows"][-1]
    assert last["share"]["mean"] == pytest.approx(1, abs=1e-3) and last["logit_difference"]["n"] == 64
    assert last["logit_difference"]["mean"] == pytest.approx(table["total"]["mean"], rel=1e-3)
    for row in table["rows"]:
      assert f"{row['logit_difference']['mean']:.3f} ± {row['logit_difference']['se']:.3f}" in out
  # Without matplotlib all but the charts is there, and one line names what is missing.
  monkeypatch.setattr(charts, "available", lambda: False)
  code, again, error = inversionview(*patch(f"{ADDITION}:A1_F2S2", "--out", "bare"))
  assert code == 0 and error == f"inversionview: {charts.MISSING}\n" and "inversionview_jax[plots]" in error
  assert [path.name for path in (tmp_path / "bare").iterdir()] == ["A1_F2S2.json"]
  assert json.loads((tmp_path / "bare" / "A1_F2S2.json").read_text()) == data and again.replace("bare", "out") == out


def test_ablation_of_plus(inversionview, tmp_path):
  code, out, error = inversionview(*patch(f"{ADDITION}:plus"))
  assert (code, error) == (0, "")
  (table,) = json.loads((tmp_path / "out" / "plus.json").read_text())["results"]
  assert [row["read"] for row in table["rows"]] == ["=", "A1", "A2", "A3"]
  for row in table["rows"]:
    assert row["kl"]["mean"] >= 0 and row["kl"]["n"] == 64 and {"top_logit", "top_logit_share"} <= set(row)
    assert f"read at {row['read']}" in out


@pytest.mark.parametrize(
  "argv, named",
  [
    (patch(f"{ADDITION}:A9"), "unknown experiment 'A9'"),
    (patch(CONFIGS / "addition.py")[:5], "has no experiments"),
    (patch("missing.py"), "no config file 'missing.py'"),
    (patch(f"{ADDITION}:plus", "--config.piars=3"), "piars"),
    (patch(f"{ADDITION}:plus", "--target", "counting"), "tokenizer"),
    (patch(f"{ADDITION}:plus", "--target", "nowhere"), "nowhere"),
    (patch(f"{ADDITION}:plus", "--convention", "whitened"), "whitened"),
    (patch(f"{ADDITION}:plus", "--out", "file"), "'file'"),
    (patch(f"{ADDITION}:plus", pairs=0), "pairs = 0"),
    (patch(f"{ADDITION}:plus", "--config.seed=-1"), "seed = -1"),
    (patch(f"{ADDITION}:plus", "--config.split=dev"), "'dev'"),
    (patch(f"{ADDITION}:plus", "--config.experiments.plus.to=median"), "median"),
    (patch(f"{ADDITION}:plus", "--config.experiments.plus.kind=swap"), "swap"),
    (patch(f"{ADDITION}:plus", "--config.experiments.plus.addresses=('x9.post@+',)"), "x9.post"),
    (patch(f"{ADDITION}:plus", "--config.experiments.plus.places=('x0.post@+',)"), "called experiments.plus.addresses"),
    (patch(f"{ADDITION}:plus", "--config.experiments.plus.addresses=('x0.post@',)"), "no position behind"),
    (patch(f"{ADDITION}:plus", "--config.experiments.plus.addresses=('x0.post@A9',)"), "'A9'"),
    (patch(f"{ADDITION}:A1_F1S1", "--config.experiments.A1_F1S1.contrast.where=F1 == 10"), "no input of the split"),
    (patch(f"{ADDITION}:A1_F1S1", "--config.experiments.A1_F1S1.contrast.where=F9 == 1"), "'F9'"),
    (patch(f"{ADDITION}:A1_F1S1", "--config.experiments.A1_F1S1.contrast.change=('A1',)"), "'A1'"),
    (patch(f"{ADDITION}:A1_F1S1", "--config.experiments.A1_F1S1.position=A3"), "cannot reach"),
    (patch(f"{COUNTING}:flip", "--config.experiments.flip.orders=('sideways',)"), "sideways"),
    (patch(f"{COUNTING}:flip", "--config.experiments.flip.contrast.kind=swap"), "swap"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(refused, tmp_path, argv, named):
  (tmp_path / "file").write_text("mine")
  assert named in refused(*argv)


@pytest.mark.parametrize(
  "argv",
  [
    ["patch"],
  ],
)
def test_command_that_cannot_be_parsed_is_refused_in_one_line(refused, argv):
  assert "--help" in refused(*argv)
