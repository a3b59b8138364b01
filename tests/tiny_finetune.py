"""Tones as keywords and as speakers, in the manifests of ks and asv, and a tiny encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from tiny_corpus import tone

from star_upstream import strict
from star_upstream.data import tasks
from star_upstream.data.task_config import TaskConfig
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.formats import checkpoint

WORDS = {"yes": 400.0, "no": 900.0, "up": 1800.0}
HEARD = {"anna": 300.0, "ben": 700.0, "cleo": 1300.0, "dan": 2100.0}
NEW = {"eve": 500.0, "finn": 1000.0, "gus": 1700.0}
CONVS = [[8, 10, 5], [16, 3, 4], [16, 3, 4], [24, 2, 4]]
ENCODER = {
    "conv_layers": CONVS, "position_kernel": 16, "position_groups": 4, "layers": 2, "heads": 2, "width": 32,
    "head_width": 16, "ffn": 48,
}  # fmt: skip
QUICK = {
    "encoder": "", "tasks": {"keyword": {"data": "ks", "batch": 8},
        "speaker": {"data": "asv", "loss": "angular", "batch": 8, "embedding": 8, "crop_seconds": 0.4}},
    "training": {
        "updates": 12, "learning_rate": 5e-3, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0,
        "betas": [0.9, 0.999],
        "log_every": 1, "validate_every": 6, "save_every": 2, "accelerator": "cpu",
    },
    "data": {"workers": 0},
}  # fmt: skip


def make(root: Path) -> Path:
    """``root/manifests/{ks,asv_train,asv_test,asv_trials}.tsv`` with their wav files, and ``root/encoder``."""
    rng = np.random.default_rng(0)
    (root / "manifests").mkdir(parents=True)
    (root / "wav").mkdir()

    def rows(kind: str, hertz: dict[str, float], count: int, column: str, **extra) -> list[dict]:
        found = []
        for name, base in hertz.items():
            for i in range(count):
                wave, file = tone(base, rng.uniform(0.35, 0.6), rng), f"wav/{kind}-{name}-{i}.wav"
                soundfile.write(root / file, wave, 16_000)
                found.append({"id": f"{kind}-{name}-{i}", "path": file, "samples": len(wave), column: name, **extra})
        return found

    ks = [
        row
        for split, count in (("train", 10), ("dev", 3), ("test", 4))
        for row in rows(split, WORDS, count, "label", split=split)
    ]
    test = rows("new", NEW, 4, "speaker")
    pairs = [(a, b) for i, a in enumerate(test) for b in test[i + 1 :]]
    trials = [
        {"target": int(a["speaker"] == b["speaker"]), "enroll_path": a["path"], "test_path": b["path"]}
        for a, b in pairs
    ]
    for name, table in (
        ("ks", ks),
        ("asv_train", rows("heard", HEARD, 8, "speaker")),
        ("asv_test", test),
        ("asv_trials", trials),
    ):
        pd.DataFrame(table).to_csv(root / "manifests" / f"{name}.tsv", sep="\t", index=False)
    torch.manual_seed(0)
    checkpoint.save(root / "encoder", Encoder(EncoderConfig(**ENCODER)), {})
    torch.manual_seed(1)
    student = {**ENCODER, "layers": 1, "prediction_layers": [1, 2]}
    checkpoint.save(
        root / "student",
        Encoder(EncoderConfig(**{k: tuple(map(tuple, v)) if k == "conv_layers" else v for k, v in student.items()})),
        {},
    )
    return root


def tasks_of(root: Path, **changes) -> dict[str, tasks.TaskData]:
    """The tasks of :data:`QUICK`, with ``changes`` in each."""
    configs = {name: strict.build(TaskConfig, {**values, **changes}) for name, values in QUICK["tasks"].items()}
    return tasks.load(configs, str(root))
