"""Tasks side by side: :mod:`star_upstream.jobs`, where fine-tuning runs use it too."""

from star_upstream.jobs import side_by_side

__all__ = ["side_by_side"]
