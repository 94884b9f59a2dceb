"""Moves among codes: paths between two, steps along a classifier, and the model's methods built on them."""

import json
import math
from types import SimpleNamespace

import pytest
import tiny
import torch

from dbae.config import SampleConfig, UserError
from dbae.io import fingerprint, image_generators
from dbae.methods import METHODS
from dbae.methods.codes import PATHS, attribute_step, lerp, slerp
from dbae.methods.diffae import DiffAE, DiffAEConfig
from eval.classifier import read_classifier
from scripts.edit_inputs import ManipulateOptions, OfficialManipulateOptions
from scripts.edit_plan import moves_more, plan
from scripts.trained import TrainedModel

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


def test_attribute_step():
    w = codes(1)[0]
    assert attribute_step(w).norm().item() == pytest.approx(math.sqrt(8))
    with pytest.raises(UserError, match="direction: "):
        attribute_step(0 * w)
    torch.testing.assert_close(attribute_step(3 * w), attribute_step(w))

    # The normalised step is the step among codes of unit variance
    z, mean, std = codes(), torch.randn(8), torch.rand(8) + 0.5
    row = std * w  # of the same classifier for (z - mean) / std
    elsewhere = ((z - mean) / std + 0.3 * math.sqrt(8) * row / row.norm()) * std + mean
    torch.testing.assert_close(z + 0.3 * attribute_step(w, std), elsewhere)


def test_interpolation_ends_are_the_reconstructions():
    model, (x_1, x_2) = tiny.model(), tiny.images().chunk(2)
    settings = {"steps": 3, "churn": 0.5}
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


def classifier_file(folder):
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(8, 2).state_dict(), folder / "best.pt")
    about = {"std": [0.5] * 8, "median_logit_of_positives": [1.5, None], "median_logit_of_negatives": [-1.0, -0.5]}
    (folder / "best.json").write_text(json.dumps({"attributes": ["Male", "Wavy_Hair"], "codes": about}))
    return str(folder / "best.pt")


@pytest.mark.parametrize("normalised", [True, False])
def test_the_scale_to_the_median_raises_logits_to_it_and_no_further(tmp_path, normalised):
    found, z = read_classifier(classifier_file(tmp_path), 8), codes(50)
    step = attribute_step(found.weight[0], found.known("std") if normalised else None)
    scales = found.scale_to_median(z, 0, step)
    before = z @ found.weight[0] + found.bias[0]
    moved = z + scales[:, None] * step
    torch.testing.assert_close(moved @ found.weight[0] + found.bias[0], before.clamp(min=1.5))
    assert (scales > 0).any()
    with pytest.raises(UserError, match="no training image has it"):
        found.scale_to_median(z, 1, step)


@pytest.mark.parametrize("normalised", [True, False])
def test_strengths_are_parts_of_the_way_to_the_median_of_either_side(tmp_path, normalised):
    found, z = read_classifier(classifier_file(tmp_path), 8), codes(50)
    step = attribute_step(found.weight[0], found.known("std") if normalised else None)
    before = z @ found.weight[0] + found.bias[0]
    scales = found.scales(z, 0, step, torch.tensor([-1.0, 0.0, 0.25, 1.0]))
    after = (z[:, None] + scales[..., None] * step) @ found.weight[0] + found.bias[0]
    up, down = before.clamp(min=1.5), before.clamp(max=-1.0)
    expected = torch.stack([down, before, before + 0.25 * (up - before), up], dim=1)
    torch.testing.assert_close(after, expected)
    assert (before < 1.5).any() and (before > -1).any()

    # A median that no strength asks for need not be known
    found.scales(z, 1, step, torch.tensor([-1.0, 0.0]))
    with pytest.raises(UserError, match="no training image has it"):
        found.scales(z, 1, step, torch.tensor([0.0, 0.5]))


def test_earlier_files_lack_the_median_of_negatives(tmp_path):
    path = classifier_file(tmp_path)
    about = json.loads((tmp_path / "best.json").read_text())
    del about["codes"]["median_logit_of_negatives"]
    (tmp_path / "best.json").write_text(json.dumps(about))
    found = read_classifier(path, 8)
    edits = plan(codes(), found, ManipulateOptions(attributes="Male"))
    assert edits[0].columns == ("0", "+0.25", "+0.5", "+0.75", "+1") and edits[0].shifts.shape == (3, 5, 8)
    with pytest.raises(UserError, match="negative_logits"):
        plan(codes(), found, ManipulateOptions(attributes="Male", scales=(-1.0,)))


