"""Manifests of verification, diarization and search: what is read, and what is said of mistakes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from test_corpora_manifest import write

from star_upstream import audio
from star_upstream.data import corpora
from star_upstream.errors import StarError


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Six rows of a keyword manifest in ``tmp_path``, with their files."""
    out = []
    for number, split in enumerate(("train", "train", "dev", "dev", "test", "test")):
        soundfile.write(tmp_path / f"{number}.wav", np.full(1600, 0.1 + number / 100), audio.RATE)
        label = ("yes", "NA")[number % 2]
        out.append({"id": f"u{number}", "path": f"{number}.wav", "samples": "1600", "split": split, "label": label})
    return out


def save(tmp_path: Path, name: str, rows: list[dict]) -> None:
    (tmp_path / "manifests").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(tmp_path / "manifests" / name, sep="\t", index=False)


@pytest.fixture
def verification(tmp_path, rows) -> dict[str, list[dict]]:
    """Two training speakers, two others in four test utterances, three trials."""
    rows = [{k: v for k, v in row.items() if k != "split"} | {"speaker": "aabbcc"[n]} for n, row in enumerate(rows)]
    names = [("2.wav", "3.wav"), ("4.wav", "5.wav"), ("2.wav", "4.wav")]
    trials = [{"target": int(n < 2), "enroll_path": a, "test_path": b} for n, (a, b) in enumerate(names)]
    return {"asv_train": rows[:2], "asv_test": rows[2:], "asv_trials": trials}


def test_verification(tmp_path, verification):
    for name, part in verification.items():
        save(tmp_path, f"{name}.tsv", part)
    table = corpora.load("asv", tmp_path)
    assert table["split"].tolist() == ["train"] * 2 + ["test"] * 4
    assert corpora.trials(tmp_path).values.tolist() == [[1, "u2", "u3"], [1, "u4", "u5"], [0, "u2", "u4"]]


@pytest.mark.parametrize("way", ["./{}", "{root}/{}", "manifests/../{}", " {}"])
def test_a_trial_names_its_file_as_it_likes(tmp_path, verification, way):
    for row in verification["asv_trials"]:
        row["enroll_path"] = way.format(row["enroll_path"], root=tmp_path)
    for row in verification["asv_test"][2:]:
        row["path"] = str(tmp_path / row["path"])
    for name, part in verification.items():
        save(tmp_path, f"{name}.tsv", part)
    assert corpora.trials(tmp_path).values.tolist() == [[1, "u2", "u3"], [1, "u4", "u5"], [0, "u2", "u4"]]


@pytest.mark.parametrize(
    "part, row, change, words",
    [
        ("asv_train", 0, {"speaker": "b"}, "asv_test.tsv: line 2: speaker 'b' is in train and in test"),
        ("asv_test", 1, {"id": "u0"}, "asv_test.tsv: line 3: id 'u0' is used twice"),
        (
            "asv_trials",
            1,
            {"enroll_path": "0.wav"},
            "asv_trials.tsv: line 3: enroll_path '0.wav' is not in asv_test.tsv",
        ),
        ("asv_trials", 0, {"target": "same"}, "asv_trials.tsv: line 2: target is 'same'; it must be 1 or 0"),
        ("asv_trials", 2, {"target": 1}, "asv_trials.tsv: no trial has target 0"),
        ("asv_trials", None, {}, "asv_trials.tsv is missing"),
        ("asv_test", None, {}, "asv_test.tsv is missing; put it beside the other manifests"),
    ],
)
def test_bad_verification(tmp_path, verification, part, row, change, words):
    if row is None:
        del verification[part]
    else:
        verification[part][row] |= change
    for name, content in verification.items():
        save(tmp_path, f"{name}.tsv", content)
    with pytest.raises(StarError, match=words):
        corpora.load("asv", tmp_path)
        corpora.trials(tmp_path)


LINE = "SPEAKER {} 1 {} {} <NA> <NA> {} <NA> <NA>\n"


