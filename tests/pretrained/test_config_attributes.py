"""config.json as transformers' AutoConfig completes it: keys without effect, defaults, and keys that a user says to ignore."""

import json

import pytest
from checkpoints import GOLDEN, all_parts, copied, refusal

from inversionview_jax import cli, pretrained
from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained.attributes import refuse_unhandled
from inversionview_jax.pretrained.completion import completed
from inversionview_jax.targets import load_target

NO_EFFECT = {
  "unsloth_fixed": True, "unsloth_version": "2025.1", "gradient_checkpointing": True, "n_special": 0, "_attn_implementation": "sdpa",
  "auto_map": {"AutoModel": "code.py"}, "tie_encoder_decoder": False, "cross_attention_hidden_size": None, "encoder_no_repeat_ngram_size": 0,
  "num_labels": 10**9, "torch_dtype": "float16", "use_cache": False, "attention_dropout": "much", "quantization_config": None,
  "max_new_tokens": 20, "_commit_hash": "abc", "summary_type": "mean", "new_thing": None,
}  # fmt: skip


@pytest.mark.parametrize("name", ["default", "qwen2"])
def test_keys_without_effect_change_nothing(tmp_path, name):
  config, parts = all_parts(copied(name, tmp_path / "model", **NO_EFFECT))
  assert config == all_parts(GOLDEN / name)[0] and set(parts) == set(all_parts(GOLDEN / name)[1])


def test_an_attribute_at_its_default_is_no_matter_and_another_value_of_it_is():
  full = json.loads((GOLDEN / "default" / "config.json").read_text())
  made = completed(full, "config.json")
  assert {"scale_attn_weights", "n_inner"} <= made.unchanged and "n_embd" not in made.unchanged
  refuse_unhandled(made, "config.json", made.keys() - {"scale_attn_weights"}, {})
  changed = completed(full | {"scale_attn_weights": False}, "config.json")
  with pytest.raises(InversionViewError, match="scale_attn_weights = False is not handled"):
    refuse_unhandled(changed, "config.json", made.keys() - {"scale_attn_weights"}, {})


def test_an_unknown_key_is_refused_until_it_is_ignored(tmp_path, capsys):
  folder = copied("default", tmp_path / "model", twist=3)
  message = refusal(folder)
  assert "attribute twist = 3 is not handled" in message and "--ignore-config-key twist" in message
  target = load_target(folder, ignore_config_keys=["twist"])
  assert target.fingerprint == load_target(GOLDEN / "default").fingerprint and target.ignored_config_keys == ("twist",)
  with pytest.raises(InversionViewError, match="no attribute twits that could be ignored"):
    pretrained.open_checkpoint(folder, ignore_config_keys=("twits",))
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("a\n")
  argv = ["heads", "--prompts", str(prompts), "--target", str(folder)]
  assert cli.main(argv) == 2 and "twist" in capsys.readouterr().err
  assert cli.main([*argv, "--ignore-config-key", "twist"]) == 2 and "tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
  "key, value", [("per_layer_config", {"0": {"n_inner": 3}}), ("pruned_heads", {"0": [1]}), ("model_type", "t5")]
)
def test_keys_that_AutoConfig_would_take_are_refused(tmp_path, key, value):
  assert key in refusal(copied("default", tmp_path / "model", **{key: value}))
