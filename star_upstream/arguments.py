"""The words that the command ``star`` takes."""

from __future__ import annotations

import argparse
import re

from . import __version__, flags
from .asked import Asked, Scoring
from .cluster import Launch
from .flags import path


def parser() -> argparse.ArgumentParser:
    """Of all commands; ``command`` is the name of the one that was given."""
    top = argparse.ArgumentParser(prog="star", description="Small speech encoders by distillation.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(metavar="COMMAND", required=True, dest="command")

    def add(name, about):
        return commands.add_parser(name, help=about, description=about)

    for name, about, example in (
        (
            "distill",
            "Distil a student, or go on with an unfinished run.",
            "e.g. data.train='/data/LibriSpeech/train-*' training.precision=bf16-mixed",
        ),
        (
            "pretrain",
            "Pretrain an encoder by masked prediction of units, or go on with an unfinished run.",
            "e.g. data.train='/data/LibriSpeech/train-*' training.updates=50000 teacher=runs/mine/round2/encoder",
        ),
    ):
        command = add(name, about)
        command.add_argument("recipe", help="a shipped recipe (see: star recipes) or a yaml file")
        command.add_argument("values", nargs="*", metavar="key=value", help=example)
        command.add_argument("--out", type=path, metavar="DIR", help="the run's folder: logs, state and checkpoints")
        command.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")

    command = add("profile", "Parameters, multiply-accumulates and time of recipes' students and of checkpoints.")
    command.add_argument(
        "source",
        nargs="+",
        type=flags.named,
        help="a recipe, anything that can be a teacher, or a file of star export; with --time also RUN/stage1/gated",
    )
    command.add_argument("--json", action="store_true")
    command.add_argument(
        "--time", action="store_true", help="time one forward pass of each on this machine's CPU, in turns"
    )
    command.add_argument("--seconds", type=flags.seconds, default=10.0, help="length of the audio (10)")
    command.add_argument("--repeats", type=flags.count, default=15, help="rounds (15)")
    command.add_argument("--threads", type=flags.count, help="CPU threads (torch's own number)")

    command = add("cut", "Cut a pruned run's gated student once more: channels rounded for speed, or another sparsity.")
    command.add_argument("gated", type=path, help="RUN/stage1/gated")
    command.add_argument(
        "target_folder", type=path, metavar="folder", help="the checkpoint to write; it has had no second stage"
    )
    command.add_argument(
        "--round", type=int, help="convolution channels and FFN units are kept in multiples of this, e.g. 8"
    )
    command.add_argument("--sparsity", type=float, help="0 to 1; without it the run's own target")

    command = add("convert", "Write a checkpoint of any known format in ours.")
    command.add_argument("source", type=flags.named)
    command.add_argument("target", type=path, help="the folder to write")
    command.add_argument("--config", metavar="FILE", help="the configuration file that some published checkpoints need")
    about = "of the weights on disk; without it the shortest that holds every weight as it is"
    command.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help=about)

    command = add(
        "export",
        "Write a model as one ONNX file, which runs without torch (star listen, star_upstream.runtime).",
    )
    command.add_argument(
        "source",
        type=flags.named,
        help="anything that can be a teacher, or the file of a fine-tuned model with its heads",
    )
    command.add_argument("target", type=path, nargs="?", metavar="OUT.onnx", help="the file to write")
    about = "states to give, e.g. 0,4,-1 (write --layers=-1,...), or all; without it all, or none where there are heads"
    command.add_argument("--layers", type=_layers, metavar="0,4,-1", help=about)
    about = "files of star finetune (the answers of their heads), records of star-eval (the weighted sum of the head)"
    command.add_argument("--heads", nargs="+", type=path, default=[], metavar="FILE", help=about)
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
    command.add_argument("--transformers", type=path, metavar="DIR", help=about)
    command.add_argument("--licence", metavar="TEXT", help="the weights' licence, to be stated in the file")
    command.add_argument("--config", metavar="FILE", help="the configuration file that some published checkpoints need")

    command = add("listen", "What an exported model hears in recordings: keywords, and speakers beside the first's.")
    command.add_argument("model", type=path, help="a file that star export wrote of a fine-tuned model")
    command.add_argument(
        "audio", nargs="+", help="recordings at 16 kHz: wav, and what soundfile reads where it is installed"
    )
    command.add_argument("--threads", type=flags.count, help="CPU threads (onnxruntime's own number)")
    command.add_argument("--json", action="store_true")

    command = add("similarity", "Which layers of a teacher are alike, and how far a student's are from them.")
    command.add_argument("teacher", type=flags.named, help="a name, folder or file, as in a recipe")
    command.add_argument(
        "audio", nargs="+", help="folders, lists of audio (tsv, csv, jsonl, a path a line) or audio files"
    )
    command.add_argument("--groups", type=flags.count, default=4, metavar="N", help="groups of layers to make (4)")
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
        "--seconds", type=flags.seconds, default=300.0, metavar="S", help="audio to measure on (300), drawn at random"
    )
    command.add_argument("--seed", type=flags.seed, default=0, help="draws the clips")
    command.add_argument(
        "--student", type=flags.named, metavar="CKPT", help="also its distance from the teacher, layer by layer"
    )
    command.add_argument(
        "--distilled", type=_numbers, metavar="4,8,12", help="its distilled layers, if the checkpoint is silent"
    )
    command.add_argument("--device", default="auto", help="cpu, cuda (auto: cuda where there is one)")
    command.add_argument("--out", type=path, metavar="DIR", help="write similarity.json and the pictures there")

    command = add("finetune", "Fine-tune an encoder on keywords and speakers, or set finished runs in a table.")
    command.add_argument("recipe", nargs="?", help="a shipped recipe (see: star recipes) or a yaml file")
    example = "e.g. data=/data/corpora encoder=runs/mine/best frozen=true tasks=keyword training.updates=1000"
    command.add_argument("values", nargs="*", metavar="key=value", help=example)
    command.add_argument(
        "--out", type=path, metavar="DIR", help="the run's folder; with --grid of all runs; with --table of the table"
    )
    command.add_argument("--dry-run", action="store_true", help="print the resolved recipe and stop")
    about = "every model frozen and fine-tuned, on each task alone and on all, once a seed, then the table"
    command.add_argument("--grid", type=_models, metavar="NAME=ENCODER,...", help=about)
    command.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="of --grid (default 0)")
    command.add_argument("--jobs", type=flags.count, default=1, help="runs of --grid at once (default 1)")
    command.add_argument(
        "--table", nargs="+", type=path, metavar="RUN", help="print finished runs as a table beside the published rows"
    )

    command = add("compare", "Train recipes at one size on the same audio, score them, and test the differences.")
    command.add_argument(
        "recipes", nargs="+", help="shipped recipes or yaml files; the first is tested against each other"
    )
    command.add_argument("values", nargs="*", metavar="key=value", help="for every recipe, e.g. data.train=/data/audio")
    flags.add(command, Asked)
    flags.add(command, Scoring)
    flags.add(command, Launch, works="runs")
    command.add_argument("--out", type=path, metavar="DIR", help="the comparison's folder; a rerun goes on")
    command.add_argument(
        "--dry-run", action="store_true", help="print each student's size and what is changed, and stop"
    )

    add("recipes", "List the shipped recipes.")
    return top


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected layers such as 4,8,12, got {text!r}") from None


def _layers(text: str) -> list[int] | str:
    return text if text == "all" else _numbers(text)


def _seeds(text: str) -> list[int]:
    if not all(word.isdigit() for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 0,1,2, got {text!r}")
    return [int(word) for word in text.split(",")]


def _models(text: str) -> dict[str, str]:
    # an encoder's path may hold commas and equals signs
    pairs = [word.partition("=") for word in re.split(r",(?=[^,=/]+=)", text)]
    if not all(name and source for name, _, source in pairs):
        raise argparse.ArgumentTypeError(
            f"expected NAME=ENCODER,..., e.g. teacher=star_mini_teacher,student=runs/mine/best, got {text!r}"
        )
    return {name: source for name, _, source in pairs}
