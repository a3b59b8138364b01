"""What shape and rates to pretrain with: variants of a recipe for equal CPU time, and how well each predicts units and
tells phones.

    python -m star_upstream.mini.study FOLDER_OR_MANIFEST... --phones pr.tsv --out RUN [--study study.yaml]

Every variant's first round is trained for ``cpu_seconds`` of this process, its learning rate falling to 0 by then; a
rerun goes on. Prints a table in markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import extras, outputs, strict
from ..encoder import size
from ..errors import StarError
from ..files import write_json
from ..formats import checkpoint
from ..say import command, say
from ..training import recipe as recipes
from ..training.pretrain_recipe import PretrainRecipe


@dataclass(frozen=True)
class Study:
    """``study.yaml`` beside this file."""

    cpu_seconds: float
    base: tuple[str, ...]
    """Changes to the recipe that all variants have, as ``key=value``."""
    variants: dict[str, tuple[str, ...]]
    """A title and the changes that make the variant."""


def variant(recipe: str, changes: Sequence[str], data: Sequence[str], cpu_seconds: float) -> PretrainRecipe:
    """The recipe's first round with ``changes``, for so long."""
    made = recipes.load(recipe, changes, PretrainRecipe)
    never = 10**9
    training = dataclasses.replace(
        made.training, updates=None, epochs=None, minutes=cpu_seconds / 60, validate_every=never, save_every=never
    )
    rounds = (dataclasses.replace(made.rounds[0], share=1.0),)
    heard = dataclasses.replace(made.data, train=tuple(data), workers=0)
    return dataclasses.replace(made, rounds=rounds, training=training, data=heard)


def run(title: str, recipe: PretrainRecipe, phones: Path, out: Path) -> dict[str, Any]:
    """Train one variant, and measure it."""
    from ..analysis import phone_probe
    from ..training import loop, pretrain

    round_ = recipe.rounds[0]
    before = loop.clock
    loop.clock = time.process_time  # other processes do not count
    try:
        shape = recipe.encoder_config()
        units = out.parent / f"{round_.features}-{round_.units}-{shape.receptive_field}-{shape.stride}.npz"
        made = pretrain.run(recipe, out, units)
    finally:
        loop.clock = before
    (out / "round1" / "state.pt").unlink(missing_ok=True)
    written = checkpoint.describe(made)["provenance"]
    rates = phone_probe.by_layer(checkpoint.load(made), phones)
    best = min(rates, key=rates.__getitem__)
    return {
        "variant": title,
        "parameters": size.parameters(shape),
        "updates": written["updates"],
        "audio_hours": round(written["audio_hours"], 2),
        "valid_masked": round(written["validation_masked"], 3),
        "valid_accuracy": round(100 * written["validation_accuracy"], 1),
        "best_layer": best,
        "phone_error_rate": rates[best],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, in the order given."""
    head = (
        "variant",
        "M parameters",
        "updates",
        "hours heard",
        "loss, masked",
        "accuracy %",
        "best layer",
        "its PER %",
    )
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        cells = {**row, "parameters": f"{row['parameters'] / 1e6:.1f}"}
        lines.append(f"| {' | '.join(str(cell) for cell in cells.values())} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m star_upstream.mini.study", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", nargs="+", help="folders, lists of audio, audio files")
    parser.add_argument(
        "--phones", type=Path, required=True, help="tsv with path, samples, split (train, dev) and phones"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="hubert_mini", help="of star pretrain (hubert_mini)")
    parser.add_argument("--study", type=Path, default=Path(__file__).with_name("study.yaml"))
    args = parser.parse_args(argv)
    extras.need("train")
    study = strict.build(Study, yaml.safe_load(args.study.read_text(encoding="utf-8")), args.study.name)
    made = {
        title: variant(args.recipe, [*study.base, *changes], args.data, study.cpu_seconds)
        for title, changes in study.variants.items()
    }
    outputs.claim_folder(args.out, "star_upstream.mini.study")
    rows = []
    for number, (title, recipe) in enumerate(made.items(), 1):
        file, wanted = args.out / f"{number}.json", strict.plain(recipe)
        if not file.is_file():
            say(f"{title}:")
            write_json(file, {"recipe": wanted, "row": run(title, recipe, args.phones, args.out / f"{number}")})
        kept = json.loads(file.read_text(encoding="utf-8"))
        if changed := strict.difference(kept["recipe"], wanted):
            raise StarError(f"{file}: was measured otherwise: {changed}; remove it, or choose another --out")
        rows.append(kept["row"])
    print(table(rows))


if __name__ == "__main__":
    command(main)
