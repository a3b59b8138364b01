"""Checkpoints in other authors' file formats, read as our encoder. Nothing in a file is run, whatever it holds.

| format | what the file is |
| --- | --- |
| starhubert, armhubert, maskhubert | a Lightning ``.ckpt`` (names ``student_model.*``) and a yaml with a section ``distiller`` |
| dphubert, dpwavlm | ``{"state_dict", "config"}`` |
| fairseq | ``{"cfg" or "args", "model"}``: HuBERT, wav2vec 2.0 and data2vec as fairseq saves them, also fine-tuned; WavLM as its authors do |
| s3prl | ``{"task_cfg", "model_cfg", "model_weight"}``: the same, converted by s3prl |
| bshall | ``{"hubert"}``: HuBERT-Soft and HuBERT-Discrete |
| weights | tensors by name alone (fairseq's, torchaudio's or transformers' names), and a yaml or json that configures them |

The format is told by the content. Folders of the transformers library are :mod:`.huggingface`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import torch
import yaml

from ..encoder import Encoder
from ..errors import StarError
from ..identify import read_safetensors
from . import bare, bshall, fairseq, pickles, torchaudio_style

STUDENTS = ("starhubert", "armhubert", "maskhubert")
FORMATS = (*STUDENTS, "dphubert", "dpwavlm", "fairseq", "s3prl", "bshall", "weights")

__all__ = ["FORMATS", "STUDENTS", "detect", "load"]


def detect(path: str | Path) -> str | None:
    """The format of the file (one of :data:`FORMATS`), or None when it is in none of them."""
    return _format(_content(path)) if _is_safetensors(path) or pickles.is_pickled(path) else None


def load(path: str | Path, config: str | Path | None = None, reference_padding: bool = False) -> Encoder:
    """The encoder in the file, in eval mode, fp32, on the CPU.

    ``config`` is the yaml of the first three formats; by default the one beside the file with the same stem, or the only one there.
    Raises :class:`StarError` for a file in no known format, one that pickles a foreign class, or one that does not fit its
    configuration.
    """
    content = _content(path)
    kind = _format(content)
    if kind == "weights":
        return bare.load_bare(bare.weights_of(content), Path(path), config, str(path), reference_padding)
    if kind is None:
        if isinstance(content, Mapping) and "frontend.convs.0.weight" in content:
            raise StarError(f"{path}: the weights of a checkpoint of star_upstream without its config.json; give the whole folder")
        raise StarError(f"{path}: in none of the formats {', '.join(FORMATS)} (it holds {_shown(content)})")
    where = str(path)
    if kind in STUDENTS:
        return fairseq.load_student(content, _distiller(Path(path), config), where, reference_padding)
    if config is not None:
        raise StarError(f"{path}: a {kind} file holds its own configuration; leave out {config}")
    if kind == "fairseq":
        return fairseq.load_fairseq(content, where, reference_padding)
    if kind == "s3prl":
        cfg = pickles.plain({"model": content["model_cfg"], "task": content.get("task_cfg")})
        return fairseq.load_weights(content["model_weight"], cfg, where, reference_padding)
    if kind == "bshall":
        return bshall.load_bshall(_bshall(content), where, reference_padding)
    return torchaudio_style.load_pruned(content, where, reference_padding)


def _format(content: Any) -> str | None:
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
        if any(name.startswith("student_model.") for name in weights):
            return fairseq.student_format(weights)
        if isinstance(config, Mapping) and "extractor_conv_layer_config" in config:
            return "dpwavlm" if "encoder_remaining_heads" in config else "dphubert"
    elif _is_weights(content.get("model")) and ("cfg" in content or "args" in content):
        return "fairseq"
    return "weights" if bare.weights_of(content) is not None else None


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        # data2vec keeps its averaged teacher among the weights, as a mapping of its own
        and all(isinstance(name, str) and (isinstance(tensor, torch.Tensor) or name == "_ema") for name, tensor in value.items())
    )


def _bshall(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((found for found in (content.get("hubert"), content) if _is_weights(found) and bshall.is_bshall(found)), None)


def _is_safetensors(path: str | Path) -> bool:
    return Path(path).suffix == ".safetensors" and Path(path).is_file()


def _content(path: str | Path) -> Any:
    return read_safetensors(path) if _is_safetensors(path) else pickles.read(path)


def _shown(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = [str(key) for key in content]
    return f"the keys {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}" if keys else "nothing"


def _distiller(path: Path, config: str | Path | None) -> Mapping[str, Any]:
    """The section ``distiller`` of the yaml that belongs to a ``.ckpt``."""
    if config is None:
        beside = sorted(other for other in path.parent.iterdir() if other.suffix in (".yaml", ".yml"))
        same = [other for other in beside if other.stem == path.stem]
        if not same and len(beside) != 1:
            found = f"the folder holds {', '.join(other.name for other in beside)}" if beside else "the folder holds none"
            raise StarError(
                f"{path}: its architecture is in a yaml file; give it as config, or put it beside as {path.stem}.yaml ({found})"
            )
        config = (same or beside)[0]
    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise StarError(f"{config}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StarError(f"{config}: not yaml ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("distiller"), Mapping):
        raise StarError(f"{config}: no section 'distiller'; it is not the configuration of such a checkpoint")
    return content["distiller"]
