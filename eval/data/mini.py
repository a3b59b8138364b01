"""A small corpus for each task by speech synthesis, in the folder layouts of the real ones: ``python -m eval.data.mini
ROOT``.

It lets every part of the evaluation run anywhere in minutes. Its scores compare upstreams with one another at best and
never with published ones. The recipes of the single corpora are in :mod:`eval.data.mini_parts`.

The waveforms depend only on the seed, the scale and the version of espeak-ng.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from star_upstream import extras, flags, outputs
from star_upstream.environment import versions
from star_upstream.errors import StarError
from star_upstream.files import home, leftovers, replacing, write_json
from star_upstream.say import command, say

VERSION = 3
"""Of the recipe below; another one makes the folder anew."""
MARKER = "mini.json"
MAKER, FORMER_MAKER = "eval.data.mini", "eval.corpora.mini"
"""What the marker calls this module, today and in folders that an earlier version made: they are the same corpora."""


def parts() -> tuple[Any, ...]:
    """The modules of the single corpora."""
    extras.need("eval", "pandas")
    from .mini_parts import commands, emotions, keywords, mixtures, queries, sentences, slots, speakers

    return keywords, speakers, sentences, mixtures, commands, slots, emotions, queries


def folders() -> tuple[str, ...]:
    """What :func:`make` makes in its folder."""
    return tuple(folder for part in parts() for folder in part.FOLDERS)


def make(root: str | Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Make the small corpora in the folder ``root`` (65 minutes of audio, 120 MB; ``scale`` multiplies the numbers of
    items).

    Nothing is done when they are there, whole, with this seed, scale and recipe; else they are made anew.
    Raises :class:`StarError` when ``root`` holds other files, and when espeak-ng is not installed.
    """
    if not 0 < scale <= 10:
        raise StarError(f"scale is {scale}; it must be above 0 and at most 10")
    if seed < 0:
        raise StarError(f"seed is {seed}; it must be 0 or more")
    root = home(root).absolute()
    recipe = {"made_by": MAKER, "version": VERSION, "seed": seed, "scale": float(scale)}
    marker = root / MARKER
    if root.exists():
        found = _marker(marker)
        same = found is not None and found.get("complete") and recipe.items() <= found.items()
        if same and all((root / name).is_dir() for name in folders()):
            return root
    outputs.check_folder(root, MAKER, is_made)
    if root.exists():
        for name in folders():
            if others := outputs.strangers(root / name):
                fix = "move it away, or name another folder"
                raise StarError(f"{root / name}: is to be made anew, but {MAKER} did not make {others[0]} in it; {fix}")
        outputs.check_file(root / "README.md", MAKER, is_card)
    extras.need("mini")
    root.mkdir(parents=True, exist_ok=True)
    write_json(marker, {**recipe, "complete": False})
    for name in (*folders(), "README.md"):
        for left in (*leftovers(root / name, "part"), *leftovers(root / name, "old")):  # by a killed run
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    for number, corpus in enumerate(parts()):
        corpus.make(root, np.random.default_rng([seed, number]), lambda items: max(1, round(items * scale)))
    with replacing(root / "README.md") as part:
        part.write_text(CARD.format(version=VERSION, seed=seed, scale=scale), encoding="utf-8")
    write_json(
        marker, {**recipe, "complete": True, "espeakng_loader": versions(("espeakng-loader",))["espeakng-loader"]}
    )
    return root


def is_made(root: Path) -> bool:
    """Whether the folder is of our making, whole or not."""
    return _marker(root / MARKER) is not None


def is_card(path: Path) -> bool:
    return path.is_file() and outputs.begins_with(CARD[:20])(path)


def _marker(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made = isinstance(found, dict) and found.get("made_by") in (MAKER, FORMER_MAKER)
    return {**found, "made_by": MAKER} if made else None


CARD = """# Mini corpora (synthetic)

Made by `python -m eval.data.mini`, recipe {version}, seed {seed}, scale {scale}. Nothing here is a recording of a
person.

| folder | layout of | task | content |
| --- | --- | --- | --- |
| speech_commands_v0.01, speech_commands_test_set_v0.01 | Speech Commands | KS | ten words, twenty others, noise |
| VoxCeleb1 | VoxCeleb1 | SID, ASV | synthetic voices, 2 to 4 s an utterance; trials |
| LibriSpeech | LibriSpeech | ASR, PR | sentences of a small grammar; a lexicon of their words |
| Libri2Mix | s3prl's Libri2Mix | SD | two voices that take turns and interrupt each other, 6 to 9 s |
| fluent_speech_commands_dataset | Fluent Speech Commands | IC | eighteen intents |
| SNIPS | Audio SNIPS | SF | sentences of five patterns, nine slots |
| IEMOCAP | IEMOCAP | ER | sentences in four styles of pitch, rate, range and loudness; five sessions |
| quesst14Database | QUESST 2014 | QbE | two digits searched in six |

How: espeak-ng says each text with a voice variant, an English accent, a pitch and a rate; then come a random
equaliser curve, a random level and coloured noise 10 to 30 dB below the speech. Splits: different voices in train,
dev and test (ER: in each session; ASV: the voices of the trials are not in training), but for SID, where each "video"
(one equaliser curve, one kind of noise) is in one split.

**Scores on these corpora are not comparable with published SUPERB scores, nor with scores on any real corpus.** They
show that an evaluation runs, and at most which of two upstreams does better here.

What the labels mean less than on real speech:

- SID, ASV: a "speaker" is a setting of one synthesiser (variant, accent, pitch, rate), not a person; the sex in
  `SPEAKERS.TXT` is that which the variant's name suggests. The voices of the trials are not in `iden_split.txt`.
- KS, IC, QbE: every voice pronounces a word by the same rules; the silence class is generated noise.
- ASR, SF: few words in few sentence patterns; a low error rate says little about open vocabulary. The voices of SNIPS
  have the names of the published corpus's voices, since its split is by name, and nothing else of them.
- PR: the phones are those of American English in a dictionary, whatever accent the voice has.
- SD: the turns are exact, but the talk is no conversation, and overlap is drawn at random.
- ER: an "emotion" is four numbers that raise or lower pitch, rate, range and loudness. Nobody feels or acts anything;
  a high score shows that an upstream keeps prosody and level, not that it knows emotions.

espeak-ng is free software under the GPL (version 3 or later), used here as a tool through the pip package
`espeakng-loader`; it is not part of star_upstream. To remake this folder, run the command above again; `mini.json`
says what it was made from.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MAKER}", description="Make small synthetic corpora in a folder.")
    parser.add_argument("root", help="folder to make; a finished one is left as it is")
    parser.add_argument("--seed", type=flags.seed, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of items (default 1)")
    arguments = parser.parse_args(argv)
    try:
        say(f"mini corpora: {make(arguments.root, arguments.seed, arguments.scale)}")
    except (StarError, OSError) as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    command(main)
