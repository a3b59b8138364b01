"""Tensors by name and nothing else, as ``torch.save(model.state_dict())`` leaves them: the user gives the
configuration.

The names tell the library, and so what the configuration holds: fairseq's options (flat, or its sections ``model`` and
``task``), the arguments of torchaudio's ``wav2vec2_model`` or ``wavlm_model`` (and ``normalize_waveform``), or
transformers' ``config.json``. It is a yaml or json file given as ``config``, or one beside the weights: of the same
stem, ``config.json`` or ``config.yaml``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...encoder import Encoder
from ...errors import StarError
from . import fairseq, huggingface, torchaudio_style

_WRAPPINGS = ("state_dict", "model", "model_state_dict", "weights")
_TRANSFORMERS = "feature_projection.projection.weight"


def weights_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The tensors of an encoder in ``content``, itself or under one of the usual keys; None where there are none."""
    for found in (content, *(content.get(key) for key in _WRAPPINGS)):
        if isinstance(found, Mapping) and _library(found):
            return found
    return None


def load_bare(
    weights: Mapping[str, Any], path: Path, config: str | Path | None, where: str, reference_padding: bool
) -> Encoder:
    """The encoder. Raises :class:`StarError` that says what to give where there is no configuration."""
    library = _library(weights)
    config = config or _beside(path)
    if torchaudio_style.is_dphubert_training(weights):
        gated = any(".hard_concrete" in name for name in weights)
        stage, script = (
            ("before pruning", "prune.py") if gated else ("after its final distillation", "save_final_ckpt.py")
        )
        if gated or config is None:
            raise StarError(
                f"{path}: a Lightning file of DPHuBERT's training, {stage}; the authors' {script} makes of it the "
                "file that is read here "
                "(pruned_hubert_base.pth, with 'state_dict' and 'config')"
            )
    if config is None:
        wanted = {
            "fairseq": "fairseq's options (encoder_layers, conv_feature_layers, ..., normalize)",
            "torchaudio": "the arguments of torchaudio's wav2vec2_model (extractor_mode, encoder_num_layers, ..., "
            "normalize_waveform)",
            "transformers": "transformers' config.json",
        }[str(library)]
        raise StarError(
            f"{path}: holds tensors with the names of {library} and no configuration; give {wanted} in a yaml or json "
            "file as config, "
            f"or put it beside as {path.stem}.yaml"
        )
    options = read(config)
    if library == "fairseq":
        return fairseq.load_weights(weights, options, where, reference_padding)
    if library == "torchaudio":
        return torchaudio_style.load_bare(weights, options, where, reference_padding)
    return huggingface.load_weights(weights, options, None, where, str(config), reference_padding)


def read(config: str | Path) -> dict[str, Any]:
    """The keys and values of a yaml or json file."""
    try:
        text = Path(config).read_text(encoding="utf-8")
        try:
            content = json.loads(text)  # yaml would take json's 1e-05 for a text
        except json.JSONDecodeError:
            content = yaml.safe_load(text)
    except OSError as error:
        raise StarError(f"{config}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise StarError(f"{config}: neither yaml nor json ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise StarError(f"{config}: expected keys with values")
    return content


def _library(weights: Mapping[str, Any]) -> str | None:
    names = [name for name in weights if isinstance(name, str)]
    if any(name.endswith(fairseq.FIRST) for name in names):
        return "fairseq"
    if not any(name.endswith(torchaudio_style.FIRST) for name in names):
        return None
    torchaudio = any(name.endswith(f"encoder.{_TRANSFORMERS}") for name in names)
    return "torchaudio" if torchaudio else "transformers"


def _beside(path: Path) -> Path | None:
    stems = [path.with_suffix(ending) for ending in (".yaml", ".yml", ".json")]
    common = [path.with_name(f"config{ending}") for ending in (".json", ".yaml", ".yml")]
    return next((other for other in (*stems, *common) if other.is_file()), None)
