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
from eval.probe import Part, coverage, fit, fit_fractions, left_out, subsets, train_linear
from scripts.probe_figure import bars

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
    for score in (scores.average_precision, scores.auroc, scores.pearson, scores.mse, scores.top_k, scores.recall):
        with pytest.raises(UserError, match="finite predictions"):
            score(y, np.full(y.shape, np.nan))


def test_recovers_planted_attributes():
    data = [binary(n, seed) for n, seed in ((1000, 0), (300, 1), (400, 2))]
    seen = []
    result = fit("binary", splits(*data), NAMES, batch_size=32, lr=5e-2, progress=seen.append)
    report = strictly_json(result.report)
    assert report["test"]["ap"] > 0.95 and report["test"]["auroc"] > 0.95
    assert report["epochs"] == seen and [entry["epoch"] for entry in seen] == list(range(1, 16))
    assert report["images"] == {"train": 1000, "valid": 300, "test": 400}
    assert report["settings"]["latent"] == 8 and report["settings"]["seed"] == 0
    assert report["attributes"]["b"]["positives"] == int(data[2][1][:, 1].sum())
    assert result.layer is result.best
    ap = scores.average_precision(data[2][1], result.layer(data[2][0]).detach())
    assert [report["attributes"][name]["ap"] for name in NAMES] == pytest.approx(ap.tolist())


def bce(logits, y):
    return F.binary_cross_entropy_with_logits(logits, y)


@pytest.mark.parametrize("solver", ["adam", "diffae", "exact", "knn"])
def test_attributes_with_a_single_class_are_listed_and_left_out(solver):
    train, valid, test = (binary(n, seed) for n, seed in ((400, 0), (200, 1), (200, 2)))
    valid[1][:, 0] = 0
    test[1][:, 1] = 0
    test[1][:, 2] = 1
    report = strictly_json(fit("binary", splits(train, valid, test), NAMES, solver).report)
    assert report["single_class"] == {"train": [], "valid": ["a"], "test": ["b", "c"]}
    assert left_out(report) == ["b", "c"] and coverage(report) == " over 1 of 3 labels"
    drawn, label = bars(report | {"features": "model", "solver": solver})
    assert label.endswith(" over 1 of 3 labels") and drawn.keys() == {"a"}
    for name in "bc":
        assert {value for key, value in report["attributes"][name].items() if key != "positives"} == {None}
    alone = report["attributes"]["a"]
    assert report["test"] == pytest.approx({key: alone[key.removesuffix("_weighted")] for key in report["test"]})


def test_classes_without_images_are_listed():
    train, valid, test = (classes(n, seed) for n, seed in ((400, 0), (200, 1), (200, 2)))
    few = test[1] != 1
    report = strictly_json(fit("class", splits(train, valid, (test[0][few], test[1][few])), NAMES, "exact").report)
    assert report["absent"] == {"train": [], "valid": [], "test": ["b"]}
    assert report["attributes"]["b"]["accuracy"] is None and left_out(report) == [] and coverage(report) == ""


def test_labels_that_a_subset_does_not_vary_in_are_listed():
    train, valid, test = (binary(n, seed) for n, seed in ((400, 0), (100, 1), (100, 2)))
    train[1][:, 1] = 0
    train[1][0, 1] = 1  # one positive: a subset of a few rows has it before others
    few, many = fit_fractions("binary", splits(train, valid, test), NAMES, (0.005, 0.5), repeats=3, solver="exact")
    assert "untrained" not in many and set(few["untrained"]) <= set(NAMES) and few["untrained"]


def test_diffae_protocol_counts_samples_and_normalises():
    (z, y), valid, test = (binary(n, seed) for n, seed in ((300, 0), (100, 1), (200, 2)))
    epochs, moved = [], [(5 + 100 * codes, targets) for codes, targets in ((z, y), valid, test)]

    def draw(epoch):
        epochs.append(epoch)
        return z

    parts = splits((z, y), valid, test) | {"train": Part(draw, y)}
    found = fit("binary", parts, NAMES, "diffae", samples=1000)
    assert found.report["settings"]["samples"] == 992 and max(epochs) == 3  # 31 batches of 32, nine in an epoch
    again = fit("binary", splits(*moved), NAMES, "diffae", samples=1000)
    logits = found.layer(test[0]).detach()
    assert torch.allclose(again.layer(moved[2][0]), logits, atol=1e-3)
    area = scores.auroc(test[1], logits)
    assert found.report["test"]["auroc_weighted"] == pytest.approx(np.average(area, weights=test[1].sum(dim=0)))
    with pytest.raises(UserError, match="number 2 is constant"):
        fit("binary", splits((z * torch.tensor([1, 1, 0, 1, 1, 1, 1, 1]), y), valid, test), NAMES, "diffae")


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


