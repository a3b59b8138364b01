"""An exported file as an upstream: what ``star-eval run --upstream model.onnx`` scores.

Shapes: B utterances, N samples, T frames, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import strict
from ..encoder import EncoderConfig
from ..errors import StarError
from ..files import sha256
from ..runtime import Model


class ExportedUpstream(nn.Module):
    """The states of an exported file behind s3prl's contract, computed on the CPU. Raises :class:`StarError` for a file
    without states."""

    def __init__(self, path: str | Path):
        super().__init__()
        try:
            self._model = Model(path, torch.get_num_threads())
        except ValueError as error:
            raise StarError(str(error)) from None
        about = self._model.about
        self.names = [name for name, output in about["outputs"].items() if output["kind"] == "state"]
        if not self.names:
            raise StarError(f"{path}: gives no states; export it with --layers all")
        self.config = strict.build(EncoderConfig, about["encoder"], str(path))
        self.digest = sha256(path)

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples from one frame to the next."""
        return self.config.stride

    def frames(self, samples: int) -> int:
        """Frames of a waveform of ``samples`` samples."""
        return self.config.frames(samples)

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """``hidden_states`` (B x T x D each) and ``lengths`` of 1-D waveforms at 16 kHz."""
        given = self._model.run([np.asarray(wav.cpu(), dtype=np.float32) for wav in wavs], self.names)
        states = [torch.from_numpy(given[name]).to(wavs[0].device) for name in self.names]
        return {"hidden_states": states, "last_hidden_state": states[-1], "lengths": torch.from_numpy(given["frames"])}
