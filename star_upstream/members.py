"""Audio that is no file of its own: a member of a tar shard, or a row of a parquet or arrow table; on a disk or at any
address that fsspec knows (``s3://``, ``gs://``, ``https://``, ``simplecache::s3://`` ...).

A member's path says where its bytes are, so that whoever has the path needs no index:

- ``FILE.tar/NAME:OFFSET:SIZE``, bytes (``FILE.tar:OFFSET:SIZE``, as fairseq writes it for stored zips, is read too)
- ``FILE.parquet/NAME:GROUP:ROW``, ``FILE.arrow/NAME:BATCH:ROW``
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, TypeVar

from . import extras
from .errors import StarError, first_line

ENDINGS = (".tar", ".parquet", ".arrow")
TRIES = 4
"""How often an address is asked before it counts as unreachable; 1, 2 and 4 s lie between."""
T = TypeVar("T")
_MEMBER = re.compile(r"(.+?\.(?:tar|parquet|arrow))(?:/.*)?:(\d+):(\d+)", re.DOTALL)


class Unreachable(StarError):
    """What is at an address could not be fetched: no fault of the audio."""


class Member(NamedTuple):
    """Where a member is: offset and size in a tar file, group of rows and row in a table."""

    file: str
    first: int
    second: int


def split(path: str | os.PathLike) -> Member | None:
    """The place that a member's path names; None for any other path."""
    found = _MEMBER.fullmatch(os.fspath(path))
    return Member(found[1], int(found[2]), int(found[3])) if found else None


def join(file: str, name: str, first: int, second: int) -> str:
    """The path of a member. ``name`` is for people alone."""
    return f"{file}/{name}:{first}:{second}" if name else f"{file}:{first}:{second}"


def is_address(path: str | os.PathLike) -> bool:
    """Whether ``path`` is for fsspec."""
    return bool(re.match(r"[a-z][a-z0-9+.-]*(://|::)", os.fspath(path)))


def container(path: str | os.PathLike) -> str:
    """The file that holds a member; of any other path, the path."""
    found = split(path)
    return found.file if found else os.fspath(path)


def content(path: str | os.PathLike) -> bytes | None:
    """The bytes of a member; None where ``path`` names a file of its own. Raises :class:`OSError`, and
    :class:`Unreachable` for an address that does not answer."""
    found = split(path)
    if found is None:
        return None
    if not found.file.endswith(".tar"):
        return _cell(found)
    if is_address(found.file):
        return _fetched(found)
    with open(found.file, "rb") as stream:
        stream.seek(found.first)
        return stream.read(found.second)


def filesystem(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. Raises :class:`StarError` where what speaks its protocol
    is not installed."""
    extras.need("shards", "fsspec")
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise StarError(f"{address}: {' '.join(str(error).split())}") from None


def ask(address: str, question: Callable[[Any, str], T], tries: int = 1) -> T:
    """``question(file system, path)`` of an address. Raises :class:`StarError` where nothing is there, and
    :class:`Unreachable` where it does not answer, ``tries`` times."""
    system, path = filesystem(address)
    for attempt in range(tries):
        try:
            return question(system, path)
        except FileNotFoundError:
            raise StarError(f"{address}: no such file") from None
        except Exception as error:  # each file system has errors of its own
            if attempt == tries - 1:
                raise Unreachable(f"{address}: {first_line(error)}{f', {tries} times' if tries > 1 else ''}") from None
        time.sleep(2.0**attempt)
    raise ValueError(f"tries must be 1 or more, got {tries}")


def open_file(file: str) -> BinaryIO:
    """A container, to be read from any place."""
    return ask(file, lambda system, path: system.open(path, "rb")) if is_address(file) else open(file, "rb")


def _fetched(member: Member) -> bytes:
    file, first, size = member

    def get(system: Any, path: str) -> bytes:
        if "::" not in file:
            return system.cat_file(path, start=first, end=first + size)
        with system.open(path, "rb") as stream:  # a cache keeps what is opened
            stream.seek(first)
            return stream.read(size)

    return ask(file, get, TRIES)


# tables, as Hugging Face's datasets writes them


def audio_column(schema: Any) -> tuple[str, bool]:
    """The column of a pyarrow ``schema`` that holds audio, and whether it is a struct of ``bytes`` and ``path``, not
    plain bytes: ``audio``, else the only such struct. An empty name where there is none."""
    import pyarrow as pa

    structs = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    if "audio" in structs or len(structs) == 1:
        return ("audio" if "audio" in structs else structs[0]), True
    if not structs and (at := schema.get_field_index("audio")) >= 0:
        kind = schema.field(at).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return "audio", False
    return "", False


class Table:
    """A parquet file, or an arrow file of datasets' ``save_to_disk``. Raises :class:`StarError` where it is none."""

    def __init__(self, file: str):
        extras.need("shards", "pyarrow")
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._batches = None
        self._parquet: Any = None
        try:
            if file.endswith(".parquet"):
                self._parquet = pq.ParquetFile(open_file(file) if is_address(file) else file)
                schema, self.groups = self._parquet.schema_arrow, self._parquet.num_row_groups
            else:
                if is_address(file):
                    raise StarError(f"{file}: an arrow file is read from a disk alone; copy it, or write it as parquet")
                self._batches = _record_batches(pa.memory_map(file))
                schema, self.groups = self._batches[0], len(self._batches[1])
        except pa.ArrowInvalid as error:
            raise StarError(f"{file}: no table ({first_line(error)})") from None
        self.column, self.struct = audio_column(schema)

    def rows(self, group: int) -> Any:
        """The audio of a group of rows, as a pyarrow array."""
        if self._batches is not None:
            return self._batches[1][group].column(self.column)
        table = self._parquet.read_row_group(group, columns=[self.column], use_threads=False)
        return table.column(self.column).combine_chunks()

    def cell(self, rows: Any, row: int) -> tuple[bytes | None, str]:
        """Bytes, and the path beside them, of a row of :meth:`rows`."""
        value = rows[row].as_py()
        if not self.struct:
            return value, ""
        return (None, "") if value is None else (value["bytes"], value.get("path") or "")


def _record_batches(source: Any) -> tuple[Any, list[Any]]:
    """Schema and batches of a mapped arrow file, in either of its forms; nothing is read."""
    import pyarrow as pa

    try:
        reader = pa.ipc.open_stream(source)
        return reader.schema, list(reader)
    except pa.ArrowInvalid:
        source.seek(0)
        with pa.ipc.open_file(source) as reader:
            return reader.schema, [reader.get_batch(i) for i in range(reader.num_record_batches)]


@functools.lru_cache(maxsize=64)
def _table(file: str, process: int) -> Table:
    """Of each ``process`` its own: a fork would share what is open."""
    return Table(file)


@functools.lru_cache(maxsize=2)
def _rows(file: str, group: int, process: int) -> Any:
    return _table(file, process).rows(group)


def _cell(member: Member) -> bytes:
    try:
        data, _ = _table(member.file, os.getpid()).cell(_rows(member.file, member.first, os.getpid()), member.second)
    except (IndexError, ValueError) as error:
        raise OSError(f"no row {member.second} in group {member.first} ({first_line(error)})") from None
    return data or b""
