"""Our checkpoint format: a round trip, what damage says, and replacing that survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from star_upstream import checkpoint
from star_upstream.encoder import Encoder, EncoderConfig, RelativePosition
from star_upstream.errors import StarError

CONFIG = EncoderConfig(
    conv_layers=((8, 10, 5), (8, 3, 2)),
    width=16,
    heads=(2, 1),
    head_width=8,
    ffn=(12, 0),
    layers=2,
    position_kernel=8,
    position_groups=2,
    relative_position=RelativePosition(8, 20, 2, ((0, 1), (1,))),
    output_projection=4,
    hidden_states="projections",
    normalize_waveform=True,
)
WAVES = torch.linspace(-0.5, 0.5, 1200).sin().view(2, 600)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(CONFIG).eval()


@pytest.fixture
def folder(encoder, tmp_path) -> Path:
    checkpoint.save(tmp_path / "model", encoder, {"made": "by a test"})
    return tmp_path / "model"


@torch.no_grad()
def test_round_trip(encoder, folder):
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    for path in (folder, folder / "config.json", folder / "model.safetensors"):
        assert checkpoint.is_checkpoint(path)
        again = checkpoint.load(path)
        assert again.config == CONFIG and not again.training
        for ours, theirs in zip(encoder(WAVES).states, again(WAVES).states):
            assert torch.equal(ours, theirs)
    assert checkpoint.describe(folder)["provenance"] == {"made": "by a test"}
    assert checkpoint.load(folder, reference_padding=True).reference_padding


@torch.no_grad()
def test_half_precision_is_smaller_and_widened_on_loading(encoder, tmp_path):
    checkpoint.save(tmp_path / "full", encoder, {})
    checkpoint.save(tmp_path / "half", encoder, {}, torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.75 * sizes[1]
    again = checkpoint.load(tmp_path / "half")
    assert all(p.dtype == torch.float32 for p in again.parameters())
    torch.testing.assert_close(again(WAVES).states[-1], encoder(WAVES).states[-1], atol=5e-3, rtol=0)


def test_digest_tells_models_apart_and_nothing_else(encoder, folder):
    assert checkpoint.digest(checkpoint.load(folder)) == checkpoint.digest(encoder)
    changed = checkpoint.load(folder)
    with torch.no_grad():
        changed.norm.bias[0] += 1e-3
    assert checkpoint.digest(changed) != checkpoint.digest(encoder)


def edit(folder: Path, **changes) -> None:
    content = json.loads((folder / "config.json").read_text())
    content.update(changes)
    (folder / "config.json").write_text(json.dumps(content))


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(**changes):
    def apply(folder):
        weights = load_file(folder / "model.safetensors")
        for name, tensor in changes.items():
            name = name.replace("__", ".")
            weights.pop(name, None)
            if tensor is not None:
                weights[name] = tensor
        save_file(weights, folder / "model.safetensors")

    return apply


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not json"),
        (lambda f: edit(f, format="other"), "not a star_upstream checkpoint"),
        (lambda f: edit(f, version=2), "version 2; this release reads 1"),
        (lambda f: edit(f, encoder={"wdith": 16}), "encoder.wdith: unknown key; did you mean 'width'?"),
        (without_weights, "no model.safetensors beside config.json"),
        (cut_weights, "damaged"),
        (change_weights(norm__bias=None), "missing: ['norm.bias']"),
        (change_weights(norm__extra=torch.zeros(1)), "not known: ['norm.extra']"),
        (change_weights(norm__bias=torch.zeros(15)), "norm.bias has shape [15], the configuration asks for [16]"),
    ],
    ids=["no config", "no json", "format", "version", "key", "no weights", "cut", "missing", "extra", "shape"],
)
def test_damage_is_one_clear_line(folder, damage, message):
    damage(folder)
    with pytest.raises(StarError) as error:
        checkpoint.load(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_other_folders_and_files_are_no_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    assert not checkpoint.is_checkpoint(tmp_path) and not checkpoint.is_checkpoint(tmp_path / "absent")
    with pytest.raises(StarError, match="not a star_upstream checkpoint"):
        checkpoint.describe(tmp_path)


def test_saving_replaces_a_checkpoint_and_leaves_what_lies_beside_it(encoder, folder):
    (folder / "notes.txt").write_text("mine")
    checkpoint.save(folder, encoder, {"made": "again"})
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert (folder / "notes.txt").read_text() == "mine"
    assert checkpoint.describe(folder)["provenance"] == {"made": "again"}
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


def test_a_failed_save_changes_nothing(encoder, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError):
        checkpoint.save(folder, encoder, {"loss": float("nan")})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


def test_a_kill_while_saving_leaves_a_readable_checkpoint(encoder, folder):
    """A process that saves over and over is killed: a whole checkpoint is there (under the old folder's temporary name, if the kill
    fell between the two renames)."""
    code = (
        "import sys; from star_upstream import checkpoint; encoder = checkpoint.load(sys.argv[1]); print('on', flush=True)\n"
        "while True: checkpoint.save(sys.argv[1], encoder, {'made': 'in a loop'})"
    )
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout.readline() == b"on\n"
        time.sleep(0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    survivors = [entry for entry in folder.parent.iterdir() if entry.is_dir() and checkpoint.is_checkpoint(entry)]
    assert any(checkpoint.digest(checkpoint.load(entry)) == checkpoint.digest(encoder) for entry in survivors)
