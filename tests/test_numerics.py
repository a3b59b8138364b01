"""Reduced precision gives what fp32 gives: every architecture, every path, short and long; and what never reaches a
wrong kernel."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from star_upstream import strict
from star_upstream.data.task_config import TaskConfig
from star_upstream.encoder import Encoder, EncoderConfig, numerics
from star_upstream.encoder.frontend import normalize
from star_upstream.encoder.position import PositionalConvolution
from star_upstream.formats import upstream
from star_upstream.heads.model import MultitaskModel
from star_upstream.losses.skill import SkillConfig, SkillLoss
from star_upstream.pruning.config import GateConfig
from star_upstream.pruning.gates import GatedEncoder

BASE = {
    # HuBERT's strides, so that 30 s have HuBERT's 1,499 frames
    "conv_layers": [[8, 10, 5], [8, 3, 2], [8, 3, 2], [8, 3, 2], [16, 3, 2], [16, 2, 2], [32, 2, 2]],
    "width": 32, "heads": 2, "head_width": 16, "ffn": 48, "layers": 2, "position_kernel": 16, "position_groups": 4,
}  # fmt: skip
RELATIVE = {"buckets": 16, "max_distance": 40, "total_heads": 2}
ARCHITECTURES = {
    "group norm, post-norm": {},
    "layer norm, pre-norm, normalised": {
        "conv_norm": "layer",
        "conv_bias": True,
        "norm": "pre",
        "normalize_waveform": True,
        "normalize_epsilon": 1e-7,
    },
    "group norm, normalised": {"normalize_waveform": True},
    "gated position bias": {"relative_position": RELATIVE},
    "pruned": {
        "relative_position": RELATIVE | {"kept_heads": [[1], []]},
        "heads": [1, 0],
        "ffn": [48, 20],
        "feature_scale": True,
        "hidden_states": "features",
    },
    "reused maps, output heads": {
        "reuse_attention": [False, True],
        "output_projection": 10,
        "hidden_states": "projections",
    },
    "reused maps, softmax": {"reuse_attention": [False, True], "reuse_softmax": True},
    "prediction heads": {"prediction_layers": [1, 3]},
    "no projection": {"projection": False},
    "batch norm before the positional convolution": {"position_norm": "batch"},
    "stacked positional convolutions": {"position_norm": "layer", "position_layers": 2},
    "adapters": {"norm": "pre", "adapter": 8},
}
PATHS = {
    "autocast bf16": (torch.bfloat16, True),
    "autocast fp16": (torch.float16, True),
    "bfloat16()": (torch.bfloat16, False),
    "half()": (torch.float16, False),
}
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.004}
"""Relative error of a state (norm of the difference over the norm): about ten times the rounding of one number."""


def speech(seconds: float, seed: int = 0) -> torch.Tensor:
    """Bursts of noise and hum with pauses and a small offset."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(16000 * seconds)) / 16000
    loudness = 0.01 + 0.3 * torch.sin(2 * torch.pi * 2.3 * time + 1.0).clamp(min=0)
    return loudness * (0.3 * torch.randn(len(time), generator=generator) + torch.sin(2 * torch.pi * 180 * time)) + 0.003


