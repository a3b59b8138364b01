"""The known published checkpoints: the table, the download into torch.hub's cache and what it says when there is no way
to it."""

import dataclasses
import hashlib
import re
from pathlib import Path

import pytest
import torch
from tiny_student import student

from star_upstream.encoder import Encoder, EncoderConfig
from star_upstream.errors import StarError
from star_upstream.formats import published, sources
from star_upstream.formats.published import known


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "star_upstream"


def local(folder: Path, **changes) -> known.Known:
    """An entry whose addresses are those of a tiny student in ``folder``."""
    path = student(folder)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = known.File(".ckpt", "https://example.org/page", path.as_uri(), changes.pop("sha256", sha256))
    config = known.File(".yaml", "https://example.org/page2", path.with_suffix(".yaml").as_uri())
    return known.Known("tiny", "starhubert", changes.pop("parameters", 3_924), (weights, config), **changes)


def test_a_known_checkpoint_is_fetched_once(tmp_path, cache, monkeypatch, capfd):
    entry = local(tmp_path)
    path = known.fetch(entry)
    assert path == cache / "tiny" / "tiny.ckpt" and sorted(f.name for f in path.parent.iterdir()) == [
        "tiny.ckpt",
        "tiny.yaml",
    ]
    captured = capfd.readouterr()
    assert captured.out == "" and "100%" in captured.err
    (tmp_path / "tiny.ckpt").unlink()
    assert known.fetch(entry) == path
    monkeypatch.setitem(known.KNOWN, "tiny", entry)
    encoder = sources.load("tiny")
    assert encoder.config.width == 16 and not any(p.requires_grad for p in encoder.parameters())
    assert sources.convert("tiny", tmp_path / "ours")["converted_from"]["name"] == "tiny"


def test_a_wrong_digest_leaves_nothing_behind(tmp_path, cache):
    with pytest.raises(
        StarError,
        match="tiny.ckpt could not be downloaded: invalid hash value.*fetch https://example.org/page and save",
    ):
        known.fetch(local(tmp_path, sha256="0" * 64))
    assert [f.name for f in (cache / "tiny").iterdir()] == ["tiny.yaml"]


def test_offline_says_which_files_to_fetch_and_where_to_put_them(tmp_path, cache):
    entry = local(tmp_path)
    (tmp_path / "tiny.ckpt").unlink(), (tmp_path / "tiny.yaml").unlink()
    with pytest.raises(StarError) as error:
        known.fetch(entry)
    for part in (
        "https://example.org/page ",
        "https://example.org/page2 ",
        f"save it as {cache / 'tiny' / 'tiny.ckpt'}",
    ):
        assert part in str(error.value)
    assert not list((cache / "tiny").iterdir())


def test_a_web_page_in_place_of_the_file_is_recognised(tmp_path, cache):
    entry = local(tmp_path)
    (tmp_path / "tiny.yaml").write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(StarError, match="answered with a web page in place of the file"):
        known.fetch(entry)
    assert not list((cache / "tiny").iterdir())


def test_another_model_under_the_name_is_recognised(tmp_path, cache, monkeypatch):
    monkeypatch.setitem(known.KNOWN, "tiny", local(tmp_path, parameters=5_000, note="one link for two models"))
    with pytest.raises(
        StarError, match="3,924 parameters, but tiny has 5,000: this is another model; one link for two models"
    ):
        sources.load("tiny")


def test_files_without_an_address(cache):
    with pytest.raises(
        StarError, match="no address that a program could use.*one and the same file.*save it as .*star_hubert_xs.ckpt"
    ):
        known.fetch(known.KNOWN["star_hubert_xs"])


def test_the_table_is_consistent():
    for name, entry in known.KNOWN.items():
        assert entry.name == name and entry.format in (*published.FORMATS, "transformers")
        assert (entry.parameters is None and entry.note) or entry.parameters > 9e6
        assert bool(entry.files) == (entry.format != "transformers")
        assert (".yaml" in [file.suffix for file in entry.files]) == (entry.format in published.STUDENTS)
        for file in entry.files:
            assert file.page.startswith("https://") and (file.url or "https://").startswith("https://")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)


@pytest.mark.parametrize(
    "name, width, ffn, reuse",
    [
        ("armhubert_960h", 480, 864, True),
        ("armhubert_s_960h", 432, 816, True),
        ("maskhubert_960h", 480, 640, False),
        ("fithubert_960h", 480, 480, None),
    ],
)
def test_parameters_of_the_table_are_those_of_the_published_architectures(name, width, ffn, reuse):
    reduced = reuse is None  # FitHuBERT
    channels = 512 if reduced else width
    config = EncoderConfig(
        conv_layers=((128, 10, 5), (256, 1, 1), *[(256, 3, 2)] * 4, (channels, 1, 1), *[(channels, 2, 2)] * 2),
        projection=reduced,
        time_reduction=2 if reduced else 1,
        upsampling="heads" if reduced else "none",
        hidden_states="projections",
        width=width,
        head_width=width // 12,
        ffn=ffn,
        reuse_attention=(False, True) * 6 if reuse else None,
        output_projection=768,
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in Encoder(config).parameters()) == known.KNOWN[name].parameters


@pytest.mark.parametrize("heads, name", [((4, 8, 12), "distilhubert"), ((), "ntu-spml/distilhubert")])
def test_distilhubert_has_no_norm_before_its_projection(heads, name):
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(layers=2, projection_norm=False, prediction_layers=heads))
    assert sum(p.numel() for p in encoder.parameters()) == known.KNOWN[name].parameters


def test_the_port_of_distilhubert_comes_from_the_hub_and_gives_its_last_state(tmp_path, monkeypatch):
    from transformers import HubertConfig, HubertModel

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "conv_dim": [8, 8],
    }
    convs = {
        "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    model = HubertModel(HubertConfig(**sizes, **convs, feat_proj_layer_norm=False)).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    monkeypatch.setattr(sources, "_from_hub", lambda name: {"ntu-spml/distilhubert": tmp_path}[name])
    count = sum(p.numel() for name, p in model.named_parameters() if name != "masked_spec_embed")
    entry = known.KNOWN["ntu-spml/distilhubert"]
    monkeypatch.setitem(known.KNOWN, entry.name, dataclasses.replace(entry, parameters=count))
    encoder = sources.load(entry.name)
    wave = torch.randn(1, 600)
    with torch.no_grad():
        (last,) = encoder.exposed(encoder(wave))
        torch.testing.assert_close(last, model(wave).last_hidden_state, atol=1e-5, rtol=0)
