"""Folders for transformers: AutoModel's states beside ours, and the shapes that are refused."""

import json

import pytest
import tiny_export
import torch
from tiny_transformers import transformers

import star_upstream
from star_upstream import cli
from star_upstream.errors import StarError
from star_upstream.export import transformers as exported
from star_upstream.formats import checkpoint

PLAIN = {**tiny_export.SHAPES["no projection"], "feature_scale": False}
HELD = {
    "group, post-norm": ("group, post-norm", {}, "HubertModel"),
    "layer, pre-norm": ("layer, pre-norm", {"normalize_epsilon": 1e-7}, "HubertModel"),
    "layer, post-norm": ("group, post-norm", {"conv_norm": "layer"}, "HubertModel"),
    "odd kernel": ("even and odd kernels", {}, "HubertModel"),
    "gated relative position": ("gated relative position", {}, "WavLMModel"),
    "gated, pre-norm": ("gated relative position", {"norm": "pre", "conv_norm": "layer"}, "WavLMModel"),
    "batch norm": ("batch norm before the positional convolution", {}, "HubertModel"),
    "stacked": ("stacked positional convolutions", {"norm": "post", "conv_norm": "layer"}, "Data2VecAudioModel"),
    "adapters": ("adapters", {}, "Wav2Vec2Model"),
    "no projection": ("no projection", PLAIN, "HubertModel"),
    "no projection norm": ("group, post-norm", {"projection_norm": False}, "HubertModel"),
    "prediction heads": ("group, post-norm", {"prediction_layers": [4, 8], "hidden_states": "layers"}, "HubertModel"),
}


@pytest.mark.parametrize("name", HELD)
@torch.no_grad()
def test_auto_model_gives_our_states(name, tmp_path, caplog):
    shape, changes, kind = HELD[name]
    encoder = tiny_export.encoder(shape, **changes)
    checkpoint.save(tmp_path / "ours", encoder, {"made_by": "a test"})
    exported.export(tmp_path / "ours", tmp_path / "theirs", licence="apache-2.0")
    model, report = transformers.AutoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert type(model).__name__ == kind and not any(report.values())  # nothing missing, nothing left over
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "theirs")
    for samples in (405, 9000):
        wave = torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1 + 0.02
        inputs = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
        theirs = model.eval()(**inputs, output_hidden_states=True)
        ours = encoder(wave[None]).states
        for one, other in zip(ours, (*theirs.hidden_states[:-1], theirs.last_hidden_state), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


REFUSED = {
    "pruned relative position": "pruned heads (heads: [2, 1, 0]",
    "reused maps": "reused attention maps (reuse_attention)",
    "left-out parts": "different numbers of FFN units (ffn: [48, 20, 0])",
    "output heads": "heads on the layers' outputs",
    "merged frames": "merged frames (time_reduction: 2)",
    "no projection": "scale on the last convolution (feature_scale)",
    "mel": "front end than convolutions over the waveform (frontend: mel)",
    "stacked positional convolutions": "stacked positional convolutions in this model",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_cannot_hold_is_named(name, tmp_path):
    checkpoint.save(tmp_path / "ours", tiny_export.encoder(name), {})
    with pytest.raises(StarError) as refusal:
        exported.export(tmp_path / "ours", tmp_path / "theirs")
    assert REFUSED[name] in str(refusal.value) and "star export" in str(refusal.value)
    assert not (tmp_path / "theirs").exists()


def test_the_command_writes_a_card_and_replaces_only_its_own(tmp_path, capsys):
    checkpoint.save(tmp_path / "ours", tiny_export.encoder(), {"made_by": "a test"})
    words = ["export", str(tmp_path / "ours"), "--transformers", str(tmp_path / "theirs")]
    cli.main([*words, "--licence", "CC-BY-4.0"])
    cli.main([*words, "--licence", "MIT"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["model"] == "HubertModel"
    assert {file.name for file in (tmp_path / "theirs").iterdir()} == set(exported.FILES)
    card = (tmp_path / "theirs" / "README.md").read_text()
    assert "license: mit\n" in card and "averages over padding" in card and "made_by: a test" in card
    assert star_upstream.load(tmp_path / "theirs").encoder.config.layers == 3
    for extra, message in (([tmp_path / "a.onnx"], "leave out OUT.onnx"), (["--layers", "1"], "--layers"), ([], None)):
        if message is None:
            (tmp_path / "theirs" / "config.json").write_text("{}")
            message = "was not made by star export --transformers"
        with pytest.raises(SystemExit, match="2"):
            cli.main([*words, *map(str, extra)])
        assert message in capsys.readouterr().err
