"""What the optimizer decays, also by the rule of s3prl's, which goes by the names in the authors' modules; and its
learning rate."""

import math
import re

import pytest
import torch

from star_upstream.encoder import Encoder, EncoderConfig, RelativePosition
from star_upstream.formats.published import distiller, names, students
from star_upstream.training import optimizer, recipe
from star_upstream.training.config import TrainingConfig

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
    chosen = {id(p) for p in optimizer.parameter_groups([module], 0.01, rule)[0]["params"]}
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


def test_what_is_decayed_goes_by_the_authors_names():
    config = EncoderConfig(
        **TINY,
        relative_position=RelativePosition(total_heads=2),
        output_projection=3,
        conv_norm="layer",
        conv_bias=True,
    )
    own = dict(Encoder(config).named_parameters())
    theirs = names.rename(own, names.backwards(students.TABLE), (), "")
    assert len(theirs) == len(own)
    words = ("bias", "LayerNorm.weight")
    wanted = {id(p) for name, p in theirs.items() if not any(word in name for word in words)}
    assert {id(own[name]) for name in decayed(Encoder(config), "s3prl")} == wanted
    # the one matrix without: its name holds the word
    assert "encoder.layers.0.self_attn.relative_attention_bias.weight" in theirs
    assert names.rename(theirs, students.TABLE, (), "").keys() == own.keys()


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
        mine = {name: p for name, p in ours.named_parameters() if id(p) in chosen}
        renamed = names.rename(mine, names.backwards(distiller.TABLE), (), "")
        joint = {re.sub(r"output_layer\.2\.\d", "output_layer.2", name) for name in renamed}
        assert joint == {places[id(p)] for p in their_group["params"]}
        assert their_group["weight_decay"] == our_group["weight_decay"]
    assert len(groups[0]["params"]) > len(groups[1]["params"]) > 0


def test_biases_and_norms_have_no_weight_decay():
    encoder = Encoder(EncoderConfig(**TINY))
    decayed, others = optimizer.parameter_groups([encoder], 0.01)
    names = {id(p): name for name, p in encoder.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert all(names[id(p)].endswith(("bias", "norm.weight", "norms.0.weight")) for p in others["params"])
    assert not any("norm" in names[id(p)] or "bias" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)


@pytest.mark.parametrize(
    ("schedule", "share", "expected"),
    [
        ("cosine", 0.0, 0.0),
        ("cosine", 0.1, 0.5),
        ("cosine", 0.2, 1.0),
        ("cosine", 0.4, 0.5 + 0.5 * math.cos(math.pi / 4)),
        ("cosine", 0.6, 0.5),
        ("cosine", 1.0, 0.0),
        ("cosine", 1.5, 0.0),
        ("linear", 0.1, 0.5),
        ("linear", 0.6, 0.5),
        ("linear", 0.8, 0.25),
    ],
)
def test_schedule(schedule, share, expected):
    config = TrainingConfig(updates=10, learning_rate=3.0, warmup=0.2, schedule=schedule)
    assert optimizer.rate(share, config) == pytest.approx(3.0 * expected, abs=1e-12)
