"""What a failed save prints: nothing beside the note of the run."""

import asyncio
import threading

from inversionview_jax.training import checkpoints


def test_writers_that_outlive_a_failed_save_print_no_traceback(capsys, monkeypatch):
  monkeypatch.setattr(threading, "excepthook", lambda args: checkpoints._print_exception(*args[:3]))
  loop = asyncio.new_event_loop()
  loop.close()

  def report():  # as a library does that is not written in Python: the outermost frame is asyncio's
    try:
      loop.call_soon_threadsafe(print)
    except RuntimeError as error:
      checkpoints._print_exception(RuntimeError, error, error.__traceback__.tb_next)

  report()
  assert capsys.readouterr().err == ""
  thread = threading.Thread(target=loop.call_soon_threadsafe, args=(print,))  # of this program: it stays
  thread.start()
  thread.join()
  assert "Event loop is closed" in capsys.readouterr().err
