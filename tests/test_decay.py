"""Weight decay by the rule of s3prl's optimizer: what has it comes out of the names that the authors' modules have."""

import pytest
import torch

from star_upstream.encoder import Encoder, EncoderConfig, RelativePosition
from star_upstream.formats.published import names, students
from star_upstream.training import decay, optimizer, recipe

TINY = {
    "conv_layers": ((8, 10, 5), (8, 3, 2)),
    "width": 16,
    "position_kernel": 4,
    "position_groups": 2,
    "layers": 2,
    "heads": 2,
}
TINY |= {"head_width": 8, "ffn": 12}


def decayed(module: torch.nn.Module, rule: str) -> set[str]:
    chosen = {id(p) for p in decay.split([module], rule)[0]}
    return {name for name, p in module.named_parameters() if id(p) in chosen}


def test_what_is_decayed_in_starhubert():
    with torch.device("meta"):
        student = Encoder(recipe.load("star_hubert").student)
    front = [*(f"frontend.convs.{i}.weight" for i in range(9)), "frontend.norms.0.weight", "frontend.norm.weight"]
    position = ["position.direction", "position.magnitude", "norm.weight"]
    parts = [
        *(f"attention.{n}" for n in ("query", "key", "value", "output")),
        "attention_norm",
        "ffn_in",
        "ffn_out",
        "ffn_norm",
    ]
    layers = [f"layers.{i}.{part}.weight" for i in range(12) for part in parts]
    assert decayed(student, "s3prl") == {*front, *position, *layers}
    left_out = {name for name, _ in student.named_parameters()} - {*front, *position, *layers}
    assert all(name.endswith("bias") for name in left_out) and len(left_out) == 4 + 12 * 8
    norms = {name for name in (*front, *position, *layers) if "norm" in name}
    assert decayed(student, "matrices") == {*front, *position, *layers} - norms


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_on_s3prls_optimizer_have_its_decay(name):
    config = recipe.load(name).training
    published = name.startswith(
        ("star_hubert", "star_wavlm", "distilhubert", "distilwav2vec", "fit", "maskhubert", "armhubert", "armwavlm")
    )
    assert (config.decay, config.weight_decay) == ("s3prl", 0.01) if published else config.decay == "matrices"


def test_names_lead_back_to_ours():
    config = EncoderConfig(
        **TINY,
        relative_position=RelativePosition(total_heads=2),
        output_projection=3,
        conv_norm="layer",
        conv_bias=True,
    )
    own = {f"student.{name}": p for name, p in Encoder(config).named_parameters()}
    theirs = {decay.authors_name(name): p for name, p in own.items()}
    assert len(theirs) == len(own) and not any(name.startswith("student.") for name in theirs)
    back = names.rename(theirs, students._TABLE, (), "")
    assert {f"student.{name}": id(p) for name, p in back.items()} == {name: id(p) for name, p in own.items()}
    # the one matrix without: its name holds the word
    assert "relative_position.embedding.weight" not in decayed(Encoder(config), "s3prl")
    assert decay.authors_name("loss.losses.hint.maps.0.weight") == "loss.losses.hint.maps.0.weight"


def test_groups_are_those_of_s3prls_optimizer_on_its_distilhubert():
    optimizers = pytest.importorskip("s3prl.optimizers")
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    sizes = {
        "encoder_layers": 2,
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 12,
        "encoder_attention_heads": 2,
        "conv_pos": 4,
    }
    sizes |= {"conv_pos_groups": 2, "final_dim": 16, "extractor_conv_feature_layers": "[(8, 10, 5), (8, 3, 2)]"}
    theirs = DistillerModel(DistillerConfig({**sizes, "n_tasks": 2, "pred_layer_id": [1, 2]}))
    places = {id(p): name for name, p in theirs.named_parameters()}
    groups = optimizers.get_grouped_parameters([theirs])
    ours = Encoder(EncoderConfig(**TINY, projection_norm=False, prediction_layers=(1, 2)))
    found = optimizer.parameter_groups([ours], 0.01, "s3prl")
    for their_group, our_group in zip(groups, found, strict=True):
        chosen = {id(p) for p in our_group["params"]}
        renamed = {decay.authors_name(name) for name, p in ours.named_parameters() if id(p) in chosen}
        assert renamed == {places[id(p)] for p in their_group["params"]}
        assert their_group["weight_decay"] == our_group["weight_decay"]
    assert len(groups[0]["params"]) > len(groups[1]["params"]) > 0
