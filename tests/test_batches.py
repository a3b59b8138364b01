"""Clips to batches: the same ones after a restart, within their budget, padded or cropped; files that turn out
useless."""

import os
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from tiny_audio import write

from star_upstream import audio
from star_upstream.data.batches import AudioDataset, BatchStream, BucketSampler, collate
from star_upstream.data.clips import Clip
from star_upstream.errors import StarError

RANDOM = np.random.default_rng(0)
CLIPS = [Clip(f"{i}", int(n)) for i, n in enumerate(np.sort(RANDOM.integers(8_000, 160_000, 203)))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


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


@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_that_processes_share_are_the_same_for_any_number_of_them(world):
    def taken(world):
        samplers = [BucketSampler(CLIPS, 20.0, seed=4, rank=rank, world=world, together=6) for rank in range(world)]
        streams = [iter(BatchStream(sampler)) for sampler in samplers]
        return [sorted(next(stream) for _ in range(6 // world) for stream in streams) for _ in range(14)]

    assert len(BucketSampler(CLIPS, 20.0, together=6)) < 14 * 6 and taken(world) == taken(6)


def test_a_stream_needs_a_batch_for_every_process():
    with pytest.raises(StarError, match="fewer batches than an update of 2 processes takes"):
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
    starts = {
        i: {wave[row, 0].item() for batch, wave in whole for row, (k, _) in enumerate(batch) if k == i}
        for i in range(12)
    }
    assert sum(len(values) > 2 for values in starts.values()) >= 9, (
        "of 12 clips in 6 epochs, the shortest of a batch starts at 0"
    )


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


def test_a_file_that_turns_out_useless_is_replaced_by_its_neighbour(tmp_path):
    silent, good = write(tmp_path / "a.wav", 1.0, level=0.0), write(tmp_path / "b.wav", 1.1)
    cut = tmp_path / "c.wav"
    cut.write_bytes(good.read_bytes()[: 44 + 2 * 300])
    clips = [
        Clip(str(silent), 16_000),
        Clip(str(cut), 17_600),
        Clip(str(tmp_path / "gone.wav"), 17_600),
        Clip(str(good), 17_600),
    ]
    wave, path, place, bad, _ = AudioDataset(clips, min_samples=400)[0]
    assert (path, place, len(wave)) == (str(good), 3, 17_600)
    assert [os.path.basename(p) for p, _ in bad] == ["a.wav", "c.wav", "gone.wav"]
    assert "silent" in bad[0][1] and "cut short: 1.7%" in bad[1][1] and "no such file" in bad[2][1]
    with pytest.raises(StarError, match="3 files in a row cannot be used"):
        AudioDataset(clips[:3], min_samples=400)[1]


def test_a_wave_is_cut_to_its_measured_length(tmp_path):
    file = write(tmp_path / "a.wav", 1.0)
    assert len(AudioDataset([Clip(str(file), 9_000)])[0][0]) == 9_000
