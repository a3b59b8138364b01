"""ks and asr as the published runs have them (s3prl/downstream, v0.4.18): silence, batches, symbols, ends of texts."""

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from test_train import CTC_SMALL, KS_SMALL, make, table
from tiny_corpus import TinyUpstream

from eval import tasks
from eval.features import encode
from eval.features.exact import Padded
from eval.features.upstreams import Upstream
from star_upstream import compat

compat.apply()
KS, ASR = tasks.get("ks"), tasks.get("asr")


def noisy(seconds=(30.0, 5.5)):
    """Two words of twelve recordings each, and two noise files in pieces of a second, as its reader gives them."""
    words = table("label", ("yes", "no"), (12, 4, 4)).assign(path=lambda t: t["id"])
    pieces = [
        {
            "id": f"{split}{file}{second}",
            "path": f"noise{file}",
            "start": 16_000 * second,
            "split": split,
            "label": "_silence_",
            "samples": min(16_000, round(16_000 * length) - 16_000 * second),
        }
        for split in ("train", "dev", "test")
        for file, length in enumerate(seconds)
        for second in range(int(np.ceil(length)))
    ]
    return pd.concat([words, pd.DataFrame(pieces)], ignore_index=True)


def test_silence_is_a_noise_file_and_then_a_second_of_it():
    data = noisy()
    made = KS.probe(KS, data, KS_SMALL, 0)
    rows = [row for number in range(300) for batch in made.epoch(number) for row in batch]
    silence = [row for row in rows if data["label"].iloc[row] == "_silence_"]
    assert len(silence) / len(rows) == pytest.approx(1 / 3, abs=0.03)  # classes come equally often
    files = Counter(data["path"].iloc[row] for row in silence)
    assert {data["split"].iloc[row] for row in rows} == {"train"}
    seconds = Counter(data["start"].iloc[row] // 16_000 for row in silence if data["path"].iloc[row] == "noise1")
    assert sorted(seconds) == [0, 1, 2, 3, 4] and max(seconds.values()) < 1.3 * min(
        seconds.values()
    )  # not the half second
    assert files["noise1"] / len(silence) == pytest.approx(1 / 2, abs=0.03)  # files, not seconds, equally often
    assert made.epoch(3) == made.epoch(3) != made.epoch(4)
    assert set(made.dev_rows()) <= set(made.split["dev"])


def test_words_from_a_file_of_silence_stay_words():
    data = noisy((4.0,))
    data.loc[data["label"] == "yes", "path"] = "noise0"
    made = KS.probe(KS, data, KS_SMALL, 0)
    drawn = Counter(data["label"].iloc[row] for number in range(50) for batch in made.epoch(number) for row in batch)
    assert max(drawn.values()) < 1.2 * min(drawn.values()) and len(drawn) == 3
    assert (
        len(
            {
                row
                for number in range(50)
                for batch in made.epoch(number)
                for row in batch
                if data["label"].iloc[row] == "yes"
            }
        )
        == 12
    )


def test_the_last_batch_is_left_out_unless_it_is_the_only_one():
    made = make(KS, dataclasses.replace(KS_SMALL, batch=5))[0]
    assert [len(b) for b in made.epoch(0)] == [5] * 5
    few, _ = make(KS, dataclasses.replace(KS_SMALL, batch=99))
    assert [len(b) for b in few.epoch(0)] == [27]


def test_exact_draws_the_second_from_any_sample(tmp_path):
    import soundfile

    soundfile.write(
        tmp_path / "noise0", np.arange(64_000, dtype=np.float32) / 64_000, 16_000, format="WAV", subtype="FLOAT"
    )
    made = KS.probe(KS, noisy((4.0,)).replace({"path": {"noise0": str(tmp_path / "noise0")}}), KS_SMALL, 0)
    rows = np.flatnonzero(made.table["path"] == str(tmp_path / "noise0"))
    windows = encode.windows(made.table.iloc[rows])
    assert {row[0].within for row in windows} == {64_000} and set(made.table["within"]) == {0, 64_000}
    exact = Padded(windows, Upstream("tiny", TinyUpstream(), "d"))
    heard = [exact._wave(exact.windows[0], torch.Generator().manual_seed(i)) for i in range(40)]
    firsts = {round(float(wave[0]) * 64_000) for wave in heard}
    assert {len(wave) for wave in heard} == {16_000} and len(firsts) == 40 and max(firsts) > 30_000
    assert [round(float(exact._wave(w, None)[0]) * 64_000) for w in exact.windows[:2]] == [
        0,
        16_000,
    ]  # dev and test: where it is


class Spells(torch.nn.Module):
    def model(self, x_BTD, lengths_B):
        return x_BTD, lengths_B


def test_symbols_and_ends_of_texts():
    made = make(ASR, CTC_SMALL, ("AB A", "BA", "B AB"))[0]
    assert len(made.tokenizer) == 32
    space, end = made.tokenizer.vocab_to_idx(" "), made.tokenizer.eos_idx
    assert made.tokens[0][-2:] == [space, end]
    assert made.tokenizer.decode(made.tokens[0]) == "AB A " and made.targets[0] == "AB A"
    other, _ = make(ASR, CTC_SMALL, ("äb a", "b"))
    assert len(other.tokenizer) == 3 + 4 + 1  # its own characters


def test_spaces_of_an_answer_do_not_count():
    made, _ = make(ASR, CTC_SMALL, ("A B", "B A"))
    index = made.tokenizer.vocab_to_idx
    said = [index("A"), index(" "), 0, index(" "), index("B"), index(" ")]
    logits = torch.nn.functional.one_hot(torch.tensor([said]), len(made.tokenizer)).float()
    assert made.predict(Spells(), logits, torch.tensor([6]), [0]) == ["A B"]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 12, 15, 16])
def test_buckets_of_recognition(count):
    """Batch 4: the published runs halve whole buckets of eight and keep the rest together."""
    data = table("text", ("A",), (count, 1, 1))
    data["samples"] = np.random.default_rng(0).permutation(len(data)) + 16_000
    made = ASR.probe(ASR, data, dataclasses.replace(CTC_SMALL, batch=4), 0)
    order = sorted(made.split["train"], key=lambda row: -data["samples"].iloc[row])
    rest = count % 8
    expected = [tuple(order[i : i + 4]) for i in range(0, count - rest, 4)]
    expected += [tuple(order[count - rest :])] if rest > 1 or count == 1 else []
    assert Counter(map(tuple, made.epoch(2))) == Counter(expected)


def test_texts_without_spaces_can_be_spelled():
    """Own characters, a word an utterance: what a perfect head would say is right."""
    import pandas as pd

    from eval import tasks
    from star_upstream import compat

    compat.apply()
    texts = ["привет", "мир", "да"]
    columns = {"id": list("abc"), "split": ["train", "dev", "test"], "text": ["приветмирда", *texts[1:]]}
    table = pd.DataFrame({**columns, "path": "x.wav", "start": 0, "samples": 16000, "speaker": "s"})
    task = tasks.get("asr")
    probe = task.probe(task, table, task.schedules["mini"], 0)
    assert [probe.tokenizer.decode(tokens).strip() for tokens in probe.tokens[1:]] == texts[1:]
