"""The flags of a command are the fields of its options."""

import argparse
from pathlib import Path

import pytest

from eval import options
from star_upstream import cluster, flags


def parsed(*words):
    parser = argparse.ArgumentParser()
    flags.add(parser, options.Run, tasks="ks, pr")
    flags.add(parser, cluster.Launch, works="tasks")
    given = parser.parse_args(words)
    return flags.take(options.Run, given), flags.take(cluster.Launch, given)


def test_without_flags_the_fields_defaults_hold():
    assert parsed("--upstream", "fbank", "--out", "x") == (options.Run("fbank", Path("x")), cluster.Launch())


def test_every_flag_reaches_its_field():
    words = (
        "--upstream u --out o --tasks ks --data d --schedule superb --lr-grid 1e-3,0.01 --steps 5 --limit 6 --seed 7"
    )
    more = "--device cpu --cache c --cache-gb 0.5 --jobs 8 --exact --overwrite "
    more += "--launcher submitit --cluster slurm --slurm partition=gpu time=60"
    run, launch = parsed(*words.split(), *more.split())
    assert launch == cluster.Launch(8, "submitit", "slurm", ("partition=gpu", "time=60"))
    assert run == options.Run(
        upstream="u",
        out=Path("o"),
        tasks="ks",
        data="d",
        schedule="superb",
        lr_grid=(1e-3, 0.01),
        steps=5,
        limit=6,
        seed=7,
        device="cpu",
        cache=Path("c"),
        cache_gb=0.5,
        exact=True,
        overwrite=True,
    )


def test_a_path_may_begin_with_the_home_folder():
    assert parsed("--upstream", "u", "--out=~/x")[0].out == Path.home() / "x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--upstream u", "required: --out"),
        ("--upstream u --out o --steps many", "--steps: invalid int value: 'many'"),
        ("--upstream u --out o --lr-grid 1e-3;1e-2", "expected learning rates with commas between"),
    ],
)
def test_a_wrong_flag_is_named(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parsed(*words.split())
    assert message in capsys.readouterr().err
