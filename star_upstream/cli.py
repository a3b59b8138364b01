"""The command ``star``. Results go to stdout, messages to stderr; a mistake in the input is one line and exit status
2."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from . import __version__, extras
from .errors import StarError
from .say import quiet_pipe, say


def _distill(args: argparse.Namespace) -> None:
    from .training.config import Recipe

    _run(args, Recipe)


def _pretrain(args: argparse.Namespace) -> None:
    from .training.pretrain_recipe import PretrainRecipe

    _run(args, PretrainRecipe)


def _run(args: argparse.Namespace, kind: type) -> None:
    from .training import recipe as recipes

    recipe: Any = recipes.load(args.recipe, args.values, kind)
    if args.dry_run:
        print(recipes.dump(recipe), end="")
        return
    if args.out is None:
        raise StarError("--out: name the run's folder (or give --dry-run)")
    extras.need("train")
    from . import training
    from .training.run_folder import RunFolder

    model, folder = training.run(recipe, args.out), RunFolder(args.out)
    if folder.lead:
        print(json.dumps({**(folder.result() or {}), "checkpoint": str(model)}))


def _profile(args: argparse.Namespace) -> None:
    from .analysis import latency

    if len(args.source) == 1 and not args.time:
        values = latency.sizes(args.source[0])
        if args.json:
            print(json.dumps(values))
        else:
            for name, value in values.items():
                print(f"{name:<20} {value:>16,}" if isinstance(value, (int, float)) else f"{name:<20} {value}")
        return
    found = latency.compare(args.source, args.time, args.seconds, args.repeats, args.threads)
    if args.json:
        print(json.dumps(found))
        return
    print(latency.table(found["models"]))
    if args.time:
        how = f"{found['threads']} threads, median of {found['repeats']} rounds in turns"
        say(f"{found['seconds']} s of audio on the {found['device'].upper()}, {how}")


def _cut(args: argparse.Namespace) -> None:
    extras.need("train")
    from .training import prune

    print(json.dumps(prune.cut_again(args.gated, args.target_folder, args.sparsity, args.round)))


def _convert(args: argparse.Namespace) -> None:
    from .formats import sources

    provenance = sources.convert(args.source, args.target, args.config)
    print(json.dumps({"checkpoint": str(args.target), "provenance": provenance}))


def _export(args: argparse.Namespace) -> None:
    if args.transformers:
        for name in ("target", "layers", "heads", "predictions", "stream", "int8"):
            if getattr(args, name):
                raise StarError(f"--transformers: leave out {'OUT.onnx' if name == 'target' else f'--{name}'}")
        from .export import transformers

        values = transformers.export(args.source, args.transformers, args.licence, args.config)
        print(json.dumps({"folder": str(args.transformers), "model": values["architectures"][0]}))
        return
    if args.target is None:
        raise StarError("name the file to write, e.g. model.onnx, or give --transformers FOLDER")
    extras.need("export")
    from .export import onnx, stream

    options = {name: getattr(args, name) for name in ("layers", "heads", "predictions", "licence", "config")}
    if args.stream:
        if args.heads or args.predictions or args.int8:
            raise StarError("--stream: gives states in fp32 alone; leave out --heads, --predictions and --int8")
        found = stream.export(args.source, args.target, args.layers, args.licence, args.config)
    elif args.int8:
        if not args.calibrate:
            raise StarError(
                "--int8: what it changes is measured on audio; give --calibrate AUDIO (folder, list or file)"
            )
        from .export import int8

        found = int8.export(args.source, args.target, int8.draw(args.calibrate), args.dynamic, **options)
    elif args.dynamic or args.calibrate:
        raise StarError("--dynamic and --calibrate: go with --int8")
    else:
        found = onnx.export(args.source, args.target, **options)
    said = [key for key in ("outputs", "precision", "int8", "opset", "differs", "licence") if key in found]
    print(json.dumps({"file": str(args.target), "bytes": args.target.stat().st_size, **{k: found[k] for k in said}}))


def _listen(args: argparse.Namespace) -> None:
    extras.need("export", "onnxruntime")
    from . import runtime

    try:
        model = runtime.Model(args.model, args.threads)
        heads = {name: about["kind"] for name, about in model.outputs.items() if about["kind"] in ("shares", "vector")}
        if not heads:
            raise StarError(f"{args.model}: gives no answers; export the file of a fine-tuned model (star finetune)")
        answers = [(file, model([runtime.read(file)], list(heads))) for file in args.audio]
    except ValueError as error:
        raise StarError(str(error)) from None
    heard = []
    for file, given in answers:
        row: dict[str, Any] = {"audio": file, "labels": {}, "similarity": {}}
        for head, kind in heads.items():
            answer = given[head][0]
            if kind == "shares":
                best = int(answer.argmax())
                row["labels"][head] = [model.outputs[head]["labels"][best], round(float(answer[best]), 4)]
            else:
                row["similarity"][head] = round(float(answer @ answers[0][1][head][0]), 4)
        heard.append(row)
    if args.json:
        print(json.dumps(heard))
        return
    for row in heard:
        said = [f"{head} {label} ({share:.0%})" for head, (label, share) in row["labels"].items()]
        alike = [f"{head} similarity to the first {value:.3f}" for head, value in row["similarity"].items()]
        print(f"{row['audio']}: {', '.join(said + alike)}")


def _recipes(args: argparse.Namespace) -> None:
    from .training import recipe as recipes
    from .training.config import Recipe
    from .training.finetune_recipe import FinetuneRecipe
    from .training.pretrain_recipe import PretrainRecipe

    for title, kind in (
        ("star distill", Recipe),
        ("star pretrain", PretrainRecipe),
        ("star finetune", FinetuneRecipe),
    ):
        print(f"{title}:")
        for name in recipes.names(kind):
            print(f"  {name:<20} {recipes.load(name, (), kind).about}")


def _finetune(args: argparse.Namespace) -> None:
    from .training import recipe as recipes
    from .training.finetune_recipe import FinetuneRecipe

    if args.table:
        extras.need("train")
        from .training import finetune_table

        if args.recipe or args.grid:
            raise StarError("--table takes finished runs alone; leave out the recipe and --grid")
        print(finetune_table.write(args.table, args.out), end="")
        return
    if args.recipe is None:
        raise StarError(
            f"name a recipe ({', '.join(recipes.names(FinetuneRecipe))}) or a yaml file, or give --table RUN..."
        )
    if args.dry_run:
        print(recipes.dump(recipes.load(args.recipe, args.values, FinetuneRecipe)), end="")
        return
    if args.out is None:
        raise StarError("--out: name the run's folder (or give --dry-run)")
    extras.need("train")
    if args.grid:
        from .training import grid

        print(grid.run(args.recipe, args.values, args.grid, args.seeds, args.out, args.jobs), end="")
        return
    from .training import finetune

    result = finetune.run(recipes.load(args.recipe, args.values, FinetuneRecipe), args.out)
    if result:
        print(json.dumps({**result, "checkpoint": str(args.out / result["checkpoint"])}))


def _compare(args: argparse.Namespace) -> None:
    extras.need("train")
    from . import compare

    scoring = compare.Scoring(**{name: getattr(args, name) for name in compare.Scoring.__dataclass_fields__})
    # words with an equals sign are overrides, also between the recipes
    words = [*args.recipes, *args.values]
    names = [word for word in words if "=" not in word or Path(word).is_file()]
    asked = compare.Asked(
        tuple(names), tuple(word for word in words if word not in names), args.teacher, args.parameters, args.updates,
        args.seeds, args.search_rates, args.search_updates, scoring,
    )  # fmt: skip
    if args.dry_run:
        for name, entry in compare.plan(asked).items():
            print(f"{name}: {entry.parameters:,} parameters; {'; '.join(entry.changed) or 'as in its file'}")
        return
    if args.out is None:
        raise StarError("--out: name the comparison's folder (or give --dry-run)")
    compare.run(asked, args.out, args.jobs)
    print((args.out / "table.md").read_text(encoding="utf-8"), end="")


def _path(text: str) -> Path:
    return Path(text).expanduser()  # the shell leaves --out=~/run as it is


def _seeds(text: str) -> list[int]:
    if not all(word.isdigit() for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 0,1,2, got {text!r}")
    return [int(word) for word in text.split(",")]


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected learning rates such as 1e-3,3e-3, got {text!r}") from None


def _models(text: str) -> dict[str, str]:
    # an encoder's path may hold commas and equals signs
    pairs = [word.partition("=") for word in re.split(r",(?=[^,=/]+=)", text)]
    if not all(name and source for name, _, source in pairs):
        raise argparse.ArgumentTypeError(
            f"expected NAME=ENCODER,..., e.g. teacher=star_mini_teacher,student=runs/mine/best, got {text!r}"
        )
    return {name: source for name, _, source in pairs}


def _similarity(args: argparse.Namespace) -> None:
    extras.need("train")
    from .analysis.layer_report import report
    from .analysis.similarity import GroupingConfig

    keys = ("measure", "estimator", "linkage", "contiguous", "zeroth", "seconds")
    config = GroupingConfig(number=args.groups, **{key: getattr(args, key) for key in keys})
    print(
        json.dumps(
            report(args.teacher, args.audio, config, args.student, args.distilled, args.out, args.seed, args.device)
        )
    )


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected layers such as 4,8,12, got {text!r}") from None


def _layers(text: str) -> list[int] | str:
    return text if text == "all" else _numbers(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="star", description="Small speech encoders by distillation.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name, function, about):
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(function=function)
        return command

    for name, function, about, example in (
        (
            "distill",
            _distill,
            "Distil a student, or go on with an unfinished run.",
            "e.g. data.train=/data/LibriSpeech training.precision=bf16-mixed",
        ),
        (
            "pretrain",
            _pretrain,
            "Pretrain an encoder by masked prediction of units, or go on with an unfinished run.",
            "e.g. data.train=/data/LibriSpeech training.updates=50000 teacher=runs/mine/round2/encoder",
        ),
    ):
        command = add(name, function, about)
        command.add_argument("recipe", help="a shipped recipe (see: star recipes) or a yaml file")
        command.add_argument("values", nargs="*", metavar="key=value", help=example)
        command.add_argument("--out", type=_path, metavar="DIR", help="the run's folder: logs, state and checkpoints")
        command.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")

    command = add(
        "profile", _profile, "Parameters, multiply-accumulates and time of recipes' students and of checkpoints."
    )
    command.add_argument(
        "source",
        nargs="+",
        help="a recipe, anything that can be a teacher, or a file of star export; with --time also RUN/stage1/gated",
    )
    command.add_argument("--json", action="store_true")
    command.add_argument(
        "--time", action="store_true", help="time one forward pass of each on this machine's CPU, in turns"
    )
    command.add_argument("--seconds", type=float, default=10.0, help="length of the audio (10)")
    command.add_argument("--repeats", type=int, default=15, help="rounds (15)")
    command.add_argument("--threads", type=int, help="CPU threads (torch's own number)")

    command = add(
        "cut", _cut, "Cut a pruned run's gated student once more: channels rounded for speed, or another sparsity."
    )
    command.add_argument("gated", type=_path, help="RUN/stage1/gated")
    command.add_argument(
        "target_folder", type=_path, metavar="folder", help="the checkpoint to write; it has had no second stage"
    )
    command.add_argument(
        "--round", type=int, help="convolution channels and FFN units are kept in multiples of this, e.g. 8"
    )
    command.add_argument("--sparsity", type=float, help="0 to 1; without it the run's own target")

    command = add("convert", _convert, "Write a checkpoint of any known format in ours.")
    command.add_argument("source")
    command.add_argument("target", type=_path, help="the folder to write")
    command.add_argument("--config", metavar="FILE", help="the configuration file that some published checkpoints need")

    command = add(
        "export",
        _export,
        "Write a model as one ONNX file, which runs without torch (star listen, star_upstream.runtime).",
    )
    command.add_argument(
        "source", help="anything that can be a teacher, or the file of a fine-tuned model with its heads"
    )
    command.add_argument("target", type=_path, nargs="?", metavar="OUT.onnx", help="the file to write")
    about = "states to give, e.g. 0,4,-1 (write --layers=-1,...), or all; without it all, or none where there are heads"
    command.add_argument("--layers", type=_layers, metavar="0,4,-1", help=about)
    about = "files of star finetune (the answers of their heads), records of star-eval (the weighted sum of the head)"
    command.add_argument("--heads", nargs="+", type=_path, default=[], metavar="FILE", help=about)
    command.add_argument("--predictions", action="store_true", help="also what the model's prediction heads give")
    about = (
        "of a model that streams: a step's samples and state in, a chunk and state out (star_upstream.runtime_stream)"
    )
    command.add_argument("--stream", action="store_true", help=about)
    about = "8-bit weights and activations, where --calibrate shows that they change little"
    command.add_argument("--int8", action="store_true", help=about)
    about = "of --int8: audio to measure on (a minute is drawn): folders, lists of audio or audio files"
    command.add_argument("--calibrate", nargs="+", metavar="AUDIO", help=about)
    about = "of --int8: activations by each utterance's range, not by the calibration audio's"
    command.add_argument("--dynamic", action="store_true", help=about)
    about = "write a folder instead, which AutoModel.from_pretrained of the transformers library loads"
    command.add_argument("--transformers", type=_path, metavar="DIR", help=about)
    command.add_argument("--licence", metavar="TEXT", help="the weights' licence, to be stated in the file")
    command.add_argument("--config", metavar="FILE", help="the configuration file that some published checkpoints need")

    command = add(
        "listen", _listen, "What an exported model hears in recordings: keywords, and speakers beside the first's."
    )
    command.add_argument("model", type=_path, help="a file that star export wrote of a fine-tuned model")
    command.add_argument(
        "audio", nargs="+", help="recordings at 16 kHz: wav, and what soundfile reads where it is installed"
    )
    command.add_argument("--threads", type=int, help="CPU threads (onnxruntime's own number)")
    command.add_argument("--json", action="store_true")

    command = add(
        "similarity", _similarity, "Which layers of a teacher are alike, and how far a student's are from them."
    )
    command.add_argument("teacher", help="a name, folder or file, as in a recipe")
    command.add_argument(
        "audio", nargs="+", help="folders, lists of audio (tsv, csv, jsonl, a path a line) or audio files"
    )
    command.add_argument("--groups", type=int, default=4, metavar="N", help="groups of layers to make (4)")
    command.add_argument("--measure", choices=["cka", "cosine", "l2"], default="cka")
    estimators = ["exact", "minibatch"]
    command.add_argument(
        "--estimator", choices=estimators, default="exact", help="of cka: minibatch for little audio or wide models"
    )
    command.add_argument("--linkage", choices=["average", "complete", "single", "ward"], default="average")
    command.add_argument("--contiguous", action="store_true", help="only groups of neighbouring layers")
    command.add_argument(
        "--zeroth", choices=["features", "layer_input", "none"], default="features", help="what layer 0 is"
    )
    command.add_argument(
        "--seconds", type=float, default=300.0, metavar="S", help="audio to measure on (300), drawn at random"
    )
    command.add_argument("--seed", type=int, default=0, help="draws the clips")
    command.add_argument("--student", metavar="CKPT", help="also its distance from the teacher, layer by layer")
    command.add_argument(
        "--distilled", type=_numbers, metavar="4,8,12", help="its distilled layers, if the checkpoint is silent"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda (auto: cuda where there is one)")
    command.add_argument("--out", type=_path, metavar="DIR", help="write similarity.json and the pictures there")

    command = add(
        "finetune", _finetune, "Fine-tune an encoder on keywords and speakers, or set finished runs in a table."
    )
    command.add_argument("recipe", nargs="?", help="a shipped recipe (see: star recipes) or a yaml file")
    example = "e.g. data=/data/corpora encoder=runs/mine/best frozen=true tasks=keyword training.updates=1000"
    command.add_argument("values", nargs="*", metavar="key=value", help=example)
    command.add_argument(
        "--out", type=_path, metavar="DIR", help="the run's folder; with --grid of all runs; with --table of the table"
    )
    command.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    about = "every model frozen and fine-tuned, on each task alone and on all, once a seed, then the table"
    command.add_argument("--grid", type=_models, metavar="NAME=ENCODER,...", help=about)
    command.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="of --grid (default 0)")
    command.add_argument("--jobs", type=int, default=1, help="runs of --grid at once (default 1)")
    command.add_argument(
        "--table", nargs="+", type=_path, metavar="RUN", help="print finished runs as a table beside the published rows"
    )

    command = add(
        "compare", _compare, "Train recipes at one size on the same audio, score them, and test the differences."
    )
    command.add_argument(
        "recipes", nargs="+", help="shipped recipes or yaml files; the first is tested against each other"
    )
    command.add_argument("values", nargs="*", metavar="key=value", help="for every recipe, e.g. data.train=/data/audio")
    command.add_argument("--teacher", required=True, help="the same for all, as in a recipe")
    command.add_argument("--parameters", type=int, required=True, metavar="N", help="of every student, to 5 %%")
    command.add_argument(
        "--updates", type=int, required=True, metavar="U", help="of every student, both stages together"
    )
    command.add_argument("--seeds", type=int, default=1, metavar="K", help="runs of each recipe (1); 3 or more to tell")
    about = "train every recipe at each of these rates first, and take the one of its lowest validation loss"
    command.add_argument("--search-rates", type=_rates, default=(), metavar="R,R,...", help=about)
    command.add_argument("--search-updates", type=int, metavar="U", help="of each run of the search (--updates)")
    command.add_argument("--tasks", default="all", help="of star-eval run, with commas between (all)")
    command.add_argument("--data", default="mini", help="of star-eval run: corpora or manifests to score on (mini)")
    command.add_argument("--schedule", help="of star-eval run")
    command.add_argument("--steps", type=int, help="of star-eval run")
    command.add_argument("--limit", type=int, help="of star-eval run")
    command.add_argument("--lr-grid", help="of star-eval run: the heads' learning rates")
    command.add_argument("--cache", help="of star-eval run: folder for features")
    command.add_argument("--cache-gb", type=float, help="of star-eval run")
    command.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    command.add_argument("--out", type=_path, metavar="DIR", help="the comparison's folder; a rerun goes on")
    command.add_argument(
        "--dry-run", action="store_true", help="print each student's size and what is changed, and stop"
    )

    add("recipes", _recipes, "List the shipped recipes.")
    return top


def main(argv: list[str] | None = None) -> None:
    """Run one command; exits with 0, 2 after a mistake in the input, 130 after Ctrl-C, or 141 without a reader."""
    with quiet_pipe():
        _main(argv)


def _main(argv: list[str] | None) -> None:
    commands = parser()
    args, rest = commands.parse_known_args(argv)
    if rest and getattr(args, "target", "") is None and not rest[0].startswith("-"):
        args.target = _path(rest.pop(0))  # argparse looks for what may be left out before the first option alone
    if rest:
        # argparse takes key=value words in one place only; those after an option are found here
        if not hasattr(args, "values") or any(word.startswith("-") for word in rest):
            commands.error(f"unrecognized arguments: {' '.join(rest)}")
        args.values += rest
    try:
        args.function(args)
    except StarError as error:
        say(f"star: {' '.join(str(error).split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("star: stopped; run the same command again to go on")
        sys.exit(130)
