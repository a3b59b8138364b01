"""report: what can be compared shares a table, what cannot says so, and nothing is scored while a task is missing."""

import csv
import json

import pytest

from eval import report
from eval.report import published, score, table
from star_upstream.errors import StarError
from star_upstream.training import recipe


def record(metric, value, **changes):
    task = metric.split("_")[0]
    base = {
        "task": task, "metric": metric, "value": value, "interval_95": [value - 1, value + 1], "unit": "%",
        "direction": "max", "items": 9, "corpus": "official", "schedule": "superb", "limited": False,
        "upstream": "fbank", "upstream_digest": "d", "parameters": 1_500_000, "steps": 1, "seed": 0, "lr": 1e-4,
        "split": "test", "task_version": 1,
    }  # fmt: skip
    return {**base, **changes}


def write(folder, *records):
    folder.mkdir()
    for r in records:
        (folder / f"{r['metric']}.json").write_text(json.dumps(r))
    return folder


def markdown(*folders, beside=""):
    runs = report.named([(folder, report.read(folder)) for folder in folders])
    rows = table.published(published.select(beside)) if beside else []
    return table.markdown(table.tables(runs, rows))


def section(text, title):
    return next(part for part in text.split("## ") if part.startswith(title))


def test_table_of_mini_runs_says_so_and_gives_no_score(tmp_path, capsys):
    a = write(
        tmp_path / "a",
        record("ks_acc", 50.0, corpus="mini", schedule="mini"),
        record("asr_wer", 70.0, corpus="mini", schedule="mini"),
    )
    b = write(tmp_path / "b", record("ks_acc", 60.0, corpus="mini", schedule="mini", upstream_digest="e"))
    assert report.main([a, b, a], tmp_path / "out.md") == 0
    text = capsys.readouterr().out
    assert "never with published ones" in text and "Overall" not in text.split("No overall")[0]
    assert "| a | fbank | 1.50 | – | **70.00** [69.00, 71.00] | 50.00 [49.00, 51.00] |" in text
    assert "| b | fbank | 1.50 | – | – | **60.00** [59.00, 61.00] |" in text
    assert "No overall score for b: pr_per, asr_wer, qbe_mtwv, sid_acc" in text
    assert (tmp_path / "out.md").read_text().strip() == text.strip()
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 3 and {r["comparable_with_published"] for r in rows} == {"False"}


def test_versions_of_a_task_are_told_apart(tmp_path):
    one = write(tmp_path / "one", record("ks_acc", 96.0), record("asr_wer", 9.0, direction="min"))
    two = write(
        tmp_path / "two", record("ks_acc", 97.0, generation="downstream"), record("asr_wer", 8.0, task_version=2)
    )
    text = markdown(one, two, beside="DistilHuBERT")
    assert "96.00" in section(text, "Data: official; schedule: superb\n") and "DistilHuBERT" in section(
        text, "Data: official; schedule: superb\n"
    )
    three = write(tmp_path / "three", record("ks_acc", 98.0, generation="problem"))
    with pytest.raises(
        StarError,
        match="ks_acc.json: made with --generation problem, which is no more; remove it and run its task again",
    ):
        report.read(three)
    assert (
        "NOT THE SAME TASK, though of one name: the rows' asr are of different versions" in text
        and "rows' ks" not in text
    )


def test_below_a_published_row_stands_ours_of_the_same_method_and_is_marked(tmp_path):
    ours = {"corpus": "manifest:realspeech", "schedule": "mini", "upstream": "runs/a/best", "method": "distilhubert"}
    a = write(tmp_path / "a", *(record(m, 99.0, **ours) for m in score.METRICS))
    b = write(tmp_path / "b", record("ks_acc", 98.0, **{**ours, "method": "fithubert"}, limited=True))
    c = write(tmp_path / "c", record("ks_acc", 97.0, **{**ours, "method": ""}))
    text = markdown(a, b, c, beside="DistilHuBERT,FBANK,FitHuBERT")
    part = section(text, "Published, and the same methods measured here")
    names = [line.split("|")[1].strip().strip("*") for line in part.splitlines() if line.startswith("|")][2:]
    here = [f"{name} (another corpus)" for name in "ab"]
    assert names == [*("DistilHuBERT", here[0]) * 2, "FBANK", *("FitHuBERT", here[1]) * 2]
    assert "Rows marked another corpus are ours, on other data or another schedule: nothing follows" in part
    lines = [line for line in part.splitlines() if "(another corpus)" in line]
    assert "runs/a/best; manifest:realspeech, mini |" in lines[0] and "mini, limited |" in lines[-1]
    # no score beside the official ones, nothing bold, and what is printed still is
    assert "| – | – | 99.00 [98.00, 100.00]" in lines[0] and not any("**" in line for line in lines)
    assert "**95.98**" in part or "**96.27**" in part
    # ours of the official corpora stand in the table of the group, and there alone
    d = write(tmp_path / "d", record("ks_acc", 96.0, method="distilhubert"))
    text = markdown(a, d, beside="DistilHuBERT")
    assert "d (another" not in text and "a (another corpus)" in text and "Differences from published" in text
    assert "same methods" not in markdown(c, beside="DistilHuBERT") and "## Published" in markdown(
        c, beside="DistilHuBERT"
    )


