"""Units for masked prediction: k-means over MFCC frames, or over a layer of any encoder.

Shapes: T frames, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from . import audio
from .data.batches import AudioDataset, BucketSampler, collate
from .data.clips import Clip
from .encoder import Encoder, EncoderConfig
from .errors import StarError
from .files import replacing

FITTED = 400_000
"""Frames, drawn from all, that k-means is fitted on."""


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


def all_mfcc(clips: Sequence[Clip], config: EncoderConfig, jobs: int) -> list[np.ndarray]:
    """:func:`mfcc` of every clip, in ``jobs`` processes."""
    from joblib import Parallel, delayed

    return Parallel(n_jobs=jobs, batch_size=64)(delayed(mfcc)(clip, config) for clip in clips)


@torch.inference_mode()
def layers(
    clips: Sequence[Clip], encoder: Encoder, wanted: Sequence[int], seconds: float = 60.0
) -> list[list[np.ndarray]]:
    """For each of the ``wanted`` layers (0 is the first one's input) one T x F array of float16 a clip."""
    sampler = BucketSampler(clips, max(seconds, max(c.samples for c in clips) / audio.RATE), shuffle=False)
    loader = DataLoader(AudioDataset(clips), batch_sampler=sampler, collate_fn=collate)
    device = next(encoder.parameters()).device
    encoder.eval()
    result: list[list] = [[None] * len(clips) for _ in wanted]
    for batch in loader:
        if batch.bad:
            raise StarError(f"{batch.bad[0][0]}: has no units: {batch.bad[0][1]}; leave it out of the data")
        output = encoder(batch.waveforms_BN.to(device), batch.lengths_B.to(device))
        for found, layer in zip(result, wanted):
            states_BTD = output.states[layer].to(torch.float16).cpu().numpy()
            for place, frames, state_TD in zip(batch.indices, output.lengths_B.tolist(), states_BTD):
                found[place] = state_TD[:frames].copy()
    return result


def cluster(features: Sequence[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """One T array of unit numbers a clip, by mini-batch k-means."""
    from sklearn.cluster import MiniBatchKMeans

    random = np.random.default_rng(seed)
    share = min(1.0, FITTED / sum(len(f) for f in features))
    sample = np.concatenate([f[random.random(len(f)) < share] for f in features]).astype(np.float32)
    kmeans = MiniBatchKMeans(count, batch_size=10_000, n_init=3, max_iter=100, random_state=seed).fit(sample)
    return [kmeans.predict(f.astype(np.float32)).astype(np.int16) for f in features]


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
