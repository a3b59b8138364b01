"""Before a run in reduced precision: does it compute the function that fp32 computes?

Kernels and modules can be wrong below fp32 and say nothing. So the first batch is run in fp32, and every module that
takes part is run once more in the reduced type on the very inputs that it had in fp32. (Whole models are not enough: in
a new student a layer adds so little to its input that what it adds may be all wrong.) What deviates by more than
:data:`TOLERANCE` is computed in fp32 from then on, innermost modules first, and is named. Dropout is off, nothing is
drawn, and no gradient is made: the run goes on as if nothing had been.

It takes one batch: a forward pass in fp32 and, as modules lie within modules, up to four in the reduced type, about an
update or two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..encoder.numerics import REDUCED, full_precision, wide
from ..errors import StarError
from ..say import say
from .fabric import everyones

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}
"""How much of a module's output may be error: the norm of the difference over the norm of fp32's. Rounding makes 0.002
to 0.02 of it in bf16, and 0.0005 to 0.003 in fp16."""
SLICE = 4.0
"""How many times the tolerance one slice of an output (an utterance, a frame, a channel, a head) may deviate: an error
in one of many would be lost in the whole."""
ROUNDS = 10
WORTH = 0.87
"""How much of fp32's time bf16 may take to be chosen where ``auto`` is asked for."""


def reduced_type(precision: Any, device: torch.device | str) -> torch.dtype | None:
    """What ``training.precision`` computes in on that device; None is fp32. Lightning takes bf16 where fp16 is asked of
    a CPU."""
    kinds = {
        "bf16-mixed": torch.bfloat16,
        "16-mixed": torch.bfloat16 if torch.device(device).type == "cpu" else torch.float16,
    }
    return kinds.get(precision)


def autocast(precision: Any, device: torch.device) -> AbstractContextManager:
    """The arithmetic of ``training.precision`` outside of the loop."""
    kind = reduced_type(precision, device)
    return nullcontext() if kind is None else torch.autocast(device.type, kind)


@dataclass
class Comparison:
    """What :func:`settle` found."""

    kind: torch.dtype
    device: torch.device
    moved: dict[str, float] = field(default_factory=dict)
    """Modules that are computed in fp32 from here on, with the deviation for which they were moved."""
    largest: tuple[str, float] = ("", 0.0)
    """The module that deviates most now, and by how much."""

    def told(self) -> list[str]:
        """A line for each module that was moved."""
        kind = str(self.kind).removeprefix("torch.")
        return [
            f"{name}: in {kind} on {self.device} its output is off by {error:.2g} of its size "
            f"(limit {TOLERANCE[self.kind]:g}); computed in fp32 from here on"
            for name, error in self.moved.items()
        ]

    def record(self) -> dict[str, Any]:
        """What a run writes down."""
        name, error = self.largest
        return {
            "type": str(self.kind).removeprefix("torch."),
            "device": self.device.type,
            "tolerance": TOLERANCE[self.kind],
            "largest_deviation": {"module": name, "error": round(error, 5)},
            "in_fp32": {name: round(error, 5) for name, error in self.moved.items()},
        }


def settle(
    parts: Mapping[str, nn.Module],
    call: Callable[[], Any],
    kind: torch.dtype,
    device: torch.device | str,
    together: Callable[[dict[str, float]], dict[str, float]] = dict,
) -> Comparison:
    """Compare ``kind`` with fp32 for every module within ``parts`` (models by name) that ``call`` runs, and move to
    fp32 what deviates.

    together: of what deviates here, what deviates in any process, so that all move the same in as many rounds.

    Raises :class:`StarError`, with the module's name, where fp32 does not help.
    """
    found = Comparison(kind, torch.device(device))
    with _undisturbed(parts.values(), found.device):
        for _ in range(ROUNDS):
            errors = _deviations(parts, call, kind, found.device)
            wrong = together({name: error for name, error in errors.items() if not error <= TOLERANCE[kind]})
            if not wrong:
                found.largest = max(errors.items(), key=lambda item: item[1], default=("", 0.0))
                return found
            innermost = [name for name in wrong if not any(other.startswith(f"{name}.") for other in wrong)]
            new = {name: wrong[name] for name in innermost if name not in found.moved}
            if not new:
                break
            move(parts, new)
            found.moved.update(new)
    name, error = next(iter(wrong.items()))
    raise StarError(
        f"{name}: in {str(kind).removeprefix('torch.')} on {found.device} its output is off by {error:.2g} of its size "
        f"(limit {TOLERANCE[kind]:g}), and moving it to fp32 does not help; set training.precision=32"
    )


