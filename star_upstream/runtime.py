"""Run what ``star export`` wrote, with numpy and onnxruntime alone; a product may copy this file.

    model, wave = Model("model.onnx"), read("a.wav")
    model([wave])["state_8"], model.keyword(wave)   # T x D of each waveform; names: model.outputs

Shapes: B utterances, N samples at 16 kHz, T frames, D width, E channels of a vector.
"""

from __future__ import annotations

import json
import wave as wav
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

KEY, FORMAT, RATE, CPU = "star_upstream", "star_upstream.onnx", 16_000, Path("/proc/cpuinfo")
EXACT = str(int(not CPU.exists() or "vnni" not in CPU.read_text()))  # x86 without VNNI: sums of 8-bit products saturate


class Model:
    """An exported model. ``threads``: None leaves it to onnxruntime. Raises :class:`ValueError` for another file."""

    def __init__(self, path: str | Path, threads: int | None = None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
        options.add_session_config_entry("session.x64quantprecision", EXACT)
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for every reason
            reason = f"no file of star export, nor any that onnxruntime runs ({str(error).strip().splitlines()[0]})"
            raise ValueError(f"{path}: {reason if Path(path).exists() else 'no such file'}") from None
        self.about: dict[str, Any] = json.loads(self.session.get_modelmeta().custom_metadata_map.get(KEY, "{}"))
        if self.about.get("format") != getattr(self, "format", FORMAT):
            raise ValueError(f"{path}: not a file of star export for {type(self).__name__} (--stream: for Stream)")
        self.path, self.outputs = path, self.about["outputs"]

    def run(self, waves: Sequence[np.ndarray], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs as the file has them, padded (B x ...), by name, and ``frames``, the valid frames of each."""
        if isinstance(waves, np.ndarray) or not waves or any(np.ndim(x) != 1 or not len(x) for x in waves):
            raise ValueError("expected a list of 1-D waveforms at 16 kHz, none of them empty")
        if any(np.asarray(x).dtype.kind != "f" or not np.isfinite(x).all() for x in waves):
            raise ValueError("expected waveforms of finite floats; 16-bit samples are divided by 32768")
        lengths = np.array([len(x) for x in waves], dtype=np.int64)
        padded = np.stack([np.pad(np.asarray(x, np.float32), (0, lengths.max() - len(x))) for x in waves])
        names = [*(self.outputs if names is None else names), "frames"]
        return dict(zip(names, self.session.run(names, {"waveforms": padded, "lengths": lengths})))

    def __call__(self, waves: Sequence[np.ndarray], names: Sequence[str] | None = None) -> dict[str, list[np.ndarray]]:
        """The same, one array an utterance: T x D without padding, or the answer of a head."""
        given = self.run(waves, names)
        frames = given.pop("frames")
        return {k: [x[:t] if x.ndim == 2 else x for x, t in zip(value, frames)] for k, value in given.items()}

    def classify(self, wave: np.ndarray, head: str = "keyword") -> dict[str, float]:
        """Every label with its share of one, the most likely first."""
        shares, labels = self._answer(wave, head, "shares"), self.outputs[head]["labels"]
        return {labels[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}

    def keyword(self, wave: np.ndarray) -> str:
        """The most likely label."""
        return next(iter(self.classify(wave)))

    def speaker_embedding(self, wave: np.ndarray, head: str = "speaker") -> np.ndarray:
        """A vector (E) of length 1."""
        return self._answer(wave, head, "vector")

    def similarity(self, one: np.ndarray, other: np.ndarray, head: str = "speaker") -> float:
        """Cosine of two utterances' vectors: high for one speaker."""
        return float(self.speaker_embedding(one, head) @ self.speaker_embedding(other, head))

    def _answer(self, wave: np.ndarray, head: str, kind: str) -> np.ndarray:
        if self.outputs.get(head, {}).get("kind") != kind:
            there = ", ".join(f"{name} ({about['kind']})" for name, about in self.outputs.items())
            raise ValueError(f"{self.path}: has no head {head!r} that gives {kind}; it has {there}")
        return self([wave], [head])[head][0]


def read(path: str | Path) -> np.ndarray:
    """The file's waveform (N, float32): wav, and with soundfile installed all that it reads. Channels are averaged."""
    try:
        try:
            import soundfile

            x, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        except ImportError:
            with wav.open(str(path), "rb") as file:
                width, rate, raw = file.getsampwidth(), file.getframerate(), file.readframes(file.getnframes())
                whole = np.frombuffer(raw, {1: "u1", 2: "<i2", 4: "<i4"}[width])  # 24 bits: KeyError
                x = whole.reshape(-1, file.getnchannels()).astype(np.float32) / 2 ** (8 * width - 1) - (width == 1)
    except Exception as error:  # wav.Error, OSError, soundfile's
        reason = f"cannot be read as audio ({error}); without soundfile: wav of 16 bits"
        raise ValueError(f"{path}: {reason if Path(path).exists() else 'no such file'}") from None
    if rate != RATE or not len(x) or not np.isfinite(x).all():
        wrong = f"{rate} Hz; this model hears 16 kHz: resample it first" if rate != RATE else "empty, or not finite"
        raise ValueError(f"{path}: {wrong}")
    return x.mean(1)
