"""Layer similarity: hand-computed values, invariances, streaming; clustering on planted groups; the command."""

import json

import numpy as np
import pytest
import soundfile
import torch

from star_upstream import cli
from star_upstream.analysis import layer_report
from star_upstream.analysis.similarity import (
    Clustering,
    ExactCka,
    Framewise,
    GroupingConfig,
    MinibatchCka,
    Similarity,
    cluster,
    gram,
    hsic,
)
from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint


def rows(count, width, seed=0):
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cka(x, y):
    sums = ExactCka([(0, 1)])
    sums.add([x, y])
    return sums.value(0, 1)


# measures


def test_cka_by_hand():
    # centred: X = (-1, 0, 1)', Y = [[-1, 1], [0, -2], [1, 1]]; X'Y = [2, 0], X'X = 2, Y'Y = diag(2, 6); 4 / (2 sqrt 40)
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[4.0, 6.0], [5.0, 3.0], [6.0, 6.0]])
    assert cka(x, y) == pytest.approx(4 / (2 * 40**0.5))
    # without the second column it is the squared correlation
    assert cka(x, y[:, :1]) == pytest.approx(1.0) and cka(x, y[:, 1:]) == pytest.approx(0.0, abs=1e-12)


def test_cka_is_the_formula_over_gram_matrices():
    x, y = rows(50, 6) + 3, rows(50, 4, 1) + rows(50, 6)[:, :4] - 7
    centre = torch.eye(50, dtype=torch.float64) - 1 / 50
    k, m = (centre @ a @ a.T @ centre for a in (x, y))
    assert cka(x, y) == pytest.approx(((k * m).sum() / (k.norm() * m.norm())).item())


def test_cka_does_not_see_orthogonal_maps_scale_and_shift():
    x, y = rows(80, 6), rows(80, 6, 1) + 0.5 * rows(80, 6)
    turn = torch.linalg.qr(rows(6, 6, 2))[0]
    assert cka(x, x) == pytest.approx(1.0) and 0.1 < cka(x, y) < 0.9
    assert cka(x @ turn, y) == pytest.approx(cka(x, y)) == pytest.approx(cka(x, 1e4 * y + 7))
    assert cka(x, x @ turn * 3 + 100) == pytest.approx(1.0) and cka(y, x) == pytest.approx(cka(x, y))
    assert cka(x @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1]).double()), y) != pytest.approx(cka(x, y), rel=0.01), (
        "but other maps"
    )


def test_streamed_equals_whole_even_far_from_zero():
    x, y = rows(1000, 5).float() + 1000, (rows(1000, 5).float() + rows(1000, 5, 1).float()) * 1e-3 + 10
    for make in (lambda: ExactCka([(0, 1)]), lambda: Framewise("cosine"), lambda: Framewise("l2")):
        whole, parts = make(), make()
        whole.add([x, y])
        for some_x, some_y in zip(x.split([1, 300, 7, 692]), y.split([1, 300, 7, 692])):
            parts.add([some_x, some_y])
        assert parts.frames == 1000 and parts.value(1, 0) == pytest.approx(whole.value(0, 1), rel=1e-9)
    assert cka(x, y) == pytest.approx(cka(x.double() - 1000, y.double() - 10), rel=1e-6)


def test_cosine_and_l2_by_hand():
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    for measure, expected in (("cosine", 0.48), ("l2", ((1 + 1 + 1 + 4) / 4) ** 0.5)):
        sums = Framewise(measure)
        sums.add([x, y])
        assert sums.value(0, 1) == pytest.approx(expected) and sums.value(1, 1) == pytest.approx(
            float(measure == "cosine")
        )


