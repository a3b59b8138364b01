"""Crops: a batch is a function of its place in the run, as long as its shortest piece, with its own units."""

import numpy as np
import pytest
import soundfile
import torch

from star_upstream import augment
from star_upstream.augment import AugmentConfig
from star_upstream.crops import Crops, CropSampler
from star_upstream.data.batches import BatchStream
from star_upstream.data.clips import Clip, scan
from star_upstream.encoder import EncoderConfig

HUBERT = EncoderConfig()


def lengths(*seconds: float) -> list[Clip]:
    return [Clip(f"{i}", int(s * 16000)) for i, s in enumerate(seconds)]


def test_a_long_clip_counts_as_many_pieces_and_no_batch_is_padded():
    sampler = CropSampler(lengths(0.7, 1.0, 1.2, 5.0, 12.0, 16.4), 4.0, 8.0, seed=0)
    assert np.bincount(sampler.pieces).tolist() == [1, 1, 1, 1, 3, 4]
    epoch = sampler.plan(0)
    assert sorted(place.clip for batch in epoch for place in batch) == sampler.pieces.tolist()
    for batch in epoch:
        samples = {place.samples for place in batch}
        assert len(samples) == 1 and samples.pop() == min(min(sampler_length(sampler, p.clip), 64000) for p in batch)
        assert len(batch) * batch[0].samples <= 8 * 16000 and [p.slot for p in batch] == list(range(len(batch)))


def sampler_length(sampler: CropSampler, clip: int) -> int:
    return sampler.lengths[sampler.pieces.tolist().index(clip)]


def test_the_stream_begins_anywhere_and_is_shared_by_processes():
    clips = lengths(*np.linspace(0.6, 9.0, 30))

    def stream(start=0, seed=3, **where):
        sampler = CropSampler(clips, 4.0, 8.0, seed, **where)
        batches = BatchStream(sampler)
        for _ in range(start):
            batches.advance()
        return [batch for batch, _ in zip(batches, range(40 - start))]

    whole = stream()
    assert whole[-1][0].epoch >= 1 and len({(batch[0].epoch, batch[0].batch) for batch in whole}) == 40
    for start in (1, 17, 39):
        assert stream(start) == whole[start:]
    assert stream(seed=4) != whole
    two = [stream(rank=rank, world=2) for rank in (0, 1)]
    per_epoch = len(CropSampler(clips, 4.0, 8.0, 3, rank=0, world=2))
    assert [batch for pair in zip(*two) for batch in pair][: 2 * per_epoch] == whole[: 2 * per_epoch]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for i in range(3):
        # loudness says where in the recording a sample is
        ramp = np.linspace(0.05, 0.95, 16000 * (2 + i))
        soundfile.write(folder / f"{i}.wav", ramp, 16000, subtype="PCM_16")
    return scan([folder]).clips


def test_crops_without_augmentation_are_parts_of_the_recording_with_their_units(recordings):
    units = [np.arange(HUBERT.frames(clip.samples)) for clip in recordings]
    crops = Crops(recordings, units, HUBERT, augment.NONE, seed=0)
    for places in CropSampler(recordings, 1.5, 4.0, seed=0).plan(0):
        for place in places:
            wave, found, path, _ = crops[place]
            assert len(wave) == place.samples and len(found) == HUBERT.frames(place.samples)
            assert path == recordings[place.clip].path
            total = recordings[place.clip].samples
            first = (float(wave[0]) - 0.05) / 0.9 * (total - 1) / 320
            assert abs(float(found[0]) - first) < 0.6 and torch.equal(found, torch.arange(len(found)) + found[0])


def test_augmented_crops_are_the_same_again_and_others_at_another_update(recordings):
    units = [np.arange(HUBERT.frames(clip.samples)) for clip in recordings]
    config = AugmentConfig(speeds=(0.9, 1.1), overlap=0.5, noise=0.5)
    places = CropSampler(recordings, 1.5, 4.0, seed=0).plan(0)[0]
    first, again = (Crops(recordings, units, HUBERT, config, seed=0)[places[0]] for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1]) and first[0].isfinite().all()
    moved = Crops(recordings, units, HUBERT, config, seed=0)[places[0]._replace(epoch=1)]
    assert not torch.equal(first[0], moved[0])
    other = Crops(recordings, units, HUBERT, config, seed=1)[places[0]]
    assert not torch.equal(first[0], other[0])


def test_what_is_heard_does_not_depend_on_what_was_kept_in_memory(recordings, monkeypatch):
    units = [np.arange(HUBERT.frames(clip.samples)) for clip in recordings]
    place = CropSampler(recordings, 1.5, 4.0, seed=0).plan(0)[0][0]
    kept = Crops(recordings, units, HUBERT, augment.NONE, seed=0)
    first, second = kept[place], kept[place]
    monkeypatch.setattr("star_upstream.crops.KEPT", 0)
    decoded = Crops(recordings, units, HUBERT, augment.NONE, seed=0)[place]
    assert torch.equal(first[0], second[0]) and torch.equal(first[0], decoded[0])
