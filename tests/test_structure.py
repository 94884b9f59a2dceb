"""Who may import whom: dbae <- datasets, eval <- scripts. Read from the sources, so that nothing need be importable."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

ALLOWED = {
    "dbae/errors.py": set(),
    "dbae/config.py": {"dbae.config"},
    "dbae/layers.py": set(),
    "dbae/unet.py": {"dbae.config", "dbae.nn.layers"},
    "dbae/encoder.py": {"dbae.config", "dbae.nn.layers"},
    "dbae/spectral.py": {"dbae.nn.layers"},
    "dbae/decoder.py": {"dbae.config", "dbae.nn.spectral"},
    "dbae/bridge.py": set(),
    "dbae/solvers.py": {"dbae.bridge"},
    "dbae/sampler.py": {"dbae.bridge", "dbae.config", "dbae.solvers"},
    "dbae/flat.py": set(),
    "dbae/ema.py": {"dbae.flat"},
    "dbae/optimizer.py": {"dbae.flat"},
    "dbae/outcomes.py": set(),
    "dbae/allocator.py": set(),
    "dbae/randomness.py": set(),
}
FILES = sorted(path for room in ("dbae", "datasets", "eval", "scripts") for path in (ROOT / room).rglob("*.py"))


def imported(path):
    """Modules of this repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: star import"
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in ("dbae", "datasets", "eval", "scripts", "tests")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_direction_of_imports(path):
    room, names = path.relative_to(ROOT).parts[0], imported(path)
    rooms = {name.split(".")[0] for name in names}
    assert (
        rooms
        <= {
            "dbae": {"dbae"},
            "datasets": {"datasets", "dbae"},
            "eval": {"eval", "dbae"},
            "scripts": {"scripts", "dbae", "datasets", "eval"},
        }[room]
    )
    if room == "datasets":
        assert {name for name in names if name.startswith("dbae")} <= {"dbae.config"}
    if room == "eval":
        assert {name for name in names if name.startswith("dbae")} <= {
            "dbae.config",
            "dbae.io",
        }
    key = str(path.relative_to(ROOT))
    if key in ALLOWED:
        assert names <= ALLOWED[key]


@pytest.mark.parametrize(
    "module",
    ["dbae", "dbae.config", "datasets", "scripts.train", "scripts.cli", "scripts.edit", "scripts.web"],
)
def test_command_lines_start_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_public_names():
    import dbae

    for name in ("DBAE", "load_model"):
        assert callable(getattr(dbae, name))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = dbae.absent
