"""What a step frees stays for the next one.

glibc gives large blocks back to the kernel when they are freed, and a training step, which takes the same blocks again,
waits for the kernel to find and clear them: a tenth to a seventh of a step of HuBERT Base and a 22 M student on a
virtual CPU (``results/bench/train.py``).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Names of mallopt's parameters (malloc.h)."""
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}
"""No block of its own for a large one, and no end of the heap given back."""
USUAL = {MMAP_MAX: 65_536, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}
"""glibc's own, at the values to which it raises the thresholds by itself in a process that frees large blocks."""


@contextmanager
def kept() -> Iterator[bool]:
    """Inside, freed memory stays with this process; afterwards it is given back. Whether that is so: not where another
    system, C library or ``MALLOC_*`` variable decides."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    ours = not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim") or not ours:
        yield False
        return
    try:
        yield min(library.mallopt(name, value) for name, value in KEEP.items()) == 1
    finally:
        for name, value in USUAL.items():
            library.mallopt(name, value)
        library.malloc_trim(0)
