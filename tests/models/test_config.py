"""What a model is and how it is computed; models that version 0.1 wrote, whose config had both."""

import dataclasses
import json

import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.targets import load_target

CONFIG = TransformerConfig(
  vocab_size=15, n_ctx=14, n_layers=2, n_heads=2, d_model=16, d_mlp=32, rotary=(1.0, 0.5, 0.25, 0.125)
)
OLD_KEYS = {"dtype": "float32", "remat": True, "quick": True}


def test_config_is_read_back_from_json_also_from_version_0_1():
  stored = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
  assert TransformerConfig.from_dict(stored) == TransformerConfig.from_dict(stored | OLD_KEYS) == CONFIG
  decoder = DecoderConfig(CONFIG, ("x0.pre",), 16, forbidden=(1, 2))
  stored = json.loads(json.dumps(dataclasses.asdict(decoder)))
  stored["transformer"] |= OLD_KEYS
  assert DecoderConfig.from_dict(stored) == decoder
  with pytest.raises(TypeError, match="colour"):
    TransformerConfig.from_dict(stored["transformer"] | {"colour": "blue"})


def test_config_says_nothing_about_computation_and_training_can_be_taken_out_of_it():
  assert not {field.name for field in dataclasses.fields(TransformerConfig)} & set(storage.COMPUTE_KEYS)
  trained = dataclasses.replace(
    CONFIG, dropout_attn=0.1, dropout_embed=0.1, dropout_resid=0.1, init_std=0.1, embed_std=1.0
  )
  assert trained.has_dropout and trained.for_inference() == CONFIG and not CONFIG.has_dropout
  assert set(trained.non_defaults()) - set(CONFIG.non_defaults()) == {
    "dropout_attn", "dropout_embed", "dropout_resid", "init_std", "embed_std",
  }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"attention": "flash"}])
def test_computation_that_there_is_not_is_refused(wrong):
  with pytest.raises(InversionViewError, match=next(iter(wrong.values()))):
    Compute(**wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_target_of_version_0_1_loads_with_its_fingerprint_and_dtype(dtype, make_target, tmp_path):
  target = make_target()
  config = dataclasses.asdict(target.config) | OLD_KEYS | {"dtype": dtype}
  storage.save_model(
    tmp_path, target.params, {"kind": "target", "name": "old", "task": "addition", "config": config, "tokenizer": None}
  )
  loaded = load_target(tmp_path, convention="raw")
  assert loaded.compute.dtype == dtype and loaded.config == target.config
  # As version 0.1 made it: of the parameters and of what differs from the defaults.
  named = target.config.non_defaults() | ({"dtype": dtype} if dtype != "float32" else {})
  assert loaded.fingerprint == storage.fingerprint(target.params, named)
