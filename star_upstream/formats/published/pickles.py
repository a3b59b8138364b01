"""Reading other authors' pickled checkpoints without running anything in them.

PyTorch's ``weights_only`` reader builds tensors and plain containers alone. Training frameworks also leave a few
classes of their own in a file (a Namespace of options, a dictionary of labels); these become inert stand-ins that only
hold what was stored. A file that names any other class is refused by that name, before it is read.
"""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ...errors import StarError
from ..identify import what


class Inert:
    """Holds what a pickled object of another class was made from; has no behaviour."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args):
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        self.state = state


_STAND_INS: dict[str, Callable[..., Any]] = {
    # Lightning's hyper-parameters: a dict whose keys read as attributes.
    "pytorch_lightning.utilities.parsing.AttributeDict": OrderedDict,
    "lightning.pytorch.utilities.parsing.AttributeDict": OrderedDict,
    "lightning.fabric.utilities.data.AttributeDict": OrderedDict,
    "lightning_fabric.utilities.data.AttributeDict": OrderedDict,
    "collections.defaultdict": lambda *_: OrderedDict(),
    "argparse.Namespace": Inert,
    "pathlib.PosixPath": Inert,
    "numpy.dtype": Inert,
    "numpy.core.multiarray.scalar": Inert,
    "numpy._core.multiarray.scalar": Inert,
    "typing.Any": Inert,
    **{f"builtins.{name}": Inert for name in ("bool", "dict", "float", "int", "list", "str", "tuple")},
}
_STAND_IN_FAMILIES = ("fairseq.", "omegaconf.", "s3prl.optimizers.", "optimizers.")
_READ_BY_TORCH = (
    "torch.",
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    *(f"builtins.{name}" for name in ("bytearray", "complex", "set")),
)


def is_pickled(path: str | Path) -> bool:
    """Whether the file looks like one that ``torch.save`` wrote: a zip archive with a pickle, or a bare pickle."""
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"\x80" or (zipfile.is_zipfile(path) and _pickle_in(path) is not None)
    except (OSError, zipfile.BadZipFile):
        return False


def read(path: str | Path) -> Any:
    """The file's content, tensors on the CPU. Raises :class:`StarError` for one that is unreadable or pickles a foreign
    class."""
    if said := what(path):
        raise StarError(f"{path}: {said}")
    try:
        names = _named_globals(path)
    except OSError as error:
        raise StarError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, zipfile.BadZipFile, IndexError, KeyError):
        raise StarError(f"{path}: damaged, or not a file that torch.save wrote") from None
    for name in sorted(names):
        if name not in _STAND_INS and not name.startswith(_STAND_IN_FAMILIES) and not name.startswith(_READ_BY_TORCH):
            raise _refusal(path, name)
    stand_ins: list[Any] = [
        (_STAND_INS.get(name, Inert), name) for name in names if not name.startswith(_READ_BY_TORCH)
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise _refusal(path, found[1]) from None
        reason = next((line for line in reversed(str(error).splitlines()) if line and "http" not in line), "")
        raise StarError(f"{path}: cannot be read as weights ({reason.strip()[:200]})") from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        AssertionError,
    ) as error:
        raise StarError(
            f"{path}: damaged ({str(error).splitlines()[0][:200] if str(error) else type(error).__name__})"
        ) from None


def plain(value: Any) -> Any:
    """Stand-ins as plain mappings, lists and scalars: a Namespace by its attributes, omegaconf's nodes by their
    content."""
    try:
        return _plain(value)
    except RecursionError:
        raise StarError("a configuration that contains itself") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Inert):
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if isinstance(state, Mapping):
            for key in ("_content", "_val"):
                if key in state:
                    return _plain(state[key])
            return _plain(state)
        return _plain(value.args[0]) if value.args else None
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _refusal(path: str | Path, name: str) -> StarError:
    return StarError(
        f"{path}: holds a pickled {name!r}; refused, since reading it could run its code (only weights and plain "
        "values are read)"
    )


def _pickle_in(path: str | Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        return next((name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"), None)


def _named_globals(path: str | Path) -> set[str]:
    """Dotted names of everything outside plain containers that the file's pickles refer to; nothing is imported."""
    if zipfile.is_zipfile(path):
        inside = _pickle_in(path)
        if inside is None:
            raise ValueError("no pickle")
        with zipfile.ZipFile(path) as archive, archive.open(inside) as stream:
            return _scan(stream)
    names: set[str] = set()
    with open(path, "rb") as stream:
        names |= _scan(stream)
        # torch.save before 1.6 wrote five pickles in a row (magic number, version, system, object, storage keys), then
        # raw data; where fewer come, torch's own reader decides.
        with contextlib.suppress(ValueError):
            for _ in range(4):
                names |= _scan(stream)
    return names


def _scan(stream: IO[bytes]) -> set[str]:
    names: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(_modern(*str(argument).split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            names.add(_modern(*strings[-2:]) if len(strings) > 1 else "an unnamed class")
        elif isinstance(argument, str):
            strings.append(argument)
    return names


def _modern(module: str, name: str) -> str:
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"
