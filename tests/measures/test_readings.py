"""What a site encodes over a set of queries, with its control."""

import json

import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import readings
from inversionview_jax.measures.held_out import held_out_requests
from inversionview_jax.reading import Request
from inversionview_jax.reading.source import Source

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_a_site_encodes_what_all_its_queries_encode_and_the_control_nothing(reader):
  drawn = Source.of(reader, "decoder", num_samples=64)
  requests = held_out_requests(drawn, "x0.pre", "F2", 16)
  assert len({request.text for request in requests}) == 16
  result = readings.read(drawn, requests, with_information=False)
  rows = {row.feature: row for row in result.rows}
  assert {row.feature for row in result.encoded} == {"F2", "matched token"}
  assert rows["F2"].queries == 16 and rows["F2"].control.value == pytest.approx(rows["F2"].base, abs=0.15)
  assert not result.from_prior and result.control_encoded == [] and result.bits() is None and result.donors == 15
  only = readings.read(drawn, requests, with_information=False, tokens=False)
  assert [row.feature for row in only.encoded] == ["F2"]


@pytest.mark.slow
def test_information_of_several_queries_is_their_mean(reader):
  result = readings.read(
    Source.of(reader, "decoder", num_samples=8),
    [Request("615+865=1480", "a0.0", "="), Request("125+345=470", "a0.0", "=")],
    inputs=256,
    draws=12,
  )
  bits, error = result.bits()
  own = [one.bits for one in result.information]
  assert bits == pytest.approx(np.mean(own)) and error >= abs(own[0] - own[1]) / 2 - 1e-9
  table = json.loads(result.to_json())
  assert [one["information"]["bits"] for one in table["queries"]] == own and table["bits"]["mean"] == bits


def test_queries_that_share_a_feature_need_other_donors(reader):
  requests = [Request(f"6{x}5+865={int(f'6{x}5') + 865}", "x0.pre", "F1") for x in range(3)]
  donors = held_out_requests(reader, "x0.pre", "F1", 6)
  drawn = Source.of(reader, "decoder", num_samples=64)
  result = readings.read(drawn, requests, donors=donors, with_information=False)
  rows = {row.feature: row for row in result.rows}
  assert rows["F1"].control.value < 0.5 and result.donors == 6 and result.information is None
  with pytest.raises(InversionViewError, match="several epsilons"):
    readings.read(drawn, [requests[0], Request("615+865=1480", "a0.0", "=", epsilon=0.2)])
  with pytest.raises(InversionViewError, match="no queries"):
    readings.read(drawn, [])


@pytest.mark.slow
def test_particles_count_as_they_are_whatever_they_start_from(reader, monkeypatch):
  requests = [Request("615+865=1480", "x0.pre", "F2"), Request("125+345=470", "x0.pre", "F2")]
  some = {"particles": 64, "budget": 4000}
  drawn = Source.of(reader, "monte_carlo", **some)
  monkeypatch.setattr(readings.information, "measure", lambda *a, **k: pytest.fail("the bits are the preimage's own"))
  result = readings.read(drawn, requests)
  assert result.method == "monte_carlo" and result.from_prior
  for preimage, bits, reading in zip(result.preimages, result.information, result.each, strict=True):
    assert (bits.bits, bits.error) == (preimage.bits, preimage.bits_error) and bits.inputs is None
    assert preimage == drawn.preimage(preimage.query)  # the control's and the queries' are found as one alone is
    row = next(row for row in reading.rows if row.feature == "matched token")
    assert row.rate.value == 1 and row.rate.count == 64 and max(reading.stability) <= preimage.epsilon
  monkeypatch.undo()
  result = readings.read(
    Source.of(reader, "decoder+monte_carlo", num_samples=32, **some), requests, inputs=256, draws=12
  )
  assert all(preimage.bits is None for preimage in result.preimages)
  assert all(
    bits.inputs == 256 for bits in result.information
  )  # estimated beside the particles, which keep their weight
  assert all(row.rate.count == 64 for row in result.each[0].rows)


def test_where_monte_carlo_stops_short_the_bits_are_not_made_up(reader):
  drawn = Source.of(reader, "monte_carlo", particles=64, budget=64)
  result = readings.read(drawn, [Request("615+865=1480", "x0.post", "=", epsilon=1e-3)])
  (bits,) = result.information
  assert bits.bits is None and "epsilon was not reached" in bits.warning and result.bits() is None
  assert "not converged: epsilon was not reached" in str(result.each[0])
