"""Whole probes by the solvers beyond the official protocol, with reports like the official probe's."""

from collections.abc import Sequence

import torch

from eval.probe import Part, Result, classification_scores, images_of, predict, regression_attributes, regression_means
from eval.solvers import exact_classifier, exact_regressor, nearest_neighbours


def classify_exact(
    train: Part, valid: Part, test: Part, names: Sequence[str], device: torch.device | str = "cpu"
) -> Result:
    """Logistic regression, its penalty chosen per attribute on ``valid``, scored on ``test``."""
    z_train, z_valid = train.draw(0), valid.draw(0)
    layer, penalties = exact_classifier(z_train, train.targets, z_valid, valid.targets, device=device)
    report = {
        "task": "classification",
        "settings": {"latent": layer.in_features, "loss": "logistic", "optimizer": "exact", "selected_on": "valid"},
        "images": images_of(train=train, valid=valid, test=test),
        **classification_scores(names, test.targets, predict(layer, "test", test, 0)),
        "penalties": dict(zip(names, penalties, strict=True)),
    }
    return Result(layer, layer, report)


def regress_exact(train: Part, test: Part, names: Sequence[str], device: torch.device | str = "cpu") -> Result:
    """Ridge regression, its penalty chosen per attribute on the last tenth of ``train``, scored on ``test``."""
    layer, penalties = exact_regressor(train.draw(0), train.targets, device=device)
    prediction = predict(layer, "test", test, 0)
    means = regression_means(test.targets, prediction)
    report = {
        "task": "regression",
        "settings": {"latent": layer.in_features, "loss": "squared error", "optimizer": "exact"},
        "images": images_of(train=train, test=test),
        "last": means,
        **regression_attributes(names, test.targets, {"last": prediction}),
        "penalties": dict(zip(names, penalties, strict=True)),
    }
    return Result(layer, layer, report)


def classify_neighbours(
    train: Part, test: Part, names: Sequence[str], k: int = 20, device: torch.device | str = "cpu"
) -> Result:
    """Accuracy of the ``k`` nearest training codes; there is no layer."""
    found = nearest_neighbours(train.draw(0), train.targets, test.draw(0), test.targets, k, device)
    pairs = zip(names, found["accuracy"], found["majority"], strict=True)
    report = {
        "task": "classification",
        "settings": {"k": k, "distance": "Euclidean, standardised codes"},
        "images": found["images"],
        "test": {"accuracy": found["mean_accuracy"], "majority": found["mean_majority"]},
        "attributes": {name: {"accuracy": accuracy, "majority": majority} for name, accuracy, majority in pairs},
    }
    return Result(None, None, report)
