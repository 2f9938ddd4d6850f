"""What a failed save prints: nothing beside the note of the run."""

import asyncio
import types

from inversionview_jax.training import checkpoints


def test_writers_that_outlive_a_failed_save_print_no_traceback(capsys):
  loop = asyncio.new_event_loop()
  loop.close()

  def report(frames):
    try:
      loop.call_soon_threadsafe(print)
    except RuntimeError as error:
      trace = error.__traceback__
      for _ in range(frames):
        trace = trace.tb_next
      fields = {"exc_type": RuntimeError, "exc_value": error, "exc_traceback": trace, "err_msg": None, "object": None}
      checkpoints._print_unraisable(types.SimpleNamespace(**fields))

  report(1)  # as a library does that is not written in Python: the outermost frame is asyncio's
  assert capsys.readouterr().err == ""
