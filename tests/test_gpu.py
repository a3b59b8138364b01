"""What to run first on a machine with a GPU (``make gpu-check``): every shipped recipe in small, in fp32 and in reduced
precision, and eval's encoding, against fp32 on the CPU.

``make test`` runs the same on the CPU, in bf16, for a recipe of each combination of losses. A recipe in small keeps all
but its sizes: layers, losses, pruning, order of batches, optimizer, schedule.
"""

import csv
import dataclasses
import json
import os
import zlib

import numpy as np
import pytest
import tiny_finetune
import torch
from tiny_runs import PATIENCE, start, voice, write_audio

from eval.features import encode, upstreams
from eval.features.encode import Window
from star_upstream import training
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.encoder.config import RelativePosition
from star_upstream.formats import checkpoint, sources
from star_upstream.training import finetune, pretrain
from star_upstream.training import recipe as recipes
from star_upstream.training.config import Recipe
from star_upstream.training.finetune_recipe import FinetuneRecipe
from star_upstream.training.pretrain_recipe import PretrainRecipe

GPUS = torch.cuda.device_count()
gpu = pytest.mark.gpu
without = pytest.mark.skipif(not GPUS, reason="no GPU here")
CPU, CUDA = pytest.param("cpu"), pytest.param("cuda", marks=[gpu, without])
TOLERANCE = {"32": (2e-3, 1e-2), "bf16-mixed": (0.02, 0.05), "16-mixed": (0.02, 0.05)}
"""Relative, of the first update's loss and of those after it: TF32 in convolutions, and AdamW's first steps, which are
as large for a small gradient as for a large one."""
NO_DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "feature_dropout"), 0.0)
LENGTHS = {"updates": 3, "epochs": None, "minutes": None}
STEPS = {
    "warmup": 0.0, "devices": 1, "log_every": 1, "validate_every": 3, "save_every": 3, "learning_rate": 1e-4,
}  # fmt: skip


def small(config: EncoderConfig) -> EncoderConfig:
    """The same structure with 32 channels and two heads."""
    last = len(config.conv_layers) - 1
    convs = [(32 if i == last else 8, kernel, stride) for i, (_, kernel, stride) in enumerate(config.conv_layers)]
    changes = {
        "conv_layers": tuple(convs), "width": 32, "heads": tuple(2 if n else 0 for n in config.heads), "head_width": 16,
        "ffn": tuple(48 if n else 0 for n in config.ffn), "position_kernel": 16, "position_groups": 4, **NO_DROPOUT,
    }  # fmt: skip
    if config.relative_position:
        changes["relative_position"] = RelativePosition(buckets=32, max_distance=64, total_heads=2)
    for name in ("output_projection", "prediction_width", "prediction_inner", "adapter"):
        changes[name] = 32 if getattr(config, name) else 0
    return dataclasses.replace(config, **changes)


def teacher_of(name: str) -> EncoderConfig:
    if name.startswith("star_"):
        return small(sources.load(name).config)
    return small(EncoderConfig(relative_position=RelativePosition() if "wavlm" in name else None))


def shrunk(recipe, folder, **training):
    """With a small teacher, small batches of the audio in ``folder``, and three updates."""
    changes = {"choices": {}, "about": "", "method": ""}
    if recipe.teacher is not None:
        config = teacher_of(recipe.teacher)
        teacher = folder / f"teacher-{config.layers}-{config.frontend}-{config.relative_position is not None}"
        if not teacher.exists():
            torch.manual_seed(0)
            checkpoint.save(teacher, Encoder(config), {})
        changes["teacher"] = str(teacher)
    data = {"train": (str(folder / "audio"),), "valid_share": 0.2, "min_seconds": 0.4, "max_seconds": 2.0, "workers": 0}
    data |= {"batch_seconds": 4.0, "batch_items": recipe.data.batch_items and 4}
    data["crop_seconds"] = recipe.data.crop_seconds and 0.8
    changes["data"] = dataclasses.replace(recipe.data, **data)
    settings = {**LENGTHS, **STEPS, "accumulate": min(2, recipe.training.accumulate)}
    changes["training"] = dataclasses.replace(recipe.training, **settings)
    return dataclasses.replace(recipe, **changes)


def distillation(name: str, folder) -> Recipe:
    recipe, changes = recipes.load(name), {}
    if recipe.student == "teacher":
        changes["student_changes"] = dataclasses.replace(recipe.student_changes, **NO_DROPOUT)
    else:
        changes["student"] = small(recipe.student)
    if recipe.pruning:
        second = dataclasses.replace(recipe.pruning.second, **LENGTHS, learning_rate=1e-4, warmup=0.0)
        changes["pruning"] = dataclasses.replace(recipe.pruning, second=second)
    return dataclasses.replace(shrunk(recipe, folder), **changes)


