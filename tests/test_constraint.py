"""The way of the expected size to its target: multipliers, target, settling."""

import dataclasses

import pytest
import torch
from test_pruning import ALL, HUBERT, assert_same_states, count, gated, spread

from star_upstream.encoder import Encoder
from star_upstream.encoder import size as encoder_size
from star_upstream.errors import StarError
from star_upstream.pruning.config import GateConfig
from star_upstream.pruning.constraint import SparsityConstraint, target_at
from star_upstream.pruning.cut import cut
from star_upstream.pruning.gates import GatedEncoder


def test_multipliers_ascend_and_gates_descend():
    constraint, sparsity = SparsityConstraint(), torch.tensor(0.2, requires_grad=True)
    assert constraint(sparsity, 0.5) == 0
    optimizer = torch.optim.SGD(constraint.parameters(), lr=1.0, maximize=True)
    for _ in range(2):
        optimizer.zero_grad()
        constraint(sparsity, 0.5).backward()
        optimizer.step()
    # gap -0.3: the linear multiplier falls by it, the quadratic one grows by its square
    assert constraint.linear.item() == pytest.approx(-0.6) and constraint.quadratic.item() == pytest.approx(0.18)
    sparsity.grad = None
    penalty = constraint(sparsity, 0.5)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.18 + 0.18 * 0.09) and sparsity.grad < 0  # descent makes the model sparser


def test_target_rises_linearly():
    assert [target_at(share, 0.75, 0.1) for share in (0.0, 0.05, 0.1, 0.7)] == pytest.approx([0, 0.375, 0.75, 0.75])
    assert target_at(0.0, 0.75, 0.0) == 0.75


@pytest.mark.parametrize("measure", ["parameters", "macs"])
def test_penalty_alone_drives_the_gates_to_the_target(measure):
    model, constraint = gated("hubert", GateConfig()), SparsityConstraint()
    for gate in model.gates.values():
        gate.location_n.data = 3.0 + 0.1 * gate.location_n.data
    groups = [
        {"params": model.gates.parameters(), "lr": 0.1},
        {"params": constraint.parameters(), "lr": 0.1, "maximize": True},
    ]
    optimizer, size = torch.optim.AdamW(groups, weight_decay=0.0), model.size(measure, 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        sparsity = size.sparsity(model.expected())
        constraint(sparsity, 0.5).backward()
        optimizer.step()
    assert sparsity.item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("measure", ["parameters", "macs"])
@pytest.mark.parametrize("options", [GateConfig(), ALL, GateConfig(round_channels=2, round_units=2)])
def test_settling_reaches_the_target_and_keeps_the_order(options, measure):
    config = dataclasses.replace(HUBERT, width=48, head_width=4, heads=12, ffn=200)
    torch.manual_seed(0)
    model = GatedEncoder(Encoder(config), options)
    spread(model, 1.5, 1)
    order = {n: gate.location_n.argsort() for n, gate in model.gates.items()}
    for target in (0.3, 0.6):
        reached = model.settle(target, measure, 0.1)
        assert reached == pytest.approx(target, abs=0.005)
        encoder = cut(model)
        true = count(encoder) / count(model.encoder)
        if measure == "macs":
            true = encoder_size.macs(encoder.config, 1600) / encoder_size.macs(config, 1600)
        assert 1 - true == pytest.approx(reached, abs=1e-9)
        assert_same_states(model, encoder)
    for name, gate in model.gates.items():
        assert torch.equal(order[name], gate.location_n.argsort())
        settled_n = model.settled()[name]
        open_n = settled_n > 0
        assert open_n.all() or not open_n.any() or gate.location_n[open_n].min() >= gate.location_n[~open_n].max()


def test_a_target_out_of_reach_is_refused():
    model = gated("hubert", GateConfig(conv_channels=False, heads=False))
    with pytest.raises(StarError, match="pruning.target: 0.9 cannot be reached: .*0.2.* of the parameters is gone"):
        model.settle(0.9)
