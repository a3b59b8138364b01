"""docs/methods.md says what the recipes and published.csv say."""

import csv
import re
from pathlib import Path

import pytest

from star_upstream.encoder.size import parameters
from star_upstream.training import recipe

ROOT = Path(__file__).parents[1]
LINES = re.findall(r"^\| (`.+`) \| .+ \| `(\w+)` \| ([\d.]+) \| (.+) \|$", (ROOT / "docs/methods.md").read_text(), re.M)
PUBLISHED = list(csv.DictReader((ROOT / "eval/report/published.csv").open(encoding="utf-8")))


@pytest.mark.parametrize(("names", "loss", "millions", "scores"), LINES)
def test_a_line_of_the_page(names, loss, millions, scores):
    for name in re.findall(r"`(\w+)`", names):
        loaded = recipe.load(name)
        assert list(loaded.loss) == [loss]
        if loaded.student != "teacher" and loss in ("star", "masked"):
            assert f"{parameters(loaded.student) / 1e6:.2f}" == millions
        overall, _, general = (part.strip("– ") for part in scores.partition(","))
        if overall or general:
            rows = [row for row in PUBLISHED if row["method"] == loaded.method and row["params_m"] == millions]
            hours = "100h" if name.endswith("_100h") else "960h"
            found = [(r["overall"], r["generalizability"]) for r in rows if r["distill_data"].endswith(hours)]
            assert (overall, general) in found


def test_every_method_is_on_the_page():
    text = (ROOT / "docs/methods.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert len(LINES) >= 20
    assert {recipe.load(name).method for name in recipe.names()} == {
        recipe.load(name).method for name in recipe.names() if name in named
    }
