"""A module that is wrong only under autocast is found, named and computed in fp32: alone, in runs, after a resume, in
eval."""

import copy
import json

import pytest
import torch
import yaml
from tiny_runs import log, write_audio
from torch import nn

from eval.features.upstreams import Upstream
from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.encoder.position import PositionalConvolution
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, upstream
from star_upstream.pruning.config import GateConfig
from star_upstream.pruning.gates import GatedEncoder
from star_upstream.training import distill, loop, precision, recipe

TINY = {
    "conv_layers": [[8, 10, 5], [16, 3, 4], [16, 3, 4], [24, 2, 4]], "position_kernel": 16, "position_groups": 4,
    "layers": 2, "heads": 2, "width": 32, "head_width": 16, "ffn": 48,
}  # fmt: skip


def encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    return Encoder(strict.build(EncoderConfig, TINY | changes))


class Faulty(nn.Linear):
    """Right in fp32, off by ``factor`` under autocast."""

    factor = 1.2

    def forward(self, x):
        return super().forward(x) * (self.factor if torch.is_autocast_enabled("cpu") else 1.0)


def plant(module: nn.Module, name: str, factor: float = 1.2) -> None:
    linear = module.get_submodule(name)
    linear.__class__, linear.factor = Faulty, factor


def settle(model, kind=torch.bfloat16):
    waves, lengths = 0.1 * torch.randn(3, 8000), torch.tensor([8000, 6000, 3000])
    return precision.settle({"student": model}, lambda: model(waves, lengths), kind, "cpu")


@pytest.mark.parametrize("kind", precision.TOLERANCE)
@pytest.mark.parametrize(
    "changes", [{}, {"norm": "pre", "conv_norm": "layer"}, {"reuse_attention": [False, True], "output_projection": 8}]
)
def test_what_is_right_is_left_alone(kind, changes):
    model = encoder(**changes).train()
    random = torch.get_rng_state()
    waves, lengths = torch.zeros(2, 8000).uniform_(-0.3, 0.3), torch.tensor([8000, 3000])
    torch.set_rng_state(random)
    found = precision.settle({"student": model}, lambda: model(waves, lengths), kind, "cpu")
    assert found.moved == {} and found.largest[1] < precision.TOLERANCE[kind] / 2
    assert torch.equal(torch.get_rng_state(), random) and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["layers.1.ffn_in", "layers.0.attention.query", "frontend.projection"])
