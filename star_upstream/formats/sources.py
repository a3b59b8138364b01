"""The one door to a model: a name, a folder or a file becomes a frozen encoder.

| source | example |
| --- | --- |
| a checkpoint of ours | ``runs/star/best`` |
| a model that ships with the package | ``star_mini_teacher`` |
| a file in a published format, or a fairseq ``.pt`` | ``dphubert.pth``, ``hubert_base_ls960.pt`` |
| a known published checkpoint | ``dphubert`` (:data:`star_upstream.formats.published.known.KNOWN`) |
| a torchaudio bundle | ``HUBERT_BASE``, ``WAVLM_BASE_PLUS`` |
| a folder of the transformers library, or an id of the Hugging Face hub | ``facebook/hubert-base-ls960`` |

Each source says itself whether the waveform is normalised; the encoder then does it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import extras, outputs
from ..encoder import Encoder
from ..errors import StarError, first_line, nearest
from ..files import home, sha256
from ..mini import SHIPPED
from . import checkpoint, published
from .published import huggingface, known, torchaudio_style

_BUNDLE = re.compile(r"(WAV2VEC2|HUBERT|WAVLM)_[A-Z0-9_]+")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_FILE_ENDINGS = (*_WEIGHTS, ".json", ".yaml", ".yml")


def load(source: str | Path, reference_padding: bool = False, config: str | Path | None = None) -> Encoder:
    """The encoder of ``source``, frozen, in eval mode, fp32, on the CPU.

    ``config`` is the yaml of a STaRHuBERT, ARMHuBERT, MaskHuBERT or FitHuBERT file, or names a subnet of LightHuBERT.
    Raises :class:`StarError` for a source that is not found (what was tried, and near names), cannot be downloaded
    (what to fetch and where to put it) or does not fit the encoder.
    """
    encoder, _ = _open(source, reference_padding, config)
    return encoder.requires_grad_(False).float().eval()


def convert(
    source: str | Path, folder: str | Path, config: str | Path | None = None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Write ``source`` (anything that :func:`load` takes) as a checkpoint of ours; returns the provenance that it
    records: of a checkpoint of ours what stands there, and ``converted_from``.

    ``dtype``: of the weights on disk; None: the shortest that holds every one of them as it is, so that a source in
    half precision stays in it. ``folder`` is new or empty, or holds what this function made of the same source. Raises
    :class:`StarError` for any other.
    """

    def conversion(there: Path) -> bool:
        return checkpoint.is_checkpoint(there) and "converted_from" in checkpoint.describe(there).get("provenance", {})

    folder = outputs.check_folder(folder, "star convert", conversion)
    if Path(source).exists() and Path(source).resolve() in (
        folder.resolve(),
        *(folder.resolve() / name for name in checkpoint.OWN),
    ):
        raise StarError(f"{folder}: is the source itself; choose another folder")
    encoder, origin = _open(source, False, config)
    provenance = origin.pop("provenance", {})
    if "converted_from" in provenance:
        origin["converted_from"] = provenance["converted_from"]
    if conversion(folder) and (before := checkpoint.describe(folder)["provenance"]["converted_from"]) != origin:
        raise StarError(
            f"{folder}: holds another conversion, of {before.get('name') or before.get('path')}; choose another folder"
        )
    encoder, provenance = encoder.float(), {**provenance, "converted_from": origin}
    checkpoint.save(folder, encoder, provenance, dtype or checkpoint.shortest_type(encoder))
    return provenance


def method(source: str | Path) -> str:
    """The method that made a model, as its recipe has it: of a checkpoint of ours, a conversion, or a known published
    one; empty where nothing says it."""
    path = SHIPPED.get(str(source), home(source))
    if checkpoint.is_checkpoint(path):
        provenance = checkpoint.describe(path).get("provenance", {})
        recipe, origin = provenance.get("recipe", {}), provenance.get("converted_from", {})
        name = origin.get("name")
        return recipe.get("method") or (method(name) if name else "")
    return known.KNOWN[str(source)].method if str(source) in known.KNOWN else ""


def _open(source: str | Path, reference_padding: bool, config: str | Path | None) -> tuple[Encoder, dict[str, Any]]:
    """The encoder and where it comes from."""
    name, path = str(source), home(source)
    if path.exists() or path.is_symlink():
        return _from_path(path, reference_padding, config)
    if name in SHIPPED:
        return _from_path(SHIPPED[name], reference_padding, config)
    if name in known.KNOWN:
        entry = known.KNOWN[name]
        weights = known.fetch(entry) if entry.files else _from_hub(entry.name)
        encoder, origin = _from_path(weights, reference_padding, config)
        if config is None:  # a yaml of one's own may name another subnet of a supernet
            known.check(entry, sum(parameter.numel() for parameter in encoder.parameters()), weights)
        if entry.hidden_states is not None:
            encoder.config = replace(encoder.config, hidden_states=entry.hidden_states)
        return encoder, {**origin, "name": name}
    if config is not None:
        raise StarError(f"{name}: no such file; config only goes with a file")
    if _BUNDLE.fullmatch(name.upper()):
        extras.need("teachers", "torchaudio")
    if name.upper() in bundles():
        return _from_bundle(name.upper(), reference_padding), {"format": "torchaudio", "name": name.upper()}
    if _HUB_ID.fullmatch(name) and not name.endswith(_FILE_ENDINGS) and not path.parent.exists():
        folder = _from_hub(name)
        encoder, origin = _from_path(folder, reference_padding, None)
        return encoder, {**origin, "name": name}
    if re.match(r"https?:/", name):
        page = re.fullmatch(r"https?:/+huggingface\.co/([\w.-]+/[\w.-]+)/?", name)
        fix = f"give its id: {page[1]}" if page else "download the file, and give its path"
        raise StarError(f"{name}: addresses are not fetched; {fix}")
    if elsewhere := known.elsewhere(name):
        raise StarError(f"{name}: {elsewhere}")
    near = nearest(name.lower(), [*SHIPPED, *known.KNOWN, *(bundle.lower() for bundle in bundles())])
    raise StarError(
        f"{name}: no such file or folder, shipped or published checkpoint, torchaudio bundle or hub id "
        f"(owner/name){near}"
    )


