"""What the commands of this folder share: where a page may be written, mistakes in the input, the processor."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path
from typing import Any

from star_upstream import outputs
from star_upstream.errors import StarError
from star_upstream.files import home, replacing, write_json

FAST = ("avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Of a processor's flags, those that make bf16 and int8 fast."""


def check_page(out: Path, maker: str, title: str, key: str) -> None:
    """Raises :class:`StarError` where ``out`` is no page's name, or where it or the numbers beside it are there and no
    earlier result, told by the page's title and a key of the json."""
    if out.suffix != ".md":
        raise StarError(f"--out {out}: must end in .md (the numbers go beside it, in .json)")
    outputs.check_file(out, maker, outputs.begins_with(title))
    outputs.check_file(out.with_suffix(".json"), maker, lambda file: outputs.holds(file.name, key)(file.parent))


def write(out: Path, page: str, numbers: dict[str, Any] | None = None) -> None:
    """The page, and beside it, in .json, its numbers."""
    if numbers is not None:
        write_json(out.with_suffix(".json"), numbers)
    with replacing(out) as part:
        part.write_text(page, encoding="utf-8")


def processor() -> str:
    """The processor's name, with those of :data:`FAST` that it has."""
    try:
        found = dict(re.findall(r"^(model name|flags)\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M))
    except OSError:
        found = {}
    fast = [flag for flag in FAST if flag in found.get("flags", "").split()]
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(fast)})" if fast else name


def path(text: str) -> Path:
    return home(text)  # the shell leaves --out=~/results as it is


def guarded(verb, *arguments) -> int:
    """The exit code of a script: what it returns, 2 for a mistake in the input."""
    try:
        return verb(*arguments)
    except StarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
