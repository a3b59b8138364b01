"""``python -m eval run``, ``report``, ``data``, ``bench`` and ``parity``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from star_upstream.errors import StarError


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 when a task failed, 2 for a mistake in the input."""
    arguments = _parser().parse_args(argv)
    arguments.typed = tuple(sys.argv[1:] if argv is None else argv)
    try:
        return arguments.verb(arguments)
    except StarError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from . import run

    names = run.Options.__dataclass_fields__
    return run.run(run.Options(**{name: getattr(arguments, name) for name in names}))


def _report(arguments: argparse.Namespace) -> int:
    from . import report

    return report.main(arguments.folders, arguments.out, arguments.beside)


def _bench(arguments: argparse.Namespace) -> int:
    from . import bench
    from .bench.measure import Sizes

    sizes = Sizes(**{name: getattr(arguments, name) for name in Sizes.__dataclass_fields__})
    names = [name for name in bench.Options.__dataclass_fields__ if name not in ("sizes", "upstreams", "arguments")]
    upstreams = tuple(arguments.upstream or bench.Options.upstreams)
    plain = {name: getattr(arguments, name) for name in names}
    return bench.run(bench.Options(**plain, upstreams=upstreams, arguments=arguments.typed, sizes=sizes))


def _parity(arguments: argparse.Namespace) -> int:
    from .bench import parity

    names = [name for name in parity.Options.__dataclass_fields__ if name != "arguments"]
    return parity.run(parity.Options(**{name: getattr(arguments, name) for name in names}, arguments=arguments.typed))


def _data(arguments: argparse.Namespace) -> int:
    from .corpora import inventory

    return inventory.main(arguments.root, as_json=arguments.json)


def _path(text: str) -> Path:
    return Path(text).expanduser()  # the shell leaves --out=~/results as it is


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected learning rates with commas between, as in 1e-3,1e-2") from None


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers with commas between, as in 0,1,2") from None


def _parser() -> argparse.ArgumentParser:
    from . import tasks

    parser = argparse.ArgumentParser(prog="python -m eval", description="Measure an upstream on SUPERB tasks.")
    verbs = parser.add_subparsers(required=True, metavar="run | report | data | bench | parity")

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
    _add_bench(verbs)
    _add_parity(verbs)
    return parser


def _add_bench(verbs: argparse._SubParsersAction) -> None:
    bench = verbs.add_parser(
        "bench", help="s3prl's training loop and ours, side by side",
        description="Time s3prl's own problems and this package on the same upstream, data and batches, after checking that both give the "
        "same losses. About half an hour on two cores with the defaults; a rerun goes on where the last one stopped.",
    )  # fmt: skip
    bench.add_argument("--tasks", default="all", help="commas between; or all (default: the nine that s3prl has a problem for)")
    bench.add_argument(
        "--upstream", action="append", metavar="NAME", help="may be given again; random weights: hubert_base_random, star_hubert_random, "
        "tiny_random (default: the first two); or what `run` takes",
    )  # fmt: skip
    bench.add_argument(
        "--data", default="generated", help="generated (default: noise of the official lengths), mini, or a folder of corpora or manifests"
    )
    bench.add_argument("--out", type=_path, default=Path("results/bench.md"), help="the page; the numbers go beside it, in .json")
    bench.add_argument("--repeats", type=int, default=3, help="turns of each side (default 3)")
    bench.add_argument(
        "--seconds", type=float, default=40.0, help="no further turn once s3prl's of a task have taken so long (default 40)"
    )
    bench.add_argument("--check-steps", type=int, default=20, help="updates over which losses are compared (default 20; 0: none)")
    bench.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    bench.add_argument("--batch", type=int, help="instead of the official batch sizes, to try the command out: nothing is projected")
    bench.add_argument("--utterance-seconds", type=float, help="instead of the official average lengths: nothing is projected")
    bench.add_argument("--overwrite", action="store_true", help="measure again what is in --out")
    bench.set_defaults(verb=_bench)


def _add_parity(verbs: argparse._SubParsersAction) -> None:
    parity = verbs.add_parser(
        "parity", help="s3prl's own scores beside ours", description="Train and test s3prl's own problems and ours on the same data."
    )
    parity.add_argument("--data", required=True, help="mini, or a folder of corpora or manifests")
    parity.add_argument("--tasks", default="ks,pr", help="commas between, of ks, ic, er, sid, pr, asr (default ks,pr)")
    parity.add_argument("--upstream", default="star_mini", help="what `run` takes (default star_mini)")
    parity.add_argument("--steps", type=int, default=300, help="updates on both sides (default 300)")
    parity.add_argument("--lr", type=float, help="learning rate (default: the published one)")
    parity.add_argument("--limit", type=int, help="at most this many rows a split")
    parity.add_argument("--same-batches", action="store_true", help="s3prl trains on our batches, in the place of its own sampling")
    parity.add_argument("--seeds", type=_seeds, default=(0,), help="commas between (default 0)")
    parity.add_argument("--out", type=_path, default=Path("results/parity.md"), help="the page; the numbers go beside it, in .json")
    parity.set_defaults(verb=_parity)


if __name__ == "__main__":
    sys.exit(main())
