"""Lists of audio files as this field's tools write them, told apart by their content.

- a table with a header line, tab or comma between: ``path`` (or ``wav``, ``audio_filepath``, ``file_name`` ...), and if
  it likes ``samples`` and ``start`` (at 16 kHz), ``duration`` and ``offset`` (seconds), or SpeechBrain's ``start`` and
  ``stop``
- fairseq's tsv: the root folder alone on the first line, then ``<path><tab><frames>``
- a path a line, or Kaldi's ``wav.scp`` (a name before each path)
- json: an object a line (NeMo's ``audio_filepath``, ``duration``, ``offset``; lhotse's recordings and cuts), one list
  of such objects, or SpeechBrain's object of objects

Each is UTF-8, with or without a byte-order mark, and may be compressed by gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .. import audio
from ..errors import StarError
from ..files import home, pointer

KNOWN = (
    "a table with a column path, fairseq's tsv, a path a line, wav.scp, SpeechBrain's csv or json, "
    "NeMo's or lhotse's jsonl"
)
PATHS = (
    "path", "wav", "audio_filepath", "audio_path", "audio_file", "audio", "file", "file_name", "filename",
    "file_path", "filepath", "wav_path", "wav_filename",
)  # fmt: skip
OWN_RATE = ("num_samples", "n_samples", "num_frames", "n_frames", "frames")
SECONDS = ("duration", "seconds")

Unit = Literal["16 kHz", "own rate", "seconds"]


class Entry(NamedTuple):
    """One line of a list: the path as it is written, and which part of the file is meant."""

    place: str
    path: str
    start: float = 0.0
    length: float | None = None
    """None: to the end of the file."""
    unit: Unit = "seconds"
    """What ``start`` and ``length`` count: samples at 16 kHz, samples at the file's own rate, or seconds."""
    fault: str | None = None
    """Why this line names no audio that can be read."""


def read(path: Path) -> tuple[Iterator[Entry], Path | None]:
    """The entries, read line by line as they are asked for (a json file that is one value is read whole), and the
    folder that the paths are below where the list says one. Raises :class:`StarError` for what is no list, entries
    that cannot be read among them."""
    if said := pointer(path):
        raise StarError(f"{path}: {said}")
    lines = _lines(path)
    some = list(islice(lines, 100))
    lines = chain(some, lines)
    if not some:
        raise StarError(f"{path}: is empty; expected {KNOWN}")
    first, second = some[0][1], some[1][1] if len(some) > 1 else ""
    if "\t" not in first and re.fullmatch(r"[^\t]+\t\d+\s*", second):
        named = home(first.strip())
        root = next((folder for folder in (named, path.parent / named) if folder.is_dir()), None)
        if root is None:
            raise StarError(
                f"{path}, line 1: the root folder {first.strip()} is not there; write where the audio is now"
            )
        return _fairseq(path, islice(lines, 1, None)), root
    if first.lstrip()[0] in "{[" and not first.rstrip().lower().endswith(audio.EXTENSIONS):
        return (_object(value, f"{path}, {place}") for place, value in _objects(path, lines)), None
    if _is_header(first.split("\t")):
        return _table(path, ((number, line.split("\t")) for number, line in lines)), None
    if _is_header(next(csv.reader([first]))):
        return _table(path, _csv(lines)), None
    return _paths(path, some, lines), None


def folders(path: Path, root: Path | None = None) -> list[str]:
    """What a list's paths may be below: the root it names; or its own folder, the one above, the working folder."""
    home = path.absolute().parent
    return [os.fspath(folder) for folder in ((root,) if root else (home, home.parent, Path.cwd()))]


def places(name: str, folders: Sequence[str]) -> Iterator[str]:
    """Where a list's path may be, each of ``folders`` given."""
    if name[:1] in "${":  # SpeechBrain's $data_root and {data_root}, replaced when it loads
        name = re.sub(r"^(\$\{?\w+\}?|\{\w+\})/", "", name)
    name = os.path.expanduser(name)
    return iter((name,)) if name[:1] == "/" else (f"{folder}/{name}" for folder in folders)


