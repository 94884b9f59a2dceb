"""A few faults of each kind; ``python -m benchmarks.chaos`` inflicts hundreds."""

import random

import pytest

from benchmarks import chaos


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return chaos.Trials(tmp_path_factory.mktemp("chaos"), random.Random(0))


@pytest.mark.parametrize("kind", chaos.KINDS)
def test_a_run_survives(trials, kind):
    assert trials.survives(kind)


def test_what_is_not_the_same_is_noticed(trials, tmp_path):
    """A run that differs in one number of its optimizer, and one whose table repeats a step, are lost."""
    import torch

    world, _ = chaos.KINDS["bit flipped"]
    expected = trials.reference(world)
    name = next(name for name in expected if name.startswith("opt/optimizer/state"))
    changed = {**expected, name: torch.nextafter(expected[name].float(), torch.tensor(torch.inf))}
    assert chaos.equal(expected, expected) and not chaos.equal(expected, changed)
    assert not chaos.equal(expected, {key: value for key, value in expected.items() if key != name})
    (tmp_path / "progress.csv").write_text("step\n1\n2\n2\n6\n")
    assert not chaos.in_order(tmp_path)
    (tmp_path / "progress.csv").write_text("step\n1\n2\n6\n")
    assert chaos.in_order(tmp_path)
    (tmp_path / "opt_000001.pt.01234567.tmp").touch()
    assert not chaos.in_order(tmp_path)
