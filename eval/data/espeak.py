"""espeak-ng as a text-to-speech tool in a process of its own.

The library is GPL and keeps global state, so it is loaded only in a child process that runs this file: the caller's
process never loads it, and the same list of jobs always starts from the same state and gives the same samples. It comes
with the pip package ``espeakng-loader``, which the optional extra ``mini`` installs.

The child reads a json list of jobs; it writes all samples to one raw file (int16) and their counts, one a job, to a
json file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RATE = 22_050
"""Samples a second of what espeak-ng returns."""

# From espeak-ng's speak_lib.h.
SYNCHRONOUS, DONT_EXIT, UTF8 = 2, 0x8000, 1
RATE_PARAMETER, VOLUME_PARAMETER, PITCH_PARAMETER, RANGE_PARAMETER = 1, 2, 3, 4
VOLUME = 60  # of 100, the default; some voices clip there


@dataclass(frozen=True)
class Job:
    """A text and how to say it: ``language`` as espeak-ng names it, ``variant`` a file of its ``voices/!v``, ``rate``
    in words a minute, ``pitch`` and ``range`` 0 to 100."""

    text: str
    language: str
    variant: str
    rate: int
    pitch: int
    range: int


def speak(jobs: Sequence[Job]) -> list:
    """One float32 waveform at ``RATE`` Hz a job, in order. Raises :class:`StarError` without espeak-ng and when it
    fails."""
    import numpy as np

    from star_upstream import extras
    from star_upstream.errors import StarError

    extras.need("mini")
    with tempfile.TemporaryDirectory() as folder:
        request, samples, sizes = (Path(folder) / name for name in ("jobs.json", "samples.raw", "sizes.json"))
        request.write_text(json.dumps([asdict(job) for job in jobs]), encoding="utf-8")
        child = subprocess.run([sys.executable, __file__, request, samples, sizes], stderr=subprocess.PIPE, text=True)
        if child.returncode:
            reason = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
            raise StarError(f"espeak-ng failed: {reason[0]}")
        waves = np.fromfile(samples, dtype="<i2").astype(np.float32) / 32768
        return np.split(waves, np.cumsum(json.loads(sizes.read_text()))[:-1])


def _child(request: Path, samples: Path, sizes: Path) -> None:
    import ctypes

    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data = Path(espeakng_loader.get_data_path())
    said = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def collect(wave, count, events):
        if wave and count > 0:
            said.extend(ctypes.string_at(wave, 2 * count))
        return 0

    rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(data).encode(), DONT_EXIT)
    if rate != RATE:
        raise SystemExit(f"espeak_Initialize returned {rate} for {data}, expected a rate of {RATE} Hz")
    library.espeak_SetSynthCallback(collect)
    lengths = []
    with samples.open("wb") as out:
        for number, job in enumerate(Job(**values) for values in json.loads(request.read_text(encoding="utf-8"))):
            # espeak-ng takes an unknown variant for the plain voice without a word.
            if not (data / "voices" / "!v" / job.variant).is_file() or library.espeak_SetVoiceByName(
                f"{job.language}+{job.variant}".encode()
            ):
                raise SystemExit(f"no voice {job.language}+{job.variant}")
            library.espeak_SetParameter(VOLUME_PARAMETER, VOLUME, 0)
            library.espeak_SetParameter(RATE_PARAMETER, job.rate, 0)
            library.espeak_SetParameter(PITCH_PARAMETER, job.pitch, 0)
            library.espeak_SetParameter(RANGE_PARAMETER, job.range, 0)
            text = job.text.encode() + b"\0"
            said.clear()
            library.espeak_ng_SetRandSeed(ctypes.c_long(number))  # else breath noise depends on the time of day
            if library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, UTF8, None, None):
                raise SystemExit(f"cannot say {job.text!r}")
            library.espeak_Synchronize()
            out.write(said)
            lengths.append(len(said) // 2)
    sizes.write_text(json.dumps(lengths))


if __name__ == "__main__":
    _child(*(Path(argument) for argument in sys.argv[1:]))
