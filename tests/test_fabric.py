"""What :mod:`star_upstream.training.fabric` does with a model, in two processes."""

import json
import subprocess
import sys

import torch
from tiny_runs import PATIENCE, ROOT

TWO = """
import json, sys
import torch
from lightning.fabric import Fabric
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
