"""Scores of disentanglement: exact values, ends, what they must not depend on, and the program that computes them."""

import json

import numpy as np
import pytest
import tiny
from conftest import ROOT
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score, roc_auc_score
from tiny import SMALL, written

from datasets import build, sprites
from datasets.toyfaces import FACTORS, describe
from dbae.config import UserError
from dbae.methods import DiffAE
from dbae.methods.diffae import DiffAEConfig
from eval import factors, representation
from eval.factors import concentration, dci, factor_scores, factor_vae_score, mig, sap
from eval.representation import attribute_auroc, redundancy, tad, tad_by_batches, tad_by_folds
from scripts import disentangle

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, (300, 5)).astype(float)
Z = np.round(RNG.normal(size=(300, 4)) + Y[:, :4], 1)  # with ties


def test_auroc_is_that_of_scikit_learn():
    expected = np.array([[roc_auc_score(y, z) for z in Z.T] for y in Y.T])
    assert np.allclose(attribute_auroc(Y, Z), np.maximum(expected, 1 - expected), atol=1e-12)
    assert np.isnan(attribute_auroc(np.ones((9, 1)), Z[:9])).all()


def test_redundancy_is_that_of_mutual_information():
    y = np.column_stack([Y, np.where(RNG.random(300) < 0.1, 1 - Y[:, 0], Y[:, 0]), np.ones(300)])
    found = redundancy(y)
    for i in range(6):
        shares = [mutual_info_score(y[:, i], y[:, j]) / entropy(np.bincount(y[:, i].astype(int))) for j in range(7)]
        assert found[i] == pytest.approx(max(shares[:i] + shares[i + 1 :]), abs=1e-9)
    assert np.isnan(found[6]) and found[0] > 0.2 > found[1]


def test_tad_of_known_codes():
    """One attribute is read by one number, a second by two alike, a third by none, and two explain each other."""
    y = RNG.integers(0, 2, (2000, 5)).astype(float)
    y[:, 4] = y[:, 3]
    noise = RNG.normal(size=(2000, 5))
    z = np.column_stack([y[:, 0], y[:, 1], y[:, 1], noise[:, 0], y[:, 3]])
    found = tad(y, z)
    assert found["eligible"].tolist() == [True, True, True, False, False]
    assert found["captured"].tolist() == [True, True, False, False, False] and found["attrs"] == 2
    assert found["gap"][1] == 0 and found["best"][0] == 0
    assert found["tad"] == pytest.approx(0.5, abs=0.05)  # all of the first attribute's, by chance less
    scaled = tad(y, -3 * z + 1)
    assert scaled["tad"] == found["tad"]


def test_protocols_of_tad():
    y, z = RNG.integers(0, 2, (2500, 3)).astype(float), RNG.normal(size=(2500, 2))
    z[:, 0] += 5 * y[:, 1]
    batches, folds = tad_by_batches(y, z, "abc"), tad_by_folds(y, z, "abc")
    assert (batches["parts"], batches["images"], folds["parts"], folds["images"]) == (2, 1000, 5, 2000)
    for report, parts in ((batches, 2), (folds, 5)):
        assert report["eligible"] == {"a": parts, "b": parts, "c": parts} and report["captured"] == {"b": parts}
        assert report["tad"]["mean"] == pytest.approx(0.47, abs=0.04) and report["attrs"]["std"] == 0
    with pytest.raises(UserError, match="1000"):
        tad_by_batches(y[:900], z[:900], "abc")


FACTORS_DRAWN = np.column_stack([RNG.integers(0, k, 600) for k in (2, 3, 4)])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_factors_themselves_reach_the_ends(order):
    z = FACTORS_DRAWN[:, order] * np.array([1.0, 0.5, 2.0])
    found = factor_scores(z, FACTORS_DRAWN, stages=5)
    for name in ("disentanglement", "completeness", "informativeness", "factor_vae"):
        assert found[name] == pytest.approx(1, abs=1e-6), name
    assert found["mig"] > 0.97  # by chance, the others tell a little


