"""SoX's effects that s3prl's recipes use, on waveforms, without libsox: ``channels``, ``rate``, ``gain`` and
``silence``.

Shapes: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .errors import StarError

BLOCK = 16_000
"""Samples at a time that runs are looked for in."""


def apply_effects_tensor(
    tensor: torch.Tensor, sample_rate: int, effects: Sequence[Sequence[str]], channels_first: bool = True
) -> tuple[torch.Tensor, int]:
    """C x N waveform through SoX's ``channels``, ``rate``, ``gain`` and ``silence``, the effects that s3prl's recipes
    use.

    Raises :class:`StarError` for any other effect or form.
    """
    wave_CN = (tensor if channels_first else tensor.t()).float()
    for effect in effects:
        name, arguments = effect[0], [str(a) for a in effect[1:]]
        if name == "channels" and arguments in (["1"], [str(len(wave_CN))]):
            wave_CN = wave_CN.mean(0, keepdim=True) if arguments == ["1"] else wave_CN
        elif name == "rate" and arguments:
            new_rate = int(float(arguments[-1]))
            if new_rate != sample_rate:
                import torchaudio

                wave_CN, sample_rate = torchaudio.functional.resample(wave_CN, sample_rate, new_rate), new_rate
        elif name == "gain" and len(arguments) == 1:
            wave_CN = (wave_CN * 10.0 ** (float(arguments[0]) / 20.0)).clamp(-1.0, 1.0)
        elif name == "silence" and len(arguments) == 6 and arguments[0] == "1" and arguments[3] == "-1":
            wave_CN = _silence(wave_CN, sample_rate, *arguments[1:3], *arguments[4:])
        else:
            raise StarError(f"sox effect {list(effect)}: not one of channels 1, rate R, gain DB, silence 1 D T -1 D T")
    return (wave_CN if channels_first else wave_CN.t()), sample_rate


def _duration(text: str, rate: int) -> int:
    return int(text[:-1]) if text.endswith("s") else round(float(text) * rate)


def _threshold(text: str) -> float:
    if text.endswith("%"):
        return float(text[:-1]) / 100.0
    if text.endswith("d"):
        return 10.0 ** (float(text[:-1]) / 20.0)
    raise StarError(f"sox effect silence: threshold {text!r} must end in % or d")


def _silence(wave_CN: torch.Tensor, rate: int, above_for: str, above: str, below_for: str, below: str) -> torch.Tensor:
    """``silence 1 ABOVE_FOR ABOVE -1 BELOW_FOR BELOW`` on one channel: pauses at the start, inside and at the end are
    cut.

    After SoX's manual page. Two states over the root mean square of the last 1/50 s: *cutting* drops samples until
    ``above_for`` consecutive ones are above the threshold, and keeps those; *keeping* holds back what is below its
    threshold, lets it go when a louder sample comes, and drops it when the hold reaches ``below_for``, which also
    empties the window and returns to cutting.
    """
    if len(wave_CN) != 1:
        raise StarError("sox effect silence: one channel only; put channels 1 before it")
    samples_N = wave_CN[0].double().numpy()
    energy = np.concatenate([[0.0], np.cumsum(samples_N**2)])
    window, total = max(1, rate // 50), len(samples_N)
    least_above, least_below = max(1, _duration(above_for, rate)), max(1, _duration(below_for, rate))
    floor_above, floor_below = _threshold(above), _threshold(below)
    kept: list[torch.Tensor] = []
    emptied = at = 0
    while at < total:
        start = _first_run(True, energy, window, emptied, floor_above, at, least_above)
        if start is None:
            break
        stop = _first_run(False, energy, window, emptied, floor_below, start + least_above, least_below)
        kept.append(wave_CN[:, start : total if stop is None else stop])
        at = emptied = total if stop is None else stop + least_below
    return torch.cat(kept, 1) if kept else wave_CN[:, :0]


def _first_run(
    loud: bool, energy: np.ndarray, window: int, emptied: int, floor: float, first: int, least: int
) -> int | None:
    """Where the first ``least`` consecutive samples from ``first`` on begin that are all loud, or all not: their
    window, which holds nothing before ``emptied``, is above ``floor``. A block at a time: most runs are near."""
    total = len(energy) - 1
    before = first - 1
    for begin in range(first, total, BLOCK):
        ends = np.arange(begin + 1, min(begin + BLOCK, total) + 1)
        power = (energy[ends] - energy[np.maximum(ends - window, emptied)]).clip(min=0.0) / window
        others = begin + np.flatnonzero((np.sqrt(power) > floor) != loud)
        bounds = np.concatenate([[before], others, [ends[-1]]])
        long_enough = np.diff(bounds) > least
        if long_enough.any():
            return int(bounds[long_enough.argmax()]) + 1
        before = bounds[-2]
    return None
