"""s3prl's downstream runner itself (s3prl/run_downstream.py and s3prl/downstream/runner.py of the installed package),
watched.

What is run is the command line's: its arguments, its configuration file, its seeds, ``Runner.train``, its checkpoint,
and ``Runner.evaluate`` from that. Nothing of s3prl is replaced but what :mod:`star_upstream.compat` mends and what
:func:`surroundings` says; hooks on its modules note what goes through them.

Shapes: T frames, S speakers.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import random
import sys
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from pipelines import Case, Pipeline

import star_upstream
from eval.features.upstreams import unseeded
from star_upstream import compat
from star_upstream.errors import StarError

NEVER = 10**9
PART = Path("s3prl", "downstream", "ctc")
"""Of the repository: what the wheel has only a part of."""


@dataclass
class Run:
    """What went through the runner."""

    batches: list[tuple[Any, ...]] = field(default_factory=list)
    """Of each training batch what came with the waveforms: labels, names."""
    losses: list[float] = field(default_factory=list)
    initial: list[torch.Tensor] = field(default_factory=list)
    """The head's parameters before the first update."""
    answers: dict[str, Any] = field(default_factory=dict)
    """On test, by the item's name."""
    said: list[str] = field(default_factory=list)
    """The scores that its evaluation of test printed."""
    seconds: float = 0.0


def run(pipeline: Pipeline, case: Case, upstream: str, seed: int, checkout: Path | None = None) -> Run:
    """Train and test. ``upstream``: one of star_upstream's names in s3prl's hub. ``checkout``: s3prl's repository, for
    what the wheel lacks."""
    star_upstream.register()
    compat.apply_legacy_runner()
    found, begun = Run(), time.perf_counter()
    schedule = case.schedule
    config = {
        "runner": {
            "total_steps": schedule.steps,
            "gradient_clipping": schedule.clip,
            "gradient_accumulate_steps": schedule.accumulate,
            "log_step": NEVER,
            "eval_step": schedule.steps,
            "save_step": schedule.steps,
            "max_keep": 1,
            "eval_dataloaders": list(pipeline.dev),
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": schedule.optimizer, "lr": schedule.lr},
        "downstream_expert": pipeline.config(case),
    }
    if pipeline.specaug:
        config["specaug"] = _specaug(schedule.head["specaug_conf"])
    results = case.work / "result"
    settings = case.file("config.yaml", yaml.safe_dump(_plain(config)))
    train = ["-m", "train", "-u", upstream, "-d", pipeline.expert, "-c", settings, "-p", str(results)]
    with surroundings(pipeline, case.work, checkout) as saved:
        with _silent(case.work / "train.log"):
            runner = _runner([*train, "--seed", str(seed), "--device", "cpu"])
            found.initial = [p.detach().clone() for p in runner.downstream.model.parameters()]
            _watch(runner.downstream.model, found)
            runner.train()
        best, last = results / pipeline.best, results / f"states-{schedule.steps}.ckpt"
        chosen = best if best.is_file() else last  # asr keeps no best one while its word error rate is 100 %
        test = ["-m", "evaluate", "-t", pipeline.test, "-e", str(chosen)]
        log = case.work / "test.log"
        with _silent(log):
            runner = _runner([*test, "--device", "cpu"])
            records = _evaluated(runner)
        found.answers = pipeline.answers(saved or records)
    words = log.read_text(encoding="utf-8").splitlines()
    found.said = [line for line in words if line.startswith((f"{pipeline.test} ", f"mode {pipeline.test} ", "sv-"))]
    found.seconds = time.perf_counter() - begun
    return found


def check(pipeline: Pipeline, checkout: Path | None) -> None:
    """Raises :class:`StarError` where the recipe needs what only s3prl's repository has, and that is not given."""
    if pipeline.needs_checkout and (checkout is None or not (checkout / PART / "corpus").is_dir()):
        fix = "give --checkout, s3prl's repository at 0.4.18 (commit ec8064b5)"
        raise StarError(f"the s3prl wheel lacks downstream/ctc/corpus, which this task's recipe imports: {fix}")


def _runner(arguments: Sequence[str]) -> Any:
    """The runner that s3prl's command line makes of these arguments, with the seeds that it sets before."""
    from s3prl import run_downstream
    from s3prl.utility.helper import hack_isinstance

    hack_isinstance()
    with mock.patch.object(sys, "argv", ["run_downstream.py", *arguments]):
        options, config, _ = run_downstream.get_downstream_args()
    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)
    return run_downstream.Runner(options, config)


