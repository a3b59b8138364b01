"""How much audio the official corpora have, and what a run at the official schedule costs on either side."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from eval.heads.probe import Schedule


@dataclass(frozen=True)
class Hours:
    """Audio in each split, in hours. er: of one fold."""

    train: float
    dev: float
    test: float
    whole: float
    """All there is to encode."""
    folds: int = 1


OFFICIAL = {
    "pr": Hours(100.6, 5.4, 5.4, 111.4),
    "asr": Hours(100.6, 5.4, 5.4, 111.4),
    "ks": Hours(14.2, 1.9, 0.9, 17.0),
    "sid": Hours(317.1, 15.8, 18.9, 351.8),
    "asv": Hours(340.0, 10.8, 10.8, 350.8),
    "sd": Hours(58.0, 11.0, 11.0, 80.0),
    "ic": Hours(14.7, 1.9, 2.4, 19.0),
    "sf": Hours(87.2, 2.3, 2.3, 91.8),
    "er": Hours(4.5, 1.1, 1.4, 7.0, folds=5),
}
"""LibriSpeech and Libri2Mix: published; VoxCeleb1: its 352 h shared out by utterance counts times 8.25 s; Fluent Speech
Commands: its paper; Speech Commands: one second an utterance; IEMOCAP and SNIPS: published counts times 4.55 s and 3 s,
which are our estimates. asv is looked at on its test utterances."""

AIMS = {"ks": 20, "sid": 20, "ic": 20, "er": 20, "pr": 5, "sd": 5, "asr": 2, "sf": 2}
"""How many times faster a whole run is to be, projected."""


@dataclass(frozen=True)
class Projection:
    """Hours of a whole run."""

    theirs_training: float
    theirs_evaluating: float
    ours_encoding: float
    ours_training: float
    ours_evaluating: float
    features_gb: float
    """What ours keeps on disk."""

    @property
    def theirs(self) -> float:
        return self.theirs_training + self.theirs_evaluating

    @property
    def ours(self) -> float:
        return self.ours_encoding + self.ours_training + self.ours_evaluating

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours

    def record(self) -> dict[str, float]:
        return {**asdict(self), "theirs": self.theirs, "ours": self.ours, "ratio": self.ratio}


def project(
    hours: Hours,
    schedule: Schedule,
    their_batch: float,
    our_step: float,
    encode: float,
    their_look: float,
    our_look: float,
    bytes_an_hour: float,
) -> Projection:
    """``their_batch``: seconds of one of ``schedule.accumulate`` batches; ``our_step``: seconds of an update;
    ``encode``, ``their_look`` and ``our_look``: seconds an hour of audio to encode it, and to evaluate it once.

    Both sides are given the schedule's updates, its looks at dev and one at test. ``theirs`` encodes in each of them,
    ``ours`` once.
    """
    looked = schedule.steps // schedule.eval_every * hours.dev + hours.test
    return Projection(
        theirs_training=hours.folds * schedule.steps * schedule.accumulate * their_batch / 3600,
        theirs_evaluating=hours.folds * looked * their_look / 3600,
        ours_encoding=hours.whole * encode / 3600,
        ours_training=hours.folds * schedule.steps * our_step / 3600,
        ours_evaluating=hours.folds * looked * our_look / 3600,
        features_gb=hours.whole * bytes_an_hour / 1e9,
    )
