"""Result folders to one table: models as rows, tasks as columns. Numbers that cannot be compared never share a table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from star_upstream.errors import StarError
from star_upstream.files import replacing

from . import score

COLUMNS = {
    "pr_per": "PR PER", "asr_wer": "ASR WER", "ks_acc": "KS Acc", "qbe_mtwv": "QbE MTWV", "sid_acc": "SID Acc",
    "asv_eer": "ASV EER", "sd_der": "SD DER", "ic_acc": "IC Acc", "sf_f1": "SF F1", "sf_cer": "SF CER", "er_acc": "ER Acc",
}  # fmt: skip

Record = dict[str, Any]


def main(folders: list[Path], out: Path | None = None) -> int:
    """Print the Markdown tables of ``folders``; with ``out`` write them there and the rows as csv beside it."""
    runs = [read(folder) for folder in folders]
    text = markdown(runs)
    print(text)
    if out is not None:
        for path, content in ((out.with_suffix(".md"), text + "\n"), (out.with_suffix(".csv"), as_csv(runs))):
            with replacing(path) as part:
                part.write_text(content, encoding="utf-8")
    return 0


def read(folder: Path) -> tuple[str, list[Record]]:
    """Its name and its records, one a metric.

    Raises :class:`StarError` for a folder without records, a damaged one, or two upstreams.
    """
    if not folder.is_dir():
        raise StarError(f"{folder}: no such folder; give folders that `python -m eval run --out` wrote")
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise StarError(f"{path}: not json; remove it and run its task again") from None
        if not isinstance(record, dict) or "metric" not in record:
            continue
        absent = [
            key
            for key in ("task", "value", "interval_95", "corpus", "schedule", "upstream", "upstream_digest")
            if key not in record
        ]
        if absent:
            raise StarError(f"{path}: not a task's record ({', '.join(absent)} missing)")
        records += [record, *({**record, **further} for further in record.get("further_metrics", []))]
    if not records:
        raise StarError(f"{folder}: no results in it")
    if len({record["upstream_digest"] for record in records}) > 1:
        raise StarError(f"{folder}: holds results of several upstreams; use one folder for each")
    return folder.resolve().name, records


def group(record: Record) -> tuple[str, str, bool]:
    """Records of one group may be compared with one another: same kind of data, schedule and completeness."""
    return record["corpus"], record["schedule"], bool(record.get("limited"))


def comparable(key: tuple[str, str, bool]) -> bool:
    """Whether a group's numbers may stand beside published ones."""
    corpus, schedule, limited = key
    return corpus == "official" and schedule.startswith("superb") and not limited


def markdown(runs: list[tuple[str, list[Record]]]) -> str:
    """One table a group, each with what its numbers may be compared with and what is missing for an overall score."""
    groups = dict.fromkeys(group(record) for _, records in runs for record in records)
    return "\n\n".join(_table(key, runs) for key in groups)


def _table(key: tuple[str, str, bool], runs: list[tuple[str, list[Record]]]) -> str:
    corpus, schedule, limited = key
    rows = [(name, [r for r in records if group(r) == key]) for name, records in runs]
    rows = [(name, records) for name, records in rows if records]
    shown = [metric for metric in COLUMNS if any(r["metric"] == metric for _, records in rows for r in records)]
    best = {metric: _best(metric, rows) for metric in shown}
    scored = any(not score.missing(_metrics(records)) for _, records in rows)

    header = ["Model", "Upstream", "Params (M)", *(COLUMNS[m] + (" ↓" if m in score.ERRORS else " ↑") for m in shown)]
    lines = [header + ["Overall ↑", "Generalizability ↑"] * scored, ["---"] * 2 + ["---:"] * (len(shown) + 1 + 2 * scored)]
    notes = []
    for name, records in rows:
        metrics = _metrics(records)
        cells = [name, records[0]["upstream"], f"{records[0]['parameters'] / 1e6:.2f}"]
        cells += [_cell(metric, records, best[metric]) for metric in shown]
        absent = score.missing(metrics)
        if scored:
            cells += ["–", "–"] if absent else [f"{score.overall(metrics):.1f}", f"{score.generalizability(metrics):.0f}"]
        lines.append(cells)
        if absent:
            notes.append((name, ", ".join(absent)))
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    title = f"## Data: {corpus}; schedule: {schedule}{'; LIMITED RUN' if limited else ''}"
    if comparable(key):
        warning = "Official corpora and schedule. Values with 95 % bootstrap intervals over utterances."
    else:
        why = "a limited run" if limited else "a corpus or schedule that is not SUPERB's"
        warning = (
            f"**These scores are of {why}: compare them with one another, never with published ones.** Intervals: 95 % bootstrap."
        )
    missing = {}
    for name, absent in notes:
        missing.setdefault(absent, []).append(name)
    closing = [f"No overall score for {', '.join(names)}: {absent} missing." for absent, names in missing.items()]
    return "\n\n".join([title, warning, table, *closing])


def _metrics(records: list[Record]) -> dict[str, float]:
    return {record["metric"]: record["value"] for record in records}


def _best(metric: str, rows: list[tuple[str, list[Record]]]) -> float:
    values = [r["value"] for _, records in rows for r in records if r["metric"] == metric]
    return min(values) if metric in score.ERRORS else max(values)


def _cell(metric: str, records: list[Record], best: float) -> str:
    for record in records:
        if record["metric"] == metric:
            digits = 4 if metric == "qbe_mtwv" else 2
            value = f"{record['value']:.{digits}f}"
            low, high = record["interval_95"]
            return f"{f'**{value}**' if record['value'] == best else value} [{low:.{digits}f}, {high:.{digits}f}]"
    return "–"


def as_csv(runs: list[tuple[str, list[Record]]]) -> str:
    """One line a number, with what decides whether it may be compared."""
    fields = (
        "model", "upstream", "upstream_digest", "parameters", "task", "metric", "value", "unit", "direction", "low_95", "high_95",
        "split", "items", "corpus", "schedule", "steps", "limited", "comparable_with_published", "lr", "seed", "task_version",
    )  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, records in runs:
        for record in records:
            low, high = record["interval_95"]
            extra = {"model": name, "low_95": low, "high_95": high, "comparable_with_published": comparable(group(record))}
            writer.writerow({**record, **extra})
    return text.getvalue()
