"""Chunked models: a stream gives what the whole waveform gives, when it should, in a memory that does not grow."""

import numpy as np
import pytest
import torch

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig, size
from star_upstream.encoder.stream import TOGETHER
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.formats.upstream import UpstreamExpert
from star_upstream.training import recipe

SMALL = {
    "width": 32, "layers": 3, "heads": 2, "head_width": 16, "ffn": 48, "position_kernel": 16, "position_groups": 4,
    "dropout": 0.0, "attention_dropout": 0.0, "attention": "chunked", "chunk": 4, "left_context": 6, "look_ahead": 2,
    "frontend": "mel", "mel_bins": 20, "conv_layers": [[24, 3, 1], [32, 3, 2]], "statistics": "running",
}  # fmt: skip
LIGHT = {"frontend": "light", "conv_layers": [[8, 40, 20], [16, 7, 4], [32, 4, 4]], "conv_norm": "layer"}
VARIANTS = {
    "log-mel": {},
    "light": {**LIGHT, "statistics": "utterance"},
    "waveform": {
        "frontend": "waveform", "conv_layers": [[8, 10, 5], [8, 8, 8], [32, 11, 8]], "normalize_waveform": True,
    },
    "no context": {"left_context": 0, "look_ahead": 0, "conv_norm": "layer"},
    "one frame a chunk, pre-norm": {"chunk": 1, "look_ahead": 3, "left_context": 5, "norm": "pre"},
    "look-ahead beyond a chunk, reused maps": {
        "chunk": 3, "look_ahead": 5, "left_context": 2, "reuse_attention": [False, True, False],
    },
    "gated relative position": {"relative_position": {"buckets": 16, "max_distance": 40, "total_heads": 2}},
    "stacked positional convolutions": {"position_norm": "layer", "position_layers": 3, "position_kernel": 5},
    "left-out parts, heads": {
        "position_norm": "batch", "heads": [2, 0, 1], "ffn": [48, 0, 20], "output_projection": 7,
        "hidden_states": "projections", "prediction_layers": [1, 2],
    },
    "strides that skip": {"conv_layers": [[24, 1, 1], [32, 1, 2]]},
}  # fmt: skip


def make(**changes) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(strict.build(EncoderConfig, SMALL | changes))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return encoder.eval()


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def streamed(encoder: Encoder, wave_N: torch.Tensor, cuts: list[int]) -> list[torch.Tensor]:
    """The states and all else of a stream whose pieces end at ``cuts``."""
    stream = encoder.stream()
    pieces = torch.tensor_split(wave_N, cuts)
    outputs = [*(stream.push(piece_N) for piece_N in pieces), stream.flush()]
    assert stream.samples == len(wave_N)
    return [torch.cat(parts, 1) for parts in zip(*(tensors(output) for output in outputs))]


def tensors(output) -> list[torch.Tensor]:
    return [*output.states, output.features_BTD, *(output.projections or []), *(output.predictions or [])]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_any_split_gives_what_the_whole_gives(changes):
    encoder, random = make(**changes), np.random.default_rng(0)
    for samples in (1, 400, 719, 5000, 16_000):
        wave_N = noise(samples, samples)
        whole = tensors(encoder(wave_N[None]))
        assert whole[0].shape[1] == encoder.config.frames(samples) and whole[0].std() > 0.01
        for count in (0, 3, 15):
            cuts = np.sort(random.integers(0, samples + 1, count)).tolist()  # some pieces are empty
            for mine, theirs in zip(streamed(encoder, wave_N, cuts), whole, strict=True):
                torch.testing.assert_close(mine, theirs, atol=5e-5, rtol=0)


