"""What a site encodes over a set of queries, with its control."""

import json

import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import readings
from inversionview_jax.measures.held_out import held_out_requests
from inversionview_jax.reading import Request

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_a_site_encodes_what_all_its_queries_encode_and_the_control_nothing(reader):
  requests = held_out_requests(reader, "x0.pre", "F2", 16)
  assert len({request.text for request in requests}) == 16
  result = readings.read(reader, requests, with_information=False, num_samples=64)
  rows = {row.feature: row for row in result.rows}
  assert {row.feature for row in result.encoded} == {"F2", "matched token"}
  assert rows["F2"].queries == 16 and rows["F2"].control.value == pytest.approx(rows["F2"].base, abs=0.15)
  assert result.control_encoded == [] and result.bits() is None and result.donors == 15
  only = readings.read(reader, requests, with_information=False, num_samples=64, tokens=False)
  assert [row.feature for row in only.encoded] == ["F2"]


def test_information_of_several_queries_is_their_mean(reader):
  result = readings.read(
    reader,
    [Request("615+865=1480", "a0.0", "="), Request("125+345=470", "a0.0", "=")],
    num_samples=8,
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
  result = readings.read(reader, requests, donors=donors, with_information=False, num_samples=64)
  rows = {row.feature: row for row in result.rows}
  assert rows["F1"].control.value < 0.5 and result.donors == 6 and result.information is None
  with pytest.raises(InversionViewError, match="several epsilons"):
    readings.read(reader, [requests[0], Request("615+865=1480", "a0.0", "=", epsilon=0.2)])
  with pytest.raises(InversionViewError, match="no queries"):
    readings.read(reader, [])