def pretraining(name: str, folder) -> PretrainRecipe:
    """Its first round."""
    recipe = recipes.load(name, [], PretrainRecipe)
    rounds = (dataclasses.replace(recipe.rounds[0], units=8, share=1.0, learning_rate=None),)
    encoder = recipe.encoder if recipe.encoder == "teacher" else small(recipe.encoder)
    return dataclasses.replace(shrunk(recipe, folder), rounds=rounds, encoder=encoder)


def pretrain_on_units(recipe: PretrainRecipe, out) -> None:
    """Every device learns the same units: its own may differ where a frame lies between two."""
    kept = out.parent / f"{zlib.crc32(repr((recipe.teacher, recipe.rounds)).encode())}.npz"
    pretrain.run(recipe, out, kept)


def finetuning(name: str, folder) -> FinetuneRecipe:
    recipe = recipes.load(name, [f"data={folder / 'tasks'}", f"encoder={folder / 'tasks' / 'encoder'}"], FinetuneRecipe)
    tasks = {
        name: dataclasses.replace(task, batch=4, embedding=task.embedding and 8, crop_seconds=task.crop_seconds and 0.4)
        for name, task in recipe.tasks.items()
    }
    data = dataclasses.replace(recipe.data, workers=0)
    settings = dataclasses.replace(recipe.training, **LENGTHS, **STEPS)
    return dataclasses.replace(recipe, tasks=tasks, data=data, training=settings, about="")


KINDS = {
    "": (distillation, training.run),
    "finetune": (finetuning, finetune.run),
    "pretrain": (pretraining, pretrain_on_units),
}
"""Folder within ``recipes/`` -> what makes one of its recipes small, and what runs it."""
FOUND = sorted(str(file.relative_to(Recipe.shipped).with_suffix("")) for file in Recipe.shipped.rglob("*.yaml"))


def make(name: str, folder):
    kind, _, short = name.rpartition("/")
    assert kind in KINDS, f"{name}: say in KINDS what makes such a recipe small"
    return KINDS[kind][0](short, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    os.environ["STAR_CACHE"] = str(folder / "cache")
    write_audio(folder / "audio", 20)
    tiny_finetune.make(folder / "tasks")
    yield folder
    del os.environ["STAR_CACHE"]


def losses(run) -> list[float]:
    """Of every update, those of every part of the run in order."""
    logs = sorted(run.rglob("log.csv"), key=lambda file: (file.parent == run, str(file)))
    rows = [row for file in logs for row in csv.DictReader(file.open(newline=""))]
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


@pytest.fixture(scope="module")
def run(folder):
    """``run(name, recipe, device, precision)``: the losses of the run, made once of those the same in small."""
    made: dict[tuple, list[float]] = {}

    def go(name: str, recipe, device: str, precision: str) -> list[float]:
        key = repr(recipe), device, precision
        if key not in made:
            where = {"accelerator": "gpu" if device == "cuda" else "cpu"}
            where["precision"] = 32 if precision == "32" else precision
            settings = dataclasses.replace(recipe.training, **where)
            out = folder / f"run{len(made)}"
            KINDS[name.rpartition("/")[0]][1](dataclasses.replace(recipe, training=settings), out)
            made[key] = losses(out)
        return made[key]

    return go


@pytest.fixture
def same_gates(monkeypatch):
    """Gates are drawn on the CPU, where every device draws the same."""
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.rand(x.shape, dtype=x.dtype).to(x.device))


def check(found, right, precision):
    assert len(found) == len(right) >= 3 and np.isfinite(found).all()
    first, others = TOLERANCE[precision]
    size = max(map(abs, right))  # a loss may pass through zero
    assert found[0] == pytest.approx(right[0], rel=first, abs=first * size / 2)
    assert found[1:] == pytest.approx(right[1:], rel=others, abs=others * size / 2)
    assert right[0] != right[-1]


def compare(name, recipe, run, device, precision):
    check(run(name, recipe, device, precision), run(name, recipe, "cpu", "32"), precision)


@gpu
@without
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", FOUND)
def test_every_recipe_on_the_gpu(name, precision, folder, run, same_gates):
    compare(name, make(name, folder), run, "cuda", precision)


@gpu
@without
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_compiled_run_on_the_gpu(precision, folder, run):
    recipe = distillation("star_hubert", folder)
    compiled = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, compile="inductor"))
    check(run("star_hubert", compiled, "cuda", precision), run("star_hubert", recipe, "cpu", "32"), precision)