def test_every_method_of_a_recipe_has_published_rows():
    known = {row["method"] for row in published.select("all")}
    assert {recipe.load(name).method for name in recipe.names()} <= known
    assert all(recipe.load(name).method for name in recipe.names())


def test_complete_official_run_is_scored(tmp_path):
    full = write(tmp_path / "full", *(record(m, score.SOTA[m]) for m in score.METRICS))
    part = write(tmp_path / "part", record("ks_acc", 96.0))
    text = markdown(full, part)
    overall = score.overall(score.SOTA)
    assert f"| **{overall:.1f}** | **1000** |" in text and "| – | – |" in text
    assert "No overall score for part: pr_per" in text and "for full" not in text and "never" not in text


@pytest.mark.parametrize(
    "change", [{"limited": True}, {"schedule": "mini"}, {"corpus": "manifest:/x"}, {"corpus": "mini"}]
)
def test_other_conditions_are_a_table_of_their_own(tmp_path, change):
    official = write(tmp_path / "official", record("ks_acc", 96.0))
    other = write(tmp_path / "other", record("ks_acc", 97.0, **change))
    text = markdown(official, other)
    assert text.count("## Data:") == 2 and text.count("never with published ones") == 1
    assert "**96.00**" in text and "**97.00**" in text


def test_reports_beside_the_folders_are_passed_over(tmp_path, capsys):
    """RESULTS/*: folders of records, and the report of the last time."""
    folder = write(tmp_path / "a", record("ks_acc", 96.0))
    assert report.main([folder], tmp_path / "table") == 0
    assert report.main(sorted(tmp_path.iterdir()), tmp_path / "table") == 0
    first, second = capsys.readouterr().out.split("## Data:")[1:]
    assert first == second
    with pytest.raises(StarError, match="table.md: no such folder"):
        report.main([tmp_path / "table.md"])


@pytest.mark.parametrize(
    "change, what", [({"steps": 5}, "numbers of updates"), ({"encoding": "every step"}, "ways to encode")]
)
def test_other_protocols_in_one_table_are_said(tmp_path, change, what):
    one = write(tmp_path / "one", record("ks_acc", 96.0, encoding="once"))
    other = write(tmp_path / "other", record("ks_acc", 97.0, **{"encoding": "once", **change}))
    assert f"NOT THE SAME PROTOCOL: the rows' ks have different {what}." in markdown(one, other)
    assert "NOT THE SAME" not in markdown(one)


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    runs = [(tmp_path / name, []) for name in ("p/x/m", "q/x/m", "r/n", "m")]
    for folder, _ in runs:
        folder.mkdir(parents=True)
    assert [name for name, _ in report.named(runs)] == ["p/x/m", "q/x/m", "n", f"{tmp_path.name}/m"]


@pytest.mark.parametrize("key", ["task", "corpus", "schedule", "upstream", "upstream_digest", "parameters", "grid"])
def test_a_record_of_wrong_types_is_one_line(tmp_path, key):
    folder = write(tmp_path / "a", record("ks_acc", 96.0, **{key: {}}))
    (folder / "x.json").mkdir()
    (folder / "y.json").symlink_to("nowhere")
    with pytest.raises(StarError, match=f"ks_acc.json: {key} is {{}}; remove the file"):
        report.read(folder)


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
    for change in (
        {"value": float("nan")},
        {"value": None},
        {"interval_95": None},
        {"further_metrics": [{"metric": "sf_cer"}]},
    ):
        (mixed / "ks_acc.json").write_text(json.dumps(record("ks_acc", 1.0) | change))
        with pytest.raises(StarError, match="must be numbers"):
            report.read(mixed)
    (mixed / "ks_acc.json").write_text('{"metric": "ks_acc"}')
    with pytest.raises(StarError, match="not a task's record .task, value"):
        report.read(mixed)


