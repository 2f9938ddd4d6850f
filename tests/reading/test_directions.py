"""Preimages of several activations together, and along directions: the distances are those of the target's own activations."""

import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading.directions import Directions

pytestmark = pytest.mark.usefixtures("quick_to_compile")
TEXT = "615+861=1476"
N = 64
SETTINGS = {"epsilon": 0.5, "particles": N, "budget": 4_000}


def activations(target, samples, site, position=None):
  """float32[B, T, D], or float32[B, D] at a position, of the samples' texts."""
  tokens = tasks.get("addition").tokenizer.encode_batch([sample.text for sample in samples], 14, eos=True)
  z = np.asarray(target.run(tokens, [site])[site])
  return z if position is None else z[:, position]


def relative(z, query):
  return np.linalg.norm(z - query, axis=-1) / np.linalg.norm(query, axis=-1)


@pytest.fixture(scope="module")
def joint(small_target):
  return iv.preimage(small_target, TEXT, ["a0.1", "x0.mid"], ["=", "+"], match="position", **SETTINGS)


def test_all_activations_must_match(joint, small_target):
  assert [(q.site, q.label) for q in (joint.query, *joint.others)] == [("a0.1", "="), ("x0.mid", "+")]
  far = [
    relative(activations(small_target, joint.samples, query.site, query.position), np.array(query.activation))
    for query in (joint.query, *joint.others)
  ]
  np.testing.assert_allclose(np.max(far, axis=0), [sample.distance for sample in joint.samples], atol=2e-6)
  assert (np.max(far, axis=0)[: len(joint.particles)] <= 0.5 + 1e-6).all()
  assert all(sample.position == joint.query.position for sample in joint.samples)
  assert Preimage.from_json(joint.to_json()) == joint
  assert "x0.mid" in str(joint) and "largest" in str(joint)


@pytest.mark.slow
def test_one_site_at_several_positions_and_several_sites_at_one(small_target):
  few = {"epsilon": 0.9, "particles": 16, "budget": 200}
  one = iv.preimage(small_target, TEXT, "a0.1", ["=", -2], **few)
  assert [(q.site, q.position) for q in (one.query, *one.others)] == [("a0.1", 8), ("a0.1", 11)]
  other = iv.preimage(small_target, TEXT, ("a0.1", "x1.post"), "=", **few)
  assert [(q.site, q.position) for q in (other.query, *other.others)] == [("a0.1", 8), ("x1.post", 8)]


def test_distances_are_taken_along_the_directions(small_target, tmp_path):
  directions = np.random.default_rng(0).normal(size=(3, small_target.config.d_model)).astype(np.float32)
  np.save(tmp_path / "probes.npy", directions)
  along = iv.preimage(
    small_target, TEXT, "x0.mid", "=", directions=tmp_path / "probes.npy", match="position", **SETTINGS
  )
  assert along.directions == "probes.npy, 3 directions" and "probes.npy" in str(along)
  onto = np.linalg.pinv(directions) @ directions  # of their span
  z = activations(small_target, along.samples, "x0.mid", along.query.position) @ onto
  expected = relative(z, np.array(along.query.activation) @ onto)
  np.testing.assert_allclose([sample.distance for sample in along.samples], expected, atol=1e-5)
  assert Preimage.from_json(along.to_json()) == along
  again = iv.preimage(small_target, TEXT, "x0.mid", "=", directions=2 * directions[::-1], match="position", **SETTINGS)
  assert [sample.text for sample in again.particles] == [sample.text for sample in along.particles]  # the span counts


def test_directions_that_depend_on_each_other_span_less():
  rows = np.array([[1.0, 0, 0], [0, 2.0, 0], [1.0, 1.0, 0]])
  basis = Directions.of(rows, 3).basis
  assert basis.shape == (2, 3)
  np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(basis @ [3.0, 4.0, 5.0]), 5.0, rtol=1e-6)


def test_a_tensor_of_a_safetensors_file(tmp_path):
  from safetensors.numpy import save_file

  save_file({"a": np.eye(2, 4, dtype=np.float32), "b": np.ones((1, 4), np.float32)}, tmp_path / "two.safetensors")
  assert Directions.of(f"{tmp_path / 'two.safetensors'}:b", 4).basis.shape == (1, 4)
  with pytest.raises(InversionViewError, match="has the tensors a, b: name one of them as .*two.safetensors:NAME"):
    Directions.of(tmp_path / "two.safetensors", 4)


@pytest.mark.parametrize(
  ("directions", "message"),
  [
    (np.ones((2, 5)), r"have width 5; activations of this target have 4"),
    (np.ones((4, 5)), r"width 5 \(transposed\?\)"),
    (np.full((1, 4), np.nan), "4 of their numbers are not finite"),
    (np.zeros((2, 4)), "are all zero"),
    (np.zeros((0, 4)), r"an array of shape \(0, 4\)"),
    (np.zeros((2, 2, 4)), r"an array of shape \(2, 2, 4\)"),
    ("nowhere.npy", "cannot read the directions nowhere.npy: No such file"),
  ],
)
def test_bad_directions_are_refused_in_one_line(directions, message):
  with pytest.raises(InversionViewError, match=message) as caught:
    Directions.of(directions, 4)
  assert "\n" not in str(caught.value)


def test_an_activation_without_a_part_along_them_is_refused():
  with pytest.raises(InversionViewError, match="has no part along the directions"):
    Directions.of(np.eye(1, 4), 4).project(np.array([[0, 1.0, 2.0, 3.0]]))


def test_sites_and_positions_that_do_not_go_together_are_refused(small_target):
  with pytest.raises(InversionViewError, match="2 sites and 3 positions: give one position for each site"):
    iv.preimage(small_target, TEXT, ["a0.1", "a0.0"], ["=", "+", 3])
  with pytest.raises(InversionViewError, match="0 sites and 1 positions"):
    iv.preimage(small_target, TEXT, [], "=")
  with pytest.raises(InversionViewError, match="site a0.1 at position = is given twice"):
    iv.preimage(small_target, TEXT, ["a0.1", "a0.1"], "=")
