"""The message of a call that must be refused."""

import pytest

from inversionview_jax.errors import InversionViewError


def refusal(function, *args, **kwargs) -> str:
  """The message of the `InversionViewError` that a call must raise, which is one line."""
  with pytest.raises(InversionViewError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)
