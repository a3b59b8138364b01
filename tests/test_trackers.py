"""Trackers: their numbers are the log's, a resumed run goes on in them, and none of them can stop a run."""

import csv

import pytest
from lightning_fabric.loggers import TensorBoardLogger
from tiny_pretrain import write_recipe, write_steps

from star_upstream import extras
from star_upstream.errors import StarError
from star_upstream.training import pretrain, recipe, trackers
from star_upstream.training.pretrain_recipe import PretrainRecipe
from star_upstream.training.run_folder import RunFolder, read_log


def run(folder, *overrides):
    if not (folder / "clips").is_dir():
        write_steps(folder / "clips", 6)
    file = write_recipe(folder / "r.yaml", rounds=[{"features": "mfcc", "units": 4}], training={"updates": 3})
    asked = recipe.load(file, [f"data.train={folder / 'clips'}", *overrides], PretrainRecipe)
    return pretrain.run(asked, folder / "run").parent


def test_csv_has_what_the_log_has(tmp_path):
    made = run(tmp_path, "training.trackers=[csv]")
    with open(made / "csv" / "version_0" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    table = read_log(made)
    wanted = table[table["train/loss"].notna()]["train/loss"].tolist()
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(wanted) and len(rows) == 3
    assert list((made / "tensorboard").glob("events*"))


def test_a_tracker_that_fails_is_left_behind_and_said(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", full)
    made = run(tmp_path)
    said = capsys.readouterr().err
    assert said.count("tensorboard cannot be written to ([Errno 28] No space left on device)") == 1
    assert len(read_log(made)) == 4


def test_what_is_not_installed_is_named_before_the_first_update(tmp_path, monkeypatch):
    installed = extras.installed
    monkeypatch.setattr(extras, "installed", lambda name: name != "wandb" and installed(name))
    with pytest.raises(StarError, match=r"trackers: not installed: .*wandb.*pip install 'star-upstream\[wandb\]'"):
        run(tmp_path, "training.trackers=[wandb]")
    with pytest.raises(StarError, match="expected a list of 'csv' or 'wandb' or 'mlflow'|expected 'csv' or"):
        run(tmp_path, "training.trackers=[wundb]")


def test_a_run_keeps_its_name_with_a_tracker(tmp_path):
    folder = RunFolder(tmp_path, lead=True)
    first, again = (trackers.Trackers((), folder) for _ in range(2))
    assert first._id("wandb") is None and first._id("wandb", "abcd") == again._id("wandb", "other") == "abcd"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_offline_they_write_beside_the_run(tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    pytest.importorskip("pytorch_lightning")
    for variable in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = run(tmp_path, f"training.trackers=[{name}]")
    assert (made / {"wandb": "wandb", "mlflow": "mlflow.db"}[name]).exists()
    assert (made / "trackers.json").is_file()
