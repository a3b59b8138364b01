"""What a file is: one that holds no weights as this package reads them is said in one sentence, with what to do."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StarError
from ..files import pointer

if TYPE_CHECKING:
    from torch import Tensor

_START = 512
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file (llama.cpp); convert from the PyTorch or safetensors file that it was made of"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras, TensorFlow); only PyTorch and safetensors weights are read"),
    (b"RIFF", "a sound file (RIFF), not weights"),
    (b"fLaC", "a sound file (FLAC), not weights"),
    (b"\x1f\x8b", "a gzip archive; unpack it and give the weights file or the folder inside"),
    (b"BZh", "a bzip2 archive; unpack it and give the weights file or the folder inside"),
    (b"\xfd7zXZ", "an xz archive; unpack it and give the weights file or the folder inside"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it and give the weights file or the folder inside"),
    (b"\x93NUMPY", "a numpy array, not a model's weights by name"),
)


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises :class:`StarError` for one that is missing, something else or
    damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if said := what(path):
        raise StarError(f"{path}: {said}")
    try:
        return load_file(path)
    except FileNotFoundError:
        raise StarError(f"{path}: missing") from None
    except (OSError, SafetensorError) as error:
        raise StarError(f"{path}: damaged, or no safetensors file ({error}); fetch or copy it again") from None


def what(path: str | Path) -> str | None:
    """The sentence, or None for a file that may hold weights (also one that is damaged) or is not there."""
    path = Path(path)
    if path.is_symlink() and not path.exists():
        link = str(path.readlink())
        if "annex/objects" in link:
            return "a git-annex link whose content is not here: run 'git annex get' on it, or download the file itself"
        return f"a link to {link}, which does not exist"
    if path.is_dir():
        return "a folder, where a file is wanted"
    try:
        with open(path, "rb") as file:
            start = file.read(_START)
    except OSError:
        return None
    if said := pointer(path):
        return said
    if not start:
        return "an empty file: its download or copy did not finish; fetch it again"
    if not any(start):
        return "filled with zeros where a file begins: its download or copy did not finish; fetch it again"
    for beginning, sentence in _BEGINNINGS:
        if start.startswith(beginning):
            return sentence
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "a web page saved in place of the file (a login, a warning or an error); "
            "open the address in a browser and download the file"
        )
    if text.startswith(b"{"):
        return "a json text, not weights"
    if zipfile.is_zipfile(path):
        return _archive(path)
    if start.startswith(b"PK\x03\x04"):
        return "a file that was cut off (its end is missing): fetch it again"
    if not start.startswith(b"\x80") and _is_tar(path):
        return "a tar archive; unpack it and give the weights file or the folder inside"
    if _is_onnx(start):
        return "an ONNX model; give the PyTorch or safetensors file that it was exported from"
    return None


def _archive(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.split("/")[-1] for name in names}
    if "constants.pkl" in inside or any("/code/" in name for name in names):
        return "a TorchScript program, not weights; save the model's state_dict with torch.save"
    if "data.pkl" in inside:
        return None
    if "config.json" in inside and any(name.endswith(".weights.h5") for name in inside):
        return "a Keras model; only PyTorch and safetensors weights are read"
    if inside and all(name.endswith(".npy") for name in inside):
        return "numpy arrays (npz), not a model's weights by name"
    return "a zip archive; unpack it and give the weights file or the folder inside"


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except OSError:
        return False


def _is_onnx(start: bytes) -> bool:
    # a protobuf whose first field is the ir_version; the producer's name or an operator set follows within the first
    # bytes
    return start[:1] == b"\x08" and start[1:2] < b"\x20" and start[2:3] in (b"\x12", b"\x3a", b"\x42")