def expert(changes: dict) -> upstream.UpstreamExpert:
    torch.manual_seed(0)
    encoder = Encoder(strict.build(EncoderConfig, BASE | changes)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return upstream.UpstreamExpert(encoder).eval()


def error(ours: torch.Tensor, right: torch.Tensor) -> float:
    return ((ours.float() - right).norm() / right.norm()).item()


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_every_path_gives_the_states_of_fp32(name):
    model = expert(ARCHITECTURES[name])
    for seconds in (0.1, 4.0, 30.0):
        # a padded batch where it is cheap: the longer way through masks and statistics
        waves = [speech(seconds)] if seconds > 10 else [speech(seconds), speech(0.6 * seconds, 1)]
        right = model(waves)["hidden_states"]
        for path, (kind, autocast) in PATHS.items():
            with torch.autocast("cpu", kind, enabled=autocast):
                states = (model if autocast else copy.deepcopy(model).to(kind))(waves)["hidden_states"]
            errors = [error(ours, theirs) for ours, theirs in zip(states, right, strict=True)]
            assert max(errors) < TOLERANCE[kind], (path, seconds, errors)
            assert autocast or states[-1].dtype == kind


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_every_architecture_runs_without_values(name):
    model = expert(ARCHITECTURES[name])
    shapes = [state.shape for state in model([speech(0.5), speech(0.3)])["hidden_states"]]
    model.to("meta")
    states = model([torch.empty(8000, device="meta"), torch.empty(4800, device="meta")])["hidden_states"]
    assert [state.shape for state in states] == shapes and states[0].device.type == "meta"


@pytest.mark.parametrize("kind", numerics.REDUCED)
def test_the_maps_of_a_half_model_do_not_overflow(kind):
    """Loud queries and keys: their product is beyond fp16's 65,504, scaled it is not."""
    model = expert({}).encoder
    layer = model.layers[0].attention
    with torch.no_grad():
        layer.query.weight.mul_(0.0)
        layer.key.weight.mul_(0.0)
        layer.query.bias.fill_(80.0)
        layer.key.bias.fill_(60.0)
        maps = model.to(kind)(speech(0.2)[None], attention_maps=True).attentions[0]
    torch.testing.assert_close(maps, torch.full_like(maps, 1.0 / maps.shape[-1]))


@pytest.mark.parametrize("kind", numerics.REDUCED)
@pytest.mark.parametrize("padded", [False, True])
def test_normalisation_counts_in_fp32(kind, padded):
    """Beyond 65,504 samples (4.09 s) an fp16 count is infinite, and a sum of squares much sooner."""
    wave = 3.0 * speech(6.0)[None] + 0.5
    lengths = torch.tensor([wave.shape[1]]) if padded else None
    right = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()
    found = normalize(wave.to(kind), lengths, 1e-7)
    assert found.dtype == torch.float32 and error(found, right) < TOLERANCE[kind]


class Convolutions(TorchDispatchMode):
    """What type each convolution is computed in, forward and backward."""

    def __init__(self):
        super().__init__()
        self.kinds = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in func.name():
            weight = args[2] if "backward" in func.name() else args[1]
            self.kinds.append((func.overloadpacket.__name__, weight.dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", numerics.REDUCED)
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "model"])
@pytest.mark.parametrize("channels", [1, 3, 8, 15, 16, 27])
def test_narrow_grouped_convolutions_are_fp32_on_a_cpu(kind, autocast, channels, monkeypatch):
    """torch's bf16 kernel for AMX is wrong there. That kernel is not on every machine: what is asked of it is what can
    be tested."""
    monkeypatch.setattr(numerics, "_has_kernels", lambda kind: True)  # as on such a CPU
    torch.manual_seed(0)
    config = EncoderConfig(width=4 * channels, position_kernel=16, position_groups=4, heads=1, head_width=4)
    position = PositionalConvolution(config)
    x_BTD = torch.randn(2, 30, config.width)
    right = position(x_BTD)
    if not autocast:
        position, x_BTD = position.to(kind), x_BTD.to(kind)
    with Convolutions() as seen, torch.autocast("cpu", kind, enabled=autocast):
        found = position(x_BTD)
        found.float().square().sum().backward()
    assert error(found, right) < TOLERANCE[kind] and found.dtype == kind
    wanted = torch.float32 if channels < numerics.NARROW else kind
    assert seen.kinds == [("convolution", wanted), ("convolution_backward", wanted)]


def test_convolutions_without_kernels_are_fp32(monkeypatch):
    """torch's own loop for a type that the CPU does not know takes 5 to 17 times as long as fp32."""
    x_BCT, weight, bias = torch.randn(1, 64, 20), torch.randn(64, 32, 5), torch.randn(64)
    for has, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(numerics, "_has_kernels", lambda kind, has=has: has)
        with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16):
            assert numerics.grouped_conv1d(x_BCT, weight, bias, 2, 2).dtype == torch.bfloat16
        assert [kind for _, kind in seen.kinds] == [wanted]
    with Convolutions() as seen:
        numerics.grouped_conv1d(x_BCT.double(), weight.double(), bias.double(), 2, 2)
    assert [kind for _, kind in seen.kinds] == [torch.float64]


TASKS = {
    "keyword": {"data": "ks", "input": "states"},
    "speaker": {"data": "asv", "input": "states", "pooling": "attentive", "embedding": 8, "loss": "angular"},
}


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_heads_answer_in_fp32_whatever_the_model(path):
    kind, autocast = PATHS[path]
    torch.manual_seed(0)
    tasks = {name: strict.build(TaskConfig, values) for name, values in TASKS.items()}
    model = MultitaskModel(expert({}).encoder, tasks, {name: list("abc") for name in tasks}).eval()
    waves, lengths = (
        torch.nn.utils.rnn.pad_sequence([speech(5.0), speech(2.0)], batch_first=True),
        torch.tensor([80000, 32000]),
    )
    right = {name: model.heads[name].loss.logits(model(name, waves, lengths)) for name in tasks}
    model = model if autocast else model.to(kind)
    for name in tasks:
        with torch.autocast("cpu", kind, enabled=autocast):
            vector = model(name, waves, lengths)
        logits = model.heads[name].loss.logits(vector)
        assert vector.dtype == logits.dtype == torch.float32
        assert error(logits, right[name]) < TOLERANCE[kind]


@torch.no_grad()
def test_the_mean_of_a_group_of_layers_is_taken_in_fp32():
    """In bf16, 256 + 1 + 1 is 256."""
    config = strict.build(EncoderConfig, BASE | {"layers": 3})
    loss = SkillLoss(strict.build(SkillConfig, {"groups": [[1, 2, 3]], "zeroth": "none"}), config, config)
    output = Encoder(config).eval()(speech(0.1)[None])
    states = [torch.full_like(output.states[0], value).bfloat16() for value in (0.0, 256.0, 1.0, 1.0)]
    assert loss._mean(output._replace(states=states), [1, 2, 3]).unique().item() == 86.0


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_a_gated_student_in_eval_mode(path):
    kind, autocast = PATHS[path]
    gated = GatedEncoder(expert({}).encoder, GateConfig()).eval()
    for gate in gated.gates.values():
        gate.location_n.add_(torch.linspace(-3.0, 3.0, gate.count))
    waves = speech(0.5)[None]
    right = gated(waves).states
    with torch.autocast("cpu", kind, enabled=autocast):
        states = (gated if autocast else gated.to(kind))(waves).states
    assert max(error(ours, theirs) for ours, theirs in zip(states, right)) < TOLERANCE[kind]
