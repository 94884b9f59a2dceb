"""Who may import whom. Read from the sources, so that nothing need be importable."""

import ast

import pytest
from conftest import ROOT

# What a room or file may import of this repository; the most exact entry counts
ALLOWED = {
    "dbae/nn": {"dbae.nn"},
    "dbae/diffusion": {"dbae.diffusion"},
    "dbae/config.py": {"dbae.diffusion"},
    "dbae/io.py": {"dbae.config"},
    "dbae/tensors.py": {"dbae.config", "dbae.io"},
    "dbae/device.py": {"dbae.config"},
    "dbae/background.py": set(),
    "dbae/methods": {"dbae.config", "dbae.diffusion", "dbae.io", "dbae.methods", "dbae.nn"},
    "dbae/runtime.py": {"dbae.config", "dbae.device", "dbae.nn"},
    "dbae/checkpoint.py": {"dbae.config", "dbae.io", "dbae.methods", "dbae.tensors"},
    "dbae/hub.py": {"dbae.checkpoint", "dbae.config", "dbae.io", "dbae.methods"},
    "dbae/finetuned.py": {"dbae.checkpoint", "dbae.config", "dbae.io", "dbae.methods", "dbae.tensors"},
    "dbae/progress.py": {"dbae.config", "dbae.io", "dbae.runtime"},
    "dbae/state.py": {
        "dbae.checkpoint",
        "dbae.config",
        "dbae.io",
        "dbae.methods",
        "dbae.runtime",
        "dbae.tensors",
    },
    "dbae/training.py": {"dbae.background", "dbae.config", "dbae.io", "dbae.progress", "dbae.runtime", "dbae.state"},
    "dbae/__init__.py": {"dbae"},
    "datasets": {"datasets", "dbae.config", "dbae.io"},
    "eval": {"eval", "dbae.config", "dbae.io", "dbae.tensors"},
    "scripts": {"scripts", "dbae", "datasets", "eval"},
    "benchmarks": {"benchmarks", "scripts", "dbae", "datasets", "eval"},
}
ROOMS = ("dbae", "datasets", "eval", "scripts", "benchmarks", "tests")
FILES = sorted(path for room in ROOMS[:-1] for path in (ROOT / room).rglob("*.py"))


def imported(path):
    """Modules of this repository that a file imports, anywhere in it, each with what is taken of a package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: star import"
            if node.module in ("dbae", "datasets", "eval", "scripts"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in ROOMS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction_of_imports(path):
    key = str(path.relative_to(ROOT))
    rule = max((entry for entry in ALLOWED if key == entry or key.startswith(f"{entry}/")), key=len)
    for name in imported(path):
        parents = {name[:i] for i, char in enumerate(f"{name}.") if char == "."}
        assert parents & ALLOWED[rule], f"{key} imports {name}"


def test_networks_and_maths_import_torch_alone():
    for room in ("nn", "diffusion"):
        for path in (ROOT / "dbae" / room).glob("*.py"):
            roots = {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
            }
            standard = {"bisect", "collections", "dataclasses", "functools", "inspect", "itertools", "math", "typing"}
            assert roots <= {"dbae", "torch"} | standard, path
