"""Any rate, channel count and container becomes 16 kHz mono; what cannot be read says so in one line."""

import os

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


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("kind", ["GSM610", "G721_32", "NMS_ADPCM_16", "IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW"])
def test_every_codec_of_wav_is_read_whole_and_in_parts(tmp_path, kind, rate):
    """Several cannot be sought in."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(rate, 2.0), rate, subtype=kind)
    whole = audio.read(path)
    assert len(whole) == audio.length(path) == pytest.approx(32_000, abs=700)
    assert np.corrcoef(whole[:30_000], tone(16_000, 2.0)[:30_000])[0, 1] > 0.95
    assert (
        np.allclose(audio.read(path, 5_000, 7_000), whole[5_000:12_000], atol=1e-6)
        and len(audio.read(path, 5_000)) == len(whole) - 5_000
    )


def test_channels_in_opposite_phase_are_not_silence(tmp_path):
    path, wave = tmp_path / "a.wav", tone(16000)
    for other, heard in ((-wave, wave), (-0.95 * wave, wave), (-1.05 * wave, -1.05 * wave), (0 * wave, 0.5 * wave)):
        soundfile.write(path, np.stack([wave, other], 1), 16000, subtype="FLOAT")
        for read in (audio.read(path), np.concatenate([audio.read(path, 0, 8000), audio.read(path, 8000)])):
            assert np.allclose(read, heard, atol=1e-6) and read.dtype == np.float32 and read.flags["C_CONTIGUOUS"]
    soundfile.write(path, np.zeros((100, 2)), 16000)
    assert not audio.read(path).any()


@pytest.mark.parametrize(
    "kind", [{}, {"subtype": "FLOAT"}, {"format": "AIFF"}, {"format": "AU"}, {"subtype": "GSM610"}]
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_cut_short_is_no_shorter_file(tmp_path, kind, share):
    soundfile.write(tmp_path / "a.wav", tone(16000, 2.0), 16000, **kind)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(content[: int(share * len(content))])
    assert audio.length(tmp_path / "a.wav") == 32_000
    for read in (audio.read, audio.length):
        with pytest.raises(
            StarError, match=f"b.wav: cut short: {100 * share:.0f}|b.wav: cut short: {100 * share - 1:.0f}"
        ):
            read(tmp_path / "b.wav")


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_has_no_length_in_its_header(tmp_path, length):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16000), 16000)
    content = bytearray(path.read_bytes())
    at = content.find(b"data") + 4
    content[4:8] = content[at : at + 4] = length.to_bytes(4, "little")
    path.write_bytes(content)
    assert audio.length(path) == len(audio.read(path)) == 16_000


def test_a_piece_is_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    assert len(audio.piece(tmp_path / "a.wav", 4_000, 12_000)) == 12_000
    with pytest.raises(
        StarError, match="a.wav: 12000 samples from sample 4000 on when decoded, where 16000 were promised"
    ):
        audio.piece(tmp_path / "a.wav", 4_000, 16_000)
    with pytest.raises(StarError, match="a.wav: 0 samples from sample 16000 on"):
        audio.piece(tmp_path / "a.wav", 16_000, 100)
    for ending, kind in (("flac", {}), ("mp3", {"format": "MP3"})):
        soundfile.write(tmp_path / f"b.{ending}", np.random.default_rng(0).standard_normal(64_000) / 9, 16000, **kind)
        content = (tmp_path / f"b.{ending}").read_bytes()
        (tmp_path / f"b.{ending}").write_bytes(content[: len(content) // 2])
        with pytest.raises(StarError, match="when decoded|lost sync"):
            audio.piece(tmp_path / f"b.{ending}", 0, 64_000)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(StarError, match="a.wav: no file, but a folder, a pipe or a device"):
        audio.header(tmp_path / "a.wav")
