"""``star similarity``: how a teacher's layers resemble each other and group, how far a student's are from them, and the
pictures.

The second is the SKILL paper's case against hand-picked layers: where a student is distilled at a few alone, the others
drift.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import losses, outputs
from ..data.clips import Clip, find
from ..encoder import Encoder, EncoderConfig
from ..errors import StarError, first_line
from ..files import replacing, write_json
from ..formats import checkpoint
from ..formats.sources import load
from ..mini import SHIPPED
from ..say import say
from . import similarity
from .similarity import Clustering, ExactCka, GroupingConfig, MinibatchCka, Similarity


def report(
    teacher: str,
    sources: Sequence[str],
    config: GroupingConfig,
    student: str | None = None,
    distilled: Sequence[int] | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Everything that ``star similarity`` prints; with ``out``, also written there with ``similarity.png`` and
    ``distance.png``.

    ``sources``: folders, lists of audio or audio files. ``distilled``: the student's distilled layers, where its
    checkpoint does not say, or to say otherwise. Earlier results in ``out`` are replaced. Raises :class:`StarError` for
    models and audio that cannot be used, and for layers not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if distilled is not None and student is None:
        raise StarError("--distilled: goes with --student")
    if out is not None:
        out = outputs.check_folder(
            out, "star similarity", outputs.holds("similarity.json", "teacher", "groups", "matrix")
        )
    model = load(teacher)
    own = None if student is None else load(student)
    if student is not None and own is not None:
        marked = _marked(student, own.config, distilled)
        check_pair(model, own)
    clips = find(sources)
    model = _moved(model, device)
    measured = similarity.measure(model, clips, config, seed)
    found = similarity.cluster(measured, config)
    if config.measure == "cka" and config.estimator == "exact" and measured.frames < 10 * model.config.width:
        few = f"{measured.frames} frames are few for exact CKA at width {model.config.width}"
        say(f"star: {few}: values are too high; give more audio, or --estimator minibatch")
    result = {
        "teacher": teacher,
        **{key: value for key, value in asdict(config).items() if key not in ("number", "seconds")},
        "seed": seed,
        "hours": round(measured.seconds / 3600, 4),
        "clips": measured.clips,
        "frames": measured.frames,
        "groups": [list(group) for group in found.groups],
        "layers": list(measured.layers),
        "matrix": measured.matrix_LL.round(6).tolist(),
        "merges": [[first, second, round(distance, 6), size] for first, second, distance, size in found.merges],
    }
    if config.measure != "cka":
        del result["estimator"]
    if own is not None:
        rows = compare(model, _moved(own, device), clips, config, seed)
        result["student"] = {"source": student, **_told_apart(rows, marked)}
    say(f"groups of layers: {' | '.join(names(found.groups))}")
    if out is not None:
        write_json(out / "similarity.json", result)
        _save(draw_matrix(measured, found, _title(result)), out / "similarity.png")
        if own is not None:
            _save(draw_distance(result["student"], result), out / "distance.png")
        result = {**result, "out": str(out)}
    return result


def names(groups: similarity.Groups) -> list[str]:
    """Each group in words: runs of layers as ``2-7``, others after a comma."""

    def name(group):
        starts = [layer for layer in group if layer - 1 not in group]
        ends = [layer for layer in group if layer + 1 not in group]
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends))

    return [name(group) for group in groups]


def check_pair(teacher: Encoder, student: Encoder) -> None:
    """Raises :class:`StarError` for models of different frame rates, or without layers."""
    strides = teacher.config.stride, student.config.stride
    if strides[0] != strides[1]:
        raise StarError(
            f"--student: must have the teacher's frame rate; strides are {strides[0]} (teacher) and {strides[1]}"
        )
    if not student.config.layers:
        raise StarError("--student: has no layers")


def compare(
    teacher: Encoder, student: Encoder, clips: Sequence[Clip], config: GroupingConfig, seed: int = 0
) -> list[dict[str, Any]]:
    """For each layer of the student: the teacher's layer at the same share of the depth, and the distances between the
    two.

    ``cka_distance``: 1 - linear CKA by ``config.estimator``. ``l1``: mean absolute difference, ``cosine_distance``: 1 -
    mean cosine, both without the maps of a distillation, so they may be large where CKA's is small; None where widths
    differ.
    """
    depths = teacher.config.layers, student.config.layers
    layers = range(1 if config.zeroth == "none" else 0, depths[1] + 1)
    pairs = [(round(layer * depths[0] / depths[1]), layer) for layer in layers]
    places = [(2 * i, 2 * i + 1) for i in range(len(pairs))]
    sums = ExactCka(places) if config.estimator == "exact" else MinibatchCka(seed=seed)
    equal = teacher.config.width == student.config.width
    totals, frames = np.zeros((len(pairs), 2)), 0
    for _, (theirs, ours) in similarity.run([teacher, student], clips, config.seconds, seed):
        frames_B = torch.minimum(theirs.lengths_B, ours.lengths_B)
        frames += int(frames_B.sum())
        states = []
        for i, pair in enumerate(pairs):
            a_VD, b_VD = (
                similarity.valid_state(m, layer, config.zeroth, frames_B) for m, layer in zip((theirs, ours), pair)
            )
            states += [a_VD, b_VD]
            if equal:
                cosine_V = torch.nn.functional.cosine_similarity(a_VD, b_VD, dim=-1)
                totals[i] += (a_VD - b_VD).abs().mean(-1).sum().item(), cosine_V.sum().item()
        sums.add(states)
    return [
        {
            "layer": own,
            "teacher_layer": other,
            "cka_distance": 1.0 - sums.value(*places[i]),
            "l1": totals[i, 0] / frames if equal else None,
            "cosine_distance": 1.0 - totals[i, 1] / frames if equal else None,
        }
        for i, (other, own) in enumerate(pairs)
    ]


def _marked(student: str, config: EncoderConfig, given: Sequence[int] | None) -> dict[str, Any]:
    """Which layers were distilled, and who says so."""
    if given is not None:
        outside = [layer for layer in given if not 0 <= layer <= config.layers]
        if outside:
            raise StarError(f"--distilled: the student has layers 0 to {config.layers}, got {outside[0]}")
        return {"distilled": sorted(set(given)), "distilled_from": "option"}
    folder = SHIPPED.get(student, student)
    if checkpoint.is_checkpoint(folder):
        recipe = checkpoint.describe(folder)["provenance"].get("recipe")
        loss = (recipe.get("loss") or {}) if isinstance(recipe, dict) else {}
        groups = next((options["groups"] for options in loss.values() if options and options.get("groups")), None)
        # a loss of another package, or of another version, says nothing here
        with contextlib.suppress(StarError):
            if loss and (found := losses.trained_layers(loss, config).student):
                more = {"groups": groups} if groups else {}
                return {"distilled": list(found), "distilled_from": "provenance", **more}
    say(f"star: {student} does not say which of its layers were distilled; give --distilled, e.g. --distilled 4,8,12")
    return {"distilled": None, "distilled_from": None}


def _told_apart(rows: list[dict[str, Any]], marked: dict[str, Any]) -> dict[str, Any]:
    """Rows with their mark, and the means of distilled and undistilled layers (layer 0 left out: it is before the
    layers)."""
    chosen = marked["distilled"]
    means: dict[str, dict[str, float]] = {}
    for row in rows:
        row["distilled"] = None if chosen is None else row["layer"] in chosen
    for name, mark in (("distilled", True), ("undistilled", False)):
        some = [row for row in rows if row["layer"] and row["distilled"] is mark]
        for key in ("cka_distance", "l1", "cosine_distance"):
            if some and some[0][key] is not None:
                means.setdefault(name, {})[key] = round(float(np.mean([row[key] for row in some])), 6)
    rounded = [{k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    return {**marked, "distances": rounded, "means": means}


def _moved(encoder: Encoder, device: str) -> Encoder:
    try:
        return encoder.to(device)
    except (RuntimeError, AssertionError) as error:
        raise StarError(f"--device {device}: {first_line(error)}") from None


# pictures

_MEASURES = {"cka": "linear CKA", "cosine": "mean cosine", "l2": "L2 distance"}


def _title(result: dict[str, Any]) -> str:
    measure = _MEASURES[result["measure"]] + (f", {result['estimator']}" if result["measure"] == "cka" else "")
    kind = f"{result['linkage']} linkage{', contiguous' if result['contiguous'] else ''}"
    seconds = result["hours"] * 3600
    used = f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
    return f"{Path(result['teacher']).name}: {measure}, {used} of audio; {kind}"


def draw_matrix(measured: Similarity, found: Clustering, title: str):
    """The matrix in the order of the tree's leaves, the tree above it, groups framed and in one colour each."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from scipy.cluster import hierarchy

    count, palette = len(measured.layers), colormaps["tab10"]
    group_of = {layer: number for number, group in enumerate(found.groups) for layer in group}
    nodes = [{layer} for layer in measured.layers]
    for first, second, *_ in found.merges:
        nodes.append(nodes[first] | nodes[second])

    def colour(node: int):
        groups = {group_of[layer] for layer in nodes[node]}
        rgb = palette(groups.pop() % 10)[:3] if len(groups) == 1 else (0.55, 0.55, 0.55)
        return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)

    size = 3.2 + 0.42 * count
    figure = Figure(figsize=(size, size + 1.4), layout="constrained")
    top, middle = figure.subplots(2, 1, height_ratios=(1, 3.2), sharex=True)
    order = [0]
    if found.merges:
        tree = hierarchy.dendrogram(np.array(found.merges, dtype=float), ax=top, link_color_func=colour, no_labels=True)
        order = tree["leaves"]
    top.set_title(title, fontsize=10)
    top.set_ylabel("distance" if measured.measure == "l2" else "1 − similarity")
    for side in ("top", "right", "bottom"):
        top.spines[side].set_visible(False)
    # a dendrogram puts its leaves at 5, 15, 25, ...
    values = measured.matrix_LL[np.ix_(order, order)]
    shades = "viridis_r" if measured.measure == "l2" else "viridis"
    image = middle.imshow(values, cmap=shades, extent=(0, 10 * count, 10 * count, 0), aspect="auto")
    labels = [str(measured.layers[place]) for place in order]
    centres = [10 * i + 5 for i in range(count)]
    middle.set_xticks(centres, labels)
    middle.set_yticks(centres, labels)
    middle.tick_params(labelbottom=True)
    middle.set_xlabel("layer")
    middle.set_ylabel("layer")
    low, high = values.min(), values.max()
    if count <= 14:
        for i in range(count):
            for j in range(count):
                dark = (values[i, j] - low < 0.55 * (high - low)) != (shades == "viridis_r")
                text = f"{values[i, j]:.2f}"
                middle.text(
                    centres[j],
                    centres[i],
                    text,
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "black",
                )
    for number, group in enumerate(found.groups):
        # the leaves of a group lie side by side: its merges are in the tree
        first = min(order.index(measured.layers.index(layer)) for layer in group)
        length, edge = 10 * len(group), palette(number % 10)
        frame = Rectangle(
            (10 * first, 10 * first), length, length, fill=False, edgecolor=edge, linewidth=3, clip_on=False
        )
        middle.add_patch(frame)
    figure.colorbar(image, ax=middle, shrink=0.8, label=_MEASURES[measured.measure])
    return figure


