"""The comparison with s3prl's runner as a page of Markdown."""

from __future__ import annotations

from typing import Any

from page import number, table

TITLE = "# The published pipeline beside ours"
ABOUT = """s3prl: its own downstream runner (`s3prl.run_downstream`, `s3prl/downstream/*/expert.py`), which made the
published numbers: its data sets, sampling, heads, training, checkpoint and test, unchanged but for
`star_upstream.compat` and what `results/bench/legacy.py` says of its surroundings. Both sides look at dev once,
at the last step.

Ours, with the same upstream, steps, learning rate and seed:

- *exact*: s3prl's batches and its initial head; features as `eval run --exact` makes them, of padded batches in
  fp32
- *kept*: s3prl's batches and its initial head; features of each utterance alone, once, as `eval run` keeps them
- *own*: as `eval run` does it, with batches and head of its own: the mean over seeds

Intervals: 95 %, percentile bootstrap over test items, 1000 resamples; that of a difference draws the same items
for both sides, and of *own*, which differs from s3prl's run as one seed does from another, a seed as well: s3prl's
run is inside where it is as one of our seeds. *Same answers*: labels or texts that are equal; for sd frames
and speakers with the same decision, for asv trials whose cosines are within 0.01. *Losses*: relative difference
of a training batch's loss, in the first update (the largest) and over all (median, largest)."""
REMAINS = """What remains, by line:

- *exact*, all tasks: additions in another order (padded LSTM in the place of torch's packed one, the mean over
  layers before the head). What begins at 1e-7 grows with every update, since Adam divides a gradient by its
  size.
- *exact*, ks: where s3prl draws a second of a noise file at random, ours draws another.
- *exact*, sid and asv: where an utterance is longer than the 8 s crop, each side draws its own.
- *kept*: the last frame of utterances that are not the longest of their batch (s3prl's is one of the padding);
  frames in fp16 (pr, asr, sf, asv, sd).
- *kept*, ks and sid: fixed seconds of the noise files, and fixed crops.
- *own*: other batches and another head: the two sides draw from different generators, so that a seed of one says
  nothing of the other.
- asr and sf: with the small head of the mini schedule, without SpecAugment and dropout, which each side would
  draw for itself.
- sid: with the 1251 classes of s3prl's head on *exact* and *kept*; *own* has as many as the corpus has
  speakers.
- asv: training utterances from 0.5 s on, not 2 s, once silence is cut; the mini corpora have few of those."""


def page(result: dict[str, Any]) -> str:
    """The page of all runs that there are."""
    runs = [record for record in result["runs"] if "failed" not in record]
    environments = [record["environment"] for record in result["runs"]]
    latest = max(environments, key=lambda e: e["finished"])
    versions = ", ".join(f"{name} {latest['versions'][name]}" for name in ("torch", "s3prl"))
    commits = ", ".join(dict.fromkeys(str(e["git_commit"]) for e in environments))
    parts = [
        TITLE,
        "\n".join(f"- `{command}`" for command in dict.fromkeys(r["command"] for r in result["runs"])),
        f"Upstream {result['upstream']} ({result['digest'][:12]}), data {result['data']}; {versions}, one thread; "
        f"commit {commits}; {latest['finished']}.",
        ABOUT,
        _scores(runs),
        _losses(runs),
        REMAINS,
    ]
    failed = [record for record in result["runs"] if "failed" in record]
    if failed:
        parts.append("Did not run:\n\n" + "\n".join(f"- {r['task']}: {r['failed']}" for r in failed))
    return "\n\n".join(parts) + "\n"


def _scores(runs: list[dict[str, Any]]) -> str:
    rows = []
    for r in runs:
        low, high = r["theirs"]["interval_95"]
        row = [
            f"{r['task']} ({r['metric']}, {r['unit']})",
            f"{r['steps']} at {r['lr']:g}",
            f"{r['batch']} x {r['accumulate']}",
            f"{r['train']} / {r['items']}",
            f"{r['theirs']['value']:.2f} [{low:.2f}, {high:.2f}]",
        ]
        for name in ("exact", "kept", "own"):
            side = r["sides"][name]
            low, high = side["difference_95"]
            outside = "" if side["inside"] else " **outside**"
            seeds = f" ({len(side['seeds'])} seeds)" if len(side["seeds"]) > 1 else ""
            row += [
                f"{side['value']:.2f}{seeds}: {side['difference']:+.2f} [{low:+.2f}, {high:+.2f}]{outside}",
                f"{100 * side['same_answers']:.1f} %",
            ]
        rows.append([*row, f"{number(r['theirs']['seconds'])} / {number(r['sides']['own']['seconds'])}"])
    sides = [
        title for name in ("exact", "kept", "own") for title in (f"{name}: ours, and ours - s3prl", "same answers")
    ]
    header = ["task", "updates", "batch", "train / test items", "s3prl", *sides, "seconds s3prl / own"]
    return "## Scores\n\n" + table(header, rows)


def _losses(runs: list[dict[str, Any]]) -> str:
    rows = []
    for r in runs:
        row = [r["task"], f"{r['losses']['first']:.3f} to {r['losses']['last']:.3f}"]
        for name in ("exact", "kept"):
            found = r["sides"][name]["losses"]
            row += [f"{found['first_update']:.0e}", f"{found['median']:.0e}", f"{found['worst']:.0e}"]
        rows.append([*row, "; ".join(r["theirs"]["said"])])
    sides = [title for name in ("exact", "kept") for title in (f"{name}: first update", "median", "largest")]
    return "## Losses\n\n" + table(["task", "s3prl's, first to last batch", *sides, "s3prl's own words of test"], rows)
