"""A study: every variant is trained for its time, measured and kept."""

import numpy as np
import pytest
import soundfile
import yaml
from tiny_pretrain import write_recipe, write_steps
from tiny_runs import Clock

from star_upstream import strict
from star_upstream.errors import StarError
from star_upstream.mini import study
from star_upstream.training import loop


def test_a_study_trains_each_variant_and_keeps_what_it_measured(tmp_path, capsys, monkeypatch):
    clips = tmp_path / "clips"
    write_steps(clips)
    write_recipe(tmp_path / "r.yaml")
    lines = "".join(
        f"{file}\t{soundfile.info(file).frames}\t{split}\tAA B\n"
        for split in ("train", "dev")
        for file in sorted(clips.iterdir())
    )
    (tmp_path / "pr.tsv").write_text("path\tsamples\tsplit\tphones\n" + lines)
    values = {
        "cpu_seconds": 3.0,
        "base": ["training.warmup=0.1"],
        "variants": {"plain": [], "wider": ["encoder.ffn=48"]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    files = {"--phones": "pr.tsv", "--out": "s", "--recipe": "r.yaml", "--study": "study.yaml"}
    call = [str(clips), *(str(word) for key, name in files.items() for word in (key, tmp_path / name))]
    monkeypatch.setattr(study.time, "process_time", Clock(0.2))
    before = loop.clock
    study.main(call)
    assert loop.clock is before
    first = capsys.readouterr().out
    assert first.count("\n") == 4 and "| plain | 0.0 |" in first and "| wider |" in first
    assert not list((tmp_path / "s").rglob("state.pt")) and len(list((tmp_path / "s").glob("*.npz"))) == 1
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "s").rglob("*.json")}
    study.main(call)
    assert capsys.readouterr().out == first and {f: f.stat().st_mtime_ns for f in kept} == kept
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**values, "cpu_seconds": 6.0}))
    with pytest.raises(StarError, match="was measured otherwise: training.minutes is 0.05 there and 0.1 here"):
        study.main(call)


def test_the_shipped_study_can_be_read():
    file = study.Path(study.__file__).with_name("study.yaml")
    plan = strict.build(study.Study, yaml.safe_load(file.read_text()), "study.yaml")
    made = {
        title: study.variant("hubert_mini", [*plan.base, *changes], ["x"], plan.cpu_seconds)
        for title, changes in plan.variants.items()
    }
    assert len(made) == 12 and all(recipe.encoder.stride == 320 for recipe in made.values())
    assert made["log-mel, 12 x 256"].encoder.layers == 12 and made["500 units"].rounds[0].units == 500
    assert np.isclose(made["no augmentation"].training.minutes, 15.0)
