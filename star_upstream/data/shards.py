"""Shards to members: tar files as WebDataset and lhotse's Shar write them, parquet and arrow tables as Hugging Face's
datasets does.

Every member's place and header is read once and kept in the cache, a file a shard (``shards/`` in
:func:`.environment.cache_home`). A shard's members are then clips like any files: random access keeps batches by length
exact, and the same after a resume, which a stream through a shuffle buffer is not.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import io
import json
import os
import re
import tarfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, NamedTuple

from .. import audio, members
from ..environment import cache_home
from ..errors import StarError, first_line
from ..files import replacing
from ..say import progress, say
from .headers import THREADS


class Found(NamedTuple):
    """A member with audio: its path, and its header or why it has none. ``path`` may be a file that a table names."""

    path: str
    header: audio.Header | str


def is_shard(name: str) -> bool:
    """By its name; datasets' ``cache-*.arrow`` are what was computed from others."""
    return name.endswith(members.ENDINGS) and not os.path.basename(name).startswith(("cache-", "."))


def expand(source: str) -> list[str] | None:
    """The shards that an address, or a pattern (``*``, ``?``, ``[...]``, and WebDataset's ``{000..099}`` and
    ``{a,b}``), stands for, sorted; None where ``source`` is a path as any other.

    Raises :class:`StarError` where there is none.
    """
    address = members.is_address(source)
    if not address and (os.path.exists(source) or not re.search(r"[*?\[{]", source)):
        if re.search(r"\.(tar\.(gz|xz|bz2|zst)|tgz)$", source.lower()):
            raise StarError(
                f"{source}: compressed as a whole, so that no member can be read alone; unpack it to a .tar"
            )
        return None
    found: list[str] = []
    for one in _braces(source):
        if not address:
            one = os.path.abspath(os.path.expanduser(one))
            found += sorted(glob.glob(one, recursive=True)) if re.search(r"[*?\[]", one) else [one]
            continue
        found += sorted(members.ask(one, functools.partial(_listed, one)))
    if not (shards := [file for file in found if is_shard(file)]):
        others = f" ({len(found)} other files)" if found else ""
        if not found and not is_shard(source):
            raise StarError(f"{source}: matches nothing")
        raise StarError(f"{source}: no shard there (looked for {', '.join(members.ENDINGS)}){others}")
    return shards


def _listed(address: str, system: Any, path: str) -> list[str]:
    if re.search(r"[*?\[]", path):
        names = system.glob(path)
    elif is_shard(address):
        return [address]
    else:
        names = system.find(path)
    chain = address.rpartition("::")
    return [chain[0] + chain[1] + system.unstrip_protocol(name) for name in names]


def _braces(text: str) -> Iterator[str]:
    """``a-{00..02}`` as a-00, a-01, a-02; ``{a,b}`` as a, b."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if not found:
        yield text
        return
    first, last, words = found.groups()
    texts = words.split(",") if words else [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    for one in texts:
        yield from _braces(text[: found.start()] + one + text[found.end() :])


def read(files: Sequence[str], shown: bool) -> Iterator[tuple[str, list[Found]]]:
    """Each shard with its audio, in order, from the cache where the shard has not changed; few are read ahead of what
    is asked for. Raises :class:`StarError` for what is no shard."""
    with ThreadPoolExecutor(THREADS) as pool:
        running = deque(pool.submit(_read, file) for file in files[: 2 * THREADS])
        for i, file in enumerate(files, 1):
            found = running.popleft().result()
            running.extend(pool.submit(_read, later) for later in files[i + 2 * THREADS - 1 : i + 2 * THREADS])
            if shown and (i % 100 == 0 or i == len(files)):
                progress(f"shards read: {i} of {len(files)}", last=i == len(files))
            yield file, found


def _read(file: str) -> list[Found]:
    cache = cache_home() / "shards" / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:20]}.json"
    stamp = _stamp(file)
    try:
        kept = json.loads(cache.read_text(encoding="utf-8"))
        if kept["stamp"] == stamp:
            return [Found(p, h if isinstance(h, str) else audio.Header(*h)) for p, h in kept["members"]]
    except (OSError, ValueError, TypeError, KeyError):
        pass
    found = list(_members(file) if file.endswith(".tar") else _rows(file))
    try:
        with replacing(cache) as part:
            part.write_text(json.dumps({"shard": file, "stamp": stamp, "members": found}), encoding="utf-8")
    except (OSError, StarError) as error:  # a home folder that is full, or not there
        say(f"star: {file} is read anew the next time ({first_line(error)})")
    return found


def _stamp(file: str) -> list:
    """What changes with the shard."""
    if not members.is_address(file):
        try:
            status = os.stat(file)
        except OSError as error:
            raise StarError(f"{file}: cannot be read ({error.strerror})") from None
        return [status.st_size, status.st_mtime_ns]
    info = members.ask(file, lambda system, path: system.info(path))
    return [info.get("size"), *(str(info[key]) for key in ("ETag", "etag", "md5Hash", "mtime") if info.get(key))]


def _members(file: str) -> Iterator[Found]:
    with members.open_file(file) as stream:
        total = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > total:
                        raise StarError(f"{file}: cut short in {member.name}; copy it again")
                    name = os.path.basename(member.name)
                    if member.isreg() and not name.startswith(".") and name.lower().endswith(audio.EXTENSIONS):
                        path = members.join(file, member.name, member.offset_data, member.size)
                        if member.issparse():
                            yield Found(path, "a sparse member")
                        else:
                            yield Found(path, _header(path, tar.extractfile(member)))
        except tarfile.ReadError as error:
            raise StarError(f"{file}: no tar file, or cut short ({error}); copy it again") from None


def _rows(file: str) -> Iterator[Found]:
    table = members.Table(file)
    if not table.column:
        return
    for group in range(table.groups):
        rows = table.rows(group)
        for row in range(len(rows)):
            data, name = table.cell(rows, row)
            path = members.join(file, os.path.basename(name), group, row)
            if data:
                yield Found(path, _header(path, io.BytesIO(data)))
            elif name and os.path.isfile(there := os.path.join(os.path.dirname(file), name)):
                yield Found(there, _header(there, None))
            else:
                yield Found(path, f"no bytes, and no file {name} beside the table" if name else "no audio in this row")


def _header(path: str, stream: IO[bytes] | None) -> audio.Header | str:
    try:
        return audio.header(path, stream)
    except StarError as error:
        return str(error).removeprefix(f"{path}: ")
