"""Features kept on disk: encoded once, within a budget, and again where the cache has lost them."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_corpus import TinyUpstream

from eval.features import encode, upstreams
from eval.features.encode import Frames, Means, Store, Window

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def waves(tmp_path):
    rng = np.random.default_rng(0)
    out = []
    for i, samples in enumerate((16_000, 16_000, 9_000, 500)):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, samples), 16_000, subtype="FLOAT")
        out.append(Window(str(tmp_path / f"{i}.wav"), 0, samples))
    return out


@pytest.fixture
def tiny():
    return upstreams.Upstream("tiny", TinyUpstream(), "tiny-digest")


@pytest.mark.parametrize("kind", [Means, Frames])
def test_encoded_once_and_again_when_it_must(kind, tiny, waves, tmp_path, capsys):
    rows = [[w] for w in waves]
    first = kind(rows, tiny, Store(tmp_path / "c")).batch([0, 1])[0]
    calls = tiny.expert.calls
    assert torch.equal(kind(rows, tiny, Store(tmp_path / "c")).batch([0, 1])[0], first)
    assert tiny.expert.calls == calls

    entry = max((tmp_path / "c").glob("*/*.safetensors"), key=lambda p: p.stat().st_size)
    content = bytearray(entry.read_bytes())
    content[-7] ^= 0x40
    entry.write_bytes(content)
    assert torch.equal(kind(rows, tiny, Store(tmp_path / "c")).batch([0, 1])[0], first)
    assert tiny.expert.calls > calls and "damaged" in capsys.readouterr().err

    entry.write_bytes(bytes(content[:100]))
    assert torch.equal(kind(rows, tiny, Store(tmp_path / "c")).batch([0, 1])[0], first)
    assert "damaged" in capsys.readouterr().err

    calls = tiny.expert.calls
    other = upstreams.Upstream("tiny", tiny.expert, "another digest")
    calls = tiny.expert.calls
    kind(rows, other, Store(tmp_path / "c"))
    assert tiny.expert.calls > calls

    soundfile.write(waves[0].path, np.zeros(16_000), 16_000, subtype="FLOAT")
    assert not torch.equal(kind(rows, tiny, Store(tmp_path / "c")).batch([0, 1])[0], first)


def test_frames_lost_in_the_middle_of_a_run_come_back(tiny, waves, tmp_path):
    frames = Frames([[w] for w in waves], tiny, Store(tmp_path / "c"))
    first = frames.batch([0])[0]
    for path in (tmp_path / "c").glob("*/*.safetensors"):
        path.unlink()
    assert torch.equal(frames.batch([0])[0], first)


def test_means_beyond_memory_are_read_from_an_unnamed_file(tiny, waves, tmp_path, monkeypatch):
    """The table on disk is the table in memory, and nothing the size of the table is ever held."""
    many = [[Window(waves[0].path, i, 4000 + i)] for i in range(50)]
    monkeypatch.setattr(encode, "SHARD", 8)
    held = Means(many, tiny, Store(tmp_path / "c"))
    monkeypatch.setattr(encode, "IN_MEMORY", 1000)
    largest, empty = [0], torch.empty

    def watched(*shape, **kwargs):
        out = empty(*shape, **kwargs)
        largest[0] = max(largest[0], out.numel())
        return out

    monkeypatch.setattr(torch, "empty", watched)
    spilled = Means(many, tiny, Store(tmp_path / "c"))
    assert largest[0] == 0 and spilled._held_WLD.numel() == 0
    rows = [49, 3, 3, 17]
    assert torch.equal(spilled.batch(rows)[0], held.batch(rows)[0]) and spilled.of(range(50)).std(0).min() > 0
    assert sorted(p.suffix for p in (tmp_path / "c").rglob("*") if p.is_file()) == [".safetensors"] * 7
    for path in (tmp_path / "c").rglob("*.safetensors"):
        path.unlink()
    assert torch.equal(spilled.batch(rows)[0], held.batch(rows)[0])


def test_memory_of_means_does_not_grow_with_the_corpus(tmp_path):
    """A table of 512 MB that the cache holds is taken over by a process whose memory stays below a fifth of that."""
    code = """
