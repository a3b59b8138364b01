"""Clips: the usable audio of folders, lists and single files, measured once."""

from __future__ import annotations

import codecs
import functools
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import audio, members
from ..errors import StarError
from ..files import home
from ..say import say
from . import audio_lists, shards
from .clip_table import Clip, Clips, Table
from .headers import Fault, Header, Headers

Named = Iterator[tuple[str, "Clip | Fault"]]
"""Clips, or why there is none, with the name of the file."""


@dataclass
class Corpus:
    """Usable clips, shortest first (ties by path), and what was left out with the reason."""

    clips: Clips
    skipped: list[tuple[str, str]] = field(default_factory=list)
    passed: list[tuple[str, str]] = field(default_factory=list)
    """What was found in folders and is no audio that is read here: ``folder/*.m4a`` and how many, for each ending."""


def scan(
    sources: Sequence[str | Path],
    min_seconds: float = 0.5,
    max_seconds: float = 40.0,
    max_bad_share: float = 0.05,
    progress: bool = True,
) -> Corpus:
    """Find audio in folders (searched whole), lists (:mod:`.audio_lists`), shards (:mod:`.shards`) and single files, or
    in what a pattern (``*``, ``?``, ``[...]``) stands for, and measure it. Shards in a folder are read where no audio
    file lies below it.

    Lengths are read from file headers in parallel, once: they are cached by size and time of change. Where a list says
    how long a file is, its header has the last word; where it names a part of a file, the clip is that part. Unreadable
    and empty files, those outside ``min_seconds`` to ``max_seconds``, links to what is not there and lines that the
    header contradicts go to ``skipped`` with the reason. What else lies in a folder is counted, and said on stderr.

    Raises :class:`StarError` when a source is absent or no audio and no list of it, nothing is usable, or more than
    ``max_bad_share`` of the files are unreadable or contradicted.
    """
    if not sources:
        raise StarError("data: no folder, list or audio file given")
    table, others, passed = Table(), dict[Clip | str, Fault](), list[tuple[str, str]]()
    for text in (one for source in sources for one in _matched(str(source))):
        for name, clip in _read(text, passed, progress):
            if isinstance(clip, Fault):
                others[name] = clip
            elif min_seconds * audio.RATE <= clip.samples <= max_seconds * audio.RATE:
                table.add(*clip)
            else:
                limit = f"shorter than {min_seconds} s" if clip.samples < min_seconds * audio.RATE else ""
                reason = f"{clip.samples / audio.RATE:.2f} s, {limit or f'longer than {max_seconds} s'}"
                others[clip] = Fault(reason if clip.samples else "empty", False)
    clips = table.clips().ordered()
    count = len(clips) + len(others)
    if not count:
        raise StarError(_nothing(sources, passed))
    for place, what in passed:
        say(f"{place}: {what}")
    skipped = [(name if isinstance(name, str) else _name(name), fault.reason) for name, fault in others.items()]
    bad = [one for one, fault in zip(skipped, others.values()) if fault.bad]
    if len(bad) > max_bad_share * count:
        raise StarError(
            f"{len(bad)} of {count} files cannot be read, above the limit of {max_bad_share:.1%} "
            f"(data.max_bad_share); the first: {': '.join(bad[0])}"
        )
    if not clips:
        raise StarError(f"none of {count} files is usable; the first: {': '.join(skipped[0])}")
    return Corpus(clips, sorted(skipped), passed)


def _matched(source: str) -> list[str]:
    """What a pattern stands for; ``source`` itself where it is none, matches nothing or stands for shards."""
    if members.is_address(source) or os.path.exists(source) or not re.search(r"[*?\[]", source):
        return [source]
    found = sorted(glob.glob(os.path.expanduser(source)))
    return [source] if not found or any(map(shards.is_shard, found)) else found


def _read(text: str, passed: list[tuple[str, str]], progress: bool) -> Named:
    """The audio of a source; what was passed over is added to ``passed``."""
    source = home(text)
    if (files := shards.expand(text)) is not None:
        return _read_shards(files, passed, progress)
    if source.is_dir():
        return _search(source.resolve(), passed, progress)
    if source.is_file() and shards.is_shard(text):
        return _read_shards([_absolute(source)], passed, progress)
    if source.is_file() and _is_audio(source):
        return _read_files([_absolute(source)], Headers(None, False))
    if source.is_file():
        return _read_list(source, Headers(source.resolve(), progress))
    if audio.dangling(source):
        raise StarError(f"{source}: {audio.DANGLING}")
    raise StarError(f"{source}: no such folder or manifest")


def find(sources: Sequence[str]) -> list[Clip]:
    """Clips of folders, lists of audio and audio files, the latter of any length; what is left out is said."""
    files = [source for source in sources if source.lower().endswith(audio.EXTENSIONS) and Path(source).is_file()]
    single, others = [Clip(file, audio.length(file)) for file in files], [s for s in sources if s not in files]
    if not others:
        return single
    corpus = scan(others)
    if corpus.skipped:
        say(f"star: {len(corpus.skipped)} files left out; the first: {': '.join(corpus.skipped[0])}")
    return [*corpus.clips, *single]


