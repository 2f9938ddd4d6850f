"""What is in the file counts: an unembedding of its own where config.json says tied, and weights that are not finite."""

import json

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import GOLDEN, copied, refusal, tensors_of, write_gguf
from small_models import gpt2_folder

from inversionview_jax import cli
from inversionview_jax.models import storage
from inversionview_jax.pretrained import parts
from inversionview_jax.targets import load_target, save_target

pytestmark = pytest.mark.usefixtures("quick_to_compile")

# Golden checkpoints with a tied unembedding, and whether config.json says so or leaves it to the family's default.
TIED = [("default", False), ("default", True), ("llama3", False), ("smollm3", True), ("gemma", False), ("gemma2", True)]


def add_tensors(folder, **tensors):
  safetensors.numpy.save_file(tensors_of(folder) | tensors, folder / "model.safetensors")


def assert_close(one, other):
  np.testing.assert_allclose(np.asarray(one), other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, left_out", TIED)
def test_an_unembedding_that_differs_from_the_embedding_is_used(tmp_path, name, left_out):
  """Right: the last hidden state as transformers computed it (committed), times the file's own lm_head.weight."""
  folder = copied(name, tmp_path / "model", remove=["tie_word_embeddings"] if left_out else [])
  config = json.loads((folder / "config.json").read_text())
  assert config.get("tie_word_embeddings", True)
  golden = np.load(folder / "expected.npz")
  head = (
    np.random.default_rng(0).normal(size=(config["vocab_size"], golden["hidden_states"].shape[-1])).astype(np.float32)
  )
  add_tensors(folder, **{"lm_head.weight": head})
  expected = golden["hidden_states"][-1] @ head.T
  if cap := config.get("final_logit_softcapping"):
    expected = cap * np.tanh(expected / cap)
  target = load_target(folder, convention="raw")
  assert not target.config.tied and np.abs(expected - golden["logits"]).max() > 1
  assert_close(target.run(golden["tokens"]).logits, expected)
  if name == "default":
    centered = np.asarray(load_target(folder).run(golden["tokens"]).logits)
    assert_close(centered, expected - expected.mean(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", ["default", "llama3", "gemma2"])
def test_transformers_gives_the_same_logits(tmp_path, name):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  folder, golden = copied(name, tmp_path / "model"), np.load(GOLDEN / name / "expected.npz")
  width, rows = golden["hidden_states"].shape[-1], golden["logits"].shape[-1]
  head = np.random.default_rng(1).normal(size=(rows, width)).astype(np.float32)
  safetensors.numpy.save_file(
    tensors_of(folder) | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"}
  )
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
  with torch.no_grad():
    expected = theirs(torch.tensor(golden["tokens"]).long()).logits.numpy()
  assert_close(load_target(folder, convention="raw").run(golden["tokens"]).logits, expected)


def test_a_copy_of_the_embedding_is_the_tied_model(tmp_path):
  for name, embedding in (("default", "transformer.wte.weight"), ("llama3", "model.embed_tokens.weight")):
    before = load_target(GOLDEN / name, convention="raw")
    folder = copied(name, tmp_path / name)
    add_tensors(folder, **{"lm_head.weight": tensors_of(folder)[embedding]})
    after = load_target(folder, convention="raw")
    assert after.config.tied and after.fingerprint == before.fingerprint


def test_an_unembedding_of_another_shape_is_named(tmp_path):
  folder = copied("default", tmp_path / "model")
  add_tensors(folder, **{"lm_head.weight": np.ones((5, 32), np.float32)})
  assert "lm_head.weight has shape (5, 32)" in refusal(folder)


def test_a_family_that_knows_tied_models_only_refuses_another_unembedding():
  class Stored:
    names = frozenset({"embed", "lm_head.weight"})

    def read(self, name):
      return np.full((2, 3), len(name), np.float32)

  layout = {"embed": parts.Leaf("embed", (2, 3))}
  with pytest.raises(Exception, match="lm_head.weight differs from the embedding"):
    parts.refuse_dropped_unembedding(Stored(), layout, layout, "here")


def test_a_part_that_is_stored_under_two_names_is_refused(tmp_path):
  folder = copied("default", tmp_path / "model")
  add_tensors(folder, **{"wte.weight": np.ones((23, 32), np.float32)})
  message = refusal(folder)
  assert "transformer.wte.weight and wte.weight are the same part" in message


# Not finite.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  "name, tensor, shown",
  [
    ("default", "transformer.h.1.attn.c_attn.weight", "h.1.attn.c_attn.weight"),
    ("default", "transformer.wpe.weight", "wpe.weight"),
    ("qwen2", "model.layers.0.self_attn.k_proj.bias", "layers.0.self_attn.k_proj.bias"),
    ("llama", "lm_head.weight", "lm_head.weight"),
    ("gemma2", "model.norm.weight", "norm.weight"),
  ],
)
def test_a_tensor_that_is_not_finite_is_named(tmp_path, name, tensor, shown, value):
  folder = copied(name, tmp_path / "model")
  tensors = tensors_of(folder)
  tensors[tensor].flat[-1] = value
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  message = refusal(folder)
  assert f"tensor {shown} holds 1 of" in message and str(folder) in message


def test_numbers_too_large_for_float32_are_not_finite(tmp_path):
  folder = copied("llama3", tmp_path / "model")
  tensors = {name: value.astype(np.float64) for name, value in tensors_of(folder).items()}
  tensors["model.norm.weight"][0] = 1e300
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  assert "tensor norm.weight holds 1 of 24" in refusal(folder)


def test_a_gguf_file_that_is_not_finite_is_named(tmp_path):
  folder = copied("llama3", tmp_path / "model")
  tensors = tensors_of(folder)
  tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  message = refusal(write_gguf(tmp_path / "model.gguf", folder))
  assert "layers.0.mlp.up_proj.weight holds 1 of" in message and "model.gguf" in message


def test_a_finished_model_that_is_not_finite_is_named(tmp_path, small_target):
  params = {**small_target.params, "embed": np.array(small_target.params["embed"])}
  params["embed"][3, 2] = np.nan
  save_target(tmp_path, params, small_target.config, small_target.tokenizer)
  assert "parameter embed holds 1 of 240 numbers that are not finite" in refusal(tmp_path)
  storage.refuse_not_finite(
    np.full((1000, 100), 3e38, np.float32), "a large one"
  )  # whose float32 sum would be infinite


def test_heads_refuses_a_folder_that_is_not_finite(tmp_path, capsys):
  folder = gpt2_folder(tmp_path / "gpt2", texts=["the cat sat"] * 9)
  tensors = tensors_of(folder)
  tensors["h.0.mlp.c_fc.weight"][0, 0] = np.nan
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  (tmp_path / "p.txt").write_text("the cat\n")
  assert cli.main(["heads", "--target", str(folder), "--prompts", str(tmp_path / "p.txt")]) == 2
  out, err = capsys.readouterr()
  assert "h.0.mlp.c_fc.weight" in err and err.count("\n") == 1 and out == ""
