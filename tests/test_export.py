"""Exported files against torch, what they refuse, and the runtime without torch."""

import json
import subprocess
import sys
import wave as wav
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_export
import torch

import star_upstream
from star_upstream import cli, runtime
from star_upstream.errors import StarError
from star_upstream.export import onnx
from star_upstream.formats import checkpoint
from star_upstream.heads import export as heads_file
from star_upstream.training.finetune import untrained

REPO = Path(__file__).resolve().parents[1]
QUICK = (0.0001, 0.025, 0.0255, 0.04, 0.31, 1.0)


def waves(*seconds):
    return [onnx._noise(round(16_000 * s), i).numpy() for i, s in enumerate(seconds)]


@pytest.mark.parametrize("name", tiny_export.SHAPES)
def test_every_architecture_gives_torchs_states_at_any_length_and_padding(name, tmp_path):
    encoder = tiny_export.encoder(name)
    count, width = encoder.config.exposed
    graph = onnx.Graph(encoder, "all", predictions=bool(encoder.config.prediction_layers))
    about = onnx.write(graph, tmp_path / "a.onnx", {}, QUICK)
    assert 0 < about["differs"]["most"] < 3e-5
    model, given = runtime.Model(tmp_path / "a.onnx"), waves(0.3, 0.02, 0.7)
    right = star_upstream.UpstreamExpert(encoder)([torch.from_numpy(x) for x in given])
    together = model.run(given)
    for layer, state in enumerate(right["hidden_states"]):
        assert together[f"state_{layer}"].shape == state.shape == (3, state.shape[1], width)
        np.testing.assert_allclose(together[f"state_{layer}"], state, atol=1e-4)  # padding holds the last frame in both
    assert together["frames"].tolist() == right["lengths"].tolist() and f"state_{count}" not in model.outputs
    alone = model(given[1:2])
    np.testing.assert_allclose(alone["state_0"][0], together["state_0"][1, : together["frames"][1]], atol=1e-4)


def test_prediction_heads_are_the_models(tmp_path):
    encoder = tiny_export.encoder("merged frames, last")
    onnx.write(onnx.Graph(encoder, predictions=True), tmp_path / "a.onnx", {}, QUICK)
    model, (x,) = runtime.Model(tmp_path / "a.onnx"), waves(0.5)
    assert list(model.outputs) == ["prediction_2", "prediction_3"]
    for ours, theirs in zip(model([x]).values(), encoder(torch.from_numpy(x)[None]).predictions):
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)


class Moving(onnx.Graph):
    """Gives something else when it is traced."""

    def forward(self, waveforms_BN, lengths_B):
        *states, frames_B = super().forward(waveforms_BN, lengths_B)
        return (*(x + 2e-4 * torch.jit.is_tracing() for x in states), frames_B)


def test_a_file_that_differs_is_not_kept(tmp_path):
    with pytest.raises(StarError, match=r"not written, since onnxruntime's outputs differ from torch's by 0\.0002"):
        onnx.write(Moving(tiny_export.encoder()), tmp_path / "a.onnx", {}, QUICK)
    assert not list(tmp_path.iterdir())


