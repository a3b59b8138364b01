"""What ``star compare`` left in a folder, as table.json, table.csv, table.md and page.html."""

from __future__ import annotations

import csv
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from star_upstream import outputs
from star_upstream.errors import StarError
from star_upstream.files import replacing, write_json

from . import page, score
from . import table as tables
from .paired import MEAN, Row, read, results
from .table import Cell, Table

MAKER = "star compare"


def main(folder: Path) -> int:
    """Print the tables of the comparison in ``folder`` (Markdown) and write all files. Raises :class:`StarError`."""
    file = folder / "comparison.json"
    if outputs.read_mark(folder) != MAKER or not file.is_file():
        raise StarError(f"{folder}: holds no comparison; star compare makes one")
    settings = json.loads(file.read_text(encoding="utf-8"))
    rows = [read(folder, name, entry, settings["asked"]["seeds"]) for name, entry in settings["entries"].items()]
    late = [row.name for row in rows if not row.records]
    if not rows[0].records:
        raise StarError(f"{folder}: no scores of {rows[0].name} yet, from which the others differ")
    rows = [row for row in rows if row.records]
    found = results(settings, rows)
    made = [
        _scores(found, rows, late),
        *_differences(found),
        _seeds(found, rows),
        _changed(rows),
        *_rates(folder, settings),
    ]
    text = tables.markdown(made) + "\n"
    contents = {"table.md": text, "table.csv": as_csv(found), "page.html": _page(settings, found, made)}
    write_json(folder / "table.json", found)
    for name, content in contents.items():
        with replacing(folder / name) as part:
            part.write_text(content, encoding="utf-8")
    print(text, end="")
    return 0


# the tables


def _title(metric: str, found: dict[str, Any]) -> str:
    if metric == MEAN:
        names = found["metrics"]
        return "Overall ↑" if set(names) == set(score.METRICS) else f"Mean of {len(names)} ↑"
    facts = found["metrics"][metric]
    return f"{tables.describe(metric, []).title} {'↓' if facts['direction'] == 'min' else '↑'}"


def _digits(metric: str, found: dict[str, Any]) -> int:
    return 2 if metric == MEAN or found["metrics"][metric]["unit"] == "%" else 4


def _scores(found: dict[str, Any], rows: list[Row], late: list[str]) -> Table:
    lines, shown = [], list(found["rows"][0]["scores"])
    best = {}
    for metric in shown:
        least = metric != MEAN and found["metrics"][metric]["direction"] == "min"
        values = [round(line["scores"][metric]["value"], _digits(metric, found)) for line in found["rows"]]
        best[metric] = (min if least else max)(values)
    for line in found["rows"]:
        cells = [
            Cell(line["recipe"]),
            Cell(f"{line['parameters'] / 1e6:.3f}"),
            Cell(f"{line['macs_g']:.1f}"),
            Cell(f"{line['training_seconds']:.0f}"),
            Cell(f"{line['audio_hours']:.2f}"),
            Cell("–" if line["forward_ms"] is None else f"{line['forward_ms']:.1f}"),
        ]
        for metric in shown:
            one, digits = line["scores"][metric], _digits(metric, found)
            aside = f"[{one['low']:.{digits}f}, {one['high']:.{digits}f}]"
            cells.append(Cell(f"{one['value']:.{digits}f}", round(one["value"], digits) == best[metric], aside))
        lines.append(cells)
    asked = found["asked"]
    header = [
        "Recipe",
        "Params (M)",
        "MACs (G)",
        "Training (s)",
        "Audio (h)",
        f"Forward of {asked['seconds']:g} s (ms)",
    ]
    seeds = len(found["seeds"])
    notes = [
        f"Means over {seeds} seed{'s' * (seeds > 1)}; in brackets 95 % intervals over test items"
        f"{' and seeds' if seeds > 1 else ' alone: one seed says nothing of other seeds'}.",
        "Parameters and MACs without heads that only the distillation needs. Training seconds are of this machine and "
        "what else ran on it; the forward pass is timed in turns on one CPU thread.",
    ]
    if MEAN in shown and set(found["metrics"]) != set(score.METRICS):
        names = ", ".join(tables.describe(m, []).title for m in found["metrics"])
        notes.append(f"Mean of {len(found['metrics'])}: of {names}, errors as 100 - error; no overall score of SUPERB.")
    if late or len(found["seeds"]) < found["asked"]["seeds"]:
        notes.append(f"Not done yet: {', '.join(late) or 'seeds'}.")
    warning = "" if found["same_audio"] else "The runs have NOT heard the same audio in the same order: see the seeds."
    each = [heard for by_name in found["audio"].values() for heard in list(by_name.values())[:1]]
    intro = (
        f"Every run: {each[0][0]} updates, {each[0][1]:.2f} h of audio, the same audio in the same order for all "
        "recipes of a seed, by the checksums in their logs."
        if found["same_audio"]
        else ""
    )
    return Table("Scores", warning, intro, [*header, *(_title(m, found) for m in shown)], lines, notes, names=1)


