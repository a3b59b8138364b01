"""Folders that transformers' own classes write: every family, head, naming and variant, states beside theirs."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_transformers import SIZES, STABLE, check, check_alone, tiny, transformers

from star_upstream.errors import StarError
from star_upstream.formats import sources

FAMILIES = ["Hubert", "Wav2Vec2", "WavLM", "UniSpeech", "UniSpeechSat", "Data2VecAudio"]
HEADS = ["Model", "ForCTC", "ForPreTraining", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"]
TDNN = {
    "tdnn_dim": [12, 20],
    "tdnn_kernel": [3, 1],
    "tdnn_dilation": [1, 1],
    "xvector_output_dim": 8,
    "use_weighted_layer_sum": True,
}


def body(model):
    return getattr(model, model.base_model_prefix, model)


def write(model, folder, **options):
    """As transformers saves it, for waveforms that are not normalised."""
    model.save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_family_with_and_without_heads(kind, head, tmp_path):
    if not hasattr(transformers, kind + head):
        pytest.skip(f"transformers has no {kind}{head}")
    model = tiny(kind, head, **TDNN)
    write(model, tmp_path)
    check(sources.load(tmp_path, reference_padding=True), body(model))


VARIANTS = {
    "layer norm, post-norm": {"feat_extract_norm": "layer", "conv_bias": True},
    "layer norm, pre-norm": STABLE,
    "group norm, pre-norm": {"do_stable_layer_norm": True},
    "wide, one head, odd kernels": {
        "hidden_size": 48,
        "num_attention_heads": 1,
        "num_conv_pos_embeddings": 9,
        "conv_pos_kernel_size": 5,
    },
    "three convolutions of position": {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 6},
    "25 Hz": {"conv_stride": [5, 4, 4]},
}


@pytest.mark.parametrize(
    "kind, name",
    [(kind, n) for i, kind in enumerate(FAMILIES) for j, n in enumerate(VARIANTS) if (i + j) % 2 or i == 5],
)
def test_variants_alone_and_in_a_padded_batch(kind, name, tmp_path):
    model = tiny(kind, **VARIANTS[name])
    write(model, tmp_path)
    check(sources.load(tmp_path, reference_padding=True), model)
    check_alone(sources.load(tmp_path), model)


@pytest.mark.parametrize("variant", [{}, STABLE, {"feat_proj_layer_norm": False}], ids=["post", "pre", "no front norm"])
def test_a_batch_norm_before_the_positional_convolution(variant, tmp_path):
    model = tiny("Hubert", conv_pos_batch_norm=True, **variant)
    write(model, tmp_path)
    encoder = sources.load(tmp_path)
    assert encoder.config.position_norm == "batch"
    check(sources.load(tmp_path, reference_padding=True), model)
    check_alone(encoder, model)
    sources.convert(tmp_path, tmp_path / "ours")
    check_alone(sources.load(tmp_path / "ours"), model)


@pytest.mark.parametrize("kind", ["Wav2Vec2", "WavLM", "Data2VecAudio"])
@pytest.mark.parametrize("size", [None, 20])
def test_an_adapter_after_the_encoder_is_left_out_and_said(kind, size, tmp_path, capsys):
    model = tiny(kind, add_adapter=True, output_hidden_size=size, num_adapter_layers=2)
    write(model, tmp_path)
    model.adapter = None
    check(sources.load(tmp_path, reference_padding=True), model)
    assert "read without the adapter" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "UniSpeech", "UniSpeechSat"])
def test_attention_adapters_are_part_of_the_layers(kind, tmp_path):
    model = tiny(kind, adapter_attn_dim=6, **STABLE)
    write(model, tmp_path)
    assert sources.load(tmp_path).config.adapter == 6
    check(sources.load(tmp_path, reference_padding=True), model)
    check_alone(sources.load(tmp_path), model)


@pytest.mark.parametrize("kind, prefix", [("Hubert", ""), ("WavLM", "module."), ("UniSpeechSat", "model.wrapped.")])
def test_bin_files_with_wrappers_and_the_old_names_of_weight_norm(kind, prefix, tmp_path):
    model = tiny(kind)
    model.config.save_pretrained(tmp_path)
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for new, before in old.items():
            name = name.replace(new, before)
        weights[prefix + name] = tensor
    torch.save(weights, tmp_path / "pytorch_model.bin")
    check(sources.load(tmp_path, reference_padding=True), model)


@pytest.mark.parametrize("kind", FAMILIES)
def test_shards_as_transformers_writes_them(kind, tmp_path):
    model = tiny(kind, "ForCTC")
    write(model, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    check(sources.load(tmp_path, reference_padding=True), body(model))


def test_half_precision_weights_are_widened(tmp_path):
    model = tiny("WavLM").half()
    write(model, tmp_path)
    check(sources.load(tmp_path, reference_padding=True), model.float())


def test_two_encoders_in_one_file_are_named(tmp_path):
    model = tiny("Hubert")
    model.config.save_pretrained(tmp_path)
    weights = {f"{who}.{name}": t.clone() for who in ("teacher", "student") for name, t in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(StarError, match="holds 2 encoders, with names that begin 'student.', 'teacher.'"):
        sources.load(tmp_path)


@pytest.mark.parametrize("kind", ["Wav2Vec2Conformer", "SEW", "SEWD", "Wav2Vec2Bert"])
def test_families_with_another_encoder_are_refused_by_name(kind, tmp_path):
    config = getattr(transformers, f"{kind}Config")(hidden_size=SIZES["hidden_size"])
    config.save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        StarError, match=f"model_type: '{config.model_type}' .known: .*data2vec-audio. is not supported"
    ):
        sources.load(tmp_path)


def test_a_batch_norm_without_its_statistics_is_named(tmp_path):
    tiny("Hubert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"conv_pos_batch_norm": True}))
    with pytest.raises(StarError, match="no batch norm encoder.pos_conv_embed.batch_norm"):
        sources.load(tmp_path)


def test_a_port_with_fairseqs_final_projection(tmp_path):
    """As ports of ContentVec have it: HubertModel with a linear map of the pre-training beside it."""
    model = tiny("Hubert")
    model.final_proj = torch.nn.Linear(model.config.hidden_size, 7)
    write(model, tmp_path)
    check(sources.load(tmp_path, reference_padding=True), model)


@pytest.mark.parametrize(
    "file, key, value, message",
    [
        ("config", "do_stable_layer_norm", "false", "do_stable_layer_norm: expected true or false, got 'false'"),
        ("config", "layer_norm_eps", float("nan"), "norm_epsilon: must be 0 or more, got nan"),
        ("preprocessor_config", "do_normalize", "false", "do_normalize: expected true or false, got 'false'"),
        ("preprocessor_config", "sampling_rate", 8000, "sampling_rate: the model hears audio at 8000 Hz"),
    ],
)
def test_options_that_would_be_taken_for_others(file, key, value, message, tmp_path):
    write(tiny("Hubert"), tmp_path)
    path = tmp_path / f"{file}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(StarError, match=message):
        sources.load(tmp_path)


@pytest.mark.parametrize("change, message", [
    (lambda w: w.to(torch.int8), "is of type int8, where weights are floating-point numbers"),
    (lambda w: w.to(torch.complex64), "is of type complex64"),
    (lambda w: w / 0, "holds values that are no numbers"),
])  # fmt: skip
def test_weights_that_are_none(change, message, tmp_path):
    model = tiny("Hubert")
    write(model, tmp_path)
    name = "encoder.layers.1.attention.q_proj.weight"
    save_file(model.state_dict() | {name: change(model.state_dict()[name])}, tmp_path / "model.safetensors")
    with pytest.raises(StarError, match=f"layers.1.attention.query.weight {message}"):
        sources.load(tmp_path)
