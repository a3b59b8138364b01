"""``python -m eval run``, ``report`` and ``data``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from star_upstream.errors import StarError


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a task failed, 2 for a mistake in the input."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.verb(arguments)
    except StarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from eval import run

    names = run.Options.__dataclass_fields__
    return run.run(run.Options(**{name: getattr(arguments, name) for name in names}))


def _report(arguments: argparse.Namespace) -> int:
    from eval import report

    return report.main(arguments.folders, arguments.out, arguments.beside)


def _data(arguments: argparse.Namespace) -> int:
    from eval.corpora import inventory

    return inventory.main(arguments.root, as_json=arguments.json)


def _path(text: str) -> Path:
    return Path(text).expanduser()  # the shell leaves --out=~/results as it is


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected learning rates with commas between, as in 1e-3,1e-2") from None


def _parser() -> argparse.ArgumentParser:
    from eval import tasks

    parser = argparse.ArgumentParser(prog="python -m eval", description="Measure an upstream on SUPERB tasks.")
    verbs = parser.add_subparsers(required=True, metavar="run | report | data")

    run = verbs.add_parser("run", help="evaluate one upstream", description="Evaluate one upstream; one json a task in --out.")
    run.add_argument(
        "--upstream", required=True, help="fbank or another s3prl name, a star_upstream name, a checkpoint, or module:function"
    )
    run.add_argument("--tasks", default="all", help=f"commas between, of {', '.join(tasks.names())}; or all (default)")
    run.add_argument(
        "--data", default="mini", help="mini (made by speech synthesis when not there) or a folder of corpora or manifests"
    )
    run.add_argument("--out", type=_path, required=True, help="folder for the results; a rerun goes on where the last one stopped")
    run.add_argument(
        "--schedule", help="superb, superb-sched (its steps with warm-up and decay) or mini (default: mini for mini data and manifests, else superb)"
    )
    run.add_argument(
        "--generation", choices=("downstream", "problem"), default="downstream",
        help="where s3prl's two recipes of a task differ: downstream is what made the published numbers (default), problem its later package",
    )  # fmt: skip
    run.add_argument(
        "--lr-grid", type=_rates, default=(), help="learning rates tried together, chosen on dev (default: the schedule's)"
    )
    run.add_argument("--steps", type=int, help="optimizer updates, instead of the schedule's")
    run.add_argument("--limit", type=int, help="at most this many rows a split: a smoke run, marked as such")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    run.add_argument(
        "--cache", type=_path, help="folder for features (default: $STAR_CACHE/features or ~/.cache/star_upstream/features)"
    )
    run.add_argument(
        "--cache-gb", type=float, default=20.0, help="most that the cache may hold; the oldest leave first (default 20)"
    )
    run.add_argument("--jobs", type=int, default=1, help="tasks at once, each a process with its log in --out (default 1)")
    run.add_argument(
        "--exact", action="store_true", help="encode padded batches at every step as s3prl does, without a cache: many times slower"
    )
    run.add_argument("--overwrite", action="store_true", help="run tasks again whose json is there")
    run.set_defaults(verb=_run)

    report = verbs.add_parser(
        "report", help="tables and a page of several runs", description="Markdown tables of result folders, to stdout."
    )
    report.add_argument("folders", nargs="+", type=_path, metavar="FOLDER", help="folders that `run` wrote")
    report.add_argument(
        "--with", dest="beside", metavar="NAMES", help="published models to set beside them, as in DistilHuBERT,STaRHuBERT"
    )
    report.add_argument("--out", type=_path, metavar="FILE", help="also write FILE.md, FILE.csv and FILE.html (with pictures)")
    report.set_defaults(verb=_report)

    data = verbs.add_parser(
        "data", help="which corpora are there", description="Which corpora a folder holds, and what is missing; nothing is downloaded."
    )
    data.add_argument("--root", type=_path, required=True, help="folder of corpora in their published layouts, or with manifests")
    data.add_argument("--json", action="store_true", help="as json")
    data.set_defaults(verb=_data)
    return parser


if __name__ == "__main__":
    sys.exit(main())
