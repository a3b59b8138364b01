"""The phone probe: a linear head reads what is there, and bad manifests are named."""

import numpy as np
import pandas as pd
import pytest
import tiny_clips
import torch
from tiny_clips import CONFIG

from star_upstream.analysis import phone_probe
from star_upstream.encoder import Encoder
from star_upstream.errors import StarError


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tiny_clips.make(tmp_path_factory.mktemp("clips"))


def test_a_linear_head_reads_phones_that_are_there_and_not_those_that_are_not():
    random = np.random.default_rng(0)
    names, codes = ["AA", "B", "K", "S"], 3.0 * np.eye(4, 8)

    def utterances(count, told):
        phones = [[names[i] for i in random.integers(0, 4, 8)] for _ in range(count)]
        frames = [np.repeat([names.index(p) for p in line], 4) for line in phones]
        return [told * codes[f] + 0.3 * random.standard_normal((len(f), 8)) for f in frames], phones

    def rate(told):
        return phone_probe.probe(*utterances(40, told), *utterances(20, told), epochs=20)

    # phones that follow themselves are written once, as CTC without a blank between reads them: about a quarter
    assert rate(1.0) < 30.0 < 60.0 < rate(0.0)


def test_the_probe_reads_splits_and_names_what_is_missing(clips, tmp_path):
    rows = [(c.path, c.samples, "train" if i < 4 else "dev", "AA B") for i, c in enumerate(clips)]
    pd.DataFrame(rows, columns=["path", "samples", "split", "phones"]).to_csv(
        tmp_path / "pr.tsv", sep="\t", index=False
    )
    found, phones = phone_probe.read(tmp_path / "pr.tsv", "train", 100.0)
    assert [c.samples for c in found] == sorted(c.samples for c in clips[:4]) and phones == [["AA", "B"]] * 4
    assert len(phone_probe.read(tmp_path / "pr.tsv", "train", 1.5)[0]) == 2
    torch.manual_seed(0)
    rates = phone_probe.by_layer(Encoder(CONFIG).eval(), tmp_path / "pr.tsv")
    assert set(rates) == {1, 2} and all(np.isfinite(rate) for rate in rates.values())
    with pytest.raises(StarError, match="no utterance of split test"):
        phone_probe.read(tmp_path / "pr.tsv", "test", 100.0)
    (tmp_path / "bad.tsv").write_text("path\tsamples\n")
    with pytest.raises(StarError, match=r"layers: the model has 2, got \[3\]"):
        phone_probe.by_layer(Encoder(CONFIG).eval(), tmp_path / "pr.tsv", [3])
    with pytest.raises(StarError, match="must name phones, split too"):
        phone_probe.read(tmp_path / "bad.tsv", "dev", 100.0)
