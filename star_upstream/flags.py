"""A command's flags are the fields of a dataclass: names, types, defaults and help are stated once."""

from __future__ import annotations

import argparse
import math
import types
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .files import home
from .strict import SEEDS

Kind = TypeVar("Kind")


def path(text: str) -> Path:
    """A path as the shell would give it; an empty text is none, where Python takes it for the folder one works in."""
    return home(named(text))  # the shell leaves --out=~/results as it is


def named(text: str) -> str:
    """A name, as of a model or a folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty text, where something is to be named")
    return text


def count(text: str) -> int:
    """A whole number of 1 or more."""
    return int(_number(int, text, lambda value: value >= 1, "a whole number of 1 or more"))


def seed(text: str) -> int:
    """What every random generator takes."""
    return int(_number(int, text, lambda value: 0 <= value < SEEDS, f"a whole number from 0 to {SEEDS - 1}"))


def seconds(text: str) -> float:
    """A length."""
    return _number(float, text, lambda value: 0 < value < math.inf, "a number above 0")


def _number(kind: Callable[[str], float], text: str, fits: Callable[[float], bool], expected: str) -> float:
    try:
        if fits(value := kind(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")


def rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        expected = "expected learning rates with commas between, as in 1e-3,1e-2"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None


def flag(
    about: str, default: Any = MISSING, read: Callable[[str], Any] | None = None, metavar: str | None = None
) -> Any:
    """A field that is a flag. ``read`` makes its value of a word (default: the field's type)."""
    return field(default=default, metadata={"about": about, "read": read, "metavar": metavar})


def add(parser: argparse.ArgumentParser, kind: type, **words: str) -> None:
    """Give ``parser`` those fields of the dataclass ``kind`` that are flags; one without default is required.
    ``words``: for the help's braces."""
    hints = get_type_hints(kind)
    for one in (one for one in fields(kind) if one.metadata):
        hint = hints[one.name]
        if get_origin(hint) in (Union, types.UnionType):
            (hint,) = (part for part in get_args(hint) if part is not type(None))
        how: dict[str, Any] = {"help": one.metadata["about"].format(**words)}
        if hint is bool:
            how["action"] = "store_true"
        elif get_origin(hint) is Literal:
            how["choices"] = get_args(hint)
        elif hint == tuple[str, ...]:
            how["nargs"] = "+"
        else:
            how["type"] = one.metadata["read"] or (path if hint is Path else hint)
        if one.metadata["metavar"]:
            how["metavar"] = one.metadata["metavar"]
        if one.default is MISSING:
            how["required"] = True
        else:
            how["default"] = one.default
        parser.add_argument(f"--{one.name.replace('_', '-')}", **how)


def take(kind: type[Kind], arguments: argparse.Namespace, **others: Any) -> Kind:
    """The ``kind`` that ``arguments`` say; ``others``: fields that are no flags."""
    given = {one.name: getattr(arguments, one.name) for one in fields(kind) if one.metadata}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}, **others)
