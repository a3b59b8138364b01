"""No test utterance in the pretraining data: by path, by identifier, by the file's bytes, and by what is heard.

    python -m star_upstream.mini.leaks unlabelled.tsv MANIFEST_FOLDER

Test utterances are the rows of the folder's manifests with split ``test``, those with a ``set`` or a ``fold`` (every
row of them is scored), and both sides of trials. Prints what was compared, as json; exit status 1 when something is in
both.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import audio, extras
from ..errors import StarError
from ..files import sha256
from ..say import command

if TYPE_CHECKING:
    import pandas as pd

ENVELOPE, ALIKE = 0.9, 0.5
"""Two files of nearly the same length count as one recording, whatever codec was between, when the correlation of their
energies every 10 ms and, at some shift, that of their waveforms are above these. Two speakers of one word reach the
first, not the second.
"""


def tested(table: pd.DataFrame) -> list[str]:
    """Paths of a manifest's test utterances."""
    trials = [column for column in table.columns if column.endswith("_path") and column != "rttm_path"]
    if trials:
        return [path for column in trials for path in table[column]]
    if "path" not in table:
        return []
    if "split" in table:
        table = table[table["split"] == "test"]
    elif "set" not in table and "fold" not in table:
        return []
    return list(table["path"])


def compare(pretraining: Path, folder: Path) -> dict:
    """What of ``pretraining`` is also tested: lists of pairs (pretraining path, test path) by the way they were
    found."""
    table = _read(pretraining)
    if not {"path", "samples"} <= set(table.columns):
        raise StarError(f"{pretraining}: the header line must name the columns path and samples")
    learned = {path: int(samples) for path, samples in table[["path", "samples"]].itertuples(index=False)}
    test = {path for file in sorted(folder.glob("*.tsv")) for path in tested(_read(file))}
    if not test:
        raise StarError(f"{folder}: no manifest with test utterances")
    base = next((b for b in (folder, folder.parent) if (b / min(test)).is_file()), folder)
    names = {Path(path).stem: path for path in learned}
    found = {
        "by path": [(path, path) for path in sorted(test & learned.keys())],
        "by identifier": [(names[Path(path).stem], path) for path in sorted(test) if Path(path).stem in names],
    }
    bytes_of = {sha256(base / path): path for path in learned}
    hashes = {path: sha256(base / path) for path in sorted(test)}
    found["by bytes"] = [(bytes_of[digest], path) for path, digest in hashes.items() if digest in bytes_of]
    found["by what is heard"], pairs = _heard(base, learned, sorted(test))
    return {"pretraining": len(learned), "tested": len(test), "pairs heard": pairs, "in both": found}


def _read(file: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(file, sep="\t", quoting=3, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise StarError(f"{file}: cannot be read as a manifest ({error})") from None


def _heard(base: Path, learned: dict[str, int], test: list[str], slack: int = 80) -> tuple[list[tuple[str, str]], int]:
    """Pairs of nearly the same length that sound alike, and how many were compared."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for path, samples in learned.items():
        by_length[samples // slack].append(path)
    found, pairs, known = [], 0, dict[Path, tuple[int, np.ndarray]]()
    for path in test:
        samples, mine = _envelope(base / path, known)
        for place in range(samples // slack - 1, samples // slack + 2):
            for other in by_length.get(place, []):
                pairs += 1
                theirs = _envelope(base / other, known)[1]
                size = min(len(mine), len(theirs))
                if (
                    size > 1
                    and np.corrcoef(mine[:size], theirs[:size])[0, 1] > ENVELOPE
                    and agreement(audio.read(base / path), audio.read(base / other), slack) > ALIKE
                ):
                    found.append((other, path))
    return found, pairs


def _envelope(file: Path, known: dict[Path, tuple[int, np.ndarray]]) -> tuple[int, np.ndarray]:
    """Samples of a file, and its log energy every 10 ms."""
    if file not in known:
        wave_N = audio.read(file)
        frames = wave_N[: len(wave_N) // 160 * 160].reshape(-1, 160)
        known[file] = len(wave_N), np.log((frames**2).mean(1) + 1e-6)
    return known[file]


def agreement(one_N: np.ndarray, other_N: np.ndarray, slack: int) -> float:
    """The largest correlation of two waveforms over shifts of up to ``slack`` samples, whatever its sign."""
    points = 2 ** int(np.ceil(np.log2(len(one_N) + len(other_N))))
    product = np.fft.irfft(np.fft.rfft(one_N, points) * np.fft.rfft(other_N, points).conj(), points)
    near = np.concatenate([product[: slack + 1], product[-slack:]])
    return float(np.abs(near).max() / (np.linalg.norm(one_N) * np.linalg.norm(other_N) + 1e-9))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m star_upstream.mini.leaks", description=__doc__.split("\n\n")[0])
    parser.add_argument("pretraining", type=Path, help="manifest of the pretraining data")
    parser.add_argument("folder", type=Path, help="folder with the tasks' manifests")
    args = parser.parse_args(argv)
    extras.need("train")
    result = compare(args.pretraining, args.folder)
    print(json.dumps(result, indent=2))
    return int(any(result["in both"].values()))


if __name__ == "__main__":
    command(main)
