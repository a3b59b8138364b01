"""Augmentation: levels and lengths as asked for, the same from the same seed."""

import numpy as np
import pytest

from star_upstream import augment
from star_upstream.augment import AugmentConfig
from star_upstream.encoder import EncoderConfig
from star_upstream.errors import StarError


def tone(hertz: float, samples: int) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * hertz * np.arange(samples) / 16000)).astype(np.float32)


def decibels(signal: np.ndarray, added: np.ndarray) -> float:
    return 10 * np.log10(np.mean(signal**2) / np.mean(added**2))


@pytest.mark.parametrize(("speed", "samples", "hertz"), [(0.9, 17778, 900), (1.0, 16000, 1000), (1.1, 14546, 1100)])
def test_speed_moves_length_and_pitch(speed, samples, hertz):
    played = augment.change_speed(tone(1000, 16000), speed)
    assert len(played) == samples and played.dtype == np.float32
    assert abs(np.abs(np.fft.rfft(played, 16000)).argmax() - hertz) <= 1


def test_frames_of_a_crop_find_the_frames_they_came_from():
    hubert = EncoderConfig()
    stride, field = hubert.stride, hubert.receptive_field
    as_it_is = augment.frames_of_origin(49, stride, field, 1.0, 0, 49)
    assert as_it_is.tolist() == list(range(49))
    assert augment.frames_of_origin(10, stride, field, 1.0, 3 * 320 + 100, 200).tolist() == list(range(3, 13))
    # twice as fast: the middle of frame t is at sample 2 (320 t + 200), which is the middle of frame 2 t + 0.625
    assert augment.frames_of_origin(4, stride, field, 2.0, 0, 49).tolist() == [1, 3, 5, 7]
    assert augment.frames_of_origin(40, stride, field, 1.1, 16000, 60).max() == 59


def test_a_click_keeps_its_unit_when_the_speed_changes():
    wave, hubert = np.zeros(32000, np.float32), EncoderConfig()
    wave[320 * 61 + 200] = 1.0
    for speed in (0.9, 1.1):
        start = 4321
        crop = augment.change_speed(wave[start:], speed)[:20000]
        frame = (int(np.abs(crop).argmax()) - 200) / 320
        origin = augment.frames_of_origin(
            hubert.frames(20000), hubert.stride, hubert.receptive_field, speed, start, hubert.frames(32000)
        )
        assert abs(origin[round(frame)] - 61) <= 1


def test_overlap_is_short_and_as_loud_as_asked():
    wave, other = tone(300, 16000), tone(2000, 9000)
    config = AugmentConfig(overlap_decibels=(5.0, 5.0))
    for seed in range(20):
        mixed = augment.add_overlap(wave, other, config, np.random.default_rng(seed))
        added = mixed - wave
        where = np.flatnonzero(np.abs(added) > 1e-7)
        assert where[-1] - where[0] < 8000 and len(mixed) == 16000
        if len(where) > 200:
            assert abs(decibels(wave, added[where[0] : where[-1] + 1]) - 5.0) < 0.3
    assert not np.array_equal(wave, mixed) and np.array_equal(wave, tone(300, 16000))


def test_noise_has_the_spectrum_of_the_other_recording():
    wave, other = tone(300, 16000), tone(2000, 12000)
    config = AugmentConfig(noise_decibels=(10.0, 10.0))
    noisy = augment.add_noise(wave, other, config, np.random.default_rng(0))
    assert noisy.dtype == np.float32 and abs(decibels(wave, noisy - wave) - 10.0) < 0.01
    assert abs(np.abs(np.fft.rfft(noisy - wave)).argmax() - 2000) <= 2
    assert np.array_equal(noisy, augment.add_noise(wave, other, config, np.random.default_rng(0)))
    assert not np.array_equal(noisy, augment.add_noise(wave, other, config, np.random.default_rng(1)))


def test_silence_and_single_samples_stay_finite():
    silent, short = np.zeros(800, np.float32), np.ones(1, np.float32)
    for add in (augment.add_overlap, augment.add_noise):
        for wave, other in ((silent, tone(300, 800)), (tone(300, 800), silent), (silent, short)):
            assert np.isfinite(add(wave, other, AugmentConfig(), np.random.default_rng(0))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speeds": ()}, "speeds: expected numbers from 0.5 to 2"),
        ({"speeds": (1.0, 3.0)}, "speeds: expected numbers from 0.5 to 2"),
        ({"noise": 1.5}, "noise: must be at least 0 and at most 1, got 1.5"),
        ({"overlap_decibels": (5.0, 1.0)}, "overlap_decibels: expected the lower number first"),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(StarError, match=message):
        AugmentConfig(**changes)
