"""Files from strangers: every reader that could run code in one is told not to, and does not."""

import ast
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT

from benchmarks.faults import run_here
from dbae.checkpoint import load_model
from dbae.config import UserError
from dbae.tensors import read_tensors
from eval.arrays import read_arrays
from eval.reconstruction import load_lpips
from eval.samples import read_part

SOURCES = sorted(path for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(ROOT).parts))
GUARDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_every_load_is_guarded():
    assert len(SOURCES) > 30
    for path, node in ((source, node) for source in SOURCES for node in ast.walk(ast.parse(source.read_text()))):
        where = f"{path}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            unsafe = UNSAFE_MODULES & {name.split(".")[0] for name in names}
            assert not unsafe or (path.name == "classes.py" and unsafe == {"pickle"}), where
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "Unpickler" or node.attr.endswith("Error"), where  # whose find_class is restricted
        if isinstance(node, ast.Call) and ast.unparse(node.func) in GUARDS:
            name, value = GUARDS[ast.unparse(node.func)]
            given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == name}
            assert given == {name: value}, f"{where}: expected {name}={value}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "yaml.load"), where


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("name", ["opt_000001.pt", "model_000001.pt", "ema_0.9_000001.pt"])
def test_no_file_of_a_run_is_executed(tmp_path, name, old_format):
    run, marker = tmp_path / "run", tmp_path / "executed"
    run_here(run, total_steps=1)
    torch.save({"optimizer": Hostile(marker)}, run / name, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UserError, match="expected an undamaged checkpoint"):
        run_here(run, total_steps=1)
    for read in (read_tensors, lambda path: load_model(path, schedule="vp")):
        with pytest.raises(UserError, match="refused: it holds more than tensors, and nothing in a file is executed"):
            read(str(run / name))
    assert not marker.exists()


def test_no_array_is_executed(tmp_path):
    marker, objects, plain = tmp_path / "executed", tmp_path / "objects.npz", tmp_path / "plain.npz"
    np.savez(objects, samples=np.array([Hostile(marker)], dtype=object))
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("samples.npy", pickle.dumps(Hostile(marker)))  # not even NumPy's own header
    for read in (read_arrays, read_part):
        for path in (objects, plain):
            with pytest.raises(UserError, match="damaged, or not a file of arrays"):
                read(str(path))
    assert not marker.exists()


def test_no_pretrained_network_is_executed(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "alexnet.pth"
    torch.save({"features.0.weight": Hostile(marker)}, path)
    with pytest.raises(UserError, match="nothing in a file is executed"):
        load_lpips(str(path))
    assert not marker.exists()
