"""Pictures of a report as svg text: size against score, layer weights, learning-rate curves."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import tasks
from .table import OURS, SCORES, Group, Record, Row, Run, comparable, describe, group, metrics, ours

MARKERS = "osD^v<>p"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "report",
    "axes.titlesize": 10,
}


def size_against_score(runs: list[Run], key: Group, beside: list[Row]) -> str | None:
    """Scores over millions of parameters, one model a point: ``overall`` if any model of ours has it, else every
    metric.

    Published models are hollow and only where ``key``'s numbers may be compared with them. What has no parameters is a
    line; None where nothing of ours has any.
    """
    mine, published = ours(runs, key), beside if comparable(key) else []
    if not any(row.parameters_m for row in mine):
        return None
    sizes = [row.parameters_m for row in [*mine, *published] if row.parameters_m]
    if any(row.number("overall") is not None for row in mine):
        names = ["overall", "generalizability"] if comparable(key) else ["overall"]
    else:
        names = metrics(mine)
    with rc_context(STYLE):
        figure, panels = _grid(len(names), columns=3, width=7.0 if len(names) == 1 else 4.2, height=3.6)
        known: dict[str, Artist] = {}
        for name, axes in zip(names, panels):
            for i, row in enumerate([*mine, *published]):
                value = row.number(name)
                if value is not None and row.parameters_m is not None:
                    label = _text(row.full_label)
                    known[label] = _point(
                        axes, row, value, colormaps["tab10"](i % 10), MARKERS[i // 10 % len(MARKERS)], label
                    )
            if max(sizes) > 3 * min(sizes):
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
                axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")
            axes.margins(x=0.15, y=0.15)
            axes.set(xlabel="parameters (M)", ylabel=_text(describe(name, mine).title if name not in SCORES else name))
            axes.grid(alpha=0.3)
        figure.legend(known.values(), known.keys(), loc="outside right upper", fontsize=8, frameon=False)
        return _svg(figure)


def _point(axes: Axes, row: Row, value: float, color, marker: str, label: str) -> Artist:
    if not row.parameters_m:
        return axes.axhline(value, color=color, linestyle="--" if row.kind == OURS else ":", linewidth=1.5, label=label)
    style = {"color": color, "marker": marker, "linestyle": "", "markersize": 8}
    return axes.plot(row.parameters_m, value, fillstyle="full" if row.kind == OURS else "none", label=label, **style)[0]


def layer_weights(runs: list[Run]) -> str | None:
    """One panel a run: tasks down, layers across, what a head takes of each layer. None where no run has several."""
    shown = []
    for name, records in runs:
        weights = {
            label: r["layer_weights"] for label, r in _by_task(records).items() if len(r.get("layer_weights") or []) > 1
        }
        if weights:
            shown.append((name, weights))
    if not shown:
        return None
    layers = max(len(w) for _, weights in shown for w in weights.values())
    with rc_context({**STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, panels = _grid(len(shown), columns=2 if layers <= 14 else 1, width=1.2 + 0.42 * layers, height=3.8)
        for (name, weights), axes in zip(shown, panels):
            order = sorted(weights, key=_place)
            table = np.full((len(order), max(map(len, weights.values()))), np.nan)
            for line, task in zip(table, order):
                line[: len(weights[task])] = weights[task]
            mixed = table[np.nanmax(table, axis=1) < 0.999]  # a task that picks one layer would bleach the others
            top = np.nanmax(mixed) if len(mixed) else 1.0
            axes.imshow(table, cmap="viridis", vmin=0, vmax=top, aspect="auto")
            for (y, x), value in np.ndenumerate(table):
                if not math.isnan(value):
                    color = "white" if value < 0.6 * top else "black"
                    axes.text(x, y, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=7, color=color)
            axes.set_yticks(range(len(order)), [_text(task) for task in order])
            axes.set_xticks(range(table.shape[1]))
            axes.tick_params(length=0)
            axes.set(title=_text(name), xlabel="layer")
        return _svg(figure)


def learning_rates(name: str, records: list[Record]) -> str | None:
    """One panel a task: the dev value over steps, a line a learning rate (thin ones: folds); over layers where a layer
    is chosen.

    The legend has each one's best dev value. None without any grid.
    """
    named = [(label, r) for label, r in _by_task(records).items() if _worth(r.get("grid"))]
    named.sort(key=lambda pair: _place(pair[1]["task"]))
    if not named:
        return None
    with rc_context(STYLE):
        figure, panels = _grid(len(named), columns=3, width=3.9, height=2.9)
        for (label, record), axes in zip(named, panels):
            chosen_by: str = record.get("chosen_by") or record["metric"]
            if "layer" in record["grid"][0]:
                axes.plot([e["layer"] for e in record["grid"]], [e["dev"] for e in record["grid"]], "o-", markersize=3)
                axes.set_xlabel("layer")
            else:
                _curves(axes, record)
            axes.set(title=_text(label), ylabel=f"dev {describe(chosen_by, []).title}")
            axes.grid(alpha=0.3)
        return _svg(figure)


def differences(rows: list[dict[str, Any]], titles: dict[str, str], first: str) -> str:
    """One panel a metric: recipes down, each one's difference from the recipe ``first`` with its interval; filled where
    the corrected p-value is below 0.05."""
    with rc_context(STYLE):
        figure, panels = _grid(len(titles), columns=3, width=4.2, height=0.9 + 0.28 * len(rows))
        for (metric, title), axes in zip(titles.items(), panels):
            for place, row in enumerate(rows):
                gap = row["scores"][metric]["difference"]
                low, high, told = gap["value"] - gap["low"], gap["high"] - gap["value"], gap["p_holm"] < 0.05
                axes.errorbar(
                    gap["value"], place, xerr=[[low], [high]], fmt="o", color="C0" if told else "0.45", capsize=3,
                    markerfacecolor="C0" if told else "white",
                )  # fmt: skip
            axes.axvline(0.0, color="black", linewidth=0.8)
            axes.set_yticks(range(len(rows)), [_text(row["recipe"]) for row in rows])
            axes.set(title=_text(title), ylim=(len(rows) - 0.5, -0.5), xlabel=f"minus {_text(first)}")
            axes.grid(alpha=0.3, axis="x")
        return _svg(figure)


def _by_task(records: list[Record]) -> dict[str, Record]:
    """The first record (that of the task's own metric) of each task, under its name; where a task has several data,
    with their name."""
    first: dict[tuple, Record] = {}
    for record in records:
        first.setdefault((record["task"], group(record)), record)
    present = [task for task, _ in first]
    return {
        task if present.count(task) == 1 else f"{task}, {corpus}, {schedule}{', limited' if limited else ''}": record
        for (task, (corpus, schedule, limited)), record in first.items()
    }


def _worth(grid: list[dict] | None) -> bool:
    """Whether there is more to see than the only layer of an upstream."""
    return grid is not None and len(grid) > 0 and ("layer" not in grid[0] or len(grid) > 1)


def _curves(axes: Axes, record: Record) -> None:
    folds = [fold["grid"] for fold in record.get("folds", []) if fold.get("grid")] or [record["grid"]]
    for i, candidate in enumerate(record["grid"]):
        lr, color = candidate["lr"], colormaps["tab10"](i % 10)
        curves = [other["curve"] for grid in folds for other in grid if other["lr"] == lr and other.get("curve")]
        chosen = " (chosen)" if lr == record.get("lr") else ""
        label = f"{lr:g}: {candidate['dev']:.2f}{chosen}"
        for curve in curves if len(curves) > 1 else []:
            axes.plot(*zip(*curve), color=color, linewidth=0.5, alpha=0.5)
        axes.plot(
            *_mean(curves),
            color=color,
            marker="o",
            markersize=3 if chosen else 2,
            linewidth=2 if chosen else 1,
            label=label,
        )
    axes.set_xlabel("step")
    axes.legend(title="learning rate: best on dev", fontsize=7, title_fontsize=7)


def _mean(curves: list[list[list[float]]]) -> tuple[list[float], list[float]]:
    """Over the folds, at the steps that all of them have."""
    values = [{step: value for step, value in curve} for curve in curves]  # noqa: C416 (lists of two)
    steps = sorted(set.intersection(*map(set, values))) if values else []
    return steps, [sum(value[step] for value in values) / len(values) for step in steps]


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels, in rows of at most ``columns``."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def _place(label: str) -> int:
    """Of a task, or of its label with the data's name, in the order of the tasks; others stay last."""
    names = tasks.names()
    task = label.partition(",")[0]
    return names.index(task) if task in names else len(names)


def _text(text: str) -> str:
    """As it stands: matplotlib would read formulas between dollars. What xml cannot hold is left out."""
    return "".join(c for c in text if c.isprintable()).replace("$", r"\$")


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
