"""Probes by every solver, and baselines, against hand-made values and planted data."""

import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge

from dbae.config import UserError
from eval import scores
from eval.features import pca, reduced
from eval.linear import logistic_regression, multinomial_regression, neighbour_votes, ridge_regression
from eval.probe import Part, fit, fit_fractions, label_fractions, train_linear

NAMES = ("a", "b", "c")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(n, seed, d=8, k=3, noise=0.1):
    """Codes [n, d] of uneven scale and place, and real targets [n, k] that are linear in them, up to noise."""
    z, w = random(n, d, seed=seed), random(d, k, seed=99)
    y = z @ w / d**0.5 + noise * random(n, k, seed=seed + 1000)
    return z * torch.linspace(0.2, 2, d) + torch.linspace(-1, 1, d), y


def binary(n, seed, **options):
    z, y = planted(n, seed, **options)
    return z, (y > 0.3).float()


def part(z, y):
    return Part(lambda epoch: z, y)


def splits(train, valid, test):
    return {"train": part(*train), "valid": part(*valid), "test": part(*test)}


def classes(n, seed, **options):
    """Codes [n, d] and class numbers [n]: the largest of three planted numbers."""
    z, y = planted(n, seed, **options)
    return z, y.argmax(dim=1)


def strictly_json(report):
    return json.loads(json.dumps(report, allow_nan=False))


