"""The tasks as TensorFlow Datasets (TFDS): ``tfds.data_source("inversionview_addition", split="train")``.

Written to array_record and read without TensorFlow. Nothing is downloaded: a task makes its inputs from their indices.
"""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds

from inversionview_jax.tasks.addition import Addition
from inversionview_jax.tasks.base import TINY, Task
from inversionview_jax.tasks.counting import Counting

_CITATION = """\
@inproceedings{huang2024inversionview,
  title     = {InversionView: A General-Purpose Method for Reading Information from Neural Activations},
  author    = {Huang, Xinting and Panwar, Madhur and Goyal, Navin and Hahn, Michael},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2405.17653},
}"""
_CHUNK = 10_000  # inputs made at a time: large enough for NumPy, small enough for the cache


class _TaskBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A task's inputs, in the order of its splits: record i of a split is the input ``task.split(split)[i]``.

  That order is random already, so TFDS does not shuffle again, and the tiny config, which holds the first records of
  the full one, is a uniform sample.

  Attributes:
    TASK: the task; its name is that of the class, in snake case, behind "inversionview_".
    on_progress: called with the number of inputs just made, for a progress bar; does nothing unless set.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="full", description="Every input of the task."),
    tfds.core.BuilderConfig(name="tiny", description="A uniform sample: 20,000 to train on and 5,000 to test on."),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "full"
  TASK: Task
  on_progress: Callable[[int], None] = staticmethod(lambda made: None)
  # Nothing is downloaded, so there are no checksums; to look for them TFDS 4.9.10 needs a package that it does not install
  # (https://github.com/tensorflow/datasets/issues/11212).
  url_infos = None

  def __init__(self, *, file_format=None, **kwargs):
    # The default is tfrecord, which only TensorFlow reads.
    super().__init__(file_format=file_format or "array_record", **kwargs)

  def indices(self, split: str) -> np.ndarray:
    """int64[N]: the task's index of each record of "train" or "test"."""
    indices = self.TASK.split(split)
    return indices[: TINY[split]] if self.builder_config.name == "tiny" else indices

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "text": tfds.features.Text(doc="The input as text, without BOS, EOS and PAD."),
          "tokens": tfds.features.Tensor(
            shape=(self.TASK.length,), dtype=np.int32, doc="Its ids with BOS, EOS and PAD."
          ),
        }
      ),
      homepage="https://arxiv.org/abs/2405.17653",
      citation=_CITATION,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager) -> dict:
    del dl_manager
    return {split: self._generate_examples(split) for split in ("train", "test")}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    indices = self.indices(split)
    for start in range(0, len(indices), _CHUNK):
      rows = self.TASK.tokens(indices[start : start + _CHUNK])
      for offset, (row, ids) in enumerate(zip(rows, rows.tolist())):
        yield start + offset, {"text": self.TASK.tokenizer.text(ids), "tokens": row}
      self.on_progress(len(rows))

  def is_prepared(self) -> bool:
    # Asking TFDS first would print a warning of a missing dataset_info.json.
    return self.data_path.exists() and super().is_prepared()

  def _log_download_bytes(self) -> None:
    """Prints nothing: TFDS would print "Downloading ...", and nothing is downloaded."""

  def _log_download_done(self) -> None:
    """Prints nothing, for the same reason."""


class InversionviewAddition(_TaskBuilder):
  """Three-digit additions such as 615+861=1476: all 810,000 with operands from 100 to 999, 75 % in train."""

  TASK = Addition()


class InversionviewCounting(_TaskBuilder):
  """Strings of three letters and the count of one, such as vvzccvczvvvzvcvc|v:8: 1.56 million, 75 % in train."""

  TASK = Counting()
