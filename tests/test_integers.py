"""Products of integers in the place of nodes in float: what they compute, at every shape."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_export
import torch
from test_export import waves
from torch import nn

from star_upstream import runtime
from star_upstream.export import int8, integers, onnx

onnx_library = pytest.importorskip("onnx")


class Swapped(nn.Module):
    """Convolutions over time, of B x T x C."""

    def __init__(self, *convolutions):
        super().__init__()
        self.convolutions = nn.Sequential(*convolutions)

    def forward(self, x_BTC):
        return self.convolutions(x_BTC.transpose(1, 2)).transpose(1, 2)


def pair(module, tmp_path, x, ranges=None):
    """The session of a module whose nodes are integers, and the kinds of nodes in it."""
    model = onnx.trace(module.eval().requires_grad_(False), ["x"], (x,), ["y"])
    onnx_library.save(model, tmp_path / "a.onnx")
    model = int8._folded(tmp_path / "a.onnx", tmp_path / "b.onnx")
    found = integers.possible(model)
    changed = integers.rewrite(model, list(found), dict.fromkeys(found.values(), ranges) if ranges else None)
    return onnx.session(changed.SerializeToString(), 1), {node.op_type for node in changed.graph.node}


@pytest.mark.parametrize(
    ("size", "stride", "padding", "bias", "groups"),
    [
        (3, 2, 0, False, 1), (2, 2, 0, True, 1), (1, 1, 0, False, 1), (7, 4, 0, True, 1), (3, 1, 1, True, 1),
        (3, 2, 1, False, 1), (10, 5, 0, False, 1), (16, 1, 8, True, 4), (15, 1, 7, True, 2),
    ],
)  # fmt: skip
def test_convolutions_of_any_shape(size, stride, padding, bias, groups, tmp_path):
    torch.manual_seed(0)
    module = Swapped(nn.Conv1d(12, 8, size, stride, padding, bias=bias, groups=groups))
    session, kinds = pair(module, tmp_path, torch.randn(2, 40, 12))
    assert "Conv" not in kinds
    for batch, frames in ((2, 16), (1, 17), (3, 19), (1, 50), (1, size)):
        x_BTC = torch.randn(batch, frames, 12)
        (given,), right = session.run(None, {"x": x_BTC.numpy()}), module(x_BTC).numpy()
        assert given.shape == right.shape and np.abs(given - right).max() < 0.03 * np.abs(right).max()


def test_a_quiet_frame_is_as_exact_as_a_loud_one(tmp_path):
    torch.manual_seed(0)
    x_BTC = torch.randn(1, 40, 12)
    x_BTC[:, 20:] *= 1e-4
    x_BTC[:, 30:34] = 0.0
    module = Swapped(nn.Conv1d(12, 64, 2, 2, bias=False))
    session, _ = pair(module, tmp_path, x_BTC)
    (given,), right = session.run(None, {"x": x_BTC.numpy()}), module(x_BTC).numpy()
    error_T = np.sqrt(np.square(given - right).mean((0, 2)))
    size_T = np.sqrt(np.square(right).mean((0, 2)))
    assert (size_T[10:15] < 2e-4).all() and (error_T <= 0.012 * size_T).all() and not given[0, 15:17].any()


@pytest.mark.parametrize("ranges", [None, (-5.0, 5.0)])
def test_linear_maps_share_what_they_read(ranges, tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(12, 8), nn.Linear(12, 8, bias=False)

        def forward(self, x_BTC):
            return self.one(x_BTC) * self.other(x_BTC)

    torch.manual_seed(0)
    module, x_BTC = Branches(), torch.randn(3, 7, 12)
    session, kinds = pair(module, tmp_path, x_BTC, ranges)
    (given,), right = session.run(None, {"x": x_BTC.numpy()}), module(x_BTC).numpy()
    assert np.abs(given - right).max() < 0.05 * np.abs(right).max()
    assert kinds == {"MatMulIntegerToFloat", "Mul", "QuantizeLinear" if ranges else "DynamicQuantizeLinear"}


@pytest.mark.parametrize(
    "name", ["group, post-norm", "layer, pre-norm", "even and odd kernels", "mel", "gated relative position"]
)
def test_whole_models_from_one_frame_up_alone_and_padded(name, tmp_path):
    onnx.write(onnx.Graph(tiny_export.encoder(name), [-1]), tmp_path / "a.onnx", {}, (0.025, 0.3))
    model = int8._folded(tmp_path / "a.onnx", tmp_path / "b.onnx")
    names = [node for part in int8._parts(model).values() for node in part]
    assert len(names) > 15
    onnx.save(integers.rewrite(model, names, None), onnx.describe(tmp_path / "a.onnx"), tmp_path / "c.onnx")
    one, other = (runtime.Model(tmp_path / file, 1) for file in ("a.onnx", "c.onnx"))
    given = waves(0.3, 0.02, 0.7)
    for wavs in ([given[1]], [given[2]], given):
        (right,), (ours,) = one(wavs).values(), other(wavs).values()
        for a, b in zip(right, ours):
            assert a.shape == b.shape and np.sqrt(np.square(a - b).mean()) < 0.08 * a.std()


EMULATED = """
import sys, numpy, onnxruntime
from star_upstream import runtime
runtime.EXACT = "1"  # /proc/cpuinfo is this machine's
path, wave, out = sys.argv[1:]
plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
wave = numpy.load(wave)
given = {"waveforms": wave[None], "lengths": numpy.array([wave.size])}
numpy.savez(out, plain=plain.run(["state_3"], given)[0][0], ours=runtime.Model(path, 1)([wave])["state_3"][0])
"""


@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs qemu-user")
def test_a_processor_without_vnni_gives_the_same_by_the_runtime(tmp_path):
    onnx.write(onnx.Graph(tiny_export.encoder(), [-1]), tmp_path / "a.onnx", {}, (0.025, 0.3))
    wave = waves(1.0)[0]
    int8.quantise(tmp_path / "a.onnx", tmp_path / "b.onnx", [wave], dynamic=True)
    np.save(tmp_path / "wave.npy", wave)
    paths = [str(tmp_path / name) for name in ("b.onnx", "wave.npy", "out.npz")]
    subprocess.run(["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", EMULATED, *paths], check=True)
    found, right = np.load(tmp_path / "out.npz"), runtime.Model(tmp_path / "b.onnx")([wave])["state_3"][0]
    size = np.abs(right).max()
    assert np.abs(found["ours"] - right).max() < 0.01 * size < np.abs(found["plain"] - right).max()
