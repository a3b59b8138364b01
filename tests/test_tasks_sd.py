"""sd: s3prl's chunks, labels, loss and accuracy, and segments from probabilities."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny_relations
import torch
from test_tasks_qbe_asv import SD, STRIDE, evaluate, frames, make, record_of
from torch import nn

from eval.tasks import sd as sd_module
from star_upstream.data import corpora


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_relations.make(tmp_path_factory.mktemp("tones") / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


def test_diarization_end_to_end(data, tmp_path):
    assert evaluate(data, tmp_path / "o", "sd", "--steps", 40) == 0
    record = record_of(tmp_path / "o", "sd")
    assert record["value"] < 15 and record["items"] == 4 and record["unit"] == "%"
    assert record["details"]["speakers"] == 2 and record["details"]["threshold"] in sd_module.THRESHOLDS
    assert record["chosen_by"] == "sd_frame_accuracy" and record["dev_value"] > 85
    curve = record["grid"][0]["curve"]
    assert record["dev_value"] == pytest.approx(max(value for _, value in curve), abs=1e-3)
    assert evaluate(data, tmp_path / "few", "sd", "--limit", 2, "--steps", 2) == 0
    assert record_of(tmp_path / "few", "sd")["items"] == 2


def s3prl_chunks(data, folder, chunk):
    """What s3prl's own data set makes of the segments: frames x speakers for each chunk."""
    from s3prl.dataio.dataset import DiarizationDataset

    table, segments = corpora.load("sd", data), corpora.segments(data)
    folder.mkdir()
    (folder / "wav.scp").write_text("".join(f"{i} {p}\n" for i, p in zip(table["id"], table["path"])))
    (folder / "reco2dur").write_text("".join(f"{p} {n / 16_000}\n" for p, n in zip(table["id"], table["samples"])))
    names = [f"u{n}" for n in range(len(segments))]
    (folder / "utt2spk").write_text("".join(f"{n} {s}\n" for n, s in zip(names, segments["speaker"])))
    (folder / "segments").write_text("".join(
        f"{n} {row.id} {row.start} {row.end}\n" for n, row in zip(names, segments.itertuples())
    ))  # fmt: skip
    assert soundfile.info(table["path"][0]).samplerate == 16_000
    dataset = DiarizationDataset("train", str(folder), chunk_size=chunk, frame_shift=STRIDE, num_speakers=2)
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("chunk", [2000, 90])
def test_chunks_and_labels_are_s3prls(chunk, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sd_module, "CHUNK", chunk)
    probe = make(SD, data)
    expected = s3prl_chunks(data, tmp_path / "kaldi", chunk)
    assert len(probe.table) == len(expected) == (15 if chunk == 2000 else 45)
    for row, item in enumerate(expected):
        assert (probe.table["recording"].iloc[row], probe.table["samples"].iloc[row]) == (
            item["record_id"],
            len(item["x"]),
        )
        mine, covered = probe.labels_of(row), item["label"].any(0)
        assert mine.shape == item["label"].shape
        for speaker in range(2):  # s3prl leaves out a segment that begins before the chunk and ends after it
            if covered[speaker] or not mine[:, speaker].all():
                assert (mine[:, speaker] == item["label"][:, speaker]).all()