def cell(text: str) -> str:
    """``text`` for a tab-separated line: as it is, or in json's quotes where a line could not hold it."""
    return json.dumps(text) if text[:1] == '"' or re.search("[\t\n\r\ud800-\udfff]", text) else text


def uncell(text: str) -> str:
    """What :func:`cell` was given; quotes as spreadsheets write them are taken off, too."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text[1:-1].replace('""', '"')


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that hold something, with their numbers."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig", newline="\n"), 1):
                if "\0" in line:
                    raise UnicodeError
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeError:
        raise StarError(f"{path}: no audio and no UTF-8 text; expected {KNOWN}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise StarError(f"{path}: cannot be read ({str(error) or type(error).__name__})") from None


def _csv(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    at = 0

    def texts() -> Iterator[str]:
        nonlocal at
        for at, line in lines:  # noqa: B007 the line that the reader is at
            yield f"{line}\n"

    for row in csv.reader(texts(), skipinitialspace=True):  # SpeechBrain's own files have a space after each comma
        yield at, row


def _is_header(fields: list[str]) -> bool:
    return any(uncell(field.strip()).lower() in PATHS for field in fields)


def _table(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[Entry]:
    names = [uncell(name.strip()).lower() for name in next(rows)[1]]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise StarError(f"{path}: two columns are named {twice!r}; leave one of them")
    if "length" in names and not {"samples", *OWN_RATE, *SECONDS} & set(names):
        raise StarError(f"{path}: column 'length' has no unit; name it samples (at 16 kHz) or duration (seconds)")
    for number, fields in rows:
        place = f"{path}, line {number}"
        if len(fields) > len(names):
            raise StarError(f"{place}: {len(fields)} fields, but the header line names {len(names)}")
        yield _entry(dict(zip(names, fields)), place)


def _fairseq(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Entry]:
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != 2:
            raise StarError(f"{path}, line {number}: expected '<path><tab><frames>', got {line!r}")
        frames = _number(fields[1], f"{path}, line {number}: frames", whole=True)
        yield Entry(f"{path}, line {number}", fields[0], length=frames, unit="own rate")


def _paths(path: Path, first: list[tuple[int, str]], lines: Iterable[tuple[int, str]]) -> Iterator[Entry]:
    """``first``: lines by which a path a line is told from wav.scp."""
    below = folders(path)

    def there(name: str) -> bool:
        return any(os.path.isfile(place) for place in places(name, below))

    some = [line.strip() for _, line in first]
    named = [line.split(None, 1)[-1] for line in some]
    scp = sum(map(there, named)) > sum(map(there, some))
    looks = any(name.lower().endswith(audio.EXTENSIONS) for name in some)
    if not scp and not looks and not any(map(there, some)):
        raise StarError(
            f"{path}: no list of audio that is known here; expected {KNOWN}; its first line is {some[0][:80]!r}"
        )
    for number, line in lines:
        name = line.split(None, 1)[-1].strip() if scp else line.strip()
        fault = "a command, which is not run; write its audio to a file" if scp and name.endswith("|") else None
        yield Entry(f"{path}, line {number}", uncell(name), fault=fault)


def _objects(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a json or jsonl file and where each is."""
    number, line = next(lines)
    second = None
    try:
        first, place = json.loads(line), f"line {number}"
        second = next(lines, None)
    except ValueError as error:
        try:
            first, place = json.loads("\n".join([line, *(text for _, text in lines)])), ""
        except ValueError:
            raise StarError(f"{path}, line {number}: not json ({error})") from None
    found: Iterable[tuple[str, Any]] = [(place, first)]
    if second:
        found = chain(found, _values(path, chain([second], lines)))
    elif isinstance(first, list):
        found = ((f"item {i}", value) for i, value in enumerate(first, 1))
    elif isinstance(first, dict) and first and all(isinstance(value, dict) for value in first.values()):
        found = ((repr(name), value) for name, value in first.items())
    for place, value in found:
        if not isinstance(value, dict):
            raise StarError(f"{path}, {place}: expected an object with a path, got {str(value)[:60]!r}")
        yield place, value


def _values(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[str, Any]]:
    for number, line in lines:
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise StarError(f"{path}, line {number}: not json ({error})") from None


