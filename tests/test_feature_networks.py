"""Feature networks: what their files must hold, and second implementations of resizing and of the networks."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dbae.config import UserError
from eval.faces import WIDTHS
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


def tensorflow_js(folder):
    """The two files of a face network's drawn tensors, and the tensors."""
    generator, tensors = np.random.default_rng(0), {}

    def draw(name, *shape, fan=None):
        drawn = generator.standard_normal(shape) * (2 / fan) ** 0.5 if fan else 0.1 * generator.standard_normal(shape)
        tensors[name] = drawn.astype("<f4")

    draw("feats/bias", 7)  # of a head that is not used
    draw("conv1/convolution/merged_input", 3, 3, 3, 32, fan=27 * 100**2)
    draw("conv1_bn/batchnorm_1/sub", 32)
    for i, (inner, outer) in enumerate(itertools.pairwise((32, *WIDTHS)), 1):
        draw(f"conv_dw_{i}/depthwise_kernel", 3, 3, inner, 1, fan=9)
        draw(f"conv_dw_{i}_bn/batchnorm_1/mul", inner, fan=2)
        draw(f"conv_dw_{i}_bn/batchnorm_1/sub", inner)
        draw(f"conv_pw_{i}/convolution/merged_input", 1, 1, inner, outer, fan=inner)
        draw(f"conv_pw_{i}_bn/batchnorm_1/sub", outer)
    entries = [{"name": name, "shape": list(x.shape), "dtype": "float32"} for name, x in tensors.items()]
    (folder / "net.json").write_text(json.dumps({"weightsManifest": [{"paths": ["net.bin"], "weights": entries}]}))
    (folder / "net.bin").write_bytes(b"".join(x.tobytes() for x in tensors.values()))
    return str(folder / "net.bin"), tensors


def convolved(x, w, stride, each=False):
    """TensorFlow's convolution with padding "same" of images [n, h, w, c], of each channel alone or of all."""
    shape = [-(-size // stride) for size in x.shape[1:3]]
    missing = [max((n - 1) * stride + w.shape[0] - size, 0) for n, size in zip(shape, x.shape[1:3], strict=True)]
    x = np.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], (1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijc->nhwc" if each else "nhwcij,ijcd->nhwd", windows, w[..., 0] if each else w)


def test_faces_by_the_graph(tmp_path):
    """The graph's own operations, one after the other, on images with an odd side."""
    path, tensors = tensorflow_js(tmp_path)
    network = load_network("faces", path)
    x = X[..., :37].float() - 127
    y = convolved(x.numpy().transpose(0, 2, 3, 1)[..., ::-1], tensors["conv1/convolution/merged_input"], 2)
    y = np.clip(y + tensors["conv1_bn/batchnorm_1/sub"], 0, 6)
    for i in range(1, len(WIDTHS) + 1):
        y = convolved(y, tensors[f"conv_dw_{i}/depthwise_kernel"], 2 if i in (2, 4, 6, 12) else 1, each=True)
        y = y * tensors[f"conv_dw_{i}_bn/batchnorm_1/mul"] + tensors[f"conv_dw_{i}_bn/batchnorm_1/sub"]
        y = convolved(np.clip(y, 0, 6), tensors[f"conv_pw_{i}/convolution/merged_input"], 1)
        y = np.clip(y + tensors[f"conv_pw_{i}_bn/batchnorm_1/sub"], 0, 6)
    expected = torch.from_numpy(y.mean((1, 2))).float()
    assert expected.std() > 0.05
    assert torch.allclose(network.net(x), expected, atol=1e-4)
    features = network(X)  # resized, less the means of channels
    assert features.shape == (3, 1024) and network.about["input_size"] == 224
    shifted = resize(X.float(), 224, "bicubic") - torch.tensor([123.68, 116.779, 103.939])[:, None, None]
    assert torch.allclose(features, network.net(shifted), atol=1e-5)


def test_wrong_files_of_tensorflow_js(tmp_path):
    path, _ = tensorflow_js(tmp_path)
    whole, names = (tmp_path / "net.bin").read_bytes(), (tmp_path / "net.json").read_text()
    for content, manifest, message in (
        (whole[:-4], names, "expected .* bytes as in"),
        (whole, names.replace("float32", "uint8"), "weightsManifest of one file of float32"),
        (whole, "{}", "weightsManifest"),
        (whole, names.replace("conv_dw_3/", "conv_dw_33/"), "depthwise.2.weight"),
        (whole, None, "expected net.json beside it"),
    ):
        (tmp_path / "net.bin").write_bytes(content)
        (tmp_path / "net.json").unlink() if manifest is None else (tmp_path / "net.json").write_text(manifest)
        with pytest.raises(UserError, match=message):
            load_network("faces", path)
