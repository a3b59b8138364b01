"""s3prl's downstream recipe of each task (s3prl/downstream/*/expert.py, v0.4.18): its configuration on one of our
corpora, the order of its classes, and its answers in our terms.

The wheel has the recipes and not their configurations; those are written here from our published schedules, with the
values that the configurations of v0.4.18 have. Only ``corpora in their published layouts`` are read: what a recipe
wants besides (lists, vocabularies, lengths) is made in a folder of its own.

Shapes: T frames, S speakers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.heads.probe import Schedule
from star_upstream.data.corpora import audio_snips, fluent_commands, iemocap, libri2mix, librispeech, voxceleb1
from star_upstream.data.corpora import speech_commands as commands

EMOTIONS = ("neutral", "happy", "angry", "sad")
"""In the order of s3prl's classes (``neu``, ``hap``, ``ang``, ``sad``)."""
SPEAKERS = 1251
"""Classes of speaker identification, whatever the corpus has."""
LIBRI = librispeech.SUBSETS


@dataclass(frozen=True)
class Case:
    """What a configuration is made of."""

    probe: Any
    """Our task on the corpus."""
    root: Path
    work: Path
    """For files that the recipe wants and the corpus does not have."""

    @property
    def schedule(self) -> Schedule:
        return self.probe.schedule

    @property
    def table(self) -> pd.DataFrame:
        return self.probe.table

    def home(self, folders: Sequence[str]) -> Path:
        return next(self.root / name for name in folders if (self.root / name).is_dir())

    def file(self, name: str, text: str) -> str:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)


@dataclass(frozen=True)
class Pipeline:
    """How one task is run by s3prl's runner."""

    expert: str
    """Folder below s3prl/downstream."""
    config: Callable[[Case], dict[str, Any]]
    """Its ``downstream_expert``."""
    classes: Callable[[Any], list[int]]
    """The place among its classes of each of ours; empty where there are none."""
    answers: Callable[[dict[str, Any]], dict[str, Any]]
    """What its evaluation recorded, as an answer for each item."""
    best: str = "dev-best.ckpt"
    test: str = "test"
    dev: tuple[str, ...] = ("dev",)
    specaug: bool = False
    needs_checkout: bool = False
    """The wheel lacks a part of it."""


# ------------------------------------------------------------ one label an utterance


def _pooled(schedule: Schedule) -> dict[str, Any]:
    return {
        "projector_dim": schedule.head["hidden_size"],
        "select": "UtteranceLevel",
        "UtteranceLevel": {"pooling": "MeanPooling"},
    }


def _ks(case: Case) -> dict[str, Any]:
    home = case.home(commands.FOLDERS)
    test = next(home.with_name(name) for name in commands.TEST_FOLDERS if home.with_name(name).is_dir())
    data = {"speech_commands_root": str(home), "speech_commands_test_root": str(test), "num_workers": 0}
    return {"datarc": {**data, "batch_size": case.schedule.batch}, "modelrc": _pooled(case.schedule)}


def _sid(case: Case) -> dict[str, Any]:
    home = case.home(voxceleb1.FOLDERS)
    data = {
        "file_path": str(home),
        "meta_data": str(home / voxceleb1.SPLIT_FILE),
        "num_workers": 0,
        "train_batch_size": case.schedule.batch,
        "eval_batch_size": 1,
        "max_timestep": 128_000,
    }
    return {"datarc": data, "modelrc": _pooled(case.schedule)}


def _ic(case: Case) -> dict[str, Any]:
    sizes = {"num_workers": 0, "train_batch_size": case.schedule.batch, "eval_batch_size": 32}
    return {
        "datarc": {"file_path": str(case.home(fluent_commands.FOLDERS)), **sizes},
        "modelrc": _pooled(case.schedule),
    }


def _er(case: Case) -> dict[str, Any]:
    home = case.home(iemocap.FOLDERS)
    order = case.table.assign(path=[str(Path(path).relative_to(home)) for path in case.table["path"]])
    for part, rows in (("train", order[order["fold"] != 1]), ("test", order[order["fold"] == 1])):
        meta = rows[["path", "label", "speaker"]].to_dict("records")
        labels = {name: place for place, name in enumerate(EMOTIONS)}
        case.file(f"meta/Session1/{part}_meta_data.json", json.dumps({"labels": labels, "meta_data": meta}))
    data = {
        "root": str(home),
        "meta_data": str(case.work / "meta"),
        "test_fold": "fold1",
        "pre_load": True,
        "train_batch_size": case.schedule.batch,
        "eval_batch_size": 4,
        "num_workers": 0,
        "valid_ratio": 0.2,
    }
    return {"datarc": data, "modelrc": _pooled(case.schedule)}


