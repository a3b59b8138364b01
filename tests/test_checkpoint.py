"""Our checkpoint format: a round trip, what damage says, and replacing that survives a kill."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from star_upstream import strict
from star_upstream.encoder import Encoder, EncoderConfig, RelativePosition
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint
from star_upstream.mini import SHIPPED

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


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_a_flipped_bit_in_the_weights_is_an_error(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(begin, len(whole), 997), len(whole) - 1]:
        file.write_bytes(flipped(whole, place, place % 8))
        with pytest.raises(StarError, match="model.safetensors: not the weights that its configuration was saved with"):
            checkpoint.load(folder)
    for place in range(0, begin, 61):
        file.write_bytes(flipped(whole, place, place % 8))
        try:
            checkpoint.load(folder)
        except StarError:
            continue
        assert load_file(file).keys() and checkpoint.tensors_digest(load_file(file)) == checkpoint.tensors_digest(
            checkpoint.load(folder).state_dict()
        )
    file.write_bytes(whole)
    checkpoint.load(folder)


def test_no_damage_to_the_configuration_loads(folder):
    """One bit of every third byte, one character of every fifth: refused, unless json reads the same values (1E-5)."""
    file = folder / "config.json"
    whole = file.read_bytes()
    content = json.loads(whole)
    damaged = [flipped(whole, place, place % 7) for place in range(0, len(whole), 3)]
    damaged += [whole[:place] + b"7" + whole[place + 1 :] for place in range(0, len(whole), 5)]
    for text in damaged:
        file.write_bytes(text)
        try:
            found = checkpoint.describe(folder)
        except StarError as error:
            assert "\n" not in str(error)
            continue
        assert found == content
    file.write_bytes(whole.replace(b'"sha256"', b'"shb256"'))
    with pytest.raises(StarError, match="unknown key 'shb256': damaged, or of a newer star_upstream"):
        checkpoint.load(folder)
    file.write_bytes(whole.replace(b'"norm_epsilon": 1e-05', b'"norm_epsilon": 1e-06'))
    with pytest.raises(StarError, match="config.json: not as it was saved .sha256.: damaged"):
        checkpoint.load(folder)


def test_weights_of_another_checkpoint_are_told_and_old_checkpoints_load(encoder, folder, tmp_path):
    with torch.no_grad():
        encoder.norm.bias[0] += 1e-3
    checkpoint.save(tmp_path / "other", encoder, {})
    (folder / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(StarError, match="damaged, or exchanged"):
        checkpoint.load(folder)
    content = json.loads((folder / "config.json").read_text())
    del content["tensors_sha256"], content["sha256"]  # as written before there were digests
    (folder / "config.json").write_text(json.dumps(content))
    assert checkpoint.digest(checkpoint.load(folder)) == checkpoint.digest(encoder)


def test_the_shipped_models_and_files_of_one_piece_keep_a_digest(encoder, tmp_path):
    for place in SHIPPED.values():
        assert {len(checkpoint.describe(place)[key]) for key in ("tensors_sha256", "sha256")} == {64}
    weights = {f"encoder.{k}": v.contiguous() for k, v in encoder.state_dict().items()}
    for name, save, load in (
        (
            "one.safetensors",
            lambda p: checkpoint.save_single(p, weights, {"encoder": strict.plain(encoder.config)}),
            checkpoint.load,
        ),
        ("gates.safetensors", lambda p: checkpoint.save_tensors(p, weights), checkpoint.load_tensors),
    ):
        save(tmp_path / name)
        load(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for place in (len(whole) - 1, len(whole) - 501):
            (tmp_path / name).write_bytes(flipped(whole, place, 0))
            with pytest.raises(StarError, match="not the weights"):
                load(tmp_path / name)


def test_digest_of_quantised_and_of_half_models(encoder, tmp_path):
    digests = [
        checkpoint.digest(encoder),
        checkpoint.digest(copy.deepcopy(encoder).bfloat16()),
        checkpoint.digest(copy.deepcopy(encoder).half()),
    ]
    engine = next((e for e in ("x86", "qnnpack", "fbgemm") if e in torch.backends.quantized.supported_engines), None)
    if engine is not None:
        torch.backends.quantized.engine = engine
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = [
                torch.ao.quantization.quantize_dynamic(copy.deepcopy(encoder), {torch.nn.Linear}) for _ in range(2)
            ]
        assert checkpoint.digest(quantised[0]) == checkpoint.digest(quantised[1])
        digests.append(checkpoint.digest(quantised[0]))
        with pytest.raises(StarError, match="a quantised model is not kept in this format"):
            checkpoint.save(tmp_path / "quantised", quantised[0], {})
    assert len(set(digests)) == len(digests)
    with pytest.raises(StarError, match="has no values to take a digest of"):
        checkpoint.digest(copy.deepcopy(encoder).to("meta"))


def edit(folder: Path, **changes) -> None:
    content = json.loads((folder / "config.json").read_text())
    content.update(changes)
    content.pop("sha256", None)
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
    """A process that saves over and over is killed: a whole checkpoint is there (under the old folder's temporary name,
    if the kill fell between the two renames)."""
    code = (
        "import sys; from star_upstream.formats import checkpoint; encoder = checkpoint.load(sys.argv[1]); print('on', "
        "flush=True)\n"
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
