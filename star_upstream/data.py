"""Audio files to length-bucketed batches, the same ones after a restart.

Shapes: B utterances, N samples (16 kHz).
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from . import audio, audio_lists
from .environment import cache_home
from .errors import StarError
from .files import replacing
from .say import say


class Clip(NamedTuple):
    """One utterance: its file, its length and its first sample in the file, at 16 kHz."""

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
    """Find audio in folders (searched whole), lists (:mod:`star_upstream.audio_lists`) and single files, and measure it.

    Lengths are read from file headers in parallel, once: they are cached by size and time of change. Where a list says how long a
    file is, its header has the last word; where it names a part of a file, the clip is that part. Unreadable and empty files, those
    outside ``min_seconds`` to ``max_seconds``, links to what is not there and lines that the header contradicts go to ``skipped``
    with the reason. What else lies in a folder is counted, and said on stderr.

    Raises :class:`StarError` when a source is absent or no audio and no list of it, nothing is usable, or more than
    ``max_bad_share`` of the files are unreadable or contradicted.
    """
    if not sources:
        raise StarError("data: no folder, list or audio file given")
    found: dict[Clip | str, Clip | Fault] = {}
    passed: list[tuple[str, str]] = []
    for source in (Path(source).expanduser() for source in sources):
        if source.is_dir():
            passed += _search(source.resolve(), found, threads, progress)
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
            f"{count} cannot be read, above the limit of {max_bad_share:.1%} (data.max_bad_share); the first: {': '.join(bad[0])}"
        )
    if not clips:
        raise StarError(f"none of {len(found)} files is usable; the first: {': '.join(skipped[0])}")
    return Corpus(sorted(clips, key=lambda c: (c.samples, c.path, c.start)), sorted(skipped), passed)


def _name(clip: Clip) -> str:
    return clip.path if not clip.start else f"{clip.path} from {clip.start / audio.RATE:.2f} s on"


def _nothing(sources: Sequence[str | Path], passed: list[tuple[str, str]]) -> str:
    others = "".join(f"; {place}: {what}" for place, what in passed[:3])
    return f"{', '.join(map(str, sources))}: no audio found (looked for {', '.join(audio.EXTENSIONS)}){others}"


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
    """Add the audio below ``folder``; the other files, by ending."""
    files, others, seen = [], Counter(), set()
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
            else:
                others[os.path.splitext(name)[1].lower()] += 1
    measured = _measure(sorted(files), folder, threads, progress)
    for file in sorted(files):
        _add(found, file, measured)
    found = []
    for end, n in others.most_common():
        what = f"{n} file{'s' * (n > 1)}{'' if end else ' without an ending'}"
        found.append((str(folder / f"*{end}"), f"{what} passed over: none of {', '.join(audio.EXTENSIONS)}"))
    return found


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
        clip = measured[file] if isinstance(measured[file], Fault) else _part(entry, file, measured[file])
        found[clip if isinstance(clip, Clip) else file] = clip


def _find(name: str, path: Path, root: Path | None) -> str | None:
    for text in dict.fromkeys((name, audio_lists.uncell(name))):
        for place in audio_lists.places(text, path, root):
            if os.path.isfile(place) or audio.dangling(place):
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
        return Fault(f"{place}: samples is {samples} as counted at the file's {header.rate} Hz; here it counts at 16 kHz: {total}")
    slack = max(header.slack, audio.RATE // 20 if entry.unit == "seconds" else 0)  # durations are rounded
    if start + samples > total + slack:
        end, length = (start + samples) / audio.RATE, total / audio.RATE
        return Fault(f"{place}: goes on to {end:.2f} s, but by its header the file ends at {length:.2f} s")
    return Clip(file, min(samples, total - start), start)


def _measure(files: Sequence[str], source: Path | None, threads: int, progress: bool) -> dict[str, audio.Header | Fault]:
    """The header of each file, or why there is none; those of ``source`` (a folder or list) are kept in the cache."""
    cache = None if source is None else _cache_file(source)
    known = {} if cache is None else _read_cache(cache)
    stamps, measured = {}, {}
    for file in files:
        try:
            status = os.stat(file)
            stamps[file] = [status.st_size, status.st_mtime_ns]
        except OSError as error:
            fetch = "a link to a file that is not there; in a git-annex folder: git annex get"
            measured[file] = Fault(fetch if audio.dangling(file) else f"cannot be read ({error.strerror})", not audio.dangling(file))
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
        return {str(f): [s, found] for f, (s, found) in known.items() if isinstance(found, list) and len(found) in (1, 3)}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


class Batch(NamedTuple):
    """Zero-padded waveforms and where they came from."""

    waveforms_BN: Tensor
    lengths_B: Tensor
    paths: list[str]
    indices: list[int]
    """Places of the utterances in the corpus."""
    bad: list[tuple[str, str]]
    """Files that could not be used and the reason; a neighbour in length took the place of each."""


Item = tuple[Tensor, str, int, list[tuple[str, str]], int]
"""Waveform, path, place in the corpus, files that could not be used, and the epoch that asked for it."""


class AudioDataset(Dataset):
    """The waveforms of a corpus, cut to the length that was measured, by place or by (place, epoch).

    A file that cannot be decoded, is silent from end to end, or decodes to less than was measured or than ``min_samples`` is
    replaced by the next longer one. ``longest``: longer waveforms are cut to so many samples, from their start or, with a ``seed``,
    from a random place: a function of (seed, epoch, place) alone, so that a resumed run sees the same and every epoch others.
    """

    def __init__(self, clips: Sequence[Clip], min_samples: int = 1, longest: int | None = None, seed: int | None = None):
        self.clips, self.min_samples, self.longest, self.seed = clips, min_samples, longest, seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        bad: list[tuple[str, str]] = []
        for step in range(min(len(self.clips), 20)):
            place = (index + step) % len(self.clips)
            path, samples, start = self.clips[place]
            try:
                wave = (audio.read(path, start, samples) if start else audio.read(path))[:samples]
            except StarError as error:
                bad.append((path, str(error).removeprefix(f"{path}: ")))
                continue
            if len(wave) < max(self.min_samples, samples - audio.SLACK):
                reason = f"{len(wave)} samples when decoded, its header or manifest says {samples}"
                bad.append((path, reason if len(wave) else "empty"))
                continue
            if not (np.isfinite(wave).all() and np.abs(wave).max() > 0):
                bad.append((path, "silent from end to end, or not finite"))
                continue
            return torch.from_numpy(self._cut(wave, place, epoch)), path, place, bad, epoch
        raise StarError(f"{len(bad)} files in a row cannot be used; the first: {bad[0][0]}: {bad[0][1]}")

    def _cut(self, wave: np.ndarray, place: int, epoch: int) -> np.ndarray:
        if self.longest is None or len(wave) <= self.longest:
            return wave
        start = 0
        if self.seed is not None:
            start = int(np.random.default_rng((self.seed, epoch, place)).integers(len(wave) - self.longest + 1))
        return wave[start : start + self.longest]


def collate(items: Sequence[Item], crop: bool = False, seed: int | None = None) -> Batch:
    """Pad with zeros to the longest utterance, or ``crop`` all to the length of the shortest: from the start or, with a ``seed``,
    each from a random place.

    The places are a function of ``seed``, the epoch and the batch (its utterances and their order) alone: a resumed run sees the
    same crops, and every epoch others, also where its batches are those of the last one.
    """
    waves = [item[0] for item in items]
    if crop:
        shortest = min(len(w) for w in waves)
        starts = [0] * len(waves)
        if seed is not None:
            random = np.random.default_rng((seed, items[0][4], *(item[2] for item in items)))
            starts = [int(random.integers(len(w) - shortest + 1)) for w in waves]
        waves = [w[start : start + shortest] for w, start in zip(waves, starts)]
    return Batch(
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
        torch.tensor([len(w) for w in waves]),
        [item[1] for item in items],
        [item[2] for item in items],
        [fault for item in items for fault in item[3]],
    )


class BucketSampler(Sampler[list[int]]):
    """Batches of utterances of similar length, at most ``seconds`` of audio and ``items`` utterances each.

    ``batches``: ``mixed`` draws neighbours in length and the order anew each epoch; ``sorted`` has the same batches each epoch, from
    the longest utterances down, in another order; ``repeated`` has them from the shortest up, in the same order too.
    ``counted``: what ``seconds`` limits, the audio with its padding (``padded``), or the utterances' own ``lengths``. ``longest``: utterances will be cut to so
    many samples.

    The batches of an epoch are a function of (clips, seed, epoch) alone, so that a run resumes where it was: set ``epoch`` and
    ``start`` (batches of this rank already done). Each of ``world`` ranks takes every world-th batch; at most world - 1 are
    left out, other ones each epoch unless batches are repeated.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        seconds: float,
        items: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        batches: str = "mixed",
        counted: str = "padded",
        longest: int | None = None,
    ):
        self.lengths = np.array([c.samples if longest is None else min(c.samples, longest) for c in clips])
        self.batches, self.counted = batches if shuffle else "mixed", counted
        if len(clips) and self.lengths.max() > seconds * audio.RATE:
            longest = self.lengths.max() / audio.RATE
            fix = "raise it, or lower max_seconds or crop_seconds"
            raise StarError(f"batch_seconds: {seconds} is less than the longest utterance ({longest:.1f} s); {fix}")
        self.budget, self.items = int(seconds * audio.RATE), items or len(clips)
        self.seed, self.shuffle, self.rank, self.world = seed, shuffle, rank, world
        self.epoch = self.start = 0
        self._planned: dict[int, list[list[int]]] = {}

    def plan(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch, of every rank, in order."""
        key = epoch if self.shuffle else 0
        if key not in self._planned:
            # two are kept: workers fetch from the next epoch while the last batches of this one are learned from
            self._planned = {k: v for k, v in self._planned.items() if k == key - 1} | {key: self._plan(epoch)}
        return self._planned[key]

    def _plan(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, epoch if self.batches != "repeated" else 0))
        # a random factor of up to 10 % mixes neighbours anew each epoch and costs little padding
        noise = random.uniform(0.95, 1.05, len(self.lengths)) if self.shuffle and self.batches == "mixed" else 1.0
        order = np.argsort(self.lengths * noise, kind="stable")
        batches, current, longest, total = [], [], 0, 0
        for index in order[::-1] if self.batches == "sorted" else order:
            length = self.lengths[index]
            longest, total = max(longest, length), total + length
            audio_in_batch = total if self.counted == "lengths" else longest * (len(current) + 1)
            if current and (audio_in_batch > self.budget or len(current) == self.items):
                batches.append(current)
                current, longest, total = [], length, length
            current.append(int(index))
        if current:
            batches.append(current)
        if self.shuffle:
            batches = [batches[i] for i in random.permutation(len(batches))]
        return batches[: len(batches) // self.world * self.world] if self.world > 1 else batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan(self.epoch)[self.rank :: self.world][self.start :])

    def __len__(self) -> int:
        """Batches of this rank in the epoch, those already done among them."""
        return len(self.plan(self.epoch)) // self.world


class BatchStream(Sampler[list]):
    """The batches of one epoch after another, without end, from where ``sampler`` stands; a :class:`BucketSampler`'s places come with
    their epoch.

    Workers fetch ahead, so the stream does not move ``sampler`` on by itself: call :meth:`advance` for each batch learned from.
    """

    def __init__(self, sampler: BucketSampler):
        self.sampler = sampler
        if not len(sampler):
            raise StarError(f"data: fewer batches than processes ({sampler.world}); lower batch_seconds or batch_items")

    def __iter__(self) -> Iterator[list[int]]:
        sampler = self.sampler
        epoch, start = sampler.epoch, sampler.start
        while True:
            for batch in sampler.plan(epoch)[sampler.rank :: sampler.world][start:]:
                yield [(place, epoch) for place in batch] if isinstance(sampler, BucketSampler) else batch
            epoch, start = epoch + 1, 0

    def advance(self) -> None:
        """Move on by one batch."""
        self.sampler.start += 1
        if self.sampler.start >= len(self.sampler):
            self.sampler.epoch, self.sampler.start = self.sampler.epoch + 1, 0
