"""The report of a comparison: its tests against hand-computed cases, and what it refuses."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from eval.__main__ import main
from eval.report import paired
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.formats import checkpoint

TINY = EncoderConfig(
    conv_layers=((8, 10, 320),), width=8, layers=1, heads=1, head_width=8, ffn=8, position_kernel=4, position_groups=2,
    prediction_layers=(1,),
)  # fmt: skip


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4, 3, 2, 1: .04 .06 .06 .04, and none below the one before it
    assert paired.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert paired.holm([0.6, 0.9]) == [1.0, 1.0] and paired.holm([]) == []


def test_errors_of_items_and_seeds_by_hand():
    """Items: standard deviation 3 of the mean over seeds; seeds: 4, 6, 8 have 2 / sqrt(3)."""
    resamples = np.array([[1.0, 4.0, 7.0]] * 3) + np.array([[-1.0], [0.0], [1.0]])
    found = paired.estimate(np.array([4.0, 6.0, 8.0]), resamples)
    error = (9 + 4 / 3) ** 0.5
    freedom = 2 * error**4 / (4 / 3) ** 2
    assert found.value == 6 and found.p == pytest.approx(2 * stats.t.sf(6 / error, freedom))
    assert found.high - 6 == pytest.approx(6 - found.low) == pytest.approx(stats.t.ppf(0.975, freedom) * error)
    # without an error of items it is the t-test over seeds
    still = paired.estimate(np.array([4.0, 6.0, 8.0]), np.full((3, 5), 6.0))
    assert still.p == pytest.approx(stats.ttest_1samp([4.0, 6.0, 8.0], 0).pvalue)
    # of one seed it is the normal approximation of the bootstrap
    alone = paired.estimate(np.array([3.0]), np.array([[1.0, 2.0, 3.0]]))
    assert alone.p == pytest.approx(2 * stats.norm.sf(3.0)) and alone.low == pytest.approx(3 - 1.959964)
    assert paired.estimate(np.zeros(2), np.zeros((2, 4))).p == 1.0


def compared(folder, gains, items=400, seeds=3, **more):
    """A comparison of ``gains`` (recipe -> right answers in percent) whose answers agree but for the gain."""
    random = np.random.default_rng(0)
    (folder / ".made_by").write_text("star compare\n")
    asked = {
        "seeds": seeds, "seconds": 10.0, "teacher": "t", "parameters": 900, "updates": 4, "search_rates": [],
        "search_updates": None, "scoring": {"data": "d", "tasks": "ks,asv"},
    }  # fmt: skip
    entry = {"about": "", "parameters": 900, "learning_rate": 0.001, "changed": ["a → b"], "result": "best"}
    identity = {"recipes": {name: {"data": {"train": ["/a"]}} for name in gains}}
    settings = {"command": ["compare"], "asked": asked, "entries": dict.fromkeys(gains, entry), "identity": identity}
    (folder / "comparison.json").write_text(json.dumps(settings))
    hardness = random.random(items)
    draws = [random.integers(0, items, items) for _ in range(200)]
    for seed in range(seeds):
        noise = random.normal(0, 0.02, items)
        for name, gain in gains.items():
            right = (hardness + noise < gain / 100).astype(float)
            cell = f"{name}-s{seed}"
            checkpoint.save(folder / "runs" / cell / "best", Encoder(TINY), {})
            (folder / "runs" / cell / "done.json").write_text("{}")
            log = "update,seconds,audio_hours,audio_crc32\n2,1.0,0.1,7\n4,2.0,0.2,9\n"
            (folder / "runs" / cell / "log.csv").write_text(more.get("log", {}).get(cell, log))
            scores = folder / "scores" / cell
            scores.mkdir(parents=True)
            for metric, direction, values in (("ks_acc", "max", right), ("asv_eer", "min", 1 - right)):
                task = metric.partition("_")[0]
                number = {"metric": metric, "value": 100 * values.mean(), "unit": "%", "direction": direction}
                record = {
                    "task": task, **number, "interval_95": [0, 100], "corpus": "c", "schedule": "mini", "items": items,
                    "upstream": cell, "upstream_digest": cell, "parameters": 900, "table_digest": "x",
                    **more.get(cell, {}),
                }  # fmt: skip
                (scores / f"{task}.json").write_text(json.dumps(record))
                np.savez(scores / f"{task}.resamples.npz", **{metric: [100 * values[drawn].mean() for drawn in draws]})


def test_a_difference_is_found_and_none_is_not(tmp_path, capsys):
    compared(tmp_path, {"first": 50, "better": 62, "same": 50})
    assert main(["comparison", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["metrics"].keys() == {"ks_acc", "asv_eer"} and found["seeds"] == [0, 1, 2] and found["same_audio"]
    better, same = (row["scores"] for row in found["rows"][1:])
    assert better["ks_acc"]["difference"]["value"] == pytest.approx(12, abs=3)
    assert better["asv_eer"]["difference"]["value"] == pytest.approx(-better["ks_acc"]["difference"]["value"])
    assert better["mean"]["value"] == pytest.approx(better["ks_acc"]["value"])  # 100 - error is the same here
    assert better["mean"]["difference"]["p_holm"] < 0.01 < 0.5 < same["mean"]["difference"]["p_holm"]
    # paired: far narrower than the difference of two scores by themselves
    gap, score = better["ks_acc"]["difference"], better["ks_acc"]
    assert gap["high"] - gap["low"] < 0.8 * (score["high"] - score["low"])
    tests = [row["scores"][m]["difference"] for row in found["rows"][1:] for m in ("ks_acc", "asv_eer")]
    assert [t["p_holm"] for t in tests] == pytest.approx(paired.holm([t["p"] for t in tests]))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert len(rows) == 9 and {row["recipe"] for row in rows} == {"first", "better", "same"}
    without_heads = found["rows"][0]["parameters"]
    assert without_heads < sum(p.numel() for p in Encoder(TINY).parameters())
    text = capsys.readouterr().out
    assert text == (tmp_path / "table.md").read_text() and "Mean of 2" in text and "no overall score of SUPERB" in text
    page = (tmp_path / "page.html").read_text()
    assert page.count("<table>") == 4 and "Differences from first" in page


def test_other_audio_and_other_items_are_told(tmp_path, capsys):
    log = "update,seconds,audio_hours,audio_crc32\n4,2.0,0.2,8\n"
    (tmp_path / "a").mkdir()
    compared(tmp_path / "a", {"first": 50, "other": 60}, seeds=1, log={"other-s0": log})
    assert main(["comparison", str(tmp_path / "a")]) == 0 and "NOT heard the same audio" in capsys.readouterr().out
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    compared(tmp_path / "c", {"first": 50, "other": 60}, seeds=1, **{"other-s0": {"corpus": "of another name"}})
    assert main(["comparison", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    compared(tmp_path / "b", {"first": 50, "other": 60}, seeds=1, **{"other-s0": {"table_digest": "y"}})
    assert main(["comparison", str(tmp_path / "b")]) == 2 and "table_digest differs" in capsys.readouterr().err
    (tmp_path / "b" / "scores" / "first-s0" / "ks.resamples.npz").unlink()
    assert main(["comparison", str(tmp_path / "b")]) == 2 and "ks.resamples.npz: missing" in capsys.readouterr().err
    assert main(["comparison", str(tmp_path)]) == 2 and "holds no comparison" in capsys.readouterr().err
