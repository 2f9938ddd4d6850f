"""Preimages of a language model by Monte Carlo, over tasks of its texts: against the list of all facts, and where they follow from the prior."""

import numpy as np
import pytest
from small_models import gpt2_folder

import inversionview_jax as iv
from inversionview_jax.reading.enumeration import exact_preimage
from inversionview_jax.reading.source import Source, methods
from inversionview_jax.targets import task_and_target
from inversionview_jax.tasks import fact_files

pytestmark = pytest.mark.usefixtures("quick_to_compile")
N = 256


@pytest.mark.slow
def test_particles_over_facts_are_the_exact_preimage(tmp_path):
  facts = [f"{fact['prompt']} {fact['answer']}" for fact in fact_files.bundled()]
  folder = gpt2_folder(tmp_path / "gpt2", texts=facts)
  task, target = task_and_target("factual", folder, settings={"vocabulary": "data", "limit": 80, "length": 16})
  query = (target, facts[0], "x1.post", "END")
  near = sorted(sample.distance for sample in exact_preimage(*query, task=task, epsilon=0.2).samples)
  epsilon = (near[9] + near[10]) / 2
  exact = exact_preimage(*query, task=task, epsilon=epsilon)
  assert len(exact.inside) == 10 and exact.bits == pytest.approx(3)
  pre = iv.preimage(*query, task=task, epsilon=epsilon, particles=N)
  assert pre.converged and pre.rate == 1 and "another subject" in pre.levels[-1]["acceptance"]
  found = [sample.text for sample in pre.inside]
  assert set(found) == {sample.text for sample in exact.inside}
  assert max(found.count(text) for text in found) < 3 * N / 10
  assert abs(pre.bits - exact.bits) < 4 * pre.bits_error + 0.1
  assert methods(task, True)[0] == "decoder" and Source.of(target, task=task).method == "monte_carlo"


def test_particles_over_ioi_are_the_prior_given_a_name(tmp_path):
  """The embedding of a name at a column: all texts with that name there, and nothing else, whatever their other parts are.

  The task has a part of the model's tokens; the whole model may be given.
  """
  folder = gpt2_folder(tmp_path / "gpt2")
  task, target = task_and_target("ioi", folder)[0], iv.load_target(folder)
  assert task.tokenizer.vocab_size < target.tokenizer.vocab_size
  text = task.tokenizer.text(task.tokens(np.array([5]))[0])
  row = task.tokenizer.encode_batch([text], length=task.length, eos=True)
  column = task.position(row[0], "S1")
  pre = iv.preimage(target, text, "x0.pre", "S1", task=task, epsilon=1e-4, match="position", particles=N)
  assert pre.converged and pre.rate == 1
  inside = task.tokenizer.encode_batch([sample.text for sample in pre.inside], length=task.length, eos=True)
  assert (inside[:, column] == row[0, column]).all() and len(np.unique(inside, axis=0)) > 0.9 * N
  inputs = task.tokens(np.arange(task.num_inputs))
  same = inputs[inputs[:, column] == row[0, column]]
  assert abs(pre.bits - np.log2(len(inputs) / len(same))) < 4 * pre.bits_error + 0.1
  wanted, found = (task.features(rows) for rows in (same, inside))
  for feature in ("place", "object", "template", "order"):
    values = wanted[feature].max() + 1
    share, truth = (np.bincount(x[feature], minlength=values) / len(x[feature]) for x in (found, wanted))
    noise = np.sqrt(truth * (1 - truth) / N).sum() / 2  # of the total variation of N draws, about 0.8 of it
    assert 0.5 * np.abs(share - truth).sum() < 2 * noise, feature
