"""The description of a run, and files of version 0.1: old config keys are refused, old checkpoints and models are read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from training_runs import ROWS, Slope, finished, settings

from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.targets import shipped_folder
from inversionview_jax.training import async_saving, checkpoints, identity, loop

pytestmark = pytest.mark.usefixtures("quick_to_compile")

OLD_KEYS = {"bag": 1.0, "start": {"target": "T", "renew": "ab", "stir": 0.1}, "steps": 3}
NEW_KEYS = {"token_count_loss": 1.0, "start": {"target": "T", "reinit_tokens": "ab", "qk_noise_std": 0.1}, "steps": 3}


def swapped(names: dict) -> dict:
  return {new: old for old, new in names.items()}


def test_old_config_keys_and_array_names_are_those_of_today():
  about = {"config": OLD_KEYS, "shapes": {"params/bag/bias": [3]}, "sums": {"params/bag/bias": 7}, "step": 5}
  assert identity.modernized(about) == {
    "config": NEW_KEYS,
    "shapes": {"params/count_head/bias": [3]},
    "sums": {"params/count_head/bias": 7},
    "step": 5,
  }
  today = {"config": {"target": {"start": NEW_KEYS["start"]}}, "shapes": {}, "sums": {}}
  assert identity.modernized({**today, "config": {"target": {"start": OLD_KEYS["start"]}}}) == today
  assert identity.modernized(today) == today


@pytest.mark.parametrize(
  ("changes", "old", "new"),
  [
    ({"bag": 0.5}, "bag", "token_count_loss"),
    ({"start": {"renew": "a"}}, "start.renew", "start.reinit_tokens"),
    ({"target": {"start": {"stir": 0.1}}}, "target.start.stir", "target.start.qk_noise_std"),
  ],
)
def test_old_config_keys_are_refused_with_the_new_name(changes, old, new, meshes):
  with pytest.raises(InversionViewError, match=f"config key {old} is called {new} since version 0.2"):
    loop.check(settings(**changes), meshes(1))


def test_tree_is_renamed_inside_of_optimizer_states_and_back():
  params = {"bag": {"bias": jnp.zeros(2)}, "encoder": {"kernel": jnp.ones((2, 2))}}
  rule = optax.partition(
    {"a": optax.adam(1e-3), "b": optax.sgd(0.1)}, {"bag": {"bias": "a"}, "encoder": {"kernel": "b"}}
  )
  state = params, rule.init(params)
  renamed = identity.renamed_tree(state, storage.RENAMED_PARAMETERS)
  assert "params/bag/bias" not in identity.shapes({"params": renamed[0]})
  assert not any("/bag/" in name for name in identity.shapes(renamed))
  assert sum("/count_head/" in name for name in identity.shapes(renamed)) == sum(
    "/bag/" in name for name in identity.shapes(state)
  )
  back = identity.renamed_tree(renamed, swapped(storage.RENAMED_PARAMETERS))
  assert jax.tree.structure(back) == jax.tree.structure(state)


class Counting(Slope):
  """An objective with the renamed parameters of a decoder, and one more part."""

  def init(self, key):
    params, extra = super().init(key)
    return {"count_head": params["layer"], "encoder": {"bias": jnp.ones(4)}}, extra

  def loss(self, params, extra, frozen, tokens, keys):
    loss, count = super().loss({"layer": params["count_head"]}, extra, frozen, tokens, keys)
    return loss + jnp.sum(params["encoder"]["bias"] ** 2), count

  def evaluate(self, params, extra, final):
    return super().evaluate({"layer": params["count_head"]}, extra, final)


def run(folder, steps):
  config = settings(steps=steps, steps_per_call=2, eval_every=0, save_every=0, token_count_loss=0.5)
  loop.train(Counting(), ROWS, config, folder, parallel.make_mesh(devices=jax.devices()[:1]))


def test_checkpoint_of_version_0_1_is_resumed_bit_by_bit(tmp_path, monkeypatch):
  """Its config and its arrays have the old names; the run ends with the bits of one that was not interrupted."""
  run(tmp_path / "straight", steps=4)
  save = async_saving.AsyncSaver.save
  config_keys = swapped(storage.RENAMED_CONFIG_KEYS)

  def save_with_old_names(self, step, state, description):
    about = description["about"]
    config = {config_keys.get(key, key): value for key, value in about["config"].items()}
    arrays = {
      name: {path.replace("/count_head/", "/bag/"): value for path, value in about[name].items()}
      for name in ("shapes", "sums")
    }
    about = {**about, "config": config, **arrays}
    assert "bag" in about["config"] and "params/bag/kernel" in about["shapes"]
    state = identity.renamed_tree(state, swapped(storage.RENAMED_PARAMETERS))
    save(self, step, state, {"about": about, "digest": checkpoints._digest(about)})

  with monkeypatch.context() as patched:
    patched.setattr(async_saving.AsyncSaver, "save", save_with_old_names)
    run(tmp_path / "run", steps=2)
  stored = checkpoints.Checkpoints(checkpoints.folder_of(tmp_path / "run"))
  assert stored.steps() == [2] and "token_count_loss" in stored.about(2)["config"]
  run(tmp_path / "run", steps=4)
  assert finished(tmp_path / "run") == finished(tmp_path / "straight")


def test_decoder_of_version_0_1_has_todays_names():
  variables, description = storage.load_model(shipped_folder("counting") / "decoder")
  assert "count_head" in variables and "bag" not in variables
  assert description["count_classes"] == 11 and "bag" not in description


def test_resuming_is_refused_for_a_key_that_the_state_depends_on_and_free_for_the_others():
  saved = {"config": {"bag": 1.0, "steps": 3, "mesh": {"model": 1}}}
  same = ConfigDict({"token_count_loss": 1.0, "steps": 5, "mesh": {"model": 2}})
  identity.refuse_other(identity.modernized(saved), same, "W")
  with pytest.raises(
    InversionViewError, match="config key token_count_loss is 0.5, but the run in W was trained with 1.0"
  ):
    identity.refuse_other(identity.modernized(saved), ConfigDict({**same, "token_count_loss": 0.5}), "W")


def test_description_has_a_checksum_of_the_inputs():
  config = settings()
  one, other = (identity.describe(config, rows, {"target": "abc"}) for rows in (ROWS, np.flip(ROWS, axis=0)))
  assert one["config"] == other["config"] == config.to_dict() and one["identity"] == {"target": "abc"}
  assert one["data"]["rows"] == len(ROWS) and one["data"]["crc"] != other["data"]["crc"]
