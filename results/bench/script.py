"""What the commands of this folder share: where a page may be written, mistakes in the input, the processor's name."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path

from star_upstream import outputs
from star_upstream.errors import StarError


def check_page(out: Path, maker: str, title: str, key: str) -> None:
    """Raises :class:`StarError` where ``out`` is no page's name, or where it or the numbers beside it are there and no
    earlier result, told by the page's title and a key of the json."""
    if out.suffix != ".md":
        raise StarError(f"--out {out}: must end in .md (the numbers go beside it, in .json)")

    def numbers(path: Path) -> bool:
        try:
            return key in json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError):
            return False

    outputs.check_file(out, maker, outputs.begins_with(title))
    outputs.check_file(out.with_suffix(".json"), maker, numbers)


def processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def path(text: str) -> Path:
    return Path(text).expanduser()  # the shell leaves --out=~/results as it is


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