@torch.no_grad()
def test_one_sample_at_a_time_comes_when_it_should():
    encoder = make(chunk=2, look_ahead=1, layers=1, heads=2, ffn=8)
    config, wave_N = encoder.config, noise(3000)
    whole = encoder(wave_N[None]).states[-1]
    stream, found, came = encoder.stream(), [], []
    for n in range(len(wave_N)):
        output = stream.push(wave_N[n : n + 1])
        found.append(output.states[-1])
        came += [n + 1] * int(output.lengths_B)
    # chunk i begins with sample 640 i; chunk and look-ahead are three frames, and the windows reach 400 samples beyond
    assert (config.latency_ms, config.window_ms) == (60.0, 25.0)
    assert came == [640 * (t // 2) + 3 * 320 + 400 for t in range(len(came))] and len(came) == 6
    found.append(stream.flush().states[-1])
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=5e-5, rtol=0)


@torch.no_grad()
def test_a_long_stream_keeps_no_more_than_a_short_one():
    encoder = make()
    stream, sizes = encoder.stream(), []
    for i in range(60):
        stream.push(noise(16_000, i))
        sizes.append(sum(x.untyped_storage().nbytes() for x in stream.state))
        assert stream.waiting_BN.untyped_storage().nbytes() < 4 * stream.step.plan.samples
    assert stream.frames > 2900 and len(set(sizes)) == 1


@torch.no_grad()
def test_a_long_piece_and_two_waveforms_at_once():
    encoder = make()
    samples = (TOGETHER + 3) * encoder.stream().step.plan.samples
    waves_BN = torch.stack([noise(samples, 1), noise(samples, 2)])
    stream = encoder.stream(batch=2)
    states = torch.cat([stream.push(waves_BN.numpy()).states[-1], stream.flush().states[-1]], 1)
    torch.testing.assert_close(states, encoder(waves_BN).states[-1], atol=5e-5, rtol=0)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_an_utterance_gives_the_same_states_alone_and_in_a_batch(changes):
    encoder, lengths = make(**changes), (9000, 5019, 1500, 720, 150)
    waves_BN = torch.nn.utils.rnn.pad_sequence([noise(n, n) for n in lengths], batch_first=True)
    together = tensors(encoder(waves_BN, torch.tensor(lengths)))
    for i, n in enumerate(lengths):
        for mine, theirs in zip(tensors(encoder(noise(n, n)[None])), together, strict=True):
            assert theirs.isfinite().all()
            torch.testing.assert_close(mine[0], theirs[i, : mine.shape[1]], atol=5e-5, rtol=0)


@torch.no_grad()
def test_a_frame_sees_its_chunk_the_look_ahead_and_no_more():
    """However many layers there are, and to the left as far as layers times the left context."""
    encoder, wave_N = make(position_kernel=1, **LIGHT, statistics="utterance"), noise(40 * 320 + 80)
    before = encoder(wave_N[None]).states[-1][0]
    changed_N = wave_N.clone()
    changed_N[20 * 320 + 100 : 20 * 320 + 300] += 1  # frames 19 and 20
    different = (encoder(changed_N[None]).states[-1][0] - before).abs().amax(-1) > 1e-4
    # frame 19 ends chunk 4 (16 to 19), whose first frame sees it; chunk 3 ends with 15 and looks 2 ahead, to 17
    assert not different[:16].any() and different[16:24].all() and different[24:].any()
    torch.testing.assert_close(before, encoder(wave_N[None], torch.tensor([len(wave_N)])).states[-1][0])


@torch.no_grad()
def test_maps_are_what_the_layers_attend_with():
    encoder = make()
    output = encoder(noise(9000)[None], attention_maps=True)
    frames = output.states[0].shape[1]
    for map_BHTT in output.attentions:
        assert map_BHTT.shape == (1, 2, frames, frames)
        torch.testing.assert_close(map_BHTT.sum(-1), torch.ones(1, 2, frames))
        query_T, key_T = torch.arange(frames)[:, None], torch.arange(frames)
        start_T = query_T // 4 * 4
        seen_TT = (key_T >= start_T - 6) & (key_T < start_T + 4 + 2)
        assert (map_BHTT[0] > 0).equal(seen_TT.expand(2, -1, -1))
    torch.testing.assert_close(output.states[-1], encoder(noise(9000)[None]).states[-1], atol=1e-5, rtol=0)


def test_it_learns():
    encoder = make(dropout=0.1, attention_dropout=0.1).train()
    output = encoder(torch.stack([noise(9000), noise(9000, 1)]), torch.tensor([9000, 5000]))
    output.states[-1][:, :10].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_cost_by_hand():
    small = strict.build(EncoderConfig, SMALL | {"layers": 1, "conv_bias": True})
    whole = strict.build(EncoderConfig, SMALL | {"layers": 0, "heads": 0, "ffn": 0, "conv_bias": True})
    # 1 s: 49 frames, 13 chunks of 4 and 2 to look ahead, 6 before them
    assert size.macs(small, 16_000) - size.macs(whole, 16_000) == 13 * 6 * (
        32 * 4 * 32 + 2 * 32 * (6 + 4 + 2) + 2 * 32 * 48
    )
    assert small.latency_ms == 120.0 and EncoderConfig().latency_ms is None


@torch.no_grad()
def test_the_recipe_and_the_upstream(tmp_path):
    loaded = recipe.load("star_mini_stream").student
    assert (loaded.latency_ms, loaded.window_ms) == (400.0, 25.0)
    checkpoint.save(tmp_path / "m", make(hidden_states="layers"), {})
    model = UpstreamExpert(checkpoint.load(tmp_path / "m")).eval()
    wave_N = noise(12_345)
    stream, whole = model.stream(), model([wave_N])
    pieces = [*(stream.push(piece_N) for piece_N in wave_N.split(3000)), stream.flush()]
    assert [sorted(piece) for piece in pieces] == [["hidden_states", "last_hidden_state", "lengths"]] * len(pieces)
    for layer, x_BTD in enumerate(whole["hidden_states"]):
        found = torch.cat([piece["hidden_states"][layer] for piece in pieces], 1)
        torch.testing.assert_close(found, x_BTD, atol=5e-5, rtol=0)
    assert sum(int(piece["lengths"]) for piece in pieces) == int(whole["lengths"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": "utterance"}, "over which log-mel frames are and the first convolution's channels are"),
        ({"statistics": "utterance", "conv_norm": "layer"}, "over which log-mel frames are normalised; take"),
        ({**LIGHT, "conv_norm": "group", "statistics": "utterance"}, "take statistics 'running', or conv_norm 'layer'"),
        ({**LIGHT, "normalize_waveform": True, "statistics": "utterance"}, "the waveform is (normalize_waveform) norm"),
        ({"time_reduction": 2}, "time_reduction: attention 'chunked' goes with 1 alone"),
        ({"chunk": 0}, "chunk: must be 1 or more, got 0"),
        ({"look_ahead": -1}, "look_ahead: must be 0 or more, got -1"),
        ({"attention": "causal"}, "attention: expected 'full' or 'chunked', got 'causal'"),
    ],
)  # fmt: skip
def test_what_a_streaming_model_may_not_have(changes, message):
    with pytest.raises(StarError) as error:
        strict.build(EncoderConfig, SMALL | changes)
    assert message in str(error.value)


def test_a_stream_that_cannot_be_says_so():
    with pytest.raises(StarError, match="cannot stream; distil one with attention: chunked"):
        make(attention="full").stream()
    with pytest.raises(StarError, match="call its eval"):
        make().train().stream()
    stream = make().stream()
    for wrong in (torch.zeros(2, 100), torch.zeros(100, dtype=torch.int16), np.zeros((1, 1, 3), np.float32)):
        with pytest.raises(StarError, match="push: expected floats at 16 kHz, N of them, got"):
            stream.push(wrong)
    assert stream.push(np.zeros(0, np.float32)).states[-1].shape == (1, 0, 32)
    assert stream.flush().states[-1].shape == (1, 0, 32)
    with pytest.raises(StarError, match="this stream was flushed"):
        stream.push(torch.zeros(10))
