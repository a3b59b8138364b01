"""Tables of models by metrics: ours, and where the numbers may be compared, published ones beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from star_upstream.errors import StarError

from .. import tasks
from ..heads.probe import Metric
from . import score

SCORES = {"overall": 1, "generalizability": 0}
"""And their digits after the point."""
OURS, PRINTED, ELSEWHERE = "measured here", "printed", "another corpus"
COMPUTED = "†"

Record = dict[str, Any]
Run = tuple[str, list[Record]]
Group = tuple[str, str, bool]


@dataclass
class Row:
    """One model of a table. ``values`` and ``scores`` hold only what is there; ``records`` are ours."""

    name: str
    detail: str
    kind: str
    parameters_m: float | None
    macs_g: float | None
    values: dict[str, float]
    records: dict[str, Record] = field(default_factory=dict)
    printed_scores: dict[str, float] = field(default_factory=dict)
    source: str = ""
    method: str = ""

    @property
    def missing(self) -> list[str]:
        return score.missing(self.values)

    def score(self, name: str) -> tuple[float | None, str]:
        """``overall`` or ``generalizability`` as printed, else from the values; and a mark where a published row lacks
        it."""
        if name in self.printed_scores:
            return self.printed_scores[name], ""
        if self.missing or self.kind == ELSEWHERE:
            return None, ""
        return getattr(score, name)(self.values), "" if self.kind == OURS else COMPUTED

    def number(self, name: str) -> float | None:
        """A score or a metric, where the row has it."""
        return self.score(name)[0] if name in SCORES else self.values.get(name)

    @property
    def label(self) -> str:
        return self.name if self.kind in (OURS, PRINTED) else f"{self.name} ({self.kind})"

    @property
    def full_label(self) -> str:
        """Several published rows of one model differ in their training data only."""
        return self.label if self.kind == OURS or not self.detail else f"{self.label}, {self.detail}"


@dataclass(frozen=True)
class Cell:
    """A number as text; ``best`` of its column; what belongs to it in ``aside``: interval, spread."""

    text: str
    best: bool = False
    aside: str = ""


@dataclass
class Table:
    """``warning`` is shown before anything else, if there is one; the left ``names`` columns are text."""

    title: str
    warning: str
    intro: str
    header: list[str]
    lines: list[list[Cell]]
    notes: list[str]
    names: int = 2


def group(record: Record) -> Group:
    """Records of one group may be compared with one another: same kind of data, schedule and completeness."""
    return record["corpus"], record["schedule"], bool(record.get("limited"))


def comparable(key: Group) -> bool:
    """Whether a group's numbers may stand beside published ones."""
    corpus, schedule, limited = key
    return corpus == "official" and schedule in ("superb", "superb-sched") and not limited


def ours(runs: list[Run], key: Group) -> list[Row]:
    """One row a run that has records of this group."""
    rows = []
    for name, records in runs:
        mine: dict[str, Record] = {}
        for record in (r for r in records if group(r) == key):
            if mine.setdefault(record["metric"], record) is not record:
                raise StarError(
                    f"{name}: two results of {record['metric']} on the same data and schedule; one cell holds one, "
                    "remove the other"
                )
        if mine:
            first = next(iter(mine.values()))
            macs = next((r["macs_g"] for r in mine.values() if r.get("macs_g") is not None), None)
            values = {metric: r["value"] for metric, r in mine.items()}
            row = Row(name, first["upstream"], OURS, first["parameters"] / 1e6, macs, values, mine)
            rows.append(replace(row, method=first.get("method", "")))
    return rows


def published(lines: Iterable[dict[str, str]]) -> list[Row]:
    """Rows of published.csv; what a row lacks is left out."""

    def numbers(line: dict[str, str], names: Iterable[str]) -> dict[str, float]:
        return {name: float(line[name]) for name in names if line.get(name)}

    rows = []
    for line in lines:
        sizes = numbers(line, ("params_m", "macs_g"))
        values, scores = numbers(line, tasks.metrics()), numbers(line, SCORES)
        size = sizes.get("params_m"), sizes.get("macs_g")
        rows.append(
            Row(
                line["model"],
                line["distill_data"],
                line["kind"],
                *size,
                values,
                printed_scores=scores,
                source=line["source"],
                method=line["method"],
            )
        )
    return rows


def tables(runs: list[Run], beside: list[Row]) -> list[Table]:
    """One table a group of ours, published rows only in those that may be compared; else they have a table of their
    own."""
    out: list[Table] = []
    keys = dict.fromkeys(group(r) for _, records in runs for r in records)
    for key in keys:
        rows, allowed = ours(runs, key), comparable(key)
        out.append(_of_group(key, rows, beside if allowed else []))
        if allowed and beside:
            out.append(_differences(rows, beside))
    paired = _paired(runs, keys, beside)
    if len(paired) > len(beside):
        warning = f"Rows marked {ELSEWHERE} are ours, on other data or another schedule: nothing follows from how far "
        warning += "they are from the published row above them."
        intro = "Below each published row what was measured here with a model of the same method."
        out.append(_table("Published, and the same methods measured here", warning, intro, paired, True))
    elif beside and not any(map(comparable, keys)):
        warning = "None of the runs above may be compared with these published scores of the official corpora."
        intro = "The runs are of other data, of another schedule or limited: hence a table apart, and no differences."
        out.append(_table("Published", warning, intro, beside, True))
    return out


