"""Cross entropy, angular and additive angular softmax: by hand, by definition, and in gradient."""

import math

import pytest
import torch

from star_upstream.heads.margins import AdditiveAngular, Angular, psi


def at(degrees):
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def angular(*class_degrees, **options):
    loss = Angular(2, len(class_degrees), **options).double()
    with torch.no_grad():
        # lengths of the weights must not count
        loss.weight.copy_(
            torch.tensor([at(d) for d in class_degrees]) * torch.arange(1.0, len(class_degrees) + 1)[:, None]
        )
    return loss


def test_angular_softmax_by_hand():
    x, target = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0])
    # theta 60: psi = cos 120 = -0.5, so logits -1 and 2 cos 90 = 0
    loss, plain = angular(60, 90, margin=2)(x, target)
    assert loss.item() == pytest.approx(math.log(1 + math.e)) and plain[0].tolist() == pytest.approx([1.0, 0.0])
    # theta 120: k = 1, psi = -cos 240 - 2 = -1.5, so logits -3 and 0
    assert angular(120, 90, margin=2)(x, target)[0].item() == pytest.approx(math.log(1 + math.exp(3)))
    # a scale takes the place of the length: -0.5 x 10 against 0
    assert angular(60, 90, margin=2, scale=10.0)(x, target)[0].item() == pytest.approx(math.log(1 + math.exp(5)))
    # lambda 1: the mean of cos 60 and psi is 0
    assert angular(60, 90, margin=2, relax=1.0)(x, target)[0].item() == pytest.approx(math.log(2))
    # margin 4, theta 100: 4 theta = 400 lies in the third piece, psi = cos 400 - 4
    expected = math.log(1 + math.exp(-2 * (math.cos(math.radians(400)) - 4)))
    assert angular(100, 90, margin=4)(x, target)[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_psi_is_the_definition_falls_and_has_no_steps(margin):
    theta = torch.linspace(0.0, math.pi, 2001, dtype=torch.float64)
    piece = (margin * theta / math.pi).floor().clamp(max=margin - 1)
    value = psi(theta.cos(), margin)
    assert torch.allclose(value, (-1.0) ** piece * torch.cos(margin * theta) - 2 * piece, atol=1e-9)
    assert (value.diff() < 0).all() and value.diff().abs().max() < 0.01 * margin


@pytest.mark.parametrize(
    "loss",
    [Angular(5, 4, margin=m, scale=s, relax=r) for m in (1, 2, 3, 4) for s, r in ((None, 0.0), (7.0, 2.0))]
    + [AdditiveAngular(5, 4, 0.2, 8.0), AdditiveAngular(5, 4, 1.4, 8.0)],
    ids=lambda loss: f"{type(loss).__name__}-{loss.margin}-{loss.scale}",
)
def test_gradients_in_float64(loss):
    torch.manual_seed(0)
    loss, x, targets = (
        loss.double(),
        torch.randn(6, 5, dtype=torch.float64, requires_grad=True),
        torch.tensor([0, 1, 2, 3, 0, 1]),
    )
    names = [name for name, _ in loss.named_parameters()]

    def value(x, *weights):
        return torch.func.functional_call(loss, dict(zip(names, weights)), (x, targets))[0]

    assert torch.autograd.gradcheck(value, (x, *(p.detach().clone().requires_grad_() for p in loss.parameters())))


def test_additive_angular_by_hand():
    loss = AdditiveAngular(2, 2, margin=math.radians(30), scale=4.0).double()
    x, target = torch.tensor([[3.0, 0.0]]).double(), torch.tensor([0])
    for degrees, true in (
        (60, 4 * math.cos(math.radians(90))),
        (170, 4 * (math.cos(math.radians(170)) - math.radians(30) * 0.5)),
    ):
        with torch.no_grad():
            loss.weight.copy_(torch.tensor([at(degrees), at(90)]))
        value, plain = loss(x, target)
        assert value.item() == pytest.approx(math.log(1 + math.exp(-true))) and plain[0, 0].item() == pytest.approx(
            4 * math.cos(math.radians(degrees))
        )
