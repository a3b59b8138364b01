"""How the mini teacher was made: HuBERT's masked prediction of k-means units (Hsu et al. 2021), small enough for two CPU cores.

    python -m star_upstream.mini.pretrain FOLDER_OR_MANIFEST... --out RUN [--recipe pretrain.yaml]

Round 1 predicts units of MFCC frames, round 2 units of a middle layer of the model from round 1. A rerun goes on where the last
one stopped. Shapes: B utterances, N samples, T frames, D width, K units.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from joblib import Parallel, delayed
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import audio, checkpoint, outputs, strict
from ..data import AudioDataset, BucketSampler, Corpus, collate, scan
from ..encoder import Encoder, EncoderConfig
from ..errors import StarError
from ..files import replacing, write_json
from ..training.precision import agree, autocast, move

PRECISION = "bf16-mixed"


@dataclass(frozen=True)
class Round:
    """One round of masked prediction."""

    features: str
    """``mfcc``, or ``layerN``: outputs of layer N of the round before."""
    units: int
    minutes: float
    """Wall-clock budget of the training; the learning rate follows the share of it that has passed."""


@dataclass(frozen=True)
class Pretraining:
    """The recipe: ``pretrain.yaml`` beside this file."""

    encoder: EncoderConfig
    rounds: tuple[Round, ...]
    learning_rate: float = 1.0e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    batch_seconds: float = 64.0
    max_seconds: float = 21.0
    mask_start: float = 0.065
    """Probability that a masked span starts at a frame."""
    mask_span: int = 10
    unmasked_weight: float = 0.5
    """Weight of the frames that are not masked: HuBERT sets 0; on a budget of minutes the easy frames show the model what units are."""
    seed: int = 0


class MaskedPrediction(nn.Module):
    """An encoder with a mask embedding and a classifier over units."""

    def __init__(self, encoder: Encoder, units: int, unmasked_weight: float):
        super().__init__()
        self.encoder, self.unmasked_weight = encoder, unmasked_weight
        self.mask_embedding = nn.Parameter(torch.empty(encoder.config.width).uniform_())
        self.classifier = nn.Linear(encoder.config.width, units)

    def forward(self, waveforms_BN: Tensor, units_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over masked frames plus the weighted one over the others, and the accuracy on masked frames."""
        features_BTD, frames_B = self.encoder.features(waveforms_BN)
        features_BTD = torch.where(mask_BT[..., None], self.mask_embedding.to(features_BTD.dtype), features_BTD)
        states = self.encoder.contextualize(features_BTD, frames_B, padded=False).states
        logits_BTK = self.classifier(states[-1]).float()
        losses_BT = F.cross_entropy(logits_BTK.transpose(1, 2), units_BT, reduction="none")
        loss = losses_BT[mask_BT].mean() + self.unmasked_weight * losses_BT[~mask_BT].mean()
        return loss, (logits_BTK.argmax(-1) == units_BT)[mask_BT].float().mean()


def mfcc(path: str, config: EncoderConfig, start: int = 0, samples: int | None = None) -> np.ndarray:
    """T x 39 MFCC with first and second differences, framed as the encoder frames, normalised over the utterance."""
    wave = audio.read(path, start, samples)
    cepstra = librosa.feature.mfcc(
        y=wave, sr=audio.RATE, n_mfcc=13, n_mels=40, n_fft=512, win_length=400, hop_length=config.stride, center=False
    )
    frames = config.frames(len(wave))
    cepstra = np.pad(cepstra, ((0, 0), (0, max(0, frames - cepstra.shape[1]))), mode="edge")[:, :frames]
    width = min(9, frames - (frames + 1) % 2)
    differences = [librosa.feature.delta(cepstra, order=k, width=width) for k in (1, 2)] if width >= 3 else [0 * cepstra] * 2
    table_TF = np.concatenate([cepstra, *differences]).T
    return ((table_TF - table_TF.mean(0)) / (table_TF.std(0) + 1e-5)).astype(np.float16)


