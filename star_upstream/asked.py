"""What ``star compare`` is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .errors import StarError
from .flags import flag, named, rates

OWN = ("teacher", "training.updates", "training.epochs", "training.minutes", "training.seed")
"""Keys that a comparison sets itself."""


@dataclass(frozen=True)
class Scoring:
    """Options of ``python -m eval run``; None leaves one out."""

    tasks: str = flag("of star-eval run, with commas between (all)", "all")
    data: str = flag("of star-eval run: corpora or manifests to score on (mini)", "mini")
    schedule: str | None = flag("of star-eval run", None)
    steps: int | None = flag("of star-eval run", None)
    limit: int | None = flag("of star-eval run", None)
    lr_grid: str | None = flag("of star-eval run: the heads' learning rates", None)
    cache: str | None = flag("of star-eval run: folder for features", None)
    cache_gb: float | None = flag("of star-eval run", None)

    def words(self) -> list[str]:
        given = {name: value for name, value in vars(self).items() if value is not None}
        return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@dataclass(frozen=True)
class Asked:
    """What is compared. ``sources``: shipped recipes or yaml files, first the one that is tested against each other."""

    sources: tuple[str, ...]
    overrides: tuple[str, ...]
    """``key=value`` for every recipe."""
    teacher: str = flag("the same for all, as in a recipe", read=named)
    parameters: int = flag("of every student, to 5 %%")
    updates: int = flag("of every student, both stages together")
    seeds: int = flag("runs of each recipe (1); 3 or more to tell", 1)
    search_rates: tuple[float, ...] = flag(
        "train every recipe at each of these rates first, and take the one of its lowest validation loss", (), rates
    )
    search_updates: int | None = flag("of each run of the search (--updates)", None)
    scoring: Scoring = field(default_factory=Scoring)
    seconds: float = 10.0
    """Audio of the forward pass that is timed, on one thread of the CPU."""

    def __post_init__(self):
        if len(self.sources) < 2:
            raise StarError("name two recipes or more: the first is compared with each other")
        for name in ("parameters", "updates", "seeds"):
            if getattr(self, name) < 1:
                raise StarError(f"--{name}: must be 1 or more, got {getattr(self, name)}")
        if self.updates < 2:
            raise StarError("--updates: must be 2 or more, one for each stage of a recipe that prunes")
        if self.search_rates and (
            len(set(self.search_rates)) < 2 or not all(0 < r < math.inf for r in self.search_rates)
        ):
            raise StarError("--search-rates: give two different learning rates above 0, or more")
        if self.search_updates is not None and (not self.search_rates or self.search_updates < 2):
            raise StarError("--search-updates: is of --search-rates, and 2 or more")
        for word in self.overrides:
            if word.partition("=")[0] in OWN:
                raise StarError(f"{word}: star compare sets this itself (--teacher, --updates, --seeds); leave it out")
