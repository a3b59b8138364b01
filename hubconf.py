dependencies = ["torch", "numpy", "safetensors", "soundfile", "yaml"]

from star_upstream.formats.upstream import (  # noqa: E402, F401
    star_hubert,
    star_hubert_l,
    star_hubert_s,
    star_hubert_xs,
    star_local,
    star_mini,
    star_mini_mel,
    star_mini_stream,
    star_mini_teacher,
    star_small,
    star_wavlm,
)
