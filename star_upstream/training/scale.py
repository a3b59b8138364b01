"""A recipe for another teacher than its own, and its student at another number of parameters.

Everything that is changed is said. Shapes of published students (HuBERT Base's 12 layers, 768 channels) become those of
a teacher of another depth and width; the number of parameters is met by the width, then by the FFN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import strict
from ..encoder import EncoderConfig
from ..encoder.size import without_training
from ..errors import StarError
from ..files import home
from ..formats import checkpoint
from ..mini import SHIPPED
from ..pruning.size import Size
from .recipe import Recipe

TOLERANCE = 0.05
"""How far from the number of parameters that was asked for a student may be, as a share of it."""
MULTIPLE = 8
"""Of what there are channels of convolutions, and FFN units where the size allows it."""
_SHAPE = (
    "frontend", "mel_bins", "conv_layers", "conv_bias", "conv_norm", "normalize_waveform", "normalize_epsilon",
    "projection", "width", "position_kernel", "position_groups", "position_norm", "position_layers", "head_width",
    "norm", "norm_epsilon", "relative_position",
)  # fmt: skip
"""What a student that starts as its teacher's front end and first layers has of it."""


def adapt(recipe: Recipe, wanted: int, source: str, teacher: EncoderConfig) -> tuple[Recipe, int]:
    """``recipe`` with ``source`` (an encoder of the shape ``teacher``) as its teacher and a student of ``wanted``
    parameters (:func:`.size.without_training`), and how many it has; :func:`differences` says what was changed.

    Where the recipe's own teacher has another shape, as many layers as it has become as many as this one has, numbers
    of layers in the student and the loss keep their share of the depth, heads theirs of the heads, and predictions have
    this teacher's width. Then the size is met: a student that is pruned gets the target sparsity; one that starts as
    the first layers of its teacher has the teacher's shape, and as many layers as fit best; any other gets the width at
    which its FFN keeps its proportion best. Raises :class:`StarError` where the student would be further than
    :data:`TOLERANCE` from ``wanted``.
    """
    own = teacher if recipe.teacher == source else _config(recipe.teacher) or teacher
    found = replace(recipe, teacher=source)
    if own.layers != teacher.layers:
        loss = {name: _fit_options(options, own.layers, teacher.layers) for name, options in recipe.loss.items()}
        found = replace(found, loss=loss)
    if recipe.student == "teacher" or recipe.training.initialise_from_student.source:
        found, count = _pruned(found, wanted, teacher)
    elif _copies(recipe):
        found, count = _first_layers(found, wanted, own, teacher)
    else:
        student = _solve(_fit(recipe.student_config(), own, teacher), wanted, _tied(recipe.student_config()))
        found, count = replace(found, student=student), without_training(student)
        if abs(count - wanted) > TOLERANCE * wanted:
            raise StarError(f"{wanted:,} parameters: the nearest size of this student is {count:,}")
    return found, count


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """What two configurations differ in, a phrase each: ``student.width 432 → 128``; lists of one value as that."""
    there, here = strict.plain(before), strict.plain(after)
    if isinstance(there, dict) and isinstance(here, dict):
        names = {key: f"{where}.{key}".strip(".") for key in (*there, *here)}
        return [text for key, name in names.items() for text in differences(there.get(key), here.get(key), name)]
    return [] if there == here else [f"{where} {_short(there)} → {_short(here)}"]


def _pruned(recipe: Recipe, wanted: int, teacher: EncoderConfig) -> tuple[Recipe, int]:
    config = recipe.student_config(teacher)
    if recipe.pruning is None:
        count = without_training(config)
        if abs(count - wanted) > TOLERANCE * wanted:
            raise StarError(f"{wanted:,} parameters: the student starts as a trained model, and has {count:,}")
        return recipe, count
    target = round(1.0 - wanted / Size(config).original, 6)
    if not 0.0 < target < 1.0:
        raise StarError(f"{wanted:,} parameters: not below the teacher's, which is pruned")
    return replace(recipe, pruning=replace(recipe.pruning, target=target, measure="parameters")), wanted


def _first_layers(recipe: Recipe, wanted: int, own: EncoderConfig, teacher: EncoderConfig) -> tuple[Recipe, int]:
    """The student as the teacher's front end and first layers, as many as come nearest to ``wanted``."""
    student, start = _fit(recipe.student_config(), own, teacher), recipe.training.initialise_from_teacher
    shape = {name: getattr(teacher, name) for name in _SHAPE}

    def of(count: int) -> EncoderConfig:
        return replace(student, **shape, layers=count, heads=teacher.heads[:count], ffn=teacher.ffn[:count])

    counts = {count: without_training(of(count)) for count in range(1, teacher.layers + 1)}
    best = min(counts, key=lambda count: abs(counts[count] - wanted))
    if abs(counts[best] - wanted) > TOLERANCE * wanted:
        raise StarError(
            f"{wanted:,} parameters: the student starts as its teacher's first layers, so it can have "
            f"{', '.join(f'{count:,}' for count in counts.values())}; ask for about as many as one of these, or write "
            "a recipe whose student starts at random"
        )
    layers = None if start.layers is None else tuple(range(1, best + 1))
    training = replace(recipe.training, initialise_from_teacher=replace(start, layers=layers))
    return replace(recipe, student=of(best), training=training), counts[best]


