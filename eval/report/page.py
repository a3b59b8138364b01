"""The report as one HTML page that needs nothing else: pictures are inside it, there is no script and no address."""

from __future__ import annotations

import base64
from html import escape

from . import pictures
from .table import Cell, Row, Run, Table, comparable, group

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1500px;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h3 { font-size: 1rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h1, h2, h3, p, li { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .45rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top;
  white-space: nowrap; }
th { border-bottom: 2px solid #555; vertical-align: bottom; white-space: normal; }
.text:first-child { position: sticky; left: 0; background: #fff; }
.text { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 6rem; max-width: 14rem; }
small { display: block; color: #666; font-size: .75rem; }
small.better { color: #18702f; } small.worse { color: #a11; }
.warning { background: #fff3cd; border-left: 4px solid #b58900; padding: .5rem .8rem; font-weight: 600; }
.notes { font-size: .85rem; color: #444; padding-left: 1.2rem; }
img { display: block; } .wide { min-width: 620px; max-width: 100%; } .one { max-width: 100%; }
"""


def html(tables: list[Table], runs: list[Run], beside: list[Row]) -> str:
    """The page's text; every text of a record or a table is escaped."""
    parts = [*map(table, tables)]
    for key in dict.fromkeys(group(record) for _, records in runs for record in records):
        sizes = pictures.size_against_score(runs, key, beside)
        if sizes is None:
            continue
        corpus, schedule, limited = key
        parts.append(
            f"<h2>Size against score: {escape(corpus)}, {escape(schedule)}{', LIMITED RUN' if limited else ''}</h2>"
        )
        if comparable(key) and beside:
            parts.append("<p>Filled: measured here; hollow: published. A line: no parameters.</p>")
        parts.append(picture(sizes, "Scores over the number of parameters", wide=False))
    weights = pictures.layer_weights(runs)
    parts.append("<h2>Layer weights</h2>")
    if weights:
        parts.append("<p>What each task's head takes of each layer; the weights of a task sum to 1. ")
        parts.append("Query by example takes one layer, the best on dev.</p>")
        parts.append(picture(weights, "Weight of each layer for each task"))
    else:
        parts.append("<p>No upstream here has several layers.</p>")
    parts.append(
        "<h2>Learning rates</h2><p>Value on dev over the steps, a line a learning rate; thin lines are folds, "
    )
    parts.append("the thick one is their mean. Query by example chooses a layer instead.</p>")
    for name, records in runs:
        curves = pictures.learning_rates(name, records)
        if curves:
            parts.append(f"<h3>{escape(name)}</h3>")
            parts.append(picture(curves, f"Dev values of {name} over the steps"))
    return whole("SUPERB report", parts)


def whole(title: str, parts: list[str]) -> str:
    """The page of that title."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{title}</title>'
    head += f"<style>{STYLE}</style>"
    body = "\n".join([f"<h1>{title}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def table(shown: Table) -> str:
    """A table as HTML."""
    parts = [f"<h2>{escape(shown.title)}</h2>"]
    parts += [f'<p class="warning">{escape(shown.warning)}</p>'] if shown.warning else []
    parts += [f"<p>{escape(shown.intro)}</p>"] if shown.intro else []
    head = "".join(f"<th{_class(i, shown)}>{_together(text)}</th>" for i, text in enumerate(shown.header))
    body = "\n".join("<tr>" + "".join(_cell(i, c, shown) for i, c in enumerate(line)) + "</tr>" for line in shown.lines)
    parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>')
    if shown.notes:
        parts.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in shown.notes) + "</ul>")
    return "\n".join(parts)


def _together(heading: str) -> str:
    """Its arrow stays on the line of its last word."""
    return escape(heading).replace(" ↑", "&nbsp;↑").replace(" ↓", "&nbsp;↓")


def _cell(index: int, cell: Cell, table: Table) -> str:
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    kind = f' class="{cell.aside}"' if cell.aside in ("better", "worse") else ""
    return f"<td{_class(index, table)}>{text}{f'<small{kind}>{escape(cell.aside)}</small>' if cell.aside else ''}</td>"


def _class(index: int, table: Table) -> str:
    return ' class="text"' if index < table.names else ""


def picture(svg: str, what: str, wide: bool = True) -> str:
    """As an image: what is in it can neither run nor clash with the page."""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    width = "wide" if wide else "one"
    return (
        f'<div class="scroll"><img class="{width}" alt="{escape(what)}" src="data:image/svg+xml;base64,{data}"></div>'
    )
