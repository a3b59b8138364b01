"""Named pieces of work as jobs of one array, through submitit: on Slurm, or as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import cores, extras
from .errors import StarError
from .flags import flag
from .jobs import Ended, side_by_side
from .say import say

MINUTES = 24 * 60
"""A job's time on Slurm, unless ``time`` says another; a job that runs out of it, or gives way to another, is queued
again, three times at most for want of time."""
OURS = {
    "nodes",
    "ntasks_per_node",
    "array",
    "output",
    "error",
    "stderr_to_stdout",
    "additional_parameters",
    "map_count",
}
"""Of Slurm's parameters, those that are decided here."""
LOOK = 20.0
"""Seconds between looks at Slurm's queue; a job that is missing twice, and has no result, is lost."""
GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL for local jobs that are cancelled, as Slurm has it."""
_LISTS = {"setup", "teardown", "srun_args"}


@dataclass(frozen=True)
class Launch:
    """How a command starts its work."""

    jobs: int = flag("{works} at once, each a process with its log in --out, or a job (default 1)", 1)
    """Of Slurm's array, 1 is as many as Slurm starts."""
    launcher: Literal["local", "submitit"] = flag(
        "local (default: this process, or --jobs of them) or submitit (a job for each of the {works} that are missing, "
        "all of one array, with logs in --out/jobs)",
        "local",
    )
    cluster: Literal["auto", "slurm", "local", "debug"] = flag(
        "where submitit runs jobs: auto (default: slurm where srun is, else local), slurm, local (processes here, all "
        "at once) or debug (in this process)",
        "auto",
    )
    slurm: tuple[str, ...] = flag(
        "sbatch's parameters, as in partition=gpu time=600 (minutes) gpus_per_node=1 mem=32G", (), metavar="KEY=VALUE"
    )

    @property
    def away(self) -> bool:
        return self.launcher == "submitit"

    def check(self) -> None:
        """Raises :class:`StarError` for what cannot be, before anything runs."""
        if self.jobs < 1:
            raise StarError(f"--jobs {self.jobs}: must be at least 1")
        if self.away:
            extras.need("cluster")
            pairs(self.slurm)
        elif self.slurm or self.cluster != "auto":
            raise StarError("--slurm and --cluster are for --launcher submitit")