def test_published_rows_stand_beside_official_runs_with_differences(tmp_path, capsys):
    full = write(
        tmp_path / "full",
        *(record(m, v, macs_g=463.5) for m, v in {**score.SOTA, "ks_acc": 96.0, "pr_per": 9.0}.items()),
    )
    assert report.main([full], tmp_path / "out", "starhubert, DistilHuBERT,SOTA (best per task, SUPERB paper)") == 0
    text = capsys.readouterr().out
    table, gaps = section(text, "Data: official"), section(text, "Differences")
    assert (
        table.count("| STaRHuBERT | LibriSpeech") == 2
        and "LibriSpeech 100h | 22.31 | 463.5 | 77.8 | 831 | 9.17 |" in table
    )
    assert "| DistilHuBERT | LibriSpeech 960h |" in table and "| DistilHuBERT | LibriSpeech 100h |" in table
    assert (
        "| full | fbank | 1.50 | 463.5 |" in table and "**8.16**" in table
    )  # the best of STaRHuBERT, DistilHuBERT and ours
    assert "**96.46**" in table and "**96.66**" not in table and "**1000**" not in table  # each task's best is no model
    line = next(line for line in gaps.splitlines() if "STaRHuBERT, LibriSpeech 960h" in line)
    assert "+0.84 worse" in line and "-0.27 worse" in line and "+12.75 better" in line  # 9 - 8.16, 96 - 96.27, ...
    short = next(line for line in gaps.splitlines() if "DistilHuBERT, LibriSpeech 100h" in line)
    assert short.count("| – ") == 10 and "-11.15 better" in short  # only ASR, SID and IC are printed
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    printed = [row for row in rows if row["kind"] == "printed" and row["metric"] == "asr_wer"]
    assert [row["value"] for row in printed] == ["9.35", "10.92", "13.37", "14.77", "3.62"]


def test_published_scores_never_share_a_table_with_others(tmp_path, capsys):
    mini = write(tmp_path / "mini", record("ks_acc", 99.0, corpus="mini", schedule="mini"))
    assert report.main([mini], tmp_path / "v1.2", "STaRHuBERT") == 0
    text = capsys.readouterr().out
    assert "STaRHuBERT" not in section(text, "Data: mini") and "Differences" not in text
    assert "None of the runs above" in section(text, "Published") and "99.00" not in section(text, "Published")
    assert "STaRHuBERT" not in (tmp_path / "v1.2.csv").read_text()
    official = write(tmp_path / "official", record("ks_acc", 96.0))
    text = markdown(official, mini, beside="STaRHuBERT")
    assert "STaRHuBERT" in section(text, "Data: official") and "STaRHuBERT" not in section(text, "Data: mini")
    assert "## Published" not in text and "99.00" not in section(text, "Data: official") + section(text, "Differences")


def test_rows_that_are_not_printed_are_marked_and_never_best(tmp_path):
    mine = write(tmp_path / "mine", record("asr_wer", 12.0))
    table = section(markdown(mine, beside="STaRHuBERT-S,fithubert,skill"), "Data: official")
    assert "| STaRHuBERT-S (digitised) |" in table and "| SKILL (unavailable) |" in table and "none is bold" in table
    assert "| 10.28 |" in table and "**12.00**" in table and "**12.09**" not in table
    assert "685†" in table and "not printed in the source" in table  # FitHuBERT's generalizability is computed


def test_names_of_published_rows():
    chosen = published.select("full l2l (non-stacked, 12l d384 ffn1536), fbank,FBANK")
    assert [row["model"] for row in chosen] == ["Full L2L (non-stacked, 12L d384 ffn1536)", "FBANK"]
    with pytest.raises(StarError, match="starhubrt: not in published.csv; did you mean 'STaRHuBERT'"):
        published.select("FBANK,starhubrt")
    with pytest.raises(StarError, match="no name given"):
        published.select(" , ")


def test_spread_over_folds_belongs_to_the_first_metric(tmp_path):
    more = {"metric": "sf_cer", "value": 30.0, "interval_95": [29, 31]}
    folds = write(tmp_path / "folds", record("er_acc", 60.0, std_over_folds=2.5, further_metrics=[more]))
    text = markdown(folds)
    assert "**60.00** ± 2.50 [59.00, 61.00]" in text and "**30.00** [29.00, 31.00]" in text
    assert "standard deviation over the folds" in text


