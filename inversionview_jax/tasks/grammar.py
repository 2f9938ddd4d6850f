"""Expressions over features and tokens, such as ``F1 + S1 >= 10``, ``contains("John")`` or ``token(S2) == token(S1)``; parsed, never
evaluated as code.

Comparisons joined by and, or, not; sums, differences, products and remainders of features and whole numbers; and, where the texts are given
(`text_functions.TextFunctions`), functions of their tokens. Everything else is refused, because a language model may have written it.

Shapes: B texts.
"""

import ast
import functools
import operator
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of

if TYPE_CHECKING:
  from inversionview_jax.tasks.text_functions import TextFunctions

_COMPARE = {
  ast.Eq: operator.eq,
  ast.NotEq: operator.ne,
  ast.Lt: operator.lt,
  ast.LtE: operator.le,
  ast.Gt: operator.gt,
  ast.GtE: operator.ge,
}
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod}
_LONGEST, _LARGEST = 300, 10**6  # characters of an expression; a number in it
_PRODUCTS = 2  # nested: features are small, and so are their products
# Name -> how it is written and what it gives.
FUNCTIONS = {
  "token": "token(S2) or token(3): the token at a position, to be compared with another or with a text in quotes",
  "contains": 'contains("John"): whether the text contains this',
  "count": 'count("a"): how often the text contains this',
  "regex": 'regex("[ab]+$"): whether this regular expression occurs in the text; a group is not repeated',
  "length": "length: the number of tokens, where no feature has this name; length() always",
}
_TRUTHS = ("contains", "regex")
_QUOTED = re.compile(r"""r?(?:"([^"\n]*)"|'([^'\n]*)')""")


def holds(text: str, features: Mapping[str, np.ndarray], count: int) -> np.ndarray:
  """bool[B]: the texts for which a condition holds; False for a text without a feature that it names. "" always holds.

  Args:
    text: such as ``A1 == 1 and F2 + S2 != 9``.
    features: what `Task.features` returns.
    count: B.

  Raises:
    InversionViewError: an unknown feature (lists the known ones), or an expression that is no condition.
  """
  if not text.strip():
    return np.ones(count, bool)
  values, known = _Parser(text, features, count).read(truth=True)
  return values & known


def expression(
  text: str, features: Mapping[str, np.ndarray], count: int, texts: "TextFunctions | None" = None
) -> tuple[np.ndarray, np.ndarray]:
  """The value of a condition, number or token, int64[B] (1 and 0 for a condition), and bool[B], whether a text has all that it names.

  Args:
    text: the expression.
    features: what `Task.features` returns.
    count: B.
    texts: the same texts for functions of tokens; None: features only.

  Raises:
    InversionViewError: as `holds` does.
  """
  values, known = _Parser(text, features, count, texts).read(truth=None)
  return values.astype(np.int64), known


def is_condition(text: str) -> bool:
  """Whether an expression is true or false of a text, rather than a number or a token; False for what is no expression."""
  try:
    return _logical(_parsed(text))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return False


def labels_in(text: str) -> tuple[str, ...]:
  """Labels of positions in an expression, such as ("S2", "S1") for ``token(S2) == token(S1)``; () for what is no expression."""
  try:
    calls = [n for n in ast.walk(_parsed(text)) if isinstance(n, ast.Call) and _called(n) == "token" and n.args]
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return ()
  named = [
    n.args[0].id if isinstance(n.args[0], ast.Name) else getattr(n.args[0], "value", None)  # a name, or in quotes
    for n in calls
  ]
  return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> ast.expr:
  """The syntax tree of an expression; raises what `ast.parse` does, ValueError for one that is too long."""
  if len(text) > _LONGEST:
    raise ValueError("too long")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "\d": texts in quotes are taken as they are written
    return ast.parse(text.strip(), mode="eval").body


def _called(node: ast.Call) -> str:
  return node.func.id if isinstance(node.func, ast.Name) else ""


def _logical(node: ast.AST) -> bool:
  return (
    isinstance(node, (ast.BoolOp, ast.Compare))
    or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
    or (isinstance(node, ast.Call) and _called(node) in _TRUTHS)
  )


