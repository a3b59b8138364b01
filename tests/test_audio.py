"""Any rate, channel count and container becomes 16 kHz mono; what cannot be read says so in one line."""

import numpy as np
import pytest
import soundfile

from star_upstream import audio
from star_upstream.errors import StarError


def tone(rate, seconds=1.0, frequency=440.0):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_keeps_its_pitch_and_length(tmp_path, rate, channels):
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([tone(rate)] * channels, 1), rate)
    wave = audio.read(path)
    assert wave.dtype == np.float32 and wave.shape == (16000,) == (audio.length(path),)
    assert np.abs(wave[2000:-2000] - tone(16000)[2000:-2000]).max() < 0.01


@pytest.mark.parametrize("ending", audio.EXTENSIONS)
def test_every_container(tmp_path, ending):
    path = tmp_path / f"tone{ending}"
    kind = {".opus": {"format": "OGG", "subtype": "OPUS"}}.get(ending, {})
    soundfile.write(path, tone(16000), 16000, **kind)
    wave = audio.read(path)
    spectrum = np.abs(np.fft.rfft(wave[:16000]))
    assert abs(spectrum.argmax() * 16000 / min(len(wave), 16000) - 440) < 3
    assert abs(audio.length(path) - len(wave)) <= 1


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_part_is_cut_out_at_16_khz(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(rate, 2.0), rate, subtype="FLOAT")
    whole, part = audio.read(path), audio.read(path, start=5000, samples=7000)
    assert np.allclose(part, whole[5000:12000], atol=1e-6)
    assert len(audio.read(path, start=31000, samples=7000)) == 1000
    assert len(audio.read(path, start=5000)) == 27000


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([np.full(100, 0.5), np.full(100, -0.25)], 1), 16000, subtype="FLOAT")
    assert np.allclose(audio.read(path), 0.125)


@pytest.mark.parametrize("read", [audio.read, audio.length])
@pytest.mark.parametrize("content", [b"", b"this is no audio", None])
def test_what_cannot_be_read(tmp_path, read, content):
    path = tmp_path / "bad.flac"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StarError) as error:
        read(path)
    message = str(error.value)
    assert "bad.flac" in message and "cannot be read as audio" in message and "\n" not in message
