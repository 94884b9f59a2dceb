"""What comes with the repository works: the notebook, the README's example, and the shipped models behind them."""

import re
import subprocess
import sys

import nbclient
import nbformat
import pytest
from conftest import ROOT

from dbae import load_model
from eval.classifier import read_classifier

MODELS = sorted((ROOT / "ckpt" / "toyfaces").glob("*/ema_*.pt"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parent.name)
def test_models_are_small_and_whole(path):
    assert path.stat().st_size < 15_000_000
    model = load_model(str(path))
    kind = path.parent.name
    assert kind == (("sto" if model.stochastic else "det") if model.method == "dbae" else model.method)
    if kind != "ddae":
        assert len(read_classifier(str(path.parent / "best.pt"), model.config.latent_dim).names) == 40
    commands = {"diffae": "diffae/train.sh toyfaces", "ddae": "ddae/train.sh DDPM_toyfaces"}
    assert commands.get(kind, "train_dbae.sh toyfaces") in (path.parent / "README.md").read_text()


def test_all_models_are_there():
    assert [path.parent.name for path in MODELS] == ["ddae", "det", "diffae", "sto"]


def test_example_of_the_python_page():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    (runnable,) = [block for block in blocks if "ckpt/toyfaces" in block]  # the others need a released file
    done = subprocess.run([sys.executable, "-c", runnable], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_pages_show_the_method_of_one_s_own_as_it_is_tested():
    shown = re.search(r"```python\n(class Toy.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)[1]
    tested = (
        (ROOT / "tests/test_own_method.py")
        .read_text()
        .replace("MappingProxyType(", "")
        .replace('"adam"}})', '"adam"}}')
    )
    assert shown in tested


def test_pictures_and_pages_that_the_pages_name_are_there():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


@pytest.mark.slow
def test_notebook_runs():
    path = ROOT / "notebooks" / "tour.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if output.get("text")
    )
    assert "codes [8, 64]" in printed and "from the code alone" in printed and "code: average precision" in printed
