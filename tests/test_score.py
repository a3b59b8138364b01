"""score: the printed overall values and generalizability scores come out of the printed task scores."""

from pathlib import Path

import pandas as pd
import pytest

from eval.report import score
from star_upstream.errors import StarError

PUBLISHED = pd.read_csv(Path(__file__).parents[1] / "eval" / "report" / "published.csv")
COMPLETE = PUBLISHED[PUBLISHED[list(score.METRICS)].notna().all(axis=1)]


@pytest.mark.parametrize(
    "row", COMPLETE[COMPLETE["overall"].notna()].to_dict("records"), ids=lambda r: f"{r['model']}-{r['distill_data']}"
)
def test_overall_as_printed(row):
    assert score.overall(row) == pytest.approx(row["overall"], abs=0.06)


@pytest.mark.parametrize(
    "row",
    COMPLETE[COMPLETE["generalizability"].notna()].to_dict("records"),
    ids=lambda r: f"{r['model']}-{r['distill_data']}",
)
def test_generalizability_as_printed(row):
    assert score.generalizability(row) == pytest.approx(row["generalizability"], abs=2.5)


def test_the_rows_reach_both_tests():
    assert COMPLETE["overall"].notna().sum() >= 20 and COMPLETE["generalizability"].notna().sum() >= 15


def test_anchors_are_the_published_rows():
    rows = PUBLISHED.set_index("model")
    for name, anchor in (("FBANK", score.FBANK), ("SOTA (best per task, SUPERB paper)", score.SOTA)):
        assert {m: rows.loc[name, m] for m in score.METRICS} == anchor
    assert score.generalizability(score.FBANK) == 0 and score.generalizability(score.SOTA) == pytest.approx(1000)


@pytest.mark.parametrize("function", [score.overall, score.generalizability])
def test_partial_sets_are_refused_by_name(function):
    partial = {**score.SOTA, "sf_cer": float("nan"), "qbe_mtwv": None}
    del partial["pr_per"]
    with pytest.raises(StarError, match="pr_per, qbe_mtwv, sf_cer missing"):
        function(partial)
    assert score.missing(partial) == ["pr_per", "qbe_mtwv", "sf_cer"]
