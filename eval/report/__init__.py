"""Result folders to Markdown, csv and one page. Numbers that cannot be compared never share a table."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from star_upstream import extras, outputs
from star_upstream.errors import StarError
from star_upstream.files import replacing

from .. import tasks
from . import published, table
from .table import OURS, Record, Row, Run, comparable, group

FIELDS = (
    "model", "kind", "upstream", "upstream_digest", "parameters", "macs_g", "task", "metric", "value", "unit",
    "direction", "low_95", "high_95", "std_over_folds", "split", "items", "corpus", "schedule", "steps", "limited",
    "comparable_with_published", "lr", "seed", "task_version", "title", "remarks", "source", "method",
)  # fmt: skip


KINDS: dict[str, Any] = {
    **dict.fromkeys(("task", "metric", "corpus", "schedule", "upstream", "upstream_digest"), str),
    "parameters": (int, float), "macs_g": (int, float, type(None)), "grid": list, "remarks": list,
    "further_metrics": list,
}  # fmt: skip
"""What the report reads of a record, besides its numbers."""


def main(folders: list[Path], out: Path | None = None, beside: str | None = None) -> int:
    """Print the Markdown tables of ``folders``; with ``out`` write out.md, out.csv and out.html.

    beside: names of published rows, with commas between. Raises :class:`StarError` for bad folders, an unknown name, no
    file name.
    """
    places = [] if out is None else _places(out)
    if out is not None:
        extras.need("eval", "matplotlib")
    given = [folder.resolve() for folder in folders]
    kept = [folder for folder in dict.fromkeys(given) if not folder.is_file()] or given  # RESULTS/* has reports too
    runs = named([(folder, read(folder)) for folder in kept])
    rows = table.published(published.select(beside)) if beside is not None else []
    tables = table.tables(runs, rows)
    text = table.markdown(tables)
    print(text)
    if out is not None:
        from . import page  # drawing is loaded only where it is wanted

        contents = (f"{text}\n", as_csv(runs, rows), page.html(tables, runs, rows))
        for path, content in zip(places, contents, strict=True):
            try:
                with replacing(path) as part:
                    part.write_text(content, encoding="utf-8")
            except OSError as error:
                raise StarError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
    return 0


def _places(out: Path) -> list[Path]:
    """out.md, out.csv and out.html: new files, or an earlier report, which is replaced. Raises :class:`StarError` for
    others."""
    if not out.name or out.name == "..":
        raise StarError(f"--out {out}: expected a file name, such as results/table")
    stem = out.with_suffix("") if out.suffix in (".md", ".csv", ".html") else out
    places = [stem.with_name(stem.name + suffix) for suffix in (".md", ".csv", ".html")]
    return [outputs.check_file(place, "python -m eval report", is_report) for place in places]


def is_report(path: Path) -> bool:
    """Whether a file is one of the three that a report is: by the first table's title, by the columns, or by the page's
    title."""
    with open(path, encoding="utf-8", errors="replace") as file:
        head = file.read(2000)
    if path.suffix == ".md":
        return re.match(r"## Data: .+; schedule: .+\n", head) is not None
    if path.suffix == ".csv":
        return head.startswith(",".join(FIELDS[:4]))
    return path.suffix == ".html" and "<title>SUPERB report</title>" in head


def read(folder: Path) -> list[Record]:
    """The records of a folder, one a metric.

    Raises :class:`StarError` for a folder without records, a damaged one, or two upstreams.
    """
    if not folder.is_dir():
        raise StarError(f"{folder}: no such folder; give folders that `python -m eval run --out` wrote")
    records = []
    for path in filter(Path.is_file, sorted(folder.glob("*.json"))):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StarError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError:
            raise StarError(f"{path}: not json; remove it and run its task again") from None
        if not isinstance(record, dict) or "metric" not in record:
            continue
        wanted = ("task", "value", "interval_95", "corpus", "schedule", "upstream", "upstream_digest", "parameters")
        absent = [key for key in wanted if key not in record]
        if absent:
            raise StarError(f"{path}: not a task's record ({', '.join(absent)} missing)")
        for key, kind in KINDS.items():
            if key in record and not isinstance(record[key], kind):
                raise StarError(f"{path}: {key} is {record[key]!r}; remove the file and run its task again")
        if record.get("generation") == "problem":  # an earlier version had runs by s3prl's problem package
            raise StarError(
                f"{path}: made with --generation problem, which is no more; remove it and run its task again"
            )
        further = record.get("further_metrics", [])
        for number in [record, *further]:
            if number.get("metric") not in tasks.metrics() and number.get("direction") not in ("min", "max"):
                what = number.get("metric")
                raise StarError(
                    f"{path}: the report has no column for {what!r}, and the record does not say whether less is better"
                )
        if not all(map(_measured, [record, *further])):
            raise StarError(f"{path}: value and interval_95 must be numbers; remove it and run its task again")
        # the spread is that of the first metric
        plain = {key: value for key, value in record.items() if key != "std_over_folds"}
        records += [record, *({**plain, **number} for number in further)]
    if not records:
        raise StarError(f"{folder}: no results in it")
    if len({record["upstream_digest"] for record in records}) > 1:
        raise StarError(f"{folder}: holds results of several upstreams; use one folder for each")
    return records


def _measured(number: dict) -> bool:
    values = [number.get("value"), *(number.get("interval_95") or [None])]
    return len(values) == 3 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def named(runs: list[tuple[Path, list[Record]]]) -> list[Run]:
    """Each run under its folder's name, with the folders above as far as two have the same."""

    def name(folder: Path) -> str:
        ends = [folder.parts[-depth:] for depth in range(1, 1 + len(folder.parts))]
        return "/".join(next(end for end in ends if sum(f.parts[-len(end) :] == end for f, _ in runs) == 1))

    return [(name(folder), records) for folder, records in runs]


def as_csv(runs: list[Run], beside: list[Row]) -> str:
    """One line a number, with what decides whether it may be compared; published ones only if all of ours may be."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, records in runs:
        for record in records:
            low, high = record["interval_95"]
            extra = {
                "model": name,
                "kind": OURS,
                "low_95": low,
                "high_95": high,
                "remarks": "; ".join(record.get("remarks") or ()),
            }
            writer.writerow({**record, **extra, "comparable_with_published": comparable(group(record))})
    if all(comparable(group(record)) for _, records in runs for record in records):
        for row in beside:
            size = "" if row.parameters_m is None else round(row.parameters_m * 1e6)
            shared = {
                "model": row.name,
                "kind": row.kind,
                "upstream": row.detail,
                "parameters": size,
                "macs_g": row.macs_g,
            }
            for metric, value in row.values.items():
                line = {
                    "task": metric.split("_")[0],
                    "metric": metric,
                    "value": value,
                    "comparable_with_published": True,
                }
                writer.writerow({**shared, **line, "corpus": "official", "source": row.source})
    return text.getvalue()
