"""er: s3prl's folds, their one learning rate, and runs that go on in the fold where they stopped."""

import dataclasses
import hashlib
import json

import pandas as pd
import pytest
import tiny_slu
import torch
from test_tasks_pr_ic_sf import ER, SMALL, evaluate, make
from torch import nn

from eval.heads import train
from star_upstream.data import corpora
from star_upstream.data.corpora import iemocap


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_slu.make(tmp_path_factory.mktemp("slu") / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


def test_folds_are_s3prls_random_split(data):
    table = corpora.load("er", data)
    parts = ER.probe.splits(ER, table)
    assert sum((p["split"] == "test").to_numpy().astype(int) for p in parts).tolist() == [1] * 60
    for fold, part in enumerate(parts, start=1):
        assert (part["split"] == "test").equals(part["fold"] == fold)
        names = table["id"][table["fold"] != fold].tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            ids = torch.utils.data.random_split(names, [int((1 - 0.2) * 48), 48 - int((1 - 0.2) * 48)])
        assert [set(part["id"][part["split"] == s]) for s in ("train", "dev")] == [set(i) for i in ids] and len(
            ids[1]
        ) == 10
    assert "split" not in table


IEMOCAP_COUNTS = (
    "47 27 60 28 43 54 36 28 45 8 27 52 14 57 37 49 48 19 40 48 54 26 49 27 60 43 44 15 41 41 49 19 35 36 53 42 45 53 "
    "51 33 35 11 20 13 24 41 30 28 30 41 34 42 16 34 21 14 33 58 32 24 58 46 41 16 47 28 50 45 27 44 38 8 18 14 49 24 "
    "41 61 47 53 6 27 18 32 45 47 26 38 53 48 26 17 33 31 38 30 30 110 25 60 5 42 38 52 40 37 11 20 15 15 21 26 38 20 "
    "24 34 77 50 39 27 41 53 41 44 13 52 28 12 37 67 51 24 56 32 46 43 33 7 39 58 31 42 25 83 36 29 53 48 24 83 10"
)
"""Utterances of each dialogue of s3prl's lists, in their order."""
DEV = {  # utterances, and the sha256 of "<dialogue>_<number of the utterance in it>", a line each, as drawn
    1: (890, "69fbb0905562d722"), 2: (902, "1a73ea428a89c1be"), 3: (876, "73bbcaebb0d8e837"),
    4: (900, "f9d7d41266ec79f3"), 5: (858, "12ca5bb69263ac6c"),
}  # fmt: skip


def test_dev_of_every_fold_is_the_official_one():
    """random_split with seed 0 of the five train_meta_data.json of s3prl v0.4.18, computed from those."""
    dialogues = [f"Ses{n:02d}{name}" for n, names in iemocap.DIALOGUES.items() for name in names.split()]
    counts = [int(count) for count in IEMOCAP_COUNTS.split()]
    rows = [(f"{d}_{i:03d}", int(d[3:5])) for d, count in zip(dialogues, counts, strict=True) for i in range(count)]
    table = pd.DataFrame(rows, columns=["id", "fold"]).assign(label="angry", path="x", start=0, samples=16_000)
    assert table["fold"].value_counts().to_dict() == iemocap.COUNTS["er"]
    for fold, part in enumerate(ER.probe.splits(ER, table), start=1):
        probe = ER.probe(ER, part, SMALL["er"], 0)
        dev = part["id"].iloc[probe.dev_rows()].tolist()
        assert (len(dev), hashlib.sha256("\n".join(dev).encode()).hexdigest()[:16]) == DEV[fold]
        assert fold != 1 or dev[:2] == ["Ses02M_impro05_008", "Ses03F_script01_1_025"]


def test_folds_agree_on_one_learning_rate():
    def candidates(*values):
        heads = [train.Head(2, nn.Linear(1, 1)) for _ in values]
        return [
            train.Candidate(lr, head, None, best=value, best_state={k: v + i + 1 for k, v in head.state_dict().items()})
            for i, (lr, head, value) in enumerate(zip((1e-3, 1e-2), heads, values))
        ]

    fits = [train.Fitted([], 0, candidates(*values)) for values in ((80, 70), (40, 60), (50, 50))]
    lr, dev, heads = train.choose_rate(fits, "max")
    assert (lr, dev) == (1e-2, 60) and [h.weights.tolist() for h in heads] == [[2, 2]] * 3
    assert train.choose_rate(fits, "min")[:2] == (1e-3, pytest.approx(170 / 3))


def test_folds_in_one_pass_are_the_folds_one_by_one(data):
    probes = [make(ER, data, part=part) for part in (0, 1, 4)]
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(len(probes[0].table), 3, 1, 8, generator=generator)

    class Features:
        def batch(self, rows, generator=None):
            return means[list(rows)], torch.ones(len(rows), dtype=torch.long)

    together = train.fit(probes, Features(), 3, 8, 320, (1e-3, 1e-2))
    for probe, fitted in zip(probes, together, strict=True):
        (alone,) = train.fit([probe], Features(), 3, 8, 320, (1e-3, 1e-2))
        assert alone.grid == fitted.grid
        (lr, _, (one,)), (other, _, (of_all,)) = (train.choose_rate([each], "max") for each in (alone, fitted))
        assert lr == other
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), of_all.parameters(), strict=True))


def test_folds_resume(data, tmp_path, monkeypatch, capsys):
    def arguments(name):
        return ["--data", data, "--out", tmp_path / name, "--steps", 12, "--tasks", "er"]

    monkeypatch.setitem(ER.schedules, "mini", dataclasses.replace(ER.schedules["mini"], eval_every=5))
    assert evaluate(*arguments("whole")) == 0
    seen = []

    def stop(line):
        seen.append(line)
        if line.startswith("er, fold 3: step 10/12"):
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train, "_SHARE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(train, "say", stop)
        assert evaluate(*arguments("broken")) == 130
    left = [p.name for p in (tmp_path / "broken" / ".progress").iterdir()]
    assert left == ["er.pt"] and not (tmp_path / "broken" / "er.json").exists()
    capsys.readouterr()
    assert evaluate(*arguments("broken")) == 0
    assert "er: going on after step 9" in capsys.readouterr().err
    whole, broken = (json.loads((tmp_path / name / "er.json").read_text()) for name in ("whole", "broken"))
    assert all(whole[key] == broken[key] for key in ("value", "folds", "grid", "layer_weights", "interval_95"))
    assert not (tmp_path / "broken" / ".progress").exists()
