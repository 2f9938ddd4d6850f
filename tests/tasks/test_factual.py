"""Factual recall: the bundled facts, published files as TFDS builders, positions, and heads that attend to BOS."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax import sites, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling import collect
from inversionview_jax.targets import load_target
from inversionview_jax.tasks import fact_files, sources, tokenizers

SENTENCES = ["The river is long and cold.", "Paris is a city that many people know!"]
pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXTS = [f"{r['prompt']} {r['answer']}." for r in fact_files.bundled()] + SENTENCES


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return load_target(gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=TEXTS, heads=4))


@pytest.fixture(scope="module")
def base(whole):
  return whole.tokenizer


@pytest.fixture(scope="module")
def task(base):
  return tasks.get("factual", base, {"vocabulary": "data"})


def refused(action) -> str:
  with pytest.raises(InversionViewError) as caught:
    action()
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_bundled_facts_are_many_and_name_their_subject():
  facts = fact_files.bundled()
  assert len({(f["subject"], f["answer"], f["relation"]) for f in facts}) >= 200
  assert len({f["relation"] for f in facts}) >= 15
  assert len({f["prompt"] for f in facts}) == len(facts)  # one answer to each prompt
  for fact in facts:
    assert fact["subject"] in fact["prompt"] and fact["prompt"] == fact["prompt"].strip()
    assert fact["answer"] == fact["answer"].strip() != ""


def test_positions_of_every_bundled_fact(task):
  t = task.tokenizer
  for row, fact in zip(task.tokens(np.arange(task.num_inputs)), task.facts, strict=True):
    used = [int(x) for x in row if x not in (t.pad_id, t.eos_id)]
    labels, words = task.labels(used), t.strings(used)
    end, subject = labels.index("END"), labels.index("SUBJ")
    assert t.text(used[: end + 1]) == fact["prompt"] and labels[end + 1] == "answer"
    assert t.text(used[end + 1 :]) == f" {fact['answer']}"
    assert fact["subject"].endswith(words[subject].strip())
    before = fact["prompt"].rfind(fact["subject"]) + len(fact["subject"])
    assert len(t.text(used[: subject + 1])) == before
    prompt = used[: end + 1]  # as a query is typed
    assert task.labels(prompt)[end] == "END" and task.labels(prompt)[subject] == "SUBJ"


def test_end_of_a_text_that_is_no_known_fact_is_its_last_token(task):
  tokens = task.tokenizer.encode_batch(["The inventor of France is"], eos=False)[0]
  assert task.labels(tokens) == [""] * (len(tokens) - 1) + ["END"]


@pytest.mark.parametrize("positions", [("END",), ("SUBJ",), ("END", "SUBJ")])
def test_query_mask_is_the_labels_in_numpy_and_inside_jit(base, tmp_path, positions):
  path = tmp_path / "own.jsonl"
  own = [{"text": text} for text in SENTENCES] + [{"prompt": "{} lies in", "subject": "Paris", "answer": "France"}]
  path.write_text("".join(json.dumps(record) + "\n" for record in own))
  task = tasks.get("factual", base, {"positions": positions, "sources": ("files", "bundled"), "files": str(path)})
  rows = task.tokens(np.arange(60))
  mask = task.query_mask(rows)
  np.testing.assert_array_equal(jax.jit(task.query_mask)(jnp.asarray(rows)), mask)
  for row, held in zip(rows[2:], mask[2:], strict=True):
    assert {task.labels(row)[i] for i in np.flatnonzero(held)} == set(positions)
  t = task.tokenizer
  np.testing.assert_array_equal(mask[:2], (rows[:2] != t.bos_id) & (rows[:2] != t.eos_id) & (rows[:2] != t.pad_id))


def test_settings_remake_the_task_for_a_reader(task):
  written = tokenizers.from_description(json.loads(json.dumps(task.tokenizer.describe())))
  again = tasks.get("factual", written, json.loads(json.dumps(task.settings)))
  np.testing.assert_array_equal(again.rare, task.rare)
  gone = tasks.get(
    "factual", written, {**json.loads(json.dumps(task.settings)), "sources": ("counterfact",), "manual_dir": "/nowhere"}
  )
  np.testing.assert_array_equal(gone.rare, task.rare)
  assert gone.labels(task.tokens([0])[0])[-1] == ""  # and positions by index or END still work
  assert gone.position(gone.tokenizer.encode_batch(["The capital of France is"], eos=False)[0], "END") == 5


def test_rare_tokens_are_those_with_a_small_share(base):
  task = tasks.get("factual", base, {"rare": 1e-3})
  t = task.tokenizer
  rows = task.tokens(np.arange(task.num_inputs))
  counts = np.bincount(rows.ravel(), minlength=t.vocab_size)
  plain = [i for i in range(t.vocab_size) if i not in (t.bos_id, t.eos_id, t.pad_id)]
  share = counts[plain] / counts[plain].sum()
  np.testing.assert_array_equal(task.rare[plain], share < 1e-3)
  assert not task.rare[[t.bos_id, t.eos_id, t.pad_id]].any()


def counterfact_file(folder):
  """Two records of the published form."""
  records = [
    {
      "case_id": i, "pararel_idx": 2796 + i,
      "requested_rewrite": {"prompt": prompt, "relation_id": relation, "target_new": {"str": "English", "id": "Q1860"},
                            "target_true": {"str": true, "id": "Q150"}, "subject": subject},
      "paraphrase_prompts": ["..."], "neighborhood_prompts": ["..."], "attribute_prompts": [], "generation_prompts": [],
    }
    for i, (prompt, relation, true, subject) in enumerate(
      [("The mother tongue of {} is", "P103", "French", "Danielle Darrieux"), ("{} is located in", "P30", "Antarctica", "Mount Erebus")]
    )
  ]  # fmt: skip
  (folder / "counterfact.json").write_text(json.dumps(records))


def bear_folder(folder):
  """Two relations of the published form; of the second one template has the object in front."""
  where = folder / "BEAR-big"
  where.mkdir()
  relations = {
    "P36": {"name": "capital", "templates": ["[X] has its capital in [Y].", "The capital of [X] is [Y] today."]},
    "P19": {"name": "place of birth", "templates": ["[Y] is where [X] was born.", "[X] was born in [Y]."]},
  }
  (where / "metadata_relations.json").write_text(json.dumps(relations))
  for name, subject, answer in (("P36", "France", "Paris"), ("P19", "Albert Einstein", "Ulm")):
    line = {"sub_id": "Q1", "sub_label": subject, "obj_id": "Q2", "obj_label": answer}
    (where / f"{name}.jsonl").write_text(json.dumps(line) + "\n")


def test_builders_read_the_published_files(base, tmp_path):
  counterfact_file(tmp_path)
  bear_folder(tmp_path)
  pile = tmp_path / "minipile"
  pile.mkdir()
  long = "It was a very long way " * 10 + "home."
  (pile / "part.jsonl").write_text(
    json.dumps({"text": f"{SENTENCES[0]} {long} {SENTENCES[1]}\n\nNo. A new paragraph."}) + "\n"
  )
  where = {"data_dir": str(tmp_path / "data"), "manual_dir": str(tmp_path)}
  task = tasks.get("factual", base, {"sources": ("counterfact", "bear", "minipile"), **where})
  texts = [task.tokenizer.text(row) for row in task.tokens(np.arange(task.num_inputs))]
  assert texts == [
    "The mother tongue of Danielle Darrieux is French", "Mount Erebus is located in Antarctica",
    "France has its capital in Paris", "The capital of France is Paris", "Albert Einstein was born in Ulm",
    *SENTENCES, "A new paragraph.",
  ]  # fmt: skip
  assert [fact["relation"] for fact in task.facts] == ["P103", "P30", "P36", "P36", "P19"]
  (tmp_path / "counterfact.json").unlink()  # it has been made
  import tensorflow_datasets as tfds

  source = tfds.data_source("inversionview_counterfact", split="train", data_dir=where["data_dir"])
  assert source[1]["subject"] == b"Mount Erebus"
  texts = sources.texts("tfds:inversionview_counterfact", "prompt", data_dir=where["data_dir"])
  assert [text for _, text in texts] == ["The mother tongue of Danielle Darrieux is", "Mount Erebus is located in"]
  assert tasks.get("factual", base, {"sources": ("counterfact",), **where}).num_inputs == 2
  limited = tasks.get("factual", base, {"sources": ("bear", "bundled"), "limit": 2, **where})
  assert limited.num_inputs == 4


@pytest.mark.parametrize(
  "source, named", [("counterfact", "counterfact.json"), ("bear", "metadata_relations.json"), ("minipile", "minipile")]
)
def test_missing_download_names_the_file_and_its_folder(base, tmp_path, source, named):
  task = tasks.get(
    "factual", base, {"sources": (source,), "data_dir": str(tmp_path / "data"), "manual_dir": str(tmp_path / "files")}
  )
  message = refused(lambda: task.num_inputs)
  assert named in message and str(tmp_path / "files") in message and "download" in message
  assert not (tmp_path / "data" / f"inversionview_{source}").exists()  # nothing half-made


def test_files_of_another_format_are_named(base, tmp_path):
  where = {"data_dir": str(tmp_path / "data"), "manual_dir": str(tmp_path)}
  (tmp_path / "counterfact.json").write_text('[{"prompt": "..."}]')
  assert "counterfact.json[0] is no record of COUNTERFACT" in refused(
    lambda: tasks.get("factual", base, {"sources": ("counterfact",), **where}).num_inputs
  )
  bear_folder(tmp_path)
  (tmp_path / "BEAR-big" / "P19.jsonl").unlink()
  assert "P19.jsonl is missing" in refused(
    lambda: tasks.get("factual", base, {"sources": ("bear",), **where}).num_inputs
  )
  assert not (tmp_path / "data" / "inversionview_bear" / "1.0.0").exists()


@pytest.mark.parametrize(
  "record, named",
  [
    ({"prompt": "{} is", "subject": "A"}, "a fact needs"), ({"prompt": "B is", "subject": "A", "answer": "C"}, "does not name its subject"),
    ({"text": ""}, "'text' is no text"), ({"prompt": "{} is", "subject": "A", "answer": 3}, "'answer' is no text"),
  ],
)  # fmt: skip
def test_wrong_line_of_an_own_file_is_named(base, tmp_path, record, named):
  path = tmp_path / "own.jsonl"
  path.write_text('{"text": "It is a fine day."}\n' + json.dumps(record) + "\n")
  message = refused(lambda: tasks.get("factual", base, {"sources": ("files",), "files": str(path)}).num_inputs)
  assert "own.jsonl:2" in message and named in message


@pytest.mark.parametrize(
  "settings, named",
  [
    ({"sources": ("wikipedia",)}, "'wikipedia'"), ({"sources": ()}, "inputs.sources is empty"), ({"bos_attention": 0}, "bos_attention"),
    ({"files": "a.jsonl"}, "go together"), ({"position": 1}, "did you mean positions"),
  ],
)  # fmt: skip
def test_wrong_settings_are_named(base, settings, named):
  assert named in refused(lambda: tasks.get("factual", base, settings))


def test_texts_that_are_too_long_are_counted(base, capsys):
  task = tasks.get("factual", base, {"length": 8})
  count = task.num_inputs
  assert f"bundled: {534 - count:,} texts are longer than 6 tokens and were left out" in capsys.readouterr().err
  assert 0 < count < 534


# Heads are read where they attend to BOS least, and only if that is little (paper, factual recall).


@pytest.fixture(scope="module")
def target(whole, task):
  return whole.restrict_to(task.tokenizer)


NAMES = ("x0.mid", "a0.0", "a0.3", "a1.1", "a1.2")
MOST = 0.1  # a random model attends to nothing much


def of_target(target, task, count=64):
  mixed = np.array(task.tokens(np.arange(count)))
  mixed[::2, 6:] = task.tokenizer.pad_id  # some rows are no known facts: all of their positions are queried
  mask = task.query_mask(mixed)
  run = target.run(mixed, [*NAMES, "p0", "p1"])
  return mixed, mask, run


def test_attentive_is_the_least_attention_to_bos(target, task):
  tokens, mask, run = of_target(target, task)
  listed = tuple(sites.parse(name) for name in NAMES)
  keys = jax.random.split(jax.random.key(0), len(tokens))
  at, activations, counts = jax.jit(collect.attentive, static_argnums=(0, 5))(
    target.module, target.params, tokens, mask, keys, listed, MOST
  )
  each = np.arange(len(tokens))
  for s, site in enumerate(listed):
    if site.kind == "head":
      to_bos = np.where(mask, np.asarray(run[f"p{site.layer}"])[:, site.head, :, 0], np.inf)
      np.testing.assert_array_equal(at[:, s], to_bos.argmin(axis=1))
      np.testing.assert_array_equal(counts[:, s], to_bos.min(axis=1) < MOST)
    else:
      assert mask[each, at[:, s]].all() and counts[:, s].all()
    held = np.asarray(run[site.short])
    np.testing.assert_allclose(activations[:, s], held[each, at[:, s]], atol=1e-5)
    np.testing.assert_allclose(activations[:, len(listed) + s], held[:, 0], atol=1e-5)
  assert 0.05 < counts[:, 1:].mean() < 0.95  # so that the filter is one


def test_pairs_are_of_sites_that_count_and_the_others_weigh_nothing(target, task):
  tokens, mask, _ = of_target(target, task)
  listed = tuple(sites.parse(name) for name in NAMES[1:])
  keys = jax.random.split(jax.random.key(0), len(tokens))

  @jax.jit
  def drawn(most, bos_rate):
    return collect.collect(
      target.module, target.params, tokens, keys, sites=listed, query_mask=lambda x: jnp.asarray(mask),
      site_logits=jnp.zeros(len(listed)), pairs_per_text=8, bos_rate=bos_rate, bos_attention=most,
    )  # fmt: skip

  pairs = drawn(MOST, 0.0)
  at, activations, counts = jax.jit(collect.attentive, static_argnums=(0, 5))(
    target.module, target.params, tokens, mask, jax.vmap(lambda k: jax.random.split(k)[0])(keys), listed, MOST
  )
  site, weight = np.asarray(pairs.site).reshape(-1, 8), np.asarray(pairs.weight).reshape(-1, 8)
  text = np.arange(len(tokens))[:, None]
  np.testing.assert_array_equal(weight, np.broadcast_to(counts.any(axis=1)[:, None], weight.shape))
  assert np.asarray(counts)[text, site][weight > 0].all() and len(set(site[weight > 0])) == len(listed)
  np.testing.assert_array_equal(np.asarray(pairs.position).reshape(-1, 8), np.asarray(at)[text, site])
  np.testing.assert_allclose(
    np.asarray(pairs.activation).reshape(-1, 8, 16), np.asarray(activations)[text, site], atol=1e-6
  )
  at_bos = drawn(1e-9, 1.0)  # nothing counts but BOS
  assert (np.asarray(at_bos.position) == 0).all() and (np.asarray(at_bos.weight) == 1).all()
  assert (np.asarray(drawn(1e-9, 0.0).weight) == 0).all()


def test_contrast_is_a_fact_of_the_same_relation_with_another_answer(task):
  pairs = task.contrast(np.arange(task.num_inputs), seed=1)
  assert len(pairs) > 500 and (pairs.answer != pairs.foil).all()
  t, row = (
    task.tokenizer,
    {tuple(r): fact for r, fact in zip(task.tokens(np.arange(534)).tolist(), task.facts, strict=True)},
  )
  for clean, corrupted, at in zip(pairs.clean.tolist(), pairs.corrupted.tolist(), pairs.clean_at.tolist(), strict=True):
    one, other = row[tuple(clean)], row[tuple(corrupted)]
    assert (
      one["relation"] == other["relation"]
      and one["prompt"].replace(one["subject"], other["subject"]) == other["prompt"]
    )
    assert t.text(clean[: at + 1]) == one["prompt"]
  np.testing.assert_array_equal(task.contrast(pairs.index[:9], seed=1).corrupted, pairs.corrupted[:9])
  assert (task.contrast(pairs.index, seed=2).corrupted != pairs.corrupted).any()


@pytest.fixture(scope="module")
def composed(base):
  return tasks.get("factual", base, {"sources": ("composed",)})


def test_composed_facts_have_every_wording_behind_every_sentence(composed):
  facts = composed.facts
  assert len({f["prompt"] for f in facts}) == len(facts) > 4_000
  for fact in facts:
    assert fact["prompt"].endswith(fact["wording"].format(fact["subject"])) and fact["prompt"].startswith(
      fact["opening"]
    )
  by_fact = {(f["entity"], f["relation"]): f["answer"] for f in facts}
  openings = {f["opening"] for f in facts}
  assert sum(f["relation"] == "capital" and f["entity"] == "France" for f in facts) == 4 * len(openings)
  assert by_fact["Lyon", "language_of_city"] == by_fact["Victor Hugo", "native_language"] == "French"


def test_features_of_prompts_and_their_beginnings(composed):
  index = np.array([0, 1234, 4000])
  rows = composed.tokens(index)
  of_tokens, of_index = composed.features(rows), composed.features_of(index)
  for name, values in of_index.items():
    np.testing.assert_array_equal(of_tokens[name], values)
  fact = composed.facts[1234]
  assert composed.value_name("answer", of_index["answer"][1]) == fact["answer"]
  assert composed.value_name("wording", of_index["wording"][1]) == fact["wording"]
  prompt = composed.tokenizer.encode_batch([fact["prompt"]], length=composed.length, eos=False)
  assert composed.features(prompt)["subject"][0] == of_index["subject"][1]
  other = composed.tokenizer.encode_batch(["Nothing that is known"], length=composed.length, eos=False)
  assert all(values[0] == -1 for values in composed.features(other).values())


@pytest.mark.parametrize("feature", ["subject", "relation", "answer", "kind", "language", "wording", "opening"])
def test_pairs_differ_in_what_they_should(composed, feature):
  index = np.random.default_rng(0).permutation(composed.num_inputs)[:300]
  only, rest = (composed.contrast_in(feature, vary, index, 3) for vary in ("only", "rest"))
  assert len(only) > 30 and len(rest) > 30
  both = [[composed.features(x) for x in (pairs.clean, pairs.corrupted)] for pairs in (only, rest)]
  (clean, other), (own, same) = both
  assert (clean[feature] != other[feature]).all() and (own[feature] == same[feature]).all()
  kept = {"subject": "wording", "answer": "wording", "language": "wording", "relation": "subject", "kind": "subject"}
  name = kept.get(feature, "subject")
  assert (clean[name] == other[name]).all()
  if feature not in ("wording", "opening"):
    assert (only.answer != only.foil).all()
  for name in ("opening",) if feature == "opening" else ("opening", "subject"):
    if name != feature and (feature, name) not in (("answer", "subject"),):
      assert (own[name] != same[name]).all()
  again = composed.contrast_in(feature, "only", index, 3)
  np.testing.assert_array_equal(again.corrupted, only.corrupted)


def test_pairs_may_have_a_condition_and_refuse_what_is_not_known(composed):
  index = np.random.default_rng(0).permutation(composed.num_inputs)[:200]
  capital = next(v for v in range(30) if composed.value_name("relation", v) == "capital")
  pairs = composed.contrast(index, where=f"relation == {capital}")
  values = composed.features(pairs.clean)["relation"]
  assert len(pairs) and {composed.value_name("relation", int(v)) for v in values} == {"capital"}
  assert "feature to vary" in refused(lambda: composed.contrast_in("colour", "only", index))
  assert "kind of pairs" in refused(lambda: composed.contrast_in("answer", "both", index))
