"""Masked prediction of units: masks as they should be, cross entropy by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.losses.units import MaskConfig, MaskedUnits, draw_mask

CONFIG = EncoderConfig(
    conv_layers=((8, 10, 5), (8, 8, 8), (16, 8, 8)), projection=False, width=16, layers=2, heads=2, head_width=8,
    ffn=32,
    position_kernel=8, position_groups=2, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


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