def straightforward_hsic(k, m):
    """HSIC_1 as a mean over ordered quadruples of different samples (Song et al. 2012, section 2.3)."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in set(range(n)) - {i}:
            for q in set(range(n)) - {i, j}:
                for r in set(range(n)) - {i, j, q}:
                    total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
                    count += 1
    return (total / count).item()


def test_hsic_is_the_mean_over_quadruples():
    k, m = rows(7, 3) @ rows(7, 3).T, (rows(7, 2, 1) + 5) @ (rows(7, 2, 1) + 5).T
    assert hsic(torch.stack([k, m]))[0, 1].item() == pytest.approx(straightforward_hsic(k, m))
    x = rows(7, 2, 1) + 5
    assert hsic(torch.stack([k, gram(x)]))[0, 1].item() == pytest.approx(straightforward_hsic(k, m)), (
        "rows may be shifted"
    )


def test_minibatch_has_no_bias_where_exact_has():
    # 60 rows of 30 independent channels: the formula sees similarity in chance
    exact, minibatch = [], []
    for seed in range(30):
        x, y = rows(64, 30, 2 * seed), rows(64, 30, 2 * seed + 1)
        sums = MinibatchCka(size=32, seed=seed)
        sums.add([x, y])
        minibatch.append(sums.value(0, 1))
        exact.append(cka(x, y))
    assert np.mean(exact) > 0.3 and abs(np.mean(minibatch)) < 0.02


def test_minibatch_agrees_with_exact_on_many_rows_in_any_parts():
    x = rows(6000, 8)
    y = x @ rows(8, 8, 1) + 2 * rows(6000, 8, 2)
    # sorted, so that any part by itself says little about the whole
    order = x[:, 0].argsort()
    x, y = x[order], y[order]
    values = []
    for sizes in ([6000], [1000] * 6, [37] * 162 + [6]):
        sums = MinibatchCka(seed=3)
        for parts in zip(x.split(sizes), y.split(sizes)):
            sums.add(parts)
        values.append(sums.value(0, 1))
        assert sums.value(0, 0) == 1.0
    assert values[0] == pytest.approx(cka(x, y), abs=0.03) and values[1:] == pytest.approx(values[:2])


def test_a_layer_that_never_changes_is_named():
    with pytest.raises(StarError, match="layer 1 is the same in every frame"):
        cka(rows(9, 2), torch.ones(9, 2))
    sums = MinibatchCka()
    sums.add([rows(9, 2), torch.ones(9, 2)])
    with pytest.raises(StarError, match="layer 0 or 1 is the same in every frame"):
        sums.value(0, 1)
    sums = MinibatchCka()
    sums.add([rows(3, 2), rows(3, 2)])
    with pytest.raises(StarError, match="3 frames are too few"):
        sums.value(0, 1)


# clustering


def measured(matrix, measure="cka", first=1):
    matrix = np.array(matrix, dtype=float)
    return Similarity(tuple(range(first, first + len(matrix))), matrix, measure, 1.0, 1, 50)


def planted(groups, count, close=0.9, far=0.2, seed=0):
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, (count, count))
    matrix = np.full((count, count), far) + (noise + noise.T) / 2
    for group in groups:
        matrix[np.ix_(group, group)] += close - far
    np.fill_diagonal(matrix, 1.0)
    return matrix


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("measure", ["cka", "cosine", "l2"])
def test_planted_runs_of_layers_are_found(linkage, contiguous, measure):
    matrix = planted([[0, 1, 2], [3, 4], [5, 6, 7, 8, 9], [10, 11]], 12)
    if measure == "l2":
        matrix = np.sqrt(2 - 2 * matrix)
    found = cluster(measured(matrix, measure), GroupingConfig(4, measure, linkage=linkage, contiguous=contiguous))
    assert found.groups == ((1, 2, 3), (4, 5), (6, 7, 8, 9, 10), (11, 12))


@pytest.mark.parametrize("linkage", ["average", "complete", "single", "ward"])
def test_planted_groups_that_are_no_runs_are_found_unless_runs_are_asked_for(linkage):
    matrix = planted([[0, 1, 5], [2, 3, 4, 6]], 7)
    assert cluster(measured(matrix, first=0), GroupingConfig(2, linkage=linkage)).groups == ((0, 1, 5), (2, 3, 4, 6))
    for number in range(1, 8):
        groups = cluster(measured(matrix, first=0), GroupingConfig(number, linkage=linkage, contiguous=True)).groups
        assert len(groups) == number and [layer for group in groups for layer in group] == list(range(7)), (
            "runs in order"
        )


def test_contiguous_linkages_see_all_pairs_of_layers():
    # neighbours are alike; so are 1 and 3, which only an average over all pairs sees; 5 is like 4 alone
    distance = np.array([[0, 3, 1, 9, 9], [3, 0, 3, 9, 9], [1, 3, 0, 4, 9], [9, 9, 4, 0, 3.5], [9, 9, 9, 3.5, 0]])
    config = {"measure": "l2", "contiguous": True, "number": 2}
    merges = cluster(measured(distance, "l2"), GroupingConfig(linkage="average", **config)).merges
    assert merges == ((0, 1, 3.0, 2), (5, 2, 2.0, 3), (3, 4, 3.5, 2), (6, 7, pytest.approx((9 * 5 + 4) / 6), 5))
    complete = cluster(measured(distance, "l2"), GroupingConfig(linkage="complete", **config)).merges
    single = cluster(measured(distance, "l2"), GroupingConfig(linkage="single", **config)).merges
    assert [m[2] for m in complete] == [3.0, 3.0, 3.5, 9.0] and [m[2] for m in single] == [3.0, 1.0, 3.5, 4.0]


def test_free_merges_are_scikit_learns_and_scipys():
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    matrix = planted([[0, 4, 5], [1, 2, 3, 6]], 7, seed=4)
    for linkage in ("average", "complete", "single"):
        ours = cluster(measured(matrix), GroupingConfig(2, linkage=linkage)).merges
        theirs = hierarchy.linkage(squareform(1 - matrix), linkage)
        assert np.allclose(np.array(ours)[:, 2:], theirs[:, 2:])
    # ward on the points that similarities make: between two unit vectors, sqrt(2 - 2 s)
    pair = cluster(measured([[1, 0.28], [0.28, 1]]), GroupingConfig(1, linkage="ward"))
    assert pair == Clustering(((1, 2),), ((0, 1, pytest.approx(1.2), 2),))


def test_one_layer_and_as_many_groups_as_layers():
    assert cluster(measured([[1.0]]), GroupingConfig(1)) == Clustering(((1,),), ())
    assert cluster(measured(planted([], 3)), GroupingConfig(3)).groups == ((1,), (2,), (3,))
    with pytest.raises(StarError, match="number: 4 groups cannot be made of 3 layers"):
        cluster(measured(planted([], 3)), GroupingConfig(4))


def test_ward_needs_a_measure_that_makes_a_space():
    with pytest.raises(StarError, match="linkage: ward needs estimator exact"):
        GroupingConfig(linkage="ward", estimator="minibatch")
    GroupingConfig(linkage="ward", estimator="minibatch", measure="l2")


# the command

SIZES = {
    "conv_layers": ((16, 400, 320),),
    "heads": 2,
    "head_width": 8,
    "ffn": 16,
    "position_kernel": 4,
    "position_groups": 2,
}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Eight seconds of noise whose colour and loudness move."""
    folder, random = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    for i in range(8):
        wave = np.cumsum(random.standard_normal(int(random.uniform(0.6, 1.4) * 16_000))) * 0.001
        wave += 0.1 * random.standard_normal(len(wave)) * np.sin(np.arange(len(wave)) / (300 + 200 * i)) ** 2
        soundfile.write(folder / f"{i}.wav", wave.astype(np.float32), 16_000)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher of 4 layers, a copy whose last two layers have moved, and a student of 2 layers and another width."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    teacher = Encoder(EncoderConfig(width=16, layers=4, **SIZES))
    checkpoint.save(folder / "teacher", teacher, {})
    for layer in teacher.layers[2:]:
        layer.ffn_out.bias.data.normal_()
        layer.ffn_out.weight.data.mul_(200)
    loss = {"hint": {"teacher_layers": [0, 1, 2]}}
    checkpoint.save(folder / "moved", teacher, {"recipe": {"loss": loss}})
    checkpoint.save(folder / "half", Encoder(EncoderConfig(width=32, layers=2, **SIZES)), {})
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))


