"""``python results/bench/memory.py``: memory and seconds of an evaluation at the official corpora's sizes.

An upstream of HuBERT Base's shape (13 states of width 768, 50 frames a second) that computes next to nothing, and as
many utterances as VoxCeleb1 has (speaker identification: time means) and LibriSpeech's train-clean-100, dev-clean and
test-clean (speech recognition: frames), go through ``eval run`` with a cache far smaller than all features, and through
``eval report``. The utterances are names of 200 files of noise a split, of 12 s for words and 8.25 s for speakers on
average; the words mean nothing. Heads have the published size for speakers and the mini schedule's for words.

MB are the largest resident set of the whole command. Seconds are of a machine that may have had other things to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from page import table
from script import check_page, path, processor, write
from torch import Tensor, nn

from star_upstream import audio
from star_upstream.errors import StarError
from star_upstream.say import command, say

TITLE = "# Memory at the official sizes"
MAKER = "results/bench/memory.py"
LAYERS, WIDTH, STRIDE = 13, 768, 320
FILES = 200
SPEAKERS = 1251
WORDS = ["ON", "THE", "WAY", "HOME"]
SIZES = {
    "sid": ({"train": 138_361, "dev": 6_904, "test": 8_251}, 8.25, ["--schedule", "superb", "--steps", "400"]),
    "asr": ({"train": 28_539, "dev": 2_703, "test": 2_620}, 12.0, ["--schedule", "mini", "--steps", "40"]),
}
"""Utterances of each split, their mean length in seconds, and what is asked of the run."""


class Wide(nn.Module):
    """Each frame's loudness times a vector for each state."""

    states_LD: Tensor

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.register_buffer("states_LD", torch.randn(LAYERS, WIDTH, generator=random))

    def get_downsample_rates(self, key: str) -> int:
        return STRIDE

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        waves_BN = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        frames = waves_BN.shape[1] // STRIDE
        loud_BT1 = waves_BN[:, : frames * STRIDE].unflatten(1, (frames, STRIDE)).square().mean(-1, keepdim=True)
        return {"hidden_states": [loud_BT1 * state_D for state_D in self.states_LD]}


def wide() -> Wide:
    return Wide()


def make(folder: Path, share: float) -> None:
    """The manifests and what they name, below ``folder``."""
    random = np.random.default_rng(0)
    (folder / "manifests").mkdir()
    for task, (splits, mean, _) in SIZES.items():
        label = "speaker" if task == "sid" else "speaker\ttext"
        (folder / "audio" / task).mkdir(parents=True)
        row = 0
        with open(folder / "manifests" / f"{task}.tsv", "w", encoding="utf-8") as file:
            file.write(f"id\tpath\tsamples\tsplit\t{label}\n")
            for split, count in splits.items():
                lengths = ((random.gamma(4.0, (mean - 0.5) / 4, FILES) + 0.5) * audio.RATE).astype(int)
                files = [folder / "audio" / f"{task}-{split}-{i}.wav" for i in range(FILES)]
                for name, samples in zip(files, lengths):
                    noise = random.integers(-9000, 9000, samples, dtype=np.int16)
                    soundfile.write(name, noise, audio.RATE)
                for i in range(max(SPEAKERS if task == "sid" else 1, round(share * count))):
                    os.link(files[i % FILES], folder / "audio" / task / f"{row}.wav")
                    said = f"s{i % SPEAKERS}" if task == "sid" else f"s\t{' '.join(WORDS[: 1 + i % len(WORDS)])}"
                    file.write(f"{row}\taudio/{task}/{row}.wav\t{lengths[i % FILES]}\t{split}\t{said}\n")
                    row += 1


def measured(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and MB of ``eval WORDS``."""
    here = Path(__file__).resolve().parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here.parent.parent, here))), "STAR_CACHE": str(folder)}
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "eval", *words], env=env, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise StarError(f"eval {shlex.join(words)}: ended with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1e3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the utterances")
    parser.add_argument("--cache-gb", type=float, default=4.0)
    parser.add_argument("--folder", type=path, help="of what is made, which goes when all is done (a temporary one)")
    parser.add_argument("--out", type=path, default=Path("results/speed/memory.md"))
    args = parser.parse_args(arguments)
    check_page(args.out, MAKER, TITLE, "rows")
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make(folder, args.share)
        for task, (_, _, asked) in SIZES.items():
            words = ["run", "--upstream", "memory:wide", "--tasks", task, "--data", str(folder), "--cache-gb"]
            words += [f"{args.cache_gb:g}", "--out", str(folder / "scores"), *asked]
            seconds, megabytes = measured(words, folder)
            record = json.loads((folder / "scores" / f"{task}.json").read_text(encoding="utf-8"))
            parts = [round(record[f"seconds_{part}"]) for part in ("encoding", "training")]
            rows.append([f"{task}, {record['rows']['used']:,} utterances", *parts, seconds, megabytes])
            say(str(rows[-1]))
        seconds, megabytes = measured(["report", str(folder / "scores")], folder)
        rows.append(["report", "", "", seconds, megabytes])
    header = ["", "encoding (s)", "training (s)", "whole command (s)", "peak (MB)"]
    shown = table(header, [[*map(str, parts), f"{seconds:,.0f}", f"{mb:,.0f}"] for *parts, seconds, mb in rows])
    python = platform.python_version()
    typed = f"python {shlex.join([MAKER, *(arguments or sys.argv[1:])])}"
    notes = (__doc__ or "").split("\n\n", 1)[1]
    page = f"{TITLE}\n\n{notes}\n{shown}\n\n`{typed}` on {processor()}, Python {python}.\n"
    write(args.out, page, {"rows": rows})
    print(args.out)
    return 0


if __name__ == "__main__":
    command(main)
