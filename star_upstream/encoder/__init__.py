"""One speech encoder for every model: what differs is its :class:`EncoderConfig`."""

from .config import HUBERT_CONVS, EncoderConfig, RelativePosition
from .encoder import Encoder
from .output import EncoderOutput, Masked

__all__ = ["HUBERT_CONVS", "Encoder", "EncoderConfig", "EncoderOutput", "Masked", "RelativePosition"]