def test_noise_is_at_the_other_end():
    found = factor_scores(RNG.normal(size=(600, 4)), FACTORS_DRAWN, stages=5)
    assert found["mig"] < 0.03 and found["sap"] < 0.06 and found["disentanglement"] < 0.4
    assert found["factor_vae"] == pytest.approx(1 / 3, abs=0.1) and found["informativeness"] < 0.5


def test_scores_do_not_depend_on_the_scale_of_codes():
    z = FACTORS_DRAWN + RNG.normal(size=(600, 3))
    assert factor_scores(1e-3 * z, FACTORS_DRAWN, stages=3) == pytest.approx(factor_scores(z, FACTORS_DRAWN, stages=3))


def test_concentration_of_known_importances():
    assert concentration(np.eye(3)) == pytest.approx(1, abs=1e-6)
    assert concentration(np.ones((2, 5))) == pytest.approx(0, abs=1e-6)
    mixed = np.array([[3.0, 0, 0], [0.5, 0.5, 0]])
    assert concentration(mixed) == pytest.approx((3 * 1 + 1 * (1 - np.log(2) / np.log(3))) / 4, abs=1e-6)
    assert concentration(np.zeros((2, 2))) == 0


def test_two_numbers_that_tell_the_same_have_no_gap():
    y = FACTORS_DRAWN[:, :1]
    twice = np.column_stack([y, y]).astype(float)
    assert mig(twice, y) == 0 and sap(twice[:400], y[:400], twice[400:], y[400:], lambda: None) == 0
    once = np.column_stack([y[:, 0], np.zeros(600)])
    assert mig(once, y) == pytest.approx(1)
    assert sap(once[:400], y[:400], once[400:], y[400:], lambda: None) == pytest.approx(0.5, abs=0.1)


def test_a_number_that_hardly_varies_does_not_vote():
    y = FACTORS_DRAWN[:, :2]
    z = np.column_stack([RNG.normal(size=600), 1e-3 * y[:, 0]])
    assert factor_vae_score(z, y, (300, 300)) == pytest.approx(0.5, abs=0.1)
    assert factor_vae_score(1e-3 * z, y, (300, 300)) == 0


def test_accuracy_by_factor():
    z = np.column_stack([FACTORS_DRAWN[:, 0], RNG.normal(size=600)])
    found = dci(z[:400], FACTORS_DRAWN[:400], z[400:], FACTORS_DRAWN[400:], 3, 0, lambda: None)
    assert found["accuracy"][0] == 1 and found["accuracy"][2] < 0.5


@pytest.mark.parametrize(
    ("z", "y"),
    [(np.zeros((60, 2)), FACTORS_DRAWN[:60]), (Z[:60], np.zeros((60, 1), int)), (Z[:20], FACTORS_DRAWN[:20])]
    + [(Z[:60, :1], FACTORS_DRAWN[:60])],
)
def test_codes_without_scores(z, y):
    with pytest.raises(UserError):
        factor_scores(z, y)


# Data with known factors


def test_factors_of_toy_faces():
    data = build("toyfaces", "train", 32).part(range(500))
    names, values = data.factors.names, data.factors.values
    assert names == tuple(FACTORS) and values.shape == (500, len(names))
    drawn = [describe(i) for i in range(500)]
    assert values[:, names.index("male")].tolist() == [face.male for face in drawn]
    age, fifths = np.array([face.age for face in drawn]), values[:, names.index("age")]
    assert np.bincount(fifths).tolist() == [100] * 5
    assert all(age[fifths == i].max() < age[fifths == i + 1].min() for i in range(4))


