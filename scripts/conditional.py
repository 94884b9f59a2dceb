"""Codes of a class by rejection: those that a classifier of few labels takes for it (Preechakul et al., CVPR 2022)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from datasets.labels import Targets
from dbae.config import UserError
from dbae.io import image_generators

TRIES = 10_000  # candidates per code
CODE, CHANCE = 1, 2  # streams of random numbers: of candidates, and of their acceptance

Candidates = Callable[[list[int], int], Tensor]  # numbers of images and of a try -> codes [n, latent]


def of_class(targets: Targets, name: str) -> Tensor:
    """Whether each image [n] has the label ``name``; with ``!`` before it, whether it has not. UserError for others."""
    label = name.removeprefix("!")
    if label not in targets.names:
        raise UserError(f"class: expected one of {', '.join(targets.names)}, got {label!r}")
    has = targets.values[:, targets.names.index(label)] > 0
    return ~has if name.startswith("!") else has


def few_shot(z: Tensor, has: Tensor, labelled: int, unlabelled: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Probability [n] that a code [n, latent] has a label, from few of the codes z [N, latent] with labels ``has`` [N].

    ``labelled`` codes, drawn with the seed, show both classes; or with ``unlabelled`` they are positives, and as many
    others count as negative whatever they are (PU). Both classes weigh the same. Raises UserError where there are not
    enough of a class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order = np.random.default_rng(seed).permutation(len(z))
    positive = has.numpy()[order] > 0
    if unlabelled:
        chosen = order[positive][:labelled]
        others = np.setdiff1d(order, chosen)
        others = np.random.default_rng([seed, 1]).permutation(others)[:unlabelled]
        rows, targets = np.concatenate([chosen, others]), np.arange(len(chosen) + len(others)) < len(chosen)
    else:
        rows, targets = order[:labelled], positive[:labelled]
    if len(set(targets.tolist())) < 2 or targets.sum() < (labelled if unlabelled else 1):
        raise UserError(f"class: expected {labelled} labelled images with both classes, {int(targets.sum())} have it")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    classifier.fit(z[torch.from_numpy(rows)].numpy(), targets)
    return lambda codes: torch.from_numpy(classifier.predict_proba(codes.cpu().numpy())[:, 1])


def accepted(candidates: Candidates, probability: Callable[[Tensor], Tensor], seed: int) -> Candidates:
    """Codes by number, whatever the try: each the first of its candidates that is accepted.

    A candidate is rejected below a probability of 1/2, and else accepted with it. Raises UserError after TRIES of them.
    """

    def codes(index: list[int], _: int = 0) -> Tensor:
        found: dict[int, Tensor] = {}
        for attempt in range(TRIES):
            pending = [i for i in index if i not in found]
            if not pending:
                return torch.stack([found[i] for i in index])
            z = candidates(pending, attempt)
            generators = image_generators(seed, pending, CHANCE, attempt)
            chance = torch.stack([torch.rand((), generator=generator) for generator in generators])
            p = probability(z)
            found |= {i: code for i, code, yes in zip(pending, z, (p >= 0.5) & (chance < p), strict=True) if yes}
        raise UserError(f"class: no code of the class among {TRIES} for image {pending[0]}")

    return codes
