"""Tiny random models of the transformers library, and their states beside ours."""

import pytest
import torch

from star_upstream.encoder import Encoder

transformers = pytest.importorskip("transformers")

CONVS = [(16, 10, 5), (16, 3, 2), (24, 2, 2)]
LENGTHS = torch.tensor([3000, 1900])
WAVES = torch.stack([torch.randn(3000, generator=torch.Generator().manual_seed(i)) * 0.2 + 0.03 for i in range(2)])
WAVES[1, 1900:] = 0
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [c for c, _, _ in CONVS],
    "conv_kernel": [k for _, k, _ in CONVS],
    "conv_stride": [s for _, _, s in CONVS],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
    "pad_token_id": 0,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "num_buckets": 16,
    "max_bucket_distance": 40,
}
STABLE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


def randomised(module, seed=0):
    """In eval mode, every parameter and batch-norm statistic moved, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm1d):
                part.running_mean.normal_(generator=generator)
                part.running_var.uniform_(0.2, 3.0, generator=generator)
    return module.eval()


def tiny(kind: str, head: str = "Model", **options):
    """A tiny random transformers model."""
    torch.manual_seed(0)
    cls, config = getattr(transformers, kind + head), getattr(transformers, f"{kind}Config")
    options = {k: v for k, v in (SIZES | options).items() if kind == "WavLM" or "bucket" not in k}
    return randomised(cls(config(**options)))


def close(ours, theirs, output, atol=5e-5):  # of states around 1, in fp32: another CPU sums in another order
    valid = torch.arange(theirs.shape[1]) < output.lengths_B[:, None]
    assert theirs[valid].std() > 0.01
    torch.testing.assert_close(ours[valid], theirs[valid], atol=atol, rtol=1e-5)


@torch.no_grad()
def check(encoder: Encoder, reference, waves=WAVES) -> None:
    """``encoder`` gives the states of a transformers model on a padded batch, and is a teacher."""
    assert not encoder.training and not any(p.requires_grad or p.dtype != torch.float32 for p in encoder.parameters())
    mask = (torch.arange(3000) < LENGTHS[:, None]).long()
    result = reference(waves, attention_mask=mask, output_hidden_states=True)
    output = encoder(WAVES, LENGTHS)
    for ours, theirs in zip(output.states, (*result.hidden_states[:-1], result.last_hidden_state), strict=True):
        close(ours, theirs, output)


@torch.no_grad()
def check_alone(encoder: Encoder, reference) -> None:
    """``encoder``, without the references' padding, gives in a padded batch what the transformers model gives for one
    utterance."""
    together = encoder(WAVES, LENGTHS)
    for i, n in enumerate(LENGTHS):
        result = reference(WAVES[i : i + 1, :n], output_hidden_states=True)
        theirs = (*result.hidden_states[:-1], result.last_hidden_state)
        for states in (together.states, encoder(WAVES[i : i + 1, :n]).states):
            for one, other in zip(states, theirs, strict=True):
                torch.testing.assert_close(
                    one[i if len(one) > 1 else 0, : other.shape[1]], other[0], atol=2e-5, rtol=1e-5
                )