def _name(clip: Clip) -> str:
    return clip.path if not clip.start else f"{clip.path} from {clip.start / audio.RATE:.2f} s on"


def absolute(source: str) -> str:
    """A source as it is found from any folder."""
    return source if members.is_address(source) else str(home(source).resolve())


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


def _clip(path: str, header: Header) -> Clip | Fault:
    return header if isinstance(header, Fault) else Clip(path, header.samples)


def _read_files(files: Iterable[str], headers: Headers) -> Named:
    for file, _, header in headers.read(files, str):
        assert header is not None
        yield file, _clip(file, header)


def _search(folder: Path, passed: list[tuple[str, str]], progress: bool) -> Named:
    """The audio below ``folder``, or of its shards; the other files, by ending, are passed over."""
    others, seen, kept, any_audio = Counter[str](), set(), [], False

    def closed(error: OSError) -> None:
        passed.append((str(error.filename), f"a folder passed over: {error.strerror}"))

    def walk() -> Iterator[str]:
        nonlocal any_audio
        for base, folders, names in os.walk(folder, followlinks=True, onerror=closed):
            # a link to a folder above would lead round for ever; git-annex keeps every file a second time below .git
            folders[:] = sorted(name for name in folders if name != ".git")
            if (real := os.path.realpath(base)) in seen:
                folders.clear()
                continue
            seen.add(real)
            for name in sorted(names):
                if name.startswith("."):
                    continue
                if name.lower().endswith(audio.EXTENSIONS):
                    any_audio = True
                    yield os.path.join(base, name)
                elif shards.is_shard(name):
                    kept.append(os.path.join(base, name))
                else:
                    others[os.path.splitext(name)[1].lower()] += 1

    yield from _read_files(walk(), Headers(folder, progress))
    if any_audio:  # a shard beside them may hold the same audio once more
        others.update(os.path.splitext(name)[1].lower() for name in kept)
    else:
        yield from _read_shards(sorted(kept), passed, progress)
    for end, n in others.most_common():
        what = f"{n} file{'s' * (n > 1)}{'' if end else ' without an ending'}"
        why = "audio files lie beside" if end in members.ENDINGS else f"none of {', '.join(audio.EXTENSIONS)}"
        passed.append((str(folder / f"*{end}"), f"{what} passed over: {why}"))


def _read_shards(files: list[str], passed: list[tuple[str, str]], progress: bool) -> Named:
    for file, members_ in shards.read(files, progress):
        for path, header in members_:
            yield path, _clip(path, Fault(header) if isinstance(header, str) else header)
        if not members_:
            passed.append((file, "holds no audio"))
    splits = {m[1] for file in files if (m := re.match(r"(.+)-\d{5}-of-\d{5}\.", file))}
    if len(splits) > 1:
        names = ", ".join(f"{name}-*" for name in sorted(splits))
        say(f"{len(splits)} splits are read: {names}; name one to read it alone")


def _read_list(path: Path, headers: Headers) -> Named:
    """The clips of a list."""
    entries, root = audio_lists.read(path)
    real = functools.lru_cache(maxsize=10_000)(os.path.realpath)
    for entry, file, header in headers.read(entries, functools.partial(_find, audio_lists.folders(path, root), real)):
        if file is None or header is None:
            yield entry.path, Fault(entry.fault or "no such file")
        else:
            yield file, header if isinstance(header, Fault) else _part(entry, file, header)


def _find(folders: Sequence[str], real: Callable[[str], str], entry: audio_lists.Entry) -> str | None:
    if entry.fault is not None:
        return None
    for text in dict.fromkeys((entry.path, audio_lists.uncell(entry.path))):
        for place in audio_lists.places(text, folders):
            if os.path.isfile(members.container(place)) or audio.dangling(place):
                return _absolute(place, real)
    return None


def _absolute(path: str | Path, real: Callable[[str], str] = os.path.realpath) -> str:
    """As a search of its folder finds it: links to folders followed, those to files kept."""
    folder, name = os.path.split(path)
    return os.path.join(real(folder), name)


def _part(entry: audio_lists.Entry, file: str, header: audio.Header) -> Clip | Fault:
    """The part of ``file`` that a list means, at 16 kHz, or why it cannot be."""
    factor = 1.0 if entry.unit == "16 kHz" else audio.RATE / (header.rate if entry.unit == "own rate" else 1)
    start, total = round(entry.start * factor), header.samples
    if entry.length is None:
        return Clip(file, max(0, total - start), start)
    samples = round(entry.length * factor)
    why = ""
    if entry.unit == "16 kHz" and header.rate != audio.RATE and start == 0 and samples == header.frames != total:
        why = f"samples is {samples} as counted at the file's {header.rate} Hz; here it counts at 16 kHz: {total}"
    elif start + samples > total:
        slack = max(header.slack, audio.RATE // 20 if entry.unit == "seconds" else 0)  # durations are rounded
        end, length = (start + samples) / audio.RATE, total / audio.RATE
        if start + samples > total + slack:
            why = f"goes on to {end:.2f} s, but by its header the file ends at {length:.2f} s"
    if why:
        return Fault(f"{entry.place.split(', ')[-1]}: {why}")
    return Clip(file, min(samples, total - start), start)
