"""``python results/bench/decoding.py AUDIO``: how fast audio is decoded, by format and by where it lies.

The same utterances, at 16 kHz, as wav, flac, opus and mp3 (libsndfile's own settings), in a folder, in a tar shard, at
the address ``file://`` of that shard, and in a parquet table with groups of 100 rows, each read whole and in random
order, as a data worker does. A rate is seconds of audio over seconds of CPU time of one process, the median of
``--rounds``; files are in the page cache.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from page import table
from script import path, processor, write

from star_upstream import audio, outputs
from star_upstream.data.clips import Clips, scan
from star_upstream.say import command, say

TITLE = "# Decoding"
MAKER = "results/bench/decoding.py"
FORMATS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}
PLACES = ("folder", "tar", "file://tar", "parquet")


def chosen(source: Path, seconds: float) -> list[np.ndarray]:
    """Utterances drawn from ``source``, of so many seconds in all."""
    clips = scan([source], max_seconds=35.0).clips
    waves, total = [], 0.0
    for i in np.random.default_rng(0).permutation(len(clips)):
        waves.append(audio.read(clips[i].path, clips[i].start, clips[i].samples))
        total += clips[i].samples / audio.RATE
        if total >= seconds:
            break
    return waves


def written(folder: Path, ending: str, waves: list[np.ndarray]) -> dict[str, str]:
    """The utterances in each of the places; place -> source."""
    contents = []
    for wave in waves:
        stream = io.BytesIO()
        soundfile.write(stream, wave, audio.RATE, **FORMATS[ending])
        contents.append(stream.getvalue())
    (folder / ending).mkdir()
    with tarfile.open(folder / f"{ending}.tar", "w") as tar:
        for i, content in enumerate(contents):
            (folder / ending / f"{i}.{ending}").write_bytes(content)
            info = tarfile.TarInfo(f"{i}.{ending}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    rows = [{"bytes": content, "path": f"{i}.{ending}"} for i, content in enumerate(contents)]
    pq.write_table(pa.table({"audio": rows}), folder / f"{ending}.parquet", row_group_size=100)
    sources = (f"{ending}", f"{ending}.tar", f"{ending}.tar", f"{ending}.parquet")
    return {place: f"{'file://' if '://' in place else ''}{folder / source}" for place, source in zip(PLACES, sources)}


def rate(clips: Clips, rounds: int) -> float:
    """Seconds of audio a second of CPU time."""
    found = []
    for number in range(rounds):
        order = np.random.default_rng(number).permutation(len(clips))
        begin = time.process_time()
        samples = sum(len(audio.read(clips[i].path)) for i in order)
        found.append(samples / audio.RATE / (time.process_time() - begin))
    return statistics.median(found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("audio", type=path, help="a folder of utterances")
    parser.add_argument("--seconds", type=float, default=4000.0, help="how much of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=path, default=Path("results/decoding.md"))
    args = parser.parse_args(arguments)
    outputs.check_file(args.out, MAKER, outputs.begins_with(TITLE))
    waves = chosen(args.audio, args.seconds)
    total = sum(map(len, waves)) / audio.RATE
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["STAR_CACHE"] = str(Path(folder) / "cache")
        for ending in FORMATS:
            sources = written(Path(folder), ending, waves)
            rates = {
                place: rate(scan([source], 0.0, progress=False).clips, args.rounds) for place, source in sources.items()
            }
            size = (Path(folder) / f"{ending}.tar").stat().st_size / 1e6 / (total / 3600)
            rows.append([ending, f"{size:.0f}", *(f"{rates[place]:,.0f}" for place in PLACES)])
            say(" | ".join(rows[-1]))
    versions = f"soundfile {soundfile.__version__}, {soundfile.__libsndfile_version__}, pyarrow {pa.__version__}"
    text = f"""{TITLE}

Seconds of audio that one core decodes in a second: {len(waves)} utterances of {total / len(waves):.1f} s on average, at
16 kHz, each read whole, in random order, from the page cache.

{table(["format", "MB an hour", *PLACES], rows)}

`python {shlex.join([MAKER, *(arguments or sys.argv[1:])])}` on {processor()}, {versions}.
"""
    write(args.out, text)
    print(args.out)
    return 0


if __name__ == "__main__":
    command(main)
