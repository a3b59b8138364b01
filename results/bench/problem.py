"""s3prl's side: its own SUPERB problems, whole, on a table of ours.

A problem's data step (``prepare_data``) is replaced by one that writes the csv files it states from our table;
everything else is s3prl's: encoders and tokenizers, data sets, collation, upstream, featurizer, head, task, optimizer
and the training loop.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
from torch import nn

from eval.features.upstreams import unseeded
from star_upstream import compat
from star_upstream.audio import RATE

NEVER = 10**9
PROBLEMS = {name.removeprefix("Superb").lower(): name for name in compat.SUPERB_PROBLEMS}
UPSTREAM = "star_bench"
"""The name under which s3prl's hub knows the upstream that is measured."""


class _Ready(Exception):
    """All that the training loop is given is there."""


@functools.cache
def _class(task: str) -> type:
    compat.apply()
    import s3prl.problem

    base: Any = getattr(s3prl.problem, PROBLEMS[task])

    class FromTable(base):
        csvs: tuple[pd.DataFrame, ...] = ()
        """train, dev and test; asv has train and trials."""
        tokenizer: Any = None
        """In the place of the one that s3prl makes."""
        before_training: Callable[[dict], None] | None = None
        """Given the arguments of ``train`` in its place."""
        on_task: Callable[[nn.Module], None] | None = None

        def prepare_data(self, prepare_data, target_dir, cache_dir, get_path_only=False):
            paths = [Path(target_dir) / f"{name}.csv" for name in ("train", "valid", "test")[-len(self.csvs) :]]
            paths[0] = Path(target_dir) / "train.csv"
            if not get_path_only:
                for csv, path in zip(self.csvs, paths, strict=True):
                    csv.to_csv(path, index=False)
            return (*paths[:-1], paths[-1:])

        def train(self, *args, **kwargs):
            if self.before_training is None:
                return super().train(*args, **kwargs)
            names = [name for name in base.train.__code__.co_varnames if name != "self"]
            self.before_training({**dict(zip(names, args)), **kwargs})

        def train_for_real(self, **kwargs):
            super().train(**kwargs)

        def build_batch_sampler(self, build_batch_sampler, target_dir, cache_dir, mode, *args, **kwargs):
            """None: batches are given to :meth:`Theirs.train`, and s3prl's reads all the audio for its lengths."""
            return None

        def build_task(self, *args, **kwargs):
            task = super().build_task(*args, **kwargs)
            if self.on_task is not None:
                self.on_task(task)
            return task

    if hasattr(base, "build_tokenizer"):

        def build_tokenizer(self, build_tokenizer, target_dir, cache_dir, tokenizer_data_path, get_path_only=False):
            import pickle

            path = base.build_tokenizer(
                self, build_tokenizer, target_dir, cache_dir, tokenizer_data_path, get_path_only
            )
            if self.tokenizer is not None and not get_path_only:
                Path(path).write_bytes(pickle.dumps(self.tokenizer))
            return path

        FromTable.build_tokenizer = build_tokenizer
    return FromTable


class Theirs:
    """One s3prl problem, built by its own ``run`` up to the training loop.

    expert: an upstream in s3prl's sense. tokenizer: for pr, asr and sf, so that both sides have the same symbols.
    changes: what differs from the problem's ``default_config``.
    """

    def __init__(
        self, task: str, table: pd.DataFrame, expert: nn.Module, tokenizer: Any = None, changes: dict | None = None
    ):
        compat.apply()
        from s3prl import hub

        self.folder = tempfile.TemporaryDirectory(prefix="star_bench_")
        self.expert, self.fresh = expert, 0
        self.head: Any = None
        setattr(hub, UPSTREAM, lambda **_: self.expert)
        self.problem = _class(task)()
        self.problem.csvs, self.places = tables(task, table)
        self.problem.tokenizer, self.problem.on_task = tokenizer, self._on_task
        self.problem.before_training = self._stop
        with silent(), contextlib.suppress(_Ready):
            self.problem.run(**self._config(changes or {}))

    def _config(self, changes: dict) -> dict:
        from omegaconf import OmegaConf

        default = self.problem.default_config()
        absent = {key: "" for key, value in default["prepare_data"].items() if value == "???"}
        fixed = {
            "target_dir": str(Path(self.folder.name) / "run"),
            "cache_dir": str(Path(self.folder.name) / "cache"),
            "prepare_data": absent,
            "build_upstream": {"name": UPSTREAM},
        }
        samplers = default["build_batch_sampler"]
        self.batch_of_evaluation = samplers.get("valid", samplers.get("test"))["batch_size"]
        merged = OmegaConf.merge(OmegaConf.create(default), OmegaConf.create(fixed), OmegaConf.create(changes))
        whole = cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))
        return {**whole, "device": "cpu", "num_workers": 0}

    def _stop(self, arguments: dict) -> None:
        self.arguments = arguments
        raise _Ready

    def _on_task(self, task: nn.Module) -> None:
        self.head = task

    def train(self, batches: Sequence[Sequence[int]], steps: int, accumulate: int) -> list[float]:
        """Run the training loop over ``batches`` (rows of the table). Returns seconds a batch: reading, forward,
        backward, and the update where one is due; an extra row at the end shows when the last one is over."""
        self.fresh += 1
        indices = [[self.places["train"][row] for row in batch] for batch in batches]
        dataset = _Timed(self.arguments["train_dataset"])
        changes = {
            "total_steps": steps,
            "gradient_accumulate": accumulate,
            "eval_step": NEVER,
            "save_step": NEVER,
            "log_step": NEVER,
        }
        arguments = {
            **self.arguments,
            "train": {**self.arguments["train"], **changes},
            "train_dir": str(Path(self.folder.name) / f"train{self.fresh}"),
            "train_dataset": dataset,
            "train_batch_sampler": _Fixed([*indices, indices[0][:1]]),
        }
        with silent(), unseeded():
            self.problem.train_for_real(**arguments)
        first = [sum(map(len, indices[:i])) for i in range(len(indices) + 1)]
        return [dataset.times[b] - dataset.times[a] for a, b in itertools.pairwise(first)]

    def evaluate(self, rows: Sequence[int], batch: int) -> float:
        """Seconds that s3prl's own evaluation of these dev rows takes, with the head of the last training."""
        valid = "valid_dataset" if self.arguments["valid_dataset"] is not None else "train_dataset"
        places = self.places["dev" if valid == "valid_dataset" else "train"]
        indices = [places[row] for row in rows]
        batches = [indices[i : i + batch] for i in range(0, len(indices), batch)]
        begun = time.perf_counter()
        with silent():
            task = self.head if valid == "valid_dataset" else _Embedding(self.head)
            self.problem.evaluate(
                {},
                "valid",
                task,
                self.arguments[valid],
                _Fixed(batches),
                self.arguments["train_collate_fn"],
                -1,
                self.folder.name,
                "cpu",
                0,
            )
        return time.perf_counter() - begun

    def close(self) -> None:
        self.folder.cleanup()


