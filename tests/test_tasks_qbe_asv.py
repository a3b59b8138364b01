"""qbe and asv: s3prl's heads, losses, labels and scores, and whole runs on tones."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny_relations
import torch
from test_train import table as table_of
from tiny_corpus import TinyUpstream
from torch import nn

from eval import tasks
from eval.__main__ import main
from eval.features import encode
from eval.features.upstreams import Upstream
from eval.heads import train
from eval.tasks import qbe as qbe_module
from eval.tasks import sd as sd_module
from star_upstream import compat, metrics
from star_upstream.data import corpora
from star_upstream.errors import StarError

compat.apply()
QBE, SD, ASV = (tasks.get(name) for name in ("qbe", "sd", "asv"))
STRIDE = 160
MINI_XVECTOR = {"hidden_size": 8, "tdnn_size": 8, "aggregation_size": 12, "output_size": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_relations.make(tmp_path_factory.mktemp("tones") / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


def make(task, data, limit=None, seed=3, **schedule):
    table = task.probe.prepare(task, corpora.load(task.name, data), data, STRIDE, limit)
    return task.probe(task, table, dataclasses.replace(task.schedules["mini"], **schedule), seed)


def frames(task, probe, folder, crop=None):
    upstream = Upstream("tiny", TinyUpstream(), "d")
    return encode.Frames(encode.windows(probe.table), upstream, encode.Store(folder), task.effects, crop)


def evaluate(data, out, name, *arguments):
    return main(
        [
            "run",
            "--upstream",
            "tiny_corpus:upstream",
            "--schedule",
            "mini",
            "--data",
            str(data),
            "--out",
            str(out),
            "--tasks",
            name,
            *map(str, arguments),
        ]
    )


def record_of(out, name):
    record = json.loads((out / f"{name}.json").read_text())
    low, high = record["interval_95"]
    assert low <= record["value"] <= high and len(record["layer_weights"]) == 3
    return record


@pytest.mark.parametrize("samples", [160, 16_000])
def test_what_no_trial_names_does_not_stop_a_run(data, tmp_path, samples):
    """Too short, and silent: neither would leave anything once silence is cut."""
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    soundfile.write(folder / "wav" / "unused.wav", np.zeros(samples), 16_000)
    with open(folder / "manifests" / "asv_test.tsv", "a") as file:
        file.write(f"unused\twav/unused.wav\t{samples}\t430 Hz\n")
    probe = make(ASV, folder)
    assert len(corpora.load("asv", folder)) == len(probe.table) + 1 and "unused" not in set(probe.table["id"])
    probe.ready(frames(ASV, probe, tmp_path / "features"))


def test_query_by_example_end_to_end(data, tmp_path, capsys):
    assert evaluate(data, tmp_path / "o", "qbe") == 0
    record = record_of(tmp_path / "o", "qbe")
    assert record["value"] > 0.7 and record["items"] == 3 and record["metric"] == "qbe_mtwv" and not record["limited"]
    assert record["details"]["documents"] == 12 and record["details"]["pairs"] == 36
    assert sorted(record["layer_weights"]) == [0, 0, 1] and record["lr"] is None and record["head_parameters"] == 0
    assert record["dev_value"] == max(entry["dev"] for entry in record["grid"]) and len(record["grid"]) == 3
    assert record["layer_weights"].index(1) == [entry["dev"] for entry in record["grid"]].index(record["dev_value"])
    assert record["interval_method"] == "percentile bootstrap over queries, 1000 resamples"
    assert json.loads(capsys.readouterr().out)["metrics"] == {"qbe_mtwv": record["value"]}
    assert evaluate(data, tmp_path / "few", "qbe", "--limit", 2, "--steps", 5) == 0  # steps mean nothing here
    few = record_of(tmp_path / "few", "qbe")
    assert few["limited"] and few["items"] == 2 and few["steps"] == 0 and few["details"]["documents"] < 12


def test_verification_end_to_end(data, tmp_path):
    assert evaluate(data, tmp_path / "o", "asv", "--steps", 60) == 0
    record = record_of(tmp_path / "o", "asv")
    assert record["value"] < 30 and record["items"] == 66 and record["metric"] == "asv_eer"
    assert record["details"]["training_utterances"] == 24 and record["details"]["training_speakers"] == 12
    assert 0 <= record["details"]["minimum_detection_cost_at_prior_0.01"] <= 1
    assert evaluate(data, tmp_path / "few", "asv", "--limit", 3, "--steps", 2) == 0
    few = record_of(tmp_path / "few", "asv")
    assert few["items"] == 6 and few["details"]["training_utterances"] == 3


def test_queries_are_scored_as_s3prl_does(data, tmp_path):
    """Mean and variance over all frames of a set, costs, and each query's scores normalised over its documents."""
    from eval.heads.dtw import Documents

    probe = make(QBE, data)
    features, rows = frames(QBE, probe, tmp_path / "f"), probe.split["test"]
    assert {probe.table["split"].iloc[row] for row in rows} == {"eval"} and len(rows) == 15
    predictions = [x_LTD[1].float().numpy() for x_LTD in features.states(rows)]
    relevant_QN, scores_QN = probe._search(predictions, rows)
    frames_TD = torch.from_numpy(np.concatenate(predictions))
    normed = [((torch.from_numpy(p) - frames_TD.mean(0)) / frames_TD.std(0).clamp(1e-9)).numpy() for p in predictions]
    for q in range(3):
        expected = np.array([-Documents([document]).costs(normed[q])[0] for document in normed[3:]])
        expected = (expected - expected.mean()) / expected.std()
        assert scores_QN[q] == pytest.approx(expected, abs=1e-3)
    assert relevant_QN.sum() == 12 and (relevant_QN >= 0).all()


