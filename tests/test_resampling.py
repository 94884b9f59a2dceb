"""Standard errors by resampling: weights mean what they say, and errors shrink as they should."""

import numpy as np
import pytest
import torch
from torch import nn

from eval import resampling, scores
from eval.probe import Part, standard_errors
from eval.reconstruction import ReconstructionMetrics


def data(n, k=3, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, k)) < (0.1, 0.5, 0.8)).astype(float)
    return y, y + rng.normal(size=(n, k))


def test_scores_with_counts_are_those_of_repeated_images():
    y, score = data(60)
    score[:, 1] = score[:, 1].round()  # ties
    drawn = resampling.counts(60, 5)
    for column in range(3):
        ap, area = resampling.ranking(y[:, column], score[:, column], drawn)
        for draw in range(5):
            rows = np.repeat(np.arange(60), drawn[:, draw].astype(int))
            assert len(rows) == 60
            t, s = y[rows, column][:, None], score[rows, column][:, None]
            assert ap[draw] == pytest.approx(scores.average_precision(t, s)[0])
            assert area[draw] == pytest.approx(scores.auroc(t, s)[0])


def test_a_draw_of_one_class_has_no_score():
    y, drawn = np.array([1.0, 0.0, 0.0]), np.array([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    ap, area = resampling.ranking(y, np.array([3.0, 2.0, 1.0]), drawn)
    assert np.isnan([ap[0], area[0]]).all() and (ap[1], area[1]) == (1, 1)
    errors = resampling.ranking_errors(np.stack([y, y * 0], axis=1), np.eye(3)[:, :2])
    assert np.isfinite(list(errors.values())).all()  # of the attribute that has both


def test_errors_of_correlation_are_the_textbook_ones():
    rng = np.random.default_rng(0)
    n, rho = 4000, 0.6
    y = rng.normal(size=(n, 1)) + 50
    prediction = rho * (y - 50) + np.sqrt(1 - rho**2) * rng.normal(size=(n, 1)) - 7
    errors = resampling.regression_errors(y, prediction, resamples=400)
    assert errors["r"] == pytest.approx((1 - rho**2) / np.sqrt(n), rel=0.15)
    assert errors["mse"] == pytest.approx(np.std((y - prediction) ** 2) / np.sqrt(n), rel=0.15)
    assert resampling.regression_errors(y, prediction * 0)["r"] == 0


def test_errors_of_areas_are_the_textbook_ones_and_shrink_with_the_root_of_the_images():
    small, large = (resampling.ranking_errors(*data(n), resamples=400) for n in (500, 8000))
    for name in ("ap", "auroc"):
        assert small[name] / large[name] == pytest.approx(4, rel=0.3)
    y, score = data(2000)
    area = scores.auroc(y[:, [1]], score[:, [1]])[0]
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)  # Hanley & McNeil, 1982
    positives = y[:, 1].sum()
    negatives = 2000 - positives
    parts = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    found = resampling.ranking_errors(y[:, [1]], score[:, [1]], resamples=400)["auroc"]
    assert found == pytest.approx(np.sqrt(parts / (positives * negatives)), rel=0.15)


@pytest.mark.parametrize(
    ("kind", "targets", "names"),
    [
        ("binary", torch.tensor(data(200)[0], dtype=torch.float32), {"ap", "auroc"}),
        ("real", torch.tensor(data(200)[1], dtype=torch.float32), {"r", "mse"}),
        ("class", torch.arange(200) % 3, {"accuracy", "top5"}),
    ],
)
def test_probes_of_every_kind_have_errors(kind, targets, names):
    torch.manual_seed(0)
    test = Part(lambda epoch: torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), targets)
    errors = standard_errors(kind, test, "abc", nn.Linear(4, 3))
    assert set(errors) == names
    assert all(0 < error < 0.5 for name, error in errors.items() if name != "top5")


def test_standard_errors_of_reconstruction_are_those_of_a_mean():
    rng = np.random.default_rng(0)
    real, fake = (torch.from_numpy(rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)) for _ in range(2))
    metrics = ReconstructionMetrics(["MSE"])
    metrics.update(real[:4], fake[:4])
    metrics.update(real[4:], fake[4:])
    each = ((real.double() - fake.double()) / 255).square().mean(dim=(1, 2, 3)).numpy()
    assert metrics.standard_errors() == {"MSE": pytest.approx(each.std(ddof=1) / np.sqrt(6), rel=1e-4)}
