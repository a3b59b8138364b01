"""What the package and its evaluation define is used by them, by the bench or by a page, and not by tests alone."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALLED_ELSEWHERE = {"emit", "get_next", "_wandb", "_mlflow"}
"""Hooks of logging and onnxruntime; trackers, which are found by their names."""


def defined(tree):
    """Names of functions, classes, methods, and what a module holds."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name))


def used(tree):
    """Names that are read, and the words of short texts, by which fields and functions are found."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
            yield from re.findall(r"\w+", node.value)


def unused(files, pages=""):
    """Names in the order of ``files`` (folder of definitions first) that nothing there reads."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    known = {name for tree in trees.values() for name in used(tree)}
    known |= CALLED_ELSEWHERE | {*re.findall(r"\w+", pages)}
    return [
        f"{file.relative_to(ROOT)}: {name}"
        for file, tree in trees.items()
        if file.relative_to(ROOT).parts[0] in ("star_upstream", "eval")
        for name in defined(tree)
        if name not in known and not (name.startswith("__") and name.endswith("__"))
    ]


def test_nothing_is_there_for_tests_alone():
    folders = ("star_upstream", "eval", "results/bench")
    files = [ROOT / "hubconf.py", *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))]
    pages = [ROOT / "README.md", ROOT / "setup.cfg", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]
    assert not unused(files, "".join(page.read_text(encoding="utf-8") for page in pages))


def test_what_nobody_reads_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "eval" / "one.py"
    file.parent.mkdir()
    file.write_text("A = 1\nB = A\ndef f():\n    return B\nclass C:\n    def m(self):\n        return f()\n")
    assert unused([file]) == ["eval/one.py: C", "eval/one.py: m"] and unused([file], "C.m") == []
