"""Dataclasses from untrusted mappings: an unknown key, a wrong type or an impossible value is an error that names the
key.

Every configuration of the package (encoder, recipe, task) is read through :func:`build`, and written through
:func:`plain`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, Union, cast

from .errors import StarError, nearest

T = TypeVar("T")
SEEDS = 2**32
"""Below it seeds are taken by every random generator."""


def build(cls: type[T], values: Any, where: str = "") -> T:
    """A ``cls`` (a dataclass) from a mapping of plain values.

    ``where`` is the dotted place of the mapping in its file, for messages. Lists become tuples where the field is a
    tuple, whole numbers become floats where it is a float, nested mappings become nested dataclasses; nothing else is
    converted.

    Raises :class:`StarError` for a mapping that is none, an unknown or missing key, or a value of another type.
    """
    if not isinstance(values, typing.Mapping):
        raise StarError(f"{where or cls.__name__}: expected keys with values, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for key in values:
        if key not in fields:
            raise StarError(
                f"{_at(where, key)}: unknown key{nearest(key, fields)} (allowed: {', '.join(sorted(fields))})"
            )
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise StarError(f"{_at(where, name)}: missing")
    kwargs = {key: _convert(hints[key], value, _at(where, key)) for key, value in values.items()}
    try:
        return cls(**kwargs)
    except StarError as error:
        raise StarError(f"{where}.{error}" if where else str(error)) from None


def hint_of(cls: type, key: str) -> Any:
    """The declared type of the field with the dotted name ``key`` below ``cls``; :data:`~typing.Any` where there is
    none."""
    hint: Any = cls
    for name in key.split("."):
        options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
        nested = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if nested is not None:
            hint = typing.get_type_hints(nested).get(name, Any)
        elif typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
        else:
            return Any
    return hint


def from_text(hint: Any, text: str, read: Callable[[str], Any]) -> Any:
    """What ``text``, as a command line has it, means for a field of type ``hint``.

    Where the field is text it is taken as it stands, whatever it looks like; where it is a list of texts, too, unless
    it is written in brackets and no file of that name is there: ``[a, b]``, with quotes around what holds a comma.
    ``read`` (yaml) says what anything else means.
    """
    origin = typing.get_origin(hint)
    options = typing.get_args(hint) if origin in (Union, types.UnionType) else (hint,)
    literals = [
        value for option in options if typing.get_origin(option) is Literal for value in typing.get_args(option)
    ]
    if str in options or text in literals:
        return text
    if any(typing.get_origin(option) is tuple and typing.get_args(option)[0] is str for option in options):
        if text.startswith("[") and text.endswith("]") and not os.path.exists(text):
            found = re.findall(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,]*?)\s*(?:,|$)""", text[1:-1].strip() + ",")
            words = [word for word in found if word]
            return [read(word) if word[0] in "\"'" else word for word in words]
        return [text]
    value = read(text)
    return text if hint is Any and isinstance(value, str) and text[0] not in "\"'" else value


def plain(value: Any) -> Any:
    """The value as mappings, lists and scalars that json and yaml can hold; the inverse of :func:`build`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, typing.Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value


def within(config: Any, limits: str, *names: str) -> None:
    """Raises :class:`StarError` for a field of ``names`` that lies outside of ``limits``, an interval such as
    ``[0, 1)`` or ``(0, inf)``; of a list, each entry counts, and None is no value."""
    low, high = (float(part) for part in limits[1:-1].split(","))
    least = f"above {low:g}" if limits[0] == "(" else f"at least {low:g}" if high < math.inf else f"{low:g} or more"
    most = "" if high == math.inf else f" and below {high:g}" if limits[-1] == ")" else f" and at most {high:g}"
    for name in names:
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            above = one > low if limits[0] == "(" else one >= low
            if not (above and (one < high if limits[-1] == ")" else one <= high)):
                shown = list(value) if isinstance(value, tuple) else value
                raise StarError(f"{name}: must be {least}{most}, got {shown}")


def lengths(config: Any) -> dict[str, float]:
    """The one of ``epochs``, ``updates`` and ``minutes`` that is set. Raises :class:`StarError` for none or several."""
    found = {n: getattr(config, n) for n in ("epochs", "updates", "minutes") if getattr(config, n) is not None}
    if len(found) != 1:
        raise StarError(f"epochs, updates, minutes: set exactly one and the others to null, got {found or 'none'}")
    within(config, "(0, inf)", *found)
    return found


def _at(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return " or ".join(repr(a) for a in typing.get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in typing.get_args(hint))
    if origin is tuple:
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list of {_describe(args[0])}"
        return "[" + ", ".join(_describe(a) for a in args) + "]"
    if hint is type(None):
        return "null"
    return getattr(hint, "__name__", str(hint))


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        nested = [a for a in args if isinstance(a, type) and dataclasses.is_dataclass(a)]
        if isinstance(value, typing.Mapping) and len(nested) == 1:
            return build(nested[0], value, where)
        lists = [a for a in args if typing.get_origin(a) is tuple]
        if isinstance(value, (list, tuple)) and len(lists) == 1:
            return _convert(lists[0], value, where)  # its error names the entry
        for option in args:
            try:
                return _convert(option, value, where)
            except StarError:
                continue
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    elif origin is Literal:
        for option in args:
            if value == option and type(value) is type(option):
                return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) == len(args):
            return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value)))
    elif origin is dict and isinstance(value, typing.Mapping):
        return {_convert(args[0], k, where): _convert(args[1], v, _at(where, k)) for k, v in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif (hint is int and isinstance(value, int) and not isinstance(value, bool)) or (
        hint in (bool, str) and isinstance(value, hint)
    ):
        return value
    elif hint is type(None) and value is None:
        return None
    raise StarError(f"{where}: expected {_describe(hint)}, got {value!r}")


def difference(there: Any, here: Any, free: Sequence[str] = ()) -> str:
    """The first value in which two configurations differ, as a phrase; empty when they are equal but for the keys in
    ``free``."""
    before, now = _flat(plain(there)), _flat(plain(here))
    for key in {**before, **now}:
        if key not in free and before.get(key) != now.get(key):
            return f"{key} is {before.get(key)!r} there and {now.get(key)!r} here"
    return ""


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix[:-1]: values}
    return {name: value for key, child in values.items() for name, value in _flat(child, f"{prefix}{key}.").items()}
