"""An encoder as a folder that ``AutoModel.from_pretrained`` of the transformers library loads with equal states.

HuBERT holds most shapes; WavLM those with a gated position bias, wav2vec 2.0 those with adapters, data2vec audio those
with stacked positional convolutions. A front end without a projection gets the identity for one. transformers itself
is not needed to write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from .. import outputs
from ..audio import RATE
from ..encoder import Encoder, EncoderConfig
from ..environment import versions
from ..errors import StarError
from ..files import replacing, write_json, write_tensors
from ..formats import checkpoint
from ..formats.published import huggingface
from ..formats.published.names import backwards, rename
from . import origin

MAKER = "star export --transformers"
TOLERANCE = 1e-4
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
CLASSES = {
    "hubert": "HubertModel",
    "wav2vec2": "Wav2Vec2Model",
    "wavlm": "WavLMModel",
    "data2vec-audio": "Data2VecAudioModel",
}


def export(
    source: str | Path, folder: str | Path, licence: str | None = None, config: str | Path | None = None
) -> dict[str, Any]:
    """Write ``source`` (anything that ``star_upstream.load`` takes) to ``folder``; returns its ``config.json``.

    Prediction heads are left out: transformers has no place for them. Raises :class:`StarError` for a shape that it
    cannot hold, which names the part.
    """
    folder = outputs.check_folder(folder, MAKER, outputs.holds("config.json", "star_upstream"))
    encoder, of = origin.load(source, config)
    values = settings(encoder.config, str(source))
    values["star_upstream"] = {
        "made_by": MAKER,
        "of": of,
        "sha256": checkpoint.digest(encoder),
        "licence": licence or origin.licence(source),
        "versions": versions(("torch",)),
    }
    with replacing(folder, FILES) as part:
        part.mkdir()
        write_tensors(part / "model.safetensors", weights(encoder), {"format": "pt"})
        write_json(part / "config.json", values)
        write_json(part / "preprocessor_config.json", preprocessor(encoder.config))
        (part / "README.md").write_text(card(encoder.config, values), encoding="utf-8")
        if not (off := differs(encoder, part)) <= TOLERANCE:
            raise StarError(f"{folder}: not written, since its states differ by {off:.2g}; please report the model")
    return values


def settings(config: EncoderConfig, where: str) -> dict[str, Any]:
    """``config.json``. Raises :class:`StarError` for a shape that transformers cannot hold."""
    if parts := [f"{name} ({why})" for name, why in _missing(config)]:
        raise StarError(
            f"{where}: transformers' models have no {'; no '.join(parts)}. Write ONNX (star export {where} OUT.onnx), "
            "or share the checkpoint and load it by star_upstream.load"
        )
    kind = "wav2vec2" if config.adapter else "data2vec-audio" if config.position_norm == "layer" else "hubert"
    values: dict[str, Any] = {
        "model_type": "wavlm" if config.relative_position else kind,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads[0],
        "intermediate_size": config.ffn[0],
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": config.conv_norm,
        "conv_dim": [channels for channels, _, _ in config.conv_layers],
        "conv_kernel": [kernel for _, kernel, _ in config.conv_layers],
        "conv_stride": [stride for _, _, stride in config.conv_layers],
        "conv_bias": config.conv_bias,
        "num_feat_extract_layers": len(config.conv_layers),
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "do_stable_layer_norm": config.norm == "pre",
        "layer_norm_eps": config.norm_epsilon,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "feat_proj_dropout": config.feature_dropout,
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,  # above 0, the model has a weight for masked frames
        "mask_feature_prob": 0.0,
        "torch_dtype": "float32",
    }
    if values["model_type"] == "hubert":
        values |= {
            "feat_proj_layer_norm": config.projection_norm,
            "conv_pos_batch_norm": config.position_norm == "batch",
        }
    if config.adapter:
        values["adapter_attn_dim"] = config.adapter
    if config.relative_position:
        position = config.relative_position
        values |= {"num_buckets": position.buckets, "max_bucket_distance": position.max_distance}
    if config.position_norm == "layer":
        values |= {
            "num_conv_pos_embeddings": config.position_layers,
            "conv_pos_kernel_size": config.position_kernel,
        }
    return {"architectures": [CLASSES[values["model_type"]]], **values}


def _missing(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """What transformers' models do not have, and the option that says so."""
    if config.frontend != "waveform":
        yield "other front end than convolutions over the waveform", f"frontend: {config.frontend}"
    if config.statistics != "utterance":
        yield "running statistics", f"statistics: {config.statistics}"
    if config.attention != "full":
        yield "attention in chunks", f"attention: {config.attention}"
    if config.feature_scale:
        yield "scale on the last convolution", "feature_scale"
    if config.time_reduction > 1:
        yield "merged frames", f"time_reduction: {config.time_reduction}"
    if config.reuse_attention and any(config.reuse_attention):
        yield "reused attention maps", "reuse_attention"
    if not config.layers or any(heads * config.head_width != config.width for heads in config.heads):
        yield (
            "pruned heads",
            f"heads: {list(config.heads)} of {config.head_width} channels in a width of {config.width}",
        )
    if len(set(config.ffn)) > 1 or 0 in config.ffn:
        yield "layers with different numbers of FFN units", f"ffn: {list(config.ffn)}"
    if config.output_projection:
        yield "heads on the layers' outputs", "output_projection"
    special = [
        name
        for name, there in (
            ("relative_position", config.relative_position is not None),
            ("adapter", config.adapter > 0),
            ("position_norm", config.position_norm != "weight"),
            ("projection_norm", not config.projection_norm),
        )
        if there
    ]
    if len(special) > 1:
        yield "one model with all of these", ", ".join(special)
    if config.position_norm == "layer" and (config.norm == "pre" or config.conv_norm != "layer"):
        yield "stacked positional convolutions in this model", "position_norm: layer needs norm: post, conv_norm: layer"


