"""Expressions over features, such as ``F1 + S1 >= 10`` or ``(F2 + S2) % 10``; parsed, never evaluated as code.

Comparisons joined by and, or, not; sums, differences, products and remainders of features and whole numbers. Everything else is refused,
because a language model may have written it.

Shapes: B texts.
"""

import ast
import operator
from collections.abc import Mapping

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of

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


def expression(text: str, features: Mapping[str, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
  """The value of a condition or number, int64[B] (1 and 0 for a condition), and bool[B], whether a text has all features that it names.

  Raises:
    InversionViewError: as `holds` does.
  """
  values, known = _Parser(text, features, count).read(truth=None)
  return values.astype(np.int64), known


class _Parser:
  """Evaluates an expression over features; refuses what is not in the grammar."""

  def __init__(self, text: str, features: Mapping[str, np.ndarray], count: int):
    self._text, self._features, self._count = text, features, count
    self._known = np.ones(count, bool)

  def read(self, truth: bool | None):
    if len(self._text) > _LONGEST:
      raise InversionViewError(f"condition {self._text[:40]!r}... is longer than {_LONGEST} characters")
    try:
      node = ast.parse(self._text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
      self._refuse()
    logical = isinstance(node, (ast.BoolOp, ast.Compare)) or (
      isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )
    values = self._truth(node) if truth or logical else self._number(node)
    return np.broadcast_to(np.asarray(values), self._count), self._known

  def _refuse(self):
    raise InversionViewError(
      f"condition {self._text!r} is not understood; write comparisons of features, such as A1 == 1 and F2 + S2 != 9"
    )

  def _number(self, node, products: int = 0):
    match node:
      case ast.Name(name):
        if name not in self._features:
          raise one_of(f"feature in the condition {self._text!r}:", name, self._features)
        self._known = self._known & (self._features[name] >= 0)
        return self._features[name].astype(np.int64)
      case ast.Constant(int(value)) if not isinstance(value, bool) and abs(value) <= _LARGEST:
        return value
      case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC:
        if isinstance(op, ast.Mod) and not (isinstance(right, ast.Constant) and right.value):
          return self._refuse()
        if isinstance(op, ast.Mult):
          products += 1
        if products > _PRODUCTS:
          return self._refuse()
        return _ARITHMETIC[type(op)](self._number(left, products), self._number(right, products))
    return self._refuse()

  def _truth(self, node):
    match node:
      case ast.BoolOp(op, values):
        join = np.logical_and if isinstance(op, ast.And) else np.logical_or
        return join.reduce([np.broadcast_to(self._truth(value), self._count) for value in values])
      case ast.UnaryOp(ast.Not(), operand):
        return ~self._truth(operand)
      case ast.Compare(left, ops, comparators) if all(type(op) in _COMPARE for op in ops):
        sides = [self._number(side) for side in (left, *comparators)]
        each = [np.asarray(_COMPARE[type(op)](*sides[i : i + 2])) for i, op in enumerate(ops)]
        return np.broadcast_to(np.logical_and.reduce(each), self._count)
    return self._refuse()
