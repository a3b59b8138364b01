"""Python lists written as strings (``'[(512, 10, 5)] + [(512, 3, 2)] * 4'``), as fairseq's configurations hold them.

They are parsed, never evaluated.
"""

from __future__ import annotations

import ast
from typing import Any

from ...errors import StarError

_LONGEST = 10_000
"""Characters of the text and elements of a repeated list; a real configuration stays far below."""


def parse(text: Any, where: str) -> Any:
    """The value of ``text``: lists, tuples, numbers, booleans, ``list + list``, ``list * number``. No string: as it is.

    Raises :class:`StarError`, naming ``where``, for anything else.
    """
    if not isinstance(text, str):
        return text
    try:
        if len(text) > _LONGEST:
            raise ValueError
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise StarError(
            f"{where}: expected a list of numbers such as '[(512, 10, 5)] + [(512, 3, 2)] * 4', got {shown!r}"
        ) from None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        return node.value
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _value(node.operand)
        if type(operand) in (int, float):
            return -operand
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add) and type(left) is type(right) is list:
            return left + right
        if isinstance(node.op, ast.Mult):
            items, times = (left, right) if isinstance(left, list) else (right, left)
            if type(items) is list and type(times) is int and 0 <= times * len(items) <= _LONGEST:
                return items * times
    raise ValueError
