"""Networks: released names and shapes, parity with the official implementation, every image size."""

import pytest
import tiny
import torch
from parity import images, keys, released_model, vector, worst

from dbae.methods.dbae import DBAE, DBAEConfig

# The tensors whose gradient norms the parity vectors hold, in their order
GRADIENTS = (
    "time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight",
    "encoder.input_blocks.0.0.weight", "encoder.out.3.weight", "decoder.init.init.0.weight_orig", "label_emb.weight",
)  # fmt: skip


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("kind", ["det", "sto"])
def test_names_and_shapes_are_the_released_ones(size, kind):
    with torch.device("meta"):
        model = DBAE(DBAEConfig(image_size=size, num_channels=size, stochastic=kind == "sto"))
    ours = {name: list(tensor.shape) for name, tensor in DBAE.to_official(model.state_dict()).items()}
    assert ours == keys(size, kind)


@pytest.mark.parametrize(("size", "millions"), [(64, 120.62), (128, 162.43)])
def test_parameter_counts(size, millions):
    with torch.device("meta"):
        model = DBAE(DBAEConfig(image_size=size, num_channels=size))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.fixture(scope="module", params=["det", "sto"])
def released(request):
    return request.param, released_model(64, request.param)


def code(kind, model, x):
    return model.encode(x) if kind == "det" else model.encode_stats(x)[0]


@torch.no_grad()
def test_encoder_parity(released):
    kind, model = released
    x = images(2, 64)
    if kind == "det":
        assert worst(model.encode(x), vector("net/64_det/z")) < 1e-4
        return
    mu, log_sigma = model.encode_stats(x)
    assert worst(mu, vector("net/64_sto/mu")) < 1e-4
    assert worst(log_sigma, vector("net/64_sto/log_sigma")) < 1e-4
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(5))
    z = model.encode(x, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(z, mu + vector("net/64_sto/sigma") * eps, atol=1e-3)
    assert torch.equal(model.encode(x, sample=False), mu)


@torch.no_grad()
def test_decoder_unet_and_denoiser_parity(released):
    kind, model = released
    name, x = f"net/64_{kind}", images(2, 64)
    z = code(kind, model, x)
    x_T = model.decode(z)
    assert worst(x_T, vector(f"{name}/x_T")) < 1e-4
    F_x = model.unet(torch.cat([x, x_T], dim=1), vector(f"{name}/unet_t"), z)
    assert worst(F_x, vector(f"{name}/unet")) < 1e-4
    D_x = model.denoise(x, torch.tensor([0.3, 0.9]), x_T=x_T, z=z)
    assert worst(D_x, vector(f"{name}/denoise_vp")) < 1e-4


def test_loss_and_gradient_parity():
    model, name = released_model(64, "det"), "net/64_det/loss_vp"
    loss = model.loss(images(2, 64), t=vector(f"{name}/t"), noise=vector(f"{name}/noise"))
    assert worst(loss, vector(f"{name}/loss")) < 1e-4
    assert worst(loss / model.precond.weight(model.process, vector(f"{name}/t")), vector(f"{name}/xs_mse")) < 1e-4
    loss.mean().backward()
    parameters = DBAE.to_official(dict(model.named_parameters()))
    norms = torch.stack([parameters[tensor].grad.norm() for tensor in GRADIENTS])
    assert torch.allclose(norms.double(), vector(f"{name}/grad_norms"), rtol=1e-4)


def test_reconstruction_parity():
    name = "recon/64_det_vp_euler_n4_w1.0_end0.5_seed3"
    x_0 = released_model(64, "det").reconstruct(images(2, 64, seed=3), steps=4)
    ours = ((x_0 + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (ours.int() - vector(f"{name}/sample").int()).abs().max() <= 1


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("stochastic", [False, True])
def test_every_size_and_latent(size, stochastic):
    with torch.device("meta"):
        config = DBAEConfig(image_size=size, num_channels=32, latent_dim=24, stochastic=stochastic)
        model = DBAE(config)
        x = torch.empty(2, 3, size, size)
        z = model.encode(x)
        x_T = model.decode(z)
        F_x = model.unet(torch.cat([x, x_T], dim=1), torch.empty(2), z)
    assert z.shape == (2, 24) and x_T.shape == F_x.shape == x.shape


def test_unused_block_is_there_and_inert():
    model = tiny.model()
    unused = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert unused and all(name.startswith("decoder.feat_256") for name in unused)
    with torch.device("meta"):
        used = DBAE(DBAEConfig(image_size=256, num_channels=32))
    assert all(p.requires_grad for p in used.parameters())


def test_untrained_network_outputs_nothing():
    """Zero-initialised last layers: D = c_skip x_t before training."""
    model, x = DBAE(tiny.config()).eval(), tiny.images()
    t = torch.full((4,), 0.5)
    z = model.encode(x)
    D_x = model.denoise(x, t, x_T=model.decode(z), z=z)
    c_skip = model.precond.scalings(model.process, t)[0]
    assert torch.allclose(D_x, c_skip[:, None, None, None] * x)
