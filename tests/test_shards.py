"""Audio in tar shards and in tables, on a disk and at addresses: the same clips, the same batches, the same run."""

import io
import os
import shutil
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
import yaml
from tiny_audio import write
from tiny_runs import killed, log, write_audio

from eval.features import encode
from star_upstream import audio, members
from star_upstream.data import corpora, shards
from star_upstream.data.batches import AudioDataset, BucketSampler, collate
from star_upstream.data.clips import scan
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.training import distill, recipe

KINDS = {
    "wav": {},
    "flac": {},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten files of every kind and length."""
    folder = tmp_path_factory.mktemp("shards")
    os.environ["STAR_CACHE"] = str(folder / "cache")
    for i, (ending, options) in enumerate(2 * list(KINDS.items())):
        write(folder / "audio" / f"{i}.{ending}", 0.6 + 0.1 * i, 48_000 if i % 2 else 16_000, **options)
    yield folder
    del os.environ["STAR_CACHE"]


@pytest.fixture(scope="module")
def truth(folder):
    """Waveform by length."""
    return {clip.samples: audio.read(clip.path) for clip in scan([folder / "audio"], progress=False).clips}


def test_shards_are_read_where_nothing_can_be_kept(folder, monkeypatch, capsys):
    write_tars(folder, "unkept")
    monkeypatch.setenv("STAR_CACHE", "/proc/nothing")
    assert len(scan([folder / "unkept"], progress=False).clips) == 10
    assert "is read anew the next time" in capsys.readouterr().err


def files(folder):
    return sorted((folder / "audio").iterdir(), key=lambda file: int(file.stem))


def write_tars(folder, name, per_shard=4):
    (folder / name).mkdir()
    with webdataset.ShardWriter(str(folder / name / "train-%03d.tar"), maxcount=per_shard, verbose=0) as writer:
        for file in files(folder):
            writer.write({"__key__": f"speaker/{file.stem}", file.suffix[1:]: file.read_bytes(), "txt": "some words"})
    return folder / name


def table(folder, where=lambda file: file.name, content=lambda file: file.read_bytes()):
    rows = [{"bytes": content(file), "path": where(file)} for file in files(folder)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"audio": pa.array(rows, kind), "text": ["some words"] * len(rows)})


def same(source, truth):
    """That ``source`` holds what ``truth`` holds, bit for bit; its clips."""
    clips = scan([source], progress=False).clips
    assert [clip.samples for clip in clips] == sorted(truth)
    for place, clip in enumerate(clips):
        assert np.array_equal(audio.read(clip.path), truth[clip.samples])
        assert np.array_equal(audio.read(clip.path, 1000, 2000), truth[clip.samples][1000:3000])
        wave, path, at, bad, _ = AudioDataset(clips)[place]
        assert torch.equal(wave, torch.from_numpy(truth[clip.samples])) and (path, at, bad) == (clip.path, place, [])
    return clips


# what is read


def test_tar_shards_are_read_as_their_files_are(folder, truth):
    tars = write_tars(folder, "tars")
    clips = same(tars, truth)
    assert members.split(clips[0].path).file == str(tars / "train-000.tar") and "/speaker/0.wav:" in clips[0].path
    for source in (tars / "*.tar", f"{tars}/train-{{000..002}}.tar", f"{tars}/train-{{000,00[12]}}.tar"):
        assert scan([source], progress=False).clips == clips
    assert len(scan([tars / "train-002.tar"], progress=False).clips) == 2


def test_shards_at_an_address(folder, truth):
    tars, system = write_tars(folder, "there"), fsspec.filesystem("memory")
    for file in tars.iterdir():
        system.pipe(f"/bucket/sub/{file.name}", file.read_bytes())
    system.pipe("/bucket/sub/README.md", b"text")
    address = "memory://bucket/sub"
    clips = same(address, truth)
    assert clips[0].path.startswith("memory:///bucket/sub/train-000.tar/speaker/0.wav:")
    for source in (
        f"{address}/train-*.tar",
        f"{address}/train-{{000..002}}.tar",
        f"file://{tars}",
        f"simplecache::{address}",
    ):
        same(source, truth)
    assert len(scan([f"{address}/train-002.tar"], progress=False).clips) == 2
    system.pipe("/bucket/table.parquet", b"")
    with system.open("/bucket/table.parquet", "wb") as stream:
        pq.write_table(table(folder), stream, row_group_size=3)
    same("memory://bucket/table.parquet", truth)


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "data-00000-of-00001.arrow", "file.arrow"])
def test_tables_are_read_as_datasets_writes_them(folder, truth, tmp_path, name):
    rows = table(folder)
    if name.endswith("parquet"):
        pq.write_table(rows, tmp_path / name, row_group_size=3)
    else:
        kind = pa.ipc.new_file if name.startswith("file") else pa.ipc.new_stream
        with kind(str(tmp_path / name), rows.schema) as writer:
            writer.write_table(rows, max_chunksize=3)
    (tmp_path / "cache-0123.arrow").write_bytes(b"computed")
    clips = same(tmp_path, truth)
    assert clips[0].path == f"{tmp_path / name}/0.wav:0:0" and members.split(clips[4].path)[1:] == (1, 1)
    with pytest.raises(StarError, match="cannot be read as audio \\(no row 7 in group 0"):
        audio.read(members.join(str(tmp_path / name), "", 0, 7))


def test_a_table_of_paths_and_one_of_plain_bytes(folder, truth, tmp_path):
    shutil.copytree(folder / "audio", tmp_path / "wavs")
    (tmp_path / "tables").mkdir()
    paths = table(folder, lambda file: f"../wavs/{file.name}", lambda file: None)
    pq.write_table(paths, tmp_path / "tables" / "paths.parquet")
    clips = same(tmp_path / "tables" / "paths.parquet", truth)
    assert all(members.split(clip.path) is None for clip in clips)
    plain = pa.table({"n": list(range(10)), "audio": [file.read_bytes() for file in files(folder)]})
    pq.write_table(plain, tmp_path / "tables" / "plain.parquet")
    same(tmp_path / "tables" / "plain.parquet", truth)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "tables" / "words.parquet")
    with pytest.raises(StarError, match="no audio found.*words.parquet: holds no audio"):
        scan([tmp_path / "tables" / "words.parquet"], progress=False)
    missing = table(folder, lambda file: f"gone/{file.name}", lambda file: None)
    pq.write_table(missing, tmp_path / "gone.parquet")
    with pytest.raises(StarError, match="10 of 10 files .*no bytes, and no file gone/0.wav beside the table"):
        scan([tmp_path / "gone.parquet"], progress=False)


def test_shards_beside_audio_files_are_passed_over_and_splits_are_told(folder, tmp_path, capsys):
    shutil.copytree(folder / "audio", tmp_path / "both" / "audio")
    shutil.copy(next(write_tars(folder, "beside").iterdir()), tmp_path / "both" / "audio.tar")
    corpus = scan([tmp_path / "both"], progress=False)
    assert len(corpus.clips) == 10
    assert corpus.passed == [(f"{tmp_path}/both/*.tar", "1 file passed over: audio files lie beside")]
    for split in ("train", "test"):
        pq.write_table(table(folder), tmp_path / f"{split}-00000-of-00001.parquet")
    assert len(scan([tmp_path / "t*.parquet"], progress=False).clips) == 20
    told = f"2 splits are read: {tmp_path}/test-*, {tmp_path}/train-*; name one to read it alone"
    assert told in capsys.readouterr().err
    assert len(scan([tmp_path / "train-*"], progress=False).clips) == 10


def test_a_list_and_a_manifest_may_name_members(folder, truth, tmp_path):
    clips = scan([write_tars(folder, "listed")], progress=False).clips
    (tmp_path / "list.tsv").write_text("path\n" + "".join(f"{clip.path}\n" for clip in clips))
    same(tmp_path / "list.tsv", truth)
    (tmp_path / "manifests").mkdir()
    parts = zip(clips, ["train", "train", "dev", "test"], ["yes", "no", "yes", "no"])
    rows = [(i, c.path, c.samples, split, label) for i, (c, split, label) in enumerate(parts)]
    lines = ["\t".join(map(str, row)) for row in [("id", "path", "samples", "split", "label"), *rows]]
    (tmp_path / "manifests" / "ks.tsv").write_text("\n".join(lines) + "\n")
    windows = encode.windows(corpora.load("ks", tmp_path))
    assert len({tuple(window.identity()) for (window,) in windows}) == 4
    found = corpora.load("ks", tmp_path)
    assert found["path"].tolist() == [clip.path for clip in clips[:4]]
    assert found.attrs["remarks"] == ["every test row has the same label ('no'): a constant answer would be right"]


# what is kept


def test_a_shard_is_read_once_until_it_changes(folder, monkeypatch):
    tars, read = write_tars(folder, "once"), []
    members_ = shards._members
    monkeypatch.setattr(shards, "_members", lambda file: read.append(file) or members_(file))
    first = scan([tars], progress=False)
    assert len(read) == 3 and scan([tars], progress=False) == first and len(read) == 3
    with tarfile.open(tars / "train-000.tar", "a") as tar:
        tar.add(files(folder)[0], "new.wav")
    assert len(scan([tars], progress=False).clips) == 11 and read[3:] == [str(tars / "train-000.tar")]


def test_batches_are_those_of_the_files(folder):
    sources = folder / "audio", write_tars(folder, "batches")
    plans = [BucketSampler(scan([s], progress=False).clips, 4.0, seed=3).plan(5) for s in sources]
    assert plans[0] == plans[1]


def test_workers_read_members(folder):
    """Processes that were forked after a table and an address had been opened."""
    pq.write_table(table(folder), folder / "forked.parquet", row_group_size=3)
    tars = write_tars(folder, "forked")
    for source in (folder / "forked.parquet", f"file://{tars}"):
        clips = scan([source], progress=False).clips
        data = AudioDataset(clips)
        right = [data[i][0] for i in range(10)]
        loader = torch.utils.data.DataLoader(data, batch_size=1, collate_fn=collate, num_workers=2)
        assert all(torch.equal(batch.waveforms_BN[0], wave) for batch, wave in zip(loader, right))


# a run


@pytest.fixture(scope="module")
def world(folder):
    write_audio(folder / "voices", 24)
    with webdataset.ShardWriter(str(folder / "voices-%d.tar"), maxcount=10, verbose=0) as writer:
        for file in sorted((folder / "voices").iterdir()):
            writer.write({"__key__": file.stem, "wav": file.read_bytes()})
    torch.manual_seed(0)
    tiny = {"conv_layers": [[8, 10, 5], [16, 3, 4], [24, 8, 16]], "position_kernel": 16, "position_groups": 4}
    teacher = EncoderConfig(**tiny, width=32, layers=2, heads=2, head_width=16, ffn=48)
    checkpoint.save(folder / "teacher", Encoder(teacher), {})
    student = {**tiny, "width": 24, "projection": False, "layers": 2, "heads": 2, "head_width": 12, "ffn": 32}
    values = {
        "teacher": str(folder / "teacher"),
        "student": {**student, "hidden_states": "layers", "dropout": 0.1},
        "loss": {"star": {}},
        "data": {"valid_share": 0.2, "min_seconds": 0.4, "max_seconds": 2.0, "batch_seconds": 4.0, "workers": 1},
        "training": {"updates": 24, "log_every": 1, "validate_every": 8, "save_every": 3, "accelerator": "cpu"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.mark.parametrize("place", ["", "file://"])
def test_a_run_on_shards_is_killed_and_resumed(world, place):
    words = [world / "recipe.yaml", f"data.train={place}{world}/voices-*.tar"]
    name = f"run{len(place)}"
    killed(["distill", *words], world / f"{name}-killed", rows=11)
    for end in ("killed", "whole"):
        distill.run(recipe.load(words[0], words[1:]), world / f"{name}-{end}")
    rows = [log(world / f"{name}-{end}") for end in ("killed", "whole")]
    assert rows[0] == rows[1] and len({row["audio_crc32"] for row in rows[0]}) > 20
    weights = [(world / f"{name}-{end}" / "last" / "model.safetensors").read_bytes() for end in ("killed", "whole")]
    assert weights[0] == weights[1]
    provenance = checkpoint.describe(world / f"{name}-whole" / "last")["provenance"]
    assert provenance["recipe"]["data"]["train"] == ["voices-*.tar"] and provenance["clips"]["train"] == 19


def test_an_address_that_stops_answering_stops_the_run(folder, monkeypatch):
    for file in write_tars(folder, "silent").iterdir():
        fsspec.filesystem("memory").pipe(f"/silent/{file.name}", file.read_bytes())
    clips, asked = scan(["memory://silent"], progress=False).clips, []
    right = [AudioDataset(clips)[i][0] for i in range(10)]
    get = fsspec.implementations.memory.MemoryFileSystem.cat_file

    def refuse(self, path, **options):
        asked.append(path)
        if len(asked) < patience:
            raise ConnectionResetError("connection reset by peer")
        return get(self, path, **options)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", refuse)
    monkeypatch.setattr(members.time, "sleep", lambda seconds: None)
    patience = 3
    assert torch.equal(AudioDataset(clips)[0][0], right[0]) and len(asked) == 3
    asked.clear()
    patience = 99
    with pytest.raises(members.Unreachable, match=r"train-000.tar: connection reset by peer, 4 times"):
        AudioDataset(clips)[0]


# what cannot be read


def test_faults_are_named(folder, tmp_path):
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for name, data in (
            ("bad.flac", b"no audio"),
            ("a/good.wav", files(folder)[0].read_bytes()),
            ("._x.wav", b"mac"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    corpus = scan([tmp_path / "some.tar"], max_bad_share=0.5, progress=False)
    assert len(corpus.clips) == 1
    ((path, reason),) = corpus.skipped
    assert path.startswith(f"{tmp_path}/some.tar/bad.flac:") and "cannot be read as audio" in reason
    whole = (tmp_path / "some.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2048])
    (tmp_path / "end.tar").write_bytes(whole[:700])
    (tmp_path / "none.tar").write_bytes(b"nothing of the kind" * 100)
    (tmp_path / "none.parquet").write_bytes(b"nothing of the kind" * 100)
    (tmp_path / "none.arrow").write_bytes(b"nothing of the kind" * 100)
    (tmp_path / "all.tar.gz").write_bytes(b"\x1f\x8b")
    for name, message in (
        ("cut.tar", "cut.tar: cut short in a/good.wav; copy it again"),
        ("end.tar", "end.tar: no tar file, or cut short .*; copy it again"),
        ("none.tar", "none.tar: no tar file, or cut short"),
        ("none.parquet", "none.parquet: no table"),
        ("none.arrow", "none.arrow: no table"),
        ("all.tar.gz", "compressed as a whole, so that no member can be read alone; unpack it to a .tar"),
        ("x-*.tar", r"x-\*.tar: no shard there \(looked for .tar, .parquet, .arrow\)"),
        ("x-{0..1}.tar", "x-0.tar: cannot be read \\(No such file or directory\\)"),
    ):
        with pytest.raises(StarError, match=message):
            scan([tmp_path / name], progress=False)
    (clip,) = corpus.clips
    (tmp_path / "some.tar").unlink()
    with pytest.raises(StarError, match="cannot be read as audio \\(no such file\\)"):
        audio.read(clip.path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://nothing/here-*.tar", "no shard there"),
        ("memory://nothing/here.tar", "memory://nothing/here.tar: no such file"),
        ("nowhere://x/y.tar", "nowhere://x/y.tar: Protocol not known: nowhere"),
        ("memory://bucket/table.arrow", "an arrow file is read from a disk alone"),
    ],
)
def test_faulty_addresses(address, message):
    fsspec.filesystem("memory").pipe("/bucket/table.arrow", b"x")
    with pytest.raises(StarError, match=message):
        scan([address], progress=False)


def test_paths_that_name_members():
    assert members.split("/a/b.tar/c/d.flac:512:99") == ("/a/b.tar", 512, 99)
    assert members.split("s3://b/x.tar:0:5") == ("s3://b/x.tar", 0, 5)
    assert members.split("/a/b.parquet/with:colon.wav:1:2") == ("/a/b.parquet", 1, 2)
    for path in ("/a/b.tar", "/a/b.tar/c.flac", "/a/b.flac:1:2", "/a/b.tar:1"):
        assert members.split(path) is None and members.content(path) is None
    assert (
        members.join("x.tar", "a.flac", 1, 2) == "x.tar/a.flac:1:2" and members.join("x.tar", "", 1, 2) == "x.tar:1:2"
    )


def test_few_shards_are_read_ahead_of_what_is_asked_for(monkeypatch):
    read = []
    monkeypatch.setattr(shards, "_read", lambda file: read.append(file) or [])
    monkeypatch.setattr(shards, "THREADS", 2)
    files = [f"{i}.tar" for i in range(40)]
    found = shards.read(files, False)
    assert next(found) == ("0.tar", []) and len(read) <= 5
    assert [file for file, _ in found] == files[1:] and sorted(read) == sorted(files)
