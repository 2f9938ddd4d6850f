"""`inversionview patch` and `inversionview verify`: what they print and write, every experiment of the configs, what they refuse."""

import json
import pathlib
import xml.etree.ElementTree

import numpy as np
import pytest

from inversionview_jax import cli, tasks
from inversionview_jax.causal import experiments
from inversionview_jax.commands import configs
from inversionview_jax.errors import InversionViewError
from inversionview_jax.show import charts
from inversionview_jax.targets import load_target

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
ADDITION, COUNTING = CONFIGS / "verify_addition.py", CONFIGS / "verify_counting.py"

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture
def inversionview(monkeypatch, capsys, tmp_path):
  """A function (arguments) -> (exit code, stdout, stderr), in the folder `tmp_path`."""
  monkeypatch.chdir(tmp_path)

  def run(*argv):
    code = cli.main([str(argument) for argument in argv])
    return code, *capsys.readouterr()

  return run


def patch(config, *more, pairs=64):
  return ["patch", "--config", config, "--out", "out", f"--config.pairs={pairs}", "--config.batch_size=64", *more]


def refused(inversionview, folder, *argv) -> str:
  """The one line on stderr of a command that fails, writing nothing into `folder`."""
  before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  code, out, error = inversionview(*argv)
  assert (code, out) == (2, "")
  assert error.startswith("inversionview: ") and error.endswith("\n") and error.count("\n") == 1
  assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
  return error


# patch.


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


def result(kind="patch"):
  values = {"mean": 2.0, "se": None, "n": 1}
  row = {"name": "a0.0@$ <b>", "read": "=", "logit_difference": values, "kl": values, "top_logit": values}
  tables = [{"order": order, "rows": [row, row | {"name": "+ m0@= a1.0@="}]} for order in ("forward", "backward")]
  return {"kind": kind, "about": "<what> & $why$", "pairs": 1, "results": tables if kind == "patch" else tables[:1]}


@pytest.mark.parametrize("kind", ["patch", "ablate"])
def test_charts_name_every_step_and_are_the_same_each_time(tmp_path, kind):
  pytest.importorskip("matplotlib")
  png, svg = charts.write_chart(result(kind), tmp_path / "chart")
  assert png.read_bytes().startswith(b"\x89PNG")
  text = "".join(xml.etree.ElementTree.fromstring(svg.read_bytes()).itertext())
  assert "<what> & $why$" in text and "a0.0@$" in text.replace("\n", "")
  before = svg.read_bytes()
  charts.write_chart(result(kind), tmp_path / "chart")
  assert svg.read_bytes() == before


def test_a_chart_without_matplotlib_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(charts, "available", lambda: False)
  with pytest.raises(InversionViewError, match="matplotlib is not installed"):
    charts.write_chart(result(), tmp_path / "chart")
  assert not list(tmp_path.iterdir())


# The experiments of the configs.


@pytest.mark.parametrize(
  "path, count", [(ADDITION, 12), (COUNTING, 2)], ids=lambda value: getattr(value, "stem", value)
)
def test_every_experiment_has_pairs_places_and_a_variant_of_its_name(path, count):
  config = configs.load_config(str(path), ["--config.pairs=40"])
  assert len(config.experiments) == count
  task, target = tasks.get(config.task), load_target(config.task)
  for name, settings in config.experiments.items():
    (alone,) = configs.load_config(f"{path}:{name}", []).experiments.items()
    assert alone == (name, settings)
    prepared = experiments.prepare(target, task, name, settings.to_dict(), config)
    assert len(prepared.clean) == 40 and len(prepared.steps) == sum(size for _, size in prepared.orders)
    if prepared.pairs is not None:
      assert (prepared.pairs.answer != prepared.pairs.foil).all()
      assert [order for order, _ in prepared.orders] == ["forward", "backward"]
  with pytest.raises(InversionViewError, match="unknown experiment 'none'"):
    configs.load_config(f"{path}:none", [])


