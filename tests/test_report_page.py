"""The page of a report: whole in itself, escaped, with the pictures that the records allow."""

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

from test_report import record, write

from eval import report

CURVE = [[10, 20.0], [20, 30.0]]
GRID = [{"lr": 0.001, "dev": 30.0, "curve": CURVE}, {"lr": 0.01, "dev": 31.0, "curve": [[10, 25.0], [20, 31.0]]}]
FOLDS = [{"grid": GRID}, {"grid": [{**lane, "curve": [[10, 0.0], [20, 10.0]]} for lane in GRID]}]


class Page(HTMLParser):
    """Tags with what they hold; fails on a tag that is never closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page(tmp_path, *folders, beside=None):
    assert report.main(list(folders), tmp_path / "out.html", beside) == 0
    text = (tmp_path / "out.html").read_text()
    parsed = Page(text)
    for source in parsed.sources:
        kind, data = source.split(",")
        assert kind == "data:image/svg+xml;base64"
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert not re.search(r"(src|href)=.?(https?:|//)|@import|url\(", text) and "script" not in parsed.tags
    return parsed


def test_every_picture_is_there_and_inside(tmp_path):
    deep = {
        "corpus": "mini",
        "schedule": "mini",
        "layer_weights": [0.2, 0.8],
        "lr": 0.01,
        "grid": GRID,
        "chosen_by": "ks_acc",
    }
    layers = [{"layer": 0, "dev": 0.1}, {"layer": 1, "dev": 0.2}]
    means = [{"lr": lane["lr"], "dev": lane["dev"]} for lane in GRID]
    a = write(
        tmp_path / "a",
        record("ks_acc", 50.0, **deep),
        record("er_acc", 50.0, **{**deep, "grid": means}, folds=FOLDS, std_over_folds=1.0),
        record("qbe_mtwv", 0.1, **{**deep, "grid": layers, "layer_weights": [0.0, 1.0], "lr": None}),
    )
    parsed = page(tmp_path, a, beside="FBANK")
    assert len(parsed.sources) == 3 and parsed.tags.count("table") == 2
    assert "never with published ones" in parsed.text and "None of the runs above" in parsed.text


def test_what_a_record_lacks_is_left_out(tmp_path):
    bare = write(tmp_path / "bare", record("ks_acc", 50.0, parameters=0))
    parsed = page(tmp_path, bare)
    assert not parsed.sources and "No upstream here has several layers" in parsed.text


def test_differences_and_published_points(tmp_path):
    mine = write(tmp_path / "mine", record("asr_wer", 12.0))
    parsed = page(tmp_path, mine, beside="STaRHuBERT,STaRHuBERT-S")
    assert "+2.65" in parsed.text and "hollow: published" in parsed.text and len(parsed.sources) == 1


def test_texts_of_records_and_folders_are_only_text(tmp_path):
    odd = "<img src=x onerror=alert(1)>&$a^b$\u0001"
    folder = write(
        tmp_path / "<b>$x_{$", record("ks_acc", 50.0, upstream=odd, corpus="<i>", layer_weights=[0.5, 0.5], grid=GRID)
    )
    parsed = page(tmp_path, folder)
    assert (
        "<img src=x onerror=alert(1)>&$a^b$" in parsed.text and "<b>$x_{$" in parsed.text and "Data: <i>" in parsed.text
    )
    assert parsed.tags.count("img") == len(parsed.sources) == 3 and "i" not in parsed.tags
