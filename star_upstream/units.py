"""Units for masked prediction: k-means over MFCC frames, or over a layer of any encoder.

Shapes: T frames, F features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from . import audio
from .data.batches import AudioDataset, BucketSampler, collate
from .data.clip_table import Clip, samples
from .encoder import Encoder, EncoderConfig
from .errors import StarError
from .files import replacing
from .say import say

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

FITTED = 8_000.0
"""Seconds of audio, of clips drawn from all, that k-means is fitted on."""

Features = Callable[[Sequence[Clip]], Iterator[tuple[int, np.ndarray]]]
"""The T x F features of clips, one after another, each with the place of its clip; in any order."""


def mfcc(clip: Clip, config: EncoderConfig) -> np.ndarray:
    """T x 39 MFCC with first and second differences, framed as the encoder frames, normalised over the utterance."""
    import librosa

    wave = audio.read(clip.path, clip.start, clip.samples)
    frames = config.frames(len(wave))
    wave = np.pad(wave, (0, max(0, 400 - len(wave))))
    cepstra = librosa.feature.mfcc(
        y=wave, sr=audio.RATE, n_mfcc=13, n_mels=40, n_fft=512, win_length=400, hop_length=config.stride, center=False
    )
    cepstra = np.pad(cepstra, ((0, 0), (0, max(0, frames - cepstra.shape[1]))), mode="edge")[:, :frames]
    width = min(9, frames - (frames + 1) % 2)
    differences = (
        [librosa.feature.delta(cepstra, order=k, width=width) for k in (1, 2)] if width >= 3 else [0 * cepstra] * 2
    )
    table_TF = np.concatenate([cepstra, *differences]).T
    return ((table_TF - table_TF.mean(0)) / (table_TF.std(0) + 1e-5)).astype(np.float16)


def all_mfcc(clips: Sequence[Clip], config: EncoderConfig, jobs: int) -> Iterator[tuple[int, np.ndarray]]:
    """:func:`mfcc` of every clip, in ``jobs`` processes."""
    from joblib import Parallel, delayed

    return enumerate(
        Parallel(n_jobs=jobs, batch_size=64, return_as="generator")(delayed(mfcc)(clip, config) for clip in clips)
    )


@torch.inference_mode()
def encoded(
    clips: Sequence[Clip], encoder: Encoder, wanted: Sequence[int], seconds: float = 60.0
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """For each clip its place and, for each of the ``wanted`` layers (0 is the first one's input), T x F of float16."""
    sampler = BucketSampler(clips, max(seconds, max(c.samples for c in clips) / audio.RATE), shuffle=False)
    loader = DataLoader(AudioDataset(clips, silence=True), batch_sampler=sampler, collate_fn=collate)
    device = next(encoder.parameters()).device
    encoder.eval()
    for batch in loader:
        if batch.bad:
            raise StarError(f"{batch.bad[0][0]}: has no units: {batch.bad[0][1]}; leave it out of the data")
        output = encoder(batch.waveforms_BN.to(device), batch.lengths_B.to(device))
        chosen = [output.states[layer].to(torch.float16).cpu().numpy() for layer in wanted]
        for i, (place, frames) in enumerate(zip(batch.indices, output.lengths_B.tolist())):
            yield place, [states_BTD[i, :frames].copy() for states_BTD in chosen]


def layers(
    clips: Sequence[Clip], encoder: Encoder, wanted: Sequence[int], seconds: float = 60.0
) -> list[list[np.ndarray]]:
    """:func:`encoded`, whole: for each of the ``wanted`` layers one T x F array a clip."""
    found = dict(encoded(clips, encoder, wanted, seconds))
    return [[found[place][i] for place in range(len(clips))] for i in range(len(wanted))]


def fit(clips: Sequence[Clip], features: Features, count: int, seed: int, seconds: float) -> MiniBatchKMeans:
    """Mini-batch k-means of ``count`` units on ``seconds`` of ``clips``, drawn by ``seed``. Raises :class:`StarError`
    for fewer frames than units."""
    from sklearn.cluster import MiniBatchKMeans

    order = np.random.default_rng(seed).permutation(len(clips))
    heard = np.cumsum(samples(clips)[order]) / audio.RATE
    drawn = [clips[i] for i in sorted(order[: int(np.searchsorted(heard, seconds)) + 1])]
    sample = np.concatenate([x_TF for _, x_TF in sorted(features(drawn), key=lambda pair: pair[0])]).astype(np.float32)
    if len(sample) < count:
        raise StarError(f"units: {count} of {len(sample)} frames; lower the number of units, or add audio")
    return MiniBatchKMeans(count, batch_size=10_000, n_init=3, max_iter=100, random_state=seed).fit(sample)


def cluster(clips: Sequence[Clip], features: Features, count: int, seed: int, label: str = "units") -> list[np.ndarray]:
    """One T array of unit numbers a clip, by :func:`fit`.

    Features are made twice for the clips that k-means is fitted on, so that those of a large corpus never have to be
    kept.
    """
    kmeans = fit(clips, features, count, seed, FITTED)
    found: dict[int, np.ndarray] = {}
    told = time.monotonic()
    for place, x_TF in features(clips):
        found[place] = kmeans.predict(x_TF.astype(np.float32)).astype(np.int16)
        if time.monotonic() - told > 15.0:
            told = time.monotonic()
            say(f"{label}: {len(found)} of {len(clips)} clips")
    return [found[place] for place in range(len(clips))]


def fit_frames(units_T: np.ndarray, frames: int) -> np.ndarray:
    """As many units as there are ``frames``: models of one stride may differ by a frame or two at the end."""
    return np.pad(units_T[:frames], (0, max(0, frames - len(units_T))), mode="edge")


def write(path: Path, units: Sequence[np.ndarray]) -> None:
    """Units of all clips as one file, whole or not at all."""
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, units=np.concatenate(units), lengths=[len(u) for u in units])


def read(path: Path, frames: Sequence[int]) -> list[np.ndarray]:
    """What :func:`write` wrote. Raises :class:`StarError` unless it has as many units as each clip has ``frames``."""
    table = np.load(path)
    if table["lengths"].tolist() != list(frames):
        raise StarError(f"{path}: holds the units of other audio; restore the data, or choose another folder")
    return np.split(table["units"], np.cumsum(table["lengths"])[:-1])