def weights(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors under transformers' names."""
    config, own = encoder.config, encoder.state_dict()
    tensors = {name: tensor.cpu().float() for name, tensor in own.items() if not name.startswith("predictions.")}
    found = rename(tensors, backwards(huggingface.TABLE), (), "this model")
    for name in found:
        if name.endswith("gru_rel_pos_const"):
            found[name] = found[name].reshape(1, -1, 1, 1)
    if not config.projection:
        found["feature_projection.projection.weight"] = torch.eye(config.width)
        found["feature_projection.projection.bias"] = torch.zeros(config.width)
    if config.position_norm == "batch":
        norm = huggingface.NORM
        found[f"{norm}.weight"], found[f"{norm}.bias"] = (found.pop(f"{norm}.{name}") for name in ("scale", "shift"))
        found[f"{norm}.running_mean"] = torch.zeros(config.width)
        found[f"{norm}.running_var"] = torch.full((config.width,), 1.0 - 1e-5)  # 1 with what batch norm adds
        found[f"{norm}.num_batches_tracked"] = torch.tensor(1)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def preprocessor(config: EncoderConfig) -> dict[str, Any]:
    """``preprocessor_config.json``. A group norm averages over padding in transformers, with or without a mask."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": config.normalize_waveform,
        "return_attention_mask": config.conv_norm == "layer",
    }


@torch.no_grad()
def differs(encoder: Encoder, folder: Path) -> float:
    """Largest difference between the encoder's states and those of the folder, read back."""
    again = huggingface.load(folder)
    waveforms_BN = torch.randn(1, max(RATE, encoder.config.receptive_field), generator=torch.Generator().manual_seed(0))
    pairs = zip(encoder(waveforms_BN).states, again(waveforms_BN).states, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def card(config: EncoderConfig, values: Mapping[str, Any]) -> str:
    """The model card: what the folder holds, how to load it, where it comes from."""
    about = values["star_upstream"]
    known = re.match(r"[\w.-]+-\d[\w.]*|MIT|mit", about["licence"])
    head = ["---", "library_name: transformers", "pipeline_tag: feature-extraction", "tags: [speech, star_upstream]"]
    head.append(f"license: {known.group().lower().rstrip(',') if known else 'other'}")
    padding = (
        "In a padded batch give the attention mask; an utterance then has the states that it has alone."
        if config.conv_norm == "layer"
        else "Its first group norm averages over padding in transformers: give one utterance at a time, or utterances "
        "of one length. `star_upstream.load` of this folder gives every utterance in a batch what it gets alone."
    )
    normal = "The feature extractor normalises the waveform." if config.normalize_waveform else ""
    left_out = "Prediction heads are left out." if config.prediction_layers else ""
    provenance = yaml.safe_dump(about["of"], sort_keys=False, default_flow_style=None, width=110).rstrip()
    return "\n".join(
        [
            *head,
            "---",
            "",
            f"# {about['of']['source']}",
            "",
            f"A speech encoder of {config.layers} layers of width {config.width} ({CLASSES[values['model_type']]}), a "
            f"frame every {config.stride / RATE * 1000:g} ms of 16 kHz audio, exported by star_upstream "
            f"{about['versions']['star-upstream']}. Licence of the weights: {about['licence']}.",
            "",
            "```python",
            "from transformers import AutoFeatureExtractor, AutoModel",
            "",
            'extractor, model = AutoFeatureExtractor.from_pretrained("."), AutoModel.from_pretrained(".")',
            'inputs = extractor(waveform, sampling_rate=16000, return_tensors="pt")',
            "states = model(**inputs, output_hidden_states=True).hidden_states",
            "```",
            "",
            " ".join(text for text in (normal, padding, left_out) if text),
            "",
            "## Where it comes from",
            "",
            "```yaml",
            provenance,
            "```",
            "",
        ]
    )