def pairs(words: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` words as sbatch's parameters, with underscores. Raises :class:`StarError`."""
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        key = key.lstrip("-").replace("-", "_")
        if not key or not sign or not value:
            raise StarError(f"--slurm {word}: expected KEY=VALUE, as in partition=gpu or gpus_per_node=1")
        if "." in key:
            raise StarError(f"--slurm {word}: is a recipe's key, it seems; write it before --slurm")
        if key in OURS:
            raise StarError(f"--slurm {word}: {key} is decided here, for each job is one process with its own log")
        if key == "time" and not value.isdigit():
            raise StarError(f"--slurm {word}: give time in minutes, as in time=240")
        found[key] = value
    return found


def each(
    work: Callable[[str], Any],
    names: Sequence[str],
    out: Path,
    launch: Launch,
    title: str,
    gpus: int,
    log: Callable[[str], Path],
) -> Iterator[Ended]:
    """``work(name)`` for each name, as ``launch`` says: :func:`.jobs.side_by_side`, or an :func:`array` in
    ``out/jobs``."""
    if launch.away and names:
        folder = (out / "jobs").absolute()
        say(f"submitted, a job each: {', '.join(names)}; what they say is in {folder}")
        yield from array(work, names, folder, launch, title, gpus)
    else:
        yield from side_by_side(work, names, launch.jobs, log)


def array(
    work: Callable[[str], Any],
    names: Sequence[str],
    folder: Path,
    launch: Launch,
    title: str,
    gpus: int = 0,
) -> Iterator[Ended]:
    """``work(name)`` for each name, as a job each of one array: how each ended, as it ends.

    ``work`` and its results must be picklable. ``folder``, which every node must see, takes what submitit writes:
    scripts, pickles and ``JOB/..._log.out``. ``title``: the array's name in Slurm's queue. ``gpus``: of each job,
    unless sbatch's parameters say. Jobs that have not ended when the caller stops early are cancelled; local ones do
    not outlive a killed caller either.

    Raises :class:`StarError` where submitit is not installed, Slurm is not there or refuses the jobs.
    """
    extras.need("cluster")
    import submitit

    chosen: str = launch.cluster
    slurm = pairs(launch.slurm)
    if chosen == "auto":
        chosen = submitit.AutoExecutor.which()
    if slurm and chosen != "slurm":
        raise StarError(f"--slurm: these jobs go to {chosen}, which takes none of it; leave it out, or --cluster slurm")
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=chosen)
    except RuntimeError:
        raise StarError(
            "--cluster slurm: there is no srun here; use --cluster local, or a node of the cluster"
        ) from None
    if chosen != "debug":
        executor.update_parameters(
            name=title,
            timeout_min=MINUTES if chosen == "slurm" else 30 * MINUTES,
            gpus_per_node=gpus if gpus and "gpus_per_node" not in slurm else None,
            stderr_to_stdout=True,
        )
    if chosen == "slurm":
        executor.update_parameters(**_parameters(slurm, launch.jobs))
    share = max(1, cores.available() // len(names)) if chosen == "local" else None
    try:
        with _environment(share):
            jobs: list[Any] = executor.map_array(_Work(work, os.getpid() if chosen == "local" else None), names)
    except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError, OSError) as error:
        raise StarError(f"the jobs were not taken: {' '.join(str(error).split())}") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr or error.output or b""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise StarError(f"the jobs were not taken: {' '.join(said.split()) or error}") from None
    left = {job.job_id: (job, name) for job, name in zip(jobs, names)}
    try:
        for job, there in _endings(jobs, chosen == "slurm"):
            _, name = left.pop(job.job_id)
            ended_well = there and job.exception() is None
            why = "" if ended_well else f"job {job.job_id} ended without a result{_state(job)}"
            yield Ended(name, job.result() if ended_well else None, why, Path(job.paths.stdout))
    finally:
        if chosen == "local":
            _end([job._process for job, _ in left.values()])
        else:
            for job, _ in left.values():
                job.cancel(check=False)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Not by submitit's SIGINT, which is ignored in whatever a script starts in its background."""
    for process in processes:
        process.terminate()
    limit = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()  # the job itself follows it
            process.wait()


def _endings(jobs: Sequence[Any], slurm: bool) -> Iterator[tuple[Any, bool]]:
    """Each job as it ends, and whether it has a result to ask for.

    One that left Slurm's queue without a result is lost: submitit asks sacct, which knows nothing where Slurm keeps no
    accounts, and would wait for ever.
    """
    left, gone, looked = list(jobs), set[str](), time.monotonic()
    while left:
        for job in list(left):
            if any(job.paths.folder.glob(job.paths.result_pickle.name)) if slurm else job.done():
                left.remove(job)
                yield job, True
        if slurm and time.monotonic() - looked > LOOK:
            looked, queue = time.monotonic(), _queue()
            for job in list(left):
                if queue is None or job.job_id in queue:
                    gone.discard(job.job_id)
                elif job.job_id not in gone:
                    gone.add(job.job_id)  # its result may still be on its way through a slow file system
                else:
                    left.remove(job)
                    yield job, False
        if left:
            time.sleep(1)


def _state(job: Any) -> str:
    state = job.state.lower()
    return "" if state == "unknown" else f" ({state})"


def _queue() -> set[str] | None:
    """Ids of this user's jobs that wait or run; None where Slurm does not answer."""
    told = subprocess.run(["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True)
    return None if told.returncode else set(told.stdout.split())


@dataclass(frozen=True)
class _Work:
    """What a job does; queued again, it does the same."""

    work: Callable[[str], Any]
    caller: int | None
    """The process that must not be outlived."""

    def __call__(self, name: str) -> Any:
        import torch

        if self.caller is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which submitit ignores
            threading.Thread(target=_follow, args=(self.caller,), daemon=True).start()
        torch.set_num_threads(min(torch.get_num_threads(), cores.available()))
        return self.work(name)

    def checkpoint(self, name: str) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self, name)


def _follow(caller: int) -> None:
    """End this job with the process that submitit starts for it, and with the caller."""
    parent = int(os.environ["SUBMITIT_LOCAL_JOB_ID"])
    try:
        while os.getppid() == parent:
            os.kill(caller, 0)
            time.sleep(0.5)
    except ProcessLookupError:
        pass
    os._exit(1)


@contextmanager
def _environment(share: int | None) -> Iterator[None]:
    """What the jobs inherit: where Python finds modules, as here, and each job's share of the cores."""
    mine = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if share is not None:
        mine[cores.LIMIT] = str(share)
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def _parameters(slurm: Mapping[str, str], jobs: int) -> dict[str, Any]:
    """submitit's names of sbatch's parameters; those that it does not know go to sbatch as they are. ``jobs``: at most
    so many at a time, beyond 1."""
    import submitit

    known = submitit.SlurmExecutor._valid_parameters()
    found: dict[str, Any] = {"slurm_array_parallelism": jobs} if jobs > 1 else {}
    other = {}
    for key, text in slurm.items():
        value: Any = int(text) if text.isdigit() else {"true": True, "false": False}.get(text.lower(), text)
        if key in known:
            found[f"slurm_{key}"] = [text] if key in _LISTS else value
        else:
            other[key] = value
    return {**found, "slurm_additional_parameters": other} if other else found
