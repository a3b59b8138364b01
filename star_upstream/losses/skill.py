"""Layer-group distillation: SKILL (Zampierin, Boukli Hacene, Nguyen, Ravanelli, 2024, arXiv 2402.16830).

Hierarchical clustering of the teacher's layer-to-layer similarity on a small calibration set makes groups of layers;
the target is the average of each group. For group g, W_g a linear map that starts as the identity, and the distance of
:mod:`.hint`:

    mean |mean_{l in g} T_l - (W_g s + b_g)|  -  mean cos(mean_{l in g} T_l, W_g s + b_g),     s = mean_{l in g} S_l

Theirs: similarity by CKA on the activations of a small calibration set, bottom-up agglomerative clustering, the average
of a group as its target, and DPHuBERT's two stages (the abstract, and reviews that restate the paper). Not known are
the linkage, the number of groups, the size of the calibration set, the distance and its maps, and the student's side:
these options have defaults of our choice, led by DPHuBERT, which SKILL extends. Shapes: B utterances, T frames, D
width, V valid frames of the batch, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..analysis import similarity
from ..analysis.similarity import GroupingConfig, Groups
from ..data.clips import Clip
from ..encoder import Encoder, EncoderConfig, EncoderOutput
from ..encoder.numerics import wide
from ..errors import StarError
from .common import TrainedLayers, check_rates, layer_state, valid_frames
from .hint import DistanceConfig, FrameDistance


@dataclass(frozen=True)
class SkillConfig(GroupingConfig, DistanceConfig):
    """The distance (:class:`.hint.DistanceConfig`), the groups, and how they are found where not given. ``measure:
    cka`` is SKILL's; all other defaults are our choices."""

    groups: Groups | None = None
    """Layers of each group, every layer in one group: those of the teacher, counted from 1, and 0 unless ``zeroth`` is
    ``none``. None: found by :meth:`SkillLoss.calibrate` before training starts."""
    student_side: Literal["mean", "last"] = "mean"
    """What meets a group's target: the mean of the same layers of the student, or the last of them."""
    maps: Literal["separate", "shared", "none"] = "separate"
    """One a group; one for all; or none, for models of equal width."""

    def __post_init__(self) -> None:
        DistanceConfig.__post_init__(self)
        GroupingConfig.__post_init__(self)


class SkillLoss(nn.Module):
    """The weighted loss over the groups. Raises :class:`StarError` without groups, for groups that are no partition of
    the teacher's layers, and for models of different depth or frame rate."""

    options = SkillConfig
    needs_attention = False

    def __init__(self, config: SkillConfig, teacher: EncoderConfig, student: EncoderConfig):
        super().__init__()
        self.config = config
        check_rates("skill", teacher, student)
        if teacher.layers != student.layers:
            depths = f"{teacher.layers} and {student.layers} layers"
            raise StarError(f"skill: teacher and student must have one depth, they have {depths}")
        if config.groups is None:
            raise StarError(
                "skill.groups: not known yet; give them (e.g. [[0], [1, 2, 3], [4, 5, 6]]) or let losses.calibrate "
                "find them on audio before the loss is built, as star distill does"
            )
        check_groups(config.groups, teacher.layers, config.zeroth)
        self.groups = config.groups
        places = range(len(self.groups))
        self.distance = FrameDistance(config, config.maps, places, teacher.width, student.width, "skill")

    def forward(self, teacher: EncoderOutput, student: EncoderOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss (a scalar, fp32 or wider) and its unweighted terms, ``l1`` and ``cosine`` (minus the
        similarity)."""
        picked = valid_frames(teacher, student)
        targets = [picked(self._mean(teacher, group)) for group in self.groups]
        last = self.config.student_side == "last"
        estimates = [picked(self._mean(student, group[-1:] if last else group)) for group in map(sorted, self.groups)]
        found: tuple[Tensor, dict[str, Tensor]] = self.distance(targets, estimates)
        return found

    @staticmethod
    def calibrate(config: SkillConfig, teacher: Encoder, clips: Sequence[Clip], seed: int) -> dict[str, Groups]:
        """The ``groups`` found on ``config.seconds`` of ``clips``, drawn by ``seed``; nothing where ``config`` has
        them.

        ``teacher`` runs where its parameters are. Raises :class:`StarError` for groups that do not fit the teacher, and
        for no audio.
        """
        if config.groups is not None:
            check_groups(config.groups, teacher.config.layers, config.zeroth)
            return {}
        return {"groups": similarity.cluster(similarity.measure(teacher, clips, config, seed), config).groups}

    @staticmethod
    def trained_layers(config: SkillConfig, student: EncoderConfig) -> TrainedLayers:
        every = tuple(range(1 if config.zeroth == "none" else 0, student.layers + 1))
        if config.groups is None or config.student_side != "last":
            return TrainedLayers(every, every)
        return TrainedLayers(every, tuple(sorted(map(max, config.groups))))

    def _mean(self, output: EncoderOutput, group: Sequence[int]) -> Tensor:
        states = [wide(layer_state(output, layer, self.config.zeroth)) for layer in group]
        return sum(states[1:], start=states[0]) / len(states)


def check_groups(groups: Groups, layers: int, zeroth: str) -> None:
    """Raises :class:`StarError` unless every layer (1 to ``layers``, and 0 unless ``zeroth`` is ``none``) is in one
    group."""
    named = [layer for group in groups for layer in group]
    expected = range(1 if zeroth == "none" else 0, layers + 1)
    faults = {
        "a group is empty": not all(groups) or not groups,
        f"named twice: {sorted({n for n in named if named.count(n) > 1})}": len(set(named)) < len(named),
        f"missing: {[n for n in expected if n not in named]}": not set(expected) <= set(named),
        f"not a layer: {sorted(set(named) - set(expected))}": not set(named) <= set(expected),
    }
    fault = next((text for text, wrong in faults.items() if wrong), None)
    if fault:
        zero = ", 0 left out by zeroth: none" if zeroth == "none" else ""
        raise StarError(f"skill.groups: every layer from {expected[0]} to {layers} in exactly one group{zero}; {fault}")
