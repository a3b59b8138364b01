"""Which layer knows the phones: a linear head a layer, trained with CTC for a minute, its phone error rate on other
utterances.

    python -m star_upstream.analysis.phone_probe ENCODER... --manifest pr.tsv

Shapes: U utterances, T frames, F features, C classes (blank first).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import audio, extras, units
from ..data.clips import Clip
from ..errors import StarError
from ..formats import sources
from ..say import command


def read(manifest: str | Path, split: str, seconds: float, seed: int = 0) -> tuple[list[Clip], list[list[str]]]:
    """Utterances of a split, drawn until there are ``seconds`` of audio, and their phones; shortest first."""
    import pandas as pd

    try:
        table = pd.read_csv(manifest, sep="\t", quoting=3, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise StarError(f"{manifest}: cannot be read as a manifest ({error})") from None
    missing = {"path", "samples", "split", "phones"} - set(table.columns)
    if missing:
        raise StarError(f"{manifest}: the header line must name {', '.join(sorted(missing))} too")
    table = table[table["split"] == split].sample(frac=1.0, random_state=seed)
    if table.empty:
        raise StarError(f"{manifest}: no utterance of split {split}")
    heard = table["samples"].astype(int).cumsum() / audio.RATE
    table = table[heard.shift(fill_value=0.0) < seconds]
    first, folder = table["path"].iloc[0], Path(manifest).resolve().parent
    base = next((base for base in (folder, folder.parent) if (base / first).is_file()), None)
    if base is None:
        raise StarError(f"{manifest}: {first} is neither beside it nor one folder above")
    rows = sorted(zip(table["samples"].astype(int), table["path"], table["phones"]))
    return [Clip(str(base / path), samples) for samples, path, _ in rows], [phones.split() for _, _, phones in rows]


def probe(
    learned: Sequence[np.ndarray], phones: Sequence[list[str]], tested: Sequence[np.ndarray],
    answers: Sequence[list[str]],
    epochs: int = 60, batch: int = 8, rate: float = 1e-2, seed: int = 0,
) -> float:  # fmt: skip
    """The phone error rate in per cent of a linear head on T x F features, each standardised over the frames learned
    from."""
    import editdistance

    names = {phone: i + 1 for i, phone in enumerate(sorted({p for line in phones for p in line}))}
    frames = np.concatenate(learned).astype(np.float32)
    mean_F, scale_F = torch.from_numpy(frames.mean(0)), torch.from_numpy(frames.std(0) + 1e-3)
    generator = torch.Generator().manual_seed(seed)
    weight_CF = torch.zeros(len(names) + 1, frames.shape[1], requires_grad=True)
    bias_C = torch.zeros(len(names) + 1, requires_grad=True)
    steps = epochs * -(-len(learned) // batch)
    optimizer = torch.optim.Adam([weight_CF, bias_C], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)

    def scores(table_TF: np.ndarray) -> Tensor:
        return F.linear(
            (torch.from_numpy(table_TF.astype(np.float32)) - mean_F) / scale_F, weight_CF, bias_C
        ).log_softmax(-1)

    for _ in range(epochs):
        for places in torch.randperm(len(learned), generator=generator).split(batch):
            lines = [scores(learned[i]) for i in places.tolist()]
            targets = [torch.tensor([names[p] for p in phones[i]]) for i in places.tolist()]
            padded_TBC = torch.nn.utils.rnn.pad_sequence(lines)
            frames_B, phones_B = (torch.tensor([len(x) for x in xs]) for xs in (lines, targets))
            loss = F.ctc_loss(padded_TBC, torch.cat(targets), frames_B, phones_B, zero_infinity=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    known = {i: phone for phone, i in names.items()}
    with torch.no_grad():
        best = [scores(table_TF).argmax(-1).unique_consecutive().tolist() for table_TF in tested]
    errors = sum(editdistance.eval([known[i] for i in line if i], answer) for line, answer in zip(best, answers))
    return 100.0 * errors / sum(map(len, answers))


def by_layer(
    encoder, manifest: str | Path, wanted: Sequence[int] | None = None, seconds: float = 2000.0
) -> dict[int, float]:
    """Phone error rate in per cent for each layer (all but the first one's input when none are named), on the split
    ``dev``."""
    wanted = list(wanted or range(1, encoder.config.layers + 1))
    if not all(0 <= layer <= encoder.config.layers for layer in wanted):
        raise StarError(f"layers: the model has {encoder.config.layers}, got {wanted}")
    clips, phones = read(manifest, "train", seconds)
    others, answers = read(manifest, "dev", seconds)
    learned, tested = units.layers(clips, encoder, wanted), units.layers(others, encoder, wanted)
    return {layer: round(probe(learned[i], phones, tested[i], answers), 2) for i, layer in enumerate(wanted)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m star_upstream.analysis.phone_probe", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("encoders", nargs="+", help="checkpoints, or names of models")
    parser.add_argument("--manifest", required=True, help="tsv with path, samples, split (train, dev) and phones")
    parser.add_argument(
        "--layers", type=lambda text: [int(n) for n in text.split(",")], metavar="5,6,7", help="default: all"
    )
    parser.add_argument(
        "--seconds", type=float, default=2000.0, help="audio to learn from, and at most so much to test on (2000)"
    )
    args = parser.parse_args(argv)
    extras.need("train")
    print(
        json.dumps(
            {name: by_layer(sources.load(name), args.manifest, args.layers, args.seconds) for name in args.encoders},
            indent=2,
        )
    )


if __name__ == "__main__":
    command(main)
