"""The models that ship with the package: a small teacher and its STaR students (see CARD.md beside this file)."""

from pathlib import Path

SHIPPED = {
    "star_mini": Path(__file__).parent / "student",
    "star_mini_mel": Path(__file__).parent / "mel",
    "star_mini_stream": Path(__file__).parent / "stream",
    "star_small": Path(__file__).parent / "small",
    "star_mini_teacher": Path(__file__).parent / "teacher",
}
