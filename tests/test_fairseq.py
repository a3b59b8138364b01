"""Files with fairseq's names: fine-tuned, data2vec, batch norm, converted by s3prl, and bare weights with a
configuration."""

import argparse
import json
import sys
import types

import pytest
import torch
import yaml
from test_sources import fairseq_name
from tiny_transformers import CONVS, STABLE, WAVES, check, check_alone, randomised, tiny

from star_upstream.errors import StarError
from star_upstream.formats import published, sources

OPTIONS = {
    "extractor_mode": "default",
    "conv_feature_layers": str(CONVS),
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 40,
    "encoder_attention_heads": 4,
}
LARGE = OPTIONS | {"extractor_mode": "layer_norm", "conv_bias": True, "layer_norm_first": True}
CTC = {"_name": "wav2vec_ctc", "w2v_path": "/elsewhere/base.pt", "dropout": 0.0, "final_dropout": 0.1}


def named(model, layered: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a transformers model under fairseq's names."""
    weights = {fairseq_name(name): tensor for name, tensor in model.state_dict().items()}
    if layered:
        weights = {
            k.replace(".2.weight", ".2.1.weight").replace(".2.bias", ".2.1.bias") if "conv_layers" in k else k: v
            for k, v in weights.items()
        }
    return weights


def finetuned(model, prefix: str) -> dict[str, torch.Tensor]:
    weights = {prefix + name: tensor for name, tensor in named(model, True).items() if name != "mask_emb"}
    head = prefix.removesuffix("w2v_model.")
    return {
        **weights,
        f"{prefix}mask_emb": torch.zeros(32),
        f"{head}proj.weight": torch.zeros(5, 32),
        f"{head}proj.bias": torch.zeros(5),
    }


def omegaconf(monkeypatch, values):
    """``values`` pickled as omegaconf's nodes, whose classes cannot be imported when they are read."""
    module = types.ModuleType("omegaconf.dictconfig")
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    module.DictConfig = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})

    def node(value):
        if not isinstance(value, dict):
            return value
        made = module.DictConfig()
        made._content = {key: node(item) for key, item in value.items()}
        return made

    return node(values)


@pytest.mark.parametrize("style", ["dict", "omegaconf", "namespace", "namespace inside", "sequence to sequence"])
def test_models_fine_tuned_for_recognition(style, tmp_path, monkeypatch):
    model = tiny("Wav2Vec2", **STABLE)
    prefix = "encoder.w2v_model." if style == "sequence to sequence" else "w2v_encoder.w2v_model."
    inner = {"model": LARGE | {"_name": "wav2vec2"}, "task": {"normalize": False}}
    content = {"cfg": {"model": CTC | {"w2v_args": inner}, "task": {"normalize": False}}, "args": None}
    if style == "omegaconf":
        content["cfg"] = omegaconf(monkeypatch, content["cfg"])
    elif style == "namespace":
        args = argparse.Namespace(**CTC, w2v_args=argparse.Namespace(**LARGE, normalize=False), normalize=False)
        content = {"args": args, "cfg": None}
    elif style == "namespace inside":
        content["cfg"]["model"]["w2v_args"] = argparse.Namespace(**LARGE)
    torch.save({**content, "model": finetuned(model, prefix)}, tmp_path / "ctc.pt")
    monkeypatch.undo()
    check(sources.load(tmp_path / "ctc.pt", reference_padding=True), model)


def test_a_fine_tuned_model_normalises_as_the_pre_trained_one(tmp_path):
    inner = {"model": LARGE, "task": {"normalize": True}}
    content = {
        "cfg": {"model": CTC | {"w2v_args": inner}, "task": {}},
        "model": finetuned(tiny("Wav2Vec2", **STABLE), "w2v_encoder.w2v_model."),
    }
    torch.save(content, tmp_path / "ctc.pt")
    assert sources.load(tmp_path / "ctc.pt").config.normalize_waveform
    content["cfg"]["model"]["w2v_args"] = None
    torch.save(content, tmp_path / "ctc.pt")
    with pytest.raises(
        StarError,
        match="without the configuration of its encoder .w2v_args.; load the pre-trained model .*elsewhere/base.pt",
    ):
        sources.load(tmp_path / "ctc.pt")


def data2vec():
    """A tiny model, with fairseq's names of it, and its options."""
    model = tiny("Data2VecAudio", num_conv_pos_embeddings=3, conv_pos_kernel_size=5, conv_bias=True)
    weights = {}
    for name, tensor in named(model, True).items():
        name = name.replace("encoder.pos_conv_embed.layers.", "encoder.pos_conv.").replace(".conv.", ".0.")
        weights[name] = tensor
    options = LARGE | {"_name": "data2vec_audio", "layer_norm_first": False, "pos_conv_depth": 3, "conv_pos": 15}
    return model, weights, options