class _Embedding(nn.Module):
    """asv has no dev split: what its test does with a batch, on training utterances."""

    def __init__(self, task: Any):
        super().__init__()
        self.task = task

    def forward(self, _mode, x, x_len, _dump_dir=None, **_):
        self.task.predict(x, x_len)
        return None, {}

    def reduction(self, *_, **__) -> dict:
        return {}


class _Fixed:
    """A batch sampler of given batches."""

    def __init__(self, batches: list[list[int]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        pass


class _Timed:
    """A data set that notes when each item was asked for."""

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        self.times.append(time.perf_counter())
        return self.dataset[index]


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """What a side says while it is timed, such as s3prl's progress bars, goes nowhere."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def tables(task: str, table: pd.DataFrame) -> tuple[tuple[pd.DataFrame, ...], dict[str, dict[int, int]]]:
    """The csv files of a problem's ``prepare_data``, and where each of the table's rows is in its data set, by
    split."""
    parts = {split: table[table["split"] == split] for split in ("train", "dev", "test")}
    places = {split: {row: place for place, row in enumerate(part.index)} for split, part in parts.items()}
    if task == "asv":
        train, tested = parts["train"], parts["test"].set_index("id")
        trials = [(target, row.id, other) for row in parts["test"].itertuples() for target, other in row.trials]
        pairs = pd.DataFrame(
            [
                {"id1": a, "id2": b, "wav_path1": tested["path"][a], "wav_path2": tested["path"][b], "label": target}
                for target, a, b in trials
            ]
        )
        return (train[["id"]].assign(wav_path=train["path"], spk=train["speaker"].astype(str)), pairs), places
    return tuple(_csv(task, part) for part in parts.values()), places


def _csv(task: str, part: pd.DataFrame) -> pd.DataFrame:
    if task == "sd":
        return _recordings(part)
    csv = part[["id"]].assign(wav_path=part["path"])
    if task == "ic":
        return csv.assign(
            labels=[" ; ".join(map(str, row)) for row in zip(part["action"], part["object"], part["location"])]
        )
    if task == "pr":
        return csv.assign(transcription=[" ".join(phones.split()) for phones in part["phones"]])
    if task == "asr":
        return csv.assign(transcription=part["text"])
    if task == "sf":
        texts = [" ".join(text.split()) for text in part["text"]]
        return csv.assign(
            transcription=texts,
            iob=[" ".join(re.sub(r"^[BI]-", "", slot) for slot in slots.split()) for slots in part["slots"]],
        )
    label = part["speaker" if task == "sid" else "label"].astype(str)
    cut = (part["start"] > 0) | part["path"].duplicated(keep=False)
    starts, ends = part["start"] + 0.25, part["start"] + part["samples"] + 0.75  # they are rounded down to samples
    return csv.assign(label=label, start_sec=(starts / RATE).where(cut), end_sec=(ends / RATE).where(cut))


def _recordings(part: pd.DataFrame) -> pd.DataFrame:
    """A row a segment. Lengths are those of the chunks together, to the frame."""
    rows = []
    for recording, chunks in part.groupby("recording", sort=False):
        first = chunks.iloc[0]
        seconds = chunks["samples"].sum() / RATE + 0.25 * first["stride"] / RATE  # s3prl rounds it down to frames
        for n, (start, end, speaker) in enumerate(first["segments"]):
            rows.append(
                {
                    "record_id": recording,
                    "duration": seconds,
                    "wav_path": first["path"],
                    "utt_id": f"{recording}-{n}",
                    "speaker": f"{recording}-{speaker}",
                    "start_sec": start,
                    "end_sec": end,
                }
            )
    return pd.DataFrame(rows)