def test_diarization_loss_and_accuracy_are_s3prls(data, tmp_path):
    from s3prl.nn.rnn import SuperbDiarizationModel
    from s3prl.task.diarization import DiarizationPIT

    probe = make(SD, data, head={"hidden_size": 7, "rnn_layers": 1})
    features, rows = frames(SD, probe, tmp_path / "f"), probe.split["train"][:5]
    x_BLTD, lengths_B = features.batch(rows)
    torch.manual_seed(0)
    head = probe.head(24, STRIDE)
    torch.manual_seed(0)
    theirs = DiarizationPIT(SuperbDiarizationModel(24, 2, rnn_layers=1, hidden_size=7))
    labels = [torch.from_numpy(probe.labels_of(row)) for row in rows]
    label_len = torch.tensor([len(label) for label in labels])
    padded = nn.utils.rnn.pad_sequence(labels, batch_first=True)
    x_BTD, filled_B = sd_module.filled(x_BLTD[:, 1], lengths_B, label_len)
    loss, _ = theirs("train", x_BTD, filled_B, padded, label_len, ["r"] * 5, [0] * 5)
    mine = probe.loss(head, x_BLTD[:, 1], lengths_B, rows)
    assert torch.allclose(mine, loss)
    mine.backward()
    loss.backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(head.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        predictions, accuracies = probe.predict(head, x_BLTD[:, 1], lengths_B, rows), []
        for i, n in enumerate(label_len.tolist()):  # dev has a chunk a batch
            one = (x_BTD[i : i + 1, :n], filled_B[i : i + 1], padded[i : i + 1, :n], label_len[i : i + 1])
            accuracies.append(theirs("dev", *one, ["r"], [0])[1]["accuracy"])
    assert probe.dev_value(predictions, rows) == pytest.approx(100 * np.mean(accuracies))


def test_segments_are_those_of_s3prls_rttm(tmp_path):
    from s3prl.problem.diarization.util import make_rttm

    share_TS = np.random.default_rng(0).uniform(0, 1, (200, 2)).cumsum(0) % 1.0
    (tmp_path / "p").mkdir()
    torch.save(torch.from_numpy(share_TS), tmp_path / "p" / "rec.pt")
    for median in sd_module.MEDIANS:
        make_rttm(str(tmp_path / "p"), str(tmp_path / "out.rttm"), 0.4, median, 320, 1, 16_000)
        fields = [line.split() for line in (tmp_path / "out.rttm").read_text().splitlines()]
        theirs = [(float(f[3]), float(f[3]) + float(f[4]), f[7][-1]) for f in fields]
        mine = sd_module.talking(share_TS > 0.4, median, 0.02)
        assert [m[2] for m in mine] == [t[2] for t in theirs] and len(mine) > 5
        assert np.allclose([m[:2] for m in mine], [t[:2] for t in theirs], atol=1e-6)


def test_diarization_joins_chunks_and_takes_the_best_setting(data, monkeypatch):
    """Perfect logits in chunks of 90 frames, in any order of rows: no error at any threshold; the reference against
    itself."""
    monkeypatch.setattr(sd_module, "CHUNK", 90)
    probe = make(SD, data)
    rows = probe.split["test"][::-1]
    perfect = [20.0 * probe.labels_of(row) - 10.0 for row in rows]
    assert (
        probe.value(perfect, rows) < 1.5 and probe.items(rows) == 4 and len(rows) == 12
    )  # segments end between frames
    assert probe.counts(perfect, rows).shape == (4, 2)
    nothing = [np.full_like(logits, -10.0) for logits in perfect]
    assert probe.value(nothing, rows) == 100.0
    half = [logits * 0.0 + np.log(0.65 / 0.35) * np.sign(logits) for logits in perfect]
    assert probe.value(half, rows) < 1.5 and probe.details(half, rows)["threshold"] in (0.4, 0.5, 0.6)


def test_dev_accuracy_of_diarization_is_the_mean_over_chunks_by_hand():
    """Nine of ten decisions right in 100 frames, half in 10 frames: 70 %, where all decisions pooled are 86.4 % right;
    and a chunk where nobody talks counts as 0, as in s3prl/downstream/diarization/expert.py at v0.4.18."""
    chunk = {"path": "x", "start": 0, "stride": 160, "first_frame": 0, "recording": "r"}
    rows = [
        {
            **chunk,
            "id": f"{split}{frames}",
            "split": split,
            "frames": frames,
            "samples": 160 * frames,
            "segments": segments,
        }
        for split in ("train", "dev", "test")
        for frames, segments in (
            (100, ((0.0, 1.0, "a"),)),
            (10, ((0.0, 0.1, "a"), (0.0, 0.1, "b"))),
            (50, ((9.0, 9.5, "a"),)),
        )
    ]
    made = SD.probe(SD, pd.DataFrame(rows), SD.schedules["mini"], 0)
    dev, logits = made.split["dev"], []
    for row, wrong in zip(made.split["dev"], (20, 10, 0)):
        said = 2 * made.labels_of(row) - 1
        said[:wrong, 0] *= -1
        logits.append(said.astype(np.float32))
    assert made.dev_value(logits[:2], dev[:2]) == pytest.approx((90 + 50) / 2)
    assert made.dev_value(logits, dev) == pytest.approx((90 + 50 + 0) / 3)


def test_diarization_repeats_the_last_frame_before_the_lstm():
    chunk = {
        "path": "x",
        "start": 0,
        "stride": 320,
        "first_frame": 0,
        "recording": "r",
        "segments": ((0.0, 0.1, "a"), (0.05, 0.2, "b")),
    }
    rows = [
        {**chunk, "id": f"{s}{n}", "split": s, "frames": n, "samples": 320 * n}
        for s in ("train", "dev", "test")
        for n in (10, 6)
    ]
    made = SD.probe(
        SD, pd.DataFrame(rows), dataclasses.replace(SD.schedules["mini"], head={"hidden_size": 5, "rnn_layers": 1}), 0
    )
    torch.manual_seed(0)
    head, x_BTD, train_rows = made.head(4, 320), torch.randn(2, 9, 4), made.split["train"]
    x_BTD[1, 5:] = 0.0
    whole_BTD = torch.stack([
        torch.cat([x_BTD[0], x_BTD[0, 8:]]), torch.cat([x_BTD[1, :5], x_BTD[1, 4:5], torch.zeros(4, 4)])
    ])  # fmt: skip
    expected = made.loss(head, whole_BTD, torch.tensor([10, 6]), train_rows)
    assert torch.allclose(made.loss(head, x_BTD, torch.tensor([9, 5]), train_rows), expected)
    with torch.no_grad():
        answers = [
            made.predict(head, x, torch.tensor(n), train_rows) for x, n in ((x_BTD, [9, 5]), (whole_BTD, [10, 6]))
        ]
    assert [a.shape for a in answers[0]] == [(10, 2), (6, 2)]
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*answers))
