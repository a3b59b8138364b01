"""From gates to smaller tensors.

Shapes: C channels, H heads, D width.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..encoder import Encoder, EncoderConfig
from .gates import GatedEncoder


@torch.no_grad()
def cut(model: GatedEncoder) -> Encoder:
    """A new encoder, in eval mode, on the model's device, without what the settled gates close. Its states are the
    gated model's in eval mode.

    Open gates go into the weights that follow them; those of the last convolution stay as factors (``feature_scale``),
    since a norm follows.
    """
    gates, config = model.settled(), cut_config(model)
    weights = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    _cut_frontend(weights, gates, model)
    for place, i in enumerate(model.attentions):
        _cut_part(
            weights, gates, i, "heads", gates["attentions"][place] if "attentions" in gates else None, model.config
        )
        if not config.heads[i]:
            _drop(weights, f"layers.{i}.attention.", f"layers.{i}.attention_norm." if config.norm == "pre" else None)
    for place, i in enumerate(model.ffns):
        _cut_part(weights, gates, i, "units", gates["ffns"][place] if "ffns" in gates else None, model.config)
        if not config.ffn[i]:
            _drop(
                weights,
                f"layers.{i}.ffn_in.",
                f"layers.{i}.ffn_out.",
                f"layers.{i}.ffn_norm." if config.norm == "pre" else None,
            )
    smaller = Encoder(config, model.encoder.reference_padding).to(next(model.parameters()).device)
    smaller.load_state_dict(weights)
    return smaller.eval()


def cut_config(model: GatedEncoder) -> EncoderConfig:
    """The configuration of the encoder that :func:`cut` returns."""
    config, kept, gates = model.config, model.kept(), model.settled()
    relative = config.relative_position
    if relative is not None:
        before = relative.kept_heads or tuple(tuple(range(h)) for h in config.heads)
        after = []
        for i, heads in enumerate(before):
            open_H = gates[f"heads_{i}"].tolist() if f"heads_{i}" in gates else [1.0] * len(heads)
            after.append(tuple(h for h, gate in zip(heads, open_H) if gate > 0) if kept.heads[i] else ())
        relative = dataclasses.replace(relative, kept_heads=tuple(after))
    return dataclasses.replace(
        config,
        conv_layers=tuple((n, kernel, stride) for n, (_, kernel, stride) in zip(kept.convs, config.conv_layers)),
        feature_scale=config.feature_scale or model.scaled,
        heads=tuple(kept.heads),
        ffn=tuple(kept.units),
        relative_position=relative,
    )


def _cut_frontend(weights: dict[str, Tensor], gates: dict[str, Tensor], model: GatedEncoder) -> None:
    last = len(model.config.conv_layers) - 1
    for i in range(last + 1):
        if f"conv_{i}" not in gates:
            continue
        gate_C = gates[f"conv_{i}"]
        open_C = gate_C.nonzero().squeeze(1)
        for name in (f"convs.{i}.weight", f"convs.{i}.bias", f"norms.{i}.weight", f"norms.{i}.bias"):
            _take(weights, f"frontend.{name}", open_C, 0)
        if i < last:
            weights[f"frontend.convs.{i + 1}.weight"] *= gate_C[:, None]
            _take(weights, f"frontend.convs.{i + 1}.weight", open_C, 1)
            continue
        if model.scaled:
            weights["frontend.scale"] = weights.get("frontend.scale", torch.ones_like(gate_C)) * gate_C
        else:
            weights["frontend.projection.weight"] *= gate_C
        for name in ("scale", "norm.weight", "norm.bias"):
            _take(weights, f"frontend.{name}", open_C, 0)
        _take(weights, "frontend.projection.weight", open_C, 1)


def _cut_part(
    weights: dict[str, Tensor],
    gates: dict[str, Tensor],
    layer: int,
    group: str,
    whole: Tensor | None,
    config: EncoderConfig,
) -> None:
    """The heads or FFN units of one layer."""
    if group == "heads":
        output, inputs = "attention.output", ["attention.query", "attention.key", "attention.value"]
    else:
        output, inputs = "ffn_out", ["ffn_in"]
    if f"{group}_{layer}" in gates:
        gate_E = gates[f"{group}_{layer}"].repeat_interleave(config.head_width if group == "heads" else 1)
        open_E = gate_E.nonzero().squeeze(1)
        weights[f"layers.{layer}.{output}.weight"] *= gate_E
        _take(weights, f"layers.{layer}.{output}.weight", open_E, 1)
        for name in inputs:
            _take(weights, f"layers.{layer}.{name}.weight", open_E, 0)
            _take(weights, f"layers.{layer}.{name}.bias", open_E, 0)
    if whole is not None:
        weights[f"layers.{layer}.{output}.weight"] *= whole
        weights[f"layers.{layer}.{output}.bias"] *= whole


def _take(weights: dict[str, Tensor], name: str, index: Tensor, dim: int) -> None:
    if name in weights:
        weights[name] = weights[name].index_select(dim, index)


def _drop(weights: dict[str, Tensor], *prefixes: str | None) -> None:
    for name in [n for n in weights if n.startswith(tuple(p for p in prefixes if p))]:
        del weights[name]
