"""A run's folder: what was asked, on what, with which software; logs; and the state from which it goes on after an
interruption.

recipe.yaml        what was asked for, whole
environment.json   versions, commit, host and command of every start
data.tsv           the clips (path, samples, start, part), so that a resumed run has the same ones
skipped.tsv        files that were left out, and why; and what was passed over, by ending
log.csv            one row a log point, and one a validation
state.pt           everything that a resumed run needs, written whole or not at all
last/ best/        the student, as checkpoints
loss.png done.json at the end
measured.json      options of a loss that were measured on audio (skill's groups of layers)
stage1/            of a run that prunes: log and state of stage 1, and at its end the student with its gates (gated/),
                   the loss's own parameters (loss.pt) and, written last, the smaller student (cut/) with which stage 2
                   starts
round1/ ...        of a pretraining: log, state and units (units.npz) of each round, and its encoder (encoder/)
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pandas as pd
import torch
import yaml
from lightning_fabric.utilities.rank_zero import rank_zero_only

from .. import outputs, strict
from ..data.audio_lists import cell, uncell
from ..data.clip_table import Clip, Clips, Table
from ..environment import environment
from ..errors import StarError, first_line
from ..files import home, leftovers, put_back, replacing, write_json
from ..formats import checkpoint

PARTS = ("train", "valid")
BEAT, SILENCE = 20.0, 900.0
"""Seconds between the first process's signs of life, and without one until the others give it up."""
STATE_VERSION = 2
"""Of ``state.pt``; rises when a state of before cannot be gone on with, or would be gone on with otherwise. 2: one
training loop; random crops that differ by epoch too; a pruned student's channel factors (``frontend.scale``) are no
longer trained."""


