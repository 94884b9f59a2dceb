"""Feature networks: what their files must hold, and second implementations of resizing and of the networks."""

import numpy as np
import pytest
import torch
from PIL import Image

from dbae.config import UserError
from eval.networks import NETWORKS, load_network, resize
from eval.reconstruction import load_lpips

X = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def filled(name, path, **changes):
    """A file of a network's tensors, drawn so that activations neither vanish nor explode."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for key, value in NETWORKS[name].build().state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if key.endswith("running_var"):
            drawn = 1 + 0.1 * drawn.abs()
        elif value.ndim > 1:
            drawn *= (2 / max(1, value[0].numel())) ** 0.5
        tensors[key] = drawn
    torch.save(tensors | changes, path)
    return str(path)


def test_resizing():
    """Bicubic is PIL's of float channels, up and down; TensorFlow 1 puts the pixels of a doubled image between."""
    for size in (64, 24):
        pil = [
            np.asarray(Image.fromarray(c.float().numpy()).resize((size, size), Image.Resampling.BICUBIC)) for c in X[0]
        ]
        assert np.abs(resize(X[:1].float(), size, "bicubic")[0].numpy() - np.stack(pil).clip(0, 255)).max() < 0.01
    twice = resize(X.float(), 80, "tensorflow")
    assert torch.equal(twice[..., ::2, ::2], X.float())
    assert torch.equal(twice[..., 0, 1:-1:2], (X[..., 0, 1:].float() + X[..., 0, :-1].float()) / 2)
    assert torch.equal(resize(X.float(), 40, "tensorflow"), X.float())


def test_distances_of_lpips_features_are_lpips(tmp_path):
    path = filled("alexnet", tmp_path / "alexnet.pth")
    features = load_network("lpips", path)(X)
    expected = load_lpips(path)(X[:2].float() / 255, X[1:].float() / 255)
    assert (features[:2] - features[1:]).square().sum(1) == pytest.approx(expected, rel=1e-4)
    pooled = load_network("alexnet", path)(X)
    assert pooled.shape == (3, 1152) and pooled.dtype == torch.float32
    assert torch.allclose(pooled[1:2], load_network("alexnet", path)(X[1:2]), atol=1e-4)


def test_pixels_are_distances_of_mse():
    features = load_network("pixels")(X)
    expected = (X[0].float() / 255 - X[1].float() / 255).square().mean()
    assert (features[0] - features[1]).square().mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_wrong_files(tmp_path):
    page, text = tmp_path / "page.pth", "<!DOCTYPE html><html>not found</html>"
    page.write_text(text)
    good = filled("alexnet", tmp_path / "alexnet.pth")
    for name, path, resizing, message in (
        ("fid", good, None, "features: expected one of inception"),
        ("alexnet", None, None, "alexnet-owt-7be5be79.pth, got none"),
        ("alexnet", str(tmp_path / "none.pth"), None, "no such file"),
        ("alexnet", str(page), None, "web page"),
        ("lite0", good, None, "_conv_stem.weight"),
        ("alexnet", good, "bicubic", "alexnet has none"),
        ("pixels", good, None, "expected none for pixels"),
    ):
        with pytest.raises(UserError, match=message):
            load_network(name, path, resizing=resizing)
    nan = filled("alexnet", tmp_path / "nan.pth", **{"features.0.bias": torch.full((64,), torch.nan)})
    with pytest.raises(UserError, match="not finite"):
        load_network("alexnet", nan)


@pytest.mark.parametrize("name, width", [("lite0", 1280), ("dinov2_small", 384)])
def test_features_do_not_depend_on_the_batch(tmp_path, name, width):
    changes = {"pos_embed": torch.randn(1, 1 + 37**2, 384)} if "dino" in name else {}
    network = load_network(name, filled(name, tmp_path / "weights.pth", **changes))
    features = network(X)
    assert features.shape == (3, width) and features.isfinite().all() and features.std(0).mean() > 0
    assert torch.allclose(features[1:2], network(X[1:2]), atol=1e-3, rtol=1e-3)
    assert network.about["input_size"] == 224 and len(network.about["weights"]) == 16


def test_position_embeddings_are_interpolated_as_officially():
    """Patch i of 16 lies where (i + 1/2) 37 / 16.1 - 1/2 does among 37, but for the error of the cubic kernel."""
    row = torch.arange(37.0)
    plane = (row[:, None] + 100 * row).reshape(1, -1, 1).expand(1, -1, 4)
    made = NETWORKS["dinov2"].tensors(None, {"pos_embed": torch.cat((torch.full((1, 1, 4), -7.0), plane), 1)})
    at = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    inner = slice(1, 15)  # at the border the cubic kernel sees repeated values
    grid = made["pos_embed"][0, 1:, 0].reshape(16, 16)
    assert torch.allclose(
        grid[inner, inner], (at[:, None] + 100 * at)[inner, inner], atol=10
    )  # 37 / 16 would be off by 20
    assert made["pos_embed"][0, 0].tolist() == [-7.0] * 4


def test_official_names_of_vgg16():
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in NETWORKS["vgg16"].build().state_dict().items()}
    assert shapes["features.28.weight"] == [512, 512, 3, 3] and shapes["classifier.3.weight"] == [4096, 4096]
    assert len(shapes) == 30 and "classifier.6.weight" not in shapes  # 13 convolutions and two linear layers


@pytest.mark.slow
def test_inception_is_that_of_torch_fidelity(tmp_path):
    """A second implementation of the 2015 graph, by another package, from the same file of drawn tensors."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = filled("inception", tmp_path / "inception.pth")
    theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)(X[:2])[0]
    ours = load_network("inception", path, resizing="tensorflow")(X[:2])
    assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())
