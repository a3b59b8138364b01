"""encode: features equal s3prl's, are encoded once, and survive a damaged cache."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from tiny_corpus import TinyUpstream
from torch import nn

from eval.features import encode, exact, upstreams
from eval.features.encode import Frames, Means, Store, Window
from star_upstream import compat
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats.upstream import UpstreamExpert

compat.apply()


@pytest.fixture
def waves(tmp_path):
    rng = np.random.default_rng(0)
    out = []
    for i, samples in enumerate((16_000, 16_000, 9_000, 500)):
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, samples), 16_000, subtype="FLOAT")
        out.append(Window(str(tmp_path / f"{i}.wav"), 0, samples))
    return out


@pytest.fixture
def tiny():
    return upstreams.Upstream("tiny", TinyUpstream(), "tiny-digest")


def small_encoder():
    torch.manual_seed(0)
    convs = ((16, 10, 5), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 3, 2), (16, 2, 2), (16, 2, 2))
    return Encoder(
        EncoderConfig(conv_layers=convs, width=32, layers=2, heads=2, head_width=16, ffn=64, position_kernel=16)
    ).eval()


def s3prl_upstream(monkeypatch, name, expert):
    from s3prl import hub
    from s3prl.nn import S3PRLUpstream

    monkeypatch.setattr(hub, name, lambda **_: expert, raising=False)
    with upstreams.unseeded():
        return S3PRLUpstream(name).eval()


def reference(module, wave):
    with torch.no_grad():
        states, lengths = module(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    return torch.stack([s[0, : lengths[0][0]] for s in states])


def published(expert, waves):
    """Frames of each waveform in one batch, layers stacked, as s3prl's legacy Featurizer cuts them (its weighted sum is
    of one layer)."""
    from s3prl.upstream.interfaces import Featurizer

    inputs, layers = [torch.from_numpy(wave) for wave in waves], []
    with torch.no_grad(), torch.random.fork_rng():
        given = expert(inputs)
        for layer in range(len(given["hidden_states"])):
            layers.append(Featurizer(expert, upstream_device="cpu", layer_selection=layer)(inputs, given))
    return [torch.stack(states) for states in zip(*layers)]


def group_norm():
    """A small HuBERT Base whose statistics run over padding, as in fairseq and transformers."""
    return UpstreamExpert(Encoder(small_encoder().config, reference_padding=True).eval())


EXPERTS = {
    "fbank": lambda: upstreams.load("fbank").expert,
    "tiny": TinyUpstream,
    "hubert": group_norm,
    "ours": lambda: UpstreamExpert(small_encoder()),
}


@pytest.mark.parametrize("kind", EXPERTS)
def test_states_are_those_of_s3prls_featurizer_alone(kind):
    """Lengths around the steps of both rules: at 400 + 320 k the front end has a frame more, at 160 + 320 k s3prl's
    count."""
    expert, rng = EXPERTS[kind](), np.random.default_rng(0)
    ours = upstreams.Upstream("u", expert, "d", padded=kind == "ours")
    lengths = [400, 401, 479, 480, 481, 500, 560, 639, 640, 719, 720, 721, 799, 800, 801, 1039, 1040, 1041]
    lengths += [8_000, 15_999, 16_000, 16_001, 32_000, 51_360, 127_999, 128_000, 320_000]
    for samples in lengths:
        wave = rng.uniform(-0.5, 0.5, samples).astype(np.float32)
        (expected_LTD,), (mine_LTD,) = published(expert, [wave]), ours.encode([wave])
        if torch.isfinite(expected_LTD).all():
            assert mine_LTD.shape == expected_LTD.shape, samples
            assert torch.allclose(mine_LTD, expected_LTD, atol=1e-5)
            assert ours.frames(samples) == mine_LTD.shape[1]
        else:  # FBANK of one frame has no variance
            assert kind == "fbank" and samples < 560 and torch.isfinite(mine_LTD).all()
    frames = {"fbank": (98, 1998), "tiny": (98, 1998), "hubert": (49, 999), "ours": (49, 999)}[kind]
    assert (ours.frames(16_000), ours.frames(320_000)) == frames


@pytest.mark.parametrize("kind", EXPERTS)
def test_states_are_those_of_s3prls_featurizer_in_a_padded_batch(kind):
    """Encoded at every step, a second has its 50th frame from the padding; encoded once it has 49 in every batch."""
    expert, rng = EXPERTS[kind](), np.random.default_rng(0)
    lengths = (16_000, 400, 800, 5_280, 33_000, 320_000)
    waves = [rng.uniform(-0.5, 0.5, samples).astype(np.float32) for samples in lengths]
    ours = upstreams.Upstream("u", expert, "d", padded=kind == "ours")
    x_BLTD, lengths_B = exact.states(ours, waves)
    for x_LTD, length, expected_LTD in zip(x_BLTD, lengths_B, published(expert, waves), strict=True):
        assert int(length) == expected_LTD.shape[1]
        assert (
            torch.allclose(x_LTD[:, :length], expected_LTD, atol=1e-5, equal_nan=True) and not x_LTD[:, length:].any()
        )
    if kind == "ours":
        assert [int(n) for n in lengths_B] == [50, 1, 2, 16, 103, 999]
        once = ours.encode(waves)
        assert [x_LTD.shape[1] for x_LTD in once] == [49, 1, 2, 16, 102, 999]
        assert all(torch.allclose(a, b[:, : a.shape[1]], atol=1e-5) for a, b in zip(once, x_BLTD))


def test_an_upstream_is_refused_where_s3prls_featurizer_refuses_it():
    class Cut(TinyUpstream):
        missing = 0

        def forward(self, wavs):
            return {
                "hidden_states": [
                    x_BTD[:, : x_BTD.shape[1] - self.missing] for x_BTD in super().forward(wavs)["hidden_states"]
                ]
            }

    expert, wave = Cut(), np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    ours = upstreams.Upstream("u", expert, "d")
    expert.missing = 2  # 98 - 2 of 100: four are missing
    assert ours.encode([wave])[0].shape == published(expert, [wave])[0].shape == (3, 96, 24)
    expert.missing = 3
    with pytest.raises(AssertionError):
        published(expert, [wave])
    for encode_ in (ours.encode, lambda waves: exact.states(ours, waves)):
        with pytest.raises(StarError, match="gave 95 frames where its stride 160 means 100"):
            encode_([wave])


def test_a_waveform_shorter_than_a_frame_has_one(tiny):
    for samples in (1, 100, 399):
        for ours in (tiny, upstreams.Upstream("u", UpstreamExpert(small_encoder()), "d", padded=True)):
            (states_LTD,) = ours.encode([np.ones(samples, dtype=np.float32)])
            assert states_LTD.shape[1] == ours.frames(samples) == max(1, min(round(samples / ours.stride), 1))


def test_means_of_a_short_utterance_move_by_the_rule():
    """By hand: of frames 1 to 49, 25; with the last one repeated it would be (1 + ... + 49 + 49) / 50 = 25.48."""

    class Count(nn.Module):
        def get_downsample_rates(self, key):
            return 320

        def forward(self, wavs):
            return {"hidden_states": [torch.arange(1.0, (len(wavs[0]) - 400) // 320 + 2)[None, :, None]] * 2}

    wave = np.zeros(16_000, dtype=np.float32)
    assert float(upstreams.Upstream("u", Count(), "d").encode([wave])[0].mean()) == pytest.approx(25.0)


def test_unpadded_upstreams_never_see_padding(tiny, waves):
    with pytest.raises(ValueError, match="one length"):
        tiny.encode([encode.waveform(w) for w in waves])
    before = tiny.expert.calls
    list(encode._encode(waves, tiny, ()))
    assert tiny.expert.calls - before == 3  # 16000 twice together, 9000 and 500 alone


def test_time_means_give_s3prls_logits(tiny, waves, tmp_path):
    """The claim that lets a run encode once: head(means) = s3prl's Featurizer, MeanPoolingLinear on all frames."""
    from s3prl.nn import MeanPoolingLinear
    from s3prl.upstream.interfaces import Featurizer

    from eval.heads.train import Head

    expert = TinyUpstream()
    featurizer, model = Featurizer(expert, upstream_device="cpu"), MeanPoolingLinear(24, 5, hidden_size=7)
    torch.nn.init.normal_(featurizer.weights)
    head = Head(3, model)
    head.weights.data.copy_(featurizer.weights.data)
    x_BLTD, lengths_B = Means([[w] for w in waves], tiny, Store(tmp_path / "c")).batch(range(4))
    assert x_BLTD.shape == (4, 3, 1, 24) and lengths_B.tolist() == [1, 1, 1, 1]
    with torch.no_grad():
        mine = model(head.mix(x_BLTD), lengths_B)
        for i, window in enumerate(waves):
            wave = torch.from_numpy(encode.waveform(window))
            (mixed,) = featurizer([wave], expert([wave]))
            assert torch.allclose(mine[i], model(mixed[None], torch.tensor([len(mixed)]))[0], atol=1e-5)


