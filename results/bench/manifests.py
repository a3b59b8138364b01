"""``python results/bench/manifests.py``: seconds and peak memory of starting and resuming a training on long manifests.

A manifest of N rows (path, samples) stands for N files, each path another one and all members of a tar shard that holds
one flac of 40 s; lengths are drawn from 1 to 35 s. Each step is a process of its own:

- read: the manifest is parsed, nothing else
- first start: each row's place and header are read, clips are sorted, some are held out, data.tsv is written
- resume: data.tsv is read, two epochs of batches of 160 s are planned, and 20 batches come through two data workers
- later start: as the first, with the headers in the cache

Seconds are of CPU time, of all threads of the process. MB are the peak of the process's memory until then, above what
it held when the package was imported; of a worker, what it shares with no other. Of manifests beyond ``--opened`` rows
no header is opened, each is answered with the flac's at once. Manifests that the page tells of already stay.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from script import check_page, path, processor, write

from star_upstream import audio
from star_upstream.data import audio_lists
from star_upstream.data.batches import AudioDataset, BatchStream, BucketSampler, collate
from star_upstream.say import command, say
from star_upstream.training import start
from star_upstream.training.config import DataConfig
from star_upstream.training.run_folder import RunFolder

TITLE = "# Manifests"
MAKER = "results/bench/manifests.py"
SECONDS = 40
BLOCK = 100_000
"""Rows written at a time."""


def make(folder: Path, rows: int) -> Path:
    """The manifest, below ``folder`` with its shard."""
    stream = io.BytesIO()
    soundfile.write(stream, np.full(SECONDS * audio.RATE, 0.1), audio.RATE, format="FLAC", subtype="PCM_16")
    with tarfile.open(folder / "speech.tar", "w") as tar:
        info = tarfile.TarInfo("speech.flac")
        info.size = len(stream.getvalue())
        tar.addfile(info, io.BytesIO(stream.getvalue()))
    with tarfile.open(folder / "speech.tar") as tar:
        place = f"{tar.getmember('speech.flac').offset_data}:{info.size}"
    random, manifest = np.random.default_rng(0), folder / "manifest.tsv"
    with open(manifest, "w", encoding="utf-8") as file:
        file.write("path\tsamples\n")
        for first in range(0, rows, BLOCK):
            lengths = random.integers(audio.RATE, 35 * audio.RATE, min(BLOCK, rows - first)).tolist()
            for row, samples in enumerate(lengths, first):
                speaker = f"{row // 1000:05}/{row // 100 % 10}"
                file.write(f"speech.tar/{speaker}/{speaker.replace('/', '_')}_{row:09}.flac:{place}\t{samples}\n")
    return manifest


def read(folder: Path, measure: Measure) -> None:
    with measure("read"):
        entries, _ = audio_lists.read(folder / "manifest.tsv")
        assert sum(entry.fault is None for entry in entries)


def begin(folder: Path, measure: Measure, name: str = "first") -> None:
    if (folder / "unopened").is_file():
        audio.header = lambda path, stream=None: audio.Header(SECONDS * audio.RATE, audio.RATE)
    with measure(f"{name} start: rows to clips, some held out"):
        parts, skipped, _ = start.find_clips(DataConfig(train=(str(folder / "manifest.tsv"),)))
    assert not skipped
    run = RunFolder(folder / f"run-{name}")
    run.path.mkdir()
    with measure(f"{name} start: data.tsv"):
        run.begin("", parts, [])


def resume(folder: Path, measure: Measure) -> None:
    with measure("resume: data.tsv"):
        clips = RunFolder(folder / "run-first").read_clips()["train"]
    with measure("resume: the first epoch's batches"):
        sampler = BucketSampler(clips, 160.0)
        sampler.plan(0)
    with measure("resume: the second epoch's batches"):
        sampler.plan(1)
    import torch

    sampler.start = len(sampler) // 2
    loader = torch.utils.data.DataLoader(
        AudioDataset(clips), batch_sampler=BatchStream(sampler), collate_fn=partial(collate, crop=True), num_workers=2
    )
    with measure("resume: 20 batches"):
        batches: Any = iter(loader)
        for _ in range(20):
            next(batches)
    own = [_own(worker.pid) for worker in batches._workers]
    measure.say("resume: a data worker", 0.0, max(own))


STEPS: dict[str, Callable] = {"read": read, "first": begin, "resume": resume, "later": partial(begin, name="later")}


def _own(process: int) -> float:
    """MB that a process shares with no other."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.M))) / 1e3


def _memory(name: str) -> float:
    """MB of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1e3


class Measure:
    """Prints what each part of a step took, a json a line."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        self.before = _memory("VmRSS")

    def say(self, what: str, seconds: float, megabytes: float) -> None:
        print(json.dumps({"what": what, "seconds": round(seconds, 2), "MB": round(megabytes)}), flush=True)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.say(what, time.process_time() - begun, _memory("VmHWM") - self.before)


def measured(rows: int, folder: Path, opened: int) -> list[dict]:
    """What each part took, of all steps."""
    if rows > opened:
        (folder / "unopened").touch()
    manifest = make(folder, rows)
    say(f"{rows:,} rows, {manifest.stat().st_size / 1e6:,.0f} MB")
    found = []
    for step in STEPS:
        words = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
        env = {**os.environ, "STAR_CACHE": str(folder / "cache")}
        told = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
        found += [json.loads(line) for line in told.splitlines()]
        say(told.strip())
    return found


def page(numbers: dict[str, list[dict]], words: str) -> str:
    lines = ["| | " + " | ".join(f"{int(rows):,} rows: s | MB" for rows in numbers) + " |"]
    lines.append("| --- |" + " ---: | ---: |" * len(numbers))
    columns = [
        {part["what"]: f"{part['seconds']:,.1f} | {part['MB']:,.0f}" for part in parts} for parts in numbers.values()
    ]
    for what in columns[0]:
        lines.append(f"| {what} | {' | '.join(column.get(what, ' | ') for column in columns)} |")
    notes = (__doc__ or "").split("\n\n", 1)[1]
    where = f"`{words}` on {processor()}, Python {platform.python_version()}."
    return f"{TITLE}\n\n{notes}\n{chr(10).join(lines)}\n\n{where}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", default="100000,1000000", help="of each manifest")
    parser.add_argument("--opened", type=int, default=100_000)
    parser.add_argument("--folder", type=path, help="of what is made, which goes when all is done (a temporary one)")
    parser.add_argument("--out", type=path, default=Path("results/speed/manifests.md"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.step:
        STEPS[args.step](args.folder, Measure())
        return 0
    check_page(args.out, MAKER, TITLE, "rows")
    file = args.out.with_suffix(".json")
    numbers = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else {}
    for rows in args.rows.split(","):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            numbers[rows] = measured(int(rows), Path(folder), args.opened)
    numbers = dict(sorted(numbers.items(), key=lambda item: int(item[0])))
    write(args.out, page(numbers, f"python {shlex.join([MAKER, *(arguments or sys.argv[1:])])}"), {"rows": numbers})
    print(args.out)
    return 0


if __name__ == "__main__":
    command(main)