@pytest.mark.parametrize(("kind", "score"), [("binary", "valid_ap"), ("real", "r")])
def test_best_epoch_is_kept_when_scores_get_worse(kind, score):
    z, y = binary(1000, 0) if kind == "binary" else planted(1000, 0)

    def worse(epoch):  # from the third epoch on, these codes say the opposite
        return z if epoch < 2 else -z

    split = {"binary": "valid", "real": "test"}[kind]
    data = splits((z, y), (z, y), (z, y)) | {split: Part(worse, y)}
    result = fit(kind, data, NAMES, epochs=4, lr=1e-2, batch_size=128)
    loss = {"binary": bce, "real": F.mse_loss}[kind]
    layers = [layer.weight.detach().clone() for layer in train_linear(part(z, y), loss, epochs=4, lr=1e-2)]
    assert result.report["best"]["epoch"] == 2 and result.report["best"]["selected_on"] == split
    assert result.report["best"][score] > result.report["epochs"][-1][score]
    assert torch.equal(result.best.weight, layers[1])
    assert torch.equal(result.layer.weight, layers[1 if kind == "binary" else 3])  # officially the last, to regress


def test_real_numbers_report_last_and_best_and_constant_targets():
    train, test = planted(1000, 0), planted(300, 1)
    test[1][:, 1] = 0.5
    result = fit("real", splits(train, train, test), NAMES, lr=2e-2)
    report = strictly_json(result.report)
    assert coverage(report) == " over 2 of 3 labels"
    assert report["constant"] == ["b"] and report["attributes"]["b"]["last"]["r"] is None
    assert report["last"] == report["epochs"][-1] and report["last"]["r"] > 0.98
    assert report["best"]["r"] == max(entry["r"] for entry in report["epochs"])
    error = scores.mse(test[1], result.layer(test[0]).detach())
    assert report["last"]["mse"] == pytest.approx(error.mean())
    assert report["attributes"]["c"]["last"]["mse"] == pytest.approx(error[2])
    same = part(torch.ones(300, 4), train[1][:300])  # constant codes explain nothing
    report = strictly_json(fit("real", {"train": same, "test": same}, NAMES, epochs=1).report)
    assert report["last"]["r"] == 0 and report["constant"] == []


def test_exact_solutions_are_no_worse_than_adam():
    data = [binary(n, seed, noise=0.5) for n, seed in ((2000, 0), (500, 1), (1000, 2))]
    exact, adam = (fit("binary", splits(*data), NAMES, solver).report["test"]["ap"] for solver in ("exact", "adam"))
    assert exact > 0.8 and exact >= adam
    train, test = planted(1000, 0, noise=0.5), planted(1000, 1, noise=0.5)
    parts = {"train": part(*train), "test": part(*test)}
    exact, adam = (fit("real", parts, NAMES, solver).report["last"]["mse"] for solver in ("exact", "adam"))
    assert exact <= adam
    assert ridge_regression(random(40, 30), random(40, 1, seed=5))[1] == [1.0]  # of noise the strongest penalty


@pytest.mark.parametrize("kind", ["binary", "class", "real"])
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_exact_solutions_equal_scikit_learn_on_standardised_codes(kind, penalty):
    z, y = {"binary": binary, "class": classes, "real": planted}[kind](600, 0, noise=0.5)
    standard = ((z - z.mean(0)) / z.std(0, correction=0)).double().numpy()
    reference = LogisticRegression(C=1 / (penalty * len(z)), tol=1e-8, max_iter=1000)
    if kind == "binary":
        layer, chosen = logistic_regression(z, y, z, y, penalties=(penalty,))
        found, expected = layer(z), np.stack([reference.fit(standard, t).decision_function(standard) for t in y.T], 1)
    elif kind == "class":
        columns = F.one_hot(y).float()
        layer, chosen = multinomial_regression(z, columns, z, columns, penalties=(penalty,))
        found, expected = layer(z).softmax(dim=1), reference.fit(standard, y).predict_proba(standard)
    else:
        y[:, 1] = 0.25
        layer, chosen = ridge_regression(z, y, penalties=(penalty,))
        found, expected = layer(z), Ridge(alpha=penalty * len(z)).fit(standard, y.double()).predict(standard)
        assert torch.allclose(found[:, 1], torch.full((600,), 0.25), atol=1e-5)
    assert chosen == [penalty] * 3
    assert np.allclose(found.detach(), expected, atol={"binary": 2e-3, "class": 1e-3, "real": 1e-4}[kind])


def test_logistic_regression_survives_dead_dimensions_and_single_classes():
    z, y = binary(300, 0)
    z[:, 2] = 5
    y[:, 1] = 0
    layer, chosen = logistic_regression(z, y, z, y)
    assert torch.equal(layer.weight[1], torch.zeros(8)) and layer.bias[1] < -5
    assert layer.weight.isfinite().all() and chosen[1] == 1.0


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


def test_top_k_and_recall_by_hand():
    y, score = np.eye(4)[[0, 1, 2, 2]], np.array([[9, 1, 1, 1], [9, 5, 1, 1], [1, 2, 3, 4], [1, 2, 9, 4]])
    assert [scores.top_k(y, score, k) for k in (1, 2, 4, 5)] == [0.5, 1, 1, 1]
    assert scores.recall(y, score) == pytest.approx([1, 0, 0.5, np.nan], nan_ok=True)