import resource, sys, types
import torch
from eval.features import encode
encode.IN_MEMORY = 1 << 20
shard = torch.rand(128, 13, 768)
encode.Means._means = lambda self, shard_, mine: shard[: len(shard_)]
upstream = types.SimpleNamespace(layers=13, width=768)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
means = encode.Means([[encode.Window("x", 0, 1)]] * 12_800, upstream, encode.Store(sys.argv[1]))
for i in range(200):
    x_BLTD, _ = means.batch([(i * 7919 + j * 131) % 12_800 for j in range(32)])
assert torch.equal(x_BLTD[5, :, 0], shard[((199 * 7919 + 5 * 131) % 12_800) % 128])
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "c"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


def test_what_the_cache_has_lost_is_encoded_together(tiny, waves, tmp_path):
    same = [Window(waves[0].path, 10 * i, 8_000) for i in range(6)]
    frames = Frames([[w] for w in same], tiny, Store(tmp_path / "c"))
    first = frames.batch(range(6))[0]
    for key in frames.keys[1:5]:
        frames.store.path(key).unlink()
    calls = tiny.expert.calls
    assert torch.equal(frames.batch([0, 1, 2, 3, 4, 5])[0], first) and tiny.expert.calls == calls + 1
    assert torch.equal(frames.batch(range(6))[0], first) and tiny.expert.calls == calls + 1


def test_a_cache_that_is_too_small_says_so_and_keeps_what_fits(tiny, waves, tmp_path, capsys):
    many = [[Window(waves[0].path, 10 * i, 8_000)] for i in range(10)]  # 3 x 50 x 24 in fp16: 7200 bytes each
    whole = Frames(many, tiny, Store(tmp_path / "whole"))
    assert capsys.readouterr().err == ""
    small = Frames(many, tiny, Store(tmp_path / "small", budget_gb=40_000e-9))
    line = capsys.readouterr().err
    assert (
        "need about 7.2e-05 GB, of which --cache-gb 4e-05 holds 50%; the others are encoded again in every epoch"
        in line
        and line.count("\n") == 1
    )
    assert small.kept == [True] * 5 + [False] * 5
    calls = tiny.expert.calls
    assert torch.equal(small.batch(range(10))[0], whole.batch(range(10))[0])
    assert tiny.expert.calls == calls + 1  # the five that are not kept, at once
    assert small.length(0) == 48 and tiny.expert.calls == calls + 1
    assert small.length(9) == small.length(8) == 48 and tiny.expert.calls == calls + 2  # silence of that length, once
    assert sum(p.stat().st_size for p in (tmp_path / "small").rglob("*.safetensors")) <= 40_000


def test_a_full_disk_keeps_nothing_and_stops_nothing(tiny, waves, tmp_path, monkeypatch, capsys):
    first = Frames([[w] for w in waves], tiny, Store(tmp_path / "c")).batch([0, 1])[0]

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("eval.features.store.write_tensors", full)
    frames = Frames([[w] for w in waves], tiny, Store(tmp_path / "other"))
    assert torch.equal(frames.batch([0, 1])[0], first) and capsys.readouterr().err.count("is full") == 1


def test_an_entry_that_is_damaged_while_in_use_is_encoded_again(tiny, waves, tmp_path, capsys):
    frames = Frames([[w] for w in waves], tiny, Store(tmp_path / "c"))
    first = frames.batch([0])[0]
    frames.store.path(frames.keys[0]).write_bytes(b"short")
    assert torch.equal(frames.batch([0])[0], first) and "damaged" in capsys.readouterr().err


def test_store_stays_within_its_budget(tmp_path):
    store = Store(tmp_path, budget_gb=3e-6)
    for i in range(8):
        store.put(f"{i:02d}", {"x": torch.zeros(200)})
    sizes = [p.stat().st_size for p in tmp_path.glob("*/*.safetensors")]
    assert sum(sizes) <= 3000 and store.get("07") is not None and store.get("00") is None
