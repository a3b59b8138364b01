"""Where a run's numbers go beside its log: TensorBoard, and the trackers that a recipe names. None of them stops a run.

Weights & Biases writes offline where no key is known (``wandb sync`` sends it later), MLflow into ``mlflow.db`` in the
run's folder unless ``MLFLOW_TRACKING_URI`` names a server. A resumed run goes on in the same run there.
"""

from __future__ import annotations

import json
import netrc
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from .. import extras
from ..errors import StarError
from ..files import write_json
from ..say import say
from .run_folder import RunFolder

PROJECT = "star_upstream"


class Trackers:
    """Lightning's loggers, for the first process. Raises :class:`StarError` for one whose package is not installed."""

    def __init__(self, names: tuple[str, ...], folder: RunFolder):
        self.folder = folder.path
        for name in names:
            if missing := [module for module in extras.BRINGS.get(name, ()) if not extras.installed(module)]:
                told = ", ".join(missing)
                raise StarError(f"training.trackers: not installed: {told}; pip install 'star-upstream[{name}]'")
        self.loggers: dict[str, Any] = {}
        for name in ("tensorboard", *names) if folder.lead else ():
            self._try(name, self._open, name)

    def log(self, row: Mapping[str, Any], update: int) -> None:
        for name, logger in list(self.loggers.items()):
            self._try(name, logger.log_metrics, dict(row), update)

    def close(self) -> None:
        for name, logger in list(self.loggers.items()):
            self._try(name, logger.finalize, "success")

    def _try(self, name: str, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # a server that is away, a full disk: nothing here is worth the run
            self.loggers.pop(name, None)
            why = " ".join(str(error).split())[:200] or type(error).__name__
            say(f"{self.folder}: {name} cannot be written to ({why}); the run goes on without it, its log has all")

    def _open(self, name: str) -> None:
        self.loggers[name] = getattr(self, f"_{name}")()

    def _tensorboard(self) -> Any:
        from lightning_fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(str(self.folder), name="", version="tensorboard")

    def _csv(self) -> Any:
        from lightning_fabric.loggers import CSVLogger

        return CSVLogger(str(self.folder), name="csv", flush_logs_every_n_steps=1)  # a version a start

    def _wandb(self) -> Any:
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(
            name=self.folder.name,
            project=PROJECT,
            save_dir=str(self.folder),
            id=self._id("wandb", secrets.token_hex(4)),
            resume="allow",
            offline="WANDB_MODE" not in os.environ and not _has_key(),
        )

    def _mlflow(self) -> Any:
        from pytorch_lightning.loggers import MLFlowLogger

        folder = self.folder.resolve()
        logger = MLFlowLogger(
            PROJECT,
            run_name=folder.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db",
            artifact_location=str(folder / "mlruns"),
            run_id=self._id("mlflow"),
        )
        self._id("mlflow", logger.run_id)
        return logger

    def _id(self, name: str, new: str | None = None) -> str | None:
        """The run's name with a tracker, kept from its first start on: the one that is there, or ``new``."""
        file = self.folder / "trackers.json"
        known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if name not in known and new is not None:
            known[name] = new
            write_json(file, known)
        return known.get(name)


def _has_key() -> bool:
    """Whether W&B has a key, as it looks for one: in the environment, or in netrc."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return known or bool(os.environ.get("WANDB_API_KEY"))
