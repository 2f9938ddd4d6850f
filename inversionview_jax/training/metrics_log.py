"""The log of a training run: metrics.jsonl, what `boards` shows, a progress bar and lines on stderr. The first host writes."""

import json
import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import progress, terminal
from inversionview_jax.devices import hosts
from inversionview_jax.files import write_whole
from inversionview_jax.training import boards, throughput


class MetricsLog:
  """The log of one run.

  Args:
    folder: gets `metrics.jsonl`, `config.json` and `tensorboard/`.
    config: batch_size, steps, log_every.
    done: the step that is resumed from; lines of later steps are removed, as these steps are done again.
    size: number of parameters, shown.
    clock: of the run; its shares are logged.
    flops: of one step over all devices, or 0 where that is not known.
    devices: those of the mesh.

  Attributes:
    progress: the progress bar, a context manager.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    config: ConfigDict,
    done: int,
    size: int,
    clock: throughput.Clock,
    flops: float,
    devices: Sequence[jax.Device],
  ):
    import rich.progress
    from rich.markup import escape

    self._path, self._config, self._clock = folder / "metrics.jsonl", config, clock
    self._boards: boards.Boards | None = None
    self._write_failed = False
    peak = throughput.peak_flops(devices[0])
    self._flops, self._peak = flops, peak * len(devices) if peak else None
    console = terminal.console(stderr=True, quiet=not hosts.is_writer() or progress.is_hidden())
    if hosts.is_writer():
      write_whole(folder / "config.json", config.to_json_best_effort(indent=1) + "\n")
      kept = [line for line in self._read() if line["step"] <= done]
      write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
      self._boards = boards.Boards(folder, config, done)
      if self._boards.missing:
        console.print(f"[bold]note[/bold]: {self._boards.missing}")
    console.print(
      f"{size:,} parameters, batch {config.batch_size}, step {done:,} of {config.steps:,}; log in {escape(str(self._path))}",
      soft_wrap=True,
    )
    self._console = console
    self.progress = rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TimeRemainingColumn(),
      console=console,
      disable=not (console.is_terminal and hosts.is_writer()) or progress.is_hidden(),
    )
    self._bar = self.progress.add_task("compiling", total=config.steps, completed=done)
    self._start, self._last_step, self._trained = time.perf_counter(), done, clock.training

  def _read(self) -> list[dict]:
    if not self._path.exists():
      return []
    lines = []
    for line in self._path.read_text().splitlines():
      try:
        lines.append(json.loads(line))
      except ValueError:  # cut off where an earlier run was killed
        pass
    return lines

  def losses(self, step: int, losses: np.ndarray, norms: np.ndarray, log: bool) -> None:
    """Shows the losses and gradient norms float[k] of the last steps, finite ones; writes a line of their means if `log`."""
    self.progress.update(self._bar, completed=step, description=f"loss {losses.mean():.4f}")
    if not log:
      return
    trained = self._clock.training  # evaluation and saving are not training time
    rate = (step - self._last_step) / max(trained - self._trained, 1e-9)
    self._trained, self._last_step = trained, step
    values = {
      "loss": float(losses.mean()),
      "grad_norm": float(norms.mean()),
      "steps_per_second": rate,
      "examples_per_second": rate * self._config.batch_size,
    }
    if self._flops:
      values["model_tflops"] = self._flops * rate / 1e12
    if self._flops and self._peak:
      values["mfu"] = self._flops * rate / self._peak
    if memory := throughput.memory_in_use():
      values["memory_gb"] = memory / 1e9
    self._write(step, values | self._clock.shares())

  def metrics(self, step: int, metrics: dict[str, float]) -> None:
    """Shows and writes the metrics of an evaluation; names with "/" are only written."""
    shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name)
    self._console.print(f"step {step:,}  {time.perf_counter() - self._start:.0f} s  {shown}")
    self._write(step, metrics)

  def last_metrics(self, step: int) -> dict[str, float] | None:
    """The metrics of the evaluation after `step`, if the log has them; the same on every host."""
    metrics = None
    if hosts.is_writer():
      lines = [line for line in self._read() if line["step"] == step and "loss" not in line and "note" not in line]
      metrics = {k: v for k, v in lines[-1].items() if k not in ("step", "seconds")} if lines else None
    return json.loads(hosts.exchange(json.dumps(metrics))[0])

  def note(self, step: int, text: str) -> None:
    """Shows and writes a message for the user."""
    self._show(text)
    self._write(step, {"note": text})

  def _show(self, text: str) -> None:
    from rich.markup import escape

    self._console.print(f"[bold]note[/bold]: {escape(text)}", highlight=False, soft_wrap=True)

  def _write(self, step: int, values: dict) -> None:
    if not hosts.is_writer():
      return
    line = json.dumps({"step": step, "seconds": round(time.perf_counter() - self._start, 2), **values}) + "\n"
    try:
      with self._path.open("a") as file:
        file.write(line)
      if self._boards is not None:
        self._boards.add(step, values)
    except OSError as error:  # a full disk costs log lines, not the run: checkpoints that fail end it
      if not self._write_failed:
        self._show(f"cannot write {self._path}: {error.strerror}")
      self._write_failed = True

  def close(self) -> None:
    """Closes the boards: what they have not sent yet is sent."""
    if self._boards is not None:
      self._boards.close()

  def print_times(self) -> None:
    """Prints the wall time, the training time and every other phase's, in one line."""
    parts = sorted(self._clock.seconds.items(), key=lambda item: -item[1])
    lost = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts if seconds >= 0.5)
    self._console.print(
      f"{self._clock.wall:.0f} s, of which training {self._clock.training:.0f} s" + (f" ({lost})" if lost else ""),
      soft_wrap=True,
    )
