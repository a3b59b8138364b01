"""8-bit files: what is quantised is what changes little, and the file says so; exported files are scored."""

import json

import numpy as np
import pytest
import soundfile
import tiny_export
import torch
from test_export import waves

from eval.features import upstreams
from star_upstream import cli, runtime
from star_upstream.errors import StarError
from star_upstream.export import int8, onnx
from star_upstream.formats import checkpoint

onnx_library = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model, the same exported in fp32, and audio to calibrate on."""
    folder = tmp_path_factory.mktemp("int8")
    checkpoint.save(folder / "model", tiny_export.encoder(), {})
    (folder / "audio").mkdir()
    for i, x in enumerate(waves(1.3, 0.7, 2.1)):
        soundfile.write(folder / "audio" / f"{i}.wav", x, 16_000)
    onnx.write(onnx.Graph(tiny_export.encoder()), folder / "fp32.onnx", {}, (0.025, 0.3))
    return folder


@pytest.mark.parametrize("dynamic", [False, True])
def test_parts_that_change_little_are_quantised_and_the_others_are_named(model, dynamic, capsys):
    target = model / f"int8_{dynamic}.onnx"
    words = ["export", str(model / "model"), str(target), "--int8", "--calibrate", str(model / "audio")]
    cli.main([*words, *["--dynamic"] * dynamic])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    about = runtime.Model(target).about
    said = about["int8"]
    assert about["precision"] == printed["precision"] == f"int8, {'dynamic' if dynamic else 'static'}"
    assert said == printed["int8"] and said["seconds"] == pytest.approx(4.1)
    convolutions = {"frontend.convs.1", "frontend.convs.2", "frontend.convs.3", "position"}
    linear = {"frontend.projection", "layers.0", "layers.1", "layers.2"}
    assert set(said["alone"]) == convolutions | linear and set(said["slower"]) == convolutions
    assert max(said["alone"].values()) < 0.03 < said["limit"]  # the convolutions too
    assert "VNNI" in said["needs"]
    slow = {name for name, share in said["slower"].items() if share > said["slower_limit"]}
    assert said["parts"] == [name for name in said["alone"] if name not in slow]
    kinds = {node.op_type for node in onnx_library.load(target).graph.node}
    assert "MatMulIntegerToFloat" in kinds and ("DynamicQuantizeLinear" in kinds) == dynamic
    assert target.stat().st_size < (model / "fp32.onnx").stat().st_size
    given = [soundfile.read(file, dtype="float32")[0] for file in sorted((model / "audio").iterdir())]
    one, other = (runtime.Model(path) for path in (model / "fp32.onnx", target))
    for name, change in said["change"].items():
        right, ours = (np.concatenate([each([x], [name])[name][0] for x in given]) for each in (one, other))
        measured = np.sqrt(np.square(right - ours).mean() / np.square(right.std(0)).mean())
        assert measured == pytest.approx(change, rel=0.2, abs=2e-3) and measured > 0


def test_a_convolution_that_is_slower_stays_in_float(model, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "SLOWER", -1.0)
    said = int8.quantise(model / "fp32.onnx", tmp_path / "a.onnx", waves(1.3, 0.7, 2.1))["int8"]
    assert said["parts"] == ["frontend.projection", "layers.0", "layers.1", "layers.2"]


def test_a_limit_that_nothing_keeps_is_refused(model, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "LIMIT", 0.0)
    with pytest.raises(StarError, match="every part in 8 bits changes an output by more than 0"):
        int8.quantise(model / "fp32.onnx", tmp_path / "a.onnx", waves(0.5))
    assert not list(tmp_path.iterdir())


def test_audio_is_drawn_and_cut(model):
    drawn = int8.draw([model / "audio"], seconds=2.0)
    assert 2.0 <= sum(map(len, drawn)) / 16_000 < 4.2 and len(drawn) <= 3
    assert [len(x) for x in int8.draw([str(model / "audio" / "2.wav")])] == [round(2.1 * 16_000)]
    with pytest.raises(StarError, match="no audio found"):
        int8.draw([model / "model"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "give --calibrate AUDIO"),
        (["--dynamic"], "go with --int8"),
        (["--calibrate", "x"], "go with --int8"),
    ],
)
def test_wrong_words_are_one_line(words, message, model, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["export", str(model / "model"), str(tmp_path / "a.onnx"), *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "wave, message",
    [
        (np.full(32_000, np.nan), "a.wav: samples that are not finite"),
        (np.zeros(32_000), "1 s of audio are needed at least, and not silence alone"),
        (np.ones(1), "1 s of audio are needed at least"),
        (np.zeros(0), "a.wav: holds no sound"),
    ],
)
def test_audio_that_says_nothing_of_ranges_is_refused(wave, message, tmp_path):
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(StarError, match=message):
        int8.draw([tmp_path / "a.wav"])


def test_an_exported_file_is_scored_as_the_model_is(model, tmp_path):
    exported, ours = upstreams.load(str(model / "fp32.onnx")), upstreams.load(str(model / "model"))
    given = waves(0.6, 0.02, 0.3)
    for one, other in zip(exported.encode(given), ours.encode(given)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    same = ("parameters", "layers", "width", "stride", "padded")
    assert [getattr(exported, name) for name in same] == [getattr(ours, name) for name in same]
    assert len(exported.digest) == 64 and exported.digest != ours.digest
    onnx.write(onnx.Graph(tiny_export.encoder("merged frames, last"), [], True), tmp_path / "a.onnx", {}, (0.1, 0.3))
    with pytest.raises(StarError, match="gives no states"):
        upstreams.load(str(tmp_path / "a.onnx"))


def test_profile_times_exported_files_beside_models(model, capsys):
    files = [str(model / "fp32.onnx"), str(model / "model")]
    cli.main(["profile", *files, "--time", "--seconds", "0.5", "--repeats", "1", "--threads", "1", "--json"])
    exported, ours = json.loads(capsys.readouterr().out)["models"].values()
    assert exported["parameters"] == ours["parameters"] and exported["bytes"] == (model / "fp32.onnx").stat().st_size
    assert exported["real_time_factor"] == pytest.approx(exported["median_s"] / 0.5, abs=1e-4)
    assert 20 < exported["peak_mb"] < 500 and "peak_mb" not in ours
    cli.main(["profile", files[0]])
    assert "parameters" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        cli.main(["profile", str(model / "nothing.onnx")])
    assert "no such file" in capsys.readouterr().err