def test_folders_of_one_name_and_odd_names(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    a, b = (
        write(tmp_path / "x" / "run", record("ks_acc", 1.0)),
        write(tmp_path / "y" / "run", record("ks_acc", 2.0, upstream="a|*b\nc")),
    )
    text = markdown(a, b)
    assert "| x/run |" in text and r"| y/run | a\|\*b c |" in text
    with pytest.raises(StarError, match="expected a file name"):
        report.main([a], tmp_path / "..")
    with pytest.raises(StarError, match="cannot be written"):
        report.main([a], a / "ks_acc.json" / "table")


def test_data_of_one_name_that_differ_are_pointed_out(tmp_path):
    def run(name, digest):
        return write(
            tmp_path / name, record("ks_acc", 50.0, corpus="manifest:mine", schedule="mini", corpus_digest=digest)
        )

    a, same, other = run("a", "1"), run("same", "1"), run("other", "2")
    assert "NOT THE SAME DATA" not in markdown(a, same)
    assert "NOT THE SAME DATA, though of one name: the rows' ks are" in markdown(a, same, other)


OTHER = {"task": "lid", "title": "Language identification"}


def test_a_metric_without_a_column_of_its_own_is_shown_under_its_tasks_title(tmp_path):
    further = {"metric": "lid_cost", "value": 0.123456, "interval_95": [0.1, 0.2], "unit": "", "direction": "min"}
    a = write(tmp_path / "a", record("ks_acc", 96.0), record("lid_acc", 50.0, further_metrics=[further], **OTHER))
    b = write(tmp_path / "b", record("lid_acc", 40.0, further_metrics=[{**further, "value": 0.2}], **OTHER))
    assert report.main([a, b], tmp_path / "out") == 0
    text = (tmp_path / "out.md").read_text()
    assert "| KS Acc ↑ | Language identification lid_acc ↑ | Language identification lid_cost ↓ |" in text
    assert (
        "**50.00** [49.00, 51.00] | **0.1235** [0.1000, 0.2000]" in text and "| 40.00 [39.00, 41.00] | 0.2000 " in text
    )
    page = (tmp_path / "out.html").read_text()
    assert "Language identification lid_acc" in page and "0.1235" in page
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(r["metric"], r["title"]) for r in rows if r["model"] == "b"] == [
        ("lid_acc", OTHER["title"]),
        ("lid_cost", OTHER["title"]),
    ]
    bad = write(tmp_path / "bad", record("lid_acc", 50.0, **OTHER, direction=""))
    with pytest.raises(
        StarError, match="lid_acc.json: the report has no column for 'lid_acc', and the record does not say"
    ):
        report.read(bad)


def test_one_cell_holds_one_number(tmp_path):
    two = write(tmp_path / "two", record("ks_acc", 96.0))
    (two / "other.json").write_text(json.dumps(record("ks_acc", 50.0)))
    with pytest.raises(StarError, match="two: two results of ks_acc on the same data and schedule"):
        report.main([two])
    grid = [{"lr": 0.1, "dev": 50.0, "curve": [[1, 2.0]]}]
    (two / "other.json").write_text(
        json.dumps(record("ks_acc", 50.0, corpus="manifest:x", grid=grid, layer_weights=[0.5, 0.5]))
    )
    (two / "ks_acc.json").write_text(json.dumps(record("ks_acc", 96.0, grid=grid, layer_weights=[0.1, 0.9])))
    assert report.main([two], tmp_path / "out") == 0
    text = (tmp_path / "out.md").read_text()
    assert "96.00" in section(text, "Data: official") and "50.00" in section(text, "Data: manifest:x")


def test_remarks_on_the_data_stand_beside_the_numbers(tmp_path):
    remark = "3 of 9 test recordings are also in train: they were learnt"
    a = write(tmp_path / "a", record("ks_acc", 96.0, corpus="manifest:x", remarks=[remark]))
    b = write(tmp_path / "b", record("ks_acc", 95.0, corpus="manifest:x", remarks=[remark]))
    assert report.main([a, b], tmp_path / "out") == 0
    assert f"- WEAK DATA, a, b: ks: {remark}." in (tmp_path / "out.md").read_text()
    assert remark in (tmp_path / "out.html").read_text() and remark in (tmp_path / "out.csv").read_text()
