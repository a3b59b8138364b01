"""Small speech encoders by distillation, as s3prl upstreams.

``load(source)`` gives an upstream, ``register()`` makes its names known to s3prl, ``Encoder`` and ``EncoderConfig`` are
the model.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["Encoder", "EncoderConfig", "StarError", "UpstreamExpert", "load", "register"]

_HOME = {"Encoder": "encoder", "EncoderConfig": "encoder", "StarError": "errors"}


def __getattr__(name: str):
    # torch takes seconds to import; `star --help` should not wait for it
    if name in __all__:
        return getattr(import_module(f".{_HOME.get(name, 'formats.upstream')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
