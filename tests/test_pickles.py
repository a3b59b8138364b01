"""Files of others are inert: what pickles code is refused by name, strings hold lists of numbers alone."""

import argparse
import collections
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_student import student, student_weights

from star_upstream.errors import StarError
from star_upstream.formats import published, sources
from star_upstream.formats.published import literals, pickles


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class OfTheAuthors:
    """A harmless class of somebody's own."""


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "before torch 1.6"])
def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path, old_format):
    target, path = tmp_path / "created", tmp_path / "evil.ckpt"
    torch.save(
        {"state_dict": student_weights(), "evil": Evil(target)}, path, _use_new_zipfile_serialization=not old_format
    )
    for read in (published.load, published.detect, sources.load):
        with pytest.raises(StarError, match=r"evil.ckpt: holds a pickled '(posix|nt).mkdir'; refused"):
            read(path)
        assert not target.exists()
    torch.load(path, weights_only=False)  # it is really armed
    assert target.exists()


def test_a_plain_malicious_pickle_is_refused(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"protocol {protocol}.pt"
        path.write_bytes(pickle.dumps({"model": Evil(tmp_path / "created")}, protocol))
        with pytest.raises(StarError, match="holds a pickled '(posix|nt).mkdir'; refused"):
            published.load(path)
        assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    "value, name", [(OfTheAuthors(), "OfTheAuthors"), (getattr, "builtins.getattr"), (eval, "builtins.eval")]
)
def test_other_classes_are_refused_by_name(tmp_path, value, name):
    with pytest.raises(StarError) as error:
        published.load(student(tmp_path, extra=value))
    assert name in str(error.value) and "refused" in str(error.value)


def test_what_frameworks_leave_in_files_is_read_as_inert(tmp_path, monkeypatch):
    """Classes under the names that Lightning, fairseq, omegaconf and s3prl pickle; the names cannot be imported when
    reading."""
    created = {}
    for dotted, base in {
        "pytorch_lightning.utilities.parsing.AttributeDict": dict,
        "fairseq.data.dictionary.Dictionary": object,
        "s3prl.optimizers.WarmupLinearSchedule": object,
        "omegaconf.dictconfig.DictConfig": object,
    }.items():
        module, name = dotted.rsplit(".", 1)
        created[name] = type(name, (base,), {"__module__": module})
        for depth in range(1, module.count(".") + 2):
            package = ".".join(module.split(".")[:depth])
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        setattr(sys.modules[module], name, created[name])
    attributes, schedule, config = (
        created["AttributeDict"](lr=0.1),
        created["WarmupLinearSchedule"](),
        created["DictConfig"](),
    )
    schedule.warmup = 0.07
    config._content = {"a": 1}
    path = student(
        tmp_path,
        hyper_parameters=attributes,
        schedule=schedule,
        cfg=config,
        labels=created["Dictionary"](),
        args=argparse.Namespace(lr=[0.1]),
        counts=collections.defaultdict(list, {"a": [1]}),
        score=np.float64(0.5),
    )
    monkeypatch.undo()
    content = pickles.read(path)
    assert dict(content["hyper_parameters"]) == {"lr": 0.1} and pickles.plain(content["cfg"]) == {"a": 1}
    assert pickles.plain(content["args"]) == {"lr": [0.1]} and pickles.plain(content["schedule"]) == {"warmup": 0.07}
    assert dict(content["counts"]) == {"a": [1]}
    assert published.load(path).config.layers == 1


EVIL_STRINGS = [
    "__import__('os').mkdir('created')",
    "[(8, 10, 5)] + __import__('os').listdir()",
    "[(8, 10, 5), exit()]",
    "[(8, 10, 5)] * 10 ** 10",
    "[(8, 10, 5)] * 1000000000",
    "[x for x in (1, 2)]",
    "(lambda: [(8, 10, 5)])()",
    "[8].__class__",
    "[['a']]",
    "f'{1}'",
    "[" * 500,
    "",
]


@pytest.mark.parametrize("text", EVIL_STRINGS)
def test_a_string_that_is_no_list_of_numbers_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StarError, match="conv_feature_layers: expected a list of numbers"):
        published.load(student(tmp_path, {"conv_feature_layers": text}))
    assert not (tmp_path / "created").exists()


def test_lists_in_strings():
    assert literals.parse(" [(512, 10, 5)] + [(512, 3, 2)] * 2 ", "x") == [(512, 10, 5), (512, 3, 2), (512, 3, 2)]
    assert literals.parse("2 * [True, False] + [-1.5]", "x") == [True, False, True, False, -1.5]
    assert literals.parse("[]", "x") == [] and literals.parse([1], "x") == [1]
