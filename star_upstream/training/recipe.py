"""Recipes: trainings as yaml. Shipped ones are ``recipes/*.yaml``; nothing in a recipe is evaluated.

A recipe file may name another one as its ``base`` and then states only what differs: mappings are merged key by key,
any other value replaces the base's, and ``null`` takes a loss or a choice away.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import yaml

from .. import strict
from ..errors import StarError, nearest
from ..files import home
from .config import FOLDER, Recipe


class Kind(Protocol):
    """What a class of recipes says of itself beside its fields."""

    shipped: Path
    """The folder of those that ship."""
    folder_key: tuple[str, str]
    """How the folder of the data is given, and what that is short for."""

    @property
    def about(self) -> str: ...


R = TypeVar("R", bound=Kind)


def names(kind: type[Kind] = Recipe) -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in kind.shipped.glob("*.yaml"))


@overload
def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load(source: str | Path, overrides: Sequence[str], kind: type[R]) -> R: ...
def load(source: str | Path, overrides: Sequence[str] = (), kind: type[Any] = Recipe) -> Any:
    """The recipe of a shipped name or a yaml file, bases merged, with ``"section.key=value"`` overrides.

    A value whose field is text or a path is taken as it stands (:func:`.strict.from_text`), any other is read as yaml.
    Entries that are null in a table of names (``loss``, ``tasks``) are left out, and ``tasks=keyword`` or
    ``tasks=[a, b]`` keeps those alone. Raises :class:`StarError` for an unknown recipe, key or value.
    """
    where, values = _resolve(source, (), kind)
    chosen: dict[str, tuple[list[Any], str]] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        unknown = key.partition(".")[0] not in kind.__dataclass_fields__
        if not key or not equals or (unknown and home(override).exists()):
            place = home(override).exists() or re.match(r"[/~.]", override)
            example = f"{kind.folder_key[0]}={override}" if place else "training.updates=1000"
            raise StarError(f"{override!r}: an override is key=value, e.g. {example}")
        key = kind.folder_key[1] if key == kind.folder_key[0] else key
        value = _from_text(kind, key, text, override)
        if isinstance(value, (str, list)) and _is_table(kind, key):
            names_ = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
            chosen[key] = names_, override
        else:
            _set(values, key, value)
    for key, value in values.items():
        if isinstance(value, dict) and _is_table(kind, key):
            there = {name: entry for name, entry in value.items() if entry is not None}
            kept, override = chosen.get(key, (list(there), ""))
            if override and not (kept and all(name in list(there) for name in kept)):
                raise StarError(f"{override}: the recipe's {key} are {', '.join(there)}")
            values[key] = {name: entry for name, entry in there.items() if name in kept}
    data = values.get("data")
    for key in ("train", "valid"):
        if isinstance(data, dict) and isinstance(data.get(key), str):
            data[key] = [data[key]]
    try:
        return strict.build(kind, values)
    except StarError as error:
        raise StarError(f"{where}: {error}") from None


def _is_table(kind: type, key: str) -> bool:
    """Whether the field holds entries by name."""
    return typing.get_origin(strict.hint_of(kind, key)) is dict


def _from_text(kind: type, key: str, text: str, override: str) -> Any:
    hint = strict.hint_of(kind, key)
    if not text and hint is not str:
        raise StarError(f"{override!r}: no value after the equals sign")
    return strict.from_text(hint, text, lambda words: _parse(words, override))


def dump(recipe: Any) -> str:
    """The recipe as yaml, whole: no base, every default written out. :func:`load` reads it back to an equal recipe."""
    return yaml.dump(
        strict.plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )


def _resolve(source: str | Path, children: tuple[Path, ...], kind: type[Kind]) -> tuple[str, dict[str, Any]]:
    path = kind.shipped / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
        if not path.is_file():
            others = [file.parent for file in FOLDER.rglob("*.yaml") if file.stem == str(source)]
            if others:
                command = "distill" if others[0] == FOLDER else others[0].name
                raise StarError(f"{source}: is a recipe of star {command}")
            raise StarError(
                f"{source}: no such recipe or yaml file{nearest(str(source), names(kind))} (shipped: "
                f"{', '.join(names(kind))})"
            )
    path = path.resolve()
    if path in children:
        raise StarError(f"{path}: is its own base")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StarError(f"{path}: cannot be read ({error})") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise StarError(f"{path}: expected keys with values")
    base = values.pop("base", None)
    if base is not None:
        beside = path.parent / str(base)
        values = _merge(_resolve(beside if beside.is_file() else str(base), (*children, path), kind)[1], values)
    return str(source), values


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for i, section in enumerate(sections):
        found = values.get(section)
        if found is not None and not isinstance(found, dict):
            place = ".".join(sections[: i + 1])
            hint = f"; give student_changes.{last}" if place == "student" else ""
            raise StarError(f"{key}: cannot be set, since {place} is {found!r}{hint}")
        if found is None:
            values[section] = {}
        values = values[section]
    values[last] = value


class _Loader(yaml.SafeLoader):
    """yaml's safe loader, which also takes ``1e-3`` for the number that it is and refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """yaml's safe dumper, which quotes a text that :class:`_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise StarError(f"{where}: not yaml ({' '.join(str(error).split())})") from None
