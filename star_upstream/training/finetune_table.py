"""Fine-tuning runs as the table of Kerpicci et al. (arXiv 2210.16611, table 1), beside the published rows.

A row is a model in a setting; runs that differ in seed alone are averaged, and single-task runs of one model share a
row. Shapes: K trials.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import outputs
from ..errors import StarError
from ..files import replacing, write_json
from .finetune_scores import accuracy, errors

PUBLISHED = Path(__file__).resolve().parent / "finetune_published.csv"
SETTINGS = ("single task", "single task, frozen", "multi-task, fine-tuned", "multi-task, frozen")
NOTE = (
    "Published rows: Speech Commands v1 (12 classes) and VoxCeleb1, from the paper. Ours are from "
    "the data that each run names: other corpora, "
    "other classes and other trials, so the two parts of the table must not be compared with one another, "
    "only rows within a part."
)
INTERVAL = (
    "Brackets: 95 % bootstrap over test items of the mean over seeds, at fixed models; sd: "
    "over seeds. In a single-task row every task is a "
    "model of its own."
)


def collect(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One row a model and setting: ``model``, ``parameters``, ``setting``, ``tasks`` (name -> scores), largest model
    first.

    Raises :class:`StarError` for a folder without a finished run, and for runs of a row that were not tested on the
    same items.
    """
    groups: dict[tuple, list[tuple[dict, Any, Path]]] = {}
    for folder in map(Path, folders):
        file = folder / "result.json"
        if not file.is_file():
            lacks = f"no {file.name}" if folder.exists() else "no such folder"
            raise StarError(f"{folder}: {lacks}; a finished run of star finetune has one")
        result = json.loads(file.read_text(encoding="utf-8"))
        key = (result["model"], result["parameters"], result["setting"])
        groups.setdefault(key, []).append((result, np.load(folder / "outcomes.npz", allow_pickle=False), folder))
    rows = []
    for (model, parameters, setting), runs in groups.items():
        tasks = {name: None for result, _, _ in runs for name in result["tasks"]}
        scores = {name: _score(name, [run for run in runs if name in run[0]["tasks"]]) for name in tasks}
        rows.append({"model": model, "parameters": parameters, "setting": setting, "tasks": scores})
    return sorted(rows, key=lambda row: (-row["parameters"], row["model"], SETTINGS.index(row["setting"])))


def _score(name: str, runs: list[tuple[dict, Any, Path]]) -> dict[str, Any]:
    first, raw, where = runs[0]
    for result, outcomes, folder in runs[1:]:
        if not np.array_equal(outcomes[f"{name}/targets"], raw[f"{name}/targets"]):
            raise StarError(f"{folder} and {where}: {name} was not tested on the same items; make a table of each")
        if result["encoder_sha256"] != first["encoder_sha256"]:
            raise StarError(
                f"{folder} and {where}: both are called {first['model']!r} but began with different encoders; set name="
            )
        if result["seed"] in [r["seed"] for r, _, f in runs if f != folder]:
            raise StarError(
                f"{folder}: another run of seed {result['seed']} has the same model, setting and task; leave one out"
            )
    task, values = first["tasks"][name], [result["tasks"][name]["value"] for result, _, _ in runs]
    if task["metric"] == "accuracy":
        joint = accuracy([outcomes[f"{name}/hits"] for _, outcomes, _ in runs])
    else:
        joint = errors(raw[f"{name}/targets"], [outcomes[f"{name}/scores"] for _, outcomes, _ in runs])
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    kept = {key: task[key] for key in ("metric", "unit", "direction", "items", "data", "source")}
    return {**kept, **joint, "values": values, "sd": spread, "seeds": sorted(result["seed"] for result, _, _ in runs)}


