"""Run what ``star export --stream`` wrote, with numpy and onnxruntime alone: a waveform piece by piece.

    stream = Stream("model.onnx")
    new = stream.push(samples)["state_7"]    # T x D, the frames that are new; T may be 0
    rest = stream.flush()["state_7"]         # the waveform has ended; the next push begins another

Shapes: T frames, D width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .runtime import Model

FORMAT = "star_upstream.stream.onnx"


class Stream(Model):
    """A stream through an exported model. ``threads``: None leaves it to onnxruntime. Raises :class:`ValueError` for
    another file."""

    format = FORMAT

    def __init__(self, path: str | Path, threads: int | None = None):
        super().__init__(path, threads)
        self.plan = self.about["stream"]
        self.names = [f"out_{i}" for i in range(len(self.plan["state"]))]
        self.reset()

    def reset(self) -> None:
        """Forget the waveform so far."""
        self.state = [
            np.array(x["values"], x["type"]).reshape(x["shape"]) if "values" in x else np.zeros(x["shape"], x["type"])
            for x in self.plan["state"]
        ]
        self.waiting = np.zeros(-self.plan["start"], np.float32)
        self.samples = self.frames = self.steps = 0

    def run(self, waves, names=None):
        """Raises :class:`ValueError`: whole waveforms are for another kind of file."""
        raise ValueError(f"{self.path}: is a stream: push() samples, and flush() at the end")

    def push(self, samples: np.ndarray) -> dict[str, np.ndarray]:
        """The frames that can be known since these samples (1-D floats at 16 kHz, any number) came: T x D by name."""
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise ValueError(f"expected 1-D floats at 16 kHz, got {samples.dtype} of shape {list(samples.shape)}")
        if not np.isfinite(samples).all():
            raise ValueError("expected finite samples")
        self.samples += len(samples)
        self.waiting = np.concatenate([self.waiting, samples.astype(np.float32)])
        return self._run(self.plan["unknown"], self.plan["unknown"])

    def flush(self) -> dict[str, np.ndarray]:
        """The rest of the waveform; the next push begins another."""
        end = max(self.samples, self.about["receptive_field"]) if self.samples else 0
        total = (end - self.about["receptive_field"]) // self.about["stride"] + 1 if end else 0
        steps = -((self.plan["frame"] - total) // self.plan["chunk"]) - self.steps
        missing = max(0, steps * self.plan["samples"] - len(self.waiting))
        self.waiting = np.concatenate([self.waiting, np.zeros(missing, np.float32)])
        rest = self._run(self.samples, total)
        self.reset()
        return rest

    def _run(self, end: int, total: int) -> dict[str, np.ndarray]:
        parts = {name: [np.zeros((0, about["width"]), np.float32)] for name, about in self.outputs.items()}
        size, chunk = self.plan["samples"], self.plan["chunk"]
        while len(self.waiting) >= size and self.frames < total:
            inputs = {f"in_{i}": x for i, x in enumerate(self.state)}
            inputs |= {"samples": self.waiting[None, :size], "end": np.array([end], np.int64)}
            found = self.session.run([*parts, *self.names], inputs)
            self.waiting, self.state = self.waiting[size:], found[len(parts) :]
            first = self.plan["frame"] + self.steps * chunk
            self.steps += 1
            last = min(first + chunk, total)
            if last > self.frames:
                for name, x in zip(parts, found):
                    parts[name].append(x[0, self.frames - first : last - first])
                self.frames = last
        self.waiting = self.waiting.copy()
        return {name: np.concatenate(part) for name, part in parts.items()}