def _ic_classes(probe: Any) -> list[int]:
    """s3prl numbers the values of each part of the intent as they first come in train."""
    train = probe.table[probe.table["split"] == "train"]
    found: list[int] = []
    for column, encoder in zip(probe.task.columns, probe.encoder.categories, strict=True):
        theirs = list(dict.fromkeys(train[column]))
        first = len(found)
        found += [first + theirs.index(encoder.decode(place)) for place in range(len(encoder))]
    return found


def _labels(names: Sequence[str]) -> Callable[[Any], list[int]]:
    def classes(probe: Any) -> list[int]:
        return [list(names).index(probe.encoder.decode(place)) for place in range(len(probe.encoder))]

    return classes


def _by_file(predictions: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def answers(records: dict[str, Any]) -> dict[str, Any]:
        found = records[predictions]
        texts = [" ; ".join(answer) if isinstance(answer, tuple) else answer for answer in found]
        return dict(zip(records["filename"], texts, strict=True))

    return answers


# ------------------------------------------------------------ what is spelled


def _symbols(tokenizer: Any) -> list[str]:
    """Without the three that every recipe has: blank, end and unknown."""
    return [tokenizer.idx_to_vocab(place) for place in range(3, len(tokenizer))]


def _recurrent(schedule: Schedule) -> dict[str, Any]:
    model = schedule.head["model_conf"]
    same = {name: model[name] for name in ("module", "dropout", "layer_norm", "proj", "sample_rate", "sample_style")}
    return {"total_rate": -1, "bidirection": model["bidirectional"], "dim": model["hidden_size"], **same}


def _pr(case: Case) -> dict[str, Any]:
    home = case.home(librispeech.FOLDERS)
    vocabulary = case.file("phoneme.txt", "\n".join(_symbols(case.probe.tokenizer)))
    return {
        "corpus": {
            "name": "libriphone",
            "path": str(home),
            "lexicon": [str(file) for file in sorted(home.glob(librispeech.LEXICONS))],
            **{part: [LIBRI[part]] for part in ("train", "dev", "test")},
            "bucketing": True,
            "batch_size": case.schedule.batch,
            "num_workers": 0,
        },
        "text": {"mode": "word", "vocab_file": vocabulary},
        "model": {"project_dim": case.schedule.head["hidden_size"], "zero_infinity": True, "select": "FrameLevel"},
        "save_best_on": ["dev"],
        "metric_higher_better": False,
        "metric": ["per"],
    }


def _asr(case: Case) -> dict[str, Any]:
    home = case.home(librispeech.FOLDERS)
    for split, subset in LIBRI.items():
        part = case.table[case.table["split"] == split]
        paths = [str(Path(path).relative_to(home)) for path in part["path"]]
        lengths = pd.DataFrame({"file_path": paths, "length": part["samples"], "label": None})
        case.file(f"len_for_bucket/{subset}.csv", lengths.sort_values("length", ascending=False).to_csv())
    symbols = [symbol.replace(" ", "|") for symbol in _symbols(case.probe.tokenizer)[:-1]]
    return {
        "datarc": {
            **{name: [name] for name in LIBRI.values()},
            "train": [LIBRI["train"]],
            "num_workers": 0,
            "batch_size": 2 * case.schedule.batch,  # which it halves
            "eval_batch_size": 1,
            "libri_root": str(home),
            "bucket_file": str(case.work / "len_for_bucket"),
            "dict_path": case.file("char.dict", "".join(f"{symbol} 1\n" for symbol in symbols)),
            "zero_infinity": True,
            "decoder_args": {"decoder_type": "None"},
        },
        "modelrc": {
            "project_dim": case.schedule.head["model_conf"]["proj_size"],
            "select": "RNNs",
            "RNNs": _recurrent(case.schedule),
        },
    }


def _asr_classes(probe: Any) -> list[int]:
    """s3prl's: blank and start, padding, end, unknown, symbols; ours: blank, end, unknown, symbols, the unused one."""
    count = len(probe.tokenizer)
    return [0, 2, 3, *range(4, count), 1]


def _sf(case: Case) -> dict[str, Any]:
    tokenizer = case.probe.tokenizer
    names = [slot.removeprefix("B-") for slot in tokenizer.slots if slot.startswith("B-")]
    home = case.home(audio_snips.FOLDERS)
    return {
        "corpus": {
            "name": "snips",
            "path": str(home),
            **{part: [folder] for part, folder in audio_snips.PARTS.items()},
            **{f"{audio_snips.PARTS[part]}_speakers": list(names) for part, names in audio_snips.SPEAKERS.items()},
            "bucketing": True,
            "batch_size": case.schedule.batch,
            "num_workers": 0,
        },
        "text": {
            "mode": "character-slot",
            "vocab_file": case.file("character.txt", "\n".join(_symbols(tokenizer)[: -len(tokenizer.slots)])),
            "slots_file": case.file("slots.txt", "\n".join(["O", *names])),
        },
        "model": {
            "project_dim": case.schedule.head["model_conf"]["proj_size"],
            "zero_infinity": True,
            "select": "RNNs",
            "RNNs": _recurrent(case.schedule),
        },
        "save_best_on": ["dev"],
        "metric_higher_better": True,
        "metric": ["slot_type_f1", "slot_value_cer"],
    }


def _same_classes(probe: Any) -> list[int]:
    return list(range(len(probe.tokenizer)))


def _spelled(records: dict[str, Any]) -> dict[str, Any]:
    """Without the slot that has no name, as ours."""
    texts = [" ".join(w for w in text.split(" ") if w not in ("B-", "E-")) for text in records["hypothesis"]]
    return dict(zip(records["filename"], texts, strict=True))


# ------------------------------------------------------------ speakers


def _asv(case: Case) -> dict[str, Any]:
    home = case.home(voxceleb1.FOLDERS)
    return {
        "datarc": {
            "vad_config": {"min_sec": round(case.schedule.min_seconds * 16_000)},
            "file_path": str(home),
            "train_meta_data": "",
            "dev_meta_data": case.file("no_trials.txt", ""),
            "test_meta_data": str(home / voxceleb1.TRIAL_FILE),
            "max_timestep": 128_000,
            "train_batch_size": case.schedule.batch,
            "eval_batch_size": 1,
            "num_workers": 0,
        },
        "modelrc": {
            "module": "XVector",
            "input_dim": 512,
            "agg_module": "SP",
            "utter_module": "UtteranceExtractor",
            "module_config": {"XVector": {"agg_dim": 1500, "dropout_p": 0.0, "batch_norm": False}},
            "ObjectiveLoss": "AMSoftmaxLoss",
            "LossConfig": {"AMSoftmaxLoss": {"s": 30.0, "m": 0.4}},
        },
    }


def _same_speakers(probe: Any) -> list[int]:
    return list(range(len(probe.encoder)))


def _embeddings(records: dict[str, Any]) -> dict[str, Any]:
    """By utterance: the records hold paths, and lists of scores besides."""
    return {"-".join(Path(p).with_suffix("").parts[-3:]): v.numpy() for p, v in records.items() if p.endswith(".wav")}


def _sd(case: Case) -> dict[str, Any]:
    home, folders = case.home(libri2mix.FOLDERS), {}
    for split in libri2mix.SPLITS:
        data = next(folder for folder in (home / split, home / "data" / split) if folder.is_dir())
        pairs = [line.split(None, 1) for line in (data / "wav.scp").read_text(encoding="utf-8").splitlines()]
        case.file(f"kaldi/{split}/wav.scp", "".join(f"{name} {data / path}\n" for name, path in pairs))
        for name in ("segments", "utt2spk", "reco2dur"):
            case.file(f"kaldi/{split}/{name}", (data / name).read_text(encoding="utf-8"))
        folders[f"{split}_dir"] = str(case.work / "kaldi" / split)
    return {
        "datarc": {
            "chunk_size": 2000,
            "subsampling": 1,
            "label_delay": 0,
            "num_speakers": case.probe.speakers,
            "rate": 16_000,
            "frame_shift": None,
        },
        "loaderrc": {"num_workers": 0, "train_batchsize": case.schedule.batch, "eval_batchsize": 1, **folders},
        "scorerc": {"save_predictions": True},
        "modelrc": dict(case.schedule.head),
    }


def _logits(records: dict[str, Any]) -> dict[str, Any]:
    """By first chunk: T x S (what it saves are probabilities)."""
    shares = {name: np.clip(share_TS.astype(np.float64), 1e-12, 1 - 1e-12) for name, share_TS in records.items()}
    return {f"{name}#0": np.log(share_TS / (1.0 - share_TS)) for name, share_TS in shares.items()}


PIPELINES = {
    "ks": Pipeline("speech_commands", _ks, _labels(commands.CLASSES), _by_file("predict")),
    "sid": Pipeline(
        "voxceleb1", _sid, _labels([f"id{10_001 + place}" for place in range(SPEAKERS)]), _by_file("predict_speaker")
    ),
    "ic": Pipeline("fluent_commands", _ic, _ic_classes, _by_file("predict")),
    "er": Pipeline("emotion", _er, _labels(EMOTIONS), _by_file("predict")),
    "pr": Pipeline("ctc", _pr, _same_classes, _spelled, needs_checkout=True),
    "asr": Pipeline(
        "asr",
        _asr,
        _asr_classes,
        lambda records: {
            name: " ".join(words) for name, words in zip(records["filenames"], records["pred_words"], strict=True)
        },
        best="dev-clean-best.ckpt",
        test=LIBRI["test"],
        dev=(LIBRI["dev"],),
        specaug=True,
    ),
    "sf": Pipeline("ctc", _sf, _same_classes, _spelled, specaug=True, needs_checkout=True),
    "asv": Pipeline("sv_voxceleb1", _asv, _same_speakers, _embeddings, dev=()),
    "sd": Pipeline("diarization", _sd, lambda probe: [], _logits, best="best-states-dev.ckpt"),
}
