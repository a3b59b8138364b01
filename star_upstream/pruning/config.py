"""What can be chosen about pruning: which gates, how they are drawn, how small the model must become, and the second
stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .. import strict
from ..errors import StarError


@dataclass(frozen=True)
class InitialKeep:
    """How open each kind of gate starts: ``log a`` = log(k / (1 - k)), before the stretch. As DPHuBERT's code has it
    (commit c18093f, components.py: an ``init_mean`` of the gate being closed of 0.01, but 0.5 for FFN units): with the
    stretch, a gate is not 0 with a probability of 0.998, an FFN unit's with 0.832, so that HuBERT Base starts at an
    expected sparsity of 0.1018."""

    conv_channels: float = 0.99
    heads: float = 0.99
    ffn_units: float = 0.5
    attention_layers: float = 0.99
    ffn_layers: float = 0.99

    def __post_init__(self):
        strict.within(self, "(0, 1)", *vars(self))


@dataclass(frozen=True)
class GateConfig:
    """Which parts have gates, and their distribution (Louizos, Welling, Kingma 2018, section 2.2; its stretch and
    temperature)."""

    conv_channels: bool = True
    """Channels of each convolution; the last one's only where a projection follows."""
    heads: bool = True
    ffn_units: bool = True
    attention_layers: bool = False
    """Whole attention parts of layers, on top of their heads."""
    ffn_layers: bool = False
    stretch: tuple[float, float] = (-0.1, 1.1)
    temperature: float = 2.0 / 3.0
    initial_keep: float | InitialKeep = field(default_factory=InitialKeep)
    """:class:`InitialKeep`, or one number for all kinds."""
    initial_noise: float = 0.01
    """Standard deviation of what is drawn and added to each ``log a`` at the start (DPHuBERT's code: hardconcrete.py,
    ``init_std``)."""
    round_channels: int = 1
    """Convolutions keep a multiple of so many channels (or all of them): 8 suits most hardware."""
    round_units: int = 1
    """The same for FFN units."""

    def keep(self, kind: str) -> float:
        """Where gates of ``kind`` (a field of :class:`InitialKeep`) start."""
        return self.initial_keep if isinstance(self.initial_keep, float) else getattr(self.initial_keep, kind)

    def __post_init__(self):
        if not any((self.conv_channels, self.heads, self.ffn_units, self.attention_layers, self.ffn_layers)):
            raise StarError("conv_channels, heads, ffn_units, attention_layers, ffn_layers: at least one must be true")
        low, high = self.stretch
        if not (low < 0.0 and high > 1.0):
            raise StarError(f"stretch: must reach below 0 and above 1, got {list(self.stretch)}")
        kept = ("initial_keep",) if isinstance(self.initial_keep, float) else ()
        strict.within(self, "(0, 1)", "temperature", *kept)
        strict.within(self, "[0, inf)", "initial_noise")
        strict.within(self, "[1, inf)", "round_channels", "round_units")


@dataclass(frozen=True)
class SecondStage:
    """The training after the cut. Exactly one of ``epochs``, ``updates`` and ``minutes``; all else is as in the first
    stage."""

    epochs: float | None = None
    updates: int | None = None
    minutes: float | None = None
    learning_rate: float = 1e-4
    warmup: float = 0.2

    def __post_init__(self):
        strict.lengths(self)
        strict.within(self, "(0, inf)", "learning_rate")
        strict.within(self, "[0, 1)", "warmup")


@dataclass(frozen=True)
class PruningConfig:
    """Stage 1 distils with gates until the target is met; the model is cut; stage 2 distils what is left (DPHuBERT,
    section 2.3)."""

    second: SecondStage
    target: float = 0.75
    """Share of the student that goes, 0 to 1, in terms of ``measure``."""
    measure: Literal["parameters", "macs"] = "parameters"
    seconds: float = 10.0
    """Length of the utterance whose multiply-accumulates are counted; only for ``macs``."""
    target_warmup: float = 0.1
    """Share of stage 1 in which the target rises from 0 (DPHuBERT: 5 k of 50 k updates)."""
    gate_learning_rate: float = 0.02
    """Like the next one at its highest: both follow the run's warm-up and decay (as in DPHuBERT's code, where one
    scheduler moves all)."""
    multiplier_learning_rate: float = 0.02
    second_data: Literal["again", "onward"] = "again"
    """Where stage 2 begins in the order of the batches: at its start again (DPHuBERT's code runs it by itself), or
    where stage 1 ended."""
    quadratic_start: float = 0.0
    """Where the multiplier of the squared gap starts. In a short run the linear multiplier has no time to come back
    once the gates overshoot; a quadratic one of 10 to 100 pulls them back at once."""
    gates: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self):
        strict.within(self, "(0, 1)", "target")
        strict.within(self, "[0, 1]", "target_warmup")
        strict.within(self, "(0, inf)", "seconds", "gate_learning_rate", "multiplier_learning_rate")
        strict.within(self, "[0, inf)", "quadratic_start")
