"""Imports point one way: no module imports from a room that comes after its own, and none imports itself by a detour.

All imports count, those inside functions too; parsed, nothing is run.
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "star_upstream"

ORDER = (
    # what knows nothing of speech; `star_upstream` is its __init__, where environment finds the version
    (
        "errors",
        "say",
        "extras",
        "files",
        "strict",
        "outputs",
        "flags",
        "environment",
        "cores",
        "heap",
        "cluster",
        "jobs",
        "metrics",
        "runtime",
        "runtime_stream",
        "",
    ),
    ("audio", "effects", "members"),
    ("compat",),
    # from waveforms to hidden states
    ("encoder",),
    ("mini",),
    ("formats",),
    # from folders to batches
    ("data",),
    ("augment",),
    ("crops", "units"),
    ("analysis.similarity",),  # SKILL's loss groups layers by it
    ("losses",),
    # what changes an encoder, and rides on it
    ("pruning",),
    ("training.config", "training.recipe"),
    ("training.fabric", "training.precision"),
    ("heads",),
    ("training",),
    # the encoder handed out, and looked at
    ("formats.upstream", "export"),
    ("analysis",),
    ("mini.study", "mini.leaks"),
    ("asked", "compare", "compare_jobs"),
    ("arguments",),
    ("cli",),
    ("__main__",),
)
"""The rooms from left to right; those of one row may use one another. The longest name that fits a module is its
room."""


def names(folder):
    """Module name to (file, whether it is a package)."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = parts[-1] == "__init__"
        found[".".join(parts[:-1] if package else parts)] = (path, package)
    return found


def imports(folder):
    """Module name to the modules of ``folder`` that it imports."""
    modules = names(folder)
    graph = {}
    for module, (path, package) in modules.items():
        base = module.split(".") if package else module.split(".")[:-1]
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parent = base[: len(base) - node.level + 1] if node.level else []
                source = ".".join([*parent, *(node.module.split(".") if node.module else [])])
                for alias in node.names:
                    inside = f"{source}.{alias.name}"
                    targets.add(inside if inside in modules else source)
        graph[module] = sorted(targets & modules.keys() - {module})
    return graph


def place(module):
    """Where in the order a module's room stands."""
    inside = module.removeprefix(PACKAGE).removeprefix(".")
    rooms = {room: i for i, group in enumerate(ORDER) for room in group}
    while inside and inside not in rooms:
        inside = inside.rpartition(".")[0]
    assert inside or module == PACKAGE, f"{module}: in no room; say in ORDER where it stands"
    return rooms[inside]


def circle(graph):
    """Modules that import one another in a ring, or None."""
    done, path = set(), []

    def walk(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        path.append(module)
        found = next(filter(None, map(walk, graph[module])), None)
        path.pop()
        done.add(module)
        return found

    return next(filter(None, map(walk, graph)), None)


def test_a_ring_is_found():
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) is None


def test_no_circles():
    assert circle(imports(PACKAGE)) is None
    assert circle(imports("eval")) is None


def test_no_import_runs_against_the_order():
    graph = imports(PACKAGE)
    assert not [
        f"{module} -> {target}" for module in graph for target in graph[module] if place(target) > place(module)
    ]


def test_the_package_does_not_know_its_evaluation():
    for path, _ in names(PACKAGE).values():
        assert not any(
            (node.module or "").split(".")[0] == "eval"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and not node.level
        ), path


def test_what_can_be_chosen_about_pruning_is_known_without_torch():
    code = (
        f"import sys, {PACKAGE}.pruning.config; assert not {{'torch', '{PACKAGE}.pruning.gates'}} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
