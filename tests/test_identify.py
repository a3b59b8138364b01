"""What is no checkpoint is named, with what to do."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_transformers import tiny

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import checkpoint, sources
from star_upstream.formats.identify import what

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"


def archive(kind: str) -> bytes:
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as file:
            file.writestr("model/pytorch_model.bin", b"x")
    elif kind == "tar":
        with tarfile.open(fileobj=data, mode="w") as file:
            file.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())
    elif kind == "npz":
        np.savez(data, a=np.zeros(2))
    elif kind == "script":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), data)
    elif kind == "keras":
        with zipfile.ZipFile(data, "w") as file:
            file.writestr("config.json", "{}")
            file.writestr("model.weights.h5", b"x")
    elif kind == "cut":
        torch.save({"state_dict": {"a": torch.zeros(1000)}}, data)
        return data.getvalue()[:2000]
    return data.getvalue()


CASES = {
    "lfs": (LFS, "a git-lfs pointer, not the content: run 'git lfs pull'"),
    "annex": (b"/annex/objects/SHA256E-s12--aa.pt\n", "a git-annex pointer, not the content: run 'git annex get'"),
    "page": (
        b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>",
        "a web page saved in place of the file",
    ),
    "empty": (b"", "an empty file"),
    "zeros": (bytes(4096), "filled with zeros"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file .Keras"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.0.0", "an ONNX model"),
    "json": (b'{"a": 1}', "a json text"),
    "gzip": (b"\x1f\x8b\x08\x00", "a gzip archive; unpack it"),
    "zip": (archive("zip"), "a zip archive; unpack it"),
    "tar": (archive("tar"), "a tar archive; unpack it"),
    "npz": (archive("npz"), "numpy arrays"),
    "script": (archive("script"), "a TorchScript program"),
    "keras": (archive("keras"), "a Keras model"),
    "cut": (archive("cut"), "a file that was cut off"),
}


@pytest.mark.parametrize("data, message", CASES.values(), ids=CASES.keys())
def test_files_that_are_something_else(data, message, tmp_path):
    for name in ("model.pt", "model.ckpt", "model.safetensors"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StarError, match=f"{name}: {message}"):
            sources.load(tmp_path / name)
    tiny("Hubert").save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").write_bytes(data)
    with pytest.raises(StarError, match=message):
        sources.load(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_pointers_in_the_place_of_a_folders_texts(name, tmp_path):
    tiny("Hubert").save_pretrained(tmp_path, max_shard_size="20KB" if "index" in name else "5GB")
    (tmp_path / name).write_bytes(LFS)
    with pytest.raises(StarError, match=f"{name}: a git-lfs pointer, not the content: run 'git lfs pull'"):
        sources.load(tmp_path)


def test_a_part_of_the_weights_is_no_model(tmp_path):
    tiny("Hubert").save_pretrained(tmp_path, max_shard_size="20KB")
    part = next(tmp_path.glob("model-00001-of-*.safetensors"))
    with pytest.raises(StarError, match="one of several files that hold a model's weights; give the folder"):
        sources.load(part)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(StarError, match=r"holds parts of a model .* without their index"):
        sources.load(tmp_path)


def test_what_may_hold_weights_is_left_to_its_reader(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert [what(tmp_path / name) for name in ("a.pt", "old.pt", "a.safetensors", "absent.pt")] == [None] * 4


def test_links_to_nothing(tmp_path):
    (tmp_path / "a.pt").symlink_to(".git/annex/objects/xx/yy/SHA256E-s12--aa.pt")
    (tmp_path / "b.pt").symlink_to("/nowhere/b.pt")
    for name, message in (
        ("a.pt", "a git-annex link whose content is not here"),
        ("b.pt", "a link to /nowhere/b.pt, which does not exist"),
    ):
        with pytest.raises(StarError, match=message):
            sources.load(tmp_path / name)


def test_weights_without_their_configuration(tmp_path):
    tiny("Hubert").save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").unlink()
    for given in ("theirs/model.safetensors", "theirs"):
        with pytest.raises(StarError, match="config.json"):
            sources.load(tmp_path / given)
    ours = Encoder(
        EncoderConfig(conv_layers=((8, 10, 5),), width=16, heads=2, head_width=8, ffn=8, layers=1, position_groups=2)
    )
    checkpoint.save(tmp_path / "ours", ours, {})
    (tmp_path / "ours" / "config.json").unlink()
    with pytest.raises(StarError, match="the weights of a checkpoint of star_upstream without its config.json"):
        sources.load(tmp_path / "ours" / "model.safetensors")


def test_lightning_files_of_dphuberts_training(tmp_path):
    weights = {
        "student_model.feature_extractor.conv_layers.0.conv.weight": torch.zeros(1),
        "student_model.encoder.transformer.layers.0.a": torch.zeros(1),
    }
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    with pytest.raises(
        StarError, match="DPHuBERT's training, after its final distillation; the authors' save_final_ckpt.py"
    ):
        sources.load(tmp_path / "last.ckpt")
    weights["student_model.feature_extractor.conv_layers.0.hard_concrete.log_alpha"] = torch.zeros(1)
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    with pytest.raises(StarError, match="DPHuBERT's training, before pruning; the authors' prune.py"):
        sources.load(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "name, message",
    [
        ("Data2Vec", "facebook/data2vec-audio-base"),
        ("hubert-soft", "fetch its file from https://github.com/bshall/hubert/releases"),
        ("skill_hubert", "a recipe, not a model: distil it"),
    ],
)
def test_names_of_the_field_say_where_the_model_is(name, message):
    with pytest.raises(StarError) as error:
        sources.load(name)
    assert message in str(error.value) and "dphubert" not in str(error.value)


def test_a_downstream_model_of_s3prl(tmp_path):
    torch.save(
        {"Downstream": {"w": torch.zeros(1)}, "Featurizer": {"w": torch.zeros(3)}, "Step": 1}, tmp_path / "d.ckpt"
    )
    with pytest.raises(StarError, match="d.ckpt: a downstream model of s3prl .*give the checkpoint of the upstream"):
        sources.load(tmp_path / "d.ckpt")


@pytest.mark.parametrize(
    "address, fix",
    [
        ("https://huggingface.co/facebook/hubert-base-ls960", "give its id: facebook/hubert-base-ls960"),
        ("http://example.org/a.pt", "download the file, and give its path"),
    ],
)
def test_addresses_are_not_fetched(address, fix):
    with pytest.raises(StarError, match=f"addresses are not fetched; {fix}$"):
        sources.load(address)


def test_a_damaged_json_header(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(StarError, match="model.safetensors: damaged, or no safetensors file"):
        sources.load(tmp_path)


def held(folder, name, also="model.safetensors"):
    (folder / also).rename(folder / name)


FOLDERS = {
    "latin1": (lambda d: (d / "config.json").write_bytes(b'{"model_type": "\xe9"}'), "config.json: not json"),
    "list": (lambda d: (d / "config.json").write_text("[]"), "config.json: expected keys with values"),
    "tensorflow": (lambda d: held(d, "tf_model.h5"), "no weights .* it holds tf_model.h5, which is not read"),
    "variant": (
        lambda d: held(d, "model.fp16.safetensors"),
        "where model.fp16.safetensors is meant, rename it to model.s",
    ),
    "folder": (lambda d: (held(d, "a"), (d / "model.safetensors").mkdir()), "model.safetensors: a folder"),
    "index": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": null}}'),
        "expected 'weight_map' with file names",
    ),
    "lora": (
        lambda d: (held(d, "adapter_model.safetensors"), held(d, "adapter_config.json", "config.json")),
        "an adapter .PEFT, such as LoRA. of another model; merge it",
    ),
}


@pytest.mark.parametrize("spoil, message", FOLDERS.values(), ids=FOLDERS.keys())
def test_folders_of_transformers_that_are_not_whole(spoil, message, tmp_path):
    tiny("Hubert").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(StarError, match=message):
        sources.load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_of_editors_that_write_a_mark(encoding, tmp_path):
    tiny("Hubert").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text(), encoding=encoding)
    assert sources.load(tmp_path).config.layers == 2