def bundles() -> list[str]:
    """Names of torchaudio's bundles of wav2vec 2.0, HuBERT and WavLM; none where torchaudio is not installed."""
    if not extras.installed("torchaudio"):
        return []
    import torchaudio

    bundle = torchaudio.pipelines.Wav2Vec2Bundle
    return sorted(name for name in dir(torchaudio.pipelines) if isinstance(getattr(torchaudio.pipelines, name), bundle))


def _from_path(path: Path, reference_padding: bool, config: str | Path | None) -> tuple[Encoder, dict[str, Any]]:
    origin = {"path": str(path.resolve())}
    if config is not None and (path.is_dir() or checkpoint.is_checkpoint(path)):
        raise StarError(f"{path}: holds its own configuration; leave out {config}")
    if checkpoint.is_checkpoint(path):
        provenance = checkpoint.describe(path).get("provenance", {})
        return checkpoint.load(path, reference_padding), {"format": "star_upstream", **origin, "provenance": provenance}
    folder = path.parent if path.name in (*huggingface.WEIGHTS, "config.json") else path
    if huggingface.is_folder(folder):
        return huggingface.load(folder, reference_padding), {
            "format": "transformers",
            **origin,
            "sha256": _digests(folder),
        }
    if path.is_dir():
        weights = sorted(entry.name for entry in path.iterdir() if entry.suffix in _WEIGHTS)
        if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
            raise StarError(
                f"{path}: an adapter (PEFT, such as LoRA) of another model; merge it into that model "
                "(merge_and_unload) and save the whole"
            )
        if weights and not (path / "config.json").exists():
            raise StarError(
                f"{path}: holds {', '.join(weights[:3])} without the config.json of a transformers folder or a "
                "checkpoint of star_upstream: "
                f"put it beside, or give the file itself ({path / weights[0]})"
            )
        if (path / "config.json").exists():
            huggingface.read_json(path / "config.json")  # its error says what is wrong with it
        inside = sorted(entry.name for entry in path.iterdir())
        shown = f"{', '.join(inside[:5])}{', ...' if len(inside) > 5 else ''}" if inside else "nothing"
        raise StarError(
            f"{path}: neither a checkpoint of star_upstream nor a folder of transformers (no fitting config.json); it "
            f"holds {shown}"
        )
    if huggingface.PART.fullmatch(path.name):
        raise StarError(
            f"{path}: one of several files that hold a model's weights; give the folder, with all of them and "
            "config.json"
        )
    encoder = published.load(path, config, reference_padding)
    return encoder, {"format": published.detect(path, config), **origin, "sha256": sha256(path)}


def _from_bundle(name: str, reference_padding: bool) -> Encoder:
    import torchaudio

    bundle = getattr(torchaudio.pipelines, name)
    try:
        model = bundle.get_model()
    except (OSError, RuntimeError, ValueError) as error:
        url = (
            bundle._path
            if bundle._path.startswith("https:")
            else f"https://download.pytorch.org/torchaudio/models/{bundle._path}"
        )
        target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        raise StarError(
            f"{name}: torchaudio could not download its weights ({error}); fetch {url} and save it as {target}"
        ) from None
    # A bundle that normalises wraps its model in a module whose `model` is the network.
    return torchaudio_style.from_model(
        getattr(model, "model", model), bool(bundle._normalize_waveform), name, reference_padding
    )


def _from_hub(name: str) -> Path:
    extras.need("teachers", "huggingface_hub")
    from huggingface_hub import snapshot_download

    texts = ["config.json", "preprocessor_config.json"]
    try:
        folder = Path(
            snapshot_download(name, allow_patterns=[*texts, "model*.safetensors", "model.safetensors.index.json"])
        )
        if not any(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(name, allow_patterns=[*texts, "pytorch_model*.bin", "pytorch_model.bin.index.json"])
            )
    except (OSError, ValueError) as error:
        raise StarError(
            f"{name}: could not be fetched from the Hugging Face hub ({first_line(error)[:200]}); fetch "
            f"{', '.join(texts)} and {' or '.join(huggingface.WEIGHTS)} from "
            f"https://huggingface.co/{name}/tree/main into a folder, and give that folder"
        ) from None
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin", ".json")]
    return {file.name: sha256(file) for file in files if file.is_file()}
