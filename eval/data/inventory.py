"""What of the corpora is in a folder: ``python -m eval data --root DIR``. Nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from star_upstream.data.corpora import (
    BY_TASK,
    find,
    from_manifest,
    load,
    manifest,
    misplaced,
    segments,
    sizes,
    trials,
    truth,
    voxceleb1,
)
from star_upstream.errors import StarError
from star_upstream.files import home
from star_upstream.say import say

LINKS = {"asv": ("trials", trials, voxceleb1.TRIALS), "sd": ("segments", segments, None), "qbe": ("pairs", truth, None)}
"""What a task needs besides its table: what it is called, its reader, and how many the published corpus has (None: not
known)."""


def main(root: str | Path, tasks: tuple[str, ...] = (), as_json: bool = False) -> int:
    """Print for each task what is there, what is missing, and counts beside the expected ones: text, or json for
    programs.

    Returns 0 when every task can be run, else 1. Raises :class:`StarError` when ``root`` is no folder.
    """
    root = home(root).absolute()
    if wrong := misplaced(root):
        raise StarError(wrong)
    if not root.is_dir():
        raise StarError(f"{root}: no such folder; give the one that holds the corpora")
    for corpus in BY_TASK.values():
        if root.name in corpus.FOLDERS:
            say(f"{root} looks like {corpus.NAME} itself; give the folder that holds it, {root.parent}")
            break
    found = {}
    for task in tasks or BY_TASK:
        found[task] = look(task, root)
        if not as_json:
            print("\n".join(_lines(task, found[task])), flush=True)  # a large corpus takes minutes
    ready = [task for task, entry in found.items() if entry["error"] is None]
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(f"{len(ready)} of {len(found)} tasks can run on {root}" + (f": {', '.join(ready)}" if ready else ""))
    return 0 if len(ready) == len(found) else 1


def look(task: str, root: Path) -> dict[str, Any]:
    """One task's entry: corpus, licence, folder (None: not found), from_manifest, rows and expected of each split,
    remarks on own data, error.

    ``error`` is None when the task can run, else the line that says why not.
    """
    corpus = BY_TASK[task]
    tables = from_manifest(task, root)
    folder = root / "manifests" if tables else find(corpus, root)
    entry: dict[str, Any] = {
        "corpus": corpus.NAME,
        "licence": corpus.LICENCE,
        "folder": folder and str(folder),
        "from_manifest": tables,
        "rows": None,
        "expected": {str(split): number for split, number in corpus.COUNTS[task].items()},
        "remarks": [],
        "error": None,
    }
    if folder is None:
        names = " or ".join(f"{name}/" for name in corpus.FOLDERS)
        files = " and ".join(f"manifests/{name}" for name in manifest.files(task))
        return entry | {"error": f"not found: put it into {root} as {names}, or your own data as {files}"}
    try:
        table = load(task, root)
        entry["rows"] = {str(split): int(n) for split, n in sizes(table).items()}
        entry["remarks"] = list(table.attrs.get("remarks", ()))
        if task in LINKS:
            name, read, published = LINKS[task]
            entry["rows"][name] = len(read(root))
            entry["expected"][name] = published
    except StarError as error:
        entry["error"] = str(error)
    return entry


def _lines(task: str, entry: dict[str, Any]) -> list[str]:
    if entry["from_manifest"]:
        lines = [f"{task:4} own data, in place of {entry['corpus']}"]
    else:
        lines = [f"{task:4} {entry['corpus']}", f"     licence: {entry['licence']}"]
    if entry["folder"] is None:
        return [
            *lines,
            f"     {entry['error']}",
            f"     search for {entry['corpus']!r}; nothing is downloaded from here",
            "",
        ]
    lines.append(f"     found: {entry['folder']}")
    if entry["rows"] is not None:
        lines.append(f"     {'folds' if task == 'er' else 'rows'}: {_counts(entry)}")
    lines += [f"     note: {remark}" for remark in entry["remarks"]]
    if entry["error"] is not None:
        lines.append(f"     cannot be used: {entry['error']}")
    return [*lines, ""]


def _counts(entry: dict[str, Any]) -> str:
    """Each split's rows, and where they differ those of the published corpus."""
    rows, expected = entry["rows"], entry["expected"]
    parts = []
    for split in (split for split in dict.fromkeys((*expected, *rows)) if split in rows):
        published = None if entry["from_manifest"] else expected.get(split)
        same = published is None or rows[split] == published
        parts.append(f"{split}: {rows[split]}" + ("" if same else f" (published: {published})"))
    return ", ".join(parts)