def test_scores_by_hand():
    y = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    score = np.array([[0.9, 1, 1], [0.8, 2, 2], [0.7, 3, 3], [0.1, 4, 4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scores.average_precision(y, score) == pytest.approx([(1 + 2 / 3) / 2, np.nan, np.nan], nan_ok=True)
        assert scores.auroc(y, score) == pytest.approx([3 / 4, np.nan, np.nan], nan_ok=True)
        assert scores.pearson(score, y) == pytest.approx(
            [np.corrcoef(score[:, 0], y[:, 0])[0, 1], np.nan, np.nan], nan_ok=True
        )
        assert np.isnan(scores.pearson([[0.1], [0.1], [0.1]], [[1], [2], [3]])).all()
    assert scores.mse(y, score) == pytest.approx([(0.01 + 0.64 + 0.09 + 0.01) / 4, 30 / 4, 14 / 4])
    assert scores.mean_defined(np.array([1, np.nan, 2])) == 1.5
    assert scores.json_safe(scores.mean_defined(np.array([np.nan]))) is None
    with pytest.raises(UserError, match=r"equal shapes \[n, k\], got \[4, 3\], \[4, 2\]"):
        scores.mse(y, score[:, :2])
    with pytest.raises(UserError, match="finite predictions"):
        scores.average_precision(y, np.full(y.shape, np.nan))


def test_recovers_planted_attributes():
    data = [binary(n, seed) for n, seed in ((3000, 0), (500, 1), (700, 2))]
    seen = []
    result = fit("binary", splits(*data), NAMES, batch_size=32, lr=5e-2, progress=seen.append)
    report = strictly_json(result.report)
    assert report["test"]["ap"] > 0.95 and report["test"]["auroc"] > 0.95
    assert report["epochs"] == seen and [entry["epoch"] for entry in seen] == list(range(1, 16))
    assert report["images"] == {"train": 3000, "valid": 500, "test": 700}
    assert report["settings"]["latent"] == 8 and report["settings"]["seed"] == 0
    assert report["attributes"]["b"]["positives"] == int(data[2][1][:, 1].sum())
    assert result.layer is result.best
    ap = scores.average_precision(data[2][1], result.layer(data[2][0]).detach())
    assert [report["attributes"][name]["ap"] for name in NAMES] == pytest.approx(ap.tolist())


def test_best_epoch_is_kept_when_validation_gets_worse():
    (z, y), test = binary(1000, 0), binary(300, 1)

    def worse(epoch):  # from the third epoch on, validation codes say the opposite
        return z if epoch < 2 else -z

    result = fit("binary", splits((z, y), (z, y), test) | {"valid": Part(worse, y)}, NAMES, epochs=4, lr=1e-2)
    layers = [layer.weight.detach().clone() for layer in train_linear(part(z, y), bce, epochs=4, lr=1e-2)]
    assert result.report["best"]["epoch"] == 2 and result.report["best"]["selected_on"] == "valid"
    assert torch.equal(result.layer.weight, layers[1]) and not torch.equal(layers[1], layers[3])


def bce(logits, y):
    return F.binary_cross_entropy_with_logits(logits, y)


@pytest.mark.parametrize("solver", ["adam", "exact", "knn"])
def test_attributes_with_a_single_class_are_listed_and_left_out(solver):
    train, valid, test = (binary(n, seed) for n, seed in ((400, 0), (200, 1), (200, 2)))
    valid[1][:, 0] = 0
    test[1][:, 1] = 0
    test[1][:, 2] = 1
    report = strictly_json(fit("binary", splits(train, valid, test), NAMES, solver).report)
    assert report["single_class"] == {"train": [], "valid": ["a"], "test": ["b", "c"]}
    for name in "bc":
        assert {report["attributes"][name][key] for key in report["test"]} == {None}
    assert {key: report["attributes"]["a"][key] for key in report["test"]} == report["test"]


def test_real_numbers_report_last_and_best_and_constant_targets():
    train, test = planted(2000, 0), planted(300, 1)
    test[1][:, 1] = 0.5
    result = fit("real", splits(train, train, test), NAMES, lr=1e-2)
    report = strictly_json(result.report)
    assert report["constant"] == ["b"] and report["attributes"]["b"]["last"]["r"] is None
    assert report["last"]["epoch"] == 15 and report["last"]["r"] > 0.98
    assert report["last"] == report["epochs"][-1]
    assert report["best"]["r"] == max(entry["r"] for entry in report["epochs"])
    assert report["best"]["selected_on"] == "test"
    error = scores.mse(test[1], result.layer(test[0]).detach())
    assert report["last"]["mse"] == pytest.approx(error.mean())
    assert report["attributes"]["c"]["last"]["mse"] == pytest.approx(error[2])


def test_real_numbers_keep_the_best_epoch_beside_the_last():
    z, y = planted(1000, 0)
    result = fit(
        "real", {"train": part(z, y), "test": Part(lambda epoch: z if epoch < 2 else -z, y)}, NAMES, epochs=4, lr=1e-2
    )
    assert (result.report["best"]["epoch"], result.report["last"]["epoch"]) == (2, 4)
    assert result.report["best"]["r"] > 0 > result.report["last"]["r"]
    assert not torch.equal(result.best.weight, result.layer.weight)


def test_constant_codes_score_zero():
    y = planted(50, 0)[1]
    same = part(torch.ones(50, 4), y)
    report = strictly_json(fit("real", {"train": same, "test": same}, NAMES, epochs=1).report)
    assert report["last"]["r"] == 0 and report["constant"] == []


def test_cached_codes_equal_codes_computed_every_epoch():
    images, y = random(300, 12), binary(300, 0)[1]
    encode = torch.nn.Linear(12, 8).requires_grad_(False)
    cached = encode(images)
    once = list(train_linear(Part(lambda epoch: cached, y), bce, epochs=3))[-1]
    anew = list(train_linear(Part(lambda epoch: encode(images), y), bce, epochs=3))[-1]
    assert torch.equal(once.weight, anew.weight) and torch.equal(once.bias, anew.bias)


def test_training_asks_for_each_epoch_and_keeps_the_order():
    z, y = binary(300, 0)
    epochs, batches = [], []

    def draw(epoch):
        epochs.append(epoch)
        return z

    def loss(logits, targets):
        batches.append(targets)
        return bce(logits, targets)

    list(train_linear(Part(draw, y), loss, epochs=2))
    assert epochs == [0, 1]
    assert [len(batch) for batch in batches] == [128, 128, 44] * 2
    assert torch.equal(torch.cat(batches), torch.cat([y, y]))


def test_seed_decides_and_global_randomness_is_left_alone():
    z, y = binary(200, 0)
    before = torch.get_rng_state()
    first, again, other = (next(train_linear(part(z, y), bce, seed=s)).weight for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_logistic_regression_is_the_optimum_and_no_worse_than_adam():
    train, valid, test = (binary(n, seed, noise=0.5) for n, seed in ((3000, 0), (500, 1), (2000, 2)))
    layer, chosen = logistic_regression(*train, *valid)
    adam = fit("binary", splits(train, valid, test), NAMES)
    exact = scores.average_precision(test[1], layer(test[0]).detach()).mean()
    assert exact > 0.8 and exact >= adam.report["test"]["ap"]
    assert len(chosen) == 3 and all(isinstance(penalty, float) for penalty in chosen)


@pytest.mark.parametrize("penalty", [1e-1, 1e-4])
def test_logistic_regression_equals_scikit_learn_on_standardised_codes(penalty):
    z, y = binary(800, 0, noise=0.5)
    layer, chosen = logistic_regression(z, y, z, y, penalties=(penalty,))
    standard = ((z - z.mean(0)) / z.std(0, correction=0)).double().numpy()
    for i in range(3):
        reference = LogisticRegression(C=1 / (penalty * len(z)), tol=1e-8, max_iter=1000).fit(standard, y[:, i])
        expected = torch.from_numpy(reference.decision_function(standard)).float()
        assert torch.allclose(layer(z)[:, i], expected, atol=2e-3)
    assert chosen == [penalty] * 3


def test_logistic_regression_survives_dead_dimensions_and_single_classes():
    z, y = binary(300, 0)
    z[:, 2] = 5
    y[:, 1] = 0
    layer, chosen = logistic_regression(z, y, z, y)
    assert torch.equal(layer.weight[1], torch.zeros(8)) and layer.bias[1] < -5
    assert layer.weight.isfinite().all() and chosen[1] == 1.0


@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_ridge_regression_equals_scikit_learn_on_standardised_codes(penalty):
    z, y = planted(500, 0)
    y[:, 1] = 0.25
    layer, chosen = ridge_regression(z, y, penalties=(penalty,))
    standard = (z - z.mean(0)) / z.std(0, correction=0)
    reference = Ridge(alpha=penalty * len(z)).fit(standard.double(), y.double())
    assert np.allclose(layer(z).detach(), reference.predict(standard.double()), atol=1e-4)
    assert torch.allclose(layer(z)[:, 1], torch.full((500,), 0.25), atol=1e-5)
    assert chosen == [penalty] * 3


def test_ridge_regression_chooses_and_beats_adam():
    train, test = planted(2000, 0, noise=0.5), planted(2000, 1, noise=0.5)
    layer, _ = ridge_regression(*train)
    adam = fit("real", {"train": part(*train), "test": part(*test)}, NAMES)
    assert scores.mse(test[1], layer(test[0]).detach()).mean() <= adam.report["last"]["mse"]
    few, noise = random(40, 30), random(40, 1, seed=5)
    assert ridge_regression(few, noise)[1] == [1.0]


def test_nearest_neighbours_on_clusters():
    corner = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 900.0]])
    cluster = torch.arange(300) % 3
    z = corner[cluster] + random(300, 2) * torch.tensor([0.1, 10])
    y = torch.stack([cluster == 1, cluster == 2], dim=1).float()
    for kind, targets, names in (("binary", y, "ab"), ("class", cluster, "abc")):
        data = ((z[:210], targets[:210]), (z[:210], targets[:210]), (z[210:], targets[210:]))
        report = strictly_json(fit(kind, splits(*data), names, "knn").report)
        assert report["test"]["accuracy"] == 1 and report["images"] == {"train": 210, "valid": 210, "test": 90}
        assert report["test"]["majority"] == pytest.approx(2 / 3 if kind == "binary" else 1 / 3)
        assert {entry["accuracy"] for entry in report["attributes"].values()} == {1}


def test_neighbours_in_chunks_and_ties(monkeypatch):
    z, y = binary(200, 0)
    whole = neighbour_votes(z[:150], y[:150], z[150:], k=7)
    monkeypatch.setattr("eval.linear.DISTANCES", 400)
    assert torch.equal(neighbour_votes(z[:150], y[:150], z[150:], k=7), whole)
    standard = (z - z[:150].mean(0)) / z[:150].std(0, correction=0)
    votes = y[:150][torch.cdist(standard[150:], standard[:150]).topk(7, largest=False).indices].mean(1)
    assert torch.allclose(whole, votes)
    line, test = torch.tensor([[0.0], [2.0], [9.0]]), (torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([1, 1, 0]))
    for kind, targets, names in (
        ("binary", torch.tensor([[1.0], [0.0], [1.0]]), "a"),
        ("class", torch.tensor([1, 0, 1]), "no"),
    ):
        at = test[1] if kind == "class" else test[1].float()[:, None]
        data = splits((line, targets), (line, targets), (test[0], at))
        assert fit(kind, data, names, "knn", k=2).report["test"]["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("solver", ["adam", "exact", "knn"])
def test_classes_are_recognised(solver):
    data = [classes(n, seed) for n, seed in ((3000, 0), (500, 1), (700, 2))]
    settings = {"batch_size": 32, "lr": 5e-2} if solver == "adam" else {}
    result = fit("class", splits(*data), NAMES, solver, **settings)
    report = strictly_json(result.report)
    assert report["test"]["accuracy"] > (0.8 if solver == "knn" else 0.9) and report["test"]["top5"] == 1
    assert sum(entry["images"] for entry in report["attributes"].values()) == 700
    hits = [entry["accuracy"] * entry["images"] for entry in report["attributes"].values()]
    assert sum(hits) / 700 == pytest.approx(report["test"]["accuracy"])
    if solver == "adam":
        assert report["best"]["valid_accuracy"] == max(entry["valid_accuracy"] for entry in report["epochs"])
    if solver != "knn":
        right = result.layer(data[2][0]).argmax(dim=1) == data[2][1]
        assert right.double().mean().item() == pytest.approx(report["test"]["accuracy"])


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_multinomial_regression_equals_scikit_learn_on_standardised_codes(penalty):
    z, y = classes(800, 0, noise=0.5)
    columns = F.one_hot(y).float()
    layer, chosen = multinomial_regression(z, columns, z, columns, penalties=(penalty,))
    standard = ((z - z.mean(0)) / z.std(0, correction=0)).double().numpy()
    reference = LogisticRegression(C=1 / (penalty * len(z)), tol=1e-8, max_iter=1000).fit(standard, y)
    expected = torch.from_numpy(reference.predict_proba(standard)).float()
    assert torch.allclose(layer(z).softmax(dim=1), expected, atol=1e-3) and chosen == [penalty] * 3


def test_top_k_and_recall_by_hand():
    y, score = np.eye(4)[[0, 1, 2, 2]], np.array([[9, 1, 1, 1], [9, 5, 1, 1], [1, 2, 3, 4], [1, 2, 9, 4]])
    assert [scores.top_k(y, score, k) for k in (1, 2, 4, 5)] == [0.5, 1, 1, 1]
    assert scores.recall(y, score) == pytest.approx([1, 0, 0.5, np.nan], nan_ok=True)


def test_label_fractions_narrow_with_more_labels():
    train, test = planted(1000, 0, noise=1.0), planted(500, 1, noise=1.0)

    def fit(rows):
        return -scores.mse(test[1], ridge_regression(train[0][rows], train[1][rows])[0](test[0]).detach()).mean()

    few, many = label_fractions(fit, 1000, (0.02, 0.5))
    assert (few["rows"], many["rows"], len(few["scores"])) == (20, 500, 5)
    assert many["std"] < few["std"] and many["mean"] > few["mean"]
    assert few["low"] < few["mean"] < few["high"]
    assert few["high"] - few["mean"] == pytest.approx(2.7764 * few["std"] / 5**0.5, rel=1e-4)
    assert strictly_json(label_fractions(fit, 1000, (0.5,))) == [many]
    assert label_fractions(fit, 1000, (0.5,), seed=1) != [many]


def test_label_fractions_keep_every_class_where_they_can():
    y = torch.zeros(500, 4)
    y[::2, 0] = 1
    y[7, 1] = 1
    y[11, 2] = 1
    draws = []

    def fit(rows):
        draws.append(rows)
        return 0.0

    label_fractions(fit, 500, (0.02,), targets=y)
    for rows in draws:
        assert len(set(rows.tolist())) == 10 and (np.diff(rows) > 0).all()
        assert (y[rows].sum(0)[:3] > 0).all() and y[rows, 0].sum() < 10
    assert len({tuple(rows) for rows in draws}) == 5
    label_fractions(fit, 500, (0.002,), repeats=2, targets=y)
    assert len(draws[-1]) == 1


@pytest.mark.parametrize("kind", ["binary", "class", "real"])
def test_fewer_labels_of_every_kind(kind):
    make = {"binary": binary, "class": classes, "real": planted}[kind]
    data = splits(*(make(n, seed, noise=0.5) for n, seed in ((1000, 0), (200, 1), (500, 2))))
    few, many = fit_fractions(kind, data, NAMES, (0.02, 1.0), repeats=2, solver="exact")
    full = fit(kind, data, NAMES, "exact").report
    assert few["mean"] < many["mean"] and many["std"] == 0
    assert many["mean"] == full.get("test", full.get("last"))[{"binary": "ap", "class": "accuracy", "real": "r"}[kind]]


def test_reduced_pixels_are_area_averages():
    small = random(5, 3, 16, 16)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(reduced(large, 16), small.flatten(1), atol=1e-6)


def test_full_pca_is_invertible():
    rows = random(150, 48)
    codes = pca(rows.numpy(), 48)(rows)
    assert codes.shape == (150, 48) and codes.dtype == torch.float32
    centred = rows - rows.mean(0)
    assert torch.allclose(codes @ codes.T, centred @ centred.T, atol=1e-3)  # an isometry: invertible
    few = [pca(rows.numpy(), 5, limit=100)(rows) for _ in range(2)]
    assert torch.equal(*few) and few[0].shape == (150, 5)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("binary", {"valid": lambda z, y: (z, y[:, :2])}, r"valid: expected targets \[n, 3\].* got \[20, 2\]"),
        ("binary", {"train": lambda z, y: (z, 2 * y - 1)}, "train: expected targets of 0 and 1 .* got -1 to 1"),
        ("binary", {"test": lambda z, y: (z, 0 * y)}, "test: expected a target that varies, got none in 20 images"),
        ("class", {"train": lambda z, y: (z, y)}, r"train: expected class numbers \[n\], got torch.float32 \[20, 3\]"),
        ("class", {"test": lambda z, y: (z, torch.full((20,), 3))}, "test: expected class numbers under 3, got 3 to 3"),
        ("real", {"train": lambda z, y: (z[1:], y)}, r"training: expected codes .* got \[19, 8\], \[20, 3\]"),
        ("real", {"test": lambda z, y: (z[:, 1:], y)}, "test: expected codes of dimension 8 as in training, got 7"),
        ("real", {"train": lambda z, y: (z * torch.nan, y)}, "training: expected finite codes"),
        ("real", {"test": lambda z, y: (z, 0 * y)}, "test: expected a target that varies, got none in 20 images"),
    ],
)
def test_wrong_probe_inputs(kind, change, message):
    z, y = binary(20, 0)
    right = (z, y.argmax(dim=1) if kind == "class" else y)
    data = {
        split: part(*change[split](z, y)) if split in change else part(*right) for split in ("train", "valid", "test")
    }
    with pytest.raises(UserError, match=message):
        fit(kind, data, NAMES)