def test_data2vec_audio_with_its_averaged_teacher(tmp_path):
    model, weights, options = data2vec()
    extra = {"final_proj.weight": torch.zeros(3, 32), "_ema": {"layers.0.fc1.weight": torch.zeros(2)}}
    torch.save({"cfg": {"model": options, "task": {"normalize": False}}, "model": weights | extra}, tmp_path / "d2v.pt")
    assert published.detect(tmp_path / "d2v.pt") == "fairseq"
    check(sources.load(tmp_path / "d2v.pt", reference_padding=True), model)
    check_alone(sources.load(tmp_path / "d2v.pt"), model)


def test_a_batch_norm_before_the_positional_convolution(tmp_path):
    model = tiny("Hubert", conv_pos_batch_norm=True)
    weights = {}
    for name, tensor in named(model).items():
        name = name.replace("encoder.pos_conv_embed.batch_norm.", "encoder.pos_conv.0.")
        weights[name.replace("encoder.pos_conv_embed.conv.weight", "encoder.pos_conv.1.weight")] = tensor
    weights["encoder.pos_conv.1.bias"] = model.state_dict()["encoder.pos_conv_embed.conv.bias"]
    weights["encoder.pos_conv.0.bias"] = model.state_dict()["encoder.pos_conv_embed.batch_norm.bias"]
    torch.save(
        {"cfg": {"model": OPTIONS | {"conv_pos_batch_norm": True}, "task": {}}, "model": weights},
        tmp_path / "hubert.pt",
    )
    check(sources.load(tmp_path / "hubert.pt", reference_padding=True), model)


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2", "data2vec"])
def test_files_that_s3prl_converted(kind, tmp_path):
    model, weights, options = data2vec() if kind == "data2vec" else (tiny(kind), named(tiny(kind)), OPTIONS)
    content = {"task_cfg": {"normalize": False}, "model_cfg": options, "model_weight": weights}
    if kind == "Hubert":
        content["dictionaries_symbols"] = [["<s>", "0"]]
    torch.save(content, tmp_path / "converted.pt")
    assert published.detect(tmp_path / "converted.pt") == "s3prl"
    check(sources.load(tmp_path / "converted.pt", reference_padding=True), model)
    content["task_cfg"]["normalize"] = True
    torch.save(content, tmp_path / "converted.pt")
    assert sources.load(tmp_path / "converted.pt").config.normalize_waveform


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.encoder_q."])
@pytest.mark.parametrize("sections", [False, True])
def test_bare_weights_with_a_configuration(prefix, sections, tmp_path):
    model, file = tiny("Hubert"), tmp_path / "bare.pt"
    torch.save({prefix + name: tensor for name, tensor in named(model).items()}, file)
    with pytest.raises(
        StarError,
        match="the names of fairseq and no configuration; give fairseq's options .* put it beside as bare.yaml",
    ):
        sources.load(file)
    options = {"model": OPTIONS, "task": {"normalize": False}} if sections else OPTIONS
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(options))
    check(sources.load(file, config=tmp_path / "mine.yaml", reference_padding=True), model)
    (tmp_path / "mine.yaml").rename(tmp_path / "bare.yaml")
    check(sources.load(file, reference_padding=True), model)
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(OPTIONS | {"normalize": True}))
    assert sources.load(file).config.normalize_waveform


def test_bare_weights_under_the_usual_keys_and_with_transformers_names(tmp_path):
    model, file = tiny("WavLM"), tmp_path / "bare.bin"
    torch.save({"state_dict": {f"model.{name}": t for name, t in model.state_dict().items()}, "epoch": 3}, file)
    with pytest.raises(
        StarError, match="the names of transformers and no configuration; give transformers' config.json"
    ):
        sources.load(file)
    model.config.save_pretrained(tmp_path / "elsewhere")
    check(sources.load(file, config=tmp_path / "elsewhere" / "config.json", reference_padding=True), model)


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"modality_encoders.AUDIO.local_encoder.weight": 1}, "data2vec 2.0 .data2vec_multi. is not supported"),
        (
            {"feature_aggregator.conv_layers.0.weight": 1},
            "wav2vec 1 or vq-wav2vec, which has no transformer is not supported",
        ),
        ({"encoders.0.layers.0.fc1.weight": 1}, "multi-resolution HuBERT is not supported"),
    ],
)
def test_other_models_of_fairseq_are_named(weights, message, tmp_path):
    torch.save({"cfg": {"model": OPTIONS}, "model": {k: torch.zeros(1) for k in weights}}, tmp_path / "a.pt")
    with pytest.raises(StarError, match=message):
        sources.load(tmp_path / "a.pt")


