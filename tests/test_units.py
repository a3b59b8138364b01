"""Units and their loss: features framed as the encoder frames, clusters found again, cross entropy by hand; the phone probe."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torch.nn.functional as F

from star_upstream import phone_probe, units
from star_upstream.data import scan
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.losses.units import MaskConfig, MaskedUnits, draw_mask

CONFIG = EncoderConfig(
    conv_layers=((8, 10, 5), (8, 8, 8), (16, 8, 8)), projection=False, width=16, layers=2, heads=2, head_width=8, ffn=32,
    position_kernel=8, position_groups=2, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * random.standard_normal(16000 + 1111 * i), 16000)
    return scan([folder]).clips


def test_masks_cover_spans_and_are_drawn_anew():
    config = MaskConfig()
    first, again, other = (draw_mask(50, 200, config, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    # a frame stays unmasked when none of the 10 places before it starts a span: 1 - (1 - 0.065)^10 is 49 %
    assert 0.42 < first.float().mean() < 0.56
    assert first.any(1).all()
    runs = np.diff(np.flatnonzero(np.diff(np.pad(first.numpy().astype(int), ((0, 0), (1, 1)))[0])))[::2]
    assert min(runs[:-1]) >= config.span
    assert draw_mask(3, 4, config, np.random.default_rng(0)).shape == (3, 4)


def test_the_loss_is_cross_entropy_over_masked_frames_and_a_share_of_the_others():
    torch.manual_seed(0)
    model = MaskedUnits(Encoder(CONFIG), 5, MaskConfig(unmasked_weight=0.25)).eval()
    waves = 0.1 * torch.randn(2, 6400)
    frames = CONFIG.frames(6400)
    target = torch.randint(0, 5, (2, frames))
    mask = torch.zeros(2, frames, dtype=torch.bool)
    mask[0, 3:7] = mask[1, :2] = True
    loss, terms = model(waves, target, mask)
    features, lengths = model.encoder.features(waves)
    features = torch.where(mask[..., None], model.mask_embedding, features)
    logits = model.classifier(model.encoder.contextualize(features, lengths).states[-1])
    masked, unmasked = F.cross_entropy(logits[mask], target[mask]), F.cross_entropy(logits[~mask], target[~mask])
    torch.testing.assert_close(loss, masked + 0.25 * unmasked)
    torch.testing.assert_close(terms["masked"], masked)
    assert float(terms["accuracy"]) == pytest.approx((logits.argmax(-1) == target)[mask].float().mean().item())


def test_what_is_masked_is_not_seen_and_a_batch_masked_whole_is_finite():
    torch.manual_seed(0)
    model = MaskedUnits(Encoder(CONFIG), 5, MaskConfig()).eval()
    target = torch.zeros(1, CONFIG.frames(3200), dtype=torch.long)
    mask = torch.ones_like(target, dtype=torch.bool)
    one, other = (model(0.1 * torch.randn(1, 3200), target, mask) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.isfinite(one[0])


def test_mfcc_has_the_encoders_frames(clips):
    for clip in clips:
        table = units.mfcc(clip, CONFIG)
        assert table.shape == (CONFIG.frames(clip.samples), 39)
        assert np.abs(table.astype(np.float32).mean(0)).max() < 0.01


def test_layers_are_those_of_each_clip_alone(clips):
    torch.manual_seed(0)
    encoder = Encoder(CONFIG).eval()
    first, second = units.layers(clips, encoder, [0, 2], seconds=4.0)
    for clip, zero, two in zip(clips, first, second):
        wave = torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0])[None]
        with torch.no_grad():
            states = encoder(wave).states
        np.testing.assert_allclose(zero, states[0][0], atol=2e-3, rtol=2e-3)
        np.testing.assert_allclose(two, states[2][0], atol=2e-3, rtol=2e-3)


def test_a_clip_without_sound_has_no_units_and_is_named(clips, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    with pytest.raises(StarError, match="silent.wav: has no units: silent from end to end"):
        units.layers([*clips, *scan([tmp_path]).clips], Encoder(CONFIG).eval(), [1])


def test_clusters_are_found_and_kept(tmp_path):
    random = np.random.default_rng(0)
    labels = [random.integers(0, 4, n) for n in (50, 80, 30)]
    centres = 10.0 * np.eye(4, 6)
    found = units.cluster([centres[line] + 0.1 * random.standard_normal((len(line), 6)) for line in labels], 4, seed=0)
    table = pd.crosstab(np.concatenate(labels), np.concatenate(found)).to_numpy()
    assert (np.sort(table, 1)[:, :3] == 0).all()
    units.write(tmp_path / "u.npz", found)
    assert all(np.array_equal(a, b) for a, b in zip(units.read(tmp_path / "u.npz", [50, 80, 30]), found, strict=True))
    with pytest.raises(StarError, match="holds the units of other audio"):
        units.read(tmp_path / "u.npz", [50, 80, 31])


def test_a_linear_head_reads_phones_that_are_there_and_not_those_that_are_not():
    random = np.random.default_rng(0)
    names, codes = ["AA", "B", "K", "S"], 3.0 * np.eye(4, 8)

    def utterances(count, told):
        phones = [[names[i] for i in random.integers(0, 4, 8)] for _ in range(count)]
        frames = [np.repeat([names.index(p) for p in line], 4) for line in phones]
        return [told * codes[f] + 0.3 * random.standard_normal((len(f), 8)) for f in frames], phones

    def rate(told):
        return phone_probe.probe(*utterances(40, told), *utterances(20, told), epochs=20)

    # phones that follow themselves are written once, as CTC without a blank between reads them: about a quarter
    assert rate(1.0) < 30.0 < 60.0 < rate(0.0)


def test_the_probe_reads_splits_and_names_what_is_missing(clips, tmp_path):
    rows = [(c.path, c.samples, "train" if i < 4 else "dev", "AA B") for i, c in enumerate(clips)]
    pd.DataFrame(rows, columns=["path", "samples", "split", "phones"]).to_csv(tmp_path / "pr.tsv", sep="\t", index=False)
    found, phones = phone_probe.read(tmp_path / "pr.tsv", "train", 100.0)
    assert [c.samples for c in found] == sorted(c.samples for c in clips[:4]) and phones == [["AA", "B"]] * 4
    assert len(phone_probe.read(tmp_path / "pr.tsv", "train", 1.5)[0]) == 2
    torch.manual_seed(0)
    rates = phone_probe.by_layer(Encoder(CONFIG).eval(), tmp_path / "pr.tsv")
    assert set(rates) == {1, 2} and all(np.isfinite(rate) for rate in rates.values())
    with pytest.raises(StarError, match="no utterance of split test"):
        phone_probe.read(tmp_path / "pr.tsv", "test", 100.0)
    (tmp_path / "bad.tsv").write_text("path\tsamples\n")
    with pytest.raises(StarError, match=r"layers: the model has 2, got \[3\]"):
        phone_probe.by_layer(Encoder(CONFIG).eval(), tmp_path / "pr.tsv", [3])
    with pytest.raises(StarError, match="must name phones, split too"):
        phone_probe.read(tmp_path / "bad.tsv", "dev", 100.0)
