"""What is found in folders, lists and files, and what is left out."""

import gzip
import json
import os

import numpy as np
import pytest
import torch
from tiny_audio import write

from star_upstream import audio
from star_upstream.data.batches import AudioDataset, collate
from star_upstream.data.clips import Clip, scan
from star_upstream.errors import StarError
from star_upstream.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


# files


@pytest.mark.parametrize(
    ("name", "rate", "channels", "options"),
    [
        ("a.wav", 16_000, 1, {}),
        ("a.WAV", 44_100, 2, {}),
        ("a.flac", 8_000, 1, {}),
        ("a.ogg", 22_050, 2, {"format": "OGG", "subtype": "VORBIS"}),
        ("a.opus", 48_000, 1, {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", 44_100, 2, {"format": "MP3"}),
    ],
)
def test_measured_length_is_decoded_length(tmp_path, name, rate, channels, options):
    write(tmp_path / "in" / "deep" / name, 1.234, rate, channels, **options)
    (clip,) = scan([tmp_path / "in"], progress=False).clips
    assert clip.samples == len(audio.read(clip.path)) == pytest.approx(1.234 * 16_000, abs=1200)
    wave, path, place, bad, _ = AudioDataset([clip])[0]
    assert wave.shape == (clip.samples,) and wave.dtype == torch.float32 and (path, place, bad) == (clip.path, 0, [])


def test_lengths_are_cached_until_the_file_changes(tmp_path, monkeypatch):
    file, other = write(tmp_path / "in" / "a.wav", 1.0), write(tmp_path / "in" / "b.wav", 2.0)
    measured = []
    header = audio.header
    monkeypatch.setattr(audio, "header", lambda path: measured.append(path) or header(path))
    assert [c.samples for c in scan([tmp_path / "in"], progress=False).clips] == [16_000, 32_000]
    scan([tmp_path / "in"], progress=False)
    assert sorted(measured) == [str(file), str(other)]
    write(file, 3.0)
    os.utime(file, ns=(1, 1))
    assert [c.samples for c in scan([tmp_path / "in"], progress=False).clips] == [32_000, 48_000]
    assert measured[2:] == [str(file)]


def test_unusable_files_are_left_out_with_their_reason(tmp_path):
    folder = tmp_path / "in"
    good = [write(folder / f"good{i}.wav", 1 + i / 10) for i in range(3)]
    write(folder / "short.wav", 0.2)
    write(folder / "long.wav", 5.0)
    write(folder / "none.wav", 0.0)
    (folder / "broken.flac").write_bytes(b"no audio at all")
    (folder / "zero.mp3").write_bytes(b"")
    (folder / "notes.txt").write_text("not audio")
    corpus = scan([folder], max_seconds=4.0, max_bad_share=0.5, progress=False)
    assert [c.path for c in corpus.clips] == [str(f) for f in good]
    reasons = {os.path.basename(path): reason for path, reason in corpus.skipped}
    assert reasons["short.wav"] == "0.20 s, shorter than 0.5 s" and reasons["long.wav"] == "5.00 s, longer than 4.0 s"
    assert (
        reasons["none.wav"] == "empty" and "cannot be read as audio" in reasons["broken.flac"] and "zero.mp3" in reasons
    )
    with pytest.raises(
        StarError,
        match=r"2 of 8 files cannot be read, above the limit of 10.0% \(data.max_bad_share\); "
        "the first: .*(broken|zero)",
    ):
        scan([folder], max_bad_share=0.1, progress=False)


# manifests


def test_manifest_paths_are_relative_to_its_folder_or_the_one_above(tmp_path):
    write(tmp_path / "audio" / "a.wav")
    write(tmp_path / "lists" / "b.wav")
    (tmp_path / "lists" / "m.tsv").write_text(
        "id\tpath\tsamples\n1\taudio/a.wav\t16000\n2\tb.wav\t15000\n3\tgone.wav\t16000\n"
    )
    corpus = scan([tmp_path / "lists" / "m.tsv"], max_bad_share=0.4)
    assert [c.path for c in corpus.clips] == [str(tmp_path / "lists" / "b.wav"), str(tmp_path / "audio" / "a.wav")]
    assert corpus.skipped == [("gone.wav", "no such file")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\tlength\na.wav\t3\n", "column 'length' has no unit; name it samples"),
        ("path\tsamples\na.wav\tmany\n", "line 2: samples must be a whole number, at least 0, got 'many'"),
        ("", "m.tsv: is empty; expected a table"),
        ("path\tsamples\n", "no audio found"),
        ("path\tsamples\ngone.wav\t3\n", "1 of 1 files cannot be read"),
    ],
)
def test_a_wrong_manifest_is_named(tmp_path, text, message):
    (tmp_path / "m.tsv").write_text(text)
    with pytest.raises(StarError, match=message):
        scan([tmp_path / "m.tsv"])


def test_a_wrong_source_is_named(tmp_path):
    with pytest.raises(StarError, match="no such folder or manifest"):
        scan([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(StarError, match="no audio found"):
        scan([tmp_path / "empty"])
    write(tmp_path / "short" / "a.wav", 0.1)
    with pytest.raises(StarError, match="none of 1 files is usable; the first: .*a.wav: 0.10 s"):
        scan([tmp_path / "short"], progress=False)


# lists as other programs write them


@pytest.fixture
def audio_folder(tmp_path):
    """Three files: 2 s at 16 kHz, 3 s at 8 kHz, 4 s in stereo."""
    write(tmp_path / "audio" / "a.wav", 2.0)
    write(tmp_path / "audio" / "b.flac", 3.0, 8_000)
    write(tmp_path / "audio" / "c.wav", 4.0, 16_000, 2)
    return tmp_path


def recording(path, rate=16_000, seconds=2.0, **more):
    source = {"type": "file", "channels": [0], "source": path}
    return {
        "id": path,
        "sources": [source],
        "sampling_rate": rate,
        "num_samples": int(rate * seconds),
        "duration": seconds,
        **more,
    }


def cut(of, start, duration):
    return {
        "id": "c",
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [],
        "recording": of,
        "type": "MonoCut",
    }


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


WHOLE = {"a.wav": (32_000, 0), "b.flac": (48_000, 0), "c.wav": (64_000, 0)}
LISTS = {
    "fairseq": ("{root}/audio\na.wav\t32000\nb.flac\t24000\nc.wav\t64000\n", WHOLE),
    "fairseq with crlf": ("{root}/audio\r\na.wav\t32000\r\nb.flac\t24000\r\nc.wav\t64000\r\n", WHOLE),
    "fairseq, relative root": ("audio\na.wav\t32000\nb.flac\t24000\nc.wav\t64000\n", WHOLE),
    "paths": ("audio/a.wav\n{root}/audio/b.flac\n./audio/c.wav\n", WHOLE),
    "wav.scp": ("utt1 audio/a.wav\nutt2 audio/b.flac\nutt3\t{root}/audio/c.wav\n", WHOLE),
    "path alone": ("path\naudio/a.wav\naudio/b.flac\naudio/c.wav\n", WHOLE),
    "decimals": ("path\tsamples\naudio/a.wav\t32000.0\naudio/b.flac\t48000.0\naudio/c.wav\t64000.0\n", WHOLE),
    "starts": ("id\tpath\tstart\tsamples\n1\taudio/b.flac\t8000\t16000\n", {"b.flac": (16_000, 8_000)}),
    "nemo": (
        jsonl(
            {"audio_filepath": "{root}/audio/a.wav", "duration": 2.0, "text": "x, y"},
            {"audio_filepath": "audio/b.flac", "duration": 1.5, "offset": 0.5, "text": ""},
        ),
        {"a.wav": (32_000, 0), "b.flac": (24_000, 8_000)},
    ),
    "path, duration, offset": (jsonl({"path": "audio/c.wav", "duration": 1, "offset": 3}), {"c.wav": (16_000, 48_000)}),
    "lhotse recordings": (jsonl(recording("audio/a.wav"), recording("{root}/audio/b.flac", 8_000, 3.0)),
        {k: WHOLE[k] for k in ("a.wav", "b.flac")}),
    "lhotse cuts": (
        jsonl(cut(recording("audio/a.wav"), 0.25, 1.0), cut(recording("audio/b.flac", 8_000, 3.0), 1.5, 1.5)),
        {"a.wav": (16_000, 4_000), "b.flac": (24_000, 24_000)},
    ),
    "speechbrain csv": (
        "ID,duration,wav,spk_id,wrd\n1,2.0,audio/a.wav,s,\"YES, \"\"NO\"\"\"\n2,3.0,$data_root/audio/b.flac,s,X\n",
        {k: WHOLE[k] for k in ("a.wav", "b.flac")},
    ),
    "speechbrain csv, spaces after commas": ("ID, duration, wav, wav_format\n1, 2.0, audio/a.wav, wav\n",
        {"a.wav": WHOLE["a.wav"]}),
    "a table that a spreadsheet quoted": ('"path"\t"samples"\n"audio/a.wav"\t"32000"\n', {"a.wav": WHOLE["a.wav"]}),
    "speechbrain segments": ("ID,duration,wav,start,stop,spk_id\n1,4.0,audio/c.wav,16000,48000,s\n",
        {"c.wav": (32_000, 16_000)}),
    "speechbrain segments, own rate": ("ID,duration,wav,start,stop\n1,3.0,audio/b.flac,4000,12000\n",
        {"b.flac": (16_000, 8_000)}),
    "seconds from and to": ("ID,wav,start,stop\n1,audio/c.wav,0.5,2.0\n", {"c.wav": (24_000, 8_000)}),
    "speechbrain json": (json.dumps({"u": {"wav": "{data_root}/audio/a.wav", "length": 2.0}}, indent=1),
        {"a.wav": WHOLE["a.wav"]}),
    "json list": (json.dumps([{"audio": {"path": "audio/a.wav"}}, {"file_name": "audio/c.wav"}]),
        {k: WHOLE[k] for k in ("a.wav", "c.wav")}),
}  # fmt: skip


@pytest.mark.parametrize("form", ["plain", "mark", "gz"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_told_apart_by_their_content(audio_folder, kind, form):
    text, expected = LISTS[kind]
    content = text.replace("{root}", str(audio_folder)).encode("utf-8-sig" if form == "mark" else "utf-8")
    (audio_folder / "lists").mkdir()
    file = audio_folder / "lists" / "data"  # an ending that says nothing
    file.write_bytes(gzip.compress(content) if form == "gz" else content)
    if kind == "fairseq, relative root":
        file = file.rename(audio_folder / "data")
    corpus = scan([file], progress=False)
    assert {os.path.basename(c.path): (c.samples, c.start) for c in corpus.clips} == expected and not corpus.skipped
    clip = corpus.clips[-1]
    part = audio.read(clip.path)[clip.start : clip.start + clip.samples]
    assert np.allclose(AudioDataset([clip])[0][0], part, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seven green horses\nran over the hill\n",
            "no list of audio that is known here; expected a table with a column path, .*'seven green"),
        ("name\tspeaker\nx\ty\n", "no list of audio that is known here"),
        ("{\"audio_filepath\": \"a.wav\"\n", "line 1: not json"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n",
            "a git-lfs pointer, not the content: run 'git lfs pull'"),
        ("path\tpath\naudio/a.wav\taudio/b.flac\n", "two columns are named 'path'"),
        ("{\"text\": \"a\"}\n", "line 1: no path; expected one of the fields path, wav"),
        ("{\"id\": \"s\", \"recording_id\": \"r\", \"start\": 0, \"duration\": 1}\n",
            "line 1: supervisions name no audio; give lhotse's"),
        ("/nowhere/at/all\na.wav\t32000\n", "line 1: the root folder /nowhere/at/all is not there"),
        ("path\tduration\naudio/a.wav\tlong\n", "line 2: duration must be a number, at least 0, got 'long'"),
        ("path\tsamples\naudio/a.wav\t1\t2\n", "line 2: 3 fields, but the header line names 2"),
        ("path,start,stop\naudio/a.wav,2.0,1.0\n", "line 2: from 2.0 to 1.0 is no stretch"),
        ("path,duration\naudio/a.wav,4.0\n", "line 2: goes on to 4.00 s, but by its header the file ends at 2.00 s"),
        ("path\tduration\toffset\naudio/a.wav\t1.5\t1.0\n",
            "line 2: goes on to 2.50 s, but by its header the file ends at 2.00 s"),
        ("path\tsamples\naudio/b.flac\t24000\n",
            "line 2: samples is 24000 as counted at the file's 8000 Hz; here it counts at 16 kHz: 48000"),
        ("{root}/audio\na.wav\t64000\n", "line 2: goes on to 4.00 s"),
        ("u sox x.wav -t wav - |\nv audio/a.wav\n", "a command, which is not run"),
        (jsonl(recording("audio/a.wav", transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}])),
            "is altered as lhotse reads it"),
        (jsonl({"id": "m", "tracks": []}), "a mix of several cuts"),
        (jsonl({"id": "r", "sources": [{"type": "url", "source": "http://x"}], "sampling_rate": 8000,
            "num_samples": 9}), "kind 'url'"),
    ],
)  # fmt: skip
def test_what_is_no_list_and_what_a_header_contradicts(audio_folder, text, message):
    file = audio_folder / "list.txt"
    file.write_text(text.replace("{root}", str(audio_folder)))
    with pytest.raises(StarError, match=message) as error:
        scan([file], progress=False)
    assert "\n" not in str(error.value)


def test_a_binary_file_is_no_list(tmp_path):
    (tmp_path / "x.tsv").write_bytes("path\tsamples\nä.wav\t3\n".encode("utf-16"))
    with pytest.raises(StarError, match="no audio and no UTF-8 text"):
        scan([tmp_path / "x.tsv"])
    (tmp_path / "x.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n")
    with pytest.raises(
        StarError, match="x.wav: cannot be read as audio .a git-lfs pointer, not the content: run 'git lfs pull'"
    ):
        scan([tmp_path / "x.wav"])
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x80\x81")
    with pytest.raises(StarError, match="no audio and no UTF-8 text"):
        scan([tmp_path / "x.npy"])


def test_one_audio_file_is_data(audio_folder):
    for name, samples in (("a.wav", 32_000), ("b.flac", 48_000)):
        assert scan([audio_folder / "audio" / name]).clips == [Clip(str(audio_folder / "audio" / name), samples)]
    other = (audio_folder / "audio" / "a.wav").rename(audio_folder / "no ending")
    assert scan([other]).clips == [Clip(str(other), 32_000)]


def test_parts_of_one_file_are_clips_of_their_own(audio_folder):
    (audio_folder / "l.jsonl").write_text(
        jsonl(*({"path": "audio/c.wav", "offset": i, "duration": 1.0} for i in range(4)))
    )
    corpus = scan([audio_folder / "l.jsonl"], progress=False)
    assert [(c.start, c.samples) for c in corpus.clips] == [(i * 16_000, 16_000) for i in range(4)]
    whole = audio.read(audio_folder / "audio" / "c.wav")
    batch = collate([AudioDataset(corpus.clips)[i] for i in range(4)])
    assert np.allclose(batch.waveforms_BN.reshape(-1), whole, atol=1e-6)


# what lies around in folders


def test_what_is_passed_over_is_counted_by_its_ending(audio_folder, capsys):
    for name in ("1.m4a", "2.M4A", "notes.txt", "LICENSE"):
        (audio_folder / "audio" / name).write_bytes(b"x")
    corpus = scan([audio_folder / "audio"], progress=False)
    assert len(corpus.clips) == 3 and not corpus.skipped
    found = {os.path.basename(place): what.split(":")[0] for place, what in corpus.passed}
    assert found == {
        "*.m4a": "2 files passed over",
        "*.txt": "1 file passed over",
        "*": "1 file without an ending passed over",
    }
    assert f"{audio_folder}/audio/*.m4a: 2 files passed over" in capsys.readouterr().err
    for name in ("a.wav", "b.flac", "c.wav"):
        (audio_folder / "audio" / name).unlink()
    with pytest.raises(StarError, match=r"no audio found .*\*.m4a: 2 files passed over"):
        scan([audio_folder / "audio"], progress=False)


def test_links_to_what_is_not_there_are_left_out(audio_folder):
    folder = audio_folder / "audio"
    (folder / ".git" / "annex").mkdir(parents=True)
    write(folder / ".git" / "annex" / "key.wav", 2.5)
    (folder / "fetched.wav").symlink_to(folder / ".git" / "annex" / "key.wav")
    for i in range(5):
        (folder / f"d{i}.flac").symlink_to(folder / ".git" / "annex" / "gone")
    (folder / "round").symlink_to(folder)
    corpus = scan([folder], progress=False)
    assert [os.path.basename(c.path) for c in corpus.clips] == ["a.wav", "fetched.wav", "b.flac", "c.wav"]
    assert len(corpus.skipped) == 5 and all("git annex get" in reason for _, reason in corpus.skipped)
    (audio_folder / "l.txt").write_text("audio/d0.flac\naudio/a.wav\n")
    assert len(scan([audio_folder / "l.txt"], progress=False).skipped) == 1
    with pytest.raises(StarError, match="git annex get"):
        scan([folder / "d0.flac"])


def test_a_run_keeps_every_name(tmp_path):
    names = [
        "tab\there",
        "line\nbreak",
        "return\rhere",
        '"quoted"',
        'a "quote',
        "back\\slash",
        "uni\u2028code\x85",
        "#1",
        " space ",
        "\udcff",
    ]
    for i, name in enumerate(names):
        write(tmp_path / "in" / "written.wav", 1 + i / 10).rename(tmp_path / "in" / f"{name}.wav")
    corpus = scan([tmp_path / "in"], progress=False)
    assert len(corpus.clips) == len(names)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    reasons = [(c.path, "too\nlong") for c in corpus.clips]
    folder.begin("a: 1\n", {"train": corpus.clips, "valid": corpus.clips[:1]}, reasons)
    assert folder.read_clips() == {"train": corpus.clips, "valid": corpus.clips[:1]}
    again = scan([tmp_path / "run" / "data.tsv"], progress=False)
    assert again.clips == corpus.clips and not again.skipped, "a run's list of clips is a list like any other"
    assert RunFolder(tmp_path / "run").add_skipped(reasons) == len(names)
    assert (tmp_path / "run" / "skipped.tsv").read_text().count("\n") == 1 + len(names)


def test_a_run_that_began_before_clips_had_a_start_goes_on(tmp_path):
    (tmp_path / "data.tsv").write_text("path\tsamples\tpart\n/x/a.wav\t3\ttrain\n/x/b.wav\t4\tvalid\n")
    assert RunFolder(tmp_path).read_clips() == {"train": [Clip("/x/a.wav", 3)], "valid": [Clip("/x/b.wav", 4)]}


def test_a_folder_that_cannot_be_opened_is_said(audio_folder, monkeypatch, capsys):
    monkeypatch.chdir(audio_folder / "audio")
    for _ in range(20):  # a path longer than the system takes
        os.mkdir("n" * 250)
        os.chdir("n" * 250)
    os.chdir(audio_folder)
    assert len(scan([audio_folder / "audio"], progress=False).clips) == 3
    assert "a folder passed over: File name too long" in capsys.readouterr().err


def test_lengths_that_cannot_be_kept_stop_nothing(audio_folder, monkeypatch, capsys):
    (audio_folder / "home").write_text("no folder")
    monkeypatch.setenv("STAR_CACHE", str(audio_folder / "home"))
    assert len(scan([audio_folder / "audio"], progress=False).clips) == 3
    assert "the lengths of files are measured anew the next time" in capsys.readouterr().err
