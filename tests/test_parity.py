"""results/bench/parity.py: s3prl's runner is run and followed; a difference is seen; what does not run is said."""

import builtins
import json

import follow
import numpy as np
import parity
import pytest
import torch
from legacy import Run
from ours import table_of
from pipelines import PIPELINES
from small_corpora import small

from eval import tasks
from star_upstream import compat
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return small(tmp_path_factory)


def probe(name, corpora):
    compat.apply()
    task = tasks.get(name)
    return task.probe(task, table_of(task, corpora, 320), task.schedules["superb"], 0)


def test_s3prls_runner_and_ours_take_the_same_steps(corpora, tmp_path, capsys):
    """Intents: every batch's loss from s3prl's own head and batches, and every answer; phones say what they lack."""
    out, kept = tmp_path / "p.md", builtins.isinstance
    command = ["ic", "pr", "--data", str(corpora), "--steps", "3", "--out", str(out)]
    assert parity.main(command) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == ["pr"] and builtins.isinstance is kept
    record, failed = json.loads(out.with_suffix(".json").read_text())["runs"]
    exact = record["sides"]["exact"]
    assert exact["losses"]["worst"] < 1e-5 and exact["same_answers"] == 1.0 and exact["difference"] == 0.0
    assert 0 < record["sides"]["kept"]["losses"]["worst"] < 1e-2
    assert record["theirs"]["said"] == [f"test acc: {record['theirs']['value'] / 100}"]
    assert record["losses"]["first"] > record["losses"]["last"] > 0
    assert "wheel lacks downstream/ctc/corpus" in failed["failed"]
    page = out.read_text()
    assert "| ic (ic_acc, %) | 3 at 0.001 | 32 x 1 |" in page and "Did not run:\n\n- pr: the s3prl wheel" in page
    assert parity.main([*command, "--upstream", "star_mini_teacher"]) == 2
    assert "another upstream; choose another --out" in capsys.readouterr().err


def test_a_head_takes_s3prls_parameters_in_our_order_of_classes(corpora):
    ic = probe("ic", corpora)
    order = PIPELINES["ic"].classes(ic)
    assert sorted(order) == list(range(len(ic.encoder)))
    first = ic.table[ic.table["split"] == "train"]["action"].iloc[0]
    assert order[ic.encoder.categories[0].encode(first)] == 0  # s3prl's first action is that of its first line

    class Shape:
        width, stride = 16, 320

    theirs = [p.detach().clone() for p in ic.head(16, 320).parameters()]
    theirs[-1] = torch.arange(len(order), dtype=torch.float32)
    assert follow.initial(PIPELINES["ic"], ic, Run(initial=theirs), Shape)[-1].tolist() == order
    with pytest.raises(StarError, match="differ in shape"):
        follow.initial(PIPELINES["ic"], ic, Run(initial=theirs[:-1]), Shape)


def test_batches_are_found_by_the_names_that_s3prl_gives(corpora):
    ks = probe("ks", corpora)
    words = [row for row in ks.split["train"] if ks.targets[row] != "_silence_"][:3]
    silence = next(row for row in ks.split["train"] if ks.targets[row] == "_silence_")
    paths = [ks.table["path"].iloc[row] for row in (*words, silence)]
    names = ["-".join(path.split("/")[-2:]) for path in paths]
    assert follow.batches(ks, Run(batches=[((), names[:2]), ((), names[2:])])) == [words[:2], [words[2], silence]]
    with pytest.raises(StarError, match="no answer for"):
        follow.answers(ks, Run(answers={}))


def test_a_difference_is_judged_on_the_same_items(corpora):
    ic = probe("ic", corpora)
    right = [ic.targets[row] for row in ic.split["test"]]
    wrong = ["nothing", *right[1:]]
    assert parity.difference(ic, [right], right) == (0.0, 0.0)
    low, high = parity.difference(ic, [wrong], right)
    assert low < 0 and high == 0.0
    assert low <= parity.difference(ic, [wrong, right], right)[0] < 0
    assert parity.same(ic, wrong, right) == pytest.approx(1 - 1 / len(right))
    assert parity.scored(ic, right) == (100.0, [100.0, 100.0])


def test_speakers_of_a_recording_may_be_in_either_order(corpora):
    sd = probe("sd", corpora)
    answers = [np.random.default_rng(0).normal(size=(9, 2))]
    assert parity.same(sd, answers, [answers[0][:, ::-1]]) == 1.0
    assert parity.same(sd, answers, [-answers[0]]) < 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["qbe"], "s3prl's runner scores no 'qbe'"),
        (["ks", "--steps", "0"], "--steps 0: must be at least 1"),
        (["ks", "--own-seeds", "0"], "--own-seeds 0: must be at least 1"),
        (["ks", "--lr", "2"], "--lr 2: must be above 0"),
        (["ks", "--out", "p.txt"], "must end in .md"),
        (["ks", "--data", "nowhere"], "nowhere"),
        (["ks", "--upstream", "nobody"], "nobody"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch, corpora):
    monkeypatch.chdir(tmp_path)
    given = arguments if "--data" in arguments else [*arguments, "--data", str(corpora)]
    assert parity.main(given) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
