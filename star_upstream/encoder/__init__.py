"""One speech encoder for every model: what differs is its :class:`EncoderConfig`."""

from .config import HUBERT_CONVS, EncoderConfig, RelativePosition
from .encoder import Encoder, EncoderOutput

__all__ = ["HUBERT_CONVS", "Encoder", "EncoderConfig", "EncoderOutput", "RelativePosition"]
