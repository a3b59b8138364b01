"""Audio on disk to batches: what is found, what is left out, and batches that are the same after a restart."""

import gzip
import json
import os
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch

from star_upstream import audio
from star_upstream.data import AudioDataset, BatchStream, BucketSampler, Clip, collate, scan
from star_upstream.errors import StarError
from star_upstream.training.run_folder import RunFolder

RANDOM = np.random.default_rng(0)
CLIPS = [Clip(f"{i}", int(n)) for i, n in enumerate(np.sort(RANDOM.integers(8_000, 160_000, 203)))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


def write(path, seconds=1.0, rate=16_000, channels=1, level=0.1, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (int(seconds * rate), channels)
    soundfile.write(path, (level * np.random.default_rng(0).standard_normal(shape)).astype(np.float32), rate, **options)
    return path


# batches


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_clip_once_within_its_budget(shuffle):
    sampler = BucketSampler(CLIPS, seconds=20.0, items=9, seed=3, shuffle=shuffle)
    batches = sampler.plan(1)
    assert sorted(i for batch in batches for i in batch) == list(range(len(CLIPS)))
    for batch in batches:
        assert len(batch) <= 9 and max(CLIPS[i].samples for i in batch) * len(batch) <= 20 * audio.RATE
    padded = sum(max(CLIPS[i].samples for i in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(c.samples for c in CLIPS)


def test_a_plan_is_a_function_of_seed_and_epoch():
    def plan(seed, epoch):
        return BucketSampler(CLIPS, 20.0, seed=seed).plan(epoch)

    assert plan(1, 2) == plan(1, 2)
    assert plan(1, 2) != plan(1, 3) and plan(1, 2) != plan(2, 2)


def test_ranks_share_an_epoch():
    whole = BucketSampler(CLIPS, 20.0).plan(0)
    parts = []
    for rank in range(3):
        sampler = BucketSampler(CLIPS, 20.0, rank=rank, world=3)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == len(whole) // 3
    counts = Counter(i for part in parts for batch in part for i in batch)
    assert set(counts.values()) == {1} and len(whole) - 3 * len(parts[0]) < 3


def test_a_batch_longer_than_the_budget_is_refused():
    with pytest.raises(StarError, match="batch_seconds: 5.0 is less than the longest utterance"):
        BucketSampler(CLIPS, 5.0)


@pytest.mark.parametrize("done", [0, 1, 17, 40, 75])
def test_a_stream_goes_on_anywhere_across_epochs(done):
    def stream():
        return BatchStream(BucketSampler(CLIPS, 30.0, seed=5, rank=1, world=2))

    whole = list(islice(stream(), 100))
    assert len(stream().sampler) < 50
    resumed = stream()
    for _ in range(done):
        resumed.advance()
    for time in ("first", "again, since reading ahead does not move the stream"):
        assert list(islice(resumed, 100 - done)) == whole[done:], time


def test_a_stream_needs_a_batch_for_every_process():
    with pytest.raises(StarError, match="fewer batches than processes"):
        BatchStream(BucketSampler(CLIPS[:2], 60.0, world=2))


def test_collate_pads_or_crops():
    items = [(torch.arange(1.0, n + 1), f"{n}", n, [], 0) for n in (3, 5)]
    padded, cropped = collate(items), collate(items, crop=True)
    assert padded.waveforms_BN.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]] and padded.lengths_B.tolist() == [3, 5]
    assert cropped.waveforms_BN.tolist() == [[1, 2, 3], [1, 2, 3]] and cropped.lengths_B.tolist() == [3, 3]


def waves(keys):
    keys = [key if isinstance(key, tuple) else (key, 0) for key in keys]
    return [(torch.arange(float(CLIPS[i].samples)) + 1, CLIPS[i].path, i, [], epoch) for i, epoch in keys]


def test_random_crops_lie_anywhere_in_their_utterance_and_nothing_is_padded():
    batch = [5, 60, 120, 200]
    shortest = CLIPS[5].samples
    starts = []
    for seed in range(40):
        crops = collate(waves(batch), crop=True, seed=seed)
        assert crops.waveforms_BN.shape == (4, shortest) and crops.lengths_B.tolist() == [shortest] * 4
        assert (crops.waveforms_BN > 0).all(), "a zero would be padding"
        assert (crops.waveforms_BN.diff(dim=1) == 1).all(), "a crop is one piece"
        starts.append(crops.waveforms_BN[:, 0].long() - 1)
    starts_SB = torch.stack(starts)
    room_B = torch.tensor([CLIPS[i].samples - shortest for i in batch])
    assert (starts_SB[:, 0] == 0).all() and (starts_SB <= room_B).all()
    assert (starts_SB[:, 1:].float().mean(0) / room_B[1:] - 0.5).abs().max() < 0.15
    assert (starts_SB[:, 1:].amin(0) < 0.2 * room_B[1:]).all() and (starts_SB[:, 1:].amax(0) > 0.8 * room_B[1:]).all()


@pytest.mark.parametrize("batches", ["mixed", "sorted", "repeated"])
@pytest.mark.parametrize("done", [0, 5, 9, 14])
def test_a_resumed_run_sees_the_same_random_crops_and_every_epoch_others(done, batches):
    clips = CLIPS[:12]  # two batches an epoch

    def crops(stream):
        return [(batch, collate(waves(batch), crop=True, seed=3).waveforms_BN) for batch in stream]

    def stream():
        return BatchStream(BucketSampler(clips, 5.0, seed=5, batches=batches))

    whole = crops(islice(stream(), 18))
    resumed = stream()
    for _ in range(done):
        resumed.advance()
    for (batch, wave), (other, again) in zip(whole[done:], crops(islice(resumed, 18 - done)), strict=True):
        assert batch == other and torch.equal(wave, again)
    starts = {i: {wave[row, 0].item() for batch, wave in whole for row, (k, _) in enumerate(batch) if k == i} for i in range(12)}
    assert sum(len(values) > 2 for values in starts.values()) >= 9, "of 12 clips in 6 epochs, the shortest of a batch starts at 0"


def test_sorted_and_repeated_batches_are_the_same_ones_each_epoch():
    def plan(batches, epoch, **options):
        return BucketSampler(CLIPS, 20.0, items=9, seed=3, batches=batches, **options).plan(epoch)

    for kind in ("sorted", "repeated"):
        epochs = [plan(kind, epoch) for epoch in range(3)]
        assert all(sorted(map(tuple, e)) == sorted(map(tuple, epochs[0])) for e in epochs)
        assert sorted(i for batch in epochs[0] for i in batch) == list(range(len(CLIPS)))
        assert (epochs[0] == epochs[1] == epochs[2]) == (kind == "repeated")
    assert sorted(plan("mixed", 0)) != sorted(plan("mixed", 1))
    longest_first = BucketSampler(CLIPS, 1e4, items=9, batches="sorted").plan(0)
    # nine neighbours each, from the longest down, so that the shortest are the ones left over
    assert sorted(len(batch) for batch in longest_first)[0] == len(CLIPS) % 9 and min(longest_first, key=len)[-1] == 0


def test_batches_by_true_lengths_hold_more_than_by_padded_ones():
    clips = [Clip(f"{n}.wav", n * audio.RATE) for n in (1, 2, 3, 4, 5)]

    def plan(**options):
        return sorted(BucketSampler(clips, 6.0, batches="repeated", **options).plan(0))

    # 1 + 2 + 3 s are 6 s; padded to the third they would be 9
    assert plan(counted="lengths") == [[0, 1, 2], [3], [4]]
    assert plan() == [[0, 1], [2], [3], [4]]
    # cut to 2 s: 1 + 2 + 2 and 2 + 2
    assert plan(counted="lengths", longest=2 * audio.RATE) == [[0, 1, 2], [3, 4]]
    with pytest.raises(StarError, match="or lower max_seconds or crop_seconds"):
        BucketSampler(clips, 4.0)
    BucketSampler(clips, 4.0, longest=4 * audio.RATE)


def test_long_waves_are_cut_at_random_in_training_and_at_their_start_else(tmp_path):
    wave = np.arange(1, 3001, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", wave, audio.RATE)
    clip = Clip(str(tmp_path / "a.wav"), 3000)
    assert len(AudioDataset([clip], longest=3000, seed=0)[0][0]) == 3000
    (first, *_), (again, *_) = (AudioDataset([clip], longest=1000)[0, epoch] for epoch in (0, 1))
    assert torch.equal(first, again) and len(first) == 1000 and first[0] * 2**15 == 1
    cuts = [AudioDataset([clip], longest=1000, seed=7)[0, epoch][0] * 2**15 for epoch in range(60)]
    assert all(len(cut) == 1000 and (cut.diff() == 1).all() for cut in cuts)
    starts = np.array([cut[0].item() for cut in cuts])
    assert starts.min() >= 1 and starts.max() <= 2001 and abs(starts.mean() - 1001) < 250 and len(set(starts)) > 50
    assert torch.equal(AudioDataset([clip], longest=1000, seed=7)[0, 5][0] * 2**15, cuts[5])


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
    assert reasons["none.wav"] == "empty" and "cannot be read as audio" in reasons["broken.flac"] and "zero.mp3" in reasons
    with pytest.raises(StarError, match=r"2 of 8 files cannot be read, above the limit of 10.0% \(data.max_bad_share\); the first: .*(broken|zero)"):
        scan([folder], max_bad_share=0.1, progress=False)


def test_a_file_that_turns_out_useless_is_replaced_by_its_neighbour(tmp_path):
    silent, good = write(tmp_path / "a.wav", 1.0, level=0.0), write(tmp_path / "b.wav", 1.1)
    cut = tmp_path / "c.wav"
    cut.write_bytes(good.read_bytes()[: 44 + 2 * 300])
    clips = [Clip(str(silent), 16_000), Clip(str(cut), 17_600), Clip(str(tmp_path / "gone.wav"), 17_600), Clip(str(good), 17_600)]
    wave, path, place, bad, _ = AudioDataset(clips, min_samples=400)[0]
    assert (path, place, len(wave)) == (str(good), 3, 17_600)
    assert [os.path.basename(p) for p, _ in bad] == ["a.wav", "c.wav", "gone.wav"]
    assert "silent" in bad[0][1] and "cut short: 1.7%" in bad[1][1] and "no such file" in bad[2][1]
    with pytest.raises(StarError, match="3 files in a row cannot be used"):
        AudioDataset(clips[:3], min_samples=400)[1]


def test_a_wave_is_cut_to_its_measured_length(tmp_path):
    file = write(tmp_path / "a.wav", 1.0)
    assert len(AudioDataset([Clip(str(file), 9_000)])[0][0]) == 9_000


# manifests


def test_manifest_paths_are_relative_to_its_folder_or_the_one_above(tmp_path):
    write(tmp_path / "audio" / "a.wav")
    write(tmp_path / "lists" / "b.wav")
    (tmp_path / "lists" / "m.tsv").write_text("id\tpath\tsamples\n1\taudio/a.wav\t16000\n2\tb.wav\t15000\n3\tgone.wav\t16000\n")
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
    return {"id": path, "sources": [source], "sampling_rate": rate, "num_samples": int(rate * seconds), "duration": seconds, **more}


def cut(of, start, duration):
    return {"id": "c", "start": start, "duration": duration, "channel": 0, "supervisions": [], "recording": of, "type": "MonoCut"}


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
    "lhotse recordings": (jsonl(recording("audio/a.wav"), recording("{root}/audio/b.flac", 8_000, 3.0)), {k: WHOLE[k] for k in ("a.wav", "b.flac")}),
    "lhotse cuts": (
        jsonl(cut(recording("audio/a.wav"), 0.25, 1.0), cut(recording("audio/b.flac", 8_000, 3.0), 1.5, 1.5)),
        {"a.wav": (16_000, 4_000), "b.flac": (24_000, 24_000)},
    ),
    "speechbrain csv": (
        "ID,duration,wav,spk_id,wrd\n1,2.0,audio/a.wav,s,\"YES, \"\"NO\"\"\"\n2,3.0,$data_root/audio/b.flac,s,X\n",
        {k: WHOLE[k] for k in ("a.wav", "b.flac")},
    ),
    "speechbrain csv, spaces after commas": ("ID, duration, wav, wav_format\n1, 2.0, audio/a.wav, wav\n", {"a.wav": WHOLE["a.wav"]}),
    "a table that a spreadsheet quoted": ('"path"\t"samples"\n"audio/a.wav"\t"32000"\n', {"a.wav": WHOLE["a.wav"]}),
    "speechbrain segments": ("ID,duration,wav,start,stop,spk_id\n1,4.0,audio/c.wav,16000,48000,s\n", {"c.wav": (32_000, 16_000)}),
    "speechbrain segments, own rate": ("ID,duration,wav,start,stop\n1,3.0,audio/b.flac,4000,12000\n", {"b.flac": (16_000, 8_000)}),
    "seconds from and to": ("ID,wav,start,stop\n1,audio/c.wav,0.5,2.0\n", {"c.wav": (24_000, 8_000)}),
    "speechbrain json": (json.dumps({"u": {"wav": "{data_root}/audio/a.wav", "length": 2.0}}, indent=1), {"a.wav": WHOLE["a.wav"]}),
    "json list": (json.dumps([{"audio": {"path": "audio/a.wav"}}, {"file_name": "audio/c.wav"}]), {k: WHOLE[k] for k in ("a.wav", "c.wav")}),
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
        ("seven green horses\nran over the hill\n", "no list of audio that is known here; expected a table with a column path, .*'seven green"),
        ("name\tspeaker\nx\ty\n", "no list of audio that is known here"),
        ("{\"audio_filepath\": \"a.wav\"\n", "line 1: not json"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "a git-lfs pointer, not the content: run 'git lfs pull'"),
        ("path\tpath\naudio/a.wav\taudio/b.flac\n", "two columns are named 'path'"),
        ("{\"text\": \"a\"}\n", "line 1: no path; expected one of the fields path, wav"),
        ("{\"id\": \"s\", \"recording_id\": \"r\", \"start\": 0, \"duration\": 1}\n", "line 1: supervisions name no audio; give lhotse's"),
        ("/nowhere/at/all\na.wav\t32000\n", "line 1: the root folder /nowhere/at/all is not there"),
        ("path\tduration\naudio/a.wav\tlong\n", "line 2: duration must be a number, at least 0, got 'long'"),
        ("path\tsamples\naudio/a.wav\t1\t2\n", "line 2: 3 fields, but the header line names 2"),
        ("path,start,stop\naudio/a.wav,2.0,1.0\n", "line 2: from 2.0 to 1.0 is no stretch"),
        ("path,duration\naudio/a.wav,4.0\n", "line 2: goes on to 4.00 s, but by its header the file ends at 2.00 s"),
        ("path\tduration\toffset\naudio/a.wav\t1.5\t1.0\n", "line 2: goes on to 2.50 s, but by its header the file ends at 2.00 s"),
        ("path\tsamples\naudio/b.flac\t24000\n", "line 2: samples is 24000 as counted at the file's 8000 Hz; here it counts at 16 kHz: 48000"),
        ("{root}/audio\na.wav\t64000\n", "line 2: goes on to 4.00 s"),
        ("u sox x.wav -t wav - |\nv audio/a.wav\n", "a command, which is not run"),
        (jsonl(recording("audio/a.wav", transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}])), "is altered as lhotse reads it"),
        (jsonl({"id": "m", "tracks": []}), "a mix of several cuts"),
        (jsonl({"id": "r", "sources": [{"type": "url", "source": "http://x"}], "sampling_rate": 8000, "num_samples": 9}), "kind 'url'"),
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
    with pytest.raises(StarError, match="x.wav: cannot be read as audio .a git-lfs pointer, not the content: run 'git lfs pull'"):
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
    (audio_folder / "l.jsonl").write_text(jsonl(*({"path": "audio/c.wav", "offset": i, "duration": 1.0} for i in range(4))))
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
    assert found == {"*.m4a": "2 files passed over", "*.txt": "1 file passed over", "*": "1 file without an ending passed over"}
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
    names = ["tab\there", "line\nbreak", "return\rhere", '"quoted"', 'a "quote', "back\\slash", "uni\u2028code\x85", "#1", " space ", "\udcff"]
    for i, name in enumerate(names):
        write(tmp_path / "in" / "written.wav", 1 + i / 10).rename(tmp_path / "in" / f"{name}.wav")
    corpus = scan([tmp_path / "in"], progress=False)
    assert len(corpus.clips) == len(names)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    reasons = [(c.path, "too\nlong") for c in corpus.clips]
    folder.begin("a: 1\n", {"train": corpus.clips, "valid": corpus.clips[:1]}, reasons)
    assert folder.read_clips() == {"train": corpus.clips, "valid": corpus.clips[:1]}
    assert RunFolder(tmp_path / "run").add_skipped(reasons) == len(names)
    assert (tmp_path / "run" / "skipped.tsv").read_text().count("\n") == 1 + len(names)


def test_a_run_that_began_before_clips_had_a_start_goes_on(tmp_path):
    (tmp_path / "data.tsv").write_text("path\tsamples\tpart\n/x/a.wav\t3\ttrain\n/x/b.wav\t4\tvalid\n")
    assert RunFolder(tmp_path).read_clips() == {"train": [Clip("/x/a.wav", 3)], "valid": [Clip("/x/b.wav", 4)]}
