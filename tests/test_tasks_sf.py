"""sf as the published runs have it: its slots, its spelling, its masks."""

import pytest
import tiny_slu
import torch
from test_tasks_ks_asr import Spells
from test_train import CTC_SMALL

from eval import tasks
from eval.heads import probe
from star_upstream import compat
from star_upstream.data import corpora
from star_upstream.data.corpora import audio_snips
from star_upstream.errors import StarError

compat.apply()
SF = tasks.get("sf")


@pytest.fixture(scope="module")
def slu(tmp_path_factory):
    return tiny_slu.make(tmp_path_factory.mktemp("slu") / "data")


def test_slots_are_those_that_the_corpus_lists(slu, tmp_path):
    """By s3prl's way of reading: the first line is left out; an empty last one is a slot without a name, which its
    metrics cannot read."""
    made = SF.probe(SF, corpora.load("sf", slu), CTC_SMALL, 0)
    assert len(made.tokenizer) == 3 + 28 + 2 * 3
    (tmp_path / "slots.txt").write_text("O\nsong\ncity\n")
    assert (
        audio_snips.slots(tmp_path) == ("song", "city", "")
        and audio_snips.slots(slu) is None
        and corpora.slots(slu) is None
    )
    table = SF.probe.prepare(SF, corpora.load("sf", slu), slu, 320, None)
    table.attrs["slots"] = audio_snips.slots(tmp_path)
    listed = SF.probe(SF, table, CTC_SMALL, 0)
    assert listed.tokenizer.slots == [
        "B-song",
        "E-song",
        "B-city",
        "E-city",
        "B-",
        "E-",
        "B-artist",
        "E-artist",
        "B-time",
        "E-time",
    ]

    slot, index = listed.tokenizer.slot2id, listed.tokenizer.vocab_to_idx
    said = [slot["B-"], index("A"), slot["E-"], slot["B-artist"], index("B"), slot["E-artist"]]
    logits = torch.nn.functional.one_hot(torch.tensor([said]), len(listed.tokenizer)).float()
    (answer,) = listed.predict(Spells(), logits, torch.tensor([6]), [0])
    rows = listed.split["test"]
    assert "B-artist B E-artist" in answer and 0 <= listed.value([answer] * len(rows), rows) <= 100


@pytest.mark.parametrize(
    "text, slots, symbols, read",
    [
        ("PLAY IT", "O O", "PLAY IT$", "PLAY IT"),
        ("PLAY IT .", "O O O", "PLAY IT ", "PLAY IT "),  # no end of the text
        ("PLAY , IT ?!", "O O O O", "PLAY IT ", "PLAY IT "),
        ("PLAY ANNA", "O artist", "PLAY <ANNA>$", "PLAY B-artist ANNA E-artist"),
        ("PLAY ANNA & BELL", "O artist artist artist", "PLAY <ANNA AND BELL>$", "PLAY B-artist ANNA AND BELL E-artist"),
        ("PLAY ANNA . BELL", "O artist artist artist", "PLAY <ANNA BELL>$", "PLAY B-artist ANNA BELL E-artist"),
        ("PLAY ANNA .", "O artist artist", "PLAY <ANNA ", "PLAY B-artist ANNA "),  # the slot's end was at the point
        ("- ANNA NOW", "artist artist O", "ANNA> NOW$", "ANNA E-artist NOW"),  # and its start
        (
            "PLAY ANNA , BELL",
            "O artist O artist",
            "PLAY <ANNA> <BELL>$",
            "PLAY B-artist ANNA E-artist B-artist BELL E-artist",
        ),
        ("PLAY CAFÉ", "O O", "PLAY CAF?$", "PLAY CAF<unk>"),
    ],
)
def test_the_published_spelling_of_slots_by_hand(slu, text, slots, symbols, read):
    """``<`` and ``>`` for a slot's edges, ``$`` for the end, ``?`` for an unknown symbol; s3prl/downstream/ctc/text.py
    at v0.4.18."""
    table = corpora.load("sf", slu)
    row = table.index[table["split"] == "train"][0]
    table.loc[row, ["text", "slots"]] = [text, slots]
    long = table.index[table["split"] == "train"][1]
    table.loc[long, ["text", "slots"]] = [
        " ".join(["PLAYING"] * 40),
        " ".join("O" * 40),
    ]  # so that one letter in a hundred is far
    made = SF.probe(SF, table, CTC_SMALL, 0)
    names = {made.tokenizer.eos_idx: "$", made.tokenizer.unk_idx: "?"}
    names |= {made.tokenizer.slot2id["B-artist"]: "<", made.tokenizer.slot2id["E-artist"]: ">"}
    assert "".join(names.get(token) or made.tokenizer.idx_to_vocab(token) for token in made.tokens[row]) == symbols
    assert made.targets[row] == read


def test_other_letters_are_one_symbol_until_they_are_many(slu):
    table = corpora.load("sf", slu)
    table.loc[table.index[0], ["text", "slots"]] = ["ÀÉÎÕÜ", "O"]
    assert len(SF.probe(SF, table, CTC_SMALL, 0).tokenizer) - 2 * 3 == 3 + len(set("PLAY ANNA BELL NOW")) + 5
    table.loc[table.index[0], ["text", "slots"]] = ["?! ,", "O O"]
    with pytest.raises(StarError, match="'sf0' has nothing but punctuation"):
        SF.probe(SF, table, CTC_SMALL, 0)


def test_slot_filling_has_two_time_masks_as_published():
    """s3prl/downstream/ctc/snips.yaml says ``adaptive: false`` in every version from v0.3.3 to 0.4.18."""
    from s3prl.nn.specaug import SpecAug

    for name in ("superb", "superb-sched"):
        masks = SpecAug(**probe.schedule(SF, name).head["specaug_conf"])
        assert (masks.time_mask.num_mask, masks.time_mask.adaptive, masks.time_mask.mask_width_range) == (
            2,
            False,
            (0, 40),
        )
        assert (masks.freq_mask.num_mask, masks.freq_mask.mask_width_range, masks.time_warp.window) == (4, (0, 50), 5)
