"""What these scripts use of ``eval``: the only module here that imports it."""

from eval import encode, tasks, train
from eval.machine import environment
from eval.probe import Probe, Schedule, Task
from eval.run import _data as corpora_folder
from eval.store import Store
from eval.upstreams import Upstream, unseeded
from eval.upstreams import load as load_upstream
from star_upstream.say import say

__all__ = [
    "Probe",
    "Schedule",
    "Store",
    "Task",
    "Upstream",
    "corpora_folder",
    "encode",
    "environment",
    "load_upstream",
    "say",
    "tasks",
    "train",
    "unseeded",
]
