"""What is measured with: an encoder of a known shape with random weights, or any upstream that ``eval run`` takes."""

from __future__ import annotations

from typing import Any

import torch

from eval.features import upstreams
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError, nearest
from star_upstream.formats.published import huggingface
from star_upstream.formats.upstream import UpstreamExpert
from star_upstream.training import recipe

TINY = EncoderConfig(
    conv_layers=((16, 10, 5), (16, 8, 8), (16, 8, 8)),
    width=32,
    layers=3,
    heads=(2, 2, 2),
    head_width=16,
    ffn=(64, 64, 64),
    position_kernel=16,
    position_groups=4,
)
"""For trying the command out."""


def shapes() -> dict[str, str]:
    """The names that stand for random weights, and what each is."""
    students = {
        f"{name}_random": f"recipe {name}'s student" for name in ("star_hubert", "star_hubert_l", "star_hubert_s")
    }
    return {"hubert_base_random": "HuBERT Base", **students, "tiny_random": "three layers of 32"}


def check(name: str) -> None:
    """Raises :class:`StarError` for a name of random weights that :func:`shapes` has not."""
    if name.endswith("_random") and name not in (known := shapes()):
        fix = f"with random weights: {', '.join(known)}"
        raise StarError(f"--upstream {name}: unknown shape{nearest(name, known)}; {fix}")


def get(name: str) -> upstreams.Upstream:
    """``NAME_random`` of :func:`shapes`, the same weights every time, or what ``python -m eval run --upstream``
    takes."""
    if not name.endswith("_random"):
        return upstreams.load(name)
    check(name)
    configs = {"hubert_base_random": EncoderConfig(), "tiny_random": TINY}
    config = configs.get(name) or recipe.load(name.removesuffix("_random")).student
    assert isinstance(config, EncoderConfig), "these recipes' students have a shape of their own"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expert = UpstreamExpert(Encoder(config), name)
    return upstreams.Upstream(name, expert.eval(), expert.digest, padded=True)


def hubert(**shape: Any) -> tuple[torch.nn.Module, Encoder]:
    """transformers' HuBERT (Base, but for ``shape``) with random weights, and ours with the same."""
    import transformers

    config = transformers.HubertConfig(**{"attn_implementation": "sdpa", **shape})
    theirs = transformers.HubertModel(config)
    weights, prepared = theirs.state_dict(), {"do_normalize": False}
    return theirs, huggingface.load_weights(weights, config.to_dict(), prepared, "random", "config", False)