def command(capsys, *words):
    cli.main(["similarity", *map(str, words)])
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_the_mini_teachers_layers(capsys, audio, tmp_path):
    files = sorted(audio.iterdir())
    result, err = command(
        capsys, "star_mini_teacher", *files, "--groups", "3", "--contiguous", "--out", tmp_path / "out"
    )
    assert (
        result["layers"] == list(range(9))
        and len(result["groups"]) == 3
        and [layer for group in result["groups"] for layer in group] == list(range(9))
    )
    matrix = np.array(result["matrix"])
    assert np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1) and 0 < matrix.min() < 0.9
    assert (result["clips"], result["estimator"], result["linkage"]) == (8, "exact", "average")
    assert result["hours"] == pytest.approx(sum(soundfile.info(f).duration for f in files) / 3600, abs=1e-4)
    assert (
        "frames are few for exact CKA at width 320" in err
        and f"groups of layers: {' | '.join(layer_report.names(result['groups']))}" in err
    )
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["similarity.json", "similarity.png"]
    assert json.loads((tmp_path / "out" / "similarity.json").read_text())["groups"] == result["groups"]
    assert (tmp_path / "out" / "similarity.png").read_bytes()[:4] == b"\x89PNG"


def test_part_of_the_audio_is_drawn_by_the_seed(capsys, models, audio):
    one, other, again = (
        command(capsys, models / "teacher", audio, "--seconds", "3", "--seed", seed)[0] for seed in (0, 1, 0)
    )
    assert 3 / 3600 - 1e-4 <= one["hours"] < 4.5 / 3600 and one["clips"] < 8
    assert one["matrix"] == again["matrix"] != other["matrix"]


