"""STaR losses: hand-computed values, gradients, padding, memory, and what is refused."""

import json
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from tiny_runs import log, write_audio

from star_upstream import losses, strict
from star_upstream.encoder import Encoder, EncoderConfig, EncoderOutput
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.losses.star import StarConfig, StarLoss, gram_distance
from star_upstream.training import distill, recipe


def config(layers=1, width=2, heads=1):
    return EncoderConfig(
        conv_layers=((width, 10, 5),),
        width=width,
        layers=layers,
        heads=heads,
        head_width=width // heads,
        ffn=4,
        position_groups=1,
    )


def output(states, lengths=None, attentions=None, features=None):
    lengths = torch.tensor(lengths or [states[0].shape[1]] * len(states[0]))
    return EncoderOutput(states, lengths, states[0] if features is None else features, attentions, None)


# two frames of two channels: F0 = [[1,0],[0,1]], F1 = [[1,2],[0,1]] for the teacher; F0 = [[1,0],[0,0]], F1 =
# [[1,1],[1,0]] for the student
TEACHER = [torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])]
STUDENT = [torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])]


def value(options, teacher=TEACHER, student=STUDENT, **extra):
    loss = StarLoss(StarConfig(**options), config(), config())
    return loss(output(teacher, **extra), output(student, **extra))[0].item()


def test_layer_wise_by_hand():
    # F1 F1': teacher [[5,2],[2,1]], student [[2,1],[1,1]]; difference [[3,1],[1,0]], squares sum to 11
    assert value({"intra_layer": 0.0, "reduction": "sum"}) == pytest.approx(11.0)
    assert value({"intra_layer": 0.0}) == pytest.approx(11 / 4)
    # divided by the width of 2: each difference halves
    assert value({"intra_layer": 0.0, "reduction": "sum", "scale": "width"}) == pytest.approx(11 / 4)


def test_intra_layer_by_hand():
    # F0 F1': teacher [[1,0],[2,1]], student [[1,1],[0,0]]; difference [[0,-1],[2,1]], squares sum to 6
    assert value({"layer_wise": 0.0, "reduction": "sum"}) == pytest.approx(6.0)
    assert value({"reduction": "sum"}) == pytest.approx(17.0)
    assert value({"layer_wise": 2.0, "intra_layer": 0.5}) == pytest.approx((2 * 11 + 0.5 * 6) / 4)


def test_average_attention_by_hand():
    # head means: teacher [[.5,.5],[.25,.75]], student [[.25,.75],[.25,.75]]
    teacher = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [0.0, 1.0]]]])
    student = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]], [[0.0, 1.0], [0.25, 0.75]]]])
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    for reduction, divisor in (("sum", 1), ("mean", 2)):
        options = StarConfig(average_attention=1.0, layer_wise=0.0, intra_layer=0.0, reduction=reduction)
        loss = StarLoss(options, config(heads=2), config(heads=2))
        assert loss.needs_attention
        total, _ = loss(output(TEACHER, attentions=[teacher]), output(STUDENT, attentions=[student]))
        assert total.item() == pytest.approx(expected.item() / divisor, abs=1e-6)


def test_the_last_layers_attention_alone():
    first, last = (torch.tensor([[[[p, 1 - p], [0.5, 0.5]]]]) for p in (0.75, 0.25))
    models = config(layers=2), config(layers=2)
    options = {"average_attention": 1.0, "layer_wise": 0.0, "intra_layer": 0.0}
    states = [TEACHER[0]] * 3
    values = {}
    for layers in ("all", "last"):
        loss = StarLoss(StarConfig(**options, attention_layers=layers), *models)
        values[layers] = loss(output(states, attentions=[first, last]), output(states, attentions=[last, first]))[0]
    # KL(.75 || .25) = .5 log 3 either way, the second query agrees: half of it is the mean over frames (and layers)
    half = 0.25 * torch.log(torch.tensor(3.0))
    assert values["last"].item() == pytest.approx(half.item()) == pytest.approx(values["all"].item())
    same = StarLoss(StarConfig(**options, attention_layers="last"), *models)
    assert same(output(states, attentions=[first, last]), output(states, attentions=[last, last]))[0].item() == 0.0