def _differences(found: dict[str, Any]) -> list[Table]:
    if len(found["rows"]) < 2:
        return []
    shown, lines = list(found["rows"][0]["scores"]), []
    for line in found["rows"][1:]:
        cells = [Cell(line["recipe"])]
        for metric in shown:
            gap, digits = line["scores"][metric]["difference"], _digits(metric, found)
            interval = f"[{gap['low']:+.{digits}f}, {gap['high']:+.{digits}f}]"
            aside = f"{interval} p {_p(gap['p'])}, Holm {_p(gap['p_holm'])}"
            cells.append(Cell(f"{gap['value']:+.{digits}f}", gap["p_holm"] < 0.05, aside))
        lines.append(cells)
    count, metrics = len(lines), len(found["metrics"])
    family = f"the {count} of the mean, and the {count * metrics} of single scores" if MEAN in shown else f"all {count}"
    notes = [
        "Paired by test item and seed. p: of no difference, two-sided; Holm: corrected for the number of tests "
        f"({family}). Bold: below 0.05 after the correction. What is not bold has not been told apart, which does not "
        "make it equal.",
    ]
    if len(found["seeds"]) == 1:
        notes.append("One seed: the tests are of these checkpoints, and say nothing of recipes.")
    title = f"Differences from {found['first']}"
    return [Table(title, "", "", ["Recipe", *(_title(m, found) for m in shown)], lines, notes, names=1)]


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def _seeds(found: dict[str, Any], rows: list[Row]) -> Table:
    shown, lines = list(found["rows"][0]["scores"]), []
    for row, line in zip(rows, found["rows"]):
        for i, seed in enumerate(found["seeds"]):
            updates, hours, crc = found["audio"][str(seed)][row.name]
            cells = [Cell(row.name), Cell(f"{seed}"), Cell(f"{updates}"), Cell(f"{hours:.3f}"), Cell(f"{crc:08x}")]
            values = [Cell(f"{line['scores'][m]['seeds'][i]:.{_digits(m, found)}f}") for m in shown]
            lines.append([*cells, Cell(f"{row.seconds[seed]:.0f}"), *values])
    header = ["Recipe", "Seed", "Updates", "Audio (h)", "Checksum", "Training (s)", *(_title(m, found) for m in shown)]
    intro = "The checksum is of all waveforms that a student was given, in order (audio_crc32 in each run's log.csv)."
    return Table("Each seed", "", intro, header, lines, [], names=1)


def _changed(rows: list[Row]) -> Table:
    lines = [
        [Cell(row.name), Cell(f"{row.entry['learning_rate']:g}"), Cell("; ".join(row.entry["changed"]) or "nothing")]
        for row in rows
    ]
    intro = "The teacher and the data are the same for all; each recipe as it was trained is in recipes/."
    return Table("What differs from the recipes' files", "", intro, ["Recipe", "Rate", "Changes"], lines, [], names=3)


def _rates(folder: Path, settings: dict[str, Any]) -> list[Table]:
    rates = settings["asked"]["search_rates"]
    if not rates:
        return []
    lines = []
    for name, entry in settings["entries"].items():
        cells = [Cell(name)]
        for rate in rates:
            file = folder / "search" / f"{name}-rate{rate:g}.json"
            value = json.loads(file.read_text(encoding="utf-8"))["validation_loss"] if file.is_file() else None
            cells.append(Cell("–" if value is None else f"{value:.6g}", rate == entry["learning_rate"]))
        lines.append(cells)
    updates = settings["asked"]["search_updates"] or settings["asked"]["updates"]
    intro = (
        f"Validation loss after {updates} updates with a seed that is not compared; a dash: diverged. Losses of "
        "different recipes do not compare. Bold: the rate that was taken."
    )
    return [Table("Learning rates", "", intro, ["Recipe", *(f"{rate:g}" for rate in rates)], lines, [], names=1)]


FIELDS = (
    "recipe", "parameters", "macs_g", "learning_rate", "training_seconds", "audio_hours", "forward_ms", "metric",
    "unit", "direction", "items", "seeds", "value", "low_95", "high_95", "difference", "difference_low_95",
    "difference_high_95", "p", "p_holm",
)  # fmt: skip


def as_csv(found: dict[str, Any]) -> str:
    """One line a recipe and metric; the differences are from the first recipe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in found["rows"]:
        for metric, one in line["scores"].items():
            facts = found["metrics"].get(metric, {"unit": "%", "direction": "max"})
            gap = one.get("difference", {})
            more = {
                "difference": gap.get("value"),
                "difference_low_95": gap.get("low"),
                "difference_high_95": gap.get("high"),
            }
            more |= {"p": gap.get("p"), "p_holm": gap.get("p_holm"), "metric": metric, "seeds": len(found["seeds"])}
            writer.writerow(
                {**line, **facts, **more, "value": one["value"], "low_95": one["low"], "high_95": one["high"]}
            )
    return text.getvalue()


# the page


def _page(settings: dict[str, Any], found: dict[str, Any], made: list[Table]) -> str:
    asked = found["asked"]
    scoring = asked["scoring"]
    data = ", ".join(next(iter(settings["identity"]["recipes"].values()))["data"]["train"])
    intro = (
        f"{len(found['rows'])} recipes, each distilled from {asked['teacher']} to about {asked['parameters']:,} "
        f"parameters with {asked['updates']} updates and {len(found['seeds'])} seeds on {data}, scored by star-eval "
        f"on {scoring['data']} (tasks: {scoring['tasks']})."
    )
    command = "star " + " ".join(settings["command"])
    parts = [f"<p>{escape(intro)}</p>", f"<pre>{escape(command)}</pre>", page.table(made[0])]
    if len(found["rows"]) > 1:
        from . import pictures

        titles = {metric: _title(metric, found) for metric in found["rows"][0]["scores"]}
        parts.append(page.table(made[1]))
        drawn = pictures.differences(found["rows"][1:], titles, found["first"])
        parts.append("<p>Difference from the first recipe with its 95 % interval; filled: below 0.05 after Holm.</p>")
        parts.append(page.picture(drawn, "Differences from the first recipe"))
    parts += map(page.table, made[2 if len(found["rows"]) > 1 else 1 :])
    return page.whole("Comparison", parts)