@pytest.fixture
def diarization(tmp_path, rows) -> Path:
    for row in rows:
        row["rttm_path"] = f"{row['id']}.rttm"
        turns = [(0.0, 0.05, "anna"), (0.02, 0.08, "bert")]
        (tmp_path / row["rttm_path"]).write_text("".join(LINE.format(row["id"], *turn) for turn in turns))
    return write(tmp_path, rows, "sd")


def test_rttm(diarization):
    others = ";; a remark\nSPKR-INFO u1 1 <NA> <NA> <NA> unknown anna <NA>\n"
    (diarization / "u1.rttm").write_text(others + LINE.format("u1", 0.04, 0.05, "x"))
    table, segments = corpora.load("sd", diarization), corpora.segments(diarization)
    assert list(table.columns) == ["id", "path", "start", "samples", "split"]
    assert segments.values.tolist()[:3] == [
        ["u0", 0.0, 0.05, "anna"],
        ["u0", 0.02, 0.1, "bert"],
        ["u1", 0.04, 0.09, "x"],
    ]
    assert len(segments) == 11


@pytest.mark.parametrize(
    "text, words",
    [
        ("SPEAKER u1 1 0.0\n", "u1.rttm: line 1: expected 'SPEAKER <id> 1 <start> <length>"),
        (LINE.format("u1", "0.0", "long", "x"), "u1.rttm: line 1: expected 'SPEAKER"),
        (LINE.format("u1", 0, 0.1, "<NA>"), "u1.rttm: line 1: expected 'SPEAKER"),
        (LINE.format("u2", 0, 1, "x"), "u1.rttm: line 1: is about 'u2', but sd.tsv gives this file to 'u1'"),
        (LINE.format("u1", 0.01, 0, "x"), "u1.rttm: line 1: from 0.01 s to 0.01 s is no segment"),
        (LINE.format("u1", -0.01, 0.05, "x"), "u1.rttm: line 1: from -0.01 s to 0.04 s is no segment"),
        (LINE.format("u1", 20, 60, "x"), "u1.rttm: line 1: ends at 80 s, but 'u1' has 0.1 s; are these milliseconds"),
        (
            LINE.format("u1", 0.01, 0.05, "x") + LINE.format("u1", 0.12, 0.05, "x"),
            "u1.rttm: line 2: ends at 0.17 s, but 'u1' has 0.1 s",
        ),
        (LINE.format("u1", 0, 0.1, "anna lee"), "line 1: after the name 'anna' come 'lee <NA> <NA>'"),
        (
            LINE.format("u1", 0, 0.1, "anna lee").replace(" <NA>\n", "\n"),
            "line 1: after the name 'anna' come 'lee <NA>'",
        ),
        (
            LINE.format("u1", 0, 0.1, "anna lee").replace(" <NA> <NA>\n", "\n"),
            "line 1: after the name 'anna' come 'lee'",
        ),
        (
            LINE.format("u1", 0, 0.1, "speaker 2").replace(" <NA>\n", "\n"),
            "line 1: after the name 'speaker' come '2 <NA>'",
        ),
        (LINE.format("u1", 0, 0.1, "anna\u00a0lee"), "line 1: after the name 'anna' come 'lee <NA> <NA>'"),
        (LINE.format("u1", 0, 0.1, "x").lower(), "line 1: expected 'SPEAKER <id> 1"),
        (LINE.format("u1", 0, "nan", "x"), "u1.rttm: line 1: from 0 s to nan s is no segment"),
        ("\n", "sd.tsv: no segment of recording 'u1'"),
        (None, "sd.tsv: line 3: rttm_path 'u1.rttm' is no file"),
    ],
)
def test_bad_rttm(diarization, text, words):
    (diarization / "u1.rttm").unlink()
    if text is not None:
        (diarization / "u1.rttm").write_text(text)
    with pytest.raises(StarError, match=words):
        corpora.segments(diarization)


def test_a_byte_order_mark_takes_no_segment(diarization):
    before = corpora.segments(diarization)
    for file in [*diarization.glob("*.rttm"), *diarization.glob("manifests/*")]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert corpora.segments(diarization).equals(before)


