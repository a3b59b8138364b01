"""How a student starts: random values, the teacher's weights, or parts of them, or those of a
student with another front end."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from ..encoder import Encoder
from ..errors import StarError
from ..formats import sources
from .config import Initialisation, Recipe


def make_student(recipe: Recipe, teacher: Encoder) -> Encoder:
    """The student as the recipe starts it: the same for the same seed."""
    torch.manual_seed(recipe.training.seed)
    student = Encoder(recipe.student_config(teacher.config))
    if recipe.student == "teacher":
        student.load_state_dict(teacher.state_dict())
    else:
        initialise(student, teacher, recipe.training.initialise_from_teacher)
        if source := recipe.training.initialise_from_student.source:
            take_behind_frontend(student, sources.load(source), source)
    return student


def behind_frontend(student: Encoder) -> list[Parameter]:
    """All parameters but the front end's."""
    return [parameter for name, parameter in student.named_parameters() if not name.startswith("frontend.")]


def take_behind_frontend(student: Encoder, other: Encoder, source: str) -> None:
    """Copy everything but the front end. Raises :class:`StarError` where anything of it has another shape."""
    mine, theirs = (
        {name: value for name, value in encoder.state_dict().items() if not name.startswith("frontend.")}
        for encoder in (student, other)
    )
    odd = [k for k in {**mine, **theirs} if k not in mine or k not in theirs or mine[k].shape != theirs[k].shape]
    if odd:
        raise StarError(
            f"training.initialise_from_student: {source} has another {odd[0]} than the student; all but the front end "
            "must be equal"
        )
    student.load_state_dict(theirs, strict=False)


def initialise(student: Encoder, teacher: Encoder, config: Initialisation) -> None:
    """Copy from teacher to student what ``config`` names. Raises :class:`StarError` where their shapes differ."""
    pairs = []
    if config.frontend:
        names = ("frontend", "position", "norm") if config.norm else ("frontend", "position")
        pairs += [(name, getattr(student, name), getattr(teacher, name)) for name in names]
    if config.layers is not None:
        where, count = "training.initialise_from_teacher.layers", len(teacher.layers)
        if len(config.layers) != len(student.layers) or any(not 1 <= n <= count for n in config.layers):
            raise StarError(
                f"{where}: expected {len(student.layers)} numbers from 1 to {count}, got {list(config.layers)}"
            )
        chosen = zip(student.layers, config.layers)
        pairs += [(f"layers.{i}", own, teacher.layers[n - 1]) for i, (own, n) in enumerate(chosen)]
        if student.relative_position is not None and teacher.relative_position is not None:
            pairs.append(("relative_position", student.relative_position, teacher.relative_position))
    for name, own, other in pairs:
        mine, theirs = own.state_dict(), other.state_dict()
        if name == "frontend" and student.frontend.norm is None:
            theirs = {k: v for k, v in theirs.items() if not k.startswith("norm.")}
        odd = [k for k in {**mine, **theirs} if k not in mine or k not in theirs or mine[k].shape != theirs[k].shape]
        if odd:
            raise StarError(
                f"training.initialise_from_teacher: the student's {name}.{odd[0]} has not the teacher's shape"
            )
        own.load_state_dict(theirs)
