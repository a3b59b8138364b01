"""run_folder: the first process shows that it lives, and the others wait for as long as it does."""

import os
from types import SimpleNamespace

import pytest
from test_jobs import _soon

from star_upstream.errors import StarError
from star_upstream.training import run_folder
from star_upstream.training.run_folder import RunFolder


def test_the_first_process_touches_its_lock_as_long_as_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "BEAT", 0.01)
    folder = RunFolder(tmp_path / "run", lead=True)
    assert folder.claim(lambda text: "") == "new"
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
