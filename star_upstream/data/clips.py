"""Clips: the usable audio of folders, lists and single files, measured once."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .. import audio, members
from ..environment import cache_home
from ..errors import StarError
from ..files import replacing
from ..say import say
from . import audio_lists, shards


class Clip(NamedTuple):
    """One utterance: its file (or member of a shard), its length and its first sample in the file, at 16 kHz."""

    path: str
    samples: int
    start: int = 0


@dataclass
class Corpus:
    """Usable clips, shortest first (ties by path), and what was left out with the reason."""

    clips: list[Clip]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    passed: list[tuple[str, str]] = field(default_factory=list)
    """What was found in folders and is no audio that is read here: ``folder/*.m4a`` and how many, for each ending."""

    @property
    def seconds(self) -> float:
        return sum(c.samples for c in self.clips) / audio.RATE


class Fault(NamedTuple):
    """Why a file cannot be used. ``bad``: it is damaged, and counts against ``max_bad_share``."""

    reason: str
    bad: bool = True


def scan(
    sources: Sequence[str | Path],
    min_seconds: float = 0.5,
    max_seconds: float = 40.0,
    max_bad_share: float = 0.05,
    threads: int = 8,
    progress: bool = True,
) -> Corpus:
    """Find audio in folders (searched whole), lists (:mod:`.audio_lists`), shards (:mod:`.shards`) and single files,
    and measure it. Shards in a folder are read where no audio file lies below it.

    Lengths are read from file headers in parallel, once: they are cached by size and time of change. Where a list says
    how long a file is, its header has the last word; where it names a part of a file, the clip is that part. Unreadable
    and empty files, those outside ``min_seconds`` to ``max_seconds``, links to what is not there and lines that the
    header contradicts go to ``skipped`` with the reason. What else lies in a folder is counted, and said on stderr.

    Raises :class:`StarError` when a source is absent or no audio and no list of it, nothing is usable, or more than
    ``max_bad_share`` of the files are unreadable or contradicted.
    """
    if not sources:
        raise StarError("data: no folder, list or audio file given")
    found: dict[Clip | str, Clip | Fault] = {}
    passed: list[tuple[str, str]] = []
    for text in map(str, sources):
        source = Path(text).expanduser()
        if (files := shards.expand(text)) is not None:
            passed += _add_shards(files, found, threads, progress)
        elif source.is_dir():
            passed += _search(source.resolve(), found, threads, progress)
        elif source.is_file() and shards.is_shard(text):
            passed += _add_shards([_absolute(source)], found, threads, progress)
        elif source.is_file() and _is_audio(source):
            _add(found, _absolute(source), _measure([_absolute(source)], None, 1, False))
        elif source.is_file():
            _read_list(source, found, threads, progress)
        elif audio.dangling(source):
            raise StarError(f"{source}: a link to a file that is not there; in a git-annex folder: git annex get")
        else:
            raise StarError(f"{source}: no such folder or manifest")
    if not found:
        raise StarError(_nothing(sources, passed))
    for place, what in passed:
        say(f"{place}: {what}")
    clips, skipped, bad = [], [], []
    for name, clip in found.items():
        if isinstance(clip, Fault):
            skipped.append((str(name), clip.reason))
            bad += [skipped[-1]] if clip.bad else []
        elif clip.samples < min_seconds * audio.RATE:
            reason = f"{clip.samples / audio.RATE:.2f} s, shorter than {min_seconds} s" if clip.samples else "empty"
            skipped.append((_name(clip), reason))
        elif clip.samples > max_seconds * audio.RATE:
            skipped.append((_name(clip), f"{clip.samples / audio.RATE:.2f} s, longer than {max_seconds} s"))
        else:
            clips.append(clip)
    if len(bad) > max_bad_share * len(found):
        count = f"{len(bad)} of {len(found)} files"
        raise StarError(
            f"{count} cannot be read, above the limit of {max_bad_share:.1%} (data.max_bad_share); the first: "
            f"{': '.join(bad[0])}"
        )
    if not clips:
        raise StarError(f"none of {len(found)} files is usable; the first: {': '.join(skipped[0])}")
    return Corpus(sorted(clips, key=lambda c: (c.samples, c.path, c.start)), sorted(skipped), passed)


def _name(clip: Clip) -> str:
    return clip.path if not clip.start else f"{clip.path} from {clip.start / audio.RATE:.2f} s on"


def absolute(source: str) -> str:
    """A source as it is found from any folder."""
    return source if members.is_address(source) else str(Path(source).expanduser().resolve())


def _nothing(sources: Sequence[str | Path], passed: list[tuple[str, str]]) -> str:
    others = "".join(f"; {place}: {what}" for place, what in passed[:3])
    endings = ", ".join((*audio.EXTENSIONS, *members.ENDINGS))
    return f"{', '.join(map(str, sources))}: no audio found (looked for {endings}){others}"


def _is_audio(file: Path) -> bool:
    """By its ending, else by its content: a list is text (perhaps compressed by gzip), and audio is not."""
    if file.suffix.lower() in audio.EXTENSIONS:
        return True
    with open(file, "rb") as stream:
        head = stream.read(4096)
    return not head.startswith((b"\x1f\x8b", codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in head


def _add(found: dict, path: str, measured: dict[str, audio.Header | Fault]) -> None:
    header = measured[path]
    if isinstance(header, Fault):
        found[path] = header
    else:
        clip = Clip(path, header.samples)
        found[clip] = clip


def _search(folder: Path, found: dict, threads: int, progress: bool) -> list[tuple[str, str]]:
    """Add the audio below ``folder``, or its shards; the other files, by ending."""
    files, others, seen, kept = [], Counter[str](), set(), []
    for base, folders, names in os.walk(folder, followlinks=True):
        # a link to a folder above would lead round for ever, and git-annex keeps every file a second time below .git
        folders[:] = sorted(name for name in folders if name != ".git")
        if (real := os.path.realpath(base)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(audio.EXTENSIONS):
                files.append(os.path.join(base, name))
            elif shards.is_shard(name):
                kept.append(os.path.join(base, name))
            else:
                others[os.path.splitext(name)[1].lower()] += 1
    if files:  # a shard beside them may hold the same audio once more
        others.update(os.path.splitext(name)[1].lower() for name in kept)
    passed = [] if files else _add_shards(sorted(kept), found, threads, progress)
    measured = _measure(sorted(files), folder, threads, progress)
    for file in sorted(files):
        _add(found, file, measured)
    for end, n in others.most_common():
        what = f"{n} file{'s' * (n > 1)}{'' if end else ' without an ending'}"
        why = "audio files lie beside" if end in members.ENDINGS else f"none of {', '.join(audio.EXTENSIONS)}"
        passed.append((str(folder / f"*{end}"), f"{what} passed over: {why}"))
    return passed


def _add_shards(files: list[str], found: dict, threads: int, progress: bool) -> list[tuple[str, str]]:
    """Add the audio of shards; those without any."""
    empty = []
    for file, members_ in shards.read(files, threads, progress):
        for path, header in members_:
            _add(found, path, {path: Fault(header) if isinstance(header, str) else header})
        if not members_:
            empty.append((file, "holds no audio"))
    splits = {m[1] for file in files if (m := re.match(r"(.+)-\d{5}-of-\d{5}\.", file))}
    if len(splits) > 1:
        names = ", ".join(f"{name}-*" for name in sorted(splits))
        say(f"{len(splits)} splits are read: {names}; name one to read it alone")
    return empty


def _read_list(path: Path, found: dict, threads: int, progress: bool) -> None:
    """Add the clips of a list."""
    entries, root = audio_lists.read(path)
    files: dict[str, str | None] = {}
    for entry in entries:
        if entry.fault is None and entry.path not in files:
            files[entry.path] = _find(entry.path, path, root)
    there = sorted({file for file in files.values() if file is not None})
    measured = _measure(there, path.resolve(), threads, progress)
    for entry in entries:
        file = files.get(entry.path)
        if entry.fault is not None or file is None:
            found[entry.path] = Fault(entry.fault or "no such file")
            continue
        header = measured[file]
        clip = header if isinstance(header, Fault) else _part(entry, file, header)
        found[clip if isinstance(clip, Clip) else file] = clip


def _find(name: str, path: Path, root: Path | None) -> str | None:
    for text in dict.fromkeys((name, audio_lists.uncell(name))):
        for place in audio_lists.places(text, path, root):
            if os.path.isfile(members.container(place)) or audio.dangling(place):
                return _absolute(place)
    return None


def _absolute(path: Path) -> str:
    """As a search of its folder finds it: links to folders followed, those to files kept."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _part(entry: audio_lists.Entry, file: str, header: audio.Header) -> Clip | Fault:
    """The part of ``file`` that a list means, at 16 kHz, or why it cannot be."""
    place = entry.place.split(", ")[-1]
    factor = {"16 kHz": 1.0, "own rate": audio.RATE / header.rate, "seconds": float(audio.RATE)}[entry.unit]
    start, total = round(entry.start * factor), header.samples
    if entry.length is None:
        return Clip(file, max(0, total - start), start)
    samples = round(entry.length * factor)
    if entry.unit == "16 kHz" and header.rate != audio.RATE and start == 0 and samples == header.frames != total:
        return Fault(
            f"{place}: samples is {samples} as counted at the file's {header.rate} Hz; here it counts at 16 kHz: "
            f"{total}"
        )
    slack = max(header.slack, audio.RATE // 20 if entry.unit == "seconds" else 0)  # durations are rounded
    if start + samples > total + slack:
        end, length = (start + samples) / audio.RATE, total / audio.RATE
        return Fault(f"{place}: goes on to {end:.2f} s, but by its header the file ends at {length:.2f} s")
    return Clip(file, min(samples, total - start), start)


def _measure(
    files: Sequence[str], source: Path | None, threads: int, progress: bool
) -> dict[str, audio.Header | Fault]:
    """The header of each file, or why there is none; those of ``source`` (a folder or list) are kept in the cache."""
    cache = None if source is None else _cache_file(source)
    known = {} if cache is None else _read_cache(cache)
    stamps: dict[str, list[int]] = {}
    measured: dict[str, audio.Header | Fault] = {}
    for file in files:
        try:
            status = os.stat(members.container(file))
            stamps[file] = [status.st_size, status.st_mtime_ns]
        except OSError as error:
            fetch = "a link to a file that is not there; in a git-annex folder: git annex get"
            measured[file] = Fault(
                fetch if audio.dangling(file) else f"cannot be read ({error.strerror})", not audio.dangling(file)
            )
    new = [file for file in stamps if known.get(file, [None])[0] != stamps[file]]

    def measure(file: str) -> list:
        try:
            return list(audio.header(file))
        except StarError as error:
            return [str(error).removeprefix(f"{file}: ")]

    with ThreadPoolExecutor(threads) as pool:
        for i, (file, found) in enumerate(zip(new, pool.map(measure, new)), 1):
            known[file] = [stamps[file], found]
            if progress and (i % 1000 == 0 or i == len(new)):
                say(f"\rlengths read: {i} of {len(new)}", end="\n" if i == len(new) else "")
    if new and cache is not None:
        with replacing(cache) as part:
            part.write_text(json.dumps({file: known[file] for file in stamps}), encoding="utf-8")
    for file in stamps:
        found = known[file][1]
        measured[file] = Fault(found[0]) if len(found) == 1 else audio.Header(*found)
    return measured


def _cache_file(source: Path) -> Path:
    return cache_home() / "lengths" / f"{hashlib.sha256(os.fsencode(source)).hexdigest()[:20]}.json"


def _read_cache(cache: Path) -> dict[str, list]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        return {
            str(f): [s, found] for f, (s, found) in known.items() if isinstance(found, list) and len(found) in (1, 3)
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
