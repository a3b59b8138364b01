"""The measurements as a page of Markdown."""

from __future__ import annotations

from typing import Any

TITLE = "# s3prl's problems against this package, side by side"
ABOUT = """Both sides have the same upstream module, the same audio, the same batches (those of our sampling) and the
same head; they take turns in one process.

- *s3prl*: the problem's own `run` up to its training loop, then that loop; only its data step is replaced, by one that
  writes the csv files it wants. A step is the measured time of a batch (reading, forward, backward, update) times the
  batches of an update.
- *ours*: encoding and training as `python -m eval run` calls them. A step is the measured time of an update with all
  its batches.
- *projected*: whole hours at the official schedule on the official amount of audio. s3prl: steps, and its evaluation of
  dev as often as the schedule says and once of test, each of which encodes. Ours: all audio once, steps, and the same
  evaluations from kept features. Left out on both sides: start, and the writing of checkpoints (s3prl's hold the
  upstream: 378 MB for HuBERT Base).
- The frames that ours keeps are read from the page cache here, and all of them are kept; *GB* is what the whole corpus
  takes. With a smaller `--cache-gb` utterances are encoded again."""


def page(result: dict[str, Any]) -> str:
    environment = result["environment"]
    versions = ", ".join(
        f"{name} {environment['versions'][name]}" for name in ("torch", "s3prl", "numpy", "safetensors")
    )
    parts = [
        TITLE,
        f"`{result['command']}`",
        f"{result['processor']}, {environment['threads']} threads, {environment['platform']}, "
        f"Python {environment['python']}, {versions}; "
        f"commit {environment['git_commit']}; {environment['finished']}.",
        ABOUT,
        _data(result),
    ]
    for name, tasks in result["upstreams"].items():
        parts.append(f"## {name} ({result['about'].get(name, 'as `run --upstream` takes it')})")
        projected = [record for record in tasks.values() if "projected_hours" in record]
        if projected:
            parts.append(_projections(projected))
        parts.append(_measurements(list(tasks.values())))
    return "\n\n".join(parts) + "\n"


def _data(result: dict[str, Any]) -> str:
    if result["data"] != "generated":
        return f"Data: {result['data']}."
    lengths = "; ".join(f"{task} {about}" for task, about in result["lengths"].items())
    return f"Data: generated noise with the official numbers of classes and these lengths: {lengths}."


def _projections(records: list[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        hours, aim = record["projected_hours"], record["aim"]
        met = "" if aim is None else f"{aim} {'met' if hours['ratio'] >= aim else '**not met**'}"
        rows.append(
            [
                record["task"],
                number(hours["theirs_training"]),
                number(hours["theirs_evaluating"]),
                number(hours["theirs"]),
                number(hours["ours_encoding"]),
                number(hours["ours_training"]),
                number(hours["ours_evaluating"]),
                number(hours["ours"]),
                f"{hours['ratio']:.1f}",
                met,
                number(hours["features_gb"]) if hours["features_gb"] else "-",
            ]
        )
    header = [
        "task",
        "s3prl: training h",
        "evaluating h",
        "all h",
        "ours: encoding h",
        "training h",
        "evaluating h",
        "all h",
        "ratio",
        "aim",
        "GB",
    ]
    return "Projected:\n\n" + table(header, rows)


def _measurements(records: list[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        theirs, ours = record["theirs_seconds_a_batch"] * record["accumulate"], record["ours_seconds_a_step"]
        rows.append(
            [
                record["task"],
                f"{record['batch']} x {record['accumulate']}",
                f"{record['batch_audio_seconds']:.0f}",
                f"{number(theirs)} ({len(record['theirs_batches'])}: "
                f"{_spread(record['theirs_batches'], record['accumulate'])})",
                f"{number(ours)} ({len(record['ours_steps'])}: {_spread(record['ours_steps'])})",
                f"{theirs / ours:.0f}",
                f"{record['encode_seconds'] / record['encode_audio_seconds']:.3f}",
            ]
        )
    header = [
        "task",
        "batch x accumulated",
        "audio s a batch",
        "s3prl s a step (n: range)",
        "ours s a step (n: range)",
        "ratio of steps",
        "ours: encoding s a second of audio",
    ]
    return "Measured (medians):\n\n" + table(header, rows)


def _spread(times: list[float], factor: float = 1.0) -> str:
    return (
        number(factor * times[0])
        if len(times) == 1
        else f"{number(factor * min(times))} to {number(factor * max(times))}"
    )


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
