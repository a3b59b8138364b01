"""One file with encoder and heads: safetensors whose metadata holds the configuration as json. Nothing in it runs.

Metadata ``star_upstream``: json with ``format`` ("star_upstream"), ``version`` (1), ``encoder`` (configuration),
``heads`` (name -> task and labels), ``provenance``. Tensors: ``encoder.*`` and ``heads.<name>.*``. A speaker head
answers with its vector, so its classifier and the names of the training speakers are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import strict
from ..data.task_config import TaskConfig
from ..encoder import Encoder, EncoderConfig
from ..errors import StarError
from ..formats import checkpoint
from .model import MultitaskModel


def save(path: str | Path, model: MultitaskModel, provenance: dict[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write ``path`` whole or not at all. ``dtype`` (e.g. ``torch.float16``) shrinks the weights."""
    heads, weights = {}, {}
    for name in model.heads:
        head = model.head(name)
        vector = head.task.data == "asv"  # it is about speakers that training has not heard
        heads[name] = {"task": strict.plain(head.task), "labels": [] if vector else model.labels[name]}
        weights.update(
            {f"heads.{name}.{k}": v for k, v in head.state_dict().items() if not (vector and k.startswith("loss."))}
        )
    weights.update({f"encoder.{k}": v for k, v in model.encoder.state_dict().items()})
    weights = {k: v.detach().cpu().to(dtype or v.dtype).contiguous() for k, v in weights.items()}
    content = {"encoder": strict.plain(model.encoder.config), "heads": heads, "provenance": provenance}
    checkpoint.save_single(path, weights, content)


def load(path: str | Path, reference_padding: bool = False) -> MultitaskModel:
    """Encoder and heads, in eval mode, fp32, on the CPU. Raises :class:`StarError` for a file that is none, or does not
    fit itself."""
    content, weights = checkpoint.describe(path), checkpoint.load_single(path)
    if "heads" not in content:
        raise StarError(f"{path}: a checkpoint without heads; star finetune makes one with them")
    encoder = Encoder(strict.build(EncoderConfig, content.get("encoder"), "encoder"), reference_padding)
    heads = content["heads"]
    if not isinstance(heads, dict) or not all(
        isinstance(h, dict) and isinstance(h.get("labels"), list) for h in heads.values()
    ):
        raise StarError(f"{path}: its heads cannot be read; write it again with star finetune")
    tasks = {name: strict.build(TaskConfig, head.get("task"), f"heads.{name}.task") for name, head in heads.items()}
    model = MultitaskModel(encoder, tasks, {name: head["labels"] for name, head in heads.items()})
    checkpoint.load_weights(model, weights, str(path))
    return model.eval()