def test_a_broken_search_goes_on_with_the_next_layer(data, tmp_path, monkeypatch):
    probe = make(QBE, data)
    features, searched = frames(QBE, probe, tmp_path / "f"), []
    whole = probe.choose(features, 3, tmp_path / "whole.pt", "a")
    real = qbe_module.predict
    monkeypatch.setattr(qbe_module, "predict", lambda head, *rest: (searched.append(head.layer), real(head, *rest))[1])

    def stop(line):
        if "layer 1" in line:
            raise KeyboardInterrupt

    progress = tmp_path / "qbe.pt"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(qbe_module, "say", stop)
        probe.choose(features, 3, progress, "a")
    again = probe.choose(features, 3, progress, "a")
    assert searched == [0, 1, 2] and again.grid == whole.grid
    probe.choose(features, 3, progress, "other")
    assert searched[3:] == [0, 1, 2]
    progress.write_text("{")
    with pytest.raises(StarError, match="damaged progress file"):
        probe.choose(features, 3, progress, "a")


def test_exact_runs_of_tasks_over_frames(data, tmp_path):
    assert evaluate(data, tmp_path / "o", "asv,sd,qbe", "--steps", 2, "--exact") == 0
    ways = {task: record_of(tmp_path / "o", task)["encoding"] for task in ("asv", "sd", "qbe")}
    assert ways == {
        "asv": "every step",
        "sd": "every step",
        "qbe": "once",
    }  # nothing is trained there, so nothing is padded


def test_a_short_query_finds_nothing_rather_than_everything(data, tmp_path):
    probe = make(QBE, data)
    rows = probe.split["test"]
    predictions = [np.random.default_rng(row).standard_normal((4 if i == 0 else 20, 5)) for i, row in enumerate(rows)]
    assert (probe._search(predictions, rows)[1][0] == 0).all()


def test_a_search_that_finds_nothing_has_no_threshold(data, monkeypatch):
    """MTWV 0, at which it is best to call nothing found; no number in json says infinity."""
    probe = make(QBE, data)
    monkeypatch.setattr(probe, "_search", lambda *_: (np.array([[1, 0, 0]]), np.array([[-1.0, 1.0, 2.0]])))
    assert probe.value([], []) == 0.0
    assert json.loads(json.dumps(probe.details([], []), allow_nan=False))["threshold"] is None


