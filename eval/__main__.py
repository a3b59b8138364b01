"""``star-eval`` or ``python -m eval``: ``run``, ``report``, ``comparison`` and ``data``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from star_upstream import cluster, extras, flags
from star_upstream.errors import StarError
from star_upstream.say import quiet_pipe, say

from . import options, tasks


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a task failed, 2 for a mistake in the input."""
    with quiet_pipe():
        arguments = _parser().parse_args(argv)
        try:
            return arguments.verb(arguments)
        except StarError as error:
            say(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            say("interrupted; the same command goes on from here")
            return 130


def _run(arguments: argparse.Namespace) -> int:
    extras.need("eval")
    from . import run

    return run.run(flags.take(options.Run, arguments), flags.take(cluster.Launch, arguments))


def _report(arguments: argparse.Namespace) -> int:
    extras.need("eval", "pandas", "scipy")  # the tasks' files name the columns
    from . import report

    return report.main(arguments.folders, arguments.out, arguments.beside)


def _comparison(arguments: argparse.Namespace) -> int:
    extras.need("eval")
    from .report import comparison

    return comparison.main(arguments.folder)


def _data(arguments: argparse.Namespace) -> int:
    extras.need("eval", "pandas")
    from .data import inventory

    return inventory.main(arguments.root, as_json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    called = "python -m eval" if Path(sys.argv[0]).name == "__main__.py" else "star-eval"
    parser = argparse.ArgumentParser(prog=called, description="Measure an upstream on SUPERB tasks.")
    verbs = parser.add_subparsers(required=True, metavar="run | report | comparison | data")

    run = verbs.add_parser(
        "run", help="evaluate one upstream", description="Evaluate one upstream; one json a task in --out."
    )
    flags.add(run, options.Run, tasks=", ".join(tasks.names()))
    flags.add(run, cluster.Launch, works="tasks")
    run.set_defaults(verb=_run)

    report = verbs.add_parser(
        "report",
        help="tables and a page of several runs",
        description="Markdown tables of result folders, to stdout.",
    )
    report.add_argument("folders", nargs="+", type=flags.path, metavar="FOLDER", help="folders that `run` wrote")
    report.add_argument(
        "--with",
        dest="beside",
        metavar="NAMES",
        help="published models to set beside them, as in DistilHuBERT,STaRHuBERT",
    )
    report.add_argument(
        "--out", type=flags.path, metavar="FILE", help="also write FILE.md, FILE.csv and FILE.html (with pictures)"
    )
    report.set_defaults(verb=_report)

    comparison = verbs.add_parser(
        "comparison",
        help="table and page of a comparison",
        description="Make table and page of what `star compare --out FOLDER` has done so far; it does so itself.",
    )
    comparison.add_argument("folder", type=flags.path, metavar="FOLDER", help="of a comparison")
    comparison.set_defaults(verb=_comparison)

    data = verbs.add_parser(
        "data",
        help="which corpora are there",
        description="Which corpora a folder holds, and what is missing; nothing is downloaded.",
    )
    data.add_argument(
        "--root",
        type=flags.path,
        required=True,
        help="folder of corpora in their published layouts, or with manifests",
    )
    data.add_argument("--json", action="store_true", help="as json")
    data.set_defaults(verb=_data)
    return parser


if __name__ == "__main__":
    sys.exit(main())