@pytest.mark.parametrize("factor", [1.2, 0.0, float("nan")])
def test_a_fault_is_named_and_moved_to_fp32(name, factor):
    model, right = encoder(), encoder()
    plant(model, name, factor)
    found = settle(model)
    assert list(found.moved) == [f"student.{name}"]
    assert f"student.{name}: in bfloat16 on cpu its output is off by" in found.told()[0]
    assert found.record()["in_fp32"].keys() == {f"student.{name}"}
    # the very function again, gradients included, and the weights have the names they had
    assert settle(model).moved == {} and model.state_dict().keys() == right.state_dict().keys()
    waves = 0.1 * torch.randn(2, 8000)
    for one in (model, right):
        one.eval()
        with torch.autocast("cpu", torch.bfloat16):
            output = one(waves).states[-1]
        # a random direction: the sum of squares of a normalised state does not depend on anything
        (output.float() * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    weights = [one.get_submodule(name).weight.grad for one in (model, right)]
    assert precision.deviation(*weights) < 0.1
    assert isinstance(copy.deepcopy(model).get_submodule(name), precision.InFp32)


def test_several_faults_and_one_in_a_modules_own_code(monkeypatch):
    model = encoder()
    plant(model, "layers.0.ffn_out")
    plant(model, "layers.1.attention.value")
    right = PositionalConvolution.forward

    def doubled(self, *arguments):
        return right(self, *arguments) * (2.0 if torch.is_autocast_enabled("cpu") else 1.0)

    monkeypatch.setattr(PositionalConvolution, "forward", doubled)
    assert set(settle(model).moved) == {
        "student.position",
        "student.layers.0.ffn_out",
        "student.layers.1.attention.value",
    }


def test_a_fault_in_one_channel_is_not_lost_in_the_whole():
    right = torch.randn(4, 100, 256)
    found = right.clone()
    found[..., 7] = 0.0
    assert precision.deviation(found, right) > precision.TOLERANCE[torch.bfloat16]
    found = right.clone()
    found[2, 50] = 0.0
    assert precision.deviation(found, right) > precision.TOLERANCE[torch.bfloat16]
    assert precision.deviation(right.bfloat16(), right) < 0.01
    right[0, 0, 0] = float("-inf")  # as a mask has it: not what reduced precision did
    assert precision.deviation(right.clone(), right) == 0.0


def test_where_fp32_does_not_help_the_run_stops_with_the_name():
    model, count = encoder(), 0

    def drifting(module, args, output):
        nonlocal count
        count += 1
        return output * count

    model.layers[1].ffn_in.register_forward_hook(drifting)
    with pytest.raises(
        StarError, match=r"student\.layers\.1\.ffn_in: .* moving it to fp32 does not help; set training\.precision=32"
    ):
        settle(model)


def test_gates_are_compared_as_they_act():
    gated = GatedEncoder(encoder(), GateConfig()).train()
    plant(gated, "encoder.layers.0.ffn_in")
    assert list(settle(gated).moved) == ["student.encoder.layers.0.ffn_in"]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A teacher, audio and a recipe; the positional convolutions are wrong under autocast."""
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    write_audio(tmp_path / "audio", 12)
    checkpoint.save(tmp_path / "teacher", encoder(), {})
    values = {
        "teacher": str(tmp_path / "teacher"),
        "student": {**TINY, "width": 24, "projection": False, "head_width": 12, "dropout": 0.1,
            "hidden_states": "layers"},
        "loss": {"star": {}},
        "data": {"train": [str(tmp_path / "audio")], "valid_share": 0.2, "min_seconds": 0.4, "max_seconds": 2.0,
            "batch_seconds": 4.0, "workers": 0},
        "training": {
            "updates": 12, "log_every": 1, "validate_every": 6, "save_every": 2, "accelerator": "cpu",
            "precision": "bf16-mixed", "learning_rate": 1e-3,
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    right = PositionalConvolution.forward

    def wrong(self, x_BTD, *more):
        return right(self, x_BTD, *more) + (x_BTD if torch.is_autocast_enabled("cpu") else 0.0)

    monkeypatch.setattr(PositionalConvolution, "forward", wrong)
    return tmp_path


def test_a_run_is_compared_once_and_resumes_with_the_same_modules(world, monkeypatch, capsys):
    asked = recipe.load(world / "recipe.yaml")
    distill.run(asked, world / "unbroken")
    said = capsys.readouterr().err
    for name in ("teacher.position", "student.position"):
        assert f"unbroken: {name}: in bfloat16 on cpu its output is off by" in said
    (start,) = json.loads((world / "unbroken" / "environment.json").read_text())["starts"]
    assert start["compared_with_fp32"]["in_fp32"].keys() == {"teacher.position", "student.position"}
    assert start["compared_with_fp32"]["type"] == "bfloat16" and start["compared_with_fp32"]["tolerance"] == 0.05

    # the validation loss is that of the file in fp32: the wrong function's would be another
    model, batches = checkpoint.load(world / "unbroken" / "best"), distill.Run(asked, world / "again")
    training = distill.Distillation(
        batches.complete, model, batches.teacher, batches.folder, batches.clips, batches.provenance
    )
    training.model.eval()
    sums = [
        (float(training.model(batch)[0]) * training.seconds(batch), training.seconds(batch))
        for batch in training.loader("valid", training.validation_batches(), 0)
    ]
    written = checkpoint.describe(world / "unbroken" / "best")["provenance"]["validation_loss"]
    assert sum(loss for loss, _ in sums) / sum(seconds for _, seconds in sums) == pytest.approx(written, rel=0.03)

    calls = []
    settle_ = precision.settle
    monkeypatch.setattr(precision, "settle", lambda *a: calls.append(1) or settle_(*a))
    step = loop._Loop.step

    def interrupted(self):
        step(self)
        if self.update == 5 and not (world / "stopped").exists():
            (world / "stopped").touch()
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Loop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill.run(asked, world / "broken")
    state = torch.load(world / "broken" / "state.pt", weights_only=True)
    assert state["update"] == 4 and state["comparison"]["in_fp32"].keys() == {"teacher.position", "student.position"}
    distill.run(asked, world / "broken")
    assert len(calls) == 1 and log(world / "broken") == log(world / "unbroken")


def test_a_run_in_fp32_is_not_compared(world, monkeypatch):
    monkeypatch.setattr(precision, "settle", lambda *a: pytest.fail("compared"))
    distill.run(recipe.load(world / "recipe.yaml", ["training.precision=32", "training.updates=2"]), world / "run")


def test_eval_encodes_in_fp32_what_deviates(monkeypatch, capsys):
    expert = upstream.UpstreamExpert(encoder()).eval()
    waves = [0.1 * torch.randn(n).numpy() for n in (16000, 9000)]
    right = Upstream("tiny", expert, "d", padded=True).encode(waves)
    plant(expert.encoder, "layers.0.ffn_in", 3.0)
    ours = Upstream("tiny", expert, "d", padded=True)
    ours.autocast = torch.bfloat16
    ours.settle(waves)
    assert ours.precision == "bfloat16 autocast, fp32 in encoder.layers.0.ffn_in"
    assert "tiny: encoder.layers.0.ffn_in: in bfloat16" in capsys.readouterr().err
    assert precision.deviation(ours.encode(waves), right) < 0.05

    # a model that is not ours is taken as a whole
    theirs = Upstream("theirs", upstream.UpstreamExpert(encoder()).eval(), "d", padded=False)
    plant(theirs.expert.encoder, "frontend.projection", 0.0)
    theirs.autocast = torch.bfloat16
    theirs.settle(waves[:1])
    assert theirs.precision == "fp32" and "theirs: its states are off by" in capsys.readouterr().err


@pytest.mark.parametrize(("slower", "chosen"), [(3.0, 32), (1.0, 32), (0.5, "bf16-mixed")])
def test_auto_takes_bf16_where_it_is_right_and_faster_and_keeps_to_it(world, monkeypatch, capsys, slower, chosen):
    asked = recipe.load(world / "recipe.yaml", ["training.precision=auto", "training.updates=6"])
    calls = []

    def times(call, trained, device):
        calls.append(call())
        return {"32": 1.0, "bf16-mixed": slower}

    monkeypatch.setattr(precision, "times", times)
    step = loop._Loop.step

    def interrupted(self):
        step(self)
        if self.update == 3 and not (world / "stopped").exists():
            (world / "stopped").touch()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill.run(asked, world / "run")
    state = torch.load(world / "run" / "state.pt", weights_only=True)
    assert state["chosen_precision"] == chosen and (state["comparison"] is None) == (chosen == 32)
    distill.run(asked, world / "run")
    assert (
        len(calls) == 1 and f"precision {chosen} (forward and backward: 32 1 s, bf16-mixed" in capsys.readouterr().err
    )
    assert checkpoint.describe(world / "run" / "best")["provenance"]["precision"] == chosen
    first, *_ = json.loads((world / "run" / "environment.json").read_text())["starts"]
    assert first["precision"] == chosen and first["forward_and_backward_seconds"] == {"32": 1.0, "bf16-mixed": slower}

    # the run is the one that asks for what was chosen: choosing draws nothing and leaves nothing
    distill.run(
        recipe.load(world / "recipe.yaml", [f"training.precision={chosen}", "training.updates=6"]), world / "told"
    )
    assert log(world / "run") == log(world / "told")


def test_auto_takes_fp32_where_fp32_does_not_mend_a_module(world, monkeypatch, capsys):
    monkeypatch.setattr(precision, "times", lambda *_: {"32": 1.0, "bf16-mixed": 0.1})

    def hopeless(*_):
        raise StarError("student.position: moving it to fp32 does not help")

    monkeypatch.setattr(precision, "settle", hopeless)
    asked = recipe.load(world / "recipe.yaml", ["training.precision=auto", "training.updates=2"])
    distill.run(asked, world / "run")
    assert "precision 32, since student.position" in capsys.readouterr().err
    assert checkpoint.describe(world / "run" / "best")["provenance"]["precision"] == 32


def test_times_are_measured_and_leave_no_gradient():
    model = encoder().train()
    waves, random = 0.1 * torch.randn(2, 8000), torch.get_rng_state()
    trained = list(model.parameters())
    found = precision.times(lambda: model(waves).states[-1].square().mean(), trained, torch.device("cpu"))
    assert found.keys() == {"32", "bf16-mixed"} and min(found.values()) > 0
    assert all(parameter.grad is None for parameter in trained) and torch.equal(torch.get_rng_state(), random)
