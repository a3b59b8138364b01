"""``python results/bench/train.py``: a STaR training step, plain and ours, side by side.

Plain: transformers' HubertModel (SDPA) as teacher and student, whole Gram matrices, autograd. Ours: this package's
encoder and loss, as ``star distill star_hubert`` runs them. Both sides have the same random weights; their losses are
compared without dropout first. A step: teacher, student, loss, backward, AdamW. On a CPU both are measured twice: as
they are, and where what a step frees stays for the next one, as every training of ours has it (``star_upstream.heap``).
About ten minutes on two cores with the defaults. ``--device cuda`` is for a GPU: audio-hours an hour and the share of
the rate of bf16 products; the student is compiled with ``--compile``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import models
import torch
import turns
from page import number, table
from script import check_page, path, processor, write
from torch import Tensor, nn

from star_upstream import heap, losses
from star_upstream.analysis.latency import in_threads
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.encoder.size import macs
from star_upstream.environment import environment
from star_upstream.errors import StarError
from star_upstream.say import command, say
from star_upstream.training import recipe

MAKER, TITLE = "results/bench/train.py", "# A STaR training step"
TOLERANCE = {"32": 1e-4, "bf16-mixed": 0.05}
"""Largest relative difference of the two losses."""


def pairs() -> tuple[tuple[nn.Module, Encoder], tuple[nn.Module, Encoder]]:
    """Teacher and student, each of transformers and of ours with the same weights.

    transformers always has a projection, of 432 x 432 here, which star_hubert has not; ours has it here too.
    """
    star = recipe.load("star_hubert").student_config()
    channels, kernels, strides = (list(values) for values in zip(*star.conv_layers))
    torch.manual_seed(0)
    return models.hubert(layerdrop=0.0), models.hubert(
        conv_dim=channels, conv_kernel=kernels, conv_stride=strides, num_feat_extract_layers=len(channels),
        hidden_size=star.width, num_hidden_layers=star.layers, num_attention_heads=star.heads[0],
        intermediate_size=star.ffn[0], hidden_dropout=star.dropout, attention_dropout=star.attention_dropout,
        activation_dropout=star.activation_dropout, feat_proj_dropout=star.feature_dropout, layerdrop=0.0,
        apply_spec_augment=False,
    )  # fmt: skip


class Plain(nn.Module):
    """The loss as one writes it down: the mean over layers and pairs of frames of squared differences of Gram
    matrices."""

    def __init__(self, teacher: nn.Module, student: nn.Module):
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, waves_BN: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = self.teacher(waves_BN, output_hidden_states=True).hidden_states
        own = self.student(waves_BN, output_hidden_states=True).hidden_states
        total = torch.zeros((), device=waves_BN.device)
        for i in range(1, len(own)):
            for before in (i, i - 1):
                right_BTT = theirs[before].float() @ theirs[i].float().transpose(1, 2)
                total = total + (right_BTT - own[before].float() @ own[i].float().transpose(1, 2)).square().mean()
        return total / (len(own) - 1)


class Ours(nn.Module):
    def __init__(self, teacher: nn.Module, student: nn.Module, configs: tuple[EncoderConfig, EncoderConfig]):
        super().__init__()
        self.teacher, self.student = teacher, student
        self.loss = losses.build(recipe.load("star_hubert").loss, *configs)

    def forward(self, waves_BN: Tensor) -> Tensor:
        with torch.no_grad():
            theirs = self.teacher(waves_BN, None)
        loss: Tensor = self.loss(theirs, self.student(waves_BN, None))[0]
        return loss


def step(side: Plain | Ours, waves_BN: Tensor, precision: str) -> Callable[[], Any]:
    """A whole training step."""
    optimizer = torch.optim.AdamW(side.student.parameters(), 1e-5, fused=True)

    def call() -> None:
        with arithmetic(precision, waves_BN.device.type):
            loss = side(waves_BN)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def arithmetic(precision: str, device: str) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "32" else torch.autocast(device, torch.bfloat16)


def run(args: argparse.Namespace, typed: list[str]) -> int:
    """Compare, measure, and write the page and, beside it, the numbers."""
    check_page(args.out, MAKER, TITLE, "steps")
    device = torch.device(args.device)
    (their_teacher, teacher), (their_student, student) = pairs()
    configs = (teacher.config, student.config)
    plain, ours = Plain(their_teacher, their_student).to(device), Ours(teacher, student, configs).to(device)
    sides: dict[str, Plain | Ours] = {"plain": plain, "ours": ours}
    generator = torch.Generator().manual_seed(0)
    waves_BN = (0.1 * torch.randn(args.batch, round(args.seconds * 16_000), generator=generator)).to(device)
    compared = {}
    for precision in args.precision:
        with torch.no_grad(), arithmetic(precision, device.type):
            values = {name: side.eval()(waves_BN).item() for name, side in sides.items()}
        off = abs(values["ours"] / values["plain"] - 1)
        compared[precision] = {**values, "relative_difference": off}
        if not off <= TOLERANCE[precision]:
            raise StarError(f"{precision}: the losses are {values}, {off:.2g} apart (limit {TOLERANCE[precision]})")
    for side in sides.values():
        side.train()
        side.teacher.eval()
    if args.compile:
        ours.student.compile()
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = 8192 if device.type == "cuda" else turns.SIZE
    with in_threads(args.threads):
        calls: dict[str, Callable[[], Any]] = {
            f"{name}, {precision}": step(side, waves_BN, precision)
            for precision in args.precision
            for name, side in sides.items()
        }
        product = turns.product(kind, device.type, size)
        times = turns.in_turns({**calls, "product": product}, args.repeats, args.clock)
        if device.type == "cpu":
            again = {f"{name}, memory kept": call for name, call in calls.items()}
            with heap.kept():
                times |= turns.in_turns(again, args.repeats, args.clock)
    rate = turns.rate(min(times.pop("product")), size)
    samples = waves_BN.shape[1]
    # the student's backward pass computes twice what its forward pass does; Gram matrices are not counted
    work = args.batch * (macs(configs[0], samples) + 3 * macs(configs[1], samples)) / 1e9
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    first = next(iter(medians.values()))
    rows = {
        name: {
            "median_s": medians[name], "fastest_s": min(taken), "slowest_s": max(taken),
            "times_faster": first / medians[name], "share_of_product_rate": work / medians[name] / rate,
            "audio_hours_an_hour": args.batch * args.seconds / medians[name],
        }
        for name, taken in times.items()
    }  # fmt: skip
    machine = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
    result = {
        "command": shlex.join(["python", MAKER, *typed]), "machine": machine, "load": turns.load(),
        "clock": args.clock,
        "environment": environment(), "losses": compared, "steps": rows, "product_gmacs": rate,
        "product_type": str(kind).removeprefix("torch."), "batch": args.batch, "seconds": args.seconds,
        "threads": args.threads, "macs_g": work,
    }  # fmt: skip
    write(args.out, page(result), result)
    print(json.dumps({"out": str(args.out)}))
    say(page(result))
    return 0


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    told = "; ".join(
        f"{precision} {values['plain']:.6g} and {values['ours']:.6g} ({values['relative_difference']:.1g} apart)"
        for precision, values in result["losses"].items()
    )
    cells = [
        [
            name, f"{row['median_s']:.2f}", f"{row['fastest_s']:.2f} to {row['slowest_s']:.2f}",
            f"{row['times_faster']:.2f}", f"{row['share_of_product_rate']:.0%}", number(row["audio_hours_an_hour"]),
        ]
        for name, row in result["steps"].items()
    ]  # fmt: skip
    header = ["", "s", "fastest to slowest", "times as fast", "share of the product rate", "hours of audio an hour"]
    return "\n".join(
        [
            TITLE,
            "",
            f"Made by `{result['command']}` on {result['machine']} ({result['load']}), torch "
            f"{result['environment']['versions']['torch']}. In turns in one run; medians of seconds by the "
            f"{result['clock']} clock.",
            "",
            f"star_hubert's student and HuBERT Base as its teacher, {result['batch']} x {result['seconds']:g} s, "
            f"{result['threads']} thread{'s' * (result['threads'] > 1)}: {result['macs_g']:.0f} G multiply-adds. "
            f"Losses without dropout, plain and ours: {told}. {result['product_type']} products: "
            f"{result['product_gmacs']:.0f} G multiply-accumulates a second.",
            "",
            table(header, cells),
            "",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python {MAKER}", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=10.0, help="of every utterance (default 10)")
    add("--batch", type=int, default=2, help="utterances (default 2)")
    add("--threads", type=int, default=1, help="CPU threads (default 1)")
    add("--repeats", type=int, default=3, help="rounds (default 3)")
    add("--precision", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE), help="default: both")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu")
    add("--compile", action="store_true", help="the student through torch.compile")
    add("--out", type=path, help="the page (default results/speed/train.md; on a GPU train_gpu.md)")
    add(
        "--clock",
        choices=list(turns.CLOCKS),
        default="wall",
        help="cpu: for one thread on a busy machine (default wall)",
    )
    typed = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(typed)
    args.out = args.out or path(f"results/speed/train{'_gpu' * (args.device == 'cuda')}.md")
    return run(args, typed)


if __name__ == "__main__":
    command(main)