def draw_distance(student: dict[str, Any], result: dict[str, Any]):
    """Distance from the teacher over the student's layers, one panel a distance; distilled layers filled, others
    hollow.

    Where the student was distilled in groups, squares on the axis show them.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = student["distances"]
    labels = {"cka_distance": "1 − CKA", "l1": "L1", "cosine_distance": "1 − cosine"}
    shown = [(key, label) for key, label in labels.items() if rows[0][key] is not None]
    figure = Figure(figsize=(0.6 + 4.2 * len(shown), 3.9), layout="constrained")
    kinds = (
        ("distilled", True, "black", "black"),
        ("not distilled", False, "C3", "white"),
        ("not known", None, "C7", "C7"),
    )
    for axes, (key, label) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown):
        axes.plot([row["layer"] for row in rows], [row[key] for row in rows], color="0.75", zorder=1)
        for name, mark, edge, face in kinds:
            some = [row for row in rows if row["distilled"] is mark]
            if some:
                points = [row["layer"] for row in some], [row[key] for row in some]
                axes.scatter(*points, s=45, edgecolors=edge, facecolors=face, linewidths=1.6, label=name, zorder=2)
        for number, group in enumerate(student.get("groups", ())):
            colour, label_once = colormaps["tab10"](number % 10), None if number else "groups"
            axes.scatter(
                group, [0] * len(group), marker="s", s=60, color=[colour], clip_on=False, zorder=3, label=label_once
            )
        axes.set_xlabel("student layer")
        axes.set_ylabel(f"{label} from the teacher's layer")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(
        f"{'/'.join(Path(student['source']).parts[-2:])} beside {Path(result['teacher']).name}", fontsize=10
    )
    return figure


def _save(figure, path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format="png")