def test_sprites_are_their_factors():
    splits = {split: build("sprites", split, 16) for split in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == sprites.NUMBER == 3 * 6 * 40 * 32 * 32
    first = {split: {data.name_of(i) for i in range(100)} for split, data in splits.items()}
    assert not first["train"] & first["test"] and len(first["train"]) == 100
    values = splits["test"].factors.values
    sizes = list(sprites.SIZES.values())
    assert (values.min(axis=0) == 0).all() and (values.max(axis=0) + 1).tolist() == sizes
    assert np.ravel_multi_index(values[7], sizes) == splits["test"].indices[7]


def picture(**changes):
    values = {"shape": 0, "scale": 5, "orientation": 0, "position_x": 16, "position_y": 16, **changes}
    index = np.ravel_multi_index(list(values.values()), list(sprites.SIZES.values()))
    return np.asarray(sprites.render(index, 64), np.float64)[:, :, 0] / 255


@pytest.mark.parametrize("shape", range(3))
def test_sprites_show_their_factors(shape):
    picture_of = {"shape": shape}
    rows, columns = np.mgrid[:64, :64] / 64

    def centre(image):
        return (image * columns).sum() / image.sum(), (image * rows).sum() / image.sum()

    left, right = (centre(picture(position_x=i, **picture_of)) for i in (0, 31))
    top, bottom = (centre(picture(position_y=i, **picture_of)) for i in (0, 31))
    assert right[0] - left[0] == pytest.approx(0.6, abs=0.02) and right[1] == pytest.approx(left[1], abs=0.02)
    assert bottom[1] - top[1] == pytest.approx(0.6, abs=0.02)
    areas = [picture(scale=i, **picture_of).sum() for i in range(6)]
    assert areas == sorted(areas) and areas[5] / areas[0] == pytest.approx(4, rel=0.1)
    for orientation in range(40):  # nothing is cut off
        corner = picture(orientation=orientation, position_x=0, position_y=0, **picture_of)
        assert not corner[0].any() and not corner[:, 0].any()
    quarter = picture(orientation=10, **picture_of)
    assert abs(quarter - np.rot90(picture(**picture_of), -1)).mean() < 0.03
    if shape:  # a square is the same after a quarter turn
        assert abs(quarter - picture(**picture_of)).mean() > 0.01


# The program


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return written(tmp_path_factory.mktemp("dis"), DiffAE(DiffAEConfig(**SMALL, latent_dim=3)))


def test_program_of_attributes_and_factors(checkpoint, monkeypatch, capsys):
    for module in (representation, disentangle):
        monkeypatch.setattr(module, "BATCH", 60)
    monkeypatch.setattr(factors, "VOTES", (500, 500))
    words = ["--dataset=toyfaces", f"--model_path={checkpoint}", "--device=cpu", "--limit=120", "--stages=1"]
    disentangle.main([*words, "--baselines"])
    shown = capsys.readouterr().out
    path = checkpoint.parent / "sample_20" / "disentanglement_toyfaces.json"
    rows = json.loads(path.read_text())["rows"]
    assert list(rows) == ["model", "untrained encoder", "PCA", "truth"] and all(name in shown for name in rows)
    assert [rows[name]["factors"]["dimensions"] for name in rows] == [3, 3, 3, len(FACTORS)]
    assert rows["truth"]["factors"]["disentanglement"] == pytest.approx(1, abs=1e-6)
    total = {name: row["attributes"]["batches"]["tad"]["mean"] for name, row in rows.items()}
    assert total["truth"] > 5 > total["PCA"]
    with pytest.raises(UserError, match="another baselines"):
        disentangle.main(words)
    assert json.loads(path.read_text())["rows"] == rows


def test_program_of_sprites(tmp_path, monkeypatch):
    monkeypatch.setattr(factors, "VOTES", (500, 500))
    model = tiny.model(image_size=64, stochastic=True, attention_sizes=(8,), encoder_attention_sizes=(8,))
    path = written(tmp_path, model)
    disentangle.main(["--dataset=sprites", f"--model_path={path}", "--device=cpu", "--limit=200", "--stages=1"])
    report = json.loads((tmp_path / "sample_20" / "disentanglement_sprites.json").read_text())
    assert report["mean sigma over mean std of mu"] > 0
    assert list(report["rows"]) == ["model"] and list(report["rows"]["model"]) == ["factors"]
    assert set(report["rows"]["model"]["factors"]["accuracy"]) == set(sprites.SIZES)


def test_program_refuses_before_work(checkpoint):
    images = f"--dataset=folder:{ROOT / 'assets'}"
    with pytest.raises(UserError, match="neither"):
        disentangle.main([images, f"--model_path={checkpoint}", "--device=cpu"])
    with pytest.raises(UserError, match="limit"):
        disentangle.main(["--dataset=toyfaces", f"--model_path={checkpoint}", "--device=cpu", "--limit=99"])
