"""COUNTERFACT, BEAR-big and MiniPile as TensorFlow Datasets, from files that the user has downloaded:

    tfds.builder("inversionview_counterfact").download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir="/where/they/are"))

`fact_files.WHERE` and the error for a missing file name the files and their folders. Written to array_record and read without TensorFlow.
"""

import os
import pathlib

import tensorflow_datasets as tfds

from inversionview_jax.tasks import fact_files


class _ManualBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Records in the order of the files, all in the split "train"."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = ""
  FIELDS: tuple[str, ...] = ("prompt", "subject", "answer", "relation")
  URL = ""
  url_infos = None  # nothing is downloaded, so there are no checksums

  def __init__(self, *, file_format=None, **kwargs):
    super().__init__(file_format=file_format or "array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in self.FIELDS}),
      homepage=self.URL,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager) -> dict:
    return {"train": self._generate_examples(pathlib.Path(dl_manager.manual_dir))}

  def _generate_examples(self, folder):
    raise NotImplementedError

  def is_prepared(self) -> bool:
    return self.data_path.exists() and super().is_prepared()

  def _log_download_bytes(self) -> None:
    """Prints nothing: TFDS would print "Downloading ...", and nothing is downloaded."""

  def _log_download_done(self) -> None:
    """Prints nothing, for the same reason."""


class InversionviewCounterfact(_ManualBuilder):
  """COUNTERFACT's prompts with their true answers."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = fact_files.WHERE["counterfact"]
  URL = "https://rome.baulab.info"

  def _generate_examples(self, folder):
    yield from enumerate(fact_files.counterfact(folder))


class InversionviewBear(_ManualBuilder):
  """BEAR-big's statements, up to the object."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = fact_files.WHERE["bear"]
  URL = "https://lm-pub-quiz.github.io"

  def _generate_examples(self, folder):
    yield from enumerate(fact_files.bear(folder))


class InversionviewMinipile(_ManualBuilder):
  """Sentences of MiniPile of at most 100 characters."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = fact_files.WHERE["minipile"]
  URL = "https://huggingface.co/datasets/JeanKaddour/minipile"
  FIELDS = ("text",)

  def _generate_examples(self, folder):
    yield from enumerate({"text": sentence} for sentence in fact_files.minipile(folder))


def prepare(name: str, data_dir: str, manual_dir: str) -> tfds.core.DatasetBuilder:
  """The builder `inversionview_<name>`, made from the files in `manual_dir` if it is not there yet.

  Args:
    name: "counterfact", "bear" or "minipile".
    data_dir: where datasets are kept; "": TFDS's default.
    manual_dir: with the downloaded files; "": `downloads/manual` in TFDS's folder.

  Raises:
    InversionViewError: a file is missing (names it and where to put it), or is not of the published format.
  """
  builder = tfds.builder_cls(f"inversionview_{name}")(data_dir=data_dir or None)
  if not builder.is_prepared():
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = pathlib.Path(manual_dir or pathlib.Path(root) / "downloads" / "manual").expanduser()
    next(iter(getattr(fact_files, name)(folder)), None)  # what is missing is known before anything is written
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(folder)))
  return builder
