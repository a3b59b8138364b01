"""Every kind of source through the one door: transformers folders, fairseq and WavLM files, torchaudio bundles, ours,
nothing."""

import argparse
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import CONVS, LENGTHS, STABLE, WAVES, check, tiny, transformers

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, sources


@pytest.mark.parametrize("variant", [{}, STABLE], ids=["group", "layer"])
def test_bin_weights_with_the_old_names_of_weight_norm(variant, tmp_path):
    model = tiny("Hubert", **variant)
    model.config.save_pretrained(tmp_path)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before)
        weights[f"hubert.{name}"] = tensor
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    check(sources.load(tmp_path, reference_padding=True), model)


def test_weights_in_parts(tmp_path):
    model = tiny("Wav2Vec2")
    model.config.save_pretrained(tmp_path)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, inside in parts.items():
        save_file({name: weights[name] for name in inside}, tmp_path / part)
    index = {"weight_map": {name: part for part, inside in parts.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    check(sources.load(tmp_path, reference_padding=True), model)
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StarError, match="file names of this folder"):
        sources.load(tmp_path)


@pytest.mark.parametrize(
    "variant, preprocessor, normalised",
    [
        ({}, None, False),
        (STABLE, None, True),
        ({}, '{"do_normalize": true}', True),
        (STABLE, '{"do_normalize": false}', False),
        ({}, "{}", True),
    ],
)
@torch.no_grad()
def test_waveform_normalisation_of_transformers_folders(variant, preprocessor, normalised, tmp_path):
    model = tiny("Wav2Vec2", **variant)
    model.save_pretrained(tmp_path)
    if preprocessor:
        (tmp_path / "preprocessor_config.json").write_text(preprocessor)
    encoder = sources.load(tmp_path, reference_padding=True)
    assert encoder.config.normalize_waveform == normalised
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalised, return_attention_mask=True)
    prepared = extractor(
        [wave[:n].numpy() for wave, n in zip(WAVES, LENGTHS)], sampling_rate=16000, padding=True, return_tensors="pt"
    )
    check(encoder, model, prepared.input_values)


def fairseq_name(name: str) -> str | None:
    """The name that fairseq gives a tensor of transformers' model; None where it has no such tensor."""
    pairs = (
        ("feature_projection.layer_norm.", "layer_norm."),
        ("feature_projection.projection.", "post_extract_proj."),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
        ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
        (".attention.gru_rel_pos_linear.", ".self_attn.grep_linear."),
        (".attention.gru_rel_pos_const", ".self_attn.grep_a"),
        (".attention.rel_attn_embed.", ".self_attn.relative_attention_bias."),
        (".attention.", ".self_attn."),
        (".feed_forward.intermediate_dense.", ".fc1."),
        (".feed_forward.output_dense.", ".fc2."),
        ("masked_spec_embed", "mask_emb"),
    )
    if ".layer_norm." in name and name.startswith("encoder.layers."):
        return name.replace(".layer_norm.", ".self_attn_layer_norm.")
    if name.startswith("feature_extractor.conv_layers."):
        return name.replace(".conv.", ".0.").replace(".layer_norm.", ".2.")
    for theirs, ours in pairs:
        if theirs in name:
            return name.replace(theirs, ours)
    return name


def fairseq_file(path, kind: str, variant: dict, style: str, normalize: bool, **extra):
    """A file as fairseq or WavLM's authors write it, made from a tiny transformers model, which is the reference of
    these tests."""
    model = tiny(kind, **variant)
    weights = {fairseq_name(name): tensor for name, tensor in model.state_dict().items()}
    if variant:  # layer norm of each convolution sits between two transpositions
        weights = {re.sub(r"(conv_layers\.\d+\.2)\.", r"\1.1.", name): tensor for name, tensor in weights.items()}
    options = {
        "extractor_mode": "layer_norm" if variant else "default",
        "conv_feature_layers": str(CONVS),
        "conv_bias": bool(variant),
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "encoder_layers": 2,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 40,
        "encoder_attention_heads": 4,
        "layer_norm_first": bool(variant),
        **extra,
    }
    if style == "cfg":
        content = {"args": None, "cfg": {"model": options, "task": {"normalize": normalize}}}
    elif style == "args":
        content = {"args": argparse.Namespace(**options, normalize=normalize), "best_loss": 1.0}
    else:  # WavLM
        content = {"cfg": options | {"normalize": normalize}}
    heads = (
        {"final_proj.weight": torch.zeros(3, 32), "label_embs_concat": torch.zeros(4, 3)} if kind == "Hubert" else {}
    )
    torch.save({**content, "model": weights | heads}, path)
    return model