def test_frames_are_padded_and_close_to_fp32(tiny, waves, tmp_path):
    frames = Frames([[w] for w in waves], tiny, Store(tmp_path / "c"))
    x_BLTD, lengths_B = frames.batch([2, 0])
    assert lengths_B.tolist() == [54, 98] and x_BLTD.shape == (2, 3, 98, 24)
    assert x_BLTD[0, :, 54:].abs().max() == 0
    assert (
        frames.samples(2) == 9_000
        and Frames([[waves[2]]], tiny, Store(tmp_path / "c"), (("gain", "-3.0"),)).samples(0) == 9_000
    )
    assert torch.allclose(x_BLTD[1], tiny.encode([encode.waveform(waves[0])])[0], atol=5e-3)


def test_features_that_overflow_fp16_stay_fp32(tiny, waves, tmp_path):
    tiny.expert.maps[0].data.mul_(1e6)
    frames = Frames([[waves[0]]], tiny, Store(tmp_path / "c"))
    x_BLTD, _ = frames.batch([0])
    assert x_BLTD.abs().max() > 65504 and torch.isfinite(x_BLTD).all()


def test_crops_are_fixed_and_cover_the_utterance():
    table = pd.DataFrame(
        {
            "path": ["a", "a", "b"],
            "start": [0, 100, 0],
            "samples": [320_000, 320_000, 1000],
            "split": ["train", "test", "train"],
        }
    )
    rows = encode.windows(table, crop_seconds=8.0, crops=3)
    assert [(w.start, w.samples) for w in rows[0]] == [(0, 128_000), (96_000, 128_000), (192_000, 128_000)]
    assert [(w.start, w.samples) for w in rows[1]] == [(100, 320_000)] and [(w.start, w.samples) for w in rows[2]] == [
        (0, 1000)
    ]


