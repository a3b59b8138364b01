"""torch's own ways to freeze an encoder: TorchScript tracing, torch.export with dynamic length, torch.compile without
graph breaks."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_export
import torch
from tiny_runs import PATIENCE
from torch import nn

SHAPES = ("group, post-norm", "layer, pre-norm", "gated relative position", "mel")


class Last(nn.Module):
    """The last state and the valid frames."""

    def __init__(self, name, **changes):
        super().__init__()
        self.encoder = tiny_export.encoder(name, **changes)

    def forward(self, waveforms_BN, lengths_B):
        output = self.encoder(waveforms_BN, lengths_B)
        return output.states[-1], output.lengths_B


def batch(*lengths, room=0):
    waveforms_BN = torch.zeros(len(lengths), max(lengths) + room)
    for row, length in zip(waveforms_BN, lengths):
        row[:length] = torch.randn(length, generator=torch.Generator().manual_seed(length)) * 0.1
    return waveforms_BN, torch.tensor(lengths)


EXAMPLE = batch(4000, 2900)


@torch.no_grad()
def agree(frozen, module, *given):
    for one, other in zip(frozen(*given), module(*given)):
        assert one.shape == other.shape
        torch.testing.assert_close(one.float(), other.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_for_every_length_from_one_frame(name):
    module = Last(name).eval()
    traced = torch.jit.trace(module, EXAMPLE, check_trace=False)
    one = module.encoder.config.receptive_field
    for lengths in ((one,), (one + 1,), (1500,), (8000,), (one, 7000), (6000, one, 2000)):
        agree(traced, module, *batch(*lengths))


@torch.no_grad()
def exported(name):
    module = Last(name, layers=1).eval()
    size, two = torch.export.Dim.DYNAMIC, module.encoder.config.receptive_field + module.encoder.config.stride
    shapes = ({0: size, 1: size}, {0: size})
    program = torch.export.export(module, EXAMPLE, dynamic_shapes=shapes, strict=False).module()
    for lengths in ((two,), (1500,), (8000,), (120, 7000), (6000, 120, 2000)):
        agree(program, module, *batch(*lengths))
    (wave, length), (roomy, _) = batch(120), batch(120, room=two - 120)
    frame, frames = program(roomy, length)
    assert frames.tolist() == [1]
    torch.testing.assert_close(frame[:, :1], module(wave, length)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ("group, post-norm", "gated relative position"))
def test_torch_export_holds_for_every_length_from_two_frames_and_so_for_one_with_room(name):
    """torch 2.11 takes a size of 1 for a constant of its own: a single frame needs room for a second one."""
    # in a process of its own: what other tests leave in torch's and sympy's caches made it fail once
    code = f"import test_traced\ntest_traced.exported({name!r})"
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_has_no_graph_breaks():
    module = Last("gated relative position", layers=1).eval()
    torch._dynamo.reset()
    agree(torch.compile(module, fullgraph=True, backend="eager"), module, *EXAMPLE)
    torch._dynamo.reset()