@pytest.mark.parametrize("variant", [{}, STABLE], ids=["base", "large"])
@pytest.mark.parametrize("kind, style", [("Hubert", "cfg"), ("Wav2Vec2", "args"), ("WavLM", "own")])
def test_fairseq_and_wavlm_files(kind, style, variant, tmp_path):
    extra = (
        {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 16, "max_distance": 40}
        if kind == "WavLM"
        else {}
    )
    model = fairseq_file(tmp_path / "model.pt", kind, variant, style, False, **extra)
    encoder = sources.load(tmp_path / "model.pt", reference_padding=True)
    assert torch.equal(encoder.mask_vector, model.masked_spec_embed)
    check(encoder, model)


@pytest.mark.parametrize("style", ["cfg", "args", "own"])
@torch.no_grad()
def test_waveform_normalisation_of_fairseq_files(style, tmp_path):
    model = fairseq_file(tmp_path / "model.pt", "Wav2Vec2", STABLE, style, True)
    encoder = sources.load(tmp_path / "model.pt", reference_padding=True)
    assert encoder.config.normalize_waveform and encoder.config.normalize_epsilon == 1e-5
    prepared = torch.zeros_like(WAVES)
    for i, n in enumerate(LENGTHS):
        prepared[i, :n] = torch.nn.functional.layer_norm(WAVES[i, :n], (int(n),))
    check(encoder, model, prepared)


def test_fairseq_files_that_are_something_else(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"cfg": None, "args": None, "model": {"a": torch.zeros(1)}}, path)
    with pytest.raises(StarError, match="no configuration under 'cfg' or 'args'"):
        sources.load(path)
    torch.save({"cfg": {"model": {"x": 1}}, "model": {"w2v_encoder.proj.weight": torch.zeros(1)}}, path)
    with pytest.raises(StarError, match="fine-tuned for recognition"):
        sources.load(path)
    fairseq_file(path, "WavLM", {}, "own", False, relative_position_embedding=True, gru_rel_pos=False)
    with pytest.raises(StarError, match="without its gate is not supported"):
        sources.load(path)


def test_one_of_ours(tmp_path):
    encoder = Encoder(
        EncoderConfig(conv_layers=((8, 10, 5),), width=16, heads=2, head_width=8, ffn=8, layers=1, position_groups=2)
    )
    checkpoint.save(tmp_path / "ours", encoder, {}, torch.float16)
    loaded = sources.load(tmp_path / "ours", reference_padding=True)
    assert loaded.reference_padding and not loaded.training
    assert not any(p.requires_grad or p.dtype != torch.float32 for p in loaded.parameters())
    assert sources.load(str(tmp_path / "ours" / "config.json")).config == encoder.config
    with pytest.raises(StarError, match="holds its own configuration; leave out some.yaml"):
        sources.load(tmp_path / "ours", config="some.yaml")


def test_converting_a_transformers_folder(tmp_path):
    tiny("WavLM").save_pretrained(tmp_path / "theirs")
    origin = sources.convert(tmp_path / "theirs", tmp_path / "ours")["converted_from"]
    assert origin["format"] == "transformers" and set(origin["sha256"]) == {"config.json", "model.safetensors"}
    ours, theirs = checkpoint.load(tmp_path / "ours"), sources.load(tmp_path / "theirs")
    assert checkpoint.digest(ours) == checkpoint.digest(theirs) and torch.equal(ours.mask_vector, theirs.mask_vector)