def _paired(runs: list[Run], keys: Iterable[Group], beside: list[Row]) -> list[Row]:
    """Each published row, and below it our rows of its method that may not be compared with it."""
    mine = []
    for key in (key for key in keys if not comparable(key)):
        where = ", ".join((*key[:2], *(["limited"] if key[2] else [])))
        mine += [replace(row, kind=ELSEWHERE, detail=f"{row.detail}; {where}") for row in ours(runs, key) if row.method]
    return [row for one in beside for row in (one, *(row for row in mine if row.method == one.method))]


def _of_group(key: Group, rows: list[Row], beside: list[Row]) -> Table:
    corpus, schedule, limited = key
    heading = f"Data: {corpus}; schedule: {schedule}{'; LIMITED RUN' if limited else ''}"
    intervals = "In brackets 95 % bootstrap intervals."
    if comparable(key):
        return _table(heading, "", f"Official corpora and schedule. {intervals}", [*beside, *rows], True)
    why = "a limited run" if limited else "a corpus or schedule that is not SUPERB's"
    warning = f"These scores are of {why}: compare them with one another, never with published ones."
    return _table(heading, warning, intervals, rows, False)


def metrics(rows: list[Row]) -> list[str]:
    """Every metric that a row has: those of the tasks in their order, then what else there is as it comes."""
    found, known = dict.fromkeys(metric for row in rows for metric in row.values), tasks.metrics()
    return [metric for metric in known if metric in found] + [metric for metric in found if metric not in known]


def describe(metric: str, rows: list[Row]) -> Metric:
    """The metric as its task's file has it; of a task that is not known here, as the records say."""
    if metric in (known := tasks.metrics()):
        return known[metric]
    record = next((row.records[metric] for row in rows if metric in row.records), {})
    named = record.get("metric_title") or " ".join(part for part in (record.get("title"), metric) if part)
    return Metric(metric, named, record.get("unit", ""), record.get("direction", "max"))


def _is_error(name: str, rows: list[Row]) -> bool:
    """Whether less of it is better."""
    return name not in SCORES and describe(name, rows).direction == "min"


def _table(heading: str, warning: str, intro: str, rows: list[Row], official: bool) -> Table:
    """``official``: with generalizability, which is anchored to official scores of FBANK and of the best."""
    shown = metrics(rows)
    names = list(SCORES) if official else ["overall"]
    scored = [name for name in names if any(row.number(name) is not None for row in rows)]
    best = {name: _best(name, rows) for name in [*shown, *scored]}
    digits = {name: _digits(name, rows) for name in [*shown, *scored]}
    lines = []
    for row in rows:
        cells = [
            Cell(row.label),
            Cell(row.detail or "–"),
            Cell(_number(row.parameters_m, 2)),
            Cell(_number(row.macs_g, 1)),
        ]
        for name in scored:
            value, mark = row.score(name)
            cells.append(Cell(_number(value, digits[name]) + mark, _is_best(name, row, best[name], digits[name])))
        for name in shown:
            text, aside = _number(row.values.get(name), digits[name]), _aside(row.records.get(name), digits[name])
            cells.append(Cell(text, _is_best(name, row, best[name], digits[name]), aside))
        lines.append(cells)
    header = [
        "Model",
        "Upstream or training data",
        "Params (M)",
        "MACs (G)",
        *(_heading(name, rows) for name in [*scored, *shown]),
    ]
    return Table(heading, warning, intro, header, lines, _notes(rows, scored, official))


def _notes(rows: list[Row], scored: list[str], official: bool) -> list[str]:
    notes = []
    spread = any("std_over_folds" in r for row in rows for r in row.records.values())
    rows = [row for row in rows if row.kind != ELSEWHERE]
    absent: dict[str, list[str]] = {}
    for row in rows:
        if row.kind == OURS and row.missing:
            absent.setdefault(", ".join(row.missing), []).append(row.name)
    if unlike := _unlike(rows, "corpus_digest"):
        notes.append(
            f"NOT THE SAME DATA, though of one name: the rows' {', '.join(unlike)} are of different tables of "
            "utterances."
        )
    for key, what in (("encoding", "ways to encode"), ("steps", "numbers of updates"), ("limit", "limits of rows")):
        if unlike := _unlike(rows, key):
            notes.append(f"NOT THE SAME PROTOCOL: the rows' {', '.join(unlike)} have different {what}.")
    if unlike := _unlike(rows, "task_version"):
        notes.append(
            f"NOT THE SAME TASK, though of one name: the rows' {', '.join(unlike)} are of different versions; run "
            "the older again."
        )
    notes += [f"No overall score for {', '.join(names)}: {what} missing." for what, names in absent.items()]
    if scored and not official:
        notes.append("No generalizability: it is measured between FBANK's and the best scores on the official corpora.")
    if spread:
        notes.append("±: standard deviation over the folds, of which the value is the mean.")
    if any(row.score(name)[1] for row in rows for name in scored):
        notes.append(f"{COMPUTED} not printed in the source; computed here from the row's scores.")
    if {row.kind for row in rows} - {OURS, PRINTED, ELSEWHERE}:
        notes.append(
            "Rows marked digitised, secondary, reimplementation or unavailable are not the authors' printed "
            "numbers; none is bold."
        )
    remarks: dict[str, list[str]] = {}
    for row in rows:
        for record in row.records.values():
            for remark in record.get("remarks") or ():
                if row.name not in (names := remarks.setdefault(f"{record['task']}: {remark}", [])):
                    names.append(row.name)
    notes += [f"WEAK DATA, {', '.join(names)}: {remark}." for remark, names in remarks.items()]
    return notes + [f"{row.full_label}: {row.source}." for row in rows if row.source]