def place(device: torch.device) -> str:
    """What decides which kernels are run."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def agree(
    parts: Mapping[str, nn.Module], call: Callable[[], Any], precision: Any, device: torch.device, where: str
) -> list[str]:
    """:func:`settle` outside of the loop, for ``training.precision``: the modules that were moved, which are named on
    stderr."""
    kind = reduced_type(precision, device)
    if kind is None:
        return []
    found = settle(parts, call, kind, device)
    for line in found.told():
        say(f"{where}: {line}")
    return list(found.moved)


class RunPrecision:
    """The precision of a run: settled on its first batch, the same in every process, kept in its state.

    ``parts``: all models that take part, by name; ``folder`` is told what was found.
    """

    def __init__(self, fabric: Fabric, asked: Any, parts: Mapping[str, nn.Module], folder: Any):
        self.fabric, self.parts, self.folder = fabric, parts, folder
        self.chosen: Any = None if asked == "auto" else asked
        """``32``, ``bf16-mixed`` or ``16-mixed``; None until the first batch where the configuration says ``auto``."""
        self.comparison: dict[str, Any] | None = None
        """In reduced precision: on what it was compared with fp32, and which modules are in fp32 since."""
        self.settled = False

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what a run's state has: the precision that was chosen, and the modules in fp32."""
        if state.get("chosen_precision") is not None:
            self._take(state["chosen_precision"])
        if state["precision"]:
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.comparison = state.get("comparison")
        if self.comparison is not None:
            move(self.parts, self.comparison["in_fp32"])

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes."""
        return {
            "chosen_precision": self.chosen,
            "precision": self.fabric.strategy.precision.state_dict(),
            "comparison": self.comparison,
        }

    def settle(self, model: nn.Module, batch: Any) -> bool:
        """On the first batch: choose where ``auto`` is asked for, compare with fp32, and move to fp32 what deviates;
        whether any of that was done now.

        ``model(batch)`` gives the loss first. A resumed run has its choice and its modules from its state; it is
        compared again where it goes on in another place than it was compared in.
        """
        if self.settled:
            return False
        self.settled, free = True, self.chosen is None
        if free:
            self._choose(model, batch)
        kind, here = reduced_type(self.chosen, self.fabric.device), place(self.fabric.device)
        if kind is None or all(everyones(self.fabric, (self.comparison or {}).get("place") == here)):
            return free
        try:
            found = settle(self.parts, lambda: model(batch), kind, self.fabric.device, self._anyones)
        except StarError as error:
            if not free:
                raise
            self._take(32)
            self._tell({"precision": 32}, [f"precision 32, since {error}"])
            return True
        found.moved = {**(self.comparison or {}).get("in_fp32", {}), **found.moved}
        self.comparison = {**found.record(), "place": here}
        self._tell({"compared_with_fp32": self.comparison}, found.told())
        return True

    def _anyones(self, wrong: dict[str, float]) -> dict[str, float]:
        """What deviates in any process, by its largest deviation there."""
        found: dict[str, float] = {}
        for errors in everyones(self.fabric, wrong):
            for name, error in errors.items():
                found[name] = max(error, found.get(name, 0.0))
        return found

    def _choose(self, model: nn.Module, batch: Any) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kept = [(buffer, buffer.clone()) for buffer in model.buffers()]  # running statistics
        seconds = self.fabric.broadcast(times(lambda: model(batch)[0], trained, self.fabric.device))
        for buffer, before in kept:
            buffer.copy_(before)
        self._take("bf16-mixed" if seconds["bf16-mixed"] <= WORTH * seconds["32"] else 32)
        said = ", ".join(f"{name} {value:.2g} s" for name, value in seconds.items())
        found = {"precision": self.chosen, "forward_and_backward_seconds": seconds}
        self._tell(found, [f"precision {self.chosen} (forward and backward: {said})"])

    def _take(self, chosen: Any) -> None:
        self.chosen = chosen
        if chosen == "bf16-mixed":
            from lightning_fabric.plugins.precision import MixedPrecision

            self.fabric.strategy.precision = MixedPrecision(chosen, self.fabric.device.type)
        elif chosen == 32:
            from lightning_fabric.plugins.precision import Precision

            self.fabric.strategy.precision = Precision()

    def _tell(self, found: dict[str, Any], lines: Iterable[str]) -> None:
        if self.fabric.is_global_zero:
            self.folder.amend_environment(found)
            for line in lines:
                say(f"{self.folder.path}: {line}")


def times(call: Callable[[], Tensor], trained: Sequence[Tensor], device: torch.device) -> dict[str, float]:
    """Seconds that forward and backward of ``call`` (a loss) take in fp32 and in bf16: of the processor, or of a GPU.

    Each is run twice, since the first time makes what the kernels need; bf16 that is beyond hope is run once. No
    gradient is kept and nothing is drawn.
    """
    gpu = device.type == "cuda"
    seconds: dict[str, float] = {}
    clock = time.perf_counter if gpu else time.process_time  # other processes do not count
    with torch.random.fork_rng([device] if gpu else []):
        for name in ("32", "bf16-mixed", "32", "bf16-mixed"):
            if name in seconds and seconds["bf16-mixed"] > 2 * seconds["32"]:
                break
            begun = clock()
            with autocast(name, device):
                loss = call()
            torch.autograd.grad(loss, trained, allow_unused=True)
            if gpu:
                torch.cuda.synchronize()
            seconds[name] = round(clock() - begun, 6)
    return seconds


def move(parts: Mapping[str, nn.Module], names: Iterable[str]) -> None:
    """Have the modules of these names computed in fp32, whatever the autocast around them."""
    modules = dict(_named(parts))
    for name in names:
        if name not in modules:
            raise StarError(
                f"{name}: was computed in fp32 before, and there is no such module now; start the run again in another "
                "folder"
            )
        module = modules[name]
        if not isinstance(module, InFp32):
            module.__class__ = type(module.__class__.__name__, (InFp32, module.__class__), {})


class InFp32:
    """Mixed into a module's class by :func:`move`: its inputs are widened, and autocast is off inside, hooks
    included."""

    def __call__(self, *args, **kwargs):
        device = next((x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), None)
        args, kwargs = tree_map_only(Tensor, lambda x: wide(x) if x.dtype in REDUCED else x, (args, kwargs))
        with nullcontext() if device is None else full_precision(device):
            return super().__call__(*args, **kwargs)  # type: ignore[misc]  # the module's class comes after


def deviation(found: Any, right: Any) -> float:
    """The largest relative error of the floating-point tensors of two outputs of one structure; infinite where one is
    not finite and fp32's is. Tensors of one number are taken together."""
    pairs = [
        (wide(ours.detach()), wide(theirs.detach()))
        for ours, theirs in zip(tree_leaves(found), tree_leaves(right), strict=True)
        if isinstance(theirs, Tensor) and theirs.is_floating_point() and theirs.numel()
    ]
    numbers = [pair for pair in pairs if pair[1].numel() == 1]
    pairs = [pair for pair in pairs if pair[1].numel() > 1]
    if numbers:
        ours, theirs = (torch.cat([x.flatten() for x in column]) for column in zip(*numbers))
        pairs.append((ours, theirs))
    return max((_error(*pair) for pair in pairs), default=0.0)


