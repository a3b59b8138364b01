"""SoX's effects that s3prl's recipes use, on waveforms, without libsox: ``channels``, ``rate``, ``gain`` and
``silence``.

Shapes: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from .errors import StarError


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
    total = len(samples_N)
    window = max(1, rate // 50)
    energy = np.concatenate([[0.0], np.cumsum(samples_N**2)])
    least_above, least_below = max(1, _duration(above_for, rate)), max(1, _duration(below_for, rate))
    floor_above, floor_below = _threshold(above), _threshold(below)

    def loud(first: int, last: int, emptied: int, floor: float) -> np.ndarray:
        ends = np.arange(first + 1, last + 1)
        power = (energy[ends] - energy[np.maximum(ends - window, emptied)]).clip(min=0.0) / window
        return np.sqrt(power) > floor

    def quiet(first: int, last: int, emptied: int, floor: float) -> np.ndarray:
        return ~loud(first, last, emptied, floor)

    kept: list[torch.Tensor] = []
    emptied = at = 0
    while at < total:
        start = _first_run(partial(loud, emptied=emptied, floor=floor_above), at, total, least_above)
        if start is None:
            break
        stop = _first_run(partial(quiet, emptied=emptied, floor=floor_below), start + least_above, total, least_below)
        kept.append(wave_CN[:, start : total if stop is None else stop])
        at = emptied = total if stop is None else stop + least_below
    return torch.cat(kept, 1) if kept else wave_CN[:, :0]


def _first_run(
    test: Callable[[int, int], np.ndarray], first: int, last: int, least: int, block: int = 16_000
) -> int | None:
    """Where the first ``least`` consecutive samples that pass ``test`` begin, looking at a block at a time."""
    run = 0
    for begin in range(first, last, block):
        passed = test(begin, min(begin + block, last))
        edges = np.flatnonzero(np.diff(np.concatenate([[False], passed, [False]]).astype(np.int8)))
        for left, right in zip(edges[::2], edges[1::2]):
            run = run + right if left == 0 else right - left
            if run >= least:
                return int(begin + right - run)
        if not len(passed) or not passed[-1]:
            run = 0
    return None
