"""RASP programs as tasks: their inputs by index, and the values of all of their expressions (extra `tracr`, which compiles them into targets).

A program maps a text of up to `longest` symbols to a value at each of them. Every text over the vocabulary is an input, all equally probable.

Shapes: B texts, T tokens, N symbols of a text.
"""

import copy
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.extension import is_named, load_named

PREFIX = "tracr:"
Value = Any  # of RASP: a number, a string, a bool or None
_MISSING = "compiled programs need Tracr: pip install 'inversionview-jax[tracr]'"


def rasp() -> Any:
  """The module `tracr.rasp.rasp`; raises `InversionViewError` with the command that installs it."""
  try:
    from tracr.rasp import rasp as module
  except ImportError as error:
    raise InversionViewError(f"{_MISSING} ({error})") from None
  return module


def library() -> Any:
  """The module `tracr.compiler.lib`; raises `InversionViewError` with the command that installs it."""
  try:
    from tracr.compiler import lib
  except ImportError as error:
    raise InversionViewError(f"{_MISSING} ({error})") from None
  return lib


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
  """A RASP program, and what it is compiled for.

  Attributes:
    expression: a `tracr.rasp.rasp.SOp`.
    vocabulary: the symbols of its inputs.
    longest: the most symbols of an input (Tracr's `max_seq_len`).
    causal: compiled with a causal mask, and evaluated with one.
    distinct: inputs in which a symbol occurs twice are left out, for programs that need different ones.
    mlp_exactness: Tracr's.
    name: of the task and the target.
  """

  expression: Any
  vocabulary: tuple[Value, ...]
  longest: int
  causal: bool = False
  distinct: bool = False
  mlp_exactness: int = 100
  name: str = "tracr:program"

  def __post_init__(self) -> None:
    """Numbers the expressions as Tracr does in a fresh process, so that their names, and the compiled weights, are always the same.

    Raises:
      InversionViewError: no program, no symbols or the same twice, no length.
    """
    r = rasp()
    if not isinstance(self.expression, r.SOp):
      raise InversionViewError(
        f"a program must be a RASP expression (tracr.rasp.rasp.SOp), got {type(self.expression).__name__}"
      )
    # Sorted as texts: a set of strings has another order in every process.
    symbols = tuple(sorted(self.vocabulary, key=lambda symbol: (isinstance(symbol, str), symbol)))
    object.__setattr__(self, "vocabulary", symbols)
    names = [str(symbol) for symbol in symbols]
    if not symbols or len(set(names)) != len(names) or any(re.search(r"\s|\A\Z|\A<.*>\Z", name) for name in names):
      raise InversionViewError(f"the vocabulary of a program must hold different symbols without spaces, got {names}")
    values.whole("the longest input (max_seq_len)", self.longest, low=1, high=10_000)
    expression = copy.deepcopy(self.expression)
    object.__setattr__(self, "expression", expression)
    for number, each in enumerate(self._numbered, 1):
      each.__dict__["unique_id"] = number  # a cached property of Tracr, which counts through the whole process

  @functools.cached_property
  def _numbered(self) -> list[Any]:
    """Expressions and selectors in the order in which Tracr meets them, breadth first, but the tokens and indices, which have no number."""
    r = rasp()
    found, queue = [], [self.expression]
    seen = {id(self.expression)}
    while queue:
      node = queue.pop(0)
      if not isinstance(node, r.TokensType | r.IndicesType | r.LengthType):
        found.append(node)
      for child in node.children:
        if id(child) not in seen:
          seen.add(id(child))
          queue.append(child)
    return found

  @functools.cached_property
  def expressions(self) -> tuple[Any, ...]:
    """All that have a value at each symbol, but the indices: the tokens first, then in the order of evaluation; the last is the program."""
    r = rasp()
    found: list[Any] = []

    def visit(node):
      if any(node is other for other in found):
        return
      for child in node.children:
        visit(child)
      found.append(node)

    visit(self.expression)
    tokens = [node for node in found if isinstance(node, r.TokensType)][:1]
    others = [node for node in found if isinstance(node, r.SOp) and not isinstance(node, r.TokensType | r.IndicesType)]
    return (*tokens, *others)

  @functools.cached_property
  def spaces(self) -> tuple[tuple[Value, ...], ...]:
    """The values that each of `expressions` may have, in order: None last; of `sum / count`, all fractions."""
    known: dict[int, tuple[Value, ...]] = {}
    for node in self._in_order():
      known[id(node)] = self._space(node, known)
    return tuple(known[id(node)] for node in self.expressions)

  def _in_order(self):
    r, done = rasp(), []

    def visit(node):
      if any(node is other for other in done):
        return
      for child in node.children:
        visit(child)
      done.append(node)

    visit(self.expression)
    return [node for node in done if isinstance(node, r.SOp)]

  def _space(self, node, known: dict[int, tuple[Value, ...]]) -> tuple[Value, ...]:
    r = rasp()
    if isinstance(node, r.TokensType):
      return self.vocabulary
    if isinstance(node, r.IndicesType):
      return tuple(range(self.longest))
    if isinstance(node, r.SelectorWidth | r.LengthType):
      return tuple(range(self.longest + 1))
    if isinstance(node, r.Full):
      return (node.fill,)
    if isinstance(node, r.SequenceMap):
      pairs = itertools.product(known[id(node.fst)], known[id(node.snd)])
      return _ordered(None if None in pair else _applied(node.f, *pair) for pair in pairs)
    if isinstance(node, r.Map):
      return _ordered(None if value is None else _applied(node.f, value) for value in known[id(node.inner)])
    if isinstance(node, r.Aggregate):
      inner = known[id(node.sop)]
      shares = [k / n for n in range(1, self.longest + 1) for k in range(n + 1)] if r.is_numerical(node) else []
      return _ordered([*inner, *shares, node.default])
    raise InversionViewError(f"expression {node.label} of {self.name} is a {type(node).__name__}, which is not handled")

  def evaluate(self, symbols: Sequence[Value]) -> tuple[list[Value] | None, ...]:
    """The values of each of `expressions` at each symbol, by Tracr's own evaluator; None for one that is not defined for this text."""
    evaluator = _evaluator(self.causal)
    out: list[list[Value] | None] = []
    for node in self.expressions:
      try:
        out.append(list(evaluator.evaluate(node, list(symbols))))
      except (ValueError, TypeError, ArithmeticError, LookupError):
        out.append(None)
    return tuple(out)


