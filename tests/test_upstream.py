"""The s3prl contract, torch.hub's names, and s3prl itself loading them by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import PATIENCE

import star_upstream
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, upstream
from star_upstream.formats.published import known
from star_upstream.mini import SHIPPED

REPO = Path(__file__).resolve().parents[1]


def config(**changes):
    values = {
        "conv_layers": ((8, 10, 5), (8, 8, 8), (12, 8, 8)),
        "projection": False,
        "width": 12,
        "layers": 2,
        "heads": 2,
        "head_width": 6,
        "ffn": 16,
    }
    return EncoderConfig(**{**values, "position_kernel": 8, "position_groups": 2, **changes})


def expert(**changes):
    torch.manual_seed(0)
    return upstream.UpstreamExpert(Encoder(config(**changes)).eval())


def waves(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, generator=generator) for n in lengths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("upstream") / "tiny"
    checkpoint.save(path, expert().encoder, {"made_by": "a test"})
    return path


@pytest.mark.parametrize(
    "changes, states, width",
    [
        ({"hidden_states": "all"}, 3, 12),
        ({"hidden_states": "layers"}, 2, 12),
        ({"hidden_states": "projections", "output_projection": 5}, 2, 5),
    ],
)
def test_states_follow_the_models_convention(changes, states, width):
    model = expert(**changes)
    wavs = waves(4000, 6400)
    with torch.no_grad():
        result = model(wavs)
        output = model.encoder(torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), torch.tensor([4000, 6400]))
    assert [tuple(s.shape) for s in result["hidden_states"]] == [(2, model.frames(6400), width)] * states
    assert result["last_hidden_state"].shape == (2, model.frames(6400), width)
    expected = {"all": output.states, "layers": output.states[1:], "projections": output.projections}[
        changes["hidden_states"]
    ]
    for found, wanted in zip(result["hidden_states"], expected):
        assert torch.equal(found[1], wanted[1])
    assert result["lengths"].tolist() == [model.frames(4000), model.frames(6400)]
    assert model.get_downsample_rates("hidden_states") == 320


def test_alone_equals_batched_and_padding_repeats_the_last_frame():
    model, wavs = expert(), waves(16000, 900, 48000, 5000)
    with torch.no_grad():
        together = model(wavs)
        for i, wav in enumerate(wavs):
            alone, frames = model([wav]), model.frames(len(wav))
            for one, many in zip(alone["hidden_states"], together["hidden_states"]):
                assert one.shape[1] == frames
                assert torch.allclose(one[0], many[i, :frames], atol=1e-5)
                assert torch.allclose(many[i, frames:], one[0, -1:].expand_as(many[i, frames:]), atol=1e-5)


def test_a_wave_shorter_than_one_frame_is_padded_to_it():
    model = expert()
    (wav,) = waves(100)
    with torch.no_grad():
        short = model([wav])["last_hidden_state"]
        padded = model([torch.nn.functional.pad(wav, (0, model.encoder.config.receptive_field - 100))])[
            "last_hidden_state"
        ]
    assert short.shape[1] == model.frames(100) == 1 and torch.equal(short, padded)


@pytest.mark.parametrize(
    "wavs, message",
    [
        ([], "at least one 1-D waveform"),
        (torch.randn(2, 4000), "expected a list"),
        (
            [torch.randn(1, 4000)],
            "waveform 0: expected a 1-D floating-point tensor at 16 kHz, got torch.float32 of shape [1, 4000]",
        ),
        ([torch.randn(4000), torch.zeros(4000, dtype=torch.int16)], "waveform 1: expected a 1-D floating-point tensor"),
        ([torch.zeros(0)], "waveform 0: empty"),
    ],
)
def test_wrong_waveforms(wavs, message):
    with pytest.raises(StarError) as error:
        expert()(wavs)
    assert message in str(error.value)


def test_trainable_and_frozen(folder):
    model = star_upstream.load(folder)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    model(waves(4000))["last_hidden_state"].sum().backward()
    assert model.encoder.layers[0].ffn_in.weight.grad.abs().sum() > 0
    model.requires_grad_(False)
    assert not model(waves(4000))["last_hidden_state"].requires_grad


def test_load_reads_our_folder_and_names_what_is_missing(folder, tmp_path):
    assert star_upstream.load(folder).digest == expert().digest
    assert star_upstream.load(folder, reference_padding=True).encoder.reference_padding
    with pytest.raises(StarError, match="star_minni"):
        star_upstream.load("star_minni")
    with pytest.raises(StarError, match="absent"):
        star_upstream.load(tmp_path / "absent")


def test_architectures_without_weights():
    model = upstream.ENTRIES["star_hubert"](pretrained=False)
    assert sum(p.numel() for p in model.parameters()) == 22_308_592
    with pytest.raises(StarError, match="leave out pretrained=False"):
        upstream.ENTRIES["star_mini"](pretrained=False)


def test_every_name_has_weights_to_load():
    assert set(upstream.ENTRIES) - {"star_local"} <= {*SHIPPED, *known.KNOWN}


def test_s3prl_loads_our_names(folder):
    assert "star_local" in star_upstream.register()
    from s3prl.nn import S3PRLUpstream

    with torch.random.fork_rng():  # s3prl seeds the global generators when it builds an upstream
        model = S3PRLUpstream("star_local", path_or_url=str(folder)).eval()
    assert (model.num_layers, model.hidden_sizes, model.downsample_rates) == (3, [12] * 3, [320] * 3)
    wavs = waves(16000, 7000)
    with torch.no_grad():
        states, lengths = model(torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True), torch.tensor([16000, 7000]))
        alone, alone_lengths = model(wavs[1][None], torch.tensor([7000]))
    # s3prl counts ceil(7000 / 320) = 22 frames where the encoder has 20 or 21: they are filled alike alone and in a
    # batch
    assert lengths[0].tolist() == [50, 22] and alone_lengths[0].tolist() == [22]
    for many, one in zip(states, alone):
        assert torch.allclose(many[1, :22], one[0, :22], atol=1e-5)


def test_s3prl_holds_half_models_and_models_without_values():
    star_upstream.register()
    from s3prl.nn import S3PRLUpstream

    with torch.random.fork_rng():
        model = S3PRLUpstream("star_mini").eval()
    padded, lengths = (
        torch.nn.utils.rnn.pad_sequence(waves(80000, 30000), batch_first=True),
        torch.tensor([80000, 30000]),
    )
    with torch.no_grad():
        right, _ = model(padded, lengths)
        for kind, tolerance in ((torch.float16, 0.004), (torch.bfloat16, 0.03)):
            model.to(kind)
            states, _ = model(padded.to(kind), lengths)
            for ours, theirs in zip(states, right, strict=True):
                assert ours.dtype == kind and (ours.float() - theirs).norm() < tolerance * theirs.norm()
            with torch.random.fork_rng():
                model = S3PRLUpstream("star_mini").eval()
        states, _ = model.to("meta")(padded.to("meta"), lengths)
    assert [state.shape for state in states] == [state.shape for state in right]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_torch_hub_loads_the_shipped_models_offline(name, tmp_path):
    code = (
        "import socket, torch\n"
        "def refuse(*a, **k): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        f"model = torch.hub.load({str(REPO)!r}, {name!r}, source='local')\n"
        "with torch.no_grad(): states = model([torch.randn(16000)])['hidden_states']\n"
        "print(len(states), *states[0].shape, sum(p.numel() for p in model.parameters()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    count, batch, frames, width, parameters = map(int, done.stdout.split())
    described = checkpoint.describe(SHIPPED[name])["encoder"]
    assert (batch, frames, width) == (1, 49, described["width"])
    assert count == described["layers"] + (described["hidden_states"] == "all")
    low, high = {"star_small": (3e6, 5e6), "star_mini_teacher": (8e6, 16e6)}.get(name, (1e6, 2e6))
    assert low <= parameters <= high