def frame_features(corpus: Corpus, round_: Round, encoder: Encoder | None, config: EncoderConfig) -> list[np.ndarray]:
    """One T x F array a clip."""
    if round_.features == "mfcc":
        jobs = Parallel(n_jobs=-1, batch_size=64)
        return jobs(delayed(mfcc)(clip.path, config, clip.start, clip.samples) for clip in corpus.clips)
    layer = int(round_.features.removeprefix("layer"))
    sampler = BucketSampler(corpus.clips, 120.0, shuffle=False)
    loader = DataLoader(AudioDataset(corpus.clips), batch_sampler=sampler, collate_fn=collate, num_workers=1)
    result: list[np.ndarray] = [np.zeros((0, config.width), np.float16)] * len(corpus.clips)
    device = next(encoder.parameters()).device
    for number, batch in enumerate(loader):
        wave_BN, lengths_B = batch.waveforms_BN.to(device), batch.lengths_B.to(device)
        if not number:
            agree({"encoder": encoder}, lambda: encoder(wave_BN, lengths_B), PRECISION, device, round_.features)
        with torch.no_grad(), autocast(PRECISION, device):
            output = encoder(wave_BN, lengths_B)
        states_BTD = output.states[layer].float().cpu().numpy().astype(np.float16)
        for place, frames, state_TD in zip(batch.indices, output.lengths_B.tolist(), states_BTD):
            result[place] = state_TD[:frames]
    return result


def find_units(corpus: Corpus, round_: Round, encoder: Encoder | None, recipe: Pretraining) -> list[np.ndarray]:
    """One T array of unit numbers a clip, by mini-batch k-means fitted on at most 400,000 frames."""
    features = frame_features(corpus, round_, encoder, recipe.encoder)
    random = np.random.default_rng(recipe.seed)
    total = sum(len(f) for f in features)
    share = min(1.0, 400_000 / total)
    sample = np.concatenate([f[random.random(len(f)) < share] for f in features]).astype(np.float32)
    kmeans = MiniBatchKMeans(round_.units, batch_size=10_000, n_init=3, max_iter=100, random_state=recipe.seed).fit(sample)
    return [kmeans.predict(f.astype(np.float32)).astype(np.int16) for f in features]


def draw_mask(shape: tuple[int, int], recipe: Pretraining, random: np.random.Generator) -> Tensor:
    """B x T, True where masked: spans of ``mask_span`` frames from random starts, at least one an utterance."""
    starts_BT = random.random(shape) < recipe.mask_start
    starts_BT[np.arange(shape[0]), random.integers(0, max(1, shape[1] - recipe.mask_span), shape[0])] = True
    mask_BT = starts_BT.copy()
    for shift in range(1, recipe.mask_span):
        mask_BT[:, shift:] |= starts_BT[:, :-shift]
    return torch.from_numpy(mask_BT)