@pytest.mark.parametrize(
    "options", [["--measure", "cosine"], ["--measure", "l2", "--linkage", "ward"], ["--estimator", "minibatch"]]
)
def test_other_measures(capsys, models, audio, options, tmp_path):
    result, _ = command(
        capsys, models / "teacher", audio, *options, "--zeroth", "none", "--groups", "2", "--out", tmp_path / "out"
    )
    assert (
        result["layers"] == [1, 2, 3, 4]
        and len(result["groups"]) == 2
        and ("estimator" in result) == (result["measure"] == "cka")
    )
    assert np.allclose(np.diag(result["matrix"]), float(result["measure"] != "l2"))


def test_a_students_distance_grows_where_it_was_not_distilled(capsys, models, audio, tmp_path):
    result, _ = command(capsys, models / "teacher", audio, "--student", models / "moved", "--out", tmp_path / "out")
    student = result["student"]
    assert (student["distilled"], student["distilled_from"]) == ([0, 1, 2], "provenance")
    for row in student["distances"]:
        assert row["layer"] == row["teacher_layer"] and row["distilled"] == (row["layer"] <= 2)
        near = [abs(row[key]) < 1e-5 for key in ("cka_distance", "l1", "cosine_distance")]
        assert all(near) if row["layer"] <= 2 else not any(near)
    means = student["means"]
    assert means["distilled"]["l1"] == 0 and means["undistilled"]["l1"] == pytest.approx(
        np.mean([r["l1"] for r in student["distances"][3:]]), abs=1e-5
    )
    assert (tmp_path / "out" / "distance.png").read_bytes()[:4] == b"\x89PNG"
    given, _ = command(capsys, models / "teacher", audio, "--student", models / "moved", "--distilled", "3,4")
    assert given["student"]["distilled"] == [3, 4] and given["student"]["distilled_from"] == "option"


@pytest.mark.parametrize("estimator", ["exact", "minibatch"])
def test_a_student_of_other_depth_and_width(capsys, models, audio, estimator):
    words = (models / "teacher", audio, "--student", models / "half", "--estimator", estimator)
    result, err = command(capsys, *words)
    rows = result["student"]["distances"]
    assert [(row["layer"], row["teacher_layer"]) for row in rows] == [(0, 0), (1, 2), (2, 4)]
    assert all(
        0 < row["cka_distance"] < 1 and row["l1"] is row["cosine_distance"] is row["distilled"] is None for row in rows
    )
    assert "half does not say which of its layers were distilled; give --distilled" in err


def test_groups_are_named_by_their_runs():
    assert layer_report.names(((0,), (1, 2, 3, 7), (4, 6), (8, 9))) == ["0", "1-3,7", "4,6", "8-9"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["star_mini_teachr", "{audio}"], "did you mean 'star_mini_teacher'"),
        (["{models}/teacher", "{audio}/nothing"], "no such folder or manifest"),
        (["{models}/teacher", "{audio}/0.wav", "--groups", "9"], "number: 9 groups cannot be made of 5 layers"),
        (["{models}/teacher", "{audio}", "--groups", "0"], "--groups: expected a whole number of 1 or more"),
        (["{models}/teacher", "{audio}", "--seconds", "0"], "--seconds: expected a number above 0"),
        (
            ["{models}/teacher", "{audio}", "--linkage", "ward", "--estimator", "minibatch"],
            "ward needs estimator exact",
        ),
        (["{models}/teacher", "{audio}", "--measure", "rsa"], "invalid choice: 'rsa'"),
        (["{models}/teacher", "{audio}", "--distilled", "1,2"], "--distilled: goes with --student"),
        (
            ["{models}/teacher", "{audio}", "--student", "{models}/half", "--distilled", "1,x"],
            "expected layers such as 4,8,12, got '1,x'",
        ),
        (
            ["{models}/teacher", "{audio}", "--student", "{models}/half", "--distilled", "3"],
            "the student has layers 0 to 2, got 3",
        ),
        (["star_mini_teacher", "{audio}", "--student", "{models}/slow"], "strides are 320 (teacher) and 160"),
        (["{models}/teacher", "{audio}", "--device", "quantum"], "--device quantum: "),
        (
            ["{models}/teacher", "{audio}", "--out", "{audio}/0.wav"],
            "0.wav: is a file, where star similarity writes a folder",
        ),
        (["{models}/teacher"], "required: audio"),
    ],
)
def test_mistakes_are_one_line(capsys, models, audio, words, message):
    slow = EncoderConfig(**{**SIZES, "conv_layers": ((16, 400, 160),)}, width=16, layers=1)
    checkpoint.save(models / "slow", Encoder(slow), {})
    with pytest.raises(SystemExit) as stop:
        cli.main(["similarity", *(word.format(models=models, audio=audio) for word in words)])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and message in captured.err and "Traceback" not in captured.err