class RunFolder:
    """One run. Several processes may read it; only the first of them (``lead``) writes the files that are shared."""

    def __init__(self, path: str | Path, lead: bool | None = None, maker: str = "star distill"):
        """``lead``: whether this process writes; None asks Lightning, which knows the processes that it started."""
        self.path, self.maker = home(path), maker
        self.lead = getattr(rank_zero_only, "rank", 0) == 0 if lead is None else lead
        self.lock = self.path / ".lock"
        """Held by the first process, and touched again and again as long as it lives."""
        self._skipped: set[str] = set()
        self._columns: list[str] = []

    # the start of a run

    def claim(self, recipe: Any) -> str:
        """Take the folder for a run of ``recipe``: ``"new"``, ``"unfinished"`` or ``"finished"``. Nothing but a lock is
        written.

        Raises :class:`StarError` when the folder holds something else, or another process trains in it.
        """
        file = self.path / "recipe.yaml"
        if not self.lead:
            self.wait_for(file)
        else:
            self._lock()
        if not file.is_file():
            # the recipe is written last, so a start that failed leaves at most these
            known = {outputs.MARK, ".lock", "data.tsv", "skipped.tsv", "measured.json"}
            others = sorted(p.name for p in self.path.iterdir() if p.name not in known)
            if others:
                raise StarError(
                    f"{self.path}: is not empty and holds no run, but {', '.join(others[:3])}; choose another folder"
                )
            return "new"
        try:
            there = strict.build(type(recipe), yaml.safe_load(file.read_text(encoding="utf-8")))
        except (StarError, yaml.YAMLError) as error:
            raise StarError(f"{file}: is no recipe of {self.maker} ({error}); choose another folder") from None
        if difference := recipe.difference(there):
            raise StarError(f"{self.path}: holds a run of another recipe ({difference}); choose another folder")
        if self.lead:
            self._repair()
        return "unfinished" if self.result() is None else "finished"

    def begin(self, recipe: str, parts: Mapping[str, Iterable[Clip]], skipped: Iterable[tuple[str, str]]) -> None:
        """Write what the run is."""
        for name in ("data.tsv", "skipped.tsv"):
            (self.path / name).unlink(missing_ok=True)
        self.add_skipped(skipped)
        with replacing(self.path / "data.tsv") as file, open(file, "w", encoding="utf-8", newline="\n") as stream:
            stream.write("path\tsamples\tstart\tpart\n")
            for part, clips in parts.items():
                stream.writelines(f"{cell(path)}\t{samples}\t{start}\t{part}\n" for path, samples, start in clips)
        _write(self.path / "recipe.yaml", recipe)

    def _lock(self) -> None:
        outputs.claim_folder(self.path, self.maker, _is_run)
        try:
            self._lock_file = open(self.lock, "w")  # noqa: SIM115 held as long as the run
            # a record lock goes with its process, however that ends, and is not inherited by its workers
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            threading.Thread(target=_beat, args=(weakref.ref(self._lock_file),), daemon=True).start()
        except BlockingIOError:
            raise StarError(
                f"{self.path}: another process is training there; wait for it or choose another folder"
            ) from None
        except OSError as error:
            raise StarError(f"{self.path}: cannot be written ({error.strerror})") from None

    def wait_for(self, file: Path) -> None:
        """Until the first process has written ``file``. Raises :class:`StarError` once that one seems to be gone."""
        sign, limit = self._sign(), time.monotonic() + SILENCE
        while not file.is_file():
            if (latest := self._sign()) != sign:
                sign, limit = latest, time.monotonic() + SILENCE
            if time.monotonic() > limit:
                minutes = f"{SILENCE / 60:.0f} minutes"
                raise StarError(f"{file}: is not written, and the first process gave no sign of life for {minutes}")
            time.sleep(0.2)

    def _sign(self) -> int | None:
        try:
            return self.lock.stat().st_mtime_ns
        except OSError:
            return None

    def _repair(self) -> None:
        """Undo what a kill in the middle of a replacement leaves behind."""
        for name in (self.path / "last", self.path / "best"):
            for old in leftovers(name, "old"):
                if name.exists():
                    put_back(old, name, checkpoint.OWN)
                else:
                    os.replace(old, name)

    def record_environment(self, extra: Mapping[str, Any]) -> None:
        """Add this start to environment.json."""
        file = self.path / "environment.json"
        starts = json.loads(file.read_text(encoding="utf-8"))["starts"] if file.is_file() else []
        write_json(file, {"starts": [*starts, {**environment(), **extra}]})

    def amend_environment(self, extra: Mapping[str, Any]) -> None:
        """Add to what environment.json has of this start; a folder of a stage has only this."""
        file = self.path / "environment.json"
        if not file.is_file():
            self.record_environment({})
        starts = json.loads(file.read_text(encoding="utf-8"))["starts"]
        write_json(file, {"starts": [*starts[:-1], {**starts[-1], **extra}]})

    # the data

    def read_clips(self) -> dict[str, Clips]:
        """The clips of each part, as the run began with them."""
        parts = {name: Table() for name in PARTS}
        with open(self.path / "data.tsv", encoding="utf-8", newline="\n") as stream:
            next(stream)
            for line in stream:
                # a run that began before clips had a start has no such column
                path, samples, *start, part = line.rstrip("\n").split("\t")
                parts[part].add(uncell(path), int(samples), *map(int, start))
        return {name: table.clips() for name, table in parts.items()}

    def add_skipped(self, files: Iterable[tuple[str, str]]) -> int:
        """List files that could not be used, each once; the number of files listed by this process and before its
        start."""
        file = self.path / "skipped.tsv"
        if not self._skipped and file.is_file():
            lines = file.read_text(encoding="utf-8").split("\n")[1:-1]
            self._skipped = {line.split("\t")[0] for line in lines}
        new = {cell(path): reason for path, reason in files if cell(path) not in self._skipped}
        if new:
            header = "" if file.is_file() else "path\treason\n"
            with open(file, "a", encoding="utf-8", errors="replace", newline="\n") as stream:
                stream.write(header + "".join(f"{path}\t{' '.join(reason.split())}\n" for path, reason in new.items()))
            self._skipped.update(new)
        return len(self._skipped)

    # the log

    def open_log(self, update: int) -> None:
        """Forget rows past ``update``: the resumed run will write them again."""
        if self.lead:
            self._columns = []
            self._write_log([row for row in self._rows() if int(row["update"]) <= update])

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a row; the whole log is written anew only where the row has a column that none had."""
        if not self.lead:
            return
        if not set(row) <= set(self._columns):
            self._write_log([*self._rows(), row])
            return
        with open(self.path / "log.csv", "a", encoding="utf-8") as stream:
            stream.write(self._line(row))

    def _rows(self) -> list[Mapping[str, Any]]:
        file = self.path / "log.csv"
        if not file.is_file():
            return []
        with open(file, encoding="utf-8", newline="") as stream:
            # cells stay as they were written; a line that a kill cut short has no last cell
            rows = [row for row in csv.DictReader(stream) if None not in row.values() and row["update"].isdigit()]
        return [{k: v for k, v in row.items() if v} for row in rows]

    def _write_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._columns = list(dict.fromkeys([*self._columns, *(key for row in rows for key in row)]))
        if rows:
            _write(self.path / "log.csv", ",".join(self._columns) + "\n" + "".join(map(self._line, rows)))
        else:
            (self.path / "log.csv").unlink(missing_ok=True)

    def _line(self, row: Mapping[str, Any]) -> str:
        return ",".join(_cell(row.get(column)) for column in self._columns) + "\n"

    # the state

    def inner(self, name: str) -> RunFolder:
        """The folder of a stage of this run."""
        folder = RunFolder(self.path / name, self.lead)
        folder.lock = self.lock
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    def save_state(self, state: Mapping[str, Any]) -> None:
        with replacing(self.path / "state.pt") as part:
            torch.save({"version": STATE_VERSION, **state}, part)

    def load_state(self) -> dict[str, Any] | None:
        """What :meth:`save_state` wrote last; None where nothing was. Raises :class:`StarError` for a state of another
        version."""
        file = self.path / "state.pt"
        if not file.is_file():
            return None
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise StarError(f"{file}: cannot be read ({first_line(error)}); remove it to start the run again") from None
        if state.get("version") != STATE_VERSION:
            there = f"version {state['version']}" if "version" in state else "an older version"
            fix = "finish the run with the star_upstream that began it, or remove state.pt to start it again"
            raise StarError(
                f"{file}: is the state of {there} of the training loop, this one reads version {STATE_VERSION}; {fix}"
            )
        return state

    # the end

    def finish(self, result: Mapping[str, Any]) -> None:
        draw_losses(self.path)
        write_json(self.path / "done.json", result)

    def finish_with(self, model: str, parts: Sequence[str]) -> None:
        """:meth:`finish` with the name of the run's checkpoint, and those ``parts`` of its provenance that it has."""
        if self.lead:
            written = checkpoint.describe(self.path / model)["provenance"]
            self.finish({"checkpoint": model, **{key: written[key] for key in parts if key in written}})

    def result(self) -> dict[str, Any] | None:
        """What :meth:`finish` was given; None for a run that is not finished."""
        file = self.path / "done.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _beat(lock: Callable[[], IO | None]) -> None:
    while file := lock():
        with contextlib.suppress(OSError):
            os.utime(file.fileno())
        del file
        time.sleep(BEAT)


