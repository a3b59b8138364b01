"""star_upstream/heap.py: freed memory stays with a process, until the end."""

import os
import resource
import subprocess
import sys

SCRIPT = """
import resource, torch
from star_upstream import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

faults()
usual = faults()
with heap.kept() as said:
    faults()
    kept, full = faults(), resident()
print(said, usual, kept, full - resident())
"""


def run(**variables):
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    said, *counts = done.stdout.split()
    return said == "True", *map(int, counts)


def test_a_block_that_was_freed_is_there_for_the_next():
    pages = 20 * (64 << 20) // resource.getpagesize()
    said, usual, kept, given_back = run()
    assert said and usual > pages // 2 > 100 * kept
    assert given_back > 60 << 20


def test_what_the_user_decides_about_memory_stays():
    said, usual, kept, _ = run(MALLOC_ARENA_MAX="2")
    assert not said and kept > usual // 2
