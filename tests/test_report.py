"""report: what can be compared shares a table, what cannot says so, and nothing is scored while a task is missing."""

import csv
import json

import pytest

from eval import report, score
from star_upstream.errors import StarError


def record(metric, value, **changes):
    task = metric.split("_")[0]
    base = {
        "task": task, "metric": metric, "value": value, "interval_95": [value - 1, value + 1], "unit": "%", "direction": "max",
        "items": 9, "corpus": "official", "schedule": "superb", "limited": False, "upstream": "fbank", "upstream_digest": "d",
        "parameters": 1_500_000, "steps": 1, "seed": 0, "lr": 1e-4, "split": "test", "task_version": 1,
    }  # fmt: skip
    return {**base, **changes}


def write(folder, *records):
    folder.mkdir()
    for r in records:
        (folder / f"{r['metric']}.json").write_text(json.dumps(r))
    return folder


def test_table_of_mini_runs_says_so_and_gives_no_score(tmp_path, capsys):
    a = write(
        tmp_path / "a",
        record("ks_acc", 50.0, corpus="mini", schedule="mini"),
        record("asr_wer", 70.0, corpus="mini", schedule="mini"),
    )
    b = write(tmp_path / "b", record("ks_acc", 60.0, corpus="mini", schedule="mini", upstream_digest="e"))
    assert report.main([a, b], tmp_path / "out.md") == 0
    text = capsys.readouterr().out
    assert "never with published ones" in text and "Overall" not in text.split("No overall")[0]
    assert "| a | fbank | 1.50 | **70.00** [69.00, 71.00] | 50.00 [49.00, 51.00] |" in text
    assert "| b | fbank | 1.50 | – | **60.00** [59.00, 61.00] |" in text
    assert "No overall score for b: pr_per, asr_wer, qbe_mtwv, sid_acc" in text
    assert (tmp_path / "out.md").read_text().strip() == text.strip()
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 3 and {r["comparable_with_published"] for r in rows} == {"False"}


def test_complete_official_run_is_scored(tmp_path):
    full = write(tmp_path / "full", *(record(m, score.SOTA[m]) for m in score.METRICS))
    part = write(tmp_path / "part", record("ks_acc", 96.0))
    text = report.markdown([report.read(full), report.read(part)])
    overall = score.overall(score.SOTA)
    assert f"| {overall:.1f} | 1000 |" in text and "| – | – |" in text
    assert "No overall score for part: pr_per" in text and "for full" not in text and "never" not in text


@pytest.mark.parametrize("change", [{"limited": True}, {"schedule": "mini"}, {"corpus": "manifest:/x"}, {"corpus": "mini"}])
def test_other_conditions_are_a_table_of_their_own(tmp_path, change):
    official = write(tmp_path / "official", record("ks_acc", 96.0))
    other = write(tmp_path / "other", record("ks_acc", 97.0, **change))
    text = report.markdown([report.read(official), report.read(other)])
    assert text.count("## Data:") == 2 and text.count("never with published ones") == 1
    assert "**96.00**" in text and "**97.00**" in text


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(StarError, match="no such folder"):
        report.read(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StarError, match="no results"):
        report.read(tmp_path / "empty")
    mixed = write(tmp_path / "mixed", record("ks_acc", 1.0), record("asr_wer", 1.0, upstream_digest="other"))
    with pytest.raises(StarError, match="several upstreams"):
        report.read(mixed)
    (mixed / "ks_acc.json").write_text("{")
    with pytest.raises(StarError, match="ks_acc.json: not json"):
        report.read(mixed)
    (mixed / "ks_acc.json").write_text('{"metric": "ks_acc"}')
    with pytest.raises(StarError, match="not a task's record .task, value"):
        report.read(mixed)
