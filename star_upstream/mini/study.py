"""What shape and rates to pretrain with: variants of a recipe for equal CPU time, and how well each predicts units and
tells phones.

    python -m star_upstream.mini.study FOLDER_OR_MANIFEST... --phones pr.tsv --out RUN [--study study.yaml]

Every variant's first round is trained for ``cpu_seconds``, its learning rate falling to 0 over as many updates as fit;
finished ones are kept, so that a rerun goes on. Prints a table in markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import augment, outputs, strict, units
from ..analysis import phone_probe
from ..crops import Crops
from ..data.clips import Clip, scan
from ..encoder import size
from ..errors import StarError
from ..files import write_json
from ..formats import sources
from ..say import command, say
from .pretrain import Pretraining, Training, find_units, merge, split, train

TIMED = 12
"""Updates that are timed to know how many fit; the first quarter of them is not counted."""


@dataclass(frozen=True)
class Study:
    """``study.yaml`` beside this file."""

    cpu_seconds: float
    base: dict[str, Any]
    """Changes to ``pretrain.yaml`` that all variants have, dotted keys and values."""
    variants: dict[str, dict[str, Any]]
    """A title and the changes that make the variant."""


def run(
    title: str, recipe: Pretraining, budget: float, clips: Sequence[Clip], phones: Path, out: Path
) -> dict[str, Any]:
    """Train one variant for ``budget`` seconds of CPU time, and measure it."""
    round_ = recipe.rounds[0]
    file = out.parent / f"{round_.features}-{round_.units}-{recipe.encoder.receptive_field}-{recipe.encoder.stride}.npz"
    if not file.is_file():
        before = sources.load(recipe.begin) if recipe.begin else None
        units.write(file, find_units(clips, round_, before, recipe))
    found = dict(zip(clips, units.read(file, [recipe.encoder.frames(clip.samples) for clip in clips])))
    learned, held = (
        Crops(part, [found[clip] for clip in part], recipe.encoder, config, recipe.seed)
        for part, config in zip(split(clips, recipe.valid_clips, recipe.seed), (recipe.augment, augment.NONE))
    )
    (out / "log.csv").unlink(missing_ok=True)  # of a run that was cut short
    timed = Training(recipe, round_, 1, None, out)
    train(timed, learned, held, TIMED // 4)
    warm = timed.cpu
    train(timed, learned, held, TIMED)
    (out / "log.csv").unlink()
    updates = max(TIMED, round(budget * (TIMED - TIMED // 4) / (timed.cpu - warm)))
    training = Training(recipe, dataclasses.replace(round_, updates=updates), 1, None, out)
    values = train(training, learned, held)
    (out / "state.pt").unlink()
    rates = phone_probe.by_layer(training.model.encoder.eval(), phones)
    best = min(rates, key=rates.__getitem__)
    return {
        "variant": title, "parameters": size.parameters(recipe.encoder), "updates": updates,
        "cpu_seconds": round(training.cpu), "audio_hours": round(training.seconds / 3600, 2),
        "valid_masked": round(values["valid_masked"], 3), "valid_accuracy": round(100 * values["valid_accuracy"], 1),
        "best_layer": best, "phone_error_rate": rates[best],
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, in the order given."""
    head = (
        "variant",
        "M parameters",
        "updates",
        "CPU s",
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
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("pretrain.yaml"))
    parser.add_argument("--study", type=Path, default=Path(__file__).with_name("study.yaml"))
    args = parser.parse_args(argv)
    study = strict.build(Study, yaml.safe_load(args.study.read_text(encoding="utf-8")), args.study.name)
    plain = yaml.safe_load(args.recipe.read_text(encoding="utf-8"))
    recipes = {
        title: strict.build(Pretraining, merge(plain, {**study.base, **changes}), f"{args.study.name}: {title}")
        for title, changes in study.variants.items()
    }
    outputs.claim_folder(args.out, "star_upstream.mini.study")
    clips, rows = scan(args.data, min_seconds=next(iter(recipes.values())).min_seconds).clips, []
    for number, (title, recipe) in enumerate(recipes.items(), 1):
        file = args.out / f"{number}.json"
        wanted = {"cpu_seconds": study.cpu_seconds, "recipe": strict.plain(recipe)}
        if not file.is_file():
            say(f"{title}:")
            folder = args.out / f"{number}"
            folder.mkdir(exist_ok=True)
            write_json(file, {**wanted, "row": run(title, recipe, study.cpu_seconds, clips, args.phones, folder)})
        kept = json.loads(file.read_text(encoding="utf-8"))
        changed = strict.difference({k: kept[k] for k in wanted}, wanted)
        if changed:
            raise StarError(f"{file}: was measured otherwise: {changed}; remove it, or choose another --out")
        rows.append(kept["row"])
    print(table(rows))


if __name__ == "__main__":
    command(main)
