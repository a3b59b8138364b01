"""No test utterance is pretrained on: leaks are found, and what is wrong is named."""

import json

import numpy as np
import pytest
import soundfile

from star_upstream.errors import StarError
from star_upstream.mini import leaks


def test_leaks_are_found_by_path_by_bytes_and_by_what_is_heard(tmp_path, capsys):
    audio = tmp_path / "audio"
    audio.mkdir()
    random = np.random.default_rng(1)
    wave = random.standard_normal(16000) * np.repeat(random.uniform(0.01, 0.2, 50), 320)
    other = random.standard_normal(16000) * np.repeat(random.uniform(0.01, 0.2, 50), 320)
    soundfile.write(audio / "a.wav", wave, 16000)
    soundfile.write(audio / "copy.wav", wave, 16000)
    soundfile.write(audio / "coded.ogg", np.roll(wave, 7), 16000, subtype="VORBIS")
    soundfile.write(audio / "other.wav", other, 16000)
    with pytest.raises(StarError, match="none.tsv: cannot be read as a manifest"):
        leaks.compare(tmp_path / "none.tsv", tmp_path)
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    head = "path\tsamples\tsplit\n"
    (manifests / "unlabelled.tsv").write_text("path\tsamples\naudio/a.wav\t16000\naudio/other.wav\t16000\n")
    (manifests / "ks.tsv").write_text(
        head + "audio/other.wav\t16000\ttrain\naudio/copy.wav\t16000\ttest\naudio/coded.ogg\t16000\ttest\n"
    )
    result = leaks.compare(manifests / "unlabelled.tsv", manifests)
    assert (result["pretraining"], result["tested"]) == (2, 2)
    assert result["in both"]["by bytes"] == [("audio/a.wav", "audio/copy.wav")] and not result["in both"]["by path"]
    assert result["in both"]["by what is heard"] == [
        ("audio/a.wav", "audio/coded.ogg"),
        ("audio/a.wav", "audio/copy.wav"),
    ]
    (manifests / "ks.tsv").write_text(head + "audio/other.wav\t16000\ttest\n")
    assert leaks.main([str(manifests / "unlabelled.tsv"), str(manifests)]) == 1
    assert json.loads(capsys.readouterr().out)["in both"]["by path"] == [["audio/other.wav", "audio/other.wav"]]
    (manifests / "unlabelled.tsv").write_text("path\tsamples\naudio/a.wav\t16000\n")
    assert leaks.main([str(manifests / "unlabelled.tsv"), str(manifests)]) == 0
