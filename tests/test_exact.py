"""exact: padded batches at every step are s3prl's own, random crops and all, and never taken for encoding once."""

import json

import numpy as np
import pytest
import soundfile
import tiny_corpus
import torch
from test_encode import group_norm
from tiny_corpus import TinyUpstream

from eval import tasks
from eval.__main__ import main
from eval.features import encode, upstreams
from eval.features.encode import Window
from eval.features.exact import Padded
from eval.heads import train
from eval.heads.probe import Schedule
from star_upstream import compat
from star_upstream.errors import StarError
from star_upstream.formats.upstream import UpstreamExpert

compat.apply()
LENGTHS = (16_000, 9_000, 700, 30_000)


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    for i, samples in enumerate(LENGTHS):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, samples), 16_000, subtype="FLOAT")
    return [[Window(str(tmp_path / f"{i}.wav"), 0, samples)] for i, samples in enumerate(LENGTHS)]


def test_padding_changes_states_here_and_not_where_utterances_are_encoded_once(rows, tmp_path):
    upstream = upstreams.Upstream("u", group_norm(), "d")
    exact = Padded(rows, upstream)
    alone_LTD, padded_LTD = exact.batch([1])[0][0], exact.batch([1, 3])[0][0]
    assert (alone_LTD - padded_LTD[:, : alone_LTD.shape[1]]).abs().max() > 0.01
    once_LTD = encode.Frames(rows, upstream, encode.Store(tmp_path / "c")).batch([1, 3])[0][0]
    assert torch.allclose(once_LTD[:, : alone_LTD.shape[1]], alone_LTD, atol=5e-3)


def test_training_draws_crops_of_the_sound(rows):
    upstream = upstreams.Upstream("u", TinyUpstream(), "d")
    exact = Padded(rows, upstream, crop=8_000)
    found = {}
    for seed in range(8):
        x_BLTD, lengths_B = exact.batch([3, 2], torch.Generator().manual_seed(seed))
        assert lengths_B.tolist() == [48, 4] and torch.equal(
            x_BLTD, exact.batch([3, 2], torch.Generator().manual_seed(seed))[0]
        )
        found[float(x_BLTD.sum())] = x_BLTD
    assert len(found) == 8
    assert exact.batch([3, 2])[1].tolist() == [186, 4]  # dev and test are whole
    first = int(torch.randint(22_001, (1,), generator=torch.Generator().manual_seed(0)))
    wave = encode.waveform(Window(rows[3][0].path, first, 8_000))
    x_BLTD, _ = exact.batch([3], torch.Generator().manual_seed(0))
    assert torch.allclose(x_BLTD[0], upstream.encode([wave])[0], atol=1e-5)


class Small(UpstreamExpert):
    """Has memory for so many utterances."""

    room, batches = 99, ()

    def forward(self, wavs):
        self.batches = (*self.batches, len(wavs))
        if len(wavs) > self.room:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(wavs)


def test_bad_audio_is_named_before_training(rows, tmp_path):
    (tmp_path / "2.wav").write_bytes(b"RIFF....WAVE nothing")
    with pytest.raises(StarError, match="2.wav: cannot be read"):
        Padded(rows, upstreams.Upstream("u", TinyUpstream(), "d"))


def test_out_of_memory_halves_the_batch_and_keeps_its_padding(rows, capsys):
    expert = Small(group_norm().encoder)
    upstream = upstreams.Upstream("u", expert, "d")
    whole_BLTD, _ = Padded(rows, upstream).batch([0, 1, 2, 3])
    expert.room = 2
    exact = Padded(rows, upstream)
    assert torch.allclose(exact.batch([0, 1, 2, 3])[0], whole_BLTD, atol=1e-5)
    assert (
        "out of memory on cpu with 4 utterances of up to 1.9 s; encoding at most 2 at once" in capsys.readouterr().err
    )
    expert.batches = ()
    exact.batch([0, 1, 2, 3])
    assert expert.batches == (2, 2, 2) and capsys.readouterr().err == ""
    expert.room = 1
    with pytest.raises(StarError, match="2 utterances of up to 1.9 s do not fit together; leave out --exact"):
        exact.batch([0, 1, 2, 3])


def test_dev_and_test_are_encoded_in_s3prls_batches(rows):
    """The batch that an utterance is in matters, hence its size and order; elsewhere rows are sorted by length."""
    import pandas as pd

    upstream = upstreams.Upstream("u", group_norm(), "d")
    names = ["a", "b", "a", "b"] * 3
    table = pd.DataFrame({
        "id": range(12), "path": "x", "start": 0, "samples": list(LENGTHS) * 3, "label": names,
        "split": ["train"] * 4 + ["dev"] * 4 + ["test"] * 4,
    })  # fmt: skip
    task = tasks.get("er")
    probe = task.probe(task, table, Schedule(1, 1, 1, 1e-3, 1, head={"hidden_size": 6}), 0)
    seen = []

    class Watched(Padded):
        def batch(self, picked, generator=None):
            seen.append(list(picked))
            return super().batch(picked, generator)

    exact = Watched(rows * 3, upstream, eval_batch=task.eval_batch)
    train.predict(train.Head(3, probe.head(upstream.width, 320)), probe, exact, probe.split["test"])
    assert seen == [[8, 9, 10, 11]] and task.eval_batch == 4
    from s3prl import problem

    for name in tasks.names():
        if name != "qbe":
            config = getattr(problem, f"Superb{name.upper()}")().default_config()["build_batch_sampler"]
            assert config.get("valid", config.get("test"))["batch_size"] == tasks.get(name).eval_batch, name


def test_records_of_the_two_ways_do_not_mix(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    corpus, out = tiny_corpus.make(tmp_path / "data"), tmp_path / "o"
    arguments = ["run", "--upstream", "tiny_corpus:upstream", "--data", str(corpus), "--steps", "6", "--out", str(out)]
    arguments += ["--tasks", "ks,sid,asr"]
    assert main([*arguments, "--exact"]) == 0
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in ("ks", "sid", "asr")}
    for record in records.values():
        assert (
            record["encoding"] == "every step"
            and record["features"] == "frames, fp32"
            and record["seconds_encoding"] == 0
        )
        assert not any("fp16" in line or "fixed, evenly" in line or "alone" in line for line in record["differences"])
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    capsys.readouterr()

    assert main([*arguments, "--exact"]) == 0 and "already done" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "holds another run (encoding differ)" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    once = json.loads((out / "sid.json").read_text())
    assert once["encoding"] == "once" and any("fixed, evenly" in line for line in once["differences"])
    del once["encoding"]  # records of older versions
    (out / "sid.json").write_text(json.dumps(once))
    assert main(arguments) == 0
    once["schedule_details"]["batch"] = 7
    (out / "sid.json").write_text(json.dumps(once))
    assert main(arguments) == 1
    assert "schedule_details.batch differ" in capsys.readouterr().err
