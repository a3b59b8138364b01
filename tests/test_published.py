"""Other authors' files: the golden outputs of their own code, and what is refused."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_student import OPTIONS, student, student_weights
from torch.nn.utils.rnn import pad_sequence

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, published, sources
from star_upstream.formats.published import known, lighthubert, pickles, torchaudio_style

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = {
    **{kind: kind for kind in ("starhubert", "armhubert", "maskhubert", "dphubert", "dpwavlm")},
    "starhubert_course": "starhubert",
    "armhubert_equal_width": "armhubert",
    "fithubert": "fithubert",
    "fithubert_equal_width": "fithubert",
    "fithubert_prediction": "fithubert",
    "distilhubert": "distilhubert",
    "distilhubert_one_head": "distilhubert",
    "lighthubert": "lighthubert",
    "lighthubert_stage1": "lighthubert",
}
"""Folders of tests/golden (its README says how they were made) and their formats."""
SUBNET = {"lighthubert": GOLDEN / "lighthubert" / "lighthubert.yaml"}


def file_of(folder: str) -> Path:
    return next(path for path in (GOLDEN / folder).iterdir() if path.suffix in (".ckpt", ".pth", ".pt"))


def golden(folder: str, reference_padding: bool = False) -> tuple[Encoder, list[torch.Tensor], dict[str, torch.Tensor]]:
    """The encoder in the file, its waveforms, and what the authors' code gives for them by name."""
    path = file_of(folder)
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path.with_suffix(".npz")).items()}
    waves = [arrays.pop(name) for name in sorted(name for name in arrays if name.startswith("wav"))]
    arrays.pop("lengths", None)
    return published.load(path, SUBNET.get(folder), reference_padding), waves, arrays


