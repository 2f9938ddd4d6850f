"""The longer commands of the command line, a module each: `add_parser(commands)` says what it takes, and sets what runs it."""

from inversionview_jax.errors import InversionViewError


def at_least(args, **least: int) -> None:
  """Raises `InversionViewError` for the first of these options that was given and is smaller: `at_least(args, queries=1)`."""
  for name, bound in least.items():
    value = getattr(args, name)
    if value is not None and value < bound:
      raise InversionViewError(f"--{name.replace('_', '-')} {value} must be at least {bound}")