def test_pixels_are_area_averages_and_full_pca_is_invertible():
    small = random(5, 3, 16, 16)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(reduced(large, 16), small.flatten(1), atol=1e-6)
    rows = random(150, 48)
    codes = pca(rows.numpy(), 48)(rows)
    assert codes.shape == (150, 48) and codes.dtype == torch.float32
    centred = rows - rows.mean(0)
    assert torch.allclose(codes @ codes.T, centred @ centred.T, atol=1e-3)  # an isometry: invertible
    few = [pca(rows.numpy(), 5, limit=100)(rows) for _ in range(2)]
    assert torch.equal(*few) and few[0].shape == (150, 5)


@pytest.mark.parametrize("kind", ["binary", "class", "real"])
def test_fewer_labels_of_every_kind(kind):
    make = {"binary": binary, "class": classes, "real": planted}[kind]
    data = splits(*(make(n, seed, noise=0.5) for n, seed in ((500, 0), (200, 1), (300, 2))))
    few, many = fit_fractions(kind, data, NAMES, (0.04, 1.0), repeats=3, solver="exact")
    full = fit(kind, data, NAMES, "exact").report
    assert (few["rows"], many["rows"], len(few["scores"])) == (20, 500, 3)
    assert few["mean"] < many["mean"] and many["std"] == pytest.approx(0, abs=1e-12)
    score = {"binary": "ap", "class": "accuracy", "real": "r"}[kind]
    assert many["mean"] == pytest.approx(full.get("test", full.get("last"))[score])
    assert few["high"] - few["mean"] == pytest.approx(4.3027 * few["std"] / 3**0.5, rel=1e-4)
    assert strictly_json(few) == few


def test_subsets_have_every_class_where_they_can():
    y = torch.zeros(500, 4)
    y[::2, 0] = 1
    y[7, 1] = 1
    y[11, 2] = 1
    flags = torch.cat([y == 1, y == 0], dim=1).numpy()
    found, again, other = (list(subsets(500, 10, 5, seed, flags)) for seed in (0, 0, 1))
    assert np.array_equal(found, again) and not np.array_equal(found, other)
    for rows in found:
        assert len(set(rows.tolist())) == 10 and (np.diff(rows) > 0).all()
        assert (y[rows].sum(0)[:3] > 0).all() and y[rows, 0].sum() < 10
    assert len({tuple(rows) for rows in found}) == 5
    assert [len(rows) for rows in subsets(500, 1, 2, 0, y.numpy() == 1)] == [1, 1]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("binary", {"valid": lambda z, y: (z, y[:, :2])}, r"valid: expected targets \[n, 3\].* got \[20, 2\]"),
        ("binary", {"train": lambda z, y: (z, 2 * y - 1)}, "train: expected targets of 0 and 1 .* got -1 to 1"),
        ("binary", {"test": lambda z, y: (z, 0 * y)}, "test: expected a target that varies, got none in 20 images"),
        ("class", {"train": lambda z, y: (z, y)}, r"train: expected class numbers \[n\], got torch.float32 \[20, 3\]"),
        ("class", {"test": lambda z, y: (z, torch.full((20,), 3))}, "test: expected class numbers under 3, got 3 to 3"),
        ("real", {"train": lambda z, y: (z[1:], y)}, r"train: expected codes \[20, d\], .* got .*\[19, 8\]"),
        ("real", {"train": lambda z, y: (z * torch.nan, y)}, "train: expected finite codes"),
    ],
)
def test_wrong_codes_and_targets(kind, change, message):
    z, y = binary(20, 0)
    right = (z, y.argmax(dim=1) if kind == "class" else y)
    data = {
        split: part(*change[split](z, y)) if split in change else part(*right) for split in ("train", "valid", "test")
    }
    with pytest.raises(UserError, match=message):
        fit(kind, data, NAMES)


def test_wrong_settings():
    z, y = binary(20, 0)
    data = splits(*[(z, y)] * 3)
    for message, call in {
        "solver: expected adam or exact for regression, got knn": lambda: fit("real", data, NAMES, "knn"),
        "epochs: .* got 0": lambda: fit("real", data, NAMES, epochs=0),
        "k: expected 1 to 20 neighbours, got 21": lambda: fit("binary", data, NAMES, "knn", k=21),
        "at least 3 images, got 2": lambda: ridge_regression(z[:2], y[:2]),
        r"shares in \(0, 1\], got 5 of \(2,\)": lambda: fit_fractions("real", data, NAMES, (2,)),
        r"at least 16x16, got \[2, 3, 8, 8\]": lambda: reduced(torch.zeros(2, 3, 8, 8), 16),
        "a dimension of 1 to 2 .* got 3": lambda: pca(np.zeros((2, 192), np.float32), 3),
    }.items():
        with pytest.raises(UserError, match=message):
            call()


def test_as_many_neighbours_vote_as_there_are():
    torch.manual_seed(0)
    z, y = torch.randn(40, 3), torch.arange(40)[:, None] % 2
    parts = {split: Part(lambda epoch: z, y.float()) for split in ("train", "valid", "test")}
    found = fit_fractions("binary", parts, ("odd",), (0.1, 0.5), 2, solver="knn")
    assert [each["rows"] for each in found] == [4, 20]
