"""Rates, bases and controls of features among the members of queries."""

import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.studies import readings
from inversionview_jax.studies.readings import read
from inversionview_jax.studies.stages import Stages


@pytest.fixture
def few_queries(monkeypatch):
  """Two queries are enough to name a feature."""
  monkeypatch.setattr(readings, "QUERIES", 2)


def made(color, number, subject=None):
  """64 inputs of four colors and two numbers; queries 0 and 1 see what has their color, of any number."""
  values = {"color": color, "number": number, "subject": np.arange(64) % 16 if subject is None else subject}
  queries = np.array([0, 1])
  return np.where(color[None] == color[queries, None], 0.1, 0.9).astype(np.float32), values, queries


def test_a_feature_that_members_share_is_named_and_others_are_not(few_queries):
  color, number = np.arange(64) % 4, np.arange(64) // 4 % 2
  distance, values, queries = made(color, number)
  reading = read(distance, 0.2, values, queries, ("number", "color"), apart="subject")
  assert reading.named == ["color"] and reading.features[0].feature == "color"
  one = reading["color"]
  assert (one.rate.value, one.base, one.control, one.elsewhere, one.queries) == (1.0, 0.25, 0.0, 1.0, 2)
  assert reading["number"].rate.value == pytest.approx(7 / 15)  # without the query itself
  assert reading.members == 15 and reading.too_few == 0


def test_a_feature_is_not_named_by_fewer_queries_than_it_takes(monkeypatch):
  color = np.arange(64) % 4
  distance, values, queries = made(color, color)
  assert read(distance, 0.2, values, queries, ("color",)).named == []
  monkeypatch.setattr(readings, "QUERIES", 2)
  assert read(distance, 0.2, values, queries, ("color",)).named == ["color"]


def test_a_feature_with_a_high_base_or_control_is_not_named(few_queries):
  color = np.zeros(64, int)
  distance, values, queries = made(color, np.arange(64) % 2)
  assert read(distance, 0.2, values, queries, ("color",)).named == []  # all inputs have it
  color = np.arange(64) % 4
  distance, values, _ = made(color, color)
  distance[1] = distance[0]  # the members of another query of the same color: the control is as high as the rate
  reading = read(distance, 0.2, values, np.array([0, 4]), ("color",))
  assert reading["color"].rate.value == reading["color"].control == 1.0 and reading.named == []


def test_what_is_measured_apart_from_the_subject_leaves_members_of_the_same_subject_out():
  color = np.arange(64) % 4
  subject = np.where(color == 0, 0, np.arange(64))  # all of color 0 are of one subject
  distance, values, queries = made(color, color, subject)
  reading = read(distance, 0.2, values, queries, ("color",), apart="subject")
  assert reading["color"].elsewhere == 1.0  # of the second query only
  assert read(distance[:1], 0.2, values, queries[:1], ("color",), apart="subject")["color"].elsewhere is None


def test_a_smaller_epsilon_has_fewer_members_and_may_name_more(few_queries):
  color, number = np.arange(64) % 4, np.arange(64) // 4 % 2
  distance, values, queries = made(color, number)
  distance += np.where(number[None] == number[queries, None], 0, 0.15).astype(np.float32)
  coarse, fine = (read(distance, epsilon, values, queries, ("number", "color")) for epsilon in (0.5, 0.125))
  assert (coarse.members, fine.members) == (15, 7) and (coarse.epsilon, fine.epsilon) == (0.5, 0.125)
  assert coarse.named == ["color"] and fine.named == [
    "color"
  ]  # half of all inputs have the number: its base is too high
  assert coarse["number"].rate.value == pytest.approx(7 / 15) and fine["number"].rate.value == 1.0


def test_queries_with_too_few_members_are_counted_and_left_out():
  color = np.arange(64) % 4
  distance, values, queries = made(color, color)
  distance[1] = 1
  reading = read(distance, 0.2, values, queries, ("color",))
  assert (reading.queries, reading.too_few, reading["color"].control) == (1, 1, None)
  assert read(distance + 1, 0.2, values, queries, ("color",)).features == ()


def test_a_query_without_a_value_counts_for_no_feature():
  color = np.where(np.arange(64) == 0, -1, np.arange(64) % 4)
  distance, values, queries = made(np.arange(64) % 4, color)
  values["color"] = color
  assert read(distance, 0.2, values, queries, ("color",))["color"].queries == 1


def test_steps_are_kept_and_belong_to_one_study(tmp_path):
  calls = []

  def make():
    calls.append(1)
    return {"x": np.arange(3), "y": np.array(2.5)}

  first = Stages(tmp_path / "steps", {"task": "factual", "heads": ("a0.0",)}).arrays("known", make)
  again = Stages(tmp_path / "steps", {"task": "factual", "heads": ("a0.0",)}).arrays("known", make)
  assert len(calls) == 1 and again["x"].tolist() == first["x"].tolist() and again["y"] == 2.5
  with pytest.raises(InversionViewError, match="another study .heads differ"):
    Stages(tmp_path / "steps", {"task": "factual", "heads": ("a0.1",)})
  (tmp_path / "steps" / "known.npz").write_bytes(b"damaged")
  with pytest.raises(InversionViewError, match="known.npz cannot be read"):
    Stages(tmp_path / "steps", {"task": "factual", "heads": ("a0.0",)}).arrays("known", make)