def test_crops_are_drawn_by_the_generator_alone(tiny, waves, tmp_path):
    means = Means([[waves[0], waves[2], waves[3]], [waves[1]]], tiny, Store(tmp_path / "c"))
    drawn = {float(means.batch([0], torch.Generator().manual_seed(s))[0].sum()) for s in range(20)}
    assert len(drawn) == 3
    assert torch.equal(means.batch([0, 1])[0][:, :, 0], means.of([0, 3]))


def test_bad_audio_is_named(tiny, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF....WAVE nothing")
    with pytest.raises(StarError, match="bad.wav: cannot be read"):
        Means([[Window(str(tmp_path / "bad.wav"), 0, 1600)]], tiny, Store(tmp_path / "c"))
    with pytest.raises(StarError, match="gone.wav: no such audio file"):
        Means([[Window(str(tmp_path / "gone.wav"), 0, 1600)]], tiny, Store(tmp_path / "c"))
    soundfile.write(tmp_path / "nan.wav", np.full(1600, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(StarError, match="nan.wav: holds NaN"):
        Means([[Window(str(tmp_path / "nan.wav"), 0, 1600)]], tiny, Store(tmp_path / "c"))


def test_nan_features_name_the_file(tiny, waves, tmp_path):
    tiny.expert.maps[1].data[0] = float("nan")
    with pytest.raises(StarError, match="0.wav: upstream tiny gives NaN"):
        Means([[waves[0]]], tiny, Store(tmp_path / "c"))


def test_upstream_names():
    assert upstreams.load("tiny_corpus:upstream").parameters == 3 * 201 * 24
    for name, message in (
        ("fbnak", "s3prl has 'fbank'"),
        ("tiny_corpus:upstrem", "did you mean 'upstream'"),
        ("no_such_module:f", "cannot import"),
        ("tiny_corpus:not_an_upstream", "not an upstream"),
        ("tiny_corpus:make", "without arguments failed"),
        ("tiny_corpus:Path", "must return a torch module"),
        ("nowhere/at/all.pt", "no such file"),
    ):
        with pytest.raises(StarError, match=message):
            upstreams.load(name)


def test_loading_does_not_seed_the_global_generators():
    import random

    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    upstreams.load("fbank")
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_wrong_stride_is_an_error():
    class Wrong(TinyUpstream):
        def get_downsample_rates(self, key):
            return 320

    with pytest.raises(StarError, match="its stride 320 means 50"):
        upstreams.Upstream("wrong", Wrong(), "d")


@pytest.mark.parametrize("stride", [0, None, 160.5, "320"])
def test_a_stride_that_is_no_number_of_samples_is_an_error(stride):
    class Wrong(TinyUpstream):
        def get_downsample_rates(self, key):
            return stride

    with pytest.raises(StarError, match="a stride is a whole number of samples"):
        upstreams.Upstream("wrong", Wrong(), "d")


@pytest.mark.parametrize("states, message", [([], "gives no hidden states"), ([100, 99], "several lengths")])
def test_states_that_cannot_be_summed_are_an_error(states, message):
    class Wrong(TinyUpstream):
        def forward(self, wavs):
            return {"hidden_states": [torch.zeros(len(wavs), frames, 4) for frames in states]}

    with pytest.raises(StarError, match=message):
        upstreams.Upstream("wrong", Wrong(), "d")


class Small(TinyUpstream):
    """Has memory for so many padded samples."""

    def __init__(self, room, error):
        super().__init__()
        self.room, self.error, self.batches = room, error, []

    def forward(self, wavs):
        if len(wavs) * max(map(len, wavs)) > self.room:
            raise self.error
        self.batches.append(len(wavs))
        return super().forward(wavs)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_halves_the_batch_and_skips_nothing(error, waves, tiny, tmp_path, capsys):
    many = [Window(waves[i % 2].path, 0, 16_000 - i) for i in range(9)]
    small = upstreams.Upstream("small", Small(33_000, error), "small")
    small.padded = tiny.padded = True
    small.expert.frames = tiny.expert.frames = lambda samples: (samples - 400) // 160 + 1
    found = Means([[w] for w in many], small, Store(tmp_path / "a"))
    lines = capsys.readouterr().err.splitlines()
    assert "out of memory on cpu with 9 utterances of up to 1.0 s" in lines[0] and "in halves" in lines[0]
    assert max(small.expert.batches[1:]) == 2 and sum(small.expert.batches[1:]) == 9
    assert torch.equal(found.of(range(9)), Means([[w] for w in many], tiny, Store(tmp_path / "b")).of(range(9)))
    Means([[w] for w in many], small, Store(tmp_path / "c"))
    assert capsys.readouterr().err == ""  # the smaller batches stay


def test_an_utterance_too_long_for_the_memory_is_named(waves, tmp_path):
    small = upstreams.Upstream("small", Small(16_000, MemoryError()), "small")
    small.expert.room = 9_500
    with pytest.raises(StarError, match=r"0\.wav: out of memory on cpu: its 1\.0 s do not fit even alone"):
        Means([[w] for w in waves], small, Store(tmp_path / "a"))


def test_other_errors_are_not_taken_for_want_of_memory(waves, tmp_path):
    small = upstreams.Upstream("small", Small(16_000, RuntimeError("sizes do not match")), "small")
    small.expert.room = 0
    with pytest.raises(RuntimeError, match="sizes do not match"):
        Means([[w] for w in waves], small, Store(tmp_path / "a"))


def test_autocast_is_part_of_the_key_and_gives_fp32_states(waves):
    expert = UpstreamExpert(small_encoder())
    ours = upstreams.Upstream("ours", expert, expert.digest, padded=True)
    assert ours.precision == "fp32" and ours.autocast is None
    wave, key = encode.waveform(waves[0]), encode._key("means", ours, (), waves)
    plain_LTD = ours.encode([wave])[0]
    ours.autocast = torch.bfloat16
    half_LTD = ours.encode([wave])[0]
    assert ours.precision == "bfloat16 autocast" and encode._key("means", ours, (), waves) != key
    assert half_LTD.dtype == torch.float32 and not torch.equal(half_LTD, plain_LTD)
    assert torch.allclose(half_LTD, plain_LTD, atol=0.1)


def test_macs_are_those_of_our_encoders(tiny):
    from star_upstream.encoder.size import profile

    expert = UpstreamExpert(small_encoder())
    ours = upstreams.Upstream("ours", expert, expert.digest, padded=True)
    assert ours.macs_g == profile(expert.encoder.config)["macs_g"] > 0
    assert tiny.macs_g is None


def test_heads_that_only_a_distillation_needs_are_no_parameters_of_an_upstream():
    config = replace(small_encoder().config, prediction_layers=(1, 2))
    expert = UpstreamExpert(Encoder(config).eval())
    ours = upstreams.Upstream("ours", expert, expert.digest, padded=True)
    plain = sum(p.numel() for p in small_encoder().parameters())
    assert ours.parameters == plain < sum(p.numel() for p in expert.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(value, dtype):
    x = torch.zeros(2, 3, 40, dtype=dtype)
    assert upstreams.finite(x) and upstreams.finite(x[:0])
    x[1, 1, 17] = value
    assert not upstreams.finite(x)