def test_conditions_of_the_addition_experiments_are_those_of_their_names():
  config = configs.load_config(str(ADDITION), ["--config.pairs=200"])
  task, target = tasks.get("addition"), load_target("addition")
  for name in config.experiments:
    if name == "plus":
      continue
    prepared = experiments.prepare(target, task, name, config.experiments[name].to_dict(), config)
    clean, corrupted = task.features(prepared.clean), task.features(prepared.pairs.corrupted)
    predict, *length, changed = name.split("_")
    for digit in ("F1", "F2", "F3", "S1", "S2", "S3"):
      assert digit in changed or (clean[digit] == corrupted[digit]).all()
    if length:
      assert set(clean["length"]) == {4 if length == ["long"] else 3}
    if "short" in length:
      assert set(corrupted["length"]) == {3}
    if name == "A1_F2S2":  # the change comes through the carry
      assert (clean["F1"] + clean["S1"] < 10).all() and (clean["C2"] != corrupted["C2"]).all()
    if name == "A4_F1S1":
      assert (clean["length"] != corrupted["length"]).all()
    assert np.all(prepared.readout.clean_at == {"A1": 8, "A2": 9, "A3": 10, "A4": 11}[predict])


# verify.


def test_verify_says_how_much_each_kind_of_pair_explains(inversionview, tmp_path):
  code, out, error = inversionview(
    *("verify", "--site", "a0.0", "--position", "=", "--feature", "C2", "--pairs", 64, "--json", "verdict.json")
  )
  assert (code, error) == (0, "")
  data = json.loads((tmp_path / "verdict.json").read_text())
  assert (data["feature"], data["predict"], data["target"]["name"]) == ("C2", "A1", "addition")
  assert data["only"]["share"]["mean"] > 0.9 and abs(data["rest"]["share"]["mean"]) < 0.1
  assert "C2 only" in out and "everything but C2" in out and f"{100 * data['only']['share']['mean']:.1f}" in out
  assert "(n = 64)" in out and " / ".join(data["only"]["example"]) in out


# What is refused.


@pytest.mark.parametrize(
  "argv, named",
  [
    (patch(f"{ADDITION}:A9"), "unknown experiment 'A9'"),
    (patch(CONFIGS / "addition.py")[:5], "has no experiments"),
    (patch("missing.py"), "no config file missing.py"),
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
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F7"], "'F7'"),
    (["verify", "--site", "a0.9", "--position", "=", "--feature", "F1"], "a0.9"),
    (["verify", "--site", "a0.0", "--position", "A7", "--feature", "F1", "--pairs", "4"], "A7"),
    (["verify", "--site", "a0.0", "--position", "99", "--feature", "F1", "--pairs", "4"], "99"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--where", "F1 == 10"], "no pairs"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--task", "subtraction"], "subtraction"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--target", "counting"], "tokenizer"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--json", "no/v.json"], "does not exist"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(inversionview, tmp_path, argv, named):
  (tmp_path / "file").write_text("mine")
  assert named in refused(inversionview, tmp_path, *argv)


@pytest.mark.parametrize(
  "argv",
  [
    ["patch"],
    ["verify", "--site", "a0.0"],
    ["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--colour"],
  ],
)
def test_command_that_cannot_be_parsed_exits_with_2(capsys, argv):
  with pytest.raises(SystemExit) as caught:
    cli.main(argv)
  out, error = capsys.readouterr()
  assert caught.value.code == 2 and out == "" and "Traceback" not in error


def test_settings_that_an_experiment_needs_or_does_not_know():
  task, target = tasks.get("addition"), load_target("addition")
  config = {"pairs": 8, "seed": 0, "split": "test"}
  whole = {"kind": "patch", "about": "", "contrast": {}, "addresses": (), "position": "=", "orders": ("forward",)}
  with pytest.raises(InversionViewError, match="experiments.mine.places is called experiments.mine.addresses"):
    experiments.prepare(target, task, "mine", whole | {"places": ()}, config)
  for key in ("contrast", "orders"):
    with pytest.raises(InversionViewError, match=f"lacks '{key}'"):
      experiments.prepare(target, task, "mine", {k: v for k, v in whole.items() if k != key}, config)
  with pytest.raises(
    InversionViewError, match="unknown setting of a contrast of addition: 'chnage': did you mean change"
  ):
    experiments.prepare(target, task, "mine", whole | {"contrast": {"chnage": ("F1",)}}, config)
