"""Registers this package's datasets with TensorFlow Datasets (TFDS) without importing TFDS."""

import importlib
import importlib.util


def register_when_imported() -> None:
  """Registers ``inversionview_addition`` and the others once ``tensorflow_datasets`` is imported, now if it already is.

  TFDS finds a dataset by its name as soon as the builder class exists. That class derives from one of TFDS, which takes half a second or
  more to import, so it is defined when TFDS is imported. May be called more than once. Does nothing where TFDS is not installed.
  """
  if importlib.util.find_spec("tensorflow_datasets") is None:
    return
  import wrapt  # which TFDS needs too

  wrapt.register_post_import_hook(_import_builders, "tensorflow_datasets")


def _import_builders(_module) -> None:
  importlib.import_module("inversionview_jax.tasks.builders")
  importlib.import_module("inversionview_jax.tasks.fact_builders")
