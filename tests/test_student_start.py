"""A student that starts as another one behind its front end: at first the front end alone learns, then everything,
and a run resumes."""

import dataclasses

import pytest
import torch
from tiny_runs import write_audio

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.training import distill, recipe, student
from star_upstream.training.config import Recipe

SHAPE = {
    "position_kernel": 16, "position_groups": 4, "layers": 2, "heads": 2, "head_width": 8, "ffn": 24, "width": 16,
    "projection": False, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
CONVS = {"conv_layers": [[8, 10, 5], [16, 8, 8], [16, 8, 8]]}
MEL = {**SHAPE, "frontend": "mel", "mel_bins": 20, "conv_layers": [[16, 3, 1], [16, 3, 2]]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_audio(folder / "audio", 12)
    for seed, name in enumerate(("teacher", "trained")):
        torch.manual_seed(seed)
        checkpoint.save(folder / name, Encoder(strict.build(EncoderConfig, SHAPE | CONVS)), {})
    return folder


def make(world, updates=10, **training) -> Recipe:
    values = {
        "teacher": str(world / "teacher"),
        "student": MEL,
        "loss": {"star": {}},
        "data": {
            "train": [str(world / "audio")], "valid_share": 0.2, "min_seconds": 0.4, "max_seconds": 2.0,
            "batch_seconds": 4.0, "workers": 0,
        },
        "training": {
            "updates": updates, "log_every": 1, "validate_every": 100, "save_every": 2, "accelerator": "cpu",
            "initialise_from_student": {"source": str(world / "trained"), "frontend_first": 0.5}, **training,
        },
    }  # fmt: skip
    return strict.build(Recipe, values)


def test_at_first_the_front_end_alone_learns(world, tmp_path, monkeypatch):
    trained = checkpoint.load(world / "trained").state_dict()
    seen = []
    before = distill.Distillation.before_update

    def watched(self, share):
        seen.append((share, {name: value.clone() for name, value in self.student.state_dict().items()}))
        before(self, share)

    monkeypatch.setattr(distill.Distillation, "before_update", watched)
    distill.run(make(world), tmp_path / "run")
    assert [round(share, 2) for share, _ in seen] == [round(0.1 * i + 0.05, 2) for i in range(10)]
    behind = [name for name in trained if not name.startswith("frontend.")]
    for _, state in seen[:6]:  # what updates 1 to 5 left
        assert all(torch.equal(state[name], trained[name]) for name in behind)
    assert not torch.equal(seen[5][1]["frontend.convs.0.weight"], seen[1][1]["frontend.convs.0.weight"])
    assert not torch.equal(seen[7][1]["layers.0.ffn_in.weight"], trained["layers.0.ffn_in.weight"])
    kept = checkpoint.describe(tmp_path / "run/best")["provenance"]["recipe"]["training"]["initialise_from_student"]
    assert kept["frontend_first"] == 0.5 and kept["source"].endswith("/trained") and not kept["source"].startswith("/")


def test_a_run_that_stops_in_the_first_part_goes_on_as_if_it_had_not(world, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    distill.run(make(world), tmp_path / "whole")
    before, stop = distill.Distillation.before_update, [5]  # state is there of update 4

    def cut(self, share):
        stop[0] -= 1
        if stop[0] < 0:
            raise Stop
        before(self, share)

    with monkeypatch.context() as patch:
        patch.setattr(distill.Distillation, "before_update", cut)
        with pytest.raises(Stop):
            distill.run(make(world), tmp_path / "broken")
    distill.run(make(world), tmp_path / "broken")
    weights = [(tmp_path / run / "last/model.safetensors").read_bytes() for run in ("whole", "broken")]
    assert weights[0] == weights[1]


def test_what_does_not_fit_is_named(world):
    small = Encoder(strict.build(EncoderConfig, MEL | {"ffn": 20}))
    with pytest.raises(StarError, match="trained has another layers.0.ffn_in.weight than the student"):
        student.take_behind_frontend(small, checkpoint.load(world / "trained"), "trained")
    with pytest.raises(StarError, match="frontend_first: must be at least 0 and below 1, got 1.0"):
        make(world, initialise_from_student={"source": "x", "frontend_first": 1.0})
    with pytest.raises(StarError, match="leave out initialise_from_teacher"):
        make(world, initialise_from_teacher={"layers": [1, 2]})
    with pytest.raises(StarError, match="neither for student: teacher nor with pruning"):
        dataclasses.replace(make(world), student="teacher")
    loaded = recipe.load("star_hubert_mel", ["training.initialise_from_student.source=runs/star/best"])
    assert loaded.training.initialise_from_student.source == "runs/star/best"
