"""Remove what the Makefile's targets made, file by file, and nothing else: ``python -m eval.clean FOLDER...``."""

from __future__ import annotations

import contextlib
import sys
from fnmatch import fnmatch
from pathlib import Path

from star_upstream import extras, outputs
from star_upstream.formats import checkpoint
from star_upstream.say import command, say

RUN = (
    outputs.MARK,
    ".lock",
    "recipe.yaml",
    "environment.json",
    "data.tsv",
    "skipped.tsv",
    "log.csv",
    "state.pt",
    "loss.png",
    "done.json",
    "measured.json",
    "groups.json",
    *(f"{name}/{file}" for name in ("last", "best") for file in checkpoint.OWN[:2]),
    "tensorboard/events.out.tfevents.*",
    "tensorboard/hparams.yaml",
)
"""Files of a run of ``star distill``."""


def made(folder: Path) -> set[Path]:
    """The files in ``folder`` and below that corpora by synthesis, distillations, evaluations and reports are known
    by."""
    from . import report, run, tasks
    from .data import mini

    found: set[Path] = set()
    mark = outputs.read_mark(folder)
    names = [
        name for name in outputs.walk(folder) if mark == "star distill" and any(fnmatch(name, known) for known in RUN)
    ]
    if mini.is_made(folder):
        names += [mini.MARKER, *(["README.md"] if mini.is_card(folder / "README.md") else [])]
        for corpus in mini.folders():
            foreign = set(outputs.strangers(folder / corpus))
            names += [f"{corpus}/{name}" for name in outputs.walk(folder / corpus) if name not in foreign]
    if mark == run.MAKER:
        ends = (".log", ".error.txt", run.RESAMPLES)
        names += [
            outputs.MARK,
            *(f"{task}{end}" for task in tasks.names() for end in ends),
            *(f"{run.PROGRESS}/{task}.pt" for task in tasks.names()),
        ]
        names += [path.name for path in folder.glob("*.json") if run.is_record(path)]
    names += [path.name for path in folder.iterdir() if path.is_file() and report.is_report(path)]
    found.update(folder / name for name in names if (folder / name).is_file())
    for below in folder.iterdir():
        if below.is_dir() and not below.is_symlink():
            found |= made(below)
    return found


def remove(folder: Path) -> list[Path]:
    """Remove them, and their folders where these are empty then; what is left."""
    if not folder.is_dir():
        return []
    held = set[Path]()
    for path in made(folder):
        path.unlink()
        held |= {above for above in path.parents if above.is_relative_to(folder)}
    for above in sorted(held, reverse=True):  # the innermost first
        with contextlib.suppress(OSError):  # not empty
            above.rmdir()
    return sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else []


def main(argv: list[str] | None = None) -> int:
    extras.need("eval")
    for folder in map(Path, sys.argv[1:] if argv is None else argv):
        if left := remove(folder):
            say(f"{folder}: kept {len(left)} files that make did not make, such as {left[0].relative_to(folder)}")
    return 0


if __name__ == "__main__":
    command(main)
