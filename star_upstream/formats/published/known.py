"""Checkpoints that their authors publish: where they are, and their way into torch.hub's cache.

Google Drive gives no stable address to programs: a page that comes back in place of the file is
recognised, and the message then says what to fetch by hand.
"""

from __future__ import annotations

import urllib.error
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from ...encoder.config import HiddenStates
from ...errors import StarError
from ...files import replacing


@dataclass(frozen=True)
class File:
    """One file of a checkpoint."""

    suffix: str
    page: str
    """Where a person finds it."""
    url: str | None = None
    """Where a program fetches it; None where there is no such address."""
    sha256: str | None = None


@dataclass(frozen=True)
class Known:
    """A published checkpoint; the first file holds the weights. Without files it is on the Hugging Face hub under its
    name."""

    name: str
    format: str
    parameters: int | None
    """None where the authors' sources do not agree."""
    files: tuple[File, ...]
    note: str = ""
    hidden_states: HiddenStates | None = None
    """What SUPERB was given, where the format does not say it."""

    @property
    def method(self) -> str:
        """What the recipe of the same method has for ``method``."""
        return {"dpwavlm": "dphubert", "transformers": "distilhubert"}.get(self.format, self.format)


def _file(suffix: str, said: str) -> File:
    """One of known.yaml's files."""
    address, _, sha256 = said.partition(" ")
    where, _, name = address.partition(":")
    if where == "drive":
        page = f"https://drive.google.com/file/d/{name}/view"
        url = f"https://drive.usercontent.google.com/download?id={name}&export=download&confirm=t"
    elif where == "hf":
        owner, repository, file = name.split("/", 2)
        hub = f"https://huggingface.co/{owner}/{repository}"
        page, url = f"{hub}/tree/main", f"{hub}/resolve/main/{file}"
    else:
        page = url = f"https://raw.githubusercontent.com/{name}" if where == "raw" else name
    return File(suffix, page, None if where == "page" else url, sha256 or None)


def _known() -> dict[str, Known]:
    listed = yaml.safe_load(Path(__file__).with_name("known.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, about in listed.items():
        files = tuple(_file(*item) for item in about.pop("files", {}).items())
        found[name] = Known(name, about.pop("format"), about.pop("parameters", None), files, **about)
    return found


KNOWN = _known()

_HUB = {
    "hubert": "facebook/hubert-base-ls960",
    "wav2vec2": "facebook/wav2vec2-base",
    "wavlm": "microsoft/wavlm-base",
    "data2vec": "facebook/data2vec-audio-base",
    "data2vecaudio": "facebook/data2vec-audio-base",
    "unispeech": "microsoft/unispeech-large-1500h-cv",
    "unispeechsat": "microsoft/unispeech-sat-base",
    "mhubert": "utter-project/mHuBERT-147",
    "mhubert147": "utter-project/mHuBERT-147",
}
_FILES = {
    "hubertsoft": "https://github.com/bshall/hubert/releases",
    "hubertdiscrete": "https://github.com/bshall/hubert/releases",
    "contentvec": "https://github.com/auspicious3000/contentvec",
    "lighthubert": "https://huggingface.co/mechanicalsea/lighthubert",
    "fithubert": "https://github.com/glory20h/FitHuBERT",
}


def elsewhere(name: str) -> str | None:
    """Where a model of the field is that has no name here, or None for a name that says nothing."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if plain in _HUB:
        return f"no name here; its id on the Hugging Face hub is {_HUB[plain]}: give that, or a folder with its files"
    if plain in _FILES:
        return f"no name here; fetch its file from {_FILES[plain]} and give that"
    if name.isidentifier() and (Path(__file__).parents[2] / "recipes" / f"{name.lower()}.yaml").exists():
        return (
            f"a recipe, not a model: distil it (star distill {name.lower()} data.train=...), and give its best/ folder"
        )
    return None


def fetch(entry: Known) -> Path:
    """The weights file of a known checkpoint (one with files) in torch.hub's cache, downloaded unless it is there; its
    yaml, if any, beside it.

    A digest, where known, is checked; what was fetched in part never has the final name. Raises :class:`StarError` that
    says which file to fetch from where, and under which name to save it, when a download is not possible.
    """
    folder = Path(torch.hub.get_dir()) / "star_upstream" / entry.name
    paths = {file: folder / f"{entry.name}{file.suffix}" for file in entry.files}
    missing = [file for file in reversed(entry.files) if not paths[file].exists()]  # the large file last
    by_hand = " and ".join(f"fetch {file.page} and save it as {paths[file]}" for file in missing)
    for file in missing:
        try:
            _download(file, paths[file])
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            note = f" ({entry.note})" if entry.note else ""
            raise StarError(
                f"{entry.name}: {paths[file].name} could not be downloaded: {reason}{note}; {by_hand}"
            ) from None
    return paths[entry.files[0]]


def check(entry: Known, parameters: int, where: str | Path) -> None:
    """Raise :class:`StarError` unless a model of ``parameters`` can be this checkpoint (to half a percent: some are
    rounded)."""
    if entry.parameters is not None and abs(parameters - entry.parameters) > 0.005 * entry.parameters:
        note = f"; {entry.note}" if entry.note else ""
        raise StarError(
            f"{where}: {parameters:,} parameters, but {entry.name} has {entry.parameters:,}: this is another "
            f"model{note}"
        )


def _download(file: File, path: Path) -> None:
    if file.url is None:
        raise ValueError("its authors give no address that a program could use")
    with replacing(path) as part:
        torch.hub.download_url_to_file(file.url, str(part), hash_prefix=file.sha256)
        with open(part, "rb") as start:
            if start.read(100).lstrip()[:1] == b"<":
                raise ValueError(f"{file.url} answered with a web page in place of the file")
