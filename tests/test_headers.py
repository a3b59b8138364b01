"""Headers are read a few at a time and kept in steps; clips in columns are those that were put in."""

import os
import random

import pytest
from tiny_audio import write

from star_upstream import audio
from star_upstream.data import headers
from star_upstream.data.clip_table import Clip, Clips, Table, join, samples
from star_upstream.data.headers import Fault, Headers


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    return [str(write(tmp_path / "in" / f"{i}.wav", 0.01 * (i + 1))) for i in range(12)]


def counted(monkeypatch):
    read, header = [], audio.header
    monkeypatch.setattr(audio, "header", lambda file: read.append(file) or header(file))
    return read


def test_what_was_read_before_the_end_is_kept_and_little_is_read_ahead(files, tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "SLICE", 2)
    monkeypatch.setattr(headers, "STEP", 2)
    monkeypatch.setattr(headers, "THREADS", 1)
    read = counted(monkeypatch)
    found = Headers(tmp_path / "in", False).read(iter(files), str)
    assert [next(found)[1] for _ in range(3)] == files[:3]
    (folder,) = (tmp_path / "cache" / "lengths").iterdir()
    kept = 24 * (len(read) // 2)
    assert 4 <= len(read) <= 12 and 0 < sum(file.stat().st_size for file in folder.iterdir()) <= 2 * kept
    found.close()  # as an interrupt does
    before = len(read)
    for again in (before, 12):
        whole = list(Headers(tmp_path / "in", False).read(files, str))
        assert [(item, file) for item, file, _ in whole] == [(file, file) for file in files]
        assert [header.samples for _, _, header in whole] == [160 * (i + 1) for i in range(12)]
        assert 12 <= len(read) <= before + 12 - 4 and len(list(folder.iterdir())) == 1, again


def test_only_what_changed_is_read_again_and_what_is_gone_is_forgotten(files, tmp_path, monkeypatch):
    read = counted(monkeypatch)
    list(Headers(tmp_path, False).read(files * 2, str))
    assert sorted(read) == sorted(files)
    os.utime(files[3], ns=(1, 1))
    (tmp_path / "in" / "4.wav").write_bytes(b"no audio")
    os.remove(files[5])
    for _ in range(2):  # a fault is looked at again each time
        found = {file: header for _, file, header in Headers(tmp_path, False).read(files[1:], str)}
        assert isinstance(found[files[4]], Fault) and "No such file" in found[files[5]].reason
    assert read[12:] == [files[3], files[4], files[4]] or read[12:] == [files[4], files[3], files[4]]
    (kept,) = (tmp_path / "cache" / "lengths").rglob("*.rows")
    assert kept.stat().st_size == 24 * 9
    kept.write_bytes(kept.read_bytes()[:-1])
    list(Headers(tmp_path, False).read(files[:1], str))
    assert read[15:] == files[:1]


def test_clips_in_columns():
    clips = [
        Clip(f"{f}/{n}", s, b)
        for f in ("/a", "/a/b", "/a.b", "")
        for n in ("x", "\udcff", "ä")
        for s, b in ((7, 0), (5, 9))
    ]
    random.Random(0).shuffle(clips)
    table = Table(clips).clips()
    assert (
        table == clips and list(table) == clips and len(table) == 24 and table[-1] == clips[-1] and table != clips[1:]
    )
    assert table[3:9:2] == clips[3:9:2] and isinstance(table[3:9], Clips) and table[3:9].names is table.names
    assert samples(table).tolist() == samples(clips).tolist() and table.seconds == 144 / 16_000
    assert join([table, clips[:2]]) == clips + clips[:2]
    ordered = Table([*clips, *clips[::2]]).clips().ordered()
    assert ordered == sorted(clips, key=lambda clip: (clip.samples, clip.path, clip.start))
    assert not Table().clips().ordered()
    with pytest.raises(IndexError):
        table[24]