def _fit(student: EncoderConfig, own: EncoderConfig, teacher: EncoderConfig) -> EncoderConfig:
    """The student's depth, heads and predictions for ``teacher`` in the place of ``own``."""
    if (own.layers, own.width, own.heads) == (teacher.layers, teacher.width, teacher.heads):
        return student
    layers = teacher.layers if student.layers == own.layers else min(student.layers, teacher.layers)
    reuse = student.reuse_attention
    if reuse is not None and layers > len(reuse):
        raise StarError(f"student.reuse_attention: is for {len(reuse)} layers; write a recipe for {layers}")
    divisors = [n for n in range(1, student.position_groups + 1) if student.position_groups % n == 0]

    def heads(count: int) -> int:
        """Their share of the teacher's, where the width can be a multiple of them without a coarser step."""
        share = count * max(teacher.heads) / max(own.heads)
        if not count or student.relative_position is not None:
            return count
        return min(divisors, key=lambda n: abs(math.log(n / share)))

    widths: dict[str, Any] = {
        name: teacher.width
        for name in ("output_projection", "prediction_width", "prediction_inner")
        if getattr(student, name) == own.width
    }
    predicted = [_layer(number, own.layers, teacher.layers) for number in student.prediction_layers]
    return replace(
        student,
        **widths,
        layers=layers,
        heads=tuple(heads(count) for count in _stretch(student.heads, layers)),
        ffn=_stretch(student.ffn, layers),
        reuse_attention=reuse and reuse[:layers],
        prediction_layers=tuple(dict.fromkeys(predicted)),
    )


def _solve(config: EncoderConfig, wanted: int, tied: bool) -> EncoderConfig:
    """The width at which the FFN that meets ``wanted`` is nearest to its old proportion of it, and that FFN.

    ``tied``: the heads' channels together are the width.
    """
    grid = math.lcm(config.position_groups, max(config.heads, default=1) if tied else 1)
    units, proportion = sum(config.ffn), sum(config.ffn) / config.width
    found: dict[float, EncoderConfig] = {}
    for width in range(grid, 64 * config.width, grid):
        thin = _at_width(config, width, tied)
        low = without_training(thin)
        if low > wanted and found:
            break
        total = max(0.0, (wanted - low) / (2 * width + 1)) + sum(thin.ffn)
        for multiple in (MULTIPLE, 1):
            each = (max(multiple, multiple * round(n * total / units / multiple)) if n else 0 for n in config.ffn)
            option = replace(thin, ffn=tuple(each))
            off = abs(without_training(option) - wanted) / wanted
            if off < TOLERANCE / 10:  # in multiples of eight where that is near enough
                break
        ratio = abs(math.log(sum(option.ffn) / width / proportion)) if units else 0.0
        found[ratio + (100.0 if off > TOLERANCE / 10 else 0.0) + off] = option
        if low > wanted:
            break
    return found[min(found)]


def _at_width(config: EncoderConfig, width: int, tied: bool) -> EncoderConfig:
    """``config`` at another width, what is proportional to it scaled, with one FFN unit a layer."""
    factor, heads = width / config.width, max(config.heads, default=1)

    def channels(count: int) -> int:
        return width if count == config.width else max(MULTIPLE, MULTIPLE * round(count * factor / MULTIPLE))

    inner: dict[str, Any] = {
        name: max(1, round(getattr(config, name) * factor)) for name in ("adapter", "prediction_inner")
    }
    return replace(
        config,
        **{name: count for name, count in inner.items() if getattr(config, name)},
        width=width,
        conv_layers=tuple((channels(count), kernel, stride) for count, kernel, stride in config.conv_layers),
        head_width=width // heads if tied else max(1, round(config.head_width * factor)),
        ffn=tuple(int(n > 0) for n in config.ffn),
    )


def _tied(config: EncoderConfig) -> bool:
    return max(config.heads, default=1) * config.head_width == config.width


def _copies(recipe: Recipe) -> bool:
    """Whether the student starts as a part of the teacher, and so has its shape."""
    start = recipe.training.initialise_from_teacher
    return start.frontend or start.layers is not None


def _fit_options(options: Any, own: int, here: int) -> Any:
    """A loss's options for a teacher of ``here`` layers in the place of ``own``: its numbers of layers (keys that end
    in ``layer`` or ``layers``), and its lists of one number a layer."""
    if not isinstance(options, dict):
        return options
    changed: dict[str, Any] = {}
    for key, value in options.items():
        if key.endswith(("layer", "layers")) and isinstance(value, int) and not isinstance(value, bool):
            changed[key] = _layer(value, own, here)
        elif key.endswith("layers") and isinstance(value, (list, tuple)) and all(isinstance(n, int) for n in value):
            changed[key] = [_layer(n, own, here) for n in value]
        elif isinstance(value, (list, tuple)) and len(value) == own and all(isinstance(n, (int, float)) for n in value):
            changed[key] = list(_stretch(value, here))
        else:
            changed[key] = value
    return changed


def _layer(number: int, own: int, here: int) -> int:
    """The layer of ``here`` at the same share of the depth; 0 stays."""
    return 0 if number == 0 else max(1, math.floor(number * here / own + 0.5))


def _stretch(values: Sequence[Any], count: int) -> tuple[Any, ...]:
    """``count`` values, each the one at the same share of the way; the last one stays the last."""
    return tuple(values[max(1, math.floor((i + 1) * len(values) / count + 0.5)) - 1] for i in range(count))


def _config(teacher: str) -> EncoderConfig | None:
    """The shape of a recipe's own teacher without loading it; None where only that would tell."""
    source = SHIPPED.get(teacher, home(teacher))
    if checkpoint.is_checkpoint(source):
        return strict.build(EncoderConfig, checkpoint.describe(source).get("encoder"), "encoder")
    return EncoderConfig() if "base" in teacher.lower() else None


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 1 and all(v == value[0] for v in value):
        return value[0]
    return value
