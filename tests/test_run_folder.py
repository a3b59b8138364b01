"""What a run leaves: its log and its checkpoints, also where it was cut off; how processes wait for the first."""

import os
from types import SimpleNamespace

import pytest
from test_jobs import _soon

from star_upstream.errors import StarError
from star_upstream.training import recipe, run_folder
from star_upstream.training.run_folder import RunFolder


def test_log_forgets_what_a_resumed_run_writes_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open_log(0)
    folder.log({"update": 1, "train/loss": 0.1})
    folder.log({"update": 2, "train/loss": 1 / 3})
    folder.log({"update": 2, "valid/loss": 5.0})
    folder.log({"update": 3, "train/loss": 0.3})
    with open(tmp_path / "log.csv", "a") as file:
        file.write("4,0.")  # cut short by a kill
    again = RunFolder(tmp_path)
    again.open_log(2)
    again.log({"update": 3, "train/loss": 0.3, "valid/loss": 4.0})
    assert (
        tmp_path / "log.csv"
    ).read_text() == f"update,train/loss,valid/loss\n1,0.1,\n2,{1 / 3!r},\n2,,5.0\n3,0.3,4.0\n"


def test_a_checkpoint_lost_in_a_replacement_is_put_back(tmp_path):
    run_folder.outputs.claim_folder(tmp_path, "star distill")
    (tmp_path / ".best.123.old").mkdir()
    asked = recipe.load("star_mini")
    (tmp_path / "recipe.yaml").write_text(recipe.dump(asked))
    assert run_folder.RunFolder(tmp_path).claim(asked) == "unfinished"
    assert (tmp_path / "best").is_dir()


def test_the_first_process_touches_its_lock_as_long_as_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "BEAT", 0.01)
    folder = RunFolder(tmp_path / "run", lead=True)
    assert folder.claim(None) == "new"
    for _ in range(2):
        os.utime(folder.lock, (1, 1))
        assert _soon(lambda: folder.lock.stat().st_mtime > 1)


@pytest.mark.parametrize("minutes", [14, 17])
def test_others_wait_for_hours_but_not_for_one_that_is_gone(tmp_path, monkeypatch, minutes):
    """A sign of life every so many minutes, and after ten of them the file."""
    folder, file = RunFolder(tmp_path, lead=False).inner("round1"), tmp_path / "units.npz"
    clock = SimpleNamespace(now=0.0, signs=0)

    def sleep(seconds):
        clock.now += 60
        if clock.now % (60 * minutes) == 0:
            clock.signs += 1
            (tmp_path / ".lock").touch()
            os.utime(tmp_path / ".lock", (clock.signs, clock.signs))
        if clock.signs == 10:
            file.touch()

    monkeypatch.setattr(run_folder, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    if minutes < 15:
        folder.wait_for(file)
        assert clock.now == 600 * minutes
    else:
        with pytest.raises(StarError, match=r"units\.npz: is not written, and the first process .* for 15 minutes"):
            folder.wait_for(file)
