"""The one exception that means "the input was wrong", as opposed to "the program is wrong"."""


class InversionViewError(ValueError):
  """Bad input from a person: a name, a number, a file.

  The message is one line that names the offending value and says what would be right. The command line prints it
  without a traceback and exits with code 2; in a notebook it is an ordinary ``ValueError``.
  """


def one_of(what: str, value: object, choices) -> InversionViewError:
  """An error for a value that should have been one of a few, with the nearest of them named first."""
  import difflib

  choices, shown = [str(c) for c in choices], str(value)
  shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
  near = difflib.get_close_matches(shown, choices, n=3, cutoff=0.5)
  hint = f"did you mean {' or '.join(near)}? " if near else ""
  listed = ", ".join(choices[:12]) + (f", ... ({len(choices)} in all)" if len(choices) > 12 else "")
  return InversionViewError(f"unknown {what} {shown!r}: {hint}known: {listed}")