def test_zeroth_is_an_option():
    features = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    options = {"layer_wise": 0.0, "reduction": "sum", "zeroth": "features"}
    # with the same F0 = [[2,0],[0,0]] on both sides: teacher [[2,0],[0,0]], student [[2,2],[0,0]]
    assert value(options, features=features) == pytest.approx(4.0)


def straightforward(a, b, p, q):
    return (p @ q.transpose(1, 2) - a @ b.transpose(1, 2)).square().sum()


def test_gram_distance_equals_the_straightforward_form_and_its_gradient():
    torch.manual_seed(0)
    a, b = (torch.randn(3, 40, 12, requires_grad=True) for _ in range(2))
    p, q = torch.randn(3, 40, 20), torch.randn(3, 40, 20)
    ours, plain = gram_distance(a, b, p, q), straightforward(a, b, p, q)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)
    for x, y in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(plain, (a, b))):
        assert (x - y).norm() / y.norm() < 1e-5
    same = gram_distance(a, a, p, p)
    assert torch.allclose(
        *torch.autograd.grad(same, a), *torch.autograd.grad(straightforward(a, a, p, p), a), rtol=1e-4, atol=1e-3
    )


def test_gradients_in_float64():
    torch.manual_seed(0)
    shape = {"dtype": torch.float64}
    teacher = output(
        [torch.randn(2, 5, 4, **shape) for _ in range(3)], [5, 3], [torch.rand(2, 2, 5, 5, **shape).softmax(-1)] * 2
    )
    student = [torch.randn(2, 5, 2, requires_grad=True, **shape) for _ in range(3)]
    maps = torch.rand(2, 2, 5, 5, requires_grad=True, **shape)
    for reduction in ("mean", "sum"):
        options = StarConfig(average_attention=0.7, reduction=reduction)
        loss = StarLoss(options, config(layers=2, width=4, heads=2), config(layers=2, heads=2))

        def total(x0, x1, x2, m, loss=loss):
            return loss(teacher, output([x0, x1, x2], [5, 3], [m.softmax(-1)] * 2))[0]

        assert torch.autograd.gradcheck(total, (*student, maps))


def test_alone_equals_padded():
    torch.manual_seed(0)
    lengths = [9, 6, 2]
    teacher, student = ([torch.randn(3, 9, d) for _ in range(3)] for d in (4, 2))
    maps = [torch.rand(3, 2, 9, 9) for _ in range(2)]
    for i, n in enumerate(lengths):  # a padded batch's maps give nothing to padded keys
        for m in maps:
            m[i, :, :, n:] = 0
    maps = [m / m.sum(-1, keepdim=True) for m in maps]
    loss = StarLoss(StarConfig(average_attention=1.0, reduction="sum"), config(2, 4, 2), config(2, 2, 2))
    together = loss(output(teacher, lengths, maps), output(student, lengths, maps[::-1]))[0]
    alone = [
        loss(
            *(
                output([x[i : i + 1, :n] for x in s], [n], [m[i : i + 1, :, :n, :n] for m in a])
                for s, a in ((teacher, maps), (student, maps[::-1]))
            )
        )[0]
        for i, n in enumerate(lengths)
    ]
    assert together.item() == pytest.approx(sum(alone).item() / 3, rel=1e-5)
    mean = StarLoss(StarConfig(), config(2, 4, 2), config(2, 2, 2))
    one = mean(output([x[:1] for x in teacher], [6]), output([x[:1] for x in student], [6]))[0]
    cut = mean(output([x[:1, :6] for x in teacher], [6]), output([x[:1, :6] for x in student], [6]))[0]
    assert one.item() == pytest.approx(cut.item(), rel=1e-6)


