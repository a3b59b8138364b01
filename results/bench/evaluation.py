"""What these scripts use of ``eval``: the only module here that imports it."""

from eval import tasks
from eval.features import encode
from eval.features.exact import Padded
from eval.features.store import Store
from eval.features.upstreams import Upstream, unseeded
from eval.features.upstreams import load as load_upstream
from eval.heads import train
from eval.heads.probe import Probe, Schedule, Task
from eval.machine import environment
from eval.run import corpora_folder
from star_upstream.say import say

__all__ = [
    "Padded",
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