def _unlike(rows: list[Row], field: str) -> list[str]:
    """Tasks whose records differ in a field."""
    found: dict[str, set[Any]] = {}
    for row in rows:
        for record in row.records.values():
            if field in record:
                found.setdefault(record["task"], set()).add(record[field])
    return [task for task, values in found.items() if len(values) > 1]


def _differences(rows: list[Row], beside: list[Row]) -> Table:
    """Ours minus each published row, number by number where both have it."""

    def difference(row: Row, other: Row, name: str) -> float | None:
        mine, theirs = row.number(name), other.number(name)
        return None if mine is None or theirs is None else mine - theirs

    pairs = [(row, other) for row in rows for other in beside]
    names = [*SCORES, *tasks.metrics()]
    shown = [name for name in names if any(difference(*pair, name) is not None for pair in pairs)]
    lines = []
    for row, other in pairs:
        cells = [Cell(row.name), Cell(other.full_label)]
        for name in shown:
            digits = _digits(name, rows)
            gap = difference(row, other, name)
            text = "–" if gap is None else f"{round(gap, digits) + 0.0:+.{digits}f}"
            cells.append(Cell(text, aside="" if gap is None else _verdict(round(gap, digits), _is_error(name, rows))))
        lines.append(cells)
    header = ["Ours", "minus published", *(_heading(name, rows) for name in shown)]
    intro = (
        "Ours minus the published row; above 0 is better under ↑, worse under ↓. A dash: one of the two lacks "
        "the number."
    )
    return Table("Differences from published rows", "", intro, header, lines, [])


def _heading(name: str, rows: list[Row]) -> str:
    shown = name.capitalize() if name in SCORES else describe(name, rows).title
    return f"{shown} {'↓' if _is_error(name, rows) else '↑'}"


def _verdict(gap: float, error: bool) -> str:
    if gap == 0:
        return "equal"
    return "better" if (gap < 0) == error else "worse"


def _digits(name: str, rows: list[Row]) -> int:
    return SCORES[name] if name in SCORES else 2 if describe(name, rows).unit == "%" else 4


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _eligible(name: str, row: Row, digits: int) -> float | None:
    """The number as it is shown, if it may be the best: printed or ours, and of one model, which SUPERB's row of bests
    is not."""
    if row.kind not in (OURS, PRINTED) or row.parameters_m is None:
        return None
    value = row.number(name)
    return None if value is None else round(value, digits)


def _best(name: str, rows: list[Row]) -> float | None:
    values = [value for row in rows if (value := _eligible(name, row, _digits(name, rows))) is not None]
    return (min if _is_error(name, rows) else max)(values, default=None)


def _is_best(name: str, row: Row, best: float | None, digits: int) -> bool:
    return best is not None and _eligible(name, row, digits) == best


def _aside(record: Record | None, digits: int) -> str:
    if record is None:
        return ""
    low, high = record["interval_95"]
    spread = f"± {record['std_over_folds']:.{digits}f} " if "std_over_folds" in record else ""
    return f"{spread}[{low:.{digits}f}, {high:.{digits}f}]"


def markdown(made: list[Table]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(_markdown(table) for table in made)


def _markdown(table: Table) -> str:
    rule = ["---"] * table.names + ["---:"] * (len(table.header) - table.names)
    lines = [table.header, rule, *([_marked(cell) for cell in line] for line in table.lines)]
    grid = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {_plain(note)}" for note in table.notes)
    warning = f"**{table.warning}**" if table.warning else ""
    return "\n\n".join(part for part in (f"## {_plain(table.title)}", warning, table.intro, grid, notes) if part)


def _marked(cell: Cell) -> str:
    text = _plain(cell.text)
    return " ".join(part for part in (f"**{text}**" if cell.best else text, cell.aside) if part)


def _plain(text: str) -> str:
    """Without a meaning to Markdown: a name may hold anything."""
    return re.sub(r"([\\|*<>`\[\]])", r"\\\1", " ".join(text.split()))
