"""Checkpoints in other authors' file formats, read as our encoder. Nothing in a file is run, whatever it holds.

| format | what the file is |
| --- | --- |
| starhubert, armhubert, maskhubert, fithubert | a Lightning ``.ckpt`` and a yaml with a section ``distiller`` |
| dphubert, dpwavlm | ``{"state_dict", "config"}`` |
| distilhubert | ``{"Distiller", "Config"}``, as s3prl saves it |
| lighthubert | fairseq's layout, a supernet's weights; a yaml's ``subnet`` may choose another subnet |
| fairseq | ``{"cfg" or "args", "model"}``: HuBERT, wav2vec 2.0, data2vec, also fine-tuned, and WavLM |
| s3prl | ``{"task_cfg", "model_cfg", "model_weight"}``: the same, converted by s3prl |
| bshall | ``{"hubert"}``: HuBERT-Soft and HuBERT-Discrete |
| weights | tensors with fairseq's, torchaudio's or transformers' names, and a yaml or json |

The format is told by the content, and for the first four by their yaml. Folders of the transformers library are
:mod:`.huggingface`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch

from ...encoder import Encoder
from ...errors import StarError
from ..identify import read_safetensors
from . import bare, bshall, distiller, fairseq, lighthubert, pickles, students, torchaudio_style

STUDENTS = students.FORMATS
FORMATS = (*STUDENTS, "dphubert", "dpwavlm", "distilhubert", "lighthubert", "fairseq", "s3prl", "bshall", "weights")

_HPARAMS = "hparams.yaml"

__all__ = ["FORMATS", "STUDENTS", "detect", "load"]


def detect(path: str | Path, config: str | Path | None = None) -> str | None:
    """The format of the file (one of :data:`FORMATS`), or None when it is in none of them.

    ``config`` is the yaml of the first four; without it, the one beside the file, or the names of the tensors alone.
    """
    if not (_is_safetensors(path) or pickles.is_pickled(path)):
        return None
    content = _content(path)
    kind = _format(content)
    if kind != "student":
        return kind
    try:
        options = _section(config or _beside(Path(path)), "distiller")
    except StarError:
        options = None
    return students.student_format(content["state_dict"], options)


def load(path: str | Path, config: str | Path | None = None, reference_padding: bool = False) -> Encoder:
    """The encoder in the file, in eval mode, fp32, on the CPU.

    ``config`` is the yaml of the first four formats; by default the one beside the file with the same stem, or the only
    one there. For LightHuBERT it may name a subnet. Raises :class:`StarError` for a file in no known format, one that
    pickles a foreign class, or one that does not fit its configuration.
    """
    content = _content(path)
    kind = _format(content)
    if kind == "weights":
        return bare.load_bare(bare.weights_of(content) or {}, Path(path), config, str(path), reference_padding)
    if kind is None:
        if isinstance(content, Mapping) and "frontend.convs.0.weight" in content:
            raise StarError(
                f"{path}: the weights of a checkpoint of star_upstream without its config.json; give the whole folder"
            )
        if isinstance(content, Mapping) and {"Downstream", "Featurizer"} & content.keys():
            raise StarError(
                f"{path}: a downstream model of s3prl (a task's head and the weights of its layers), without the "
                "encoder; give the checkpoint of the upstream that it was trained on"
            )
        raise StarError(f"{path}: in none of the formats {', '.join(FORMATS)} (it holds {_shown(content)})")
    where = str(path)
    if kind == "student":
        return students.load_student(
            content, _section(config or _beside(Path(path)), "distiller"), where, reference_padding
        )
    if kind == "lighthubert":
        subnet = None if config is None else _section(config, "subnet")
        return lighthubert.load_lighthubert(_model_options(content), content["model"], subnet, where, reference_padding)
    if config is not None:
        raise StarError(f"{path}: a {kind} file holds its own configuration; leave out {config}")
    if kind == "distilhubert":
        return distiller.load_distiller(content, where, reference_padding)
    if kind == "fairseq":
        return fairseq.load_fairseq(content, where, reference_padding)
    if kind == "s3prl":
        cfg = pickles.plain({"model": content["model_cfg"], "task": content.get("task_cfg")})
        return fairseq.load_weights(content["model_weight"], cfg, where, reference_padding)
    if kind == "bshall":
        return bshall.load_bshall(_bshall(content) or {}, where, reference_padding)
    return torchaudio_style.load_pruned(content, where, reference_padding)


def _format(content: Any) -> str | None:
    """One of :data:`FORMATS`; ``student`` for the first four, which their yaml tells apart."""
    if not isinstance(content, Mapping):
        return None
    weights, config = content.get("state_dict"), content.get("config")
    if _is_weights(content.get("model_weight")) and "model_cfg" in content:
        return "s3prl"
    if _bshall(content) is not None:
        return "bshall"
    if _is_weights(weights):
        if torchaudio_style.is_dphubert_training(weights):
            return "weights"
        if students.is_student(weights):
            return "student"
        if isinstance(config, Mapping) and "extractor_conv_layer_config" in config:
            return "dpwavlm" if "encoder_remaining_heads" in config else "dphubert"
    elif _is_weights(content.get("model")) and ("cfg" in content or "args" in content):
        return "lighthubert" if lighthubert.is_lighthubert(_model_options(content)) else "fairseq"
    elif distiller.is_distiller(content) and _is_weights(content["Distiller"]):
        return "distilhubert"
    return "weights" if bare.weights_of(content) is not None else None


def _model_options(content: Mapping[str, Any]) -> Any:
    """The model's options in a file of fairseq, where they have a section of their own."""
    cfg = pickles.plain(content.get("cfg"))
    return cfg.get("model") if isinstance(cfg, dict) else None


def _is_weights(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return (
        isinstance(value, Mapping)
        and bool(value)
        # data2vec keeps its averaged teacher among the weights, as a mapping of its own
        and all(
            isinstance(name, str) and (isinstance(tensor, torch.Tensor) or name == "_ema")
            for name, tensor in value.items()
        )
    )


def _bshall(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next(
        (found for found in (content.get("hubert"), content) if _is_weights(found) and bshall.is_bshall(found)), None
    )


def _is_safetensors(path: str | Path) -> bool:
    return Path(path).suffix == ".safetensors" and Path(path).is_file()


def _content(path: str | Path) -> Any:
    return read_safetensors(path) if _is_safetensors(path) else pickles.read(path)


def _shown(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = [str(key) for key in content]
    return f"the keys {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}" if keys else "nothing"


def _beside(path: Path) -> Path:
    """The yaml that belongs to a ``.ckpt``: the one of its stem, or the only one of its folder."""
    beside = sorted(other for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml"))
    beside = [other for other in beside if other.name != _HPARAMS] or beside
    same = [other for other in beside if other.stem == path.stem]
    if not same and len(beside) != 1:
        found = f"the folder holds {', '.join(other.name for other in beside)}" if beside else "the folder holds none"
        raise StarError(
            f"{path}: its architecture is in a yaml file; give it as config, or put it beside as {path.stem}.yaml "
            f"({found})"
        )
    return (same or beside)[0]


def _section(config: str | Path, name: str) -> Mapping[str, Any]:
    """A section of a yaml; in Lightning's ``hparams.yaml`` it is one of ``cfg``."""
    content = bare.read(config)
    for found in (content, content.get("cfg")):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            return found[name]
    if Path(config).name == _HPARAMS:
        raise StarError(
            f"{config}: Lightning's record of a training, without the architecture (no section {name!r}); give as "
            "config the yaml that the training was started with"
        )
    raise StarError(f"{config}: no section {name!r}; it is not the configuration of such a checkpoint")