def test_the_file_says_what_it_is_and_the_command_replaces_only_its_own(tmp_path, capsys):
    folder, file = tmp_path / "model", tmp_path / "a.onnx"
    encoder = tiny_export.encoder()
    checkpoint.save(folder, encoder, {"made_by": "a test"})
    for layers in ("0,2", "-1"):
        cli.main(["export", str(folder), str(file), f"--layers={layers}", "--licence", "MIT"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    about = onnx.describe(file)
    assert about == runtime.Model(file).about and list(about["outputs"]) == ["state_3"] == list(printed["outputs"])
    assert about["sha256"] == checkpoint.digest(encoder) and about["licence"] == "MIT"
    assert about["of"] == {"source": "model", "provenance": {"made_by": "a test"}}
    assert about["encoder"]["width"] == 32 and about["opset"] == 17 and "onnxruntime" in about["versions"]
    assert about["differs"]["seconds"][-1] == 30.0 and about["differs"]["most"] <= 1e-4
    with pytest.raises(StarError, match="an ONNX model"):
        star_upstream.load(file)
    (tmp_path / "b.onnx").write_bytes(b"mine")
    for words, message in (
        ([folder, tmp_path / "b.onnx"], "was not made by star export"),
        ([folder, tmp_path / "b.bin"], "ends in .onnx"),
        ([folder, file, "--layers", "4"], "this model gives the states 0 to 3, got 4"),
        ([folder, file, "--predictions"], "has no prediction heads"),
        ([folder, file, "--heads", folder / "config.json"], "neither a file of star finetune nor"),
        ([folder], "name the file to write"),
        ([tmp_path / "nothing", file], "no such file"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["export", *map(str, words)])
        assert message in capsys.readouterr().err
    assert onnx.describe(file) == about and (tmp_path / "b.onnx").read_bytes() == b"mine"


def test_the_weighted_sum_of_a_record(tmp_path):
    checkpoint.save(tmp_path / "model", tiny_export.encoder(), {})
    weights = [0.1, 0.2, 0.3, 0.4]
    record = {"task": "pr", "layer_weights": weights, "upstream_digest": checkpoint.digest(tiny_export.encoder())}
    (tmp_path / "pr.json").write_text(json.dumps(record))
    onnx.export(tmp_path / "model", tmp_path / "a.onnx", heads=[tmp_path / "pr.json"])
    model, (x,) = runtime.Model(tmp_path / "a.onnx"), waves(0.5)
    states = star_upstream.load(tmp_path / "model")([torch.from_numpy(x)])["hidden_states"]
    (given,) = model([x]).values()
    assert list(model.outputs) == ["weighted_pr"]
    np.testing.assert_allclose(given[0], sum(w * s[0] for w, s in zip(weights, states)).detach(), atol=1e-4)
    for change, message in (
        ({"upstream_digest": "0"}, "trained on another model"),
        ({"layer_weights": [1.0]}, "of 1 states"),
    ):
        (tmp_path / "pr.json").write_text(json.dumps(record | change))
        with pytest.raises(StarError, match=message):
            onnx.export(tmp_path / "model", tmp_path / "a.onnx", heads=[tmp_path / "pr.json"])


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A fine-tuned model, the same exported, and two recordings."""
    folder = tmp_path_factory.mktemp("answers")
    checkpoint.save(folder / "encoder", tiny_export.encoder(), {})
    torch.manual_seed(0)
    untrained(str(folder / "encoder"), str(folder / "tuned.safetensors"), keyword=["yes", "no", "stop"])
    onnx.export(folder / "tuned.safetensors", folder / "tuned.onnx")
    for i, x in enumerate(waves(0.8, 0.5)):
        with wav.open(str(folder / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((x * 2**15).astype("<i2").tobytes())
    return folder


def test_answers_are_those_of_the_fine_tuned_model(answers):
    ours, theirs = runtime.Model(answers / "tuned.onnx"), star_upstream.load(answers / "tuned.safetensors")
    a, b = waves(0.8, 0.5)
    expected = theirs.classify("keyword", torch.from_numpy(a))
    assert ours.keyword(a) == theirs.keyword(torch.from_numpy(a)) and list(ours.classify(a)) == list(expected)
    assert ours.classify(a) == pytest.approx(expected, abs=1e-5)
    one, other = (theirs.speaker_embedding(torch.from_numpy(x)).detach() for x in (a, b))
    np.testing.assert_allclose(ours.speaker_embedding(a), one, atol=1e-5)
    assert ours.similarity(a, b) == pytest.approx(float(one @ other), abs=1e-5)
    with pytest.raises(ValueError, match="has no head 'emotion' that gives shares; it has keyword .shares., speaker"):
        ours.classify(a, "emotion")


def test_heads_ride_on_the_model_that_they_were_trained_on(answers, tmp_path):
    onnx.export(answers / "encoder", tmp_path / "a.onnx", [-1], heads=[answers / "tuned.safetensors"])
    assert list(runtime.Model(tmp_path / "a.onnx").outputs) == ["state_3", "keyword", "speaker"]
    checkpoint.save(tmp_path / "other", tiny_export.encoder(norm="pre"), {})
    with pytest.raises(StarError, match="trained on another model"):
        onnx.export(tmp_path / "other", tmp_path / "b.onnx", heads=[answers / "tuned.safetensors"])
    assert heads_file.load(answers / "tuned.safetensors").labels["keyword"] == ["yes", "no", "stop"]


# all that a bare environment has beside the standard library
BARE = """
import sys
class Bare:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        mine = {"star_upstream", "numpy", "onnxruntime", *sys.stdlib_module_names}
        return self.finder.find_spec(name, path, target) if name.partition(".")[0] in mine else None
sys.meta_path[:] = map(Bare, sys.meta_path)
"""


def test_the_command_listens_without_torch(answers):
    code = f"{BARE}\nfrom star_upstream import cli\ncli.main(sys.argv[1:])\nassert 'torch' not in sys.modules"
    files = [str(answers / f"{i}.wav") for i in range(2)]
    command = [sys.executable, "-c", code, "listen", str(answers / "tuned.onnx"), *files]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    label = runtime.Model(answers / "tuned.onnx").keyword(runtime.read(files[0]))
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{files[0]}: keyword {label} (") and first.endswith(
        "speaker similarity to the first 1.000"
    )
    assert second.startswith(f"{files[1]}: keyword")


def test_the_runtime_is_short_and_stands_alone():
    source = (REPO / "star_upstream" / "runtime.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 100 and "from ." not in source and "star_upstream import" not in source


def test_wrong_input_to_listen_is_one_line(answers, tmp_path, capsys):
    (tmp_path / "text.wav").write_text("no sound")
    with wav.open(str(tmp_path / "slow.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(800))
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), 16_000, subtype="FLOAT")
    onnx.write(onnx.Graph(tiny_export.encoder(), [0]), tmp_path / "states.onnx", {}, QUICK)
    for words, message in (
        ([answers / "tuned.onnx", tmp_path / "text.wav"], "cannot be read as audio"),
        (
            [answers / "tuned.onnx", tmp_path / "slow.wav"],
            "slow.wav: 8000 Hz; this model hears 16 kHz",
        ),
        ([answers / "tuned.onnx", tmp_path / "nan.wav"], "nan.wav: empty, or not finite"),
        ([tmp_path / "text.wav", answers / "0.wav"], "no file of star export, nor any that onnxruntime runs"),
        ([tmp_path / "none.onnx", answers / "0.wav"], "none.onnx: no such file\n"),
        ([answers / "tuned.onnx", tmp_path / "none.wav"], "none.wav: no such file\n"),
        ([tmp_path / "states.onnx", answers / "0.wav"], "gives no answers"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["listen", *map(str, words)])
        assert message in capsys.readouterr().err
    model = runtime.Model(answers / "tuned.onnx")
    for wrong in (np.zeros(8), [], [np.zeros((1, 8))], [np.zeros(0)]):
        with pytest.raises(ValueError, match="a list of 1-D waveforms"):
            model(wrong)
    for wrong in (np.zeros(8, np.int16), np.full(8, np.inf), np.zeros(8, complex)):
        with pytest.raises(ValueError, match="finite floats; 16-bit samples are divided"):
            model([wrong])


def test_wavs_without_soundfile(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    ramp = np.linspace(-0.9, 0.9, 500)
    for width, kind, offset in ((1, "u1", 128), (2, "<i2", 0), (4, "<i4", 0)):
        with wav.open(str(tmp_path / "a.wav"), "wb") as file:
            file.setparams((2, width, 16_000, 0, "NONE", ""))
            whole = (ramp * 2 ** (8 * width - 1) + offset).astype(kind)
            file.writeframes(np.stack([whole, whole], 1).tobytes())
        np.testing.assert_allclose(runtime.read(tmp_path / "a.wav"), ramp, atol=2 / 2 ** (8 * width))
