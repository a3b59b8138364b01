#!/usr/bin/env python3
"""Build the wheel, install it where nothing but its base requirements is, and try it there.

    .venv/bin/python .ci/wheel.py

The base requirements are linked from the environment of the Python that runs this, so that nothing is downloaded.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
LOAD = (
    "import star_upstream, torch; "
    "print(star_upstream.load('star_mini')([torch.randn(16000)])['last_hidden_state'].shape)"
)
SCORES = REPO / "results" / "realspeech" / "first_teacher"
TRIALS = [
    # command, exit status, what it must say
    (["python", "-c", LOAD], 0, "[1, 49, 128]"),
    (["star", "--version"], 0, ""),
    (["star", "recipes"], 0, "star_hubert"),
    (["star", "profile", "star_mini", "--json"], 0, '"parameters"'),
    (["star", "convert", "star_mini", "converted"], 0, '"checkpoint"'),
    (["star", "profile", "converted"], 0, "parameters"),
    (["star", "distill", "star_mini", "--dry-run"], 0, "teacher"),
    (["star", "distill", "star_mini", "data.train=.", "--out", "run"], 2, "star-upstream[train]"),
    (["star", "finetune", "multitask_mini", "data=.", "--out", "run"], 2, "star-upstream[train]"),
    (["star", "profile", "HUBERT_BASE"], 2, "star-upstream[teachers]"),
    (["star-eval", "--help"], 0, "run | report"),
    (["python", "-m", "eval", "--help"], 0, "python -m eval"),
    (["star-eval", "report", str(SCORES), "--with", "DistilHuBERT"], 2, "star-upstream[eval]"),
    (["star-eval", "run", "--upstream", "star_mini", "--out", "scores"], 2, "star-upstream[eval]"),
    (["star-eval", "report", str(SCORES), "--out", "table"], 2, "star-upstream[eval]"),
]


def build(folder: Path) -> Path:
    """The wheel of the tracked files alone: what an earlier build left in ``build/`` would get into it."""
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, check=True, capture_output=True, text=True).stdout
    tracked = [name for name in listed.split("\0") if name and (REPO / name).is_file()]
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPO / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        source,
    ]
    subprocess.run([str(word) for word in command], check=True)
    (wheel,) = folder.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {name for name in tracked if name.startswith(("star_upstream/", "eval/"))}
    assert inside == package, f"in the wheel or in git alone: {sorted(inside ^ package)}"
    return wheel


def base(wheel: Path) -> set[str]:
    """The projects that the wheel requires without an extra, and what those require in turn."""
    (text,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    head = metadata.PathDistribution(zipfile.Path(wheel, text.removesuffix("METADATA"))).requires or []
    found: set[str] = set()
    todo = [line for line in head if "extra ==" not in line]
    while todo:
        name = re.match(r"[\w.-]+", todo.pop()).group()
        if name.lower() in found:
            continue
        try:
            requires = metadata.distribution(name).requires or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(name.lower())
        todo += [line for line in requires if "extra ==" not in line]
    return found


def install(wheel: Path, folder: Path) -> Path:
    """An environment with links to the base requirements and the wheel; its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in base(wheel):
        files = metadata.distribution(name).files or []
        for top in {file.parts[0] for file in files if not file.parts[0].startswith("..")}:
            here, there = packages / top, Path(metadata.distribution(name).locate_file(top))
            if there.exists() and not here.exists():
                here.symlink_to(there)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    return python.parent


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="star_wheel_") as name:
        folder = Path(name)
        programs = install(build(folder), folder / "environment")
        failed = 0
        for (program, *rest), status, words in TRIALS:
            command = [str(programs / program), *rest]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, env={"HOME": name, "PATH": "/usr/bin:/bin"}
            )
            good = done.returncode == status and words in done.stdout + done.stderr
            failed += not good
            print(f"{'ok    ' if good else 'FAILED'} {json.dumps([program, *rest])}", flush=True)
            if not good:
                print(f"exit {done.returncode}, expected {status} and {words!r}\n{done.stdout}{done.stderr}")
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
