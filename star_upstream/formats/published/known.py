"""Checkpoints that their authors publish: where they are, and their way into torch.hub's cache.

Parameters are those of the encoder that the authors' configuration describes, its heads among them (FitHuBERT's and
DistilHuBERT's authors print the size without all heads: 22.49 M and 23.49 M); for STaRHuBERT-S, -XS and STaRWavLM,
whose configuration is only in the files, the number that the authors print. A digest is only given where the authors'
file listing shows one. Google Drive gives no stable address to programs: a page that comes back in place of the file is
recognised, and the message then says what to fetch by hand.
"""

from __future__ import annotations

import urllib.error
from dataclasses import dataclass
from pathlib import Path

import torch

from ...encoder.config import HiddenStates
from ...errors import StarError, nearest
from ...files import replacing

_STAR_PAGE = "https://github.com/sungnyun/ARMHuBERT#checkpoints-1"
_ARM_PAGE = "https://huggingface.co/sungnyun/ARMHuBERT/tree/main"
_ARM_CONFIGS = "https://raw.githubusercontent.com/sungnyun/ARMHuBERT/e2b26872c23aa2075e888aae96df91f7653ffaec/conf"
_LIGHT_PAGE = "https://huggingface.co/mechanicalsea/lighthubert/tree/main"
_DP_PAGE = "https://huggingface.co/pyf98/DPHuBERT/tree/main"


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


def _drive(suffix: str, identifier: str) -> File:
    return File(
        suffix,
        f"https://drive.google.com/file/d/{identifier}/view",
        f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t",
    )


def _arm(name: str, kind: str, parameters: int, file: str, config: str, sha256: str | None = None) -> Known:
    weights = File(".ckpt", _ARM_PAGE, f"https://huggingface.co/sungnyun/ARMHuBERT/resolve/main/{file}", sha256)
    return Known(
        name, kind, parameters, (weights, File(".yaml", f"{_ARM_CONFIGS}/{config}", f"{_ARM_CONFIGS}/{config}"))
    )


def _fit(name: str, parameters: int | None, weights: str, config: str, note: str = "") -> Known:
    return Known(name, "fithubert", parameters, (_drive(".ckpt", weights), _drive(".yaml", config)), note)


def _light(kind: str, parameters: int) -> Known:
    address = f"https://huggingface.co/mechanicalsea/lighthubert/resolve/main/lighthubert_{kind}.pt"
    return Known(f"lighthubert_{kind}", "lighthubert", parameters, (File(".pt", _LIGHT_PAGE, address),))


def _dp(name: str, parameters: int, file: str, sha256: str) -> Known:
    weights = File(".pth", _DP_PAGE, f"https://huggingface.co/pyf98/DPHuBERT/resolve/main/{file}", sha256)
    return Known(name, name, parameters, (weights,))


_ONE_LINK = "the authors' page links one and the same file for STaRHuBERT-S and -XS"

