"""The models that ship with the package: a small teacher and its STaR student (see CARD.md beside this file)."""

from pathlib import Path

SHIPPED = {
    "star_mini": Path(__file__).parent / "student",
    "star_small": Path(__file__).parent / "small",
    "star_mini_teacher": Path(__file__).parent / "teacher",
}