def _applied(function: Callable, *arguments: Value) -> Value:
  """The function's value; None where it is not defined, as Tracr has it for values that never occur."""
  try:
    return function(*arguments)
  except (ArithmeticError, TypeError, ValueError):
    return None


def _ordered(found) -> tuple[Value, ...]:
  """Different values in their order: numbers, then others by their text, then None."""

  def key(value):
    number = isinstance(value, int | float)
    return (value is None, not number, value if number else 0, "" if number else str(value))

  return tuple(sorted(dict.fromkeys(found), key=key))


def _evaluator(causal: bool) -> Any:
  """Tracr's evaluator with a memory, for one text: an expression that several others read is evaluated once."""
  r = rasp()
  from tracr.rasp import causal_eval

  base: Any = causal_eval.CausalEvaluator if causal else r.DefaultRASPEvaluator

  class Remembering(base):  # type: ignore[misc, valid-type]
    def __init__(self):
      super().__init__()
      self._known: dict[int, Any] = {}

    def evaluate(self, expr, xs):
      if id(expr) not in self._known:
        self._known[id(expr)] = super().evaluate(expr, xs)
      return self._known[id(expr)]

  return Remembering()


def shown(value: Value) -> str:
  """A value as text; fractions as such."""
  if isinstance(value, float) and not value.is_integer():
    fraction = Fraction(value).limit_denominator(1000)
    return str(fraction) if math.isclose(fraction, value, rel_tol=1e-9) else f"{value:g}"
  return str(int(value)) if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A program of Tracr's library: how it is made of (vocabulary, longest), and what it is compiled for by default."""

  make: Callable[[tuple, int], Any]
  vocabulary: tuple[Value, ...] = tuple("abcd")
  longest: int = 5
  distinct: bool = False