def test_the_default_edit_is_in_medians_and_the_official_one_says_what_moves_more(tmp_path):
    found, z = read_classifier(classifier_file(tmp_path), 8), codes()
    usual, official = ManipulateOptions(attributes="Male"), OfficialManipulateOptions(attributes="Male")
    edit = plan(z, found, usual)[0]
    assert edit.columns == ("-1", "-0.5", "0", "+0.5", "+1")
    logits = (z[:, None] + edit.shifts) @ found.weight[0] + found.bias[0]
    torch.testing.assert_close(logits[:, -1], logits[:, 2].clamp(min=1.5))
    torch.testing.assert_close(logits[:, 0], logits[:, 2].clamp(max=-1.0))
    step = attribute_step(found.weight[0])
    torch.testing.assert_close(
        plan(z, found, official)[0].shifts, torch.tensor([-0.3, -0.15, 0, 0.15, 0.3])[:, None] * step
    )
    assert official.fix_xT and moves_more(usual, False) == ""
    assert moves_more(official, False) == "--strength median --fix_xT false"
    assert moves_more(official, True) == "--strength median"
    assert moves_more(OfficialManipulateOptions(fix_xT=False, strength="median"), False) == ""


@pytest.mark.parametrize(("method", "kept"), [("dbae", False), ("diffae", True)])
def test_x_T_is_kept_where_it_is_inferred_from_the_image(method, kept):
    model = SimpleNamespace(INVERTS=METHODS[method].INVERTS)
    trained = TrainedModel(model, None)
    assert trained.keeps_xT(None) is kept
    assert trained.keeps_xT(True) and not trained.keeps_xT(False)


def test_attributes_by_name_or_number(tmp_path):
    found = read_classifier(classifier_file(tmp_path), 8)
    assert [found.index(name) for name in ("Male", "male", "0", "wavy hair", "1")] == [0, 0, 0, 1, 1]
    for wrong in ("Smiling", "2", "-1", ""):
        with pytest.raises(UserError, match="attributes: "):
            found.index(wrong)


def test_a_classifier_and_its_json_belong_together(tmp_path):
    path = classifier_file(tmp_path)
    about = json.loads((tmp_path / "best.json").read_text())
    (tmp_path / "best.json").write_text(json.dumps(about | {"layer": fingerprint(path)}))
    assert read_classifier(path, 8).names == ("Male", "Wavy_Hair")
    torch.save(torch.nn.Linear(8, 2).state_dict(), path)
    with pytest.raises(UserError, match="it is not the file that its JSON is of"):
        read_classifier(path, 8)


def test_a_bare_classifier_has_names_or_numbers_and_no_statistics(tmp_path):
    path = classifier_file(tmp_path)
    (tmp_path / "best.json").unlink()
    assert read_classifier(path, 8).names == ("0", "1")
    found = read_classifier(path, 8, ("a", "b"))
    assert found.names == ("a", "b")
    with pytest.raises(UserError, match="expected beside it the best"):
        found.known("std")


def test_wrong_classifiers(tmp_path):
    path = classifier_file(tmp_path)
    with pytest.raises(UserError, match="reads codes of 8 numbers, the model's have 64"):
        read_classifier(path, 64)
    for text in ("{", '{"attributes": ["a"]}', '{"attributes": ["a", "b"], "codes": {}}'):
        (tmp_path / "best.json").write_text(text)
        with pytest.raises(UserError, match=r"best\.json: expected"):
            read_classifier(path, 8)
    for content in ({"weight": torch.zeros(2, 8)}, {"weight": 1, "bias": 2}, {3: torch.zeros(1)}):
        torch.save(content, path)
        with pytest.raises(UserError, match="weight and bias of a linear layer"):
            read_classifier(path, 8)
    torch.save({"weight": torch.full((2, 8), torch.nan), "bias": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"classifier: .*: expected finite numbers, got NaN"):
        read_classifier(path, 8)


def test_random_starts_of_an_interpolation_are_those_of_its_images():
    torch.manual_seed(0)
    model = DiffAE(DiffAEConfig(**tiny.SMALL, latent_dim=6)).eval()
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    trained = TrainedModel(model, SampleConfig("ddim", 2, grid="uniform", xT="random"), batch_size=2)
    states, made = trained.interpolate(images, 2, "linear", [5, 3, 8])
    again = trained.interpolate(images, 2, "linear", [5, 3, 8])
    assert torch.equal(states, again[0]) and torch.equal(made, again[1])
    assert torch.equal(states[0, 1], states[1, 0]) and not torch.equal(states[0, 0], states[0, 1])
    assert torch.equal(states[0, 0], trained.reconstruct(images[:1], [5])[0][0])