KNOWN = {
    entry.name: entry
    for entry in (
        Known(
            "star_hubert_l",
            "starhubert",
            26_626_672,
            (
                _drive(".ckpt", "1La5jh0jPv-JCk2ECT2raRHtXMYYJNtsF"),
                _drive(".yaml", "1NpHhMVj7EE1Sx5eG3tX5fMCa4UUlrnwI"),
            ),
        ),
        Known(
            "star_hubert",
            "starhubert",
            22_308_592,
            (
                _drive(".ckpt", "1Zu1idRx-sVaqMvRsUKtttzkSn4df6TUr"),
                _drive(".yaml", "1C6ZcYM4Fcxj0vurid5N02BAANj4smr8U"),
            ),
        ),
        Known(
            "star_hubert_s",
            "starhubert",
            14_100_000,
            (
                _drive(".ckpt", "1sUpbDupbDtlCvN-49TblUn8GDmhV8MT8"),
                _drive(".yaml", "1OFjIo1UjxNrxEboKaT8Z-vtuL6xmyNsu"),
            ),
            _ONE_LINK,
        ),
        Known(
            "star_wavlm",
            "starhubert",
            22_300_000,
            (
                _drive(".ckpt", "1gWq55o0HfarwgfRpY_2ncmr7jfhtIKR-"),
                _drive(".yaml", "1p79PqwbEarBDm2X7k2DEbsN_lE3pgqki"),
            ),
        ),
        Known(
            "star_hubert_course",
            "starhubert",
            22_308_592,
            (
                _drive(".ckpt", "1vCPosrb11LjNJVVV9IvO4o5vyze6MsMQ"),
                _drive(".yaml", "1xilGjTNNouzqgRzqBSBF6LNo60vclXwW"),
            ),
            "the re-implementation of STaRHuBERT for a course at CMU, https://github.com/Qingzheng-Wang/STaRHuBERT",
        ),
        Known(
            "star_hubert_xs", "starhubert", 9_390_000, (File(".ckpt", _STAR_PAGE), File(".yaml", _STAR_PAGE)), _ONE_LINK
        ),
        _arm(
            "armhubert_960h",
            "armhubert",
            26_447_968,
            "ARMHuBERT-960h.ckpt",
            "armhubert/armhubert-960.yaml",
            "539fd1e7a3976b19d12956738cbdd68fd59aa353d1150599a993c48db6daf733",
        ),
        _arm(
            "armhubert_s_100h",
            "armhubert",
            22_393_648,
            "ARMHuBERT-S-100h.ckpt",
            "armhubert/armhubert-s-100.yaml",
            "2690627f15425d2e786f51dd775ae8803274a9bb7328fd038073465c95fc691a",
        ),
        _arm(
            "armhubert_s_960h",
            "armhubert",
            22_393_648,
            "ARMHuBERT-S-960h.ckpt",
            "armhubert/armhubert-s-960.yaml",
            "0d42f52d73f06c736c585cec435149632eadc2c9125dee4367c1c4ef6433310a",
        ),
        _arm("armwavlm_s_100h", "armhubert", 22_393_648, "ARMwavLM-S-100h.ckpt", "armwavlm/armwavlm-s-100.yaml"),
        _arm("armwavlm_s_960h", "armhubert", 22_393_648, "ARMwavLM-S-960h.ckpt", "armwavlm/armwavlm-s-960.yaml"),
        _arm("maskhubert_960h", "maskhubert", 26_635_360, "MaskHuBERT-960h.ckpt", "maskhubert/maskhubert-960.yaml"),
        _fit("fithubert_100h", 31_168_352, "1eFJSrO5asnVtO3jv92Pj6bQ6dNzJXLWY", "1CzicuU9M_FHprfKcgCi2yBlR0zxo0bKJ"),
        _fit("fithubert_960h", 31_168_352, "1Rq5QmEkXqwm0WK8axiMplN1rw-P8_ZQ6", "1LIK0JZsVO0i0W7C3jH7hguOuAuQnlsmN"),
        _fit(
            "fitw2v2_960h",
            None,
            "1xsLoWBPRfzTHco68SB3CA6Vf2uUgyGaJ",
            "12ERkiSBU0bW3c8uP5w5cBoEqHA9p9snx",
            "the configuration in the authors' repository has FitHuBERT's size, their table another (31.63 M)",
        ),
        Known(
            "distilhubert",
            "distilhubert",
            27_034_752,
            (
                File(
                    ".ckpt",
                    "https://huggingface.co/leo19941227/distilhubert/tree/main",
                    "https://huggingface.co/leo19941227/distilhubert/resolve/main/distilhubert_ls960_4-8-12.ckpt",
                ),
            ),
        ),
        Known(
            "ntu-spml/distilhubert",
            "transformers",
            23_491_200,
            (),
            "the port to transformers, without the prediction heads",
            "last",
        ),
        _light("small", 26_872_960),
        _light("base", 66_890_880),
        _light("stage1", 94_370_944),
        _dp(
            "dphubert",
            23_585_946,
            "DPHuBERT-sp0.75.pth",
            "384d72429163b79cd9f4deaf41aa2cbc990e7526b4430f2a22d40c5e70c14be7",
        ),
        _dp(
            "dpwavlm",
            23_586_325,
            "DPWavLM-sp0.75.pth",
            "932dff02604b20dc3392ea8962f5940b9ac52b01948db68afae036dd6eaa94c1",
        ),
    )
}


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


def get(name: str) -> Known:
    """The entry. Raises :class:`StarError` with the near names for an unknown one."""
    if name not in KNOWN:
        raise StarError(
            f"{name!r}: no published checkpoint of that name{nearest(name, KNOWN)} (known: {', '.join(KNOWN)})"
        )
    return KNOWN[name]


def fetch(entry: str | Known, progress: bool = True) -> Path:
    """The weights file of a known checkpoint in torch.hub's cache, downloaded unless it is there; its yaml, if any,
    beside it.

    A digest, where known, is checked; what was fetched in part never has the final name. Raises :class:`StarError` that
    says which file to fetch from where, and under which name to save it, when a download is not possible.
    """
    entry = get(entry) if isinstance(entry, str) else entry
    if not entry.files:
        raise StarError(f"{entry.name}: on the Hugging Face hub; formats.sources.load fetches it")
    folder = Path(torch.hub.get_dir()) / "star_upstream" / entry.name
    paths = {file: folder / f"{entry.name}{file.suffix}" for file in entry.files}
    missing = [file for file in reversed(entry.files) if not paths[file].exists()]  # the large file last
    by_hand = " and ".join(f"fetch {file.page} and save it as {paths[file]}" for file in missing)
    for file in missing:
        try:
            _download(file, paths[file], progress)
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


def _download(file: File, path: Path, progress: bool) -> None:
    if file.url is None:
        raise ValueError("its authors give no address that a program could use")
    with replacing(path) as part:
        torch.hub.download_url_to_file(file.url, str(part), hash_prefix=file.sha256, progress=progress)
        with open(part, "rb") as start:
            if start.read(100).lstrip()[:1] == b"<":
                raise ValueError(f"{file.url} answered with a web page in place of the file")
