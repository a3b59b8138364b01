"""torchaudio's models and bundles: their states, names and caches."""

import json

import pytest
import torch
import torchaudio
from tiny_transformers import CONVS, LENGTHS, WAVES, close, randomised

from star_upstream.errors import StarError
from star_upstream.formats import sources
from star_upstream.formats.published import torchaudio_style

TORCHAUDIO = {
    "extractor_conv_layer_config": CONVS,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 4,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 40,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.1,
    "encoder_layer_drop": 0.0,
}
BASE = {"extractor_mode": "group_norm", "extractor_conv_bias": False, "encoder_layer_norm_first": False}
LARGE = {"extractor_mode": "layer_norm", "extractor_conv_bias": True, "encoder_layer_norm_first": True}


@pytest.mark.parametrize("options", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
@torch.no_grad()
def test_torchaudio_models(kind, options, tmp_path):
    torch.manual_seed(0)
    if kind == "wav2vec2":
        model = torchaudio.models.wav2vec2_model(**TORCHAUDIO, **options, aux_num_out=7)
    elif kind == "wavlm":
        model = torchaudio.models.wavlm_model(
            **TORCHAUDIO, **options, aux_num_out=None, encoder_num_buckets=16, encoder_max_distance=40
        )
    else:
        masks = {
            "mask_prob": 0.8,
            "mask_selection": "static",
            "mask_other": 0.0,
            "mask_length": 2,
            "no_mask_overlap": False,
            "mask_min_space": 1,
        }
        channels = {
            "mask_channel_prob": 0.0,
            "mask_channel_selection": "static",
            "mask_channel_other": 0.0,
            "mask_channel_length": 2,
            "no_mask_channel_overlap": False,
            "mask_channel_min_space": 1,
        }
        rest = {"skip_masked": False, "skip_nomask": False, "num_classes": 5, "final_dim": 8, "feature_grad_mult": None}
        model = torchaudio.models.hubert_pretrain_model(**TORCHAUDIO, **options, **masks, **channels, **rest)
    encoder = torchaudio_style.from_model(randomised(model), False, kind, reference_padding=True)
    assert kind == "hubert" or encoder.mask_vector is None
    assert kind != "hubert" or torch.equal(encoder.mask_vector, model.mask_generator.mask_embedding)
    network = getattr(model, "wav2vec2", model)
    lengths = None if kind == "wavlm" else LENGTHS  # torchaudio's WavLM takes no padding
    states, _ = network.extract_features(WAVES, lengths)
    output = encoder(WAVES, lengths)
    assert encoder.config.norm == ("pre" if options is LARGE else "post") and (
        encoder.relative_position is not None
    ) == (kind == "wavlm")
    # the same weights without their module, and the arguments in a file
    prefix = "" if kind == "hubert" else "module."
    torch.save({prefix + name: tensor for name, tensor in model.state_dict().items()}, tmp_path / "bare.pth")
    relative = {"encoder_num_buckets": 16, "encoder_max_distance": 40} if kind == "wavlm" else {}
    (tmp_path / "bare.json").write_text(json.dumps(TORCHAUDIO | options | relative))
    bare = sources.load(tmp_path / "bare.pth", reference_padding=True)
    for ours, theirs in zip(bare(WAVES, lengths).states, output.states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(output.states[1:-1], states[:-1], strict=True):
        close(ours, theirs, output)
    if kind != "wav2vec2":  # its forward goes on to logits
        close(output.states[-1], network(WAVES, lengths)[0], output)
    elif options is BASE:
        close(output.states[-1], states[-1], output)


def test_bundle_names_and_their_offline_message(monkeypatch, tmp_path):
    assert {"HUBERT_BASE", "WAV2VEC2_LARGE_LV60K", "WAVLM_BASE_PLUS"} <= set(sources.bundles())
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def unreachable(*_args, **_kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torchaudio.pipelines.Wav2Vec2Bundle, "_get_state_dict", unreachable)
    with pytest.raises(StarError) as error:
        sources.load("HUBERT_BASE")
    url = "https://download.pytorch.org/torchaudio/models/hubert_fairseq_base_ls960.pth"
    assert f"fetch {url} and save it as {tmp_path / 'checkpoints' / 'hubert_fairseq_base_ls960.pth'}" in str(
        error.value
    )


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_a_bundle_loads_from_torch_hubs_cache(normalize, monkeypatch, tmp_path):
    """The real road of a bundle, from the place where the offline message puts the file, with a tiny model under its
    name."""
    torch.manual_seed(0)
    model = randomised(torchaudio.models.wav2vec2_model(**TORCHAUDIO, **LARGE, aux_num_out=None))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoints" / "tiny.pth")
    bundle = torchaudio.pipelines.Wav2Vec2Bundle(
        "tiny.pth", TORCHAUDIO | LARGE | {"aux_num_out": None}, 16000, normalize, "Wav2Vec2"
    )
    monkeypatch.setattr(torchaudio.pipelines, "TINY", bundle, raising=False)
    encoder = sources.load("TINY")
    assert encoder.config.normalize_waveform == normalize
    theirs = bundle.get_model()(WAVES[:1])[0]
    torch.testing.assert_close(encoder(WAVES[:1]).states[-1], theirs, atol=2e-5, rtol=1e-5)
