"""The tasks of the comparison: keywords and emotions as they are, speakers by the first seconds of every utterance.

    python results/compare/data.py ../shared/realspeech OUT [--seconds 4] [--every 2]

OUT gets the manifests, and a link to the audio.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

AS_THEY_ARE = ("ks.tsv", "er.tsv")


def write(pack: Path, out: Path, seconds: float, every: int) -> None:
    """With each ``every``-th of the speakers. Raises :class:`FileExistsError` for an ``out`` that is there."""
    (out / "manifests").mkdir(parents=True)
    (out / "audio").symlink_to((pack / "audio").resolve())
    for name in AS_THEY_ARE:
        (out / "manifests" / name).write_bytes((pack / "manifests" / name).read_bytes())
    speakers = pd.read_csv(pack / "manifests" / "sid.tsv", sep="\t", dtype={"id": str})
    names = sorted(speakers["speaker"].unique())[::every]
    speakers = speakers[speakers["speaker"].isin(names)].copy()
    speakers["samples"] = speakers["samples"].clip(upper=round(seconds * 16_000))
    speakers.to_csv(out / "manifests" / "sid.tsv", sep="\t", index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--every", type=int, default=1, help="keep each so many-th speaker (1: all)")
    given = parser.parse_args()
    write(given.pack, given.out, given.seconds, given.every)
