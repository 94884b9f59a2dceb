"""Measure edits of attributes: do they reach their attribute, what else changes, is it the same person?

example:
  python3 eval_manipulation.py --model_path CKPT --dataset celeba --attributes Male,Smiling --limit 200 \\
      --features alexnet --feature_weights FILE

Test images without an attribute are edited along the classifier of the codes, each until its logit is the median of
positives (Preechakul et al., CVPR 2022) or by --scale. A judge that knows nothing of the codes, a logistic regression
on the --features of real training images, looks at reconstruction and edit. Frechet distances in the same space are
from the edits to real images with (FD to positives) and to others without the attribute (FD to negatives), beside those
of the unedited reconstructions. With --embedder, cosines of face embeddings: of an image and its edit, its
reconstruction, and another image. Everything goes to sample_STEP/edits_FEATURES_SETTINGS.json, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import Labelled, labelled_splits
from dbae import runtime
from dbae.config import RuntimeConfig, UserError, check_numbers, option
from dbae.io import fingerprint, with_command, write_json
from dbae.methods.codes import attribute_step
from eval.classifier import AttributeClassifier
from eval.features import encode_dataset
from eval.generation import frechet_distance
from eval.linear import logistic_regression
from eval.networks import NETWORKS, FeatureNetwork, load_network
from eval.scores import auroc, json_safe
from scripts.cli import Parser, run
from scripts.common import load_autoencoder, parse_sampling, print_dry_run, result_folder
from scripts.edit_inputs import find_classifier
from scripts.measures import network_encoder
from scripts.options import ModelOptions
from scripts.results import check_report
from scripts.tables import write_table
from scripts.trained import TrainedModel

HEADER = (
    "attribute", "edited", "judged to have it", "unedited", "positives", "other labels flipped",
    "FD to positives", "unedited", "FD to negatives", "unedited", "same person", "reconstruction", "another",
)  # fmt: skip


@dataclass(frozen=True)
class EditMeasureOptions(ModelOptions, RuntimeConfig):
    """Which edits, and who judges them. Raises UserError for values out of range."""

    attributes: str = option("Male,Young", "names or numbers of attributes, separated by commas")
    scale: float | None = option(None, "factor of sqrt(latent) w/|w| for all (default: to the median logit, per image)")
    fix_xT: bool | None = option(
        None, "keep x_T of the unedited image (default: DBAE decodes x_T from the edited code, DiffAE keeps it)"
    )
    limit: int = option(
        200, "at most so many images are edited per attribute, and compared with as many others with it and without it"
    )
    classifier: str | None = option(None, "best.pt of a linear probe (default: beside the checkpoint, or its probe's)")
    labels: str | None = option(None, "CSV of a folder of images (default: its labels.csv)")
    features: str = option("pixels", f"space of judge and distances: {', '.join(NETWORKS)}", tuple(NETWORKS))
    feature_weights: str | None = option(None, "its file of weights")
    judged: int = option(10_000, "training images that the judge learns from, at most")
    embedder: str | None = option(None, "network whose features' cosine tells persons apart: faces", tuple(NETWORKS))
    embedder_weights: str | None = option(None, "its file of weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ["limit", "judged"])
        if self.scale is not None and not isfinite(self.scale):
            raise UserError(f"scale: expected a finite number, got {self.scale}")
        if self.limit < 2:
            raise UserError(f"limit: expected 2 or more, got {self.limit}")


class Judge(NamedTuple):
    """A linear layer on features of a network, with a logit per label, and its areas under the ROC curve on test."""

    network: FeatureNetwork
    layer: nn.Linear
    names: tuple[str, ...]
    areas: np.ndarray

    def __call__(self, images: Tensor) -> tuple[np.ndarray, Tensor]:
        """Features [n, d], and whether labels [n, k] are there, of uint8 images."""
        features = torch.cat([self.network(batch) for batch in images.split(64)])
        return features.numpy(), self.layer(features).detach() > 0


def train_judge(network: FeatureNetwork, splits: dict[str, Labelled], options: EditMeasureOptions) -> Judge:
    """Learn all labels from features of real images; the penalty is chosen on valid."""
    data, parts = {}, {}
    for split, each in splits.items():
        parts[split] = range(min(len(each.targets), options.judged))
        chosen = each.dataset.part(parts[split])
        z = encode_dataset(network_encoder(network), chosen, options.batch_size, desc=f"{network.name} of {split}")["z"]
        data[split] = torch.from_numpy(z), each.targets.values[: len(z)]
    layer, _ = logistic_regression(*data["train"], *data["valid"])
    areas = auroc(data["test"][1], layer(data["test"][0]).detach().numpy())
    return Judge(network, layer, splits["test"].targets.names, areas)


def pixels(part: Labelled, rows: Tensor) -> Tensor:
    """Images uint8 [n, 3, H, W] by their rows in the split."""
    return torch.stack([part.dataset[i][0] for i in rows.tolist()])


def edit(
    trained: TrainedModel, images: Tensor, classifier: AttributeClassifier, name: str, options: EditMeasureOptions
) -> Tensor:
    """Reconstructions and edits, uint8 [n, 2, 3, H, W]."""
    z, row = trained.encode(images), classifier.index(name)
    step = attribute_step(classifier.weight[row])
    scales = classifier.scale_to_median(z, row, step) if options.scale is None else z.new_full((len(z),), options.scale)
    shifts = torch.stack([torch.zeros_like(z), scales[:, None] * step], dim=1)
    return trained.shift(images, z, shifts, trained.keeps_xT(options.fix_xT))[1]


def cosines(embedder: FeatureNetwork, images: Tensor, made: Tensor) -> dict[str, float]:
    """Mean cosine between embeddings of images and of their edits, their reconstructions, and other images."""
    real, rebuilt, edited = (
        torch.cat([embedder(batch) for batch in x.split(64)]) for x in (images, made[:, 0], made[:, 1])
    )
    pairs = {"edit": edited, "reconstruction": rebuilt, "another": real.roll(1, 0)}
    return {name: F.cosine_similarity(real, other).mean().item() for name, other in pairs.items()}


def measure(
    name: str, trained: TrainedModel, part: Labelled, classifier: AttributeClassifier, judge: Judge,
    embedder: FeatureNetwork | None, options: EditMeasureOptions,
) -> dict[str, Any]:  # fmt: skip
    """All numbers of one attribute. Raises UserError where too few test images have it, or have it not."""
    column = judge.names.index(name)
    has = part.targets.values[:, column] > 0
    having, without = has.nonzero().flatten()[: options.limit], (~has).nonzero().flatten()
    n = min(options.limit, len(without) // 2)  # a distance to the originals of the edits would be no fair one
    if min(n, len(having)) < 2:
        raise UserError(f"attributes: {name}: expected two test images with it and four without it, or more")
    images, negatives, positives = (pixels(part, rows) for rows in (without[:n], without[n : 2 * n], having))
    made = edit(trained, images, classifier, name, options)
    (negative, _), (rebuilt, before), (edited, after), (positive, there) = map(
        judge, (negatives, made[:, 0], made[:, 1], positives)
    )
    others = [i for i in range(len(judge.names)) if i != column]
    flips = (before != after)[:, others].float().mean(dim=0)
    most = flips.argsort(descending=True)[:3].tolist()
    return {
        "edited": len(images), "positives": len(positives), "judge_auroc": json_safe(judge.areas[column]),
        "reached": after[:, column].float().mean().item(), "reached_unedited": before[:, column].float().mean().item(),
        "reached_positives": there[:, column].float().mean().item(), "others_flipped": flips.mean().item(),
        "most_flipped": {judge.names[others[i]]: flips[i].item() for i in most},
        "FD_to_positives": frechet_distance(edited, positive), "FD_to_negatives": frechet_distance(edited, negative),
        "FD_unedited_to_positives": frechet_distance(rebuilt, positive),
        "FD_unedited_to_negatives": frechet_distance(rebuilt, negative),
        "FD_positives_to_negatives": frechet_distance(positive, negative),
        "cosine": cosines(embedder, images, made) if embedder else None,
    }  # fmt: skip


def cells(name: str, found: dict[str, Any]) -> Iterator[str]:
    """A row of the table."""
    shares = ("reached", "reached_unedited", "reached_positives", "others_flipped")
    distances = ("FD_to_positives", "FD_unedited_to_positives", "FD_to_negatives", "FD_unedited_to_negatives")
    yield from (name, str(found["edited"]))
    yield from (f"{found[share]:.3f}" for share in shares)
    yield from (f"{found[distance]:.4g}" for distance in distances)
    same = found["cosine"] or {}
    yield from (f"{same[which]:.3f}" if same else "" for which in ("edit", "reconstruction", "another"))


def main(args: list[str] | None = None) -> None:
    """Load, train the judge, edit, measure, print, write."""
    options, about, _, method, sampling = parse_sampling(Parser(__doc__), EditMeasureOptions, "edits", args)
    file = f"edits_{options.features}_{method.result_name(sampling)}.json"
    path = result_folder(options.model_path, file, out=options.out)
    if options.dry_run:
        return print_dry_run(options, about, sampling, output=path)

    # Everything that can be wrong
    device = runtime.setup(options.device)
    trained = TrainedModel.of(load_autoencoder(options, about, device), options, sampling)
    network = load_network(options.features, options.feature_weights, device)
    embedder = load_network(options.embedder, options.embedder_weights, device) if options.embedder else None
    size, where = trained.model.config.image_size, (options.data_root, options.data_dir, options.labels)
    splits = labelled_splits(options.dataset, "binary", size, *where)
    classifier = find_classifier(trained, options.model_path, options.classifier, options.out)
    if classifier is None:
        raise UserError("classifier: no best.pt beside the checkpoint and no probe of it; run infer_class_dbae.sh")
    names = [classifier.names[classifier.index(attribute)] for attribute in options.attributes.split(",")]
    if unknown := set(names) - set(splits["test"].targets.names):
        raise UserError(f"attributes: {options.dataset} has no label {min(unknown)}")
    settings = {
        "weights": fingerprint(options.model_path), "classifier": fingerprint(classifier.path),
        **splits["test"].identity(), "features": network.about, "embedder": embedder and embedder.about,
        "strength": "median" if options.scale is None else options.scale, "fix_xT": trained.keeps_xT(options.fix_xT),
        "attributes": names, "limit": options.limit, **trained.identity(),
        "judge": {
            "training_images": min(options.judged, len(splits["train"].targets)),
            **{split: splits[split].identity() for split in ("train", "valid")},
        },
    }  # fmt: skip
    check_report(path, [], settings, [options.model_path], "measures", options.overwrite, key="settings")
    if options.check:
        return None

    judge = train_judge(network, splits, options)
    found = {name: measure(name, trained, splits["test"], classifier, judge, embedder, options) for name in names}
    print(f"{options.features}, judge's mean AUROC on real test images {np.nanmean(judge.areas):.3f}")
    write_table(HEADER, [tuple(cells(name, each)) for name, each in found.items()])
    write_json(path, {"settings": with_command(settings), "attributes": found})
    print("wrote", path)
    return None


if __name__ == "__main__":
    run(main)
