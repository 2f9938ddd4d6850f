"""Arrays that JAX takes over without a copy."""

import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.devices import host_arrays


@pytest.mark.parametrize("shape", [(3, 5), (1024, 1025), ()])
def test_jax_makes_no_copy(shape):
  made = host_arrays.empty(shape)
  made[...] = 2
  taken = jnp.asarray(made, jnp.float32)  # with a type, as targets are made
  assert (taken.shape, taken.dtype) == (shape, np.float32) and (np.asarray(taken) == 2).all()
  assert taken.unsafe_buffer_pointer() == made.ctypes.data


def test_what_is_empty_and_what_does_not_fit():
  assert host_arrays.empty((0, 7), np.uint8).shape == (0, 7)
  np.testing.assert_array_equal(host_arrays.float32(np.array([1.5, 1e300])), np.float32([1.5, np.inf]))