def named(encoder: Encoder, waves: list[torch.Tensor], kind: str) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Everything that the encoder gives for a padded batch, under the names of the golden files; and its valid
    frames."""
    output = encoder(pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves]))
    exposed = encoder.exposed(output)
    given = {
        "hidden_state": exposed,
        "layer": output.states[1:],
        "projection": output.projections or output.predictions or [],
    }
    if kind == "distilhubert":
        given["hidden_state"] = [output.features_BTD, *output.states[1:], *output.predictions]
    values = {f"{name}_{i}": state for name, states in given.items() for i, state in enumerate(states)}
    return {**values, "last_hidden_state": exposed[-1], "paper": exposed[-1]}, output.lengths_B.tolist()


def compare(ours: dict[str, torch.Tensor], lengths: list[int], theirs: dict[str, torch.Tensor]) -> None:
    """Valid frames are theirs within 1e-4; every number that they give is compared."""
    for name, wanted in theirs.items():
        found = ours[name]
        wanted = (
            wanted if wanted.shape == found.shape else wanted.transpose(0, 1)
        )  # STaRHuBERT's last state: frames first
        assert found.shape == wanted.shape, name
        reduction = round(max(lengths) / found.shape[1])  # FitHuBERT's layers have half of the frames
        for i, frames in enumerate(lengths):
            valid = slice(frames // max(1, reduction))
            torch.testing.assert_close(
                found[i, valid], wanted[i, valid], atol=2e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("folder, kind", FOLDERS.items())
@torch.no_grad()
def test_golden_states(folder, kind):
    encoder, waves, theirs = golden(folder, reference_padding=True)
    assert not encoder.training and published.detect(file_of(folder), SUBNET.get(folder)) == kind
    together = {name: value for name, value in theirs.items() if not name.startswith("alone")}
    compare(*named(encoder, waves, kind), together)
    assert (
        encoder.config.exposed[0] == sum(name.startswith("hidden_state") for name in together)
        or encoder.config.exposed[0] == 1
    )


@pytest.mark.parametrize("folder, kind", FOLDERS.items())
@torch.no_grad()
def test_default_padding_gives_what_the_authors_give_for_one_utterance(folder, kind):
    encoder, waves, theirs = golden(folder)
    reference = golden(folder, reference_padding=True)[0]
    ours, _lengths = named(encoder, waves, kind)
    for i, wave in enumerate(waves):
        alone, frames = named(reference, [wave], kind)
        if prefix := next(
            (name.partition("_")[0] for name in theirs if name.startswith((f"alone{i}_", "alone_")) and i), None
        ):
            given = {name.removeprefix(f"{prefix}_"): x for name, x in theirs.items() if name.startswith(f"{prefix}_")}
            if prefix != "alone" or i == 1:  # files with one utterance alone hold the second
                compare(alone, frames, given)
        compare({name: x[i : i + 1, : alone[name].shape[1]] for name, x in ours.items()}, frames, alone)


@pytest.mark.parametrize("folder, kind", FOLDERS.items())
@torch.no_grad()
def test_conversion_round_trip(folder, kind, tmp_path):
    path, config = file_of(folder), SUBNET.get(folder)
    before, waves, _ = golden(folder)
    provenance = sources.convert(path, tmp_path / "ours", config)
    origin = checkpoint.describe(tmp_path / "ours")["provenance"]["converted_from"]
    assert provenance["converted_from"] == origin and origin["format"] == kind and origin["path"] == str(path)
    assert re.fullmatch("[0-9a-f]{64}", origin["sha256"])
    after = checkpoint.load(tmp_path / "ours")
    assert checkpoint.digest(before) == checkpoint.digest(after)
    for ours, theirs in zip(before.exposed(before(waves[0][None])), after.exposed(after(waves[0][None]))):
        assert torch.equal(ours, theirs)


def test_yaml_is_the_one_of_the_same_stem_or_the_only_one(tmp_path):
    source = GOLDEN / "starhubert"
    file = tmp_path / "model.ckpt"
    file.write_bytes((source / "starhubert.ckpt").read_bytes())
    with pytest.raises(StarError, match="put it beside as model.yaml .the folder holds none"):
        published.load(file)
    text = (source / "starhubert.yaml").read_text()
    (tmp_path / "only.yaml").write_text(text)
    published.load(file)
    (tmp_path / "second.yaml").write_text("distiller: {}")
    with pytest.raises(StarError, match="the folder holds only.yaml, second.yaml"):
        published.load(file)
    published.load(file, config=tmp_path / "only.yaml")
    (tmp_path / "model.yaml").write_text(text)
    published.load(file)
    for wrong, message in (("distiller: [", "neither yaml nor json"), ("train: {}", "no section 'distiller'")):
        (tmp_path / "model.yaml").write_text(wrong)
        with pytest.raises(StarError, match=message):
            published.load(file)


def test_a_tiny_student_of_our_own_loads(tmp_path):
    path = student(tmp_path)
    assert published.detect(path) == "starhubert"
    encoder = published.load(path)
    assert (
        encoder.config.conv_layers == ((8, 10, 5), (16, 3, 2), (16, 3, 2)) and encoder.config.hidden_states == "layers"
    )
    assert torch.equal(encoder.layers[0].ffn_in.weight, student_weights()["student_model.encoder.layers.0.fc1.weight"])


@pytest.mark.parametrize(
    "options, weights, kind",
    [
        ({}, {}, "starhubert"),
        ({"layerwise_proj": True, "pred_head_final_dim": 16}, {}, "maskhubert"),
        (
            {"layerwise_proj": True, "pred_head_final_dim": 16, "enable_tr_layer": False},
            {"mask_emb": (16,)},
            "maskhubert",
        ),
        ({"layerwise_proj": True, "pred_head_final_dim": 16, "reuse_pattern": "[True]"}, {}, "armhubert"),
        ({"layerwise_proj": True, "pred_head_final_dim": 16, "n_mels": 0}, {}, "fithubert"),
        (
            {"layerwise_proj": True, "pred_head_final_dim": 9, "reuse_pattern": "[True]"},
            {"proj_head.0.lin_proj.weight": (9, 16), "proj_head.0.lin_proj.bias": (9,)},
            "armhubert",
        ),
    ],
)
def test_what_a_students_file_is_its_yaml_says_first(tmp_path, options, weights, kind):
    """Without heads (equal widths) or reused maps the tensors have the same names in all of them."""
    path = student(tmp_path, options, {f"student_model.{name}": torch.ones(shape) for name, shape in weights.items()})
    assert published.detect(path) == kind
    config = published.load(path).config
    expected = {"fithubert": "last", "armhubert": "projections" if weights else "layers"}.get(kind, "layers")
    assert config.hidden_states == expected and config.exposed[1] == options.get("pred_head_final_dim", 16)
    assert (config.reuse_attention is not None) == (kind == "armhubert")
    provenance = sources.convert(path, tmp_path / "ours")
    assert provenance["converted_from"]["format"] == kind


@pytest.mark.parametrize(
    "folder, change, message",
    [
        ("fithubert", {"tr_layer_type": "fc1"}, "tr_layer_type: 'fc1' is not supported"),
        ("fithubert", {"tr_layer_index": 1}, "tr_layer_index: 1 .known: 0. is not supported"),
        (
            "fithubert",
            {"required_seq_len_multiple": 4},
            "required_seq_len_multiple: 4 with time reduction is not supported",
        ),
        ("fithubert", {"tr_reduce_factor": 3}, "time_reduction.weight has shape"),
        ("fithubert", {"n_mels": 80}, "n_mels: 80 is not supported"),
        ("fithubert_prediction", {"pred_layer_id": "[x]"}, "pred_layer_id: expected a list"),
        ("armhubert_equal_width", {"reuse_pattern": "[True, False]"}, "reuse_attention: expected 4 values"),
    ],
)
def test_students_that_are_refused(tmp_path, folder, change, message):
    path = file_of(folder)
    content = yaml.safe_load(path.with_suffix(".yaml").read_text())
    config = tmp_path / "other.yaml"
    config.write_text(yaml.safe_dump({"distiller": content["distiller"] | change}))
    with pytest.raises(StarError, match=message):
        published.load(path, config)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"embed_dim": 256}, "subnet.embed_dim: expected a number up to 128, got 256"),
        ({"embed_dim": 100}, "positional convolution cannot be cut to width 100 in 8 groups"),
        (
            {"layer_num": 5, "heads_num": [1] * 5, "ffn_embed": [96] * 5},
            "a subnet has 6, 7, 8, 9, 10, 11, 12 layers of 12, got 5 of 12",
        ),
        ({"heads_num": [1] * 9}, "subnet.heads_num: expected 10 numbers"),
        ({"heads_num": [3] * 10}, "up to 2 heads and 192 FFN units fit"),
        ({"slide_wsz": [32] * 10}, "subnet.slide_wsz: .*is not supported"),
        (
            None,
            "Supernet-Small.yaml.: which subnet is meant is not in the file; give as config a yaml with a section "
            "'subnet'|supernet",
        ),
    ],
)
def test_subnets_that_a_supernet_does_not_hold(tmp_path, change, message):
    path, config = file_of("lighthubert"), None
    if change is not None:
        content = yaml.safe_load(SUBNET["lighthubert"].read_text())
        config = tmp_path / "subnet.yaml"
        config.write_text(yaml.safe_dump({"subnet": content["subnet"] | change}))
    with pytest.raises(StarError, match=message):
        published.load(path, config)


@torch.no_grad()
def test_fewer_layers_of_a_supernet_are_those_that_the_authors_keep(tmp_path):
    """6 of 12 are layers 1, 2, 5, 6, 9 and 10; FFN ratios may stand in place of units."""
    content = yaml.safe_load(SUBNET["lighthubert"].read_text())["subnet"]
    subnet = {"embed_dim": 128, "layer_num": 6, "heads_num": [2] * 6, "ffn_ratio": [2.0] * 6}
    config = tmp_path / "subnet.yaml"
    config.write_text(yaml.safe_dump({"subnet": subnet}))
    encoder = published.load(file_of("lighthubert"), config)
    weights = torch.load(file_of("lighthubert"), weights_only=True)["model"]
    assert encoder.config.layers == 6 and encoder.config.ffn == (256,) * 6 and content["layer_num"] == 10
    for layer, place in zip(encoder.layers, (0, 1, 4, 5, 8, 9)):
        assert torch.equal(layer.ffn_in.weight, weights[f"encoder.layers.{place}.fc1.weight"])


@pytest.mark.parametrize("kind", ["small", "base"])
def test_a_published_supernet_is_cut_to_the_subnet_that_s3prl_takes(kind):
    width, heads, units, layers = lighthubert.SUBNETS[kind]
    config = EncoderConfig(width=width, heads=heads, ffn=units, layers=layers)
    with torch.device("meta"):
        assert sum(p.numel() for p in Encoder(config).parameters()) == known.KNOWN[f"lighthubert_{kind}"].parameters


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task_emb_type": "concat"}, "task_emb_type: 'concat' is not supported"),
        ({"attention_type": "sparse"}, "attention_type: 'sparse' is not supported"),
        ({"out_layer_type": "self-hidden"}, "out_layer_type: 'self-hidden' is not supported"),
        ({"encoder_attention_heads": 5}, "5 attention heads do not divide width 48"),
        ({"pred_layer_id": [4, 4, 12]}, "prediction_layers: expected different layers"),
        ({"final_dim": 50}, "predictions.each.0.* has shape"),
        ({"extractor_conv_feature_layers": "exit()"}, "extractor_conv_feature_layers: expected a list of numbers"),
    ],
)
def test_distillers_that_are_refused(tmp_path, change, message):
    content = pickles.read(file_of("distilhubert"))
    config = content["Config"] | {"distiller": content["Config"]["distiller"] | change}
    torch.save({"Distiller": content["Distiller"], "Config": config}, tmp_path / "other.ckpt")
    with pytest.raises(StarError, match=message):
        published.load(tmp_path / "other.ckpt")


def test_a_distiller_without_heads(tmp_path):
    content = pickles.read(file_of("distilhubert"))
    weights = {name: x for name, x in content["Distiller"].items() if not name.startswith("output_layer.")}
    config = {"distiller": content["Config"]["distiller"] | {"out_layer_type": "none"}}
    torch.save({"Distiller": weights, "Config": config}, tmp_path / "other.ckpt")
    assert published.load(tmp_path / "other.ckpt").predictions is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder_layers": 2}, "does not fit its configuration"),
        ({"encoder_layers": "1"}, "layers: expected int, got '1'"),
        ({"encoder_ffn_embed_dim": 13}, "fc1|ffn_in.weight has shape [12, 16]"),
        ({"encoder_attention_heads": 3}, "encoder_attention_heads: 3 attention heads do not divide width 16"),
        ({"activation_fn": "relu"}, "activation_fn: 'relu' is not supported"),
        ({"layer_type": "conformer"}, "layer_type: 'conformer' is not supported"),
        (
            {"enable_tr_layer": True, "tr_layer_type": "conv1d"},
            "enable_tr_layer: True, but the file has no time-reduction layer",
        ),
        ({"extractor_mode": "mel"}, "extractor_mode: 'mel' is not supported"),
        ({"conv_feature_layers": "[(8, 10), (16, 3, 2)]"}, "conv_layers[0]: expected [int, int, int]"),
        ({"dropout": 2.0}, "dropout: must be at least 0 and below 1"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(StarError) as error:
        published.load(student(tmp_path, options))
    assert message.split("|")[-1] in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_part_of_a_model_is_named(tmp_path):
    with pytest.raises(StarError, match="tensor 'encoder.adapter.weight' belongs to no part"):
        published.load(student(tmp_path, weights={"student_model.encoder.adapter.weight": torch.zeros(1)}))


def test_files_in_no_format(tmp_path):
    path = tmp_path / "file.ckpt"
    for content, message in (
        (
            {"state_dict": {"layer.weight": torch.zeros(2)}},
            "in none of the formats starhubert.*it holds the keys state_dict",
        ),
        ([torch.zeros(1)], "it holds a list"),
    ):
        torch.save(content, path)
        assert published.detect(path) is None
        with pytest.raises(StarError, match=message):
            published.load(path)
    for data in (b"", b"RIFF....WAVE", b"\x80\x02not a pickle", b"PK\x03\x04 cut"):
        path.write_bytes(data)
        with pytest.raises(StarError, match="damaged|cannot be read|an empty file|a sound file|was cut off"):
            published.load(path)
    path.write_bytes(b"RIFF....WAVE")
    assert published.detect(path) is None
    whole = student(tmp_path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StarError, match="a file that was cut off"):
        published.load(path)
    with pytest.raises(StarError, match="cannot be read .No such file"):
        published.load(tmp_path / "absent.ckpt")


def test_config_goes_only_with_the_formats_that_need_one():
    with pytest.raises(StarError, match="a dphubert file holds its own configuration"):
        published.load(GOLDEN / "dphubert/dphubert.pth", config="some.yaml")


ODD = [None, "x", "", -1, 0, 3, 1.5, True, [], [1], {}, {"a": 1}, [[0]] * 4]


def loads_or_says_why(load) -> None:
    """An odd value gives a model or one clear line, and never another exception."""
    try:
        assert isinstance(load(), Encoder)
    except StarError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("key", [*OPTIONS, "extractor_mode", "layer_norm_first", "dropout", "pred_head_final_dim"])
def test_odd_values_in_a_yaml(tmp_path, key):
    for value in ODD:
        path = student(tmp_path, {key: value})
        loads_or_says_why(lambda path=path: published.load(path))


@pytest.mark.parametrize("kind", ["dphubert", "dpwavlm"])
def test_odd_values_in_a_pruned_models_configuration(kind):
    content = torch.load(file_of(kind), weights_only=True)
    for key in content["config"]:
        for value in ODD:
            odd = content | {"config": content["config"] | {key: value}}
            loads_or_says_why(lambda odd=odd: torchaudio_style.load_pruned(odd, "file", False))
    for key in content["config"]:
        if not key.endswith(("_layer_drop", "aux_num_out")) and "_prune_" not in key:
            rest = {name: value for name, value in content["config"].items() if name != key}
            with pytest.raises(StarError, match=f"config has no '{key}'|expected 4 numbers|head"):
                torchaudio_style.load_pruned(content | {"config": rest}, "file", False)


def test_lightnings_hparams_beside_a_student(tmp_path):
    """Read where it holds the architecture; passed over where another yaml does; named where it is all there is."""
    shutil.copy(file_of("starhubert"), tmp_path / "a.ckpt")
    options = yaml.safe_load(file_of("starhubert").with_suffix(".yaml").read_text())
    (tmp_path / "hparams.yaml").write_text("cfg:\n  train: {num_epochs: 1}\n")
    with pytest.raises(StarError, match="hparams.yaml: Lightning's record of a training, without the architecture"):
        published.load(tmp_path / "a.ckpt")
    wanted = published.load(file_of("starhubert")).config
    (tmp_path / "star.yaml").write_text(yaml.safe_dump(options))
    assert published.load(tmp_path / "a.ckpt").config == wanted
    (tmp_path / "star.yaml").unlink()
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump({"cfg": options}))
    assert published.load(tmp_path / "a.ckpt").config == wanted