def _object(value: Mapping[str, Any], place: str) -> Entry:
    if "tracks" in value:
        return Entry(place, str(value.get("id", "")), fault="a mix of several cuts; write it to a file")
    if isinstance(value.get("recording"), dict):  # a cut
        whole = _recording(value["recording"], place)
        start, length = (_number(value.get(key, 0), f"{place}: {key}") for key in ("start", "duration"))
        return whole._replace(start=start, length=length)
    if "sources" in value:
        return _recording(value, place)
    for name in PATHS:  # {"wav": {"file": ..., "start": ..., "stop": ...}} and {"audio": {"path": ...}}
        if isinstance(value.get(name), dict):
            value = {**{k: v for k, v in value.items() if k != name}, **value[name]}
            break
    if "recording_id" in value and not any(name in value for name in PATHS):
        raise StarError(f"{place}: supervisions name no audio; give lhotse's recordings or cuts")
    if "length" in value and not any(name in value for name in SECONDS):  # SpeechBrain's json counts it in seconds
        value = {**value, "duration": value["length"]}
    return _entry({str(name).lower(): field for name, field in value.items()}, place)


def _recording(value: Mapping[str, Any], place: str) -> Entry:
    """One of lhotse's; its length is told in samples at ``sampling_rate``, which transforms may have made another than
    the file's."""
    sources = value.get("sources") or [{}]
    source = sources[0] if isinstance(sources[0], dict) else {}
    name, fault = str(source.get("source", value.get("id", ""))), None
    if source.get("type") != "file":
        fault = f"its source is of the kind {source.get('type')!r}, which is not fetched; write it to a file"
    elif len(sources) > 1:
        fault = "its channels are in several files; write them to one"
    elif any(str(t.get("name", "")) != "Resample" for t in value.get("transforms") or [] if isinstance(t, dict)):
        fault = "is altered as lhotse reads it (transforms); write it to a file"
    length = value.get("duration")
    if value.get("num_samples") and value.get("sampling_rate"):
        length = _number(value["num_samples"], f"{place}: num_samples") / _number(
            value["sampling_rate"], f"{place}: sampling_rate"
        )
    return Entry(place, name, length=None if length is None else _number(length, f"{place}: duration"), fault=fault)


def _entry(row: Mapping[str, Any], place: str) -> Entry:
    name = next((name for name in PATHS if _given(row, name)), None)
    if name is None:
        raise StarError(f"{place}: no path; expected one of the fields {', '.join(PATHS[:3])}, ...")
    path = str(row[name]).strip("\r\n")

    def number(field: str, whole: bool = False) -> float:
        return _number(row[field], f"{place}: {field}", whole)

    stop = next((field for field in ("stop", "end") if _given(row, field)), None)
    if _given(row, "start") and stop and not _given(row, "samples"):
        start, end = number("start"), number(stop)
        if end <= start:
            raise StarError(f"{place}: from {row['start']} to {row[stop]} is no stretch of sound")
        counted = all(float(n).is_integer() and not re.search(r"[.e]", str(n)) for n in (row["start"], row[stop]))
        return Entry(place, path, start, end - start, "own rate" if counted else "seconds")
    if _given(row, "samples"):
        start = number("start", whole=True) if _given(row, "start") else 0.0
        return Entry(place, path, start, number("samples", whole=True), "16 kHz")
    begin = next((field for field in ("offset", "start") if _given(row, field)), None)
    start = number(begin) if begin else 0.0
    for field in SECONDS:
        if _given(row, field):
            return Entry(place, path, start, number(field))
    for field in OWN_RATE:
        if _given(row, field):
            return Entry(place, path, start, number(field, whole=True), "own rate")
    return Entry(place, path, start)


def _given(row: Mapping[str, Any], field: str) -> bool:
    return row.get(field) is not None and bool(str(row[field]).strip())


def _number(value: Any, what: str, whole: bool = False) -> float:
    """Not below 0; ``32000.0`` is a whole number, too."""
    try:
        number = float(uncell(value.strip()) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf") or (whole and not number.is_integer()):
        raise StarError(f"{what} must be a {'whole ' if whole else ''}number, at least 0, got {str(value)!r}")
    return number
