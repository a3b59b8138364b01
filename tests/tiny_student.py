"""A tiny STaRHuBERT file with random weights, as its authors would publish it; what is refused is tested on it."""

from pathlib import Path

import torch
import yaml

OPTIONS = {
    "conv_feature_layers": "[(8, 10, 5)] + [(16, 3, 2)] * 2",
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "encoder_layers": 1,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
}


def student_weights() -> dict[str, torch.Tensor]:
    shapes = {
        "feature_extractor.conv_layers.0.0.weight": (8, 1, 10),
        "feature_extractor.conv_layers.0.2.weight": (8,),
        "feature_extractor.conv_layers.0.2.bias": (8,),
        "feature_extractor.conv_layers.1.0.weight": (16, 8, 3),
        "feature_extractor.conv_layers.2.0.weight": (16, 16, 3),
        "layer_norm.weight": (16,),
        "layer_norm.bias": (16,),
        "encoder.pos_conv.0.bias": (16,),
        "encoder.pos_conv.0.weight_g": (1, 1, 8),
        "encoder.pos_conv.0.weight_v": (16, 8, 8),
        "encoder.layer_norm.weight": (16,),
        "encoder.layer_norm.bias": (16,),
        "encoder.layers.0.fc1.weight": (12, 16),
        "encoder.layers.0.fc1.bias": (12,),
        "encoder.layers.0.fc2.weight": (16, 12),
        "encoder.layers.0.fc2.bias": (16,),
    }
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
        shapes |= {f"encoder.layers.0.{name}.weight": (16, 16), f"encoder.layers.0.{name}.bias": (16,)}
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        shapes |= {f"encoder.layers.0.{name}.weight": (16,), f"encoder.layers.0.{name}.bias": (16,)}
    generator = torch.Generator().manual_seed(0)
    return {f"student_model.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def student(folder: Path, options: dict | None = None, weights: dict | None = None, **extra) -> Path:
    path = folder / "tiny.ckpt"
    torch.save({"state_dict": student_weights() | (weights or {}), **extra}, path)
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"distiller": OPTIONS | (options or {})}))
    return path
