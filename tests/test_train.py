"""train: our loop takes s3prl's steps, resumes exactly, and its fast LSTM is the packed one."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from tiny_corpus import TinyUpstream
from torch import nn

from eval import tasks
from eval.heads import probe as probes
from eval.heads import rnn, train
from eval.heads.probe import Schedule
from star_upstream import compat
from star_upstream.errors import StarError

compat.apply()
KS, SID, ASR = tasks.get("ks"), tasks.get("sid"), tasks.get("asr")
SMALL_ASR = {
    "model_conf": {
        "module": "LSTM", "bidirectional": True, "proj_size": 16, "hidden_size": [16], "dropout": [0.2],
        "layer_norm": [False],
        "proj": [False], "sample_rate": [1], "sample_style": "concat",
    },
    "specaug_conf": {"freq_mask_width_range": (0, 4), "num_freq_mask": 1, "time_mask_width_range": (0, 4),
        "num_time_mask": 1},
}  # fmt: skip


class Memory:
    """Random features in memory; each class has its own mean."""

    def __init__(self, table, target, layers=3, width=8, pooled=True):
        generator = torch.Generator().manual_seed(0)
        names = sorted(set(table[target]))
        self.layers, self.width = layers, width
        self.items = []
        for i, value in enumerate(table[target]):
            frames = 1 if pooled else 20 + i % 7
            x_LTD = torch.randn(layers, frames, width, generator=generator) * 0.3
            self.items.append(x_LTD + F.one_hot(torch.tensor(names.index(value) % width), width))

    def batch(self, rows, generator=None):
        longest = max(self.items[r].shape[1] for r in rows)
        x_BLTD = torch.stack([F.pad(self.items[r], (0, 0, 0, longest - self.items[r].shape[1])) for r in rows])
        return x_BLTD, torch.tensor([self.items[r].shape[1] for r in rows])


def table(target, values, per_split=(9, 4, 4)):
    rows = [
        {"id": f"{s}{v}{i}", "path": "x", "start": 0, "samples": 16_000 + 160 * i, "split": s, target: v}
        for s, n in zip(("train", "dev", "test"), per_split)
        for v in values
        for i in range(n)
    ]
    return pd.DataFrame(rows)


def make(task, schedule, values=("yes", "no", "up"), seed=3, **kwargs):
    data = table(task.target, values)
    return task.probe(task, data, schedule, seed), Memory(data, task.target, **kwargs)


def fit(probe, features, lrs=(1e-2,), **kwargs):
    fits = train.fit([probe], features, features.layers, features.width, 320, lrs, **kwargs)
    lr, dev, (head,) = train.choose_rate(fits, train.selection(probe)[1])
    return SimpleNamespace(lr=lr, dev=dev, head=head, grid=fits[0].grid)


KS_SMALL = Schedule(steps=40, batch=4, accumulate=2, lr=1e-2, eval_every=10, head={"hidden_size": 6})
CTC_SMALL = Schedule(steps=6, batch=4, accumulate=1, lr=1e-2, eval_every=3, head=SMALL_ASR)


@pytest.mark.parametrize("task", [KS, SID])
def test_learns_what_can_be_learnt(task):
    probe, features = make(task, KS_SMALL)
    fitted = fit(probe, features, (1e-5, 1e-2))
    rows = probe.split["test"]
    assert fitted.lr == 1e-2 and fitted.dev == 100.0
    assert probe.value(train.predict(fitted.head, probe, features, rows), rows) == 100.0
    assert [g["lr"] for g in fitted.grid] == [1e-5, 1e-2] and fitted.grid[0]["dev"] < 100
    assert [step for step, _ in fitted.grid[0]["curve"]] == [10, 20, 30, 40]


def test_steps_are_s3prls(monkeypatch):
    """s3prl's upstream, featurizer, head, task and update on waveforms, against fit on time means: equal weights after
    5 steps."""
    from s3prl import hub
    from s3prl.nn import Featurizer, MeanPoolingLinear, S3PRLUpstream
    from s3prl.nn.upstream import UpstreamDownstreamModel
    from s3prl.task.utterance_classification_task import UtteranceClassificationTask

    from eval.features.upstreams import unseeded

    schedule = Schedule(steps=5, batch=4, accumulate=2, lr=1e-2, eval_every=5, head={"hidden_size": 6})
    data = table("label", ("yes", "no", "up"))
    probe = KS.probe(KS, data, schedule, 3)
    waves_BN = torch.randn(len(data), 4000, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(hub, "tiny_train", lambda **_: TinyUpstream(), raising=False)
    with unseeded():
        upstream = S3PRLUpstream("tiny_train")
    with train.own_randomness(probe.seed):
        model = UpstreamDownstreamModel(upstream, Featurizer(upstream), MeanPoolingLinear(24, 3, hidden_size=6))
    task = UtteranceClassificationTask(model, probe.encoder)
    optimizer = torch.optim.Adam([p for n, p in task.named_parameters() if "upstream." not in n], lr=1e-2)
    batches = [batch for epoch in range(3) for batch in probe.epoch(epoch)]
    for step in range(5):
        for rows in batches[2 * step : 2 * step + 2]:
            classes = torch.tensor([probe.classes[r] for r in rows])
            lengths = torch.full((len(rows),), 4000)
            names = [probe.targets[r] for r in rows]
            (task("train", waves_BN[rows], lengths, classes, names, names)[0] / 2).backward()
        nn.utils.clip_grad_norm_([p for n, p in task.named_parameters() if "upstream." not in n], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    class Pooled:
        layers, width = 3, 24

        def batch(self, rows, generator=None):
            states, _ = upstream(waves_BN[rows], torch.full((len(rows),), 4000))
            return torch.stack([x_BTD.mean(1, keepdim=True) for x_BTD in states], 1), torch.ones(
                len(rows), dtype=torch.long
            )

    taken = {}
    real = train._update
    monkeypatch.setattr(
        train, "_update", lambda candidate, *rest: (real(candidate, *rest), taken.update(candidate.head.state_dict()))
    )
    fit(probe, Pooled())
    expected = {
        "weights": model.featurizer.weights,
        **{f"task.model.{n}": p for n, p in model.downstream.named_parameters()},
    }
    assert taken.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(taken[name], tensor, atol=1e-5), name


def test_learns_to_spell():
    """Characters of four frames each, then silence: CTC, SpecAugment, the fast LSTM and greedy decoding together learn
    them."""
    probe, features = make(
        ASR, dataclasses.replace(CTC_SMALL, steps=200, batch=6, eval_every=40, lr=2e-2), ("AB A", "BA", "B AB")
    )
    for row, text in enumerate(probe.targets):
        frames_TD = torch.cat(
            [
                F.one_hot(torch.tensor("AB ".index(c)), 8).float().expand(4, 8) * torch.tensor([[1], [2], [2], [1]])
                for c in text
            ]
        )
        features.items[row] = torch.cat([frames_TD, torch.zeros(3, 8)]).expand(3, -1, -1)
    fitted = fit(probe, features, (2e-2,))
    rows = probe.split["test"]
    assert probe.value(train.predict(fitted.head, probe, features, rows), rows) < 20


@pytest.mark.parametrize("lengths", [[11, 7, 1], [5, 5, 5]])
def test_padded_lstm_is_the_packed_one(lengths):
    from s3prl.nn.rnn import RNNLayer

    torch.manual_seed(0)
    layer = RNNLayer(6, 5, "LSTM", dropout=0.0, bidirectional=True, proj=True, layer_norm=True).double()
    fast = rnn.PaddedRNNLayer(layer)
    x_BTD, lengths_B = torch.randn(3, 11, 6).double(), torch.tensor(lengths)
    results = []
    for module in (layer, fast):
        inputs = x_BTD.clone().requires_grad_()
        out, out_lengths = module(inputs, lengths_B)
        mask = (torch.arange(out.shape[1]) < out_lengths[:, None])[..., None]
        layer.zero_grad()
        ((out * mask) ** 2).sum().backward()
        results.append([out * mask, inputs.grad, *[p.grad.clone() for p in layer.parameters()]])
    for packed, padded in zip(*results):
        assert torch.allclose(packed, padded, atol=1e-10)


@pytest.mark.parametrize("task, schedule", [(KS, KS_SMALL), (ASR, CTC_SMALL)], ids=["ks", "asr"])
def test_a_broken_run_ends_as_an_unbroken_one(task, schedule, tmp_path, monkeypatch, capsys):
    values = ("AB A", "BA") if task is ASR else ("yes", "no", "up")
    probe, features = make(task, schedule, values, pooled=task is KS)
    whole = fit(probe, features, (1e-3, 1e-2))

    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train, "_SHARE", 0.0)
    seen = []

    def stop(line):
        seen.append(line)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "say", stop)
        fit(probe, features, (1e-3, 1e-2), progress=tmp_path / "p.pt", identity="a")
    capsys.readouterr()
    again = fit(probe, features, (1e-3, 1e-2), progress=tmp_path / "p.pt", identity="a")
    assert "going on after step" in capsys.readouterr().err
    assert again.lr == whole.lr and again.grid == whole.grid
    for name, tensor in whole.head.state_dict().items():
        assert torch.equal(tensor, again.head.state_dict()[name])


def test_progress_of_another_run_is_not_used_and_a_damaged_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    probe, features = make(KS, KS_SMALL)
    first = fit(probe, features, progress=tmp_path / "p.pt", identity="a")
    second = fit(probe, features, progress=tmp_path / "p.pt", identity="b")
    assert "another run" in capsys.readouterr().err and second.grid == first.grid
    (tmp_path / "p.pt").write_bytes(b"nothing")
    with pytest.raises(StarError, match="damaged progress file"):
        fit(probe, features, progress=tmp_path / "p.pt", identity="a")


class Plain(nn.Module):
    def forward(self, x_BTD, lengths_B):
        return x_BTD, lengths_B


@pytest.mark.parametrize("task, schedule", [(KS, KS_SMALL), (ASR, CTC_SMALL)], ids=["ks", "asr"])
def test_out_of_memory_halves_the_heads_batch_and_takes_the_same_steps(task, schedule, monkeypatch, capsys):
    head = {**SMALL_ASR, "model_conf": {**SMALL_ASR["model_conf"], "dropout": [0.0]}}
    schedule = dataclasses.replace(
        schedule, steps=4, batch=5, eval_every=4, head=head if task is ASR else schedule.head
    )
    values = ("AB A", "BA") if task is ASR else ("yes", "no", "up")
    probe, features = make(task, schedule, values, pooled=task is KS)
    whole_head = probe.head

    def plain(*sizes):
        head = whole_head(*sizes)
        if task is ASR:  # SpecAugment draws differently for parts
            head.model.specaug = Plain()
        return head

    monkeypatch.setattr(probe, "head", plain)
    whole = fit(probe, features)
    seen, real = [], probe.loss

    def small(head, x_BTD, lengths_B, rows):
        seen.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no memory")
        return real(head, x_BTD, lengths_B, rows)

    monkeypatch.setattr(probe, "loss", small)
    parted = fit(probe, features)
    assert "batches of 5 go in parts of 2" in capsys.readouterr().err and seen.count(5) == 1 and set(seen[1:]) <= {1, 2}
    for name, tensor in whole.head.state_dict().items():
        assert torch.allclose(tensor, parted.head.state_dict()[name], atol=1e-4), name

    rows, answer = probe.split["train"], probe.predict
    expected = train.predict(whole.head, probe, features, rows)
    seen.clear()

    def few(head, x_BTD, lengths_B, rows):
        seen.append(len(rows))
        if len(rows) > 8:
            raise torch.OutOfMemoryError("no memory")
        return answer(head, x_BTD, lengths_B, rows)

    with monkeypatch.context() as patch:
        patch.setattr(probe, "predict", few)
        assert train.predict(whole.head, probe, features, rows) == expected
    assert f"parts of {6 if task is KS else 4} from here on; answers are the same" in capsys.readouterr().err
    assert sum(seen[2:]) == len(rows) and max(seen[2:]) <= 8

    monkeypatch.setattr(probe, "loss", lambda *rest: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
    with pytest.raises(StarError, match="does not fit with a single utterance"):
        fit(probe, features)


def test_lanes_do_not_touch_each_other_nor_the_global_generator():
    probe, features = make(ASR, CTC_SMALL, ("AB A", "BA"), pooled=False, layers=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    both = fit(probe, features, (1e-3, 1e-2))
    assert torch.rand(1) == expected
    alone = fit(probe, features, (1e-2,))
    assert both.grid[1] == alone.grid[0]


def test_recognition_decodes_as_s3prl_does_one_by_one():
    probe, features = make(ASR, CTC_SMALL, ("AB A", "BA", "B"), pooled=False)
    torch.manual_seed(0)
    head = train.Head(3, probe.head(8, 320))
    nn.init.normal_(head.task.model.model.linear.weight, std=3.0)
    rows = probe.split["test"]
    mine = train.predict(head, probe, features, rows)
    with torch.no_grad():
        theirs = []
        for row in rows:
            x_BLTD, lengths_B = features.batch([row])
            theirs += head.task.predict(head.mix(x_BLTD), lengths_B)[1]
    assert mine == theirs and any(mine)


def test_value_is_s3prls_metric_and_the_ratio_of_counts():
    probe, _ = make(ASR, CTC_SMALL, ("AB A", "BA"))
    rows = probe.split["test"]
    predictions = ["AB A" if i % 3 else "A B A" for i in range(len(rows))]
    top, bottom = probe.counts(predictions, rows).sum(0)
    # 4 x "AB A" (2 words) and 4 x "BA" (1 word); by hand: i=0,3 wrong on "AB A" (2 edits), i=6 wrong on "BA" (3),
    # i=4,5,7 (2)
    assert (top, bottom) == (2 + 2 + 3 + 2 + 2 + 2, 12)
    assert probe.value(predictions, rows) == pytest.approx(100 * top / bottom)
    # in characters: a space too much twice, three characters too many once, two too many three times, of 4 x 4 + 4 x 2
    assert probe.details(predictions, rows) == {"character_error_rate": pytest.approx(100 * (2 + 3 + 6) / 24)}
    probe, _ = make(KS, KS_SMALL)
    rows = probe.split["test"]
    predictions = ["yes"] * len(rows)
    assert probe.value(predictions, rows) == pytest.approx(100 / 3)
    assert np.allclose(probe.counts(predictions, rows).sum(0), [4, 12])


def test_keyword_batches_are_balanced():
    data = table("label", ("yes", "no"))
    data = pd.concat([data, pd.concat([table("label", ("no",))] * 20)], ignore_index=True)
    data["id"] = range(len(data))
    probe = KS.probe(KS, data, KS_SMALL, 0)
    drawn = [probe.targets[r] for epoch in range(5) for batch in probe.epoch(epoch) for r in batch]
    assert 0.4 < drawn.count("yes") / len(drawn) < 0.6
    assert {data["split"].iloc[r] for batch in probe.epoch(0) for r in batch} == {"train"}
    assert probe.dev_rows() == probe.dev_rows() and {data["split"].iloc[r] for r in probe.dev_rows()} == {"dev"}


def test_limit_keeps_train_able_to_teach_what_is_tested():
    data = table("label", ("yes", "no", "up", "down"))
    few = probes.limited(data, KS, 3)
    assert few["split"].value_counts().to_dict() == {"train": 3, "dev": 3, "test": 3}
    KS.probe(KS, few, KS_SMALL, 0)
    assert len(probes.limited(table("text", ("A", "B")), ASR, 2)) == 6


def test_unusable_tables_are_named():
    data = table("label", ("yes", "no"))
    with pytest.raises(StarError, match="'maybe' is in test but not in train"):
        KS.probe(
            KS, pd.concat([data, data[data["split"] == "test"].assign(label="maybe")], ignore_index=True), KS_SMALL, 0
        )
    with pytest.raises(StarError, match="ks: the dev split is empty"):
        KS.probe(KS, data[data["split"] != "dev"].reset_index(drop=True), KS_SMALL, 0)
    with pytest.raises(StarError, match="has no text"):
        ASR.probe(ASR, table("text", ("A", " ")), CTC_SMALL, 0)