def test_gram_products_stay_in_fp32_under_autocast():
    big = [torch.full((1, 4, 64), 30.0) for _ in range(2)]
    loss = StarLoss(StarConfig(), config(width=64), config(width=64))
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = loss(output([x.bfloat16() for x in big]), output([(x - 0.125).bfloat16() for x in big]))
    # every entry differs by 64 * (900 - 29.875^2) = 479; squares stay finite and exact, where fp16 would overflow
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(2 * (64 * (900 - 29.875**2)) ** 2, rel=1e-5)


def saved_bytes(make):
    """Bytes that autograd keeps for backward while ``make`` runs."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = make()
    return sum(kept.values()), result


def test_memory_kept_for_backward_against_the_straightforward_form():
    frames, width, layers = 600, 32, 4
    torch.manual_seed(0)
    ours = [torch.randn(1, frames, width, requires_grad=True) for _ in range(layers)]
    theirs = [torch.randn(1, frames, width) for _ in range(layers)]
    plain, _ = saved_bytes(lambda: sum(straightforward(x, x, y, y) for x, y in zip(ours, theirs)))
    lean, _ = saved_bytes(lambda: sum(gram_distance(x, x, y, y) for x, y in zip(ours, theirs)))
    assert plain >= layers * frames * frames * 4
    assert lean <= 3 * layers * frames * width * 4


def test_one_model_against_itself_is_zero_and_layer_map_works():
    states = [torch.randn(2, 7, 2) for _ in range(3)]
    total, terms = losses.build({"star": {}}, config(2), config(2))(output(states), output(states))
    assert total.item() == 0.0 and set(terms) == {"star/layer_wise", "star/intra_layer"}
    mapped = StarLoss(StarConfig(layer_map=((1, 2),), intra_layer=0.0, reduction="sum"), config(2), config(1))
    total, _ = mapped(output(states), output([states[0], states[2]]))
    assert total.item() == 0.0


@pytest.mark.parametrize(
    "sections, message",
    [
        ({}, "loss: name at least one of star"),
        ({"sta": {}}, "loss.sta: unknown loss; did you mean 'star'?"),
        ({"star": {"layerwise": 1.0}}, "loss.star.layerwise: unknown key; did you mean 'layer_wise'?"),
        ({"star": {"reduction": "max"}}, "loss.star.reduction: expected 'mean' or 'sum', got 'max'"),
        ({"star": {"layer_wise": 0.0, "intra_layer": 0.0}}, "at least one weight must be above 0"),
        ({"star": {"layer_map": [[3, 1]]}}, "outside the student's 2 and teacher's 2 layers"),
    ],
)
def test_wrong_options(sections, message):
    with pytest.raises(StarError) as error:
        losses.build(sections, config(2), config(2))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_depths_that_differ_need_a_map():
    with pytest.raises(StarError, match="layer_map: needed, since the teacher has 3 layers and the student 2"):
        losses.build({"star": {}}, config(3), config(2))


@pytest.mark.parametrize(
    ("loss", "layers", "teachers"),
    [
        ({"hint": {"teacher_layers": [4, 8, 12], "student_layers": [2, 4, 6]}}, (2, 4, 6), (4, 8, 12)),
        ({"hint": None}, (0, 4, 8, 12), (0, 4, 8, 12)),
        ({"skill": {"groups": [[0], [1, 2, 3], [4, 5, 6]]}}, tuple(range(7)), tuple(range(7))),
        ({"skill": {"groups": [[0], [3, 1, 2], [4, 5, 6]], "student_side": "last"}}, (0, 3, 6), tuple(range(7))),
        ({"skill": {"zeroth": "none"}}, tuple(range(1, 7)), tuple(range(1, 7))),
        ({"star": {}}, tuple(range(1, 7)), tuple(range(1, 7))),
        ({"star": {"layer_map": [[2, 4], [6, 12]]}}, (2, 6), (4, 12)),
        ({"prediction": {}, "hint": {"teacher_layers": [1]}}, (1, 6), (1, 3, 5)),
        ({}, (), ()),
    ],
)
def test_a_loss_says_which_layers_it_trains(loss, layers, teachers):
    student = replace(config(6), prediction_layers=(3, 5))
    assert losses.trained_layers(loss, student) == (teachers, layers)


# a loss of another package

OUTSIDE = """
from dataclasses import dataclass

