"""The command ``star``. Results go to stdout, messages to stderr; a mistake in the input is one line and exit status
2."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import extras
from .arguments import parser
from .asked import Asked, Scoring
from .cluster import Launch
from .errors import StarError
from .flags import path, take
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
    import torch

    from .formats import sources

    dtype = getattr(torch, args.dtype) if args.dtype else None
    provenance = sources.convert(args.source, args.target, args.config, dtype)
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

    # words with an equals sign are overrides, also between the recipes
    words = [*args.recipes, *args.values]
    names = tuple(word for word in words if "=" not in word or Path(word).is_file())
    others = tuple(word for word in words if word not in names)
    asked = take(Asked, args, sources=names, overrides=others, scoring=take(Scoring, args))
    if args.dry_run:
        for name, entry in compare.plan(asked).items():
            print(f"{name}: {entry.parameters:,} parameters; {'; '.join(entry.changed) or 'as in its file'}")
        return
    if args.out is None:
        raise StarError("--out: name the comparison's folder (or give --dry-run)")
    compare.run(asked, args.out, take(Launch, args))
    print((args.out / "table.md").read_text(encoding="utf-8"), end="")


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


COMMANDS = {
    "distill": _distill,
    "pretrain": _pretrain,
    "profile": _profile,
    "cut": _cut,
    "convert": _convert,
    "export": _export,
    "listen": _listen,
    "similarity": _similarity,
    "finetune": _finetune,
    "compare": _compare,
    "recipes": _recipes,
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; exits with 0, 2 after a mistake in the input, 130 after Ctrl-C, or 141 without a reader."""
    with quiet_pipe():
        _main(argv)


def _main(argv: list[str] | None) -> None:
    commands = parser()
    args, rest = commands.parse_known_args(argv)
    if rest and getattr(args, "target", "") is None and not rest[0].startswith("-"):
        try:  # argparse looks for what may be left out before the first option alone
            args.target = path(rest.pop(0))
        except argparse.ArgumentTypeError as error:
            commands.error(f"argument OUT.onnx: {error}")
    if rest:
        # argparse takes key=value words in one place only; those after an option are found here
        if not hasattr(args, "values") or any(word.startswith("-") for word in rest):
            commands.error(f"unrecognized arguments: {' '.join(rest)}")
        args.values += rest
    try:
        COMMANDS[args.command](args)
    except StarError as error:
        say(f"star: {' '.join(str(error).split())}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("star: stopped; run the same command again to go on")
        sys.exit(130)
