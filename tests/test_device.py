"""results/bench/device.py: every precision is exported, timed and weighed, and the page says what changed."""

import json

import device
import soundfile
import tiny_export
from test_export import waves

from star_upstream.formats import checkpoint


def test_the_command_measures_and_writes_its_page(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "tiny", tiny_export.encoder(), {})
    soundfile.write(tmp_path / "a.wav", waves(1.0)[0], 16_000)
    monkeypatch.setattr(device, "SECONDS", (0.5,))
    out = tmp_path / "device.md"
    words = {"source": tmp_path / "tiny", "calibrate": tmp_path / "a.wav", "work": tmp_path / "work", "out": out}
    named = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["device.py", *named, "--tasks", "none", "--rounds", "2", "--threads", "1"])
    assert device.main() == 0
    found = json.loads(out.with_suffix(".json").read_text())
    for kind in device.KINDS:
        ((column, (median, fastest, slowest)),) = found["times"][kind].items()
        assert column == "1 threads, 0.5 s" and 0 < fastest <= median <= slowest
        assert 20 < found["memory"][kind] < 5000 and found["megabytes"][kind] > 0
    assert found["memory"]["fp32"] < found["memory"]["torch_fp32"]  # torch is not loaded
    assert found["megabytes"]["torch_bf16"] * 2 == found["megabytes"]["torch_fp32"]
    text = out.read_text()
    assert text.startswith("# On a device: tiny\n") and all(title in text for title in device.KINDS.values())
    assert f"{1000 * found['times']['int8_static'][column][0]:.1f}" in text and "Scores" not in text
    title = {"title": "Keyword spotting", "metric": "ks_acc"}
    one = title | {"value": 70.0, "interval_95": [68.0, 72.0]}
    other = title | {"value": 60.0, "interval_95": [58.0, 62.0]}
    text = device.page(found | {"scores": {"torch_fp32": {"ks": one}, "int8_static": {"ks": other}}})
    text += device.page(found | {"scores": {"torch_fp32": {"ks": one}, "torch_bf16": {}}})
    assert (
        "| torch, bf16 | not measured |" in text
        and "| 70.00 [68.00, 72.00] |" in text
        and "| 60.00 [58.00, 62.00] *outside* |" in text
    )
