"""Every peer's recipe end to end on a tiny teacher: it trains, and killed and resumed it ends as unbroken."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import log, write_audio

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.formats import checkpoint
from star_upstream.training import distill, recipe

LAYERS, WIDTH = 3, 16
CONVS = ((8, 10, 5), (8, 3, 4), (8, 3, 4), (12, 2, 4))
SIZES = {"layers": LAYERS, "heads": 2, "ffn": 16, "position_kernel": 8, "position_groups": 4}
ABLATIONS = ("last_attention", "average_attention", "layer_wise", "intra_layer", "all_three")
PEERS = (
    *("fithubert", "fitw2v2", "maskhubert", "armhubert", "armhubert_s", "armhubert_s_100h"),
    *("armwavlm_s", "armwavlm_s_100h"),
    *(f"star_hubert_{name}_100h" for name in ABLATIONS),
)


class Killed(BaseException):
    """What no part of a run catches."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_audio(folder / "audio", 10)
    torch.manual_seed(0)
    teacher = Encoder(EncoderConfig(**{**SIZES, "heads": 4}, conv_layers=CONVS, width=WIDTH, head_width=4))
    checkpoint.save(folder / "teacher", teacher, {})
    return folder


def tiny(name, world):
    """The recipe with a student and batches of tests' size; its loss and all that makes the method stay."""
    values = strict.plain(recipe.load(name))
    student = values["student"]
    student |= {**SIZES, "width": 8, "head_width": 4}
    student["conv_layers"] = [*CONVS[:-1], (12 if student["projection"] else 8, 2, 4)]
    student["output_projection"] = WIDTH if student["output_projection"] else 0
    if student["reuse_attention"]:
        student["reuse_attention"] = student["reuse_attention"][:LAYERS]
    values["teacher"] = str(world / "teacher")
    values["data"] |= {
        "train": [str(world / "audio")],
        "valid_share": 0.2,
        "min_seconds": 0.4,
        "batch_items": 2,
        "workers": 0,
    }
    values["training"] |= {
        "epochs": None, "updates": 6, "accumulate": 2, "devices": 1, "precision": 32, "accelerator": "cpu",
        "log_every": 1, "validate_every": 3, "save_every": 2,
    }  # fmt: skip
    path = world / f"{name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return recipe.load(path)


@pytest.mark.parametrize("name", PEERS)
def test_a_recipe_trains_is_killed_and_goes_on(name, world, tmp_path, monkeypatch):
    loaded, taken = tiny(name, world), []
    whole = distill.run(loaded, tmp_path / "whole")

    def killing(self, batch):
        taken.append(batch)
        if len(taken) == 11:  # in the sixth update, after a state of the fourth
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(distill.Distillation, "taken", killing)
        with pytest.raises(Killed):
            distill.run(loaded, tmp_path / "broken")
    again = distill.run(loaded, tmp_path / "broken")
    assert log(tmp_path / "broken") == log(tmp_path / "whole")
    weights = [load_file(folder / "model.safetensors") for folder in (whole, again)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

    torch.manual_seed(0)
    fresh, trained = Encoder(loaded.student).state_dict(), checkpoint.load(again)
    still = [key for key in fresh if torch.equal(fresh[key], trained.state_dict()[key])]
    # attention alone leaves the last layer without work behind its map
    assert not still or ("attention_100h" in name and all(key.startswith(f"layers.{LAYERS - 1}.") for key in still))
    shown, frames = trained.exposed(trained(torch.randn(1, 16_000))), trained.config.feature_frames(16_000)
    fit = name.startswith("fit")
    assert len(shown) == (1 if fit else LAYERS) and shown[0].shape[1] == (frames // 2 * 2 if fit else frames)
    assert {x.shape[-1] for x in shown} == {8 if name.startswith("star") else WIDTH}