def test_wrong_settings():
    data = splits(*[binary(20, 0)] * 3)
    with pytest.raises(UserError, match="expected epochs and batch_size of at least 1, got 0 and 64"):
        fit("real", data, NAMES, epochs=0)
    with pytest.raises(UserError, match="solver: expected adam or exact for regression, got knn"):
        fit("real", data, NAMES, "knn")


def test_wrong_solver_and_baseline_inputs():
    z, y = binary(20, 0)
    with pytest.raises(UserError, match=r"valid: expected codes .* got \[20, 8\], \[19, 3\]"):
        logistic_regression(z, y, z, y[1:])
    with pytest.raises(UserError, match="expected an attribute with both classes, got none in 20 images"):
        logistic_regression(z, torch.zeros(20, 3), z, y)
    with pytest.raises(UserError, match="at least 3 images, got 2"):
        ridge_regression(z[:2], y[:2])
    with pytest.raises(UserError, match="k: expected 1 to 20 neighbours, got 21"):
        neighbour_votes(z, y, z, k=21)
    with pytest.raises(UserError, match=r"shares in \(0, 1\], got 5 of \(2,\)"):
        label_fractions(len, 20, (2,))
    with pytest.raises(UserError, match="targets of 21 images, got 20"):
        label_fractions(len, 21, targets=y)
    with pytest.raises(UserError, match=r"with s of at least 16, got \[2, 3, 8, 8\]"):
        reduced(torch.zeros(2, 3, 8, 8), 16)
    with pytest.raises(UserError, match=r"a dimension of 1 to 2 .* got 3"):
        pca(np.zeros((2, 192), np.float32), 3)