def _watch(expert: torch.nn.Module, found: Run) -> None:
    """Note each training batch and its loss."""

    def after(module: torch.nn.Module, arguments: tuple, keywords: dict, loss: torch.Tensor) -> None:
        if module.training:
            found.batches.append(tuple(arguments[2:]))
            found.losses.append(float(loss.detach()))

    expert.register_forward_hook(after, with_kwargs=True)


def _evaluated(runner: Any) -> dict[str, Any]:
    """Its evaluation, and the records that it gathers for its score."""
    kept: list[dict[str, Any]] = []

    def after(module: torch.nn.Module, arguments: tuple, keywords: dict, loss: torch.Tensor) -> None:
        kept[:] = [keywords["records"]]

    runner.downstream.model.register_forward_hook(after, with_kwargs=True)
    runner.evaluate()
    return kept[0]


@contextlib.contextmanager
def surroundings(pipeline: Pipeline, work: Path, checkout: Path | None) -> Iterator[dict[str, np.ndarray]]:
    """What the recipes find around them besides :mod:`star_upstream.compat`'s mends:

    - packages that they import and a run on one CPU does not use (``catalyst``, ``sox``), and ``h5py``, whose place a
      dictionary takes: it is yielded, and holds what diarization saves;
    - folders for the lists that two recipes keep inside the installed package, and threads in the place of twelve
      processes;
    - ``isinstance``, around which s3prl's command line puts one of its own, as it was, afterwards;
    - ``Tensor.cuda``, which speaker verification calls, gives the tensor itself where there is no such device;
    - ``downstream/ctc/corpus``, which the wheel lacks, from ``checkout``.
    """
    import importlib

    import joblib

    saved: dict[str, np.ndarray] = {}
    stand_ins = {
        "catalyst": types.ModuleType("catalyst"),
        "catalyst.data": types.ModuleType("catalyst.data"),
        "catalyst.data.sampler": _module("catalyst.data.sampler", DistributedSamplerWrapper=None),
        "sox": _module("sox", Transformer=None),
        "h5py": _module("h5py", File=lambda path, mode: _Saved(Path(path).stem, saved)),
    }
    package = importlib.import_module("s3prl.downstream")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, stand_ins))
        stack.enter_context(mock.patch.object(builtins, "isinstance", isinstance))
        stack.enter_context(joblib.parallel_config(backend="threading"))
        if pipeline.needs_checkout and checkout is not None:
            place = checkout / PART
            ctc = importlib.import_module(f"{package.__name__}.ctc")
            stack.enter_context(mock.patch.object(ctc, "__path__", [*ctc.__path__, str(place)]))
        if pipeline.expert == "voxceleb1":
            data = importlib.import_module(f"{package.__name__}.voxceleb1.dataset")
            stack.enter_context(mock.patch.object(data, "CACHE_PATH", str(work / "paths")))
        if pipeline.expert == "sv_voxceleb1":
            data = importlib.import_module(f"{package.__name__}.sv_voxceleb1.dataset")
            stack.enter_context(mock.patch.object(data, "__file__", str(work / "dataset.py")))
        if not torch.cuda.is_available():
            stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor))
        yield saved


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


class _Saved:
    """An ``h5py.File`` as far as diarization goes: one data set, kept in a dictionary."""

    def __init__(self, name: str, saved: dict[str, np.ndarray]):
        self.name, self.saved = name, saved

    def __enter__(self) -> _Saved:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def create_dataset(self, name: str, data: np.ndarray) -> None:
        self.saved[self.name] = np.array(data)


def _specaug(ours: dict[str, Any]) -> dict[str, Any]:
    """s3prl's ``specaug`` with our widths and numbers; what ours leaves out is as in the configurations of v0.4.18."""
    published = {"apply_time_warp": True, "apply_time_mask": True, "apply_freq_mask": True, "time_warp_window": 5}
    return {"adaptive": False, **published, **ours}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _silent(log: Path) -> Iterator[None]:
    """s3prl's words go to a file, its progress bars nowhere; the generators that it seeds are put back."""
    with (
        log.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(io.StringIO()),
        unseeded(),
    ):
        yield