def test_converting_one_of_ours_keeps_its_type_and_what_it_says_of_itself(tmp_path):
    encoder = Encoder(EncoderConfig(conv_layers=((8, 10, 5),), width=16, heads=2, head_width=8, ffn=8, layers=1))
    before = {"made_by": "star distill", "recipe": {"method": "star"}, "validation_loss": 1.5}

    def stored(folder):
        return {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        ours, copy, again, wide = (tmp_path / f"{short}_{name}" for name in ("ours", "copy", "again", "wide"))
        checkpoint.save(ours, encoder, before, dtype)
        sources.convert(ours, copy)
        written = checkpoint.describe(copy)["provenance"]
        assert stored(copy) == {dtype} and written["converted_from"]["path"] == str(ours)
        assert {name: written[name] for name in before} == before and sources.method(copy) == "star"
        sources.convert(copy, again)
        written = checkpoint.describe(again)["provenance"]
        assert written["converted_from"]["path"] == str(copy) and written["validation_loss"] == 1.5
        assert written["converted_from"]["converted_from"]["path"] == str(ours)
        sources.convert(ours, wide, dtype=torch.float32)
        assert stored(wide) == {torch.float32}
        assert len({checkpoint.digest(checkpoint.load(folder)) for folder in (ours, copy, again, wide)}) == 1
    with torch.no_grad():
        encoder.norm.weight[0] = 1e30
    checkpoint.save(tmp_path / "large", encoder, {})
    with pytest.raises(StarError, match="norm.weight has values that float16 has no room for"):
        sources.convert(tmp_path / "large", tmp_path / "small", dtype=torch.float16)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "bert"}, "model_type: 'bert' .known: hubert, wav2vec2, wavlm, .*. is not supported"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported"),
        ({"model_type": "wav2vec2-conformer"}, "model_type: 'wav2vec2-conformer'"),
        ({"num_hidden_layers": 3}, "does not fit its configuration"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 attention heads do not divide width 32"),
        ({"conv_dim": [16]}, "one value a convolution each"),
        ({"hidden_size": "32"}, "do not divide width '32'"),
    ],
)
def test_transformers_folders_that_do_not_fit(changes, message, tmp_path):
    tiny("Hubert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(StarError, match=message):
        sources.load(tmp_path)


def test_incomplete_and_damaged_transformers_folders(tmp_path):
    tiny("Hubert").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(StarError, match="model.safetensors: damaged"):
        sources.load(tmp_path)
    weights.unlink()
    with pytest.raises(StarError, match="no weights .model.safetensors or pytorch_model.bin. beside config.json"):
        sources.load(tmp_path)


@pytest.mark.parametrize(
    "source, message",
    [
        (
            "zzz",
            "zzz: no such file or folder, shipped or published checkpoint, torchaudio bundle or hub id (owner/name)",
        ),
        ("HUBERT_BAS", "did you mean 'hubert_base'"),
        ("dphubret", "did you mean 'dphubert'"),
        ("folder/model.pt", "folder/model.pt: no such file"),
        ("./a/b", "./a/b: no such file"),
    ],
)
def test_what_is_not_found_is_said_with_near_names(source, message):
    with pytest.raises(StarError) as error:
        sources.load(source)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(
        StarError, match="neither a checkpoint of star_upstream nor a folder of transformers .*it holds nothing"
    ):
        sources.load(tmp_path)
    (tmp_path / "a.wav").touch()
    with pytest.raises(StarError, match="it holds a.wav"):
        sources.load(tmp_path)


def test_a_hub_id_offline_says_what_to_fetch(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StarError) as error:
        sources.load("facebook/no-such-model-here")
    for part in (
        "could not be fetched",
        "config.json",
        "https://huggingface.co/facebook/no-such-model-here/tree/main",
        "give that folder",
    ):
        assert part in str(error.value)
