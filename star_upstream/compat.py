"""What s3prl 0.4.18 needs on today's torchaudio, pandas, huggingface_hub and Python. The only place that patches
another package.

``apply()`` is called by whoever is about to import s3prl; importing this module changes nothing. Each patch is made
only where the original is absent or does not work, so that torchaudio 2.6 to 2.11 and both sides of pandas 2 run the
same code.

Shapes: C channels, N samples.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch

from . import extras
from .effects import apply_effects_tensor
from .errors import StarError

_APPLIED: list[str] = []

SUPERB_PROBLEMS = {
    "SuperbASR": "asr.superb_asr",
    "SuperbPR": "asr.superb_pr",
    "SuperbSF": "asr.superb_sf",
    "SuperbASV": "asv.superb_asv",
    "SuperbER": "common.superb_er",
    "SuperbIC": "common.superb_ic",
    "SuperbKS": "common.superb_ks",
    "SuperbSID": "common.superb_sid",
    "SuperbSD": "diarization.superb_sd",
}
"""Where ``s3prl.problem`` keeps its SUPERB recipes."""


def apply() -> list[str]:
    """Make s3prl importable and usable; a second call does nothing. Returns the names of what was patched, for
    records."""
    if not _APPLIED:
        extras.need("eval", "s3prl", "torchaudio", "pandas")
        _APPLIED.append("star_upstream.compat")
        for patch in (
            _torchaudio_backend,
            _torchaudio_files,
            _sox_effects,
            _pandas,
            _tensorboard,
            _chunk,
            _problems,
            _quiet,
        ):
            patch()
    return _APPLIED[1:]


def apply_legacy_runner() -> list[str]:
    """What ``s3prl.run_downstream`` needs besides :func:`apply`: names gone in huggingface_hub 1.0, argparse in
    checkpoints."""
    import argparse

    apply()
    extras.need("teachers", "huggingface_hub")
    import huggingface_hub

    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, _absent(name, "huggingface_hub < 1.0"))
            _APPLIED.append(f"huggingface_hub.{name}")
    if not extras.installed("tensorboardX"):
        stub = types.ModuleType("tensorboardX")
        vars(stub).update(SummaryWriter=_SilentWriter)
        sys.modules["tensorboardX"] = stub
        _APPLIED.append("tensorboardX")
    torch.serialization.add_safe_globals([argparse.Namespace])
    return _APPLIED[1:]


def _absent(name: str, needs: str) -> type:
    def refuse(self, *args, **kwargs):
        raise StarError(f"{name} needs {needs}, which is not installed")

    return type(name, (), {"__init__": refuse})


# torchaudio: backends, files


def _torchaudio_backend() -> None:
    """s3prl calls it at import; torchaudio 2.9 dropped it."""
    import torchaudio

    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None
        _APPLIED.append("torchaudio.set_audio_backend")


class AudioMetaData(NamedTuple):
    """What ``torchaudio.info`` returned until 2.8."""

    sample_rate: int
    num_frames: int
    num_channels: int
    bits_per_sample: int
    encoding: str


def _info(uri: Any, *args, **kwargs) -> AudioMetaData:
    found = soundfile.info(uri if hasattr(uri, "read") else str(uri))
    bits = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 64}.get(
        found.subtype, 0
    )
    kinds = {"PCM_U8": "PCM_U", "FLOAT": "PCM_F", "DOUBLE": "PCM_F"}
    encoding = "FLAC" if found.format == "FLAC" else kinds.get(found.subtype, "PCM_S" if bits else found.subtype)
    return AudioMetaData(found.samplerate, found.frames, found.channels, bits, encoding)


def _load(
    uri: Any,
    frame_offset: int = 0,
    num_frames: int = -1,
    normalize: bool = True,
    channels_first: bool = True,
    *args,
    **kwargs,
):
    source = uri if hasattr(uri, "read") else str(uri)
    wave_NC, rate = soundfile.read(source, frames=num_frames, start=frame_offset, dtype="float32", always_2d=True)
    wave_NC = torch.from_numpy(wave_NC)
    return (wave_NC.t().contiguous() if channels_first else wave_NC), rate


def _save(uri: Any, src: torch.Tensor, sample_rate: int, channels_first: bool = True, *args, **kwargs) -> None:
    wave = src.detach().cpu()
    if wave.dim() == 1:
        wave = wave[None] if channels_first else wave[:, None]
    wave_NC = (wave.t() if channels_first else wave).numpy()
    floats = str(uri).endswith(".wav") and wave_NC.dtype == np.float32
    soundfile.write(
        uri if hasattr(uri, "write") else str(uri), wave_NC, sample_rate, subtype="FLOAT" if floats else None
    )


def _torchaudio_files() -> None:
    """torchaudio 2.9 dropped ``info``, and its ``load`` and ``save`` only work where torchcodec does."""
    import torchaudio

    if hasattr(torchaudio, "info"):
        return
    torchaudio.info = _info
    _APPLIED.append("torchaudio.info")
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):  # absent, or installed without the FFmpeg libraries it loads
        torchaudio.load, torchaudio.save = _load, _save
        _APPLIED.append("torchaudio.load, torchaudio.save")


# torchaudio.sox_effects


def _apply_effects_file(
    path: Any, effects: Sequence[Sequence[str]], normalize: bool = True, channels_first: bool = True, format=None
):
    wave_CN, rate = _load(path)
    return apply_effects_tensor(wave_CN if channels_first else wave_CN.t(), rate, effects, channels_first)


def _sox_effects() -> None:
    """Gone in torchaudio 2.9; before, it fails where libsox is not installed."""
    import torchaudio

    original: Any = getattr(torchaudio, "sox_effects", None)
    try:
        original.apply_effects_tensor(torch.zeros(1, 160), 16_000, [["gain", "-3.0"]])
        return
    except (AttributeError, ImportError, OSError, RuntimeError):
        pass
    module = types.ModuleType("torchaudio.sox_effects")
    vars(module).update(apply_effects_tensor=apply_effects_tensor, apply_effects_file=_apply_effects_file)
    sys.modules["torchaudio.sox_effects"] = torchaudio.sox_effects = module
    _APPLIED.append("torchaudio.sox_effects")


# other packages


def _pandas() -> None:
    """s3prl's FluentSpeechCommands iterates rows with a name that pandas 2 dropped."""
    import pandas

    if not hasattr(pandas.Series, "iteritems"):
        pandas.Series.iteritems = pandas.Series.items
        _APPLIED.append("pandas.Series.iteritems")


