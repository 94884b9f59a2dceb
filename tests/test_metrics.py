"""Metrics against independent computations."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from dbae.config import UserError
from eval.reconstruction import (
    METRICS,
    ReconstructionMetrics,
    empty_lpips,
    load_lpips,
    mse,
    ssim,
    ssim_official,
)


def batch(n=3, size=24, seed=0):
    rng = np.random.default_rng(seed)
    real = rng.integers(0, 256, (n, size, size, 3))
    fake = np.clip(real + rng.normal(0, 40, real.shape), 0, 255)
    return tuple(torch.from_numpy(x.astype(np.uint8)) for x in (real, fake))


def unit(x):
    return x.permute(0, 3, 1, 2).float() / 255


def reference_ssim(x, y):
    """One channel pair, written from the definition: 11x11 Gaussian window, zero padding."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    mean = lambda image: correlate(image, window, mode="constant")  # noqa: E731
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_mse():
    real, fake = batch()
    expected = ((real.numpy() / 255 - fake.numpy() / 255) ** 2).mean(axis=(1, 2, 3))
    assert np.allclose(mse(unit(real), unit(fake)), expected, rtol=1e-5)


def test_ssim_and_the_official_axes():
    real, fake = batch()
    x, y = (image.numpy().astype(np.float64) / 255 for image in (real, fake))
    by_channel = [np.mean([reference_ssim(x[i, :, :, c], y[i, :, :, c]) for c in range(3)]) for i in range(3)]
    by_row = [np.mean([reference_ssim(x[i, h], y[i, h]) for h in range(24)]) for i in range(3)]
    assert np.allclose(ssim(unit(real), unit(fake)), by_channel, atol=1e-4)
    assert np.allclose(ssim_official(unit(real), unit(fake)), by_row, atol=1e-4)
    assert torch.allclose(ssim(unit(real), unit(real)), torch.ones(3), atol=1e-5)


def test_official_axes_flatter_a_blurred_image():
    y, x = torch.meshgrid(torch.linspace(0, 12, 64), torch.linspace(0, 12, 64), indexing="ij")
    real = (torch.stack([x.sin() * y.cos(), (x + y).sin(), (2 * x).cos()]) / 2 + 0.5)[None]
    blurred = torch.nn.functional.avg_pool2d(real, 5, 1, 2)
    assert ssim_official(real, blurred).item() > ssim(real, blurred).item() + 0.02


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("lpips") / "alexnet.pth")
    torch.manual_seed(0)
    trunk = empty_lpips().net
    state = {}
    for part in (trunk.slice1, trunk.slice2, trunk.slice3, trunk.slice4, trunk.slice5):
        state |= {f"features.{name}": tensor for name, tensor in part.state_dict().items()}
    assert set(state) == {f"features.{i}.{kind}" for i in (0, 3, 6, 8, 10) for kind in ("weight", "bias")}
    torch.save(state, path)
    return path


def test_lpips_uses_the_given_backbone(backbone, tmp_path):
    real, fake = (unit(x) for x in batch(size=64))
    distance = load_lpips(backbone)
    assert torch.allclose(distance(real, real), torch.zeros(3), atol=1e-6)
    assert distance(real, fake).shape == (3,) and (distance(real, fake) > 0).all()
    state = torch.load(backbone, weights_only=True)
    torch.save({name: 2 * tensor for name, tensor in state.items()}, tmp_path / "other.pth")
    assert not torch.allclose(load_lpips(str(tmp_path / "other.pth"))(real, fake), distance(real, fake))


def test_lpips_backbone_errors(tmp_path, backbone, monkeypatch):
    state = torch.load(backbone, weights_only=True)
    torch.save({"features.0.weight": state["features.0.weight"]}, tmp_path / "part.pth")
    (tmp_path / "text.pth").write_text("text")
    for name, message in {
        "absent.pth": "lpips_backbone: no such file",
        "part.pth": "has no tensor 'features.0.bias'",
        "text.pth": "text.pth: refused: damaged or no torch file",
    }.items():
        with pytest.raises(UserError, match=message):
            load_lpips(str(tmp_path / name))

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"put that file at .*alexnet-owt-7be5be79.pth, or give --lpips_backbone"):
        load_lpips()


def test_a_metric_that_is_not_finite_is_an_error(backbone, tmp_path):
    state = torch.load(backbone, weights_only=True)
    torch.save({name: tensor * torch.nan for name, tensor in state.items()}, tmp_path / "nan.pth")
    metrics = ReconstructionMetrics(["MSE", "LPIPS"], lpips_backbone=str(tmp_path / "nan.pth"))
    with pytest.raises(UserError, match="LPIPS: expected finite values, got nan"):
        metrics.update(*batch(size=64))


def test_running_means_do_not_depend_on_batches(backbone):
    real, fake = batch(5, 64)
    whole = ReconstructionMetrics(METRICS, lpips_backbone=backbone)
    whole.update(real, fake)
    left, right = (ReconstructionMetrics(METRICS, lpips_backbone=backbone) for _ in range(2))
    left.update(real[:2], fake[:2])
    right.update(real[2:], fake[2:])
    left.merge([(left.images, left.sums), (right.images, right.sums)])
    assert left.images == 5
    assert left.means() == pytest.approx(whole.means(), rel=1e-5)


def test_wrong_use():
    with pytest.raises(UserError, match=r"metrics: expected some of MSE, .* got MSE, L1"):
        ReconstructionMetrics(["MSE", "L1"])
    metrics = ReconstructionMetrics(["mse"])
    with pytest.raises(UserError, match="at least one image"):
        metrics.means()
    with pytest.raises(UserError, match="expected equal shapes"):
        metrics.update(torch.zeros(1, 8, 8, 3), torch.zeros(1, 4, 4, 3))
