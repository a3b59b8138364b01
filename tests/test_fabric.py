"""What :mod:`star_upstream.training.fabric` does with models: shared by two processes, and compiled."""

import json
import subprocess
import sys

import pytest
import torch
from tiny_runs import PATIENCE, ROOT, log, write_audio
from torch._dynamo.utils import counters

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.formats import checkpoint
from star_upstream.training import distill, recipe

TWO = """
import json, sys
import torch
from lightning_fabric import Fabric
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.training import fabric

torch.manual_seed(0)
convs = ((8, 10, 5), (16, 3, 4), (16, 3, 4), (24, 2, 4))
model = Encoder(EncoderConfig(conv_layers=convs, width=32, layers=3, heads=2, head_width=16, ffn=48,
                              position_kernel=16, position_groups=4)).requires_grad_(False).eval()
processes = Fabric(accelerator="cpu", devices=2)
processes.launch()
torch.manual_seed(processes.global_rank)
waves_BN = torch.randn(2, 8000)
with torch.no_grad():
    whole = model(waves_BN).states
    fabric.shard(model, processes)
    shared = [model(waves_BN).states for _ in range(2)]
error = max((a - b).abs().max().item() for states in shared for a, b in zip(whole, states))
held = [sum(getattr(w, "to_local", lambda: w)().numel() for w in layer.parameters()) for layer in model.layers]
found = fabric.everyones(processes, (error, held))
if processes.is_global_zero:
    print(json.dumps([found, [sum(w.numel() for w in layer.parameters()) for layer in model.layers]]))
"""


def test_each_process_keeps_its_share_of_the_layers_and_computes_with_all_of_them(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads()), "PATH": ""}
    done = subprocess.run(
        [sys.executable, tmp_path / "two.py"], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    found, sizes = json.loads(done.stdout.splitlines()[-1])
    assert [error for error, _ in found] == [0.0, 0.0]
    assert [first + second for first, second in zip(*(held for _, held in found))] == sizes
    assert all(max(first, second) <= 0.55 * size for first, second, size in zip(found[0][1], found[1][1], sizes))


def test_a_compiled_run_has_the_losses_of_one_that_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    write_audio(tmp_path / "audio", 12)
    convs = ((8, 10, 5), (16, 3, 4), (16, 3, 4), (24, 2, 4))
    sizes = {"conv_layers": convs, "position_kernel": 16, "position_groups": 4, "layers": 2, "heads": 2, "ffn": 32}
    checkpoint.save(tmp_path / "teacher", Encoder(EncoderConfig(**sizes, width=32, head_width=16)), {})
    words = [
        *(f"teacher={tmp_path / 'teacher'}", f"data.train={tmp_path / 'audio'}", "student.frontend=mel"),
        *("data.min_seconds=0.4", "data.max_seconds=2", "data.batch_seconds=4", "data.workers=0"),
        *("training.minutes=null", "training.updates=4", "training.log_every=1", "training.precision=bf16-mixed"),
    ]
    words += ["student.conv_layers=[[128, 3, 1], [128, 3, 2]]", "student.layers=2", "student.dropout=0.1"]
    rows = {}
    for backend in ("null", "eager"):
        counters.clear()
        distill.run(recipe.load("star_mini", [*words, f"training.compile={backend}"]), tmp_path / f"run{backend}")
        rows[backend] = log(tmp_path / f"run{backend}")
        assert bool(counters["stats"]["unique_graphs"]) == (backend == "eager")
    for plain, compiled in zip(rows["null"], rows["eager"], strict=True):
        for name in ("train/loss", "valid/loss"):
            assert float(plain[name] or 0) == pytest.approx(float(compiled[name] or 0), rel=1e-3)