from torch import nn
from star_upstream.losses.common import TrainedLayers, layer_state, valid_frames


@dataclass(frozen=True)
class Options:
    layer: int = 1
    level: float | None = None


class Mine(nn.Module):
    options = Options
    needs_attention = False

    def __init__(self, config, teacher, student):
        super().__init__()
        self.config = config

    def forward(self, teacher, student):
        picked = valid_frames(teacher, student)
        t, s = (picked(layer_state(output, self.config.layer, "features")) for output in (teacher, student))
        loss = ((t.mean(1) - s.mean(1)) ** 2).mean() / self.config.level
        return loss, {"square": loss}

    @staticmethod
    def calibrate(config, teacher, clips, seed):
        return {} if config.level is not None else {"level": float(len(clips))}

    @staticmethod
    def trained_layers(config, student):
        return TrainedLayers((config.layer,), (config.layer,))
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package that was never imported, as pip leaves it: its module and the entry point that names it."""
    (tmp_path / "site" / "toy_loss-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "toy_loss.py").write_text(OUTSIDE)
    (tmp_path / "site" / "toy_loss-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy-loss\nVersion: 1.0\n"
    )
    (tmp_path / "site" / "toy_loss-1.0.dist-info" / "entry_points.txt").write_text(
        "[star_upstream.losses]\nmine = toy_loss:Mine\nhalf = toy_loss:Options\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(losses, "TABLE", dict(losses.TABLE))
    yield
    sys.modules.pop("toy_loss", None)


def test_a_loss_of_an_installed_package_is_distilled_by(outside, tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    write_audio(tmp_path / "audio", 6)
    model = replace(config(1, width=8), conv_layers=((8, 400, 320),))
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "teacher", Encoder(model), {})
    values = {
        "teacher": str(tmp_path / "teacher"),
        "student": {**strict.plain(model), "width": 4, "head_width": 4},
        "loss": {"mine": {"layer": 1}},
        "data": {
            "train": [str(tmp_path / "audio")],
            "valid_share": 0.3,
            "min_seconds": 0.4,
            "max_seconds": 2.0,
            "batch_seconds": 4.0,
        },
        "training": {"updates": 3, "log_every": 1, "validate_every": 3, "accelerator": "cpu"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    best = distill.run(recipe.load(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "measured.json").read_text()) == {"mine": {"level": 4.0}}
    rows = log(tmp_path / "run")
    assert all(float(row["train/mine/square"]) == float(row["train/loss"]) > 0 for row in rows if row["train/loss"])
    written = checkpoint.describe(best)["provenance"]["recipe"]["loss"]
    assert written == {"mine": {"layer": 1, "level": 4.0}}
    assert losses.trained_layers(written, checkpoint.load(best).config) == ((1,), (1,))


def test_a_loss_of_another_package_is_checked_as_ours_are(outside):
    with pytest.raises(
        StarError, match=r"loss.min: unknown loss; did you mean 'mine'\? \(known: star, .*, half, mine\)"
    ):
        losses.build({"min": {}}, config(), config())
    with pytest.raises(StarError, match=r"loss.mine.layr: unknown key; did you mean 'layer'"):
        losses.build({"mine": {"layr": 1}}, config(), config())
    with pytest.raises(StarError, match="loss.half: .* has no options, needs_attention, trained_layers"):
        losses.build({"half": {}}, config(), config())


def test_a_registered_loss_takes_no_other_losss_name(monkeypatch):
    monkeypatch.setattr(losses, "TABLE", dict(losses.TABLE))

    class Other(StarLoss):
        pass

    losses.register("other", Other)
    losses.register("other", Other)
    states = [torch.randn(1, 3, 2)] * 2
    assert losses.build({"other": {}}, config(), config())(output(states), output(states))[1].keys() == {
        "other/layer_wise",
        "other/intra_layer",
    }
    with pytest.raises(
        StarError, match="loss.star: is there already .star_upstream.losses.star.StarLoss.; choose another name"
    ):
        losses.register("star", Other)