class _Parser:
  """Evaluates an expression over features and texts; refuses what is not in the grammar."""

  def __init__(self, text: str, features: Mapping[str, np.ndarray], count: int, texts: "TextFunctions | None" = None):
    self._text, self._features, self._count, self._texts = text, features, count, texts
    self._known = np.ones(count, bool)

  def read(self, truth: bool | None) -> tuple[np.ndarray, np.ndarray]:
    if len(self._text) > _LONGEST:
      raise InversionViewError(f"condition {self._text[:40]!r}... is longer than {_LONGEST} characters")
    try:
      node = _parsed(self._text)
    except SyntaxError as error:
      self._refuse(column=(error.offset or 1) - 1)
    except (ValueError, RecursionError, MemoryError):
      self._refuse()
    if truth or _logical(node):
      values = self._truth(node)
    else:
      values = self._token(node) if isinstance(node, ast.Call) and _called(node) == "token" else self._number(node)
    return np.broadcast_to(np.asarray(values), self._count), self._known

  def _refuse(self, node: ast.AST | None = None, why: str = "", column: int | None = None) -> NoReturn:
    """Raises the refusal, with the place and what is known."""
    text, place = self._text.strip(), ""
    if node is not None:
      column = len(text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
    if column is not None:
      rest = text[column : column + 20]
      place = f" at character {column + 1} ({rest!r})" if rest else " at its end"
    single = re.search(r"[^=!<>]=[^=]", text) if column is not None else None
    why = why or ('write "==" to compare' if single else "")
    what = f"features are {', '.join(list(self._features)[:16])}" if self._features else "there are no features"
    what += ", ..." if len(self._features) > 16 else ""
    if self._texts is not None:
      labels = self._texts.labels
      what += f"; functions are {', '.join(FUNCTIONS)}; " + (
        f"positions {', '.join(labels)}" if labels else "positions 0, 1, ..."
      )
    raise InversionViewError(
      f"condition {self._text!r} is not understood{place}: {why + '; ' if why else ''}"
      f"write comparisons of features, such as A1 == 1 and F2 + S2 != 9; {what}"
    )

  def _number(self, node: ast.expr, products: int = 0) -> Any:
    match node:
      case ast.Name("length") if "length" not in self._features and self._texts is not None:
        return self._texts.length
      case ast.Name(name):
        if name not in self._features:
          raise one_of(
            f"feature in the condition {self._text!r}:", name, [*self._features, *(["length"] if self._texts else [])]
          )
        self._known = self._known & (self._features[name] >= 0)
        return self._features[name].astype(np.int64)
      case ast.Constant(int(value)) if not isinstance(value, bool) and abs(value) <= _LARGEST:
        return value
      case ast.UnaryOp(ast.USub(), ast.Constant(int(value))) if not isinstance(value, bool) and value <= _LARGEST:
        return -value
      case ast.Call() if _called(node) == "count":
        return self._functions(node).count(self._quoted(self._argument(node)))
      case ast.Call(args=[], keywords=[]) if _called(node) == "length":
        return self._functions(node).length
      case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
        if isinstance(op, ast.Mod) and not (isinstance(right, ast.Constant) and right.value):
          self._refuse(right, "a remainder is of a whole number above 0")
        if isinstance(op, ast.Mult):
          products += 1
        if products > _PRODUCTS:
          self._refuse(node, "too many products")
        return _ARITHMETIC[type(op)](self._number(left, products), self._number(right, products))
    self._refuse(node)

  def _truth(self, node: ast.expr) -> np.ndarray:
    match node:
      case ast.BoolOp(op, values):
        join = np.logical_and if isinstance(op, ast.And) else np.logical_or
        return join.reduce([np.broadcast_to(self._truth(value), self._count) for value in values])
      case ast.UnaryOp(ast.Not(), operand):
        return ~self._truth(operand)
      case ast.Call() if _called(node) == "contains":
        return self._functions(node).contains(self._quoted(self._argument(node)))
      case ast.Call() if _called(node) == "regex":
        return self._functions(node).regex(self._quoted(self._argument(node)))
      case ast.Compare(left, ops, comparators) if all(type(op) in _COMPARE for op in ops):
        parts = [left, *comparators]
        if any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts) or any(
          isinstance(part, ast.Call) and _called(part) == "token" for part in parts
        ):
          return self._same(node, parts, ops)
        sides = [self._number(side) for side in parts]
        each = [np.asarray(_COMPARE[type(op)](*sides[i : i + 2])) for i, op in enumerate(ops)]
        return np.broadcast_to(np.logical_and.reduce(each), self._count)
    self._refuse(node)

  def _same(self, node: ast.expr, parts: list, ops: list) -> np.ndarray:
    """Tokens, or a feature's value, compared with each other or with a text in quotes: == and != of two."""
    if len(parts) != 2 or not isinstance(ops[0], ast.Eq | ast.NotEq):
      self._refuse(node, "tokens and texts are compared by == or !=, two at a time")
    texts = self._functions(node)
    first, second = sorted(parts, key=lambda part: isinstance(part, ast.Constant))
    if isinstance(second, ast.Constant):
      word = self._quoted(second)
      if isinstance(first, ast.Name):
        equal = self._number(first) == texts.value_of(first.id, word)
      else:
        equal = np.isin(self._token(first), texts.ids_of(word))
    else:
      equal = self._token(first) == self._token(second)
    return np.broadcast_to(equal if isinstance(ops[0], ast.Eq) else ~equal, self._count)

  def _token(self, node: ast.expr) -> np.ndarray:
    """int64[B], the ids of token(POSITION)."""
    if not (isinstance(node, ast.Call) and _called(node) == "token"):
      self._refuse(node, "a token is token(POSITION)")
    texts = self._functions(node)
    match self._argument(node):
      case ast.Name(label):
        position: int | str = label
      case ast.Constant(str()) as quoted:
        position = self._quoted(quoted)
      case ast.Constant(int(index)) if not isinstance(index, bool) and index <= _LARGEST:
        position = index
      case ast.UnaryOp(ast.USub(), ast.Constant(int(index))) if not isinstance(index, bool) and index <= _LARGEST:
        position = -index
      case other:
        self._refuse(other, "a position is an index or a label")
    ids, there = texts.token(position)
    self._known = self._known & there
    return ids

  def _functions(self, node: ast.AST) -> "TextFunctions":
    if self._texts is None:
      self._refuse(node, "functions of tokens cannot be used here")
    return self._texts

  def _argument(self, node: ast.Call) -> ast.expr:
    if len(node.args) != 1 or node.keywords:
      self._refuse(node, f"{_called(node)} takes one argument")
    return node.args[0]

  def _quoted(self, node: ast.expr) -> str:
    """The text between quotes as it is written, without escapes, so that a regular expression needs none."""
    source = ast.get_source_segment(self._text.strip(), node) or ""
    if not (isinstance(node, ast.Constant) and (found := _QUOTED.fullmatch(source))):
      self._refuse(node, 'a text is written in quotes, such as "John"')
    word = found[1] if found[1] is not None else found[2]
    if not word:
      self._refuse(node, "the text is empty")
    return word