def test_names_between_tabs_and_confidences(diarization):
    lines = [
        "SPEAKER u1 1 0.00 0.05 <NA> <NA> anna 0.97 <NA>",
        "SPEAKER u1 1 0.00 0.05 <NA> <NA> bert",
        "SPEAKER\tu1\t1\t0.0\t0.04\t<NA>\t<NA>\tanna lee\t<NA>\t<NA>",
    ]
    (diarization / "u1.rttm").write_text("\n".join(lines) + "\n")
    segments = corpora.segments(diarization)
    assert segments["speaker"][segments["id"] == "u1"].tolist() == ["anna", "bert", "anna lee"]


@pytest.fixture
def search(tmp_path, rows) -> dict[str, list[dict]]:
    """One query and one document of dev, the same of eval, and a document of both."""
    kinds = [
        ("qbe_queries", "dev"),
        ("qbe_docs", "dev"),
        ("qbe_queries", "eval"),
        ("qbe_docs", "eval"),
        ("qbe_docs", "both"),
    ]
    parts: dict[str, list[dict]] = {"qbe_queries": [], "qbe_docs": []}
    for row, (name, group) in zip(rows, kinds):
        parts[name].append({k: v for k, v in row.items() if k != "split"} | {"set": group})
    pairs = [("u0", "u1", 1), ("u0", "u4", 0), ("u2", "u3", 0), ("u2", "u4", 1)]
    return parts | {"qbe_truth": [{"query_id": q, "doc_id": d, "relevant": r} for q, d, r in pairs]}


def test_search(tmp_path, search):
    for name, part in search.items():
        save(tmp_path, f"{name}.tsv", part)
    table = corpora.load("qbe", tmp_path)
    assert list(table.columns) == ["id", "path", "start", "samples", "split", "kind"]
    assert table[["id", "split", "kind"]].values.tolist() == [
        ["u0", "dev", "query"], ["u2", "eval", "query"], ["u1", "dev", "doc"], ["u3", "eval", "doc"],
        ["u4", "both", "doc"],
    ]  # fmt: skip
    assert corpora.truth(tmp_path).values.tolist() == [
        ["u0", "u1", 1],
        ["u0", "u4", 0],
        ["u2", "u3", 0],
        ["u2", "u4", 1],
    ]


@pytest.mark.parametrize(
    "part, row, change, words",
    [
        ("qbe_queries", 0, {"set": "both"}, "qbe_queries.tsv: line 2: a query is in dev or in eval"),
        (
            "qbe_queries",
            1,
            {"set": "test"},
            "qbe_queries.tsv: line 3: unknown split 'test'; it must be dev, eval or both",
        ),
        (
            "qbe_queries",
            0,
            {"set": "eval"},
            "manifests: no query in dev; qbe needs queries and documents in dev and in eval",
        ),
        ("qbe_docs", 0, {"id": "u0"}, "qbe_docs.tsv: line 2: id 'u0' is used twice"),
        ("qbe_truth", 0, {"doc_id": "u9"}, "qbe_truth.tsv: line 2: doc 'u9' is not in qbe_docs.tsv"),
        ("qbe_truth", 0, {"query_id": "u1"}, "qbe_truth.tsv: line 2: query 'u1' is not in qbe_queries.tsv"),
        ("qbe_truth", 0, {"doc_id": "u3"}, "qbe_truth.tsv: line 2: a query of dev with a document of eval"),
        ("qbe_truth", 1, {"doc_id": "u1"}, "qbe_truth.tsv: line 3: this query and document were there before"),
        ("qbe_truth", 1, {"relevant": "2"}, "qbe_truth.tsv: line 3: relevant is '2'; it must be 1 or 0"),
        ("qbe_truth", 3, {"relevant": "0"}, "qbe_truth.tsv: no query of eval is in any document"),
    ],
)
def test_bad_search(tmp_path, search, part, row, change, words):
    search[part][row] |= change
    for name, content in search.items():
        save(tmp_path, f"{name}.tsv", content)
    with pytest.raises(StarError, match=words):
        corpora.load("qbe", tmp_path)
        corpora.truth(tmp_path)