def test_verification_loss_and_scores_are_s3prls(data, tmp_path):
    from s3prl.nn import SuperbXvector
    from s3prl.task.speaker_verification_task import SpeakerVerification

    probe = make(ASV, data, head={})
    features, rows = frames(ASV, probe, tmp_path / "f"), probe.split["train"][:6]
    probe.ready(features)
    x_BLTD, lengths_B = features.batch(rows)
    torch.manual_seed(0)
    head = probe.head(24, STRIDE)
    torch.manual_seed(0)
    uid = probe.table["id"]
    trials = [(target, uid.iloc[a], uid.iloc[b]) for target, a, b in probe.trials]
    theirs = SpeakerVerification(SuperbXvector(24), probe.encoder, trials, "amsoftmax", {"margin": 0.4, "scale": 30})
    speakers = torch.tensor([probe.encoder.encode(probe.table["speaker"].iloc[row]) for row in rows])
    pooled_B = (lengths_B + 1).clamp(max=x_BLTD.shape[2])  # a frame more, as in the published training
    loss = theirs.train_step(x_BLTD[:, 1], pooled_B, speakers, ["u"] * 6)[0]
    mine = probe.loss(head, x_BLTD[:, 1], lengths_B, rows)
    assert torch.allclose(mine, loss)
    mine.backward()
    loss.backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(head.parameters(), theirs.parameters(), strict=True))

    tested = probe.split["test"]
    predictions = train.predict(train.Head(3, head), probe, features, tested)
    theirs.eval()
    cached = []
    with torch.no_grad():
        for row in tested:  # at batch size one
            x_BLTD, lengths_B = features.batch([row])
            cached.append(theirs.test_step(x_BLTD.mean(1), lengths_B, np.array([uid.iloc[row]]), None)[1])
    expected = theirs.test_reduction(cached, None)
    assert probe.value(predictions, tested) == pytest.approx(100 * expected["EER"], abs=0.05)
    found = probe.details(predictions, tested)["minimum_detection_cost_at_prior_0.01"]
    assert found == pytest.approx(expected["minDCF"], abs=0.02)


def test_small_xvector_is_s3prls_but_for_its_sizes(data):
    head = make(ASV, data, head=MINI_XVECTOR).head(24, STRIDE)
    inside = [
        (t.kernel.in_features // t.context_size, t.kernel.out_features, t.dilation) for t in head.model.tdnns.module
    ]
    assert inside == [(8, 8, 1), (8, 8, 2), (8, 8, 3), (8, 8, 1), (8, 12, 1)]
    assert head.predict(torch.randn(2, 40, 24), torch.tensor([40, 30])).shape == (2, 6)


def test_silence_is_cut_in_training_and_in_trials_alike(data, tmp_path):
    """Half of every utterance is a pause of a second."""
    probe = make(ASV, data)
    features = frames(ASV, probe, tmp_path / "f")
    for row in (probe.split["train"][0], probe.split["test"][0]):
        assert probe.table["samples"].iloc[row] > 30_000
        assert 85 <= features.length(row) <= 125


def test_short_training_utterances_are_left_out(data, tmp_path):
    probe = make(ASV, data, min_seconds=2.0)
    with pytest.raises(StarError, match="no training utterance is longer than 2 s once"):
        probe.ready(frames(ASV, probe, tmp_path / "f"))

    class Known:
        upstream = Upstream("tiny", TinyUpstream(), "d")

        def length(self, row):
            return self.samples(row) // 160

        def samples(self, row):
            return {0: 32_000, 1: 32_001}.get(row, 48_000)

    probe = make(ASV, data, min_seconds=2.0)
    probe.ready(Known())
    assert 0 not in probe.split["train"] and 1 in probe.split["train"] and len(probe.split["train"]) == 23
    Known.samples = lambda self, row: 15 * 160 if row == probe.split["test"][3] else 48_000
    with pytest.raises(StarError, match="has 15 frames once silence is cut"):
        probe.ready(Known())


def test_training_crops_are_random_and_trials_whole(data, tmp_path):
    probe = make(ASV, data)
    features = frames(ASV, probe, tmp_path / "f", crop=20)
    seen = {float(features.batch([0], torch.Generator().manual_seed(i))[0][0, 0, 0, 0]) for i in range(8)}
    assert len(seen) > 3
    assert features.batch([0], torch.Generator())[1].tolist() == [20]
    assert features.batch([0])[1].tolist() == [features.length(0)] and features.length(0) > 20


def test_official_schedules_and_heads_are_s3prls():
    from s3prl.problem import SuperbASV, SuperbSD

    for task, problem in ((SD, SuperbSD), (ASV, SuperbASV)):
        config, schedule = problem().default_config(), task.schedules["superb"]
        assert (schedule.optimizer, schedule.lr) == (
            config["build_optimizer"]["name"],
            config["build_optimizer"]["conf"]["lr"],
        )
        trained, batches = config["train"], config["build_batch_sampler"]["train"]
        assert (schedule.steps, schedule.clip, schedule.accumulate, schedule.batch) == (
            trained["total_steps"], trained["gradient_clipping"], trained["gradient_accumulate"], batches["batch_size"],
        )  # fmt: skip
        assert schedule.head == config.get("build_downstream", {})
    sd, asv = SuperbSD().default_config(), SuperbASV().default_config()
    assert (list(sd_module.THRESHOLDS), list(sd_module.MEDIANS)) == (
        sd["scoring"]["thresholds"],
        sd["scoring"]["median_filters"],
    )
    assert sd["build_dataset"]["chunk_size"] == sd_module.CHUNK
    from s3prl.problem.asv.superb_asv import EFFECTS

    limits = asv["build_dataset"]["train"]
    assert (ASV.schedules["superb"].min_seconds, ASV.crop_seconds) == (limits["min_secs"], limits["max_secs"])
    assert [list(effect) for effect in ASV.effects] == EFFECTS


def test_interval_draws_items(data):
    """Of functions as of counts, and of their mean over folds."""
    assert metrics.bootstrap(lambda generator: generator.uniform(0, 100), seed=0)[0] == pytest.approx(2.5, abs=1.5)
    assert metrics.bootstrap([np.array([[1.0, 1.0]] * 5), lambda generator: 50.0]) == (75.0, 75.0)
    probe = make(ASV, data)
    rows = probe.split["test"]
    embeddings = list(
        nn.functional.normalize(torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(0)), dim=1).numpy()
    )
    low, high = metrics.bootstrap(probe.counts(embeddings, rows), resamples=100)
    assert low < probe.value(embeddings, rows) < high and high - low < 50


