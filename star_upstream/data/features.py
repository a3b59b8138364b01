"""What a fine-tuning reads again and again, kept on disk: decoded waveforms (16 bit), and states of a frozen encoder
(fp16).

Files are memory-mapped, so that runs side by side share them. Shapes: B utterances, N samples, T frames, S states, D
width.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .. import audio, cores
from ..encoder import EncoderConfig
from ..errors import StarError
from ..files import replacing
from ..say import say
from .task_batches import TaskBatch, Utterances, collate, whole
from .tasks import TaskData


class Waves:
    """Decoded utterances of a task."""

    def __init__(self, folder: Path):
        self.ends = np.load(folder / "ends.npy")
        self.values = np.memmap(folder / "values", dtype=np.int16, mode="r", shape=(int(self.ends[-1]),))

    def read(self, row: int, first: int, samples: int) -> Tensor:
        """Samples ``first`` to ``first + samples`` of the utterance, as far as it goes."""
        begin = int(self.ends[row - 1]) if row else 0
        part = self.values[begin + first : min(begin + first + samples, int(self.ends[row]))]
        return torch.from_numpy(part.astype(np.float32) / 32768.0)


class States:
    """States of whole utterances of a task."""

    def __init__(self, folder: Path, config: EncoderConfig):
        self.ends, self.config = np.load(folder / "ends.npy"), config
        self.shape = tuple(np.load(folder / "shape.npy").tolist())
        self.values = np.memmap(folder / "values", dtype=np.float16, mode="r", shape=(int(self.ends[-1]), *self.shape))

    def read(self, row: int, first: int, samples: int) -> Tensor:
        """T x S x D: as many frames as ``samples`` samples have, from the one nearest to sample ``first``; at least
        one."""
        begin = int(self.ends[row - 1]) if row else 0
        total = int(self.ends[row]) - begin
        count = min(total, int(self.config.frames(samples)))
        start = begin + min(first // self.config.stride, total - count)
        return torch.from_numpy(np.array(self.values[start : start + count]))


def waves(task: TaskData, folder: Path) -> Waves:
    """The task's waveforms, decoded now or before. Raises :class:`StarError` for a file that cannot be decoded."""

    def make(part: Path) -> None:
        table = task.table
        jobs = list(zip(table["path"], table["start"], table["samples"]))

        def decode(job) -> np.ndarray:
            return np.clip(np.rint(audio.piece(job[0], int(job[1]), int(job[2])) * 32768.0), -32768, 32767).astype(
                np.int16
            )

        lengths, told = [], time.monotonic()
        with ThreadPoolExecutor(min(2, cores.available())) as pool, open(part / "values", "wb") as file:
            # a few hundred at a time, so that what is decoded ahead stays small
            for at in range(0, len(jobs), 256):
                for value in pool.map(decode, jobs[at : at + 256]):
                    file.write(value.tobytes())
                    lengths.append(len(value))
                told = _tell(told, f"{task.name}: decoded {len(lengths)} of {len(jobs)}")
        np.save(part / "ends.npy", np.cumsum(lengths))

    return Waves(_kept(folder / f"waves-{_key(task.config.data, task.digest, task.place)}", make))


def states(
    utterances: Utterances,
    config: EncoderConfig,
    shape: tuple[int, int],
    encode: Callable[[TaskBatch], tuple[Sequence[Tensor], Tensor]],
    key: Sequence[str],
    folder: Path,
) -> States:
    """What ``encode`` gives of a frozen encoder for all ``utterances``, which are of one task, encoded now or before.

    ``encode``: a batch of waveforms -> its states (B x T x D each, as many and as wide as ``shape`` says) and their
    valid frames. ``key``: all that decides the states beside the task's data. Raises :class:`StarError` where the disk
    or fp16 cannot hold them.
    """
    (task,), (count, width) = utterances.tasks, shape
    frames = np.array([int(config.frames(int(n))) for n in task.table["samples"]])

    def make(part: Path) -> None:
        size = int(frames.sum()) * count * width * 2
        fix = "set data.keep_states=false"
        if shutil.disk_usage(part).free < 1.05 * size:
            raise StarError(f"{part.parent}: {size / 1e9:.1f} GB for a frozen encoder's states do not fit; {fix}")
        values = np.memmap(part / "values", dtype=np.float16, mode="w+", shape=(int(frames.sum()), count, width))
        begins = np.cumsum(frames) - frames
        batches, done, told = whole([task], 0, range(len(task.table))), 0, time.monotonic()
        for keys, batch in zip(batches, DataLoader(utterances, batch_sampler=batches, collate_fn=collate)):
            found, lengths_B = encode(batch)
            x_BTSD = torch.stack(list(found), 2).float().cpu().numpy().astype(np.float16)
            if not np.isfinite(x_BTSD).all():
                raise StarError(f"tasks.{task.name}: states that are not finite, or too large for fp16; {fix}")
            for (_, row, _, _), own_TSD, valid in zip(keys, x_BTSD, lengths_B.tolist()):
                # a file may be shorter than the table says; its last frame fills up what is missing
                valid = min(valid, frames[row])
                values[begins[row] : begins[row] + valid] = own_TSD[:valid]
                values[begins[row] + valid : begins[row] + frames[row]] = own_TSD[valid - 1]
            done += len(keys)
            told = _tell(told, f"{task.name}: encoded {done} of {len(task.table)}")
        values.flush()
        np.save(part / "ends.npy", np.cumsum(frames))
        np.save(part / "shape.npy", np.array([count, width]))

    name = _key(task.config.data, task.digest, task.place, *key)
    return States(_kept(folder / f"states-{name}", make), config)


def clear(folder: Path) -> None:
    """Remove what :func:`waves` and :func:`states` keep in ``folder``, and the folder where nothing else is in it."""
    for entry in folder.glob("*-*-*") if folder.is_dir() else ():
        if re.fullmatch(r"(waves|states)-\w+-[0-9a-f]{16}", entry.name):
            shutil.rmtree(entry, ignore_errors=True)
            entry.with_name(f".{entry.name}.lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or not empty
        folder.rmdir()


def _kept(path: Path, make: Callable[[Path], None]) -> Path:
    """``path``, made by one process while the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            with replacing(path) as part:
                part.mkdir()
                make(part)
    return path


def _key(name: str, *parts: str) -> str:
    return f"{name}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"


def _tell(last: float, text: str) -> float:
    now = time.monotonic()
    if now - last < 15.0:
        return last
    say(text)
    return now
