"""A disk that is full, for tests: files that can be no larger than so many bytes."""

import contextlib

import pytest


@contextlib.contextmanager
def files_up_to(size: int):
  """A context in which no file of this process can grow beyond `size` bytes; writing more fails as on a full disk."""
  resource = pytest.importorskip("resource")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