class _Soft(torch.nn.Module):
    """The layout of bshall/hubert's classes (hubert/model.py at c01819f), in narrow: torch's own transformer layers."""

    def __init__(self, width=24, channels=8):
        super().__init__()
        kernels = [(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]
        self.feature_extractor, self.feature_projection, self.positional_embedding = (
            torch.nn.Module() for _ in range(3)
        )
        for i, (kernel, stride) in enumerate(kernels):
            setattr(
                self.feature_extractor,
                f"conv{i}",
                torch.nn.Conv1d(channels if i else 1, channels, kernel, stride, bias=False),
            )
        self.feature_extractor.norm0 = torch.nn.GroupNorm(channels, channels)
        self.feature_projection.norm = torch.nn.LayerNorm(channels)
        self.feature_projection.projection = torch.nn.Linear(channels, width)
        conv = torch.nn.Conv1d(width, width, 8, padding=4, groups=4)
        self.positional_embedding.conv = torch.nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.norm = torch.nn.LayerNorm(width)
        layer = torch.nn.TransformerEncoderLayer(width, 12, 40, activation="gelu", batch_first=True)
        self.encoder = torch.nn.Module()
        self.encoder.layers = torch.nn.ModuleList(
            [layer, torch.nn.TransformerEncoderLayer(width, 12, 40, activation="gelu", batch_first=True)]
        )
        self.proj, self.label_embedding = torch.nn.Linear(width, 6), torch.nn.Embedding(5, 6)
        self.masked_spec_embed = torch.nn.Parameter(torch.rand(width))

    def forward(self, x_BN):
        gelu, x = torch.nn.functional.gelu, x_BN[:, None]
        for i in range(7):
            x = getattr(self.feature_extractor, f"conv{i}")(x)
            x = gelu(self.feature_extractor.norm0(x) if i == 0 else x)
        x = self.feature_projection.projection(self.feature_projection.norm(x.transpose(1, 2)))
        x = self.norm(x + gelu(self.positional_embedding.conv(x.transpose(1, 2))[..., :-1]).transpose(1, 2))
        states = [x]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return states


@pytest.mark.parametrize("wrapped", [True, False])
@torch.no_grad()
def test_hubert_soft(wrapped, tmp_path):
    torch.manual_seed(0)
    model = _Soft().eval()
    weights = {("module." if wrapped else "") + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"hubert": weights, "step": 1} if wrapped else weights, tmp_path / "soft.pt")
    assert published.detect(tmp_path / "soft.pt") == "bshall"
    encoder = sources.load(tmp_path / "soft.pt")
    for ours, theirs in zip(encoder(WAVES[:1]).states, model(WAVES[:1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_config_that_is_none(tmp_path):
    torch.save(named(tiny("Hubert")), tmp_path / "bare.pt")
    for text, message in (
        ("[1]", "expected keys with values"),
        ("a: [", "neither yaml nor json"),
        (json.dumps({"encoder_layers": 7}), "does not fit"),
    ):
        (tmp_path / "bare.yaml").write_text(text)
        with pytest.raises(StarError, match=message):
            sources.load(tmp_path / "bare.pt")


@pytest.mark.parametrize("kind", ["data2vec", "hubert"])
@torch.no_grad()
def test_files_of_s3prls_own_classes(kind, tmp_path):
    pytest.importorskip("s3prl")
    from dataclasses import asdict

    from star_upstream import compat

    compat.apply()
    sizes = {
        "conv_feature_layers": str(CONVS),
        "encoder_layers": 2,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 40,
        "encoder_attention_heads": 4,
        "conv_pos_groups": 4,
    }
    torch.manual_seed(0)
    if kind == "data2vec":
        from s3prl.upstream.data2vec.data2vec_model import Data2VecAudioConfig, Data2VecAudioModel

        config = Data2VecAudioConfig(
            **sizes, extractor_mode="layer_norm", conv_pos=15, pos_conv_depth=3, max_update=1, ema_anneal_end_step=1
        )
        model = Data2VecAudioModel(config)
    else:
        from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

        config = HubertConfig(**sizes, conv_pos=16, label_rate=50, final_dim=8)
        model = HubertModel(config, HubertPretrainingConfig(), [["a", "b"]])
    randomised(model)
    content = {"task_cfg": {"normalize": False}, "model_cfg": asdict(config), "model_weight": model.state_dict()}
    torch.save(content, tmp_path / "converted.pt")
    result = model.extract_features(WAVES[:1], padding_mask=None, mask=False)
    theirs = result["x"] if isinstance(result, dict) else result[0]
    ours = sources.load(tmp_path / "converted.pt", reference_padding=True)(WAVES[:1]).states[-1]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
