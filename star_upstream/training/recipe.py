"""Recipes: everything about a distillation, as data. Shipped ones are ``recipes/*.yaml``; nothing in a recipe is
evaluated.

A recipe file may name another one as its ``base`` and then states only what differs: mappings are merged key by key,
any other value replaces the base's, and ``null`` takes a loss or a choice away.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

import yaml

from .. import strict
from ..encoder import EncoderConfig
from ..errors import StarError, nearest
from ..pruning.config import PruningConfig

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class DataConfig:
    """Which audio, and how it becomes batches."""

    train: tuple[str, ...] = ()
    """Folders (searched whole), lists of audio (:mod:`star_upstream.data.audio_lists`) or audio files."""
    valid: tuple[str, ...] = ()
    """The same for validation; empty: ``valid_share`` of the training clips are held out, always the same ones."""
    valid_share: float = 0.01
    valid_limit: int = 500
    """At most so many clips are held out."""
    min_seconds: float = 1.0
    max_seconds: float = 36.0
    crop_seconds: float | None = None
    """Longer utterances are cut to so much, in training from a random place (DistilHuBERT: 250,000 samples)."""
    batch_seconds: float = 160.0
    """Audio in a batch of one process."""
    counted: Literal["padded", "lengths"] = "padded"
    """What ``batch_seconds`` limits: the audio with its padding, or the utterances' own lengths, before a crop to the
    shortest (DPHuBERT)."""
    batch_items: int | None = None
    """Utterances in a batch of one process, at most."""
    batches: Literal["mixed", "sorted", "repeated"] = "mixed"
    """``mixed``: neighbours in length are drawn anew each epoch; ``sorted``: the same batches each epoch, in another
    order (s3prl, ARMHuBERT); ``repeated``: the same batches in the same order (DPHuBERT)."""
    crop: Literal["none", "shortest", "shortest-random"] = "none"
    """``shortest``: cut a batch's utterances to its shortest instead of padding them; ``shortest-random``: in training
    from a random place of each (as DPHuBERT's recipe has it), not from its start."""
    workers: int = 2
    """Processes that decode audio; 0 decodes between the updates."""
    max_bad_share: float = 0.05
    """Unreadable files are listed and left out; a larger share of them stops the run."""

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds:
            raise StarError(
                f"min_seconds: must be above 0 and at most max_seconds ({self.max_seconds}), got {self.min_seconds}"
            )
        if self.crop_seconds is not None and not self.crop_seconds >= self.min_seconds:
            raise StarError(f"crop_seconds: must be at least min_seconds ({self.min_seconds}), got {self.crop_seconds}")
        name = "max_seconds" if self.crop_seconds is None or self.max_seconds <= self.crop_seconds else "crop_seconds"
        if self.batch_seconds < getattr(self, name):
            raise StarError(f"batch_seconds: must be at least {name} ({getattr(self, name)}), got {self.batch_seconds}")
        if self.batch_items is not None and self.batch_items < 1:
            raise StarError(f"batch_items: must be 1 or more, got {self.batch_items}")
        if self.workers < 0 or self.valid_limit < 1:
            raise StarError("workers must be 0 or more, valid_limit 1 or more")
        for name in ("valid_share", "max_bad_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise StarError(f"{name}: must be at least 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Initialisation:
    """What the student takes over from the teacher instead of starting from random values."""

    frontend: bool = False
    """Everything before the first layer: convolutions, projection, positional convolution, norm; without the norm
    before the projection where the student has none."""
    norm: bool = True
    """With ``frontend``: the norm before the first layer too (DistilHuBERT's code leaves it at its start)."""
    layers: tuple[int, ...] | None = None
    """The teacher's layer, counted from 1, for each layer of the student."""


@dataclass(frozen=True)
class StudentChanges:
    """In what a student that is a copy of its teacher differs from it; None: in nothing. No weight depends on these."""

    hidden_states: Literal["all", "features", "layers", "last"] | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    feature_dropout: float | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how. Exactly one of ``epochs``, ``updates`` and ``minutes`` ends the run and stretches the
    schedule."""

    epochs: float | None = None
    updates: int | None = None
    minutes: float | None = None
    """Wall-clock budget, validation included; the learning rate follows the share of it that has passed."""
    learning_rate: float = 1e-3
    warmup: float = 0.05
    """Share of the run in which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the rise: to 0, or not at all."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    decay: Literal["matrices", "s3prl"] = "matrices"
    """What has the weight decay: kernels and matrices alone, or all but what s3prl's optimizer leaves out: biases
    (:mod:`.decay`)."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    accumulate: int = 1
    """Batches an update."""
    precision: Literal[32, "bf16-mixed", "16-mixed"] = 32
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    """Processes: GPUs, or on the CPU gloo processes."""
    seed: int = 0
    log_every: int = 50
    """Updates; so are the next two."""
    validate_every: int = 1000
    save_every: int = 200
    initialise_from_teacher: Initialisation = field(default_factory=Initialisation)

    def __post_init__(self):
        lengths = {n: getattr(self, n) for n in ("epochs", "updates", "minutes") if getattr(self, n) is not None}
        if len(lengths) != 1:
            raise StarError(
                f"epochs, updates, minutes: set exactly one and the others to null, got {lengths or 'none'}"
            )
        for name in (
            *lengths,
            "learning_rate",
            "eps",
            "accumulate",
            "devices",
            "log_every",
            "validate_every",
            "save_every",
        ):
            if not getattr(self, name) > 0:
                raise StarError(f"{name}: must be above 0, got {getattr(self, name)}")
        for name in ("clip", "weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise StarError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        if not 0.0 <= self.warmup < 1.0:
            raise StarError(f"warmup: must be at least 0 and below 1, got {self.warmup}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise StarError(f"betas: must be at least 0 and below 1, got {list(self.betas)}")


@dataclass(frozen=True)
class Recipe:
    """One distillation."""

    shipped = FOLDER
    folder_key = ("data.train", "data.train")

    teacher: str
    """Any source that :func:`star_upstream.formats.sources.load` takes."""
    student: EncoderConfig | Literal["teacher"]
    """``teacher``: a copy of the teacher, weights included."""
    loss: dict[str, Any]
    """Name of a loss -> its options (:mod:`star_upstream.losses`)."""
    training: TrainingConfig
    """With ``pruning``: of stage 1."""
    data: DataConfig = field(default_factory=DataConfig)
    student_changes: StudentChanges = field(default_factory=StudentChanges)
    pruning: PruningConfig | None = None
    """The student is pruned while it learns, cut, and trained on; None: it keeps its size."""
    select: Literal["valid", "last"] = "valid"
    """Which checkpoint is the result: that of the lowest validation loss (``best/``), or the last one (``last/``)."""
    choices: dict[str, str] = field(default_factory=dict)
    """Where the authors' way is not taken, or not known, and why, by subject: part of the run's record, read by
    nothing."""
    about: str = ""

    def __post_init__(self):
        if self.student == "teacher":
            if self.training.initialise_from_teacher != Initialisation():
                raise StarError(
                    "training.initialise_from_teacher: a student that is a copy of the teacher has its weights; "
                    "leave it out"
                )
        elif self.student_changes != StudentChanges():
            raise StarError("student_changes: only for student: teacher; write them into the student's configuration")

    @property
    def result(self) -> str:
        """The checkpoint, in the run's folder, that ``select`` names."""
        return "best" if self.select == "valid" else "last"

    def student_config(self, teacher: EncoderConfig | None = None) -> EncoderConfig:
        """The student as it starts. Raises :class:`StarError` when it is a copy of the teacher and that is not
        given."""
        if self.student != "teacher":
            return self.student
        if teacher is None:
            raise StarError(f"the recipe's student is a copy of its teacher ({self.teacher}); name a checkpoint")
        changes = {name: value for name, value in vars(self.student_changes).items() if value is not None}
        return replace(teacher, **changes)


class Kind(Protocol):
    """What a class of recipes says of itself beside its fields."""

    shipped: Path
    """The folder of those that ship."""
    folder_key: tuple[str, str]
    """How the folder of the data is given, and what that is short for."""


R = TypeVar("R", bound=Kind)


def names(kind: type[Kind] = Recipe) -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in kind.shipped.glob("*.yaml"))


@overload
def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe: ...
@overload
def load(source: str | Path, overrides: Sequence[str], kind: type[R]) -> R: ...
def load(source: str | Path, overrides: Sequence[str] = (), kind: type[Any] = Recipe) -> Any:
    """The recipe of a shipped name or a yaml file, bases merged, with ``"section.key=value"`` overrides.

    A value whose field is text or a path is taken as it stands (:func:`.strict.from_text`), any other is read as yaml.
    Entries that are null in a table of names (``loss``, ``tasks``) are left out, and ``tasks=keyword`` or
    ``tasks=[a, b]`` keeps those alone. Raises :class:`StarError` for an unknown recipe, key or value.
    """
    where, values = _resolve(source, (), kind)
    chosen: dict[str, tuple[list[Any], str]] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        unknown = key.partition(".")[0] not in kind.__dataclass_fields__
        if not equals or (unknown and Path(override).expanduser().exists()):
            place = Path(override).expanduser().exists() or re.match(r"[/~.]", override)
            example = f"{kind.folder_key[0]}={override}" if place else "training.updates=1000"
            raise StarError(f"{override!r}: an override is key=value, e.g. {example}")
        if not key:
            raise StarError(f"{override!r}: an override is key=value, e.g. training.updates=1000")
        key = kind.folder_key[1] if key == kind.folder_key[0] else key
        value = _from_text(kind, key, text, override)
        if isinstance(value, (str, list)) and _is_table(kind, key):
            names_ = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
            chosen[key] = names_, override
        else:
            _set(values, key, value)
    for key, value in values.items():
        if isinstance(value, dict) and _is_table(kind, key):
            there = {name: entry for name, entry in value.items() if entry is not None}
            kept, override = chosen.get(key, (list(there), ""))
            if override and not (kept and all(name in list(there) for name in kept)):
                raise StarError(f"{override}: the recipe's {key} are {', '.join(there)}")
            values[key] = {name: entry for name, entry in there.items() if name in kept}
    data = values.get("data")
    for key in ("train", "valid"):
        if isinstance(data, dict) and isinstance(data.get(key), str):
            data[key] = [data[key]]
    try:
        return strict.build(kind, values)
    except StarError as error:
        raise StarError(f"{where}: {error}") from None


def _is_table(kind: type, key: str) -> bool:
    """Whether the field holds entries by name."""
    return typing.get_origin(strict.hint_of(kind, key)) is dict


def _from_text(kind: type, key: str, text: str, override: str) -> Any:
    hint = strict.hint_of(kind, key)
    if not text and hint is not str:
        raise StarError(f"{override!r}: no value after the equals sign")
    return strict.from_text(hint, text, lambda words: _parse(words, override))


def dump(recipe: Any) -> str:
    """The recipe as yaml, whole: no base, every default written out. :func:`load` reads it back to an equal recipe."""
    return yaml.dump(
        strict.plain(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )


def _resolve(source: str | Path, children: tuple[Path, ...], kind: type[Kind]) -> tuple[str, dict[str, Any]]:
    path = kind.shipped / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
        if not path.is_file():
            raise StarError(
                f"{source}: no such recipe or yaml file{nearest(str(source), names(kind))} (shipped: "
                f"{', '.join(names(kind))})"
            )
    path = path.resolve()
    if path in children:
        raise StarError(f"{path}: is its own base")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StarError(f"{path}: cannot be read ({error})") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise StarError(f"{path}: expected keys with values")
    base = values.pop("base", None)
    if base is not None:
        beside = path.parent / str(base)
        values = _merge(_resolve(beside if beside.is_file() else str(base), (*children, path), kind)[1], values)
    return str(source), values


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for i, section in enumerate(sections):
        found = values.get(section)
        if found is not None and not isinstance(found, dict):
            place = ".".join(sections[: i + 1])
            hint = f"; give student_changes.{last}" if place == "student" else ""
            raise StarError(f"{key}: cannot be set, since {place} is {found!r}{hint}")
        if found is None:
            values[section] = {}
        values = values[section]
    values[last] = value


class _Loader(yaml.SafeLoader):
    """yaml's safe loader, which also takes ``1e-3`` for the number that it is and refuses a key that is given twice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """yaml's safe dumper, which quotes a text that :class:`_Loader` would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise StarError(f"{where}: not yaml ({' '.join(str(error).split())})") from None
