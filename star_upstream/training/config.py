"""Everything about a training as data: dataclasses that :mod:`.recipe` fills from yaml files. Nothing in them is
evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .. import strict
from ..encoder import EncoderConfig
from ..errors import StarError
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
        strict.within(self, "[1, inf)", "batch_items", "valid_limit")
        strict.within(self, "[0, inf)", "workers")
        strict.within(self, "[0, 1)", "valid_share", "max_bad_share")


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
class StudentStart:
    """A trained student that this one differs from in its front end alone: all behind the front end starts with its
    weights."""

    source: str = ""
    """Any source that :func:`star_upstream.formats.sources.load` takes; empty: none."""
    frontend_first: float = 0.1
    """Share of the run, from its start, in which the front end alone learns."""

    def __post_init__(self):
        strict.within(self, "[0, 1)", "frontend_first")


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
    (:func:`.optimizer.parameter_groups`)."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    accumulate: int = 1
    """Batches an update of each process."""
    batches_per_update: int | None = None
    """Batches an update of all processes together, which ``accumulate`` is not asked for then: each process takes its
    share of the same batches, so that a run may go on on another number of processes."""
    precision: Literal[32, "bf16-mixed", "16-mixed", "auto"] = 32
    """``auto``: bf16 where it is right and an update takes at most 0.87 of fp32's time with it (AMX, GPUs), fp32
    elsewhere; decided once, on the run's first batch, and kept in its state."""
    compile: Literal["inductor", "aot_eager", "eager"] | None = None
    """The backend of torch.compile for student and teacher: ``inductor`` makes kernels, the others show what it would
    compile; null does not compile. A teacher that is shared is left as it is."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    """Processes of a machine: GPUs, or on the CPU gloo processes."""
    nodes: int = 1
    """Machines. Beyond one, torchrun or Slurm (srun) starts the processes."""
    shard_teacher: bool = False
    """Each process keeps its share of the weights of the teacher's layers, and has a layer whole while it computes it
    (FSDP): for a teacher that does not fit beside the student."""
    seed: int = 0
    log_every: int = 50
    """Updates; so are the next two."""
    validate_every: int = 1000
    save_every: int = 200
    trackers: tuple[Literal["csv", "wandb", "mlflow"], ...] = ()
    """Where the log's numbers go, too, beside TensorBoard (:mod:`.trackers`)."""
    initialise_from_teacher: Initialisation = field(default_factory=Initialisation)
    initialise_from_student: StudentStart = field(default_factory=StudentStart)

    def __post_init__(self):
        strict.lengths(self)
        strict.within(self, "(0, inf)", "learning_rate", "eps", "accumulate", "devices", "nodes")
        strict.within(self, "(0, inf)", "log_every", "validate_every", "save_every")
        strict.within(self, "[0, inf)", "clip", "weight_decay")
        strict.within(self, f"[0, {strict.SEEDS})", "seed")
        strict.within(self, "[0, 1)", "warmup", "betas")
        together = self.batches_per_update
        if together is not None and (together < 1 or together % self.processes):
            raise StarError(
                f"batches_per_update: must be a multiple of the number of processes ({self.processes}), got {together}"
            )
        if self.shard_teacher and self.processes == 1:
            raise StarError("shard_teacher: one process has nobody to share with; raise devices or nodes")
        if self.shard_teacher and self.precision == "auto":
            # each process measures how often it likes, and all must run the teacher equally often
            raise StarError("shard_teacher: precision auto is not chosen with it; set precision to bf16-mixed or 32")

    @property
    def processes(self) -> int:
        """Of all machines."""
        return self.devices * self.nodes

    @property
    def batches_each(self) -> int:
        """Batches an update of one process."""
        return self.accumulate if self.batches_per_update is None else self.batches_per_update // self.processes


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
    method: str = ""
    """What the published rows of the same method are found by, in reports (``method`` in eval/report/published.csv)."""

    def __post_init__(self):
        if self.training.initialise_from_student.source:
            where = "training.initialise_from_student"
            if self.student == "teacher" or self.pruning:
                raise StarError(f"{where}: neither for student: teacher nor with pruning; leave it out")
            if self.training.initialise_from_teacher != Initialisation():
                raise StarError(f"{where}: leave out initialise_from_teacher, both would set the same weights")
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

    def difference(self, there: Recipe) -> str:
        """The first value in which a run's recipe differs; the number of data workers and what is only told may
        change."""
        return changed(untold(there), untold(self), ("data.workers",))

    def student_config(self, teacher: EncoderConfig | None = None) -> EncoderConfig:
        """The student as it starts. Raises :class:`StarError` when it is a copy of the teacher and that is not
        given."""
        if self.student != "teacher":
            return self.student
        if teacher is None:
            raise StarError(f"the recipe's student is a copy of its teacher ({self.teacher}); name a checkpoint")
        changes = {name: value for name, value in vars(self.student_changes).items() if value is not None}
        return replace(teacher, **changes)


def untold(recipe: Any) -> Any:
    """The recipe without what is only told."""
    return replace(recipe, about="", method="", choices={})


def changed(there: Any, here: Any, free: tuple[str, ...] = ()) -> str:
    """The first value in which the recipe of a run, ``there``, differs from the one that is to go on with it; the
    number of processes may where they share an update's batches."""
    processes = ("training.devices", "training.nodes")
    free += ("training.shard_teacher", "training.compile")
    if here.training.batches_per_update is not None:
        free += processes
    found = strict.difference(there, here, free)
    if found.startswith(processes):
        found += "; only with training.batches_per_update a run goes on on another number of processes"
    return found
