"""pr, ic and sf: s3prl's heads, losses and metrics, hand-computed scores, and whole runs on tones."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tiny_slu
import torch
from torch import nn

from eval import tasks
from eval.__main__ import main
from eval.heads import train
from eval.heads.ctc import CHARACTERS, lstm_head
from eval.heads.probe import Schedule, limited
from eval.report import score
from star_upstream import compat
from star_upstream.data import corpora
from star_upstream.errors import StarError

compat.apply()
PR, IC, ER, SF = (tasks.get(name) for name in ("pr", "ic", "er", "sf"))
NO_DROPOUT = lstm_head(
    10, [12], 0.0, {"freq_mask_width_range": (0, 3), "num_freq_mask": 1, "time_mask_width_range": (0, 3)}
)
SMALL = {
    "pr": Schedule(steps=3, batch=4, accumulate=2, lr=1e-2, eval_every=3, head={"hidden_size": 6}),
    "ic": Schedule(steps=3, batch=4, accumulate=1, lr=1e-2, eval_every=3, head={"hidden_size": 6}),
    "er": Schedule(steps=3, batch=4, accumulate=2, lr=1e-2, eval_every=3, head={"hidden_size": 6}),
    "sf": Schedule(steps=3, batch=4, accumulate=1, lr=1e-2, eval_every=3, head=NO_DROPOUT),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_slu.make(tmp_path_factory.mktemp("slu") / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


def make(task, data, schedule=None, part=0, seed=3):
    table = task.probe.splits(task, corpora.load(task.name, data))[part]
    return task.probe(task, table, schedule or SMALL[task.name], seed)


def theirs(task, probe, path):
    """Head and loss put together from s3prl's parts alone: a function of mixed frames, lengths and rows, and its
    module."""
    import s3prl.problem
    from s3prl.dataio.dataset import EncodeCategories, EncodeText
    from s3prl.dataio.encoder.category import CategoryEncoder, CategoryEncoders
    from s3prl.dataio.encoder.tokenizer import load_tokenizer
    from s3prl.dataio.encoder.vocabulary import generate_vocab

    table = probe.table
    if task is ER:
        encoder = CategoryEncoder(table["label"].tolist())
        size = len(encoder)
    elif task is IC:
        encoder = CategoryEncoders([table[c].tolist() for c in ("action", "object", "location")])
        labels = table[["action", "object", "location"]].to_numpy().tolist()
        encoded, size = EncodeCategories(labels, encoder), len(encoder)
    elif task is PR:  # AH has no stress here: no published phone, hence the corpus's own
        phones = generate_vocab("phoneme", text_list=table.query("split == 'train'")["phones"].tolist())
        encoder = load_tokenizer("phoneme", vocab_list=phones)
        encoded, size = EncodeText(table["phones"].tolist(), encoder), len(encoder)
    else:
        iob = [row.replace("B-", "").replace("I-", "") for row in table["slots"]]
        slots = sorted({name for row in iob for name in row.split()} - {"O"})
        path.write_text("\n".join(slots))
        encoder = load_tokenizer("character", vocab_list=list(CHARACTERS), slots_file=path)
        encoded, size = EncodeText(table["text"].tolist(), encoder, iob=iob), len(encoder)
    problem = getattr(s3prl.problem, f"Superb{task.name.upper()}")()
    model = problem.build_downstream(probe.schedule.head, 8, size, 320)
    module = problem.build_task(problem.default_config()["build_task"], model, encoder)

    def loss(x_BTD, lengths_B, rows):
        ids = [str(r) for r in rows]
        if task is ER:
            names = table["label"].iloc[rows].tolist()
            return module("train", x_BTD, lengths_B, torch.tensor([encoder.encode(n) for n in names]), names, ids)[0]
        items = [encoded[r] for r in rows]
        if task is IC:
            names = np.array([i["labels"] for i in items], dtype=object)
            return module(
                "train", x_BTD, lengths_B, torch.stack([torch.as_tensor(i["class_ids"]) for i in items]), names, ids
            )[0]
        classes = nn.utils.rnn.pad_sequence([i["class_ids"] for i in items], batch_first=True)
        return module("train", x_BTD, lengths_B, np.array([i["labels"] for i in items]), classes, np.array(ids))[0]

    return module, loss


@pytest.mark.parametrize("task", [PR, IC, ER, SF], ids=lambda task: task.name)
def test_steps_are_s3prls(task, data, monkeypatch, tmp_path):
    """s3prl's head on frames under its loss, against fit on what the task keeps of them: equal weights after three
    updates."""
    probe = make(task, data)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.randn(3, 18 + i % 5, 8, generator=generator) for i in range(len(probe.table))]
    pooled = task.features == "means"

    def batch(rows, pooled):
        states = [frames[r].mean(1, keepdim=True) if pooled else frames[r] for r in rows]
        lengths_B = torch.tensor([s.shape[1] for s in states])
        longest = int(lengths_B.max())
        return torch.stack([nn.functional.pad(s, (0, 0, 0, longest - s.shape[1])) for s in states]), lengths_B

    class Features:
        def batch(self, rows, generator=None):
            return batch(rows, pooled)

    with train.own_randomness(probe.seed):
        module, loss = theirs(task, probe, tmp_path / "slots.txt")
    weights = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weights, *module.parameters()], lr=1e-2)
    batches = [b for epoch in range(9) for b in probe.epoch(epoch)]
    count = probe.schedule.accumulate
    for step in range(3):
        with train.own_randomness(train._mixed(probe.seed, step + 1)):
            for rows in batches[count * step : count * (step + 1)]:
                x_BLTD, lengths_B = batch(rows, False)
                mixed_BTD = (weights.softmax(-1)[:, None, None] * x_BLTD).sum(1)
                (loss(mixed_BTD, lengths_B, rows) / count).backward()
        nn.utils.clip_grad_norm_([weights, *module.parameters()], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    taken = []
    real = train._update

    def update(candidate, *rest):
        real(candidate, *rest)
        taken.append([p.detach().clone() for p in candidate.head.parameters()])

    monkeypatch.setattr(train, "_update", update)
    train.fit([probe], Features(), 3, 8, 320, (1e-2,))
    expected = [weights, *module.parameters()]
    assert len(taken) == 3 and len(taken[-1]) == len(expected)
    for ours, wanted in zip(taken[-1], expected):
        assert torch.allclose(ours, wanted, atol=2e-5)


def test_official_schedules_are_s3prls():
    import s3prl.problem

    for task in (PR, IC, ER, SF):
        config = getattr(s3prl.problem, f"Superb{task.name.upper()}")().default_config()
        schedule = task.schedules["superb"]
        assert schedule.head == config["build_downstream"]
        assert (schedule.optimizer, schedule.lr) == (
            config["build_optimizer"]["name"],
            config["build_optimizer"]["conf"]["lr"],
        )
        trained = config["train"]
        assert (schedule.steps, schedule.eval_every) == (trained["total_steps"], trained["eval_step"])
        assert (schedule.clip, schedule.accumulate) == (trained["gradient_clipping"], trained["gradient_accumulate"])
        assert schedule.batch == config["build_batch_sampler"]["train"]["batch_size"]
        assert (task.direction == "max") == trained["valid_higher_better"] and task.metric in score.METRICS
    assert [(metric.name, metric.direction) for metric in SF.metrics] == [("sf_f1", "max"), ("sf_cer", "min")]


def test_phone_errors_by_hand(data):
    probe = make(PR, data)
    rows = probe.split["test"]
    assert [probe.targets[r] for r in rows] == ["AH B", "S AH", "B S AH", "AH S B AH"]
    said = ["AH B", "S", "B AH AH", "S B"]  # 0, 1 deletion, 1 substitution, 2 deletions of 11 phones
    assert probe.value(said, rows) == pytest.approx(100 * 4 / 11)
    assert probe.counts(said, rows).tolist() == [[0, 2], [1, 2], [1, 3], [2, 4]]


def test_phones_are_the_published_list_where_the_corpus_keeps_to_it(data):
    assert len(make(PR, data).tokenizer) == 3 + 3
    table = corpora.load("pr", data)
    table["phones"] = [p.replace("AH", "AH0") for p in table["phones"]]
    probe = PR.probe(PR, table, SMALL["pr"], 0)
    assert len(probe.tokenizer) == 71 + 3 and probe.tokenizer.decode(probe.tokens[0]) == "AH0 B"


def test_intents_are_right_jointly(data):
    probe = make(IC, data)
    rows = probe.split["test"][:4]
    assert len(probe.encoder) == 6 and probe.targets[rows[0]] == "on ; light ; none"
    said = [
        "on ; light ; none",
        "on ; light ; none",
        "on ; heat ; none",
        "off ; heat ; kitchen",
    ]  # in truth kitchen, and on
    assert probe.value(said, rows) == 50.0 and probe.counts(said, rows)[:, 0].tolist() == [1, 0, 1, 0]


def test_slot_scores_by_hand(data):
    probe = make(SF, data)
    rows = probe.split["test"]
    assert probe.targets[rows[1]] == "PLAY B-artist ANNA BELL E-artist"
    assert probe.targets[rows[2]] == "PLAY B-song BELL E-song B-time NOW E-time"
    said = [
        "PLAY B-artist ANNA E-artist",  # right
        "B-artist ANNA E-artist",  # slot right, " BELL" lost: 5 of 9 characters
        "B-song BALL E-song B-artist NOW E-artist",  # half the slots: 1 of 4 characters, and all 3 of time
        "NOW PLAY",  # no slot, none found
    ]
    assert probe.value(said, rows) == pytest.approx(100 * (1 + 1 + 0.5 + 1) / 4)
    ((cer, counts),) = probe.further(said, rows)
    assert counts.tolist() == [[0, 4], [5, 9], [4, 7], [0, 0]] and cer == pytest.approx(100 * 9 / 20)
    top, bottom = probe.counts(said, rows).sum(0)
    assert probe.value(said, rows) == pytest.approx(100 * top / bottom)
    said[3] = "B-time NOW E-time"
    assert probe.counts(said, rows)[3].tolist() == [0, 1]


def test_values_with_the_separators_of_s3prls_metric(data):
    table = corpora.load("sf", data)
    table["text"] = [t.replace("NOW", "AT:9;5") for t in table["text"]]
    probe = SF.probe(SF, table, SMALL["sf"], 0)
    rows = probe.split["test"]
    said = [probe.targets[r] for r in rows]
    assert probe.value(said, rows) == 100.0 and probe.further(said, rows)[0][0] == 0.0
    said[2] = said[2].replace("9;", "8;")
    assert probe.further(said, rows)[0][1].tolist()[2] == [1, 10]


def test_slices_are_of_neighbours_by_tokens(data):
    probe = make(PR, data)
    probe.table = probe.table.assign(samples=probe.table["samples"].where(probe.table["phones"].str.len() < 9, 300_001))
    train_rows = sorted(probe.split["train"], key=lambda r: -len(probe.tokens[r]))
    batches = probe.epoch(0)
    starts = sorted(train_rows.index(batch[0]) for batch in batches)
    assert starts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8]
    for batch in batches:
        first = train_rows.index(batch[0])
        size = 2 if first < 3 else 4  # the three utterances of four phones are long: half
        assert batch == train_rows[first : first + size]
    assert probe.epoch(0) == batches != probe.epoch(1)
    probe.schedule = dataclasses.replace(probe.schedule, batch=99)
    assert {len(batch) for batch in probe.epoch(0)} == {12}  # all that there are, half of 99 being more


def evaluate(*arguments):
    return main(["run", "--upstream", "tiny_corpus:upstream", "--schedule", "mini", *map(str, arguments)])


def test_four_tasks_end_to_end(data, tmp_path, capsys):
    out = tmp_path / "tiny"
    arguments = ["--data", data, "--out", out, "--steps", 40, "--tasks", "pr,ic,er,sf", "--lr-grid", "1e-4,2e-2"]
    assert evaluate(*arguments) == 0
    printed = json.loads(capsys.readouterr().out)["metrics"]
    assert list(printed) == ["pr_per", "ic_acc", "er_acc", "sf_f1", "sf_cer"]
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in ("pr", "ic", "er", "sf")}
    for record in records.values():
        assert record["value"] == printed[record["metric"]] and record["limited"] and record["lr"] in (1e-4, 2e-2)
        low, high = record["interval_95"]
        assert low <= record["value"] <= high and len(record["layer_weights"]) == 3
        assert sum(record["layer_weights"]) == pytest.approx(1, abs=1e-4) and len(record["grid"]) == 2
    assert (
        records["pr"]["value"] < 100 and records["ic"]["value"] > 90 and records["er"]["value"] > 90
    )  # tones are easy
    assert (records["pr"]["items"], records["ic"]["items"], records["er"]["items"], records["sf"]["items"]) == (
        4,
        32,
        60,
        4,
    )

    er = records["er"]
    values = [fold["value"] for fold in er["folds"]]
    assert [fold["fold"] for fold in er["folds"]] == [1, 2, 3, 4, 5] and er["value"] == pytest.approx(np.mean(values))
    assert (
        er["std_over_folds"] == pytest.approx(np.std(values, ddof=1)) and [f["items"] for f in er["folds"]] == [12] * 5
    )
    for i in range(2):
        assert er["grid"][i]["dev"] == pytest.approx(np.mean([fold["grid"][i]["dev"] for fold in er["folds"]]))
    (cer,) = records["sf"]["further_metrics"]
    assert (cer["metric"], cer["direction"], cer["value"]) == ("sf_cer", "min", printed["sf_cer"])

    assert main(["report", str(out), "--out", str(tmp_path / "table.md")]) == 0
    text = capsys.readouterr().out
    assert "SF F1 ↑" in text and "SF CER ↓" in text and f"{printed['sf_cer']:.2f}" in text
    written = pd.read_csv(tmp_path / "table.csv").set_index("metric")
    assert written["value"]["sf_cer"] == pytest.approx(printed["sf_cer"]) and written["direction"]["sf_cer"] == "min"


def test_limit_leaves_what_can_be_taught(data):
    for task in (PR, IC, SF):
        few = limited(corpora.load(task.name, data), task, 2)
        assert few["split"].value_counts()["train"] == 2
        task.probe(task, few, SMALL[task.name], 0)
    few = limited(corpora.load("er", data), ER, 2)
    assert few["fold"].value_counts().to_dict() == dict.fromkeys(range(1, 6), 2) and few["label"].nunique() == 2
    for part in ER.probe.splits(ER, few):
        ER.probe(ER, part, SMALL["er"], 0)


@pytest.mark.parametrize(
    "task, column, value, message",
    [
        (PR, "phones", "AH ZZ", "pr: phone 'ZZ' is in test but not in train"),
        (IC, "location", "attic", "ic: location 'attic' is in test but not in train"),
        (SF, "slots", "O B-city", "sf: slot 'city' is in test but not in train"),
        (SF, "slots", "O", "has 2 words and 1 slots"),
    ],
)
def test_labels_that_cannot_be_learnt_are_named(task, column, value, message, data):
    table = corpora.load(task.name, data)
    table.loc[table.index[-1], column] = value
    with pytest.raises(StarError, match=message):
        task.probe(task, table, SMALL[task.name], 0)


def test_unusable_tables_are_named(data):
    table = corpora.load("sf", data)
    bare = [" ".join("O" for _ in text.split()) for text in table["text"]]
    table["slots"] = table["slots"].where(table["split"] != "test", pd.Series(bare))
    with pytest.raises(StarError, match="no test utterance has a slot"):
        SF.probe(SF, table, SMALL["sf"], 0)
    table = corpora.load("er", data)
    with pytest.raises(StarError, match="label 'calm' is in test but not in train"):
        for part in ER.probe.splits(ER, table.assign(label=table["label"].where(table["fold"] != 2, "calm"))):
            ER.probe(ER, part, SMALL["er"], 0)


@pytest.mark.parametrize("task", [PR, IC, ER, SF], ids=lambda task: task.name)
def test_real_manifests(task, shared):
    table = corpora.load(task.name, shared / "realspeech")
    for part in task.probe.splits(task, table):
        probe = task.probe(task, part, task.schedules["mini"], 0)
        assert all(len(rows) > 20 for rows in probe.split.values())
        assert sum(map(len, probe.epoch(0))) >= len(probe.split["train"])
    if task is SF:
        rows = probe.split["test"]
        said = [probe.targets[r] for r in rows]
        assert probe.value(said, rows) == 100 and probe.further(said, rows)[0][0] == 0


def test_exact_runs_of_every_task(data, tmp_path):
    arguments = ["--data", str(data), "--out", str(tmp_path / "o"), "--tasks", "pr,ic,er,sf", "--steps", "2", "--exact"]
    assert main(["run", "--upstream", "tiny_corpus:upstream", "--schedule", "mini", *arguments]) == 0
    for name in ("pr", "ic", "er", "sf"):
        record = json.loads((tmp_path / "o" / f"{name}.json").read_text())
        assert record["encoding"] == "every step" and "fp16" not in str(record["differences"])


def test_slices_are_of_train_by_number_of_phones(data):
    """Each utterance once begins a slice, the last ones share the last whole one; half a slice where it begins with a
    long one."""
    table = corpora.load("pr", data)
    table["samples"] += 30_000 * np.random.default_rng(0).permutation(len(table))  # some over 300,000: half the slice
    probe = PR.probe(PR, table, SMALL["pr"], 5)
    order = sorted(probe.split["train"], key=lambda row: -len(probe.tokens[row]))
    expected = []
    for start in range(len(order)):
        start = min(start, len(order) - 4)
        size = 2 if table["samples"].iloc[order[start]] > 300_000 else 4
        expected.append(tuple(order[start : start + size]))
    assert sorted(map(tuple, probe.epoch(2))) == sorted(expected) and {len(batch) for batch in expected} == {2, 4}
    assert probe.epoch(2) == probe.epoch(2) != probe.epoch(3)


def test_phones_are_the_published_ones_unless_the_corpus_has_others(data):
    table = corpora.load("pr", data)
    known = table.assign(phones=[phones.replace("AH", "AH0") for phones in table["phones"]])
    other = table.assign(phones=[phones.replace("AH", "click") for phones in table["phones"]])
    assert [len(PR.probe(PR, t, SMALL["pr"], 0).tokenizer) for t in (known, other)] == [74, 6]


def test_an_intent_of_test_alone_is_refused(data):
    table = corpora.load("ic", data)
    table.loc[table.index[-1], "location"] = "attic"
    with pytest.raises(StarError, match="'attic' is in test but not in train"):
        IC.probe(IC, table, SMALL["ic"], 0)
