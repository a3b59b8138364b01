"""What a command may write: nothing that it did not make is replaced, emptied or added to.

A folder to write is new, empty, or an earlier result of the same command: it holds the command's own files, or where
they come late its mark (``.made_by``, one line). A file to write is new, or an earlier result, told by its content. All
is checked before anything is computed. Only the standard library is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from .errors import StarError
from .files import home

MARK = ".made_by"
FILES = ".files"
"""In a folder that is made whole: the names of all its files, so that others among them are seen."""


def check_folder(path: str | Path, maker: str, made: Callable[[Path], bool] = lambda folder: False) -> Path:
    """``path``, where ``maker`` (a command) may write a folder; nothing is changed.

    ``made``: whether a folder without the mark is the command's own all the same. Raises :class:`StarError` for a file,
    for a folder that holds anything else, for the folder that one works in and those above it, and where no folder can
    be made.
    """
    path = home(path)
    whole = path.resolve()
    here = Path.cwd()
    if whole == here or whole in here.parents:
        raise StarError(f"{path}: is the folder that you work in, or one above it; name a new folder")
    if path.exists() and not path.is_dir():
        raise StarError(f"{path}: is a file, where {maker} writes a folder; choose another name")
    _writable(path, whole)
    if not path.is_dir():
        return path
    mark = read_mark(path)
    if mark == maker:
        return path
    if mark is not None:
        raise StarError(f"{path}: was made by {mark}, not by {maker}; choose another folder")
    inside = sorted(entry.name for entry in path.iterdir())
    if inside and not made(path):
        raise StarError(
            f"{path}: is not empty and was not made by {maker} (it holds {_some(inside)}); choose another folder"
        )
    return path


def claim_folder(path: str | Path, maker: str, made: Callable[[Path], bool] = lambda folder: False) -> Path:
    """The same; the folder is made, and marked where it is empty."""
    path = check_folder(path, maker, made)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not any(path.iterdir()):
            (path / MARK).write_text(f"{maker}\n", encoding="utf-8")
    except OSError as error:
        raise StarError(f"{path}: cannot be written ({error.strerror})") from None
    return path


def check_file(path: str | Path, maker: str, made: Callable[[Path], bool]) -> Path:
    """``path``, where ``maker`` may write a file: a new one, or one that ``made`` knows for an earlier result. Raises
    :class:`StarError`."""
    path = home(path)
    if path.is_dir():
        raise StarError(f"{path}: is a folder, where {maker} writes a file; name a file in it")
    _writable(path, path.resolve())
    if path.exists() and not (path.is_file() and made(path)):
        raise StarError(f"{path}: is there and was not made by {maker}; choose another name, or move it away")
    return path


def begins_with(text: str) -> Callable[[Path], bool]:
    """A test for :func:`check_file`: whether a file begins with ``text``."""
    start = text.encode()

    def made(path: Path) -> bool:
        with open(path, "rb") as file:
            return file.read(len(start)) == start

    return made


def holds(name: str, *keys: str) -> Callable[[Path], bool]:
    """A test for :func:`check_folder`: whether a folder holds a json file of that name with these keys."""

    def made(folder: Path) -> bool:
        try:
            return set(keys) <= json.loads((folder / name).read_text(encoding="utf-8")).keys()
        except (OSError, ValueError, AttributeError):
            return False

    return made


def read_mark(folder: Path) -> str | None:
    """The command that made ``folder``, if it says so."""
    try:
        return (folder / MARK).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def list_files(folder: Path) -> None:
    """Write :data:`FILES` into a folder that is whole."""
    (folder / FILES).write_text(
        "".join(f"{name}\n" for name in walk(folder)), encoding="utf-8", errors="surrogateescape"
    )


def strangers(folder: Path) -> list[str]:
    """Files below ``folder`` that :data:`FILES` does not name; all of them where there is no such list."""
    try:
        own = (folder / FILES).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        own = []
    return [name for name in walk(folder) if name not in {*own, FILES}]


def walk(folder: Path) -> list[str]:
    """Names of all files below ``folder``."""
    return sorted(
        os.path.relpath(os.path.join(base, name), folder) for base, _, names in os.walk(folder) for name in names
    )


def _writable(path: Path, whole: Path) -> None:
    for above in (path, *path.parents):
        if above.is_symlink() and not above.exists():
            raise StarError(f"{path}: {above} is a link to {above.readlink()}, which is not there; name another place")
    above = next(folder for folder in (whole, *whole.parents) if folder.exists())
    if above != whole and not above.is_dir():
        raise StarError(f"{path}: cannot be written, since {above} is a file; choose another name")
    if above.is_dir() and not os.access(above, os.W_OK | os.X_OK):
        raise StarError(f"{path}: cannot be written (no permission in {above}); choose another place")


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
