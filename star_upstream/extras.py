"""What ``pip install star-upstream`` leaves out, since loading, running and converting a model do not need it."""

from __future__ import annotations

import importlib.util
import sys

from .errors import StarError

BRINGS = {
    "train": (
        "lightning_fabric",
        "tensorboard",
        "torchaudio",
        "pandas",
        "scipy",
        "sklearn",
        "matplotlib",
        "rich",
        "librosa",
        "joblib",
        "editdistance",
    ),
    "eval": (
        "s3prl",
        "torchaudio",
        "pandas",
        "scipy",
        "sklearn",
        "librosa",
        "editdistance",
        "matplotlib",
        "omegaconf",
        "statsmodels",
    ),
    "teachers": ("torchaudio", "huggingface_hub"),
    "shards": ("fsspec", "pyarrow"),
    "mini": ("espeakng_loader",),
    "export": ("onnx", "onnxruntime"),
    "cluster": ("submitit",),
    "wandb": ("pytorch_lightning", "wandb"),
    "mlflow": ("pytorch_lightning", "mlflow"),
}
"""Of each extra of setup.cfg the modules that are imported here or, undeclared, by s3prl."""


def installed(module: str) -> bool:
    """Whether ``module`` can be imported; it is not imported."""
    if module in sys.modules:
        return sys.modules[module] is not None  # None is how Python marks what must not be imported
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def need(extra: str, *modules: str) -> None:
    """Raise :class:`StarError` where one of ``modules`` (all that ``extra`` brings, if none is named) is not installed.

    To be called before a lazy import, so that who lacks a package reads what to install.
    """
    missing = [module for module in modules or BRINGS[extra] if not installed(module)]
    if missing:
        names = ", ".join(missing)
        raise StarError(
            f"not installed: {names}; pip install 'star-upstream[{extra}]' brings "
            f"{'it' if len(missing) == 1 else 'them'} (in a clone: make setup)"
        )
