"""The experiments of configs: every one of them is prepared, and wrong settings are refused."""

import pathlib

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.causal import experiments
from inversionview_jax.commands import configs
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import load_target

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
ADDITION, COUNTING = CONFIGS / "verify_addition.py", CONFIGS / "verify_counting.py"

pytestmark = pytest.mark.usefixtures("quick_to_compile")


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