LIBRARY: dict[str, _Entry] = {
  "length": _Entry(lambda v, n: library().make_length()),
  "reverse": _Entry(lambda v, n: library().make_reverse(rasp().tokens)),
  "hist": _Entry(lambda v, n: library().make_hist()),
  "frac_prevs": _Entry(lambda v, n: library().make_frac_prevs(rasp().tokens == v[0]), tuple("abc")),
  "pair_balance": _Entry(lambda v, n: library().make_pair_balance(rasp().tokens, "(", ")"), tuple("()a")),
  "shuffle_dyck": _Entry(lambda v, n: library().make_shuffle_dyck(["()"]), tuple("()"), 6),
  "shuffle_dyck2": _Entry(lambda v, n: library().make_shuffle_dyck2(), tuple("(){}")),
  "sort_unique": _Entry(lambda v, n: library().make_sort_unique(rasp().tokens, rasp().tokens), (1, 2, 3, 4), 4, True),
  "sort": _Entry(
    lambda v, n: library().make_sort(rasp().tokens, rasp().tokens, max_seq_len=n, min_key=1), (1, 2, 3, 4)
  ),
  "sort_freq": _Entry(lambda v, n: library().make_sort_freq(max_seq_len=n), tuple("abc")),
  "count": _Entry(lambda v, n: library().make_count(rasp().tokens, v[0]), tuple("abc")),
  "count_less_freq": _Entry(lambda v, n: library().make_count_less_freq(n=2), tuple("abc")),
  "shift_by": _Entry(lambda v, n: library().shift_by(1, rasp().tokens)),
  "detect_pattern": _Entry(lambda v, n: library().detect_pattern(rasp().tokens, "abc"), tuple("abc")),
}


def is_program(name: object) -> bool:
  """Whether this names a compiled program, "tracr:..."."""
  return isinstance(name, str) and name.startswith(PREFIX)


@functools.lru_cache(32)
def program_named(name: str) -> Program:
  """The program that a name means.

  Args:
    name: "tracr:" and a program of Tracr's library, such as "tracr:hist", or a `Program` of the user's own module, such as
      "tracr:my_programs:HIST"; behind it, with commas, settings in place of its own: "tracr:hist,vocab=abc,max_seq_len=6,causal=true".

  Raises:
    InversionViewError: an unknown program (lists the known ones), setting or value, or Tracr is not installed.
  """
  base, *settings = name.removeprefix(PREFIX).split(",")
  given = _settings(name, settings)
  if is_named(base):
    made: Program = load_named(base, Program, "program")
    own: dict[str, Any] = {
      "vocab": made.vocabulary,
      "max_seq_len": made.longest,
      "causal": made.causal,
      "distinct": made.distinct,
    }
    expression = made.expression
  elif base in LIBRARY:
    entry = LIBRARY[base]
    own = {"vocab": entry.vocabulary, "max_seq_len": entry.longest, "causal": False, "distinct": entry.distinct}
    expression = entry.make(given.get("vocab", entry.vocabulary), given.get("max_seq_len", entry.longest))
  else:
    raise one_of("compiled program", base, tuple(LIBRARY))
  used = own | given
  return Program(expression, used["vocab"], used["max_seq_len"], used["causal"], used["distinct"], name=name)


def _settings(name: str, settings: Sequence[str]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  switches = {"true": True, "false": False}
  for setting in settings:
    key, equals, text = setting.partition("=")
    if key == "vocab" and text:
      symbols = text.split("|") if "|" in text else list(text)
      out[key] = tuple(int(symbol) if symbol.isdigit() else symbol for symbol in symbols)
    elif key == "max_seq_len" and re.fullmatch("[0-9]{1,4}", text):
      out[key] = int(text)
    elif key in ("causal", "distinct") and (text in switches or not equals):
      out[key] = switches.get(text, True)
    else:
      raise InversionViewError(
        f"setting {values.brief(setting)} of {values.brief(name)} is not understood; settings are vocab=abc (or vocab=one|two), "
        "max_seq_len=5, causal=true, distinct=true"
      )
  return out