def _error(found: Tensor, right: Tensor) -> float:
    known = right.isfinite()
    if not bool((found.isfinite() | ~known).all()):
        return float("inf")
    wrong, right = (found - right).where(known, 0.0), right.where(known, 0.0)
    norm = torch.linalg.vector_norm
    worst = (norm(wrong) / (norm(right) + 1e-6 * right.numel() ** 0.5)).item()
    for dim in range(right.dim()) if right.dim() > 1 else ():
        others = [d for d in range(right.dim()) if d != dim]
        wrong_n, size_n = norm(wrong, dim=others), norm(right, dim=others)
        # a quiet slice is measured by the typical one: beside the others its rounding is nothing
        typical = size_n.square().mean().sqrt() + 1e-6 * (right.numel() / len(size_n)) ** 0.5
        worst = max(worst, (wrong_n / size_n.clamp(min=typical.item())).max().item() / SLICE)
    return worst


def _deviations(
    parts: Mapping[str, nn.Module], call: Callable[[], Any], kind: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Each module's largest deviation, in the order in which the modules come to their ends: inner ones before those
    around them."""
    errors: dict[str, float] = {}
    inside = False

    def hook(name: str):
        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            nonlocal inside
            if inside:
                return
            inside = True
            try:
                if module._forward_pre_hooks:
                    # what they did to the inputs they do again below, and so here too
                    output = module(*args, **kwargs)
                with torch.autocast(device.type, kind):
                    again = module(*args, **kwargs)
            finally:
                inside = False
            errors[name] = max(errors.get(name, 0.0), deviation(again, output))

        return after

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in _named(parts)]
    try:
        with full_precision(device):
            call()
    finally:
        for handle in handles:
            handle.remove()
    return errors


def _named(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, as ``student.layers.3.ffn_in``."""
    seen: set[nn.Module] = set()
    for part, root in parts.items():
        for name, module in root.named_modules():
            if module not in seen:
                seen.add(module)
                yield f"{part}.{name}" if name else part, module


@contextmanager
def _undisturbed(models: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards modes and random generators are as they were."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        for module, _ in modes:
            module.training = False
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
