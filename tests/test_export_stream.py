"""A model that streams as one file: frames without torch, for any pieces, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import BARE
from test_stream import make, noise

from star_upstream import cli, runtime
from star_upstream.errors import StarError
from star_upstream.export import onnx, stream
from star_upstream.formats import checkpoint
from star_upstream.runtime_stream import Stream

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A log-mel model and its file, by the command."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint.save(folder / "m", make(hidden_states="layers"), {})
    cli.main(["export", str(folder / "m"), str(folder / "m.onnx"), "--stream", "--layers=0,-1"])
    return folder


@torch.no_grad()
def test_any_pieces_give_what_torch_gives(made):
    encoder, random, file = checkpoint.load(made / "m"), np.random.default_rng(0), Stream(made / "m.onnx", threads=1)
    about = file.about
    assert list(file.outputs) == ["state_0", "state_2"] and about["differs"]["most"] < 1e-4
    assert about["stream"]["latency_ms"] == encoder.config.latency_ms and about["sha256"] == checkpoint.digest(encoder)
    for samples in (0, 1, 399, 720, 9000):  # one stream after another
        wave_N = noise(samples, samples)
        pieces = np.split(wave_N.numpy(), np.sort(random.integers(0, samples + 1, 6)))
        found = [*(file.push(piece) for piece in pieces), file.flush()]
        states = encoder.exposed(encoder(wave_N[None])) if samples else [torch.zeros(1, 0, 32)] * 3
        for layer in (0, 2):
            mine = np.concatenate([part[f"state_{layer}"] for part in found])
            assert mine.shape == tuple(states[layer][0].shape)
            np.testing.assert_allclose(mine, states[layer][0].numpy(), atol=5e-5, rtol=0)


def test_it_streams_without_torch(made):
    code = (
        f"{BARE}\nimport numpy as np\nfrom star_upstream.runtime_stream import Stream\n"
        f"stream = Stream({str(made / 'm.onnx')!r})\n"
        "frames = [len(stream.push(piece)['state_0']) for piece in np.zeros((10, 1600), np.float32)]\n"
        "print(sum(frames) + len(stream.flush()['state_0']))\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "49", done.stderr


def test_what_cannot_be_is_named(made, tmp_path, monkeypatch, capsys):
    checkpoint.save(tmp_path / "full", make(attention="full"), {})
    with pytest.raises(StarError, match="--stream: this model attends to whole utterances"):
        stream.export(tmp_path / "full", tmp_path / "a.onnx")
    with pytest.raises(StarError, match="this model streams; give --stream"):
        onnx.export(made / "m", tmp_path / "a.onnx")
    with pytest.raises(StarError, match="--layers: this model gives the states 0 to 2, got 3"):
        stream.export(made / "m", tmp_path / "a.onnx", layers=[3])
    with pytest.raises(SystemExit):
        cli.main(["export", str(made / "m"), str(tmp_path / "a.onnx"), "--stream", "--predictions"])
    assert "--stream: gives states in fp32 alone" in capsys.readouterr().err
    monkeypatch.setattr(onnx, "TOLERANCE", 0.0)
    with pytest.raises(StarError, match="not written, since onnxruntime's outputs differ"):
        stream.export(made / "m", tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
    with pytest.raises(ValueError, match="not a file of star export"):
        runtime.Model(made / "m.onnx")
    opened = Stream(made / "m.onnx")
    with pytest.raises(ValueError, match="expected 1-D floats at 16 kHz, got int16"):
        opened.push(np.zeros(5, np.int16))
    with pytest.raises(ValueError, match="expected finite samples"):
        opened.push(np.full(5, np.nan))
    with pytest.raises(ValueError, match="is a stream: push"):
        opened([np.zeros(800, np.float32)])
    with pytest.raises(SystemExit):
        cli.main(["profile", str(made / "m.onnx"), "--time", "--seconds", "1"])
    assert "a stream has no forward pass of a whole waveform" in capsys.readouterr().err
    assert json.loads((made / "m" / "config.json").read_text())["encoder"]["attention"] == "chunked"