def published() -> list[dict[str, str]]:
    """The paper's rows."""
    with PUBLISHED.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    tasks = {name: score for row in rows for name, score in row["tasks"].items()}
    costs = [name for name, score in tasks.items() if "min_dcf" in score]
    heads = [
        f"{name} {'EER' if score['metric'] == 'equal error rate' else score['metric']} %"
        for name, score in tasks.items()
    ]
    lines = [_line("model", "parameters", "setting", *heads, *(f"{name} minDCF" for name in costs))]
    lines.append("| --- | ---: | --- |" + " ---: |" * (len(heads) + len(costs)))
    for row in rows:
        cells = [_cell(row["tasks"].get(name)) for name in tasks]
        cells += [f"{row['tasks'][name]['min_dcf']:.3f}" if name in row["tasks"] else "" for name in costs]
        lines.append(_line(row["model"], f"{row['parameters'] / 1e6:.2f} M", row["setting"], *cells))
    about = "; ".join(
        f"{name}: {score['items']} {'trials' if 'min_dcf' in score else 'utterances'} ({score['source']})"
        for name, score in tasks.items()
    )
    theirs = [_line("model", "parameters", "setting", "keyword accuracy %", "speaker EER %")]
    theirs.append("| --- | ---: | --- | ---: | ---: |")
    for row in published():
        scores = row["keyword_accuracy"], row["speaker_eer"]
        theirs.append(_line(row["model"], f"{row['parameters_m']} M", row["setting"], *scores))
    text = [f"Ours. {about}.", "", *lines, "", INTERVAL, "", "Published (arXiv 2210.16611).", "", *theirs, "", NOTE]
    return "\n".join(text) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(score: dict[str, Any] | None) -> str:
    if score is None:
        return ""
    low, high = score["interval_95"]
    seeds = "" if score["sd"] is None else f" (sd {score['sd']:.2f}, {len(score['seeds'])} seeds)"
    return f"{score['value']:.2f} [{low:.2f}, {high:.2f}]{seeds}"


def table_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line a model, setting and task; ``origin`` says whose."""
    columns = [
        "origin", "model", "parameters_m", "setting", "task", "metric", "value", "low_95", "high_95", "sd", "seeds",
        "min_dcf", "items", "source",
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for name, score in row["tasks"].items():
            low, high = score["interval_95"]
            numbers = {"value": score["value"], "low_95": low, "high_95": high, "sd": score["sd"]}
            numbers["min_dcf"] = score.get("min_dcf")
            line = {
                "origin": "ours",
                "model": row["model"],
                "parameters_m": f"{row['parameters'] / 1e6:.3f}",
                "setting": row["setting"],
                "task": name,
                "metric": score["metric"],
                "seeds": " ".join(map(str, score["seeds"])),
                "items": score["items"],
                "source": score["source"],
            }
            writer.writerow({**line, **{key: f"{value:.4f}" for key, value in numbers.items() if value is not None}})
    for row in published():
        for task, metric, column in (
            ("keyword", "accuracy", "keyword_accuracy"),
            ("speaker", "equal error rate", "speaker_eer"),
        ):
            same = {key: row[key] for key in ("model", "parameters_m", "setting", "source")}
            writer.writerow({"origin": "published", **same, "task": task, "metric": metric, "value": row[column]})
    return out.getvalue()


def write(folders: Sequence[str | Path], out: str | Path | None = None, maker: str = "star finetune --table") -> str:
    """The table as Markdown; with ``out`` also ``out/table.md``, ``table.csv`` and ``table.json``; earlier ones there
    are replaced.

    Raises :class:`StarError` for an ``out`` that ``maker`` did not make, too.
    """
    if out is not None:
        out = outputs.check_folder(out, maker, outputs.holds("table.json", "rows"))
    rows = collect(folders)
    text = markdown(rows)
    if out is not None:
        write_json(Path(out) / "table.json", {"rows": rows})  # first: by it the folder is known for ours
        for name, content in (("table.md", text), ("table.csv", table_csv(rows))):
            with replacing(Path(out) / name) as part:
                part.write_text(content, encoding="utf-8")
    return text
