"""Moves among codes: paths between two, steps along a classifier, and the model's methods built on them."""

import json
import math

import pytest
import tiny
import torch
from dbae.attributes import read_classifier
from dbae.methods.editing import PATHS, along, lerp, normalised_step, slerp, step

from dbae.config import UserError
from dbae.io import image_generators

FRACTIONS = torch.linspace(0, 1, 5)


def codes(n=3, latent=8, seed=0):
    return torch.randn(n, latent, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_paths_begin_and_end_at_the_codes_and_reverse(path):
    z_1, z_2 = codes(seed=1), codes(seed=2)
    way = path(z_1, z_2, FRACTIONS)
    assert way.shape == (3, 5, 8)
    torch.testing.assert_close(way[:, 0], z_1)
    torch.testing.assert_close(way[:, -1], z_2)
    torch.testing.assert_close(way.flip(1), path(z_2, z_1, FRACTIONS))
    torch.testing.assert_close(path(z_1, z_1, FRACTIONS), z_1[:, None].expand(-1, 5, -1))


def test_spherical_keeps_length_and_turns_evenly():
    z_1, z_2 = (torch.nn.functional.normalize(codes(seed=seed), dim=1) * 3 for seed in (1, 2))
    way = slerp(z_1, z_2, FRACTIONS)
    torch.testing.assert_close(way.norm(dim=2), torch.full((3, 5), 3.0))
    turns = (way[:, 1:] * way[:, :-1]).sum(dim=2) / 9
    torch.testing.assert_close(turns, turns[:, :1].expand(-1, 4))
    assert not torch.allclose(way, lerp(z_1, z_2, FRACTIONS), atol=1e-2)


def test_steps():
    w, z = codes(1)[0], codes()
    assert step(w).norm().item() == pytest.approx(math.sqrt(8))
    torch.testing.assert_close(step(3 * w), step(w))
    torch.testing.assert_close(normalised_step(w, torch.full((8,), 1.0)), step(w))
    moved = along(z, step(w), torch.tensor([-0.5, 0.0, 0.5]))
    torch.testing.assert_close(moved[:, 1], z)
    torch.testing.assert_close(moved[:, 2] - moved[:, 0], step(w).expand(3, -1))
    torch.testing.assert_close(along(z, step(w), torch.tensor([[0.0], [1.0], [2.0]]))[2, 0], z[2] + 2 * step(w))


def test_normalised_step_is_the_step_among_codes_of_unit_variance():
    w, z = codes(1)[0], codes()
    mean, std = torch.randn(8), torch.rand(8) + 0.5
    row = std * w  # of the same classifier for (z - mean) / std
    elsewhere = ((z - mean) / std + 0.3 * math.sqrt(8) * row / row.norm()) * std + mean
    torch.testing.assert_close(along(z, normalised_step(w, std), torch.tensor([0.3]))[:, 0], elsewhere)


@pytest.mark.parametrize("churn", [0.0, 0.5])
def test_interpolation_ends_are_the_reconstructions(churn):
    model, (x_1, x_2) = tiny.model(), tiny.images().chunk(2)
    settings = {"steps": 3, "churn": churn}
    frames = model.interpolate(x_1, x_2, 3, generator=image_generators(0, range(2)), **settings)
    assert frames.shape == (2, 3, 3, 32, 32)
    for x, end in ((x_1, frames[:, 0]), (x_2, frames[:, -1])):
        torch.testing.assert_close(end, model.reconstruct(x, generator=image_generators(0, range(2)), **settings))
    assert not torch.allclose(frames[:, 0], frames[:, 1], atol=1e-3)


@pytest.mark.parametrize("fix_xT", [True, False])
def test_manipulation(fix_xT):
    model, x = tiny.model(), tiny.images(2)
    w = codes(1)[0]
    frames = model.manipulate(x, w, [0.0, 2.0], fix_xT=fix_xT, steps=3)
    torch.testing.assert_close(frames[:, 0], model.reconstruct(x, steps=3))
    with torch.no_grad():
        z = model.encode(x)
        edited = z + 2 * math.sqrt(8) * w / w.norm()
        x_T = model.decode(z if fix_xT else edited)
    torch.testing.assert_close(frames[:, 1], model.generate_from(edited, x_T, steps=3))


def classifier_file(folder, statistics=True, attributes=("Male", "Wavy_Hair")):
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(8, 2).state_dict(), folder / "best.pt")
    content = {"attributes": list(attributes)}
    if statistics:
        content["codes"] = {"std": [0.5] * 8, "median_logit_of_positives": [1.5, None]}
    (folder / "best.json").write_text(json.dumps(content))
    return str(folder / "best.pt")


def test_classifier(tmp_path):
    found = read_classifier(classifier_file(tmp_path), 8)
    assert [found.index(name) for name in ("Male", "male", "0", "wavy hair", "1")] == [0, 0, 0, 1, 1]
    for wrong in ("Smiling", "2", "-1", ""):
        with pytest.raises(UserError, match="attributes: expected a number under 2 or one of Male, Wavy_Hair"):
            found.index(wrong)
    torch.testing.assert_close(found.step(0), step(found.weight[0]))
    torch.testing.assert_close(found.step(0, True), 0.5 * step(found.weight[0]))


@pytest.mark.parametrize("normalised", [True, False])
def test_strength_raises_logits_to_the_median_and_no_further(tmp_path, normalised):
    found, z = read_classifier(classifier_file(tmp_path), 8), codes(50)
    scales = found.strength(z, 0, normalised)
    before = z @ found.weight[0] + found.bias[0]
    moved = along(z, found.step(0, normalised), scales[:, None])[:, 0]
    torch.testing.assert_close(moved @ found.weight[0] + found.bias[0], before.clamp(min=1.5))
    assert (scales > 0).any()
    with pytest.raises(UserError, match="no training image has it"):
        found.strength(z, 1)


def test_a_bare_classifier_has_names_or_numbers_and_no_statistics(tmp_path):
    path = classifier_file(tmp_path)
    (tmp_path / "best.json").unlink()
    assert read_classifier(path, 8).names == ("0", "1")
    found = read_classifier(path, 8, ("a", "b"))
    assert found.names == ("a", "b")
    for ask in (lambda: found.strength(codes(), 0), lambda: found.step(0, normalised=True)):
        with pytest.raises(UserError, match="expected beside it the best"):
            ask()


def test_wrong_classifiers(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_classifier(str(tmp_path / "absent.pt"), 8)
    path = classifier_file(tmp_path)
    with pytest.raises(UserError, match="reads codes of 8 numbers, the model's have 64"):
        read_classifier(path, 64)
    for text in ("{", "[]", '{"attributes": 3}', '{"attributes": ["a"]}', '{"attributes": ["a", "b"], "codes": {}}'):
        (tmp_path / "best.json").write_text(text)
        with pytest.raises(UserError, match=r"best\.json: expected"):
            read_classifier(path, 8)
    torch.save({"weight": torch.zeros(2, 8)}, path)
    with pytest.raises(UserError, match="weight and bias of a linear layer"):
        read_classifier(path, 8)