def test_unusable_corpora_are_named(data):
    table = pd.DataFrame(make(SD, data).table)
    table["segments"] = [tuple((0.0, 1.0, name) for name in "abcde")] * len(table)
    with pytest.raises(StarError, match="5 speakers in recording 'sd-train-0'; at most 4: remove it"):
        SD.probe(SD, table, SD.schedules["mini"], 0)
    short = corpora.load("sd", data).assign(samples=100)
    with pytest.raises(StarError, match="'sd-train-0' is shorter than one frame of 160 samples"):
        SD.probe.prepare(SD, short, data, STRIDE, None)
    table = make(QBE, data).table
    with pytest.raises(StarError, match="no query of eval is in any document"):
        QBE.probe(QBE, table[table["split"] == "dev"].reset_index(drop=True), QBE.schedules["mini"], 0)
    table = make(ASV, data).table
    with pytest.raises(StarError, match="no trial of one speaker"):
        ASV.probe(ASV, table.assign(trials=[()] * len(table)), ASV.schedules["mini"], 0)


def test_verification_pools_a_frame_more_in_the_published_training():
    data = table_of("speaker", ("x", "y"), (3, 0, 2)).assign(trials=[()] * 10)
    data.at[6, "trials"] = ((1, data["id"][7]), (0, data["id"][8]))
    head_sizes = {"hidden_size": 8, "tdnn_size": 8, "aggregation_size": 12, "output_size": 6}
    made = ASV.probe(ASV, data, dataclasses.replace(ASV.schedules["mini"], head=head_sizes), 0)
    torch.manual_seed(0)
    head, lengths_B = made.head(5, 320), torch.tensor([40, 33, 39])
    x_BTD = torch.randn(3, 40, 5)
    rows, speakers = [0, 1, 2], torch.tensor([made.encoder.encode("x")] * 3)
    clean_BTD = torch.stack([torch.cat([x_TD[:n], torch.zeros(40 - n, 5)]) for x_TD, n in zip(x_BTD, lengths_B)])
    pooled = []
    for x_TD, n in zip(clean_BTD, (40, 34, 40)):  # each alone, cut where the pooling ends
        pooled.append(head.predict(x_TD[None, :n], torch.tensor([n])))
    expected = head.loss(torch.cat(pooled), speakers)[0]
    assert torch.allclose(made.loss(head, x_BTD, lengths_B, rows), expected, atol=1e-5)
    with torch.no_grad():
        alone = made.predict(head, x_BTD[1:2, :33], lengths_B[1:2], [1])[0]  # in trials the whole context alone
    expected = torch.nn.functional.normalize(head.predict(x_BTD[1:2, :33], torch.tensor([33])), dim=1)[0]
    assert np.allclose(alone, expected.detach().numpy(), atol=1e-6)