def test_every_combination_of_losses_in_bf16(folder, run, same_gates):
    """On the CPU, in the recipe of the fewest layers."""
    found: dict[tuple, tuple] = {}
    for name in FOUND:
        recipe = make(name, folder)
        losses_ = name.rpartition("/")[0], *getattr(recipe, "loss", ()), *getattr(recipe, "tasks", ())
        model = getattr(recipe, "student", "teacher") if losses_[0] != "pretrain" else recipe.encoder
        size = 12 if isinstance(model, str) else model.layers
        if "mini" not in name:
            size += 12
        if losses_ not in found or size < found[losses_][0]:
            found[losses_] = size, name, recipe
    assert {"star_mini", "dphubert_mini", "skill_mini", "distil_mini"} <= {name for _, name, _ in found.values()}
    for _, name, recipe in found.values():
        compare(name, recipe, run, "cpu", "bf16-mixed")


def test_a_difference_would_be_seen():
    for wrong in ([1.05, 0.9, 0.8], [1.0, 0.7, 0.8], [1.0, float("nan"), 0.8], [1.0, 0.9]):
        with pytest.raises(AssertionError):
            check(wrong, [1.0, 0.9, 0.8], "bf16-mixed")


# evaluation


@pytest.fixture(scope="module")
def windows(folder):
    """Utterances of up to 2 s."""
    random = np.random.default_rng(1)
    (folder / "long").mkdir()
    found = []
    for i in range(8):
        samples = 16_000 + 2_000 * i
        np.save(folder / "long" / f"{i}.npy", voice(samples / 16_000, random)[:samples])
        found.append(Window(str(folder / "long" / f"{i}.npy"), 0, samples))
    return found


@pytest.fixture
def waves(windows, monkeypatch):
    monkeypatch.setattr(encode, "waveform", lambda window, effects: np.load(window.path))
    return [np.load(window.path) for window in windows]


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("kind", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["star_mini", "star_mini_teacher", "fbank"])
def test_encoding_is_that_of_the_cpu(name, kind, device, waves):
    right = upstreams.load(name, "cpu").encode(waves[:1])
    upstream = upstreams.load(name, device)
    upstream.autocast = kind if upstream.parameters else None
    upstream.settle(waves[:1])
    found = upstream.encode(waves[:1])
    scale = right[0].square().mean().sqrt()
    assert found[0].shape == right[0].shape
    assert (found[0] - right[0]).square().mean().sqrt() < (0.05 if kind else 2e-3) * scale


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_out_of_memory_is_recovered_from(device, windows, waves, monkeypatch, capsys):
    upstream = upstreams.load("star_mini_teacher", device)
    upstream.autocast = None
    right = {i: states for i, states, _ in encode._encode(windows, upstream, ())}
    upstream.batch_seconds = 40.0
    if device == "cpu":
        forward = upstream.expert.forward

        def limited(wavs):
            if len(wavs) > 2:
                raise torch.OutOfMemoryError("no memory")
            return forward(wavs)

        monkeypatch.setattr(upstream.expert, "forward", limited)
        found = {i: states for i, states, _ in encode._encode(windows, upstream, ())}
    else:
        torch.cuda.empty_cache()
        held = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        upstream.encode(waves)
        needed = torch.cuda.max_memory_reserved() - held
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + needed / 2
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
        try:
            found = {i: states for i, states, _ in encode._encode(windows, upstream, ())}
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert f"out of memory on {upstream.device}" in capsys.readouterr().err and upstream.batch_seconds < 40.0
    assert found.keys() == right.keys()
    for i, states in found.items():
        assert torch.allclose(states, right[i], atol=2e-3 * float(right[i].abs().max()))


# several devices


@gpu
@pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} GPUs here, two are needed")
@pytest.mark.parametrize("shared", [False, True], ids=["whole teacher", "shared teacher"])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_two_gpus_are_two_processes_on_the_cpu(precision, shared, folder):
    recipe = distillation("star_mini", folder)
    (folder / "two.yaml").write_text(recipes.dump(recipe))
    found = {}
    for device, kind in (("cpu", "32"), ("gpu", precision)):
        out = folder / f"two-{device}-{precision}-{shared}"
        words = ["distill", folder / "two.yaml", "training.devices=2", f"training.accelerator={device}"]
        words.append(f"training.shard_teacher={shared and device == 'gpu'}".lower())
        process = start([*words, f"training.precision={kind}"], out)
        _, told = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, told.decode()
        found[device] = losses(out)
        assert json.loads((out / "done.json").read_text())["updates"] == 3
    check(found["gpu"], found["cpu"], precision)