def train_round(model: MaskedPrediction, corpus: Corpus, units: list[np.ndarray], round_: Round, recipe: Pretraining, out: Path) -> None:
    """Train for ``round_.minutes``; ``out/state.pt`` is written every two minutes, ``out/log.csv`` every 50 updates."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98), eps=1e-6
    )
    sampler = BucketSampler(corpus.clips, recipe.batch_seconds, seed=recipe.seed)
    spent, updates, epoch, budget = 0.0, 0, 0, round_.minutes * 60
    state_file, moved = out / "state.pt", None
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        spent, updates, sampler.epoch, sampler.start = (state[k] for k in ("spent", "updates", "epoch", "start"))
        epoch, moved = sampler.epoch, state.get("in_fp32")
        if moved is not None:
            move({"model": model}, moved)
    saved = last = time.monotonic()
    losses, hits, heard = [], [], 0.0
    while spent < budget:
        sampler.epoch = epoch
        loader = DataLoader(AudioDataset(corpus.clips), batch_sampler=sampler, collate_fn=crop, num_workers=1, prefetch_factor=8)
        for place, batch in enumerate(loader, sampler.start + 1):
            share = spent / budget
            rate = recipe.learning_rate * min(share / recipe.warmup, 0.5 + 0.5 * math.cos(math.pi * max(0.0, share - recipe.warmup)))
            for group in optimizer.param_groups:
                group["lr"] = max(rate, 1e-6)
            frames = recipe.encoder.frames(batch.waveforms_BN.shape[1])
            mask_BT = draw_mask((len(batch.paths), frames), recipe, np.random.default_rng((recipe.seed, updates)))
            units_BT = torch.from_numpy(np.stack([units[i][:frames] for i in batch.indices]).astype(np.int64))
            inputs = batch.waveforms_BN.to(device), units_BT.to(device), mask_BT.to(device)
            if moved is None:
                moved = agree({"model": model}, lambda: model(*inputs), PRECISION, device, out.name)
                last = time.monotonic()
            with autocast(PRECISION, device):
                loss, hit = model(*inputs)
            if not torch.isfinite(loss):
                raise RuntimeError(f"loss is {loss.item()} at update {updates}; files: {batch.paths[:4]}")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            updates += 1
            losses.append(loss.item())
            hits.append(hit.item())
            heard += batch.waveforms_BN.numel() / audio.RATE
            now = time.monotonic()
            spent, last = spent + now - last, now
            if updates % 50 == 0:
                line = f"{updates},{epoch},{spent:.0f},{rate:.2e},{np.mean(losses[-50:]):.4f},{np.mean(hits[-50:]):.4f},{heard / spent:.1f}"
                print(line, file=sys.stderr, flush=True)
                with open(out / "log.csv", "a", encoding="utf-8") as log:
                    log.write(line + "\n")
            if now - saved > 120 or spent >= budget:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                with replacing(state_file) as part:
                    torch.save({**state, "spent": spent, "updates": updates, "epoch": epoch, "start": place, "in_fp32": moved}, part)
                saved = now
            if spent >= budget:
                break
        epoch, sampler.start = epoch + 1, 0


def crop(items):
    """No padding: every batch is as long as its shortest utterance."""
    return collate(items, crop=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m star_upstream.mini.pretrain", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="+", help="folders, lists of audio, audio files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("pretrain.yaml"))
    args = parser.parse_args(argv)
    recipe = strict.build(Pretraining, yaml.safe_load(args.recipe.read_text(encoding="utf-8")), args.recipe.name)
    outputs.claim_folder(args.out, "star_upstream.mini.pretrain")
    corpus = scan(args.data, min_seconds=1.0, max_seconds=recipe.max_seconds)
    print(f"{len(corpus.clips)} clips, {corpus.seconds / 3600:.2f} h", file=sys.stderr)
    encoder = None
    for number, round_ in enumerate(recipe.rounds, 1):
        out = args.out / f"round{number}"
        out.mkdir(parents=True, exist_ok=True)
        if (out / "encoder").is_dir():
            encoder = checkpoint.load(out / "encoder")
            continue
        units_file, begun = out / "units.npz", time.monotonic()
        if not units_file.is_file():
            units = find_units(corpus, round_, encoder, recipe)
            with replacing(units_file) as part, open(part, "wb") as file:
                np.savez(file, units=np.concatenate(units), lengths=[len(u) for u in units])
            print(f"round {number}: units in {time.monotonic() - begun:.0f} s", file=sys.stderr)
        table = np.load(units_file)
        units = np.split(table["units"], np.cumsum(table["lengths"])[:-1])
        torch.manual_seed(recipe.seed + number)
        model = MaskedPrediction(Encoder(recipe.encoder), round_.units, recipe.unmasked_weight)
        train_round(model, corpus, units, round_, recipe, out)
        encoder = model.encoder.cpu().eval()
        provenance = {"made_by": "star_upstream.mini.pretrain", "recipe": strict.plain(recipe), "round": number}
        checkpoint.save(out / "encoder", encoder, {**provenance, "clips": len(corpus.clips), "hours": round(corpus.seconds / 3600, 2)})
    write_json(args.out / "done.json", {"encoder": str(args.out / f"round{len(recipe.rounds)}" / "encoder")})
    print(json.dumps({"encoder": str(args.out / f"round{len(recipe.rounds)}" / "encoder")}))


if __name__ == "__main__":
    try:
        main()
    except StarError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