class _SilentWriter:
    """Stands in for TensorBoard's writer: takes every call, writes nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


def _tensorboard() -> None:
    if extras.installed("tensorboard"):
        return
    package, writer = types.ModuleType("torch.utils.tensorboard"), types.ModuleType("torch.utils.tensorboard.writer")
    package.__path__ = []
    vars(writer).update(SummaryWriter=_SilentWriter)
    vars(package).update(SummaryWriter=_SilentWriter, writer=writer)
    sys.modules[package.__name__], sys.modules[writer.__name__] = package, writer
    _APPLIED.append("torch.utils.tensorboard")


def _chunk() -> None:
    """s3prl's diarization data imports the standard module ``chunk``, gone in Python 3.13, and does not use it."""
    if not extras.installed("chunk"):
        sys.modules["chunk"] = types.ModuleType("chunk")
        _APPLIED.append("chunk")


def _problems() -> None:
    """``s3prl.problem`` imports the HEAR recipes and with them sed_eval, dcase_util and more_itertools.

    Where those do not work, the two packages are registered without running their ``__init__``, and the SUPERB recipes
    are imported when they are asked for.
    """
    if "s3prl.problem" in sys.modules:
        return
    try:
        for name in ("more_itertools", "dcase_util.containers", "sed_eval"):
            importlib.import_module(name)
        return
    except Exception:  # dcase_util fails at import in several ways (pkg_resources, libmagic)
        pass
    spec = importlib.util.find_spec("s3prl")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "problem"
    for name, path in (("s3prl.problem", folder), ("s3prl.problem.common", folder / "common")):
        package = types.ModuleType(name)
        package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        package.__path__ = package.__spec__.submodule_search_locations = [str(path)]
        package.__package__ = name
        sys.modules[name] = package

    def __getattr__(name: str) -> Any:
        if name in SUPERB_PROBLEMS:
            return getattr(importlib.import_module(f"s3prl.problem.{SUPERB_PROBLEMS[name]}"), name)
        raise AttributeError(
            f"module 's3prl.problem' has no attribute {name!r} (HEAR recipes need sed_eval and dcase_util)"
        )

    vars(sys.modules["s3prl.problem"])["__getattr__"] = __getattr__
    vars(importlib.import_module("s3prl"))["problem"] = sys.modules["s3prl.problem"]
    _APPLIED.append("s3prl.problem without the HEAR recipes")


def _quiet() -> None:
    """s3prl says at import that ESPnet is not installed: news only for who asks for that upstream, and they get an
    error."""
    logger = logging.getLogger("s3prl.upstream.espnet_hubert.expert")
    logger.addFilter(lambda record: not record.getMessage().startswith("ESPnet is not installed"))