def _is_run(folder: Path) -> bool:
    """Whether a folder without our mark, such as a copy that hidden files did not come along with, is a run's."""
    try:
        return (
            "starts" in json.loads((folder / "environment.json").read_text(encoding="utf-8"))
            and (folder / "recipe.yaml").is_file()
        )
    except (OSError, ValueError, TypeError):
        return False


def read_log(folder: str | Path) -> pd.DataFrame:
    """log.csv as a table; cells that a row does not have are NaN."""
    return pd.read_csv(Path(folder) / "log.csv")


def draw_losses(folder: str | Path) -> None:
    """``loss.png``: training and validation loss over updates, and where a run prunes sparsity against its target."""
    from matplotlib.figure import Figure

    file = Path(folder) / "log.csv"
    if not file.is_file():
        return
    table = read_log(folder)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for column, label, style in (
        ("train/loss", "training", {"lw": 1.0}),
        ("valid/loss", "validation", {"marker": "o", "ms": 3}),
    ):
        if column in table:
            rows = table[table[column].notna()]
            axes.plot(rows["update"], rows[column], label=label, **style)
    axes.set(
        xlabel="updates", ylabel="loss", yscale="log" if (table.filter(like="/loss").min().min() > 0) else "linear"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    if "pruning/sparsity" in table:
        rows, right = table[table["pruning/sparsity"].notna()], axes.twinx()
        right.plot(rows["update"], rows["pruning/sparsity"], color="tab:green", lw=1.0, label="expected sparsity")
        right.plot(rows["update"], rows["pruning/target"], color="tab:green", ls="--", lw=1.0, label="its target")
        right.set(ylabel="sparsity", ylim=(0, 1))
        right.legend(loc="center right")
    with replacing(Path(folder) / "loss.png") as part:
        figure.savefig(part, format="png", dpi=130)


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
