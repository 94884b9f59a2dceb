"""DBAE: z = Enc(x_0), x_T = Dec(z), and a diffusion bridge from x_T back to x_0 given z.

Kim et al., Diffusion Bridge AutoEncoders for Unsupervised Representation Learning, ICLR 2025.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbae.config import SampleConfig, UserError, option, require_from_zero, require_positive
from dbae.diffusion import VE, VP, Bridge, Identity, Karras
from dbae.io import Generators
from dbae.methods.autoencoder import AutoEncoder, AutoEncoderConfig, Ends
from dbae.methods.base import Cond
from dbae.methods.presets import by_size, preset, unpublished
from dbae.methods.total_correlation import ESTIMATORS, PenalisedLoss
from dbae.nn.decoder import Decoder
from dbae.nn.layers import Attention2d
from dbae.nn.unet import UNet

# Name -> noise schedule of the bridge, and whether the network is preconditioned
SCHEDULES = {"vp": (VP, True), "ve": (VE, True), "vp_simple": (VP, False), "ve_simple": (VE, False)}


@dataclass(frozen=True)
class DBAEConfig(AutoEncoderConfig):
    """What is needed to rebuild a model around its weights. Raises UserError where the values do not fit together."""

    attention_sizes: tuple[int, ...] = option((32, 16, 8), "resolutions with attention in the U-Net")
    head_channels: int = option(64, "channels of an attention head in the U-Net")
    decoder_channels: int = option(64, "base width of the endpoint decoder")
    stochastic: bool = option(False, "stochastic encoder (DBAE) instead of the deterministic one (DBAE-d)", alias="sto")
    schedule: str = option(
        "vp",
        "noise schedule of the bridge; _simple: no preconditioning, unit loss weight",
        tuple(SCHEDULES),
        alias="pred_mode",
    )
    sigma_data: float = option(0.5, "standard deviation of the images, for the preconditioning")
    end_data: float = option(0.5, "standard deviation of the endpoints, for the preconditioning")
    tc: str = option("none", "penalty on stochastic codes' total correlation: its estimator", ESTIMATORS)
    tc_weight: float = option(0.0, "weight of that penalty beside the denoising loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("head_channels", "latent_dim"):
            require_positive(name, getattr(self, name))
        if self.decoder_channels < 2 or self.decoder_channels % 2:
            raise UserError(f"decoder_channels: expected an even number from 2, got {self.decoder_channels}")
        for name, least in (("sigma_data", 1e-3), ("end_data", 0)):
            if not least <= getattr(self, name) <= 1e3:
                raise UserError(f"{name}: expected a number from {least:g} to 1000, got {getattr(self, name)}")

        require_from_zero("tc_weight", self.tc_weight)
        if (self.tc == "none") != (self.tc_weight == 0):
            raise UserError(f"tc, tc_weight: expected both or neither, got {self.tc} and {self.tc_weight}")
        if self.tc != "none" and not self.stochastic:
            raise UserError(f"tc: {self.tc} needs the stochastic encoder, got the deterministic one")

    @property
    def name(self) -> str:
        """``{size}_{channels}_{latent}d_{sto}_{schedule}``, as the official code names a run after its data set."""
        shape = f"{self.image_size}_{self.num_channels}_{self.latent_dim}d"
        penalty = "" if self.tc == "none" else f"_{self.tc}{self.tc_weight:g}"
        return f"{shape}_{str(self.stochastic).lower()}_{self.schedule}{penalty}"


# One row per published data set: what differs from the defaults of DBAEConfig and TrainConfig
PUBLISHED = {
    "ffhq": {"image_size": 128, "num_channels": 128},
    "ffhq256": {"image_size": 256, "num_channels": 128, "microbatch": 16},
    "celeba": {"image_size": 64, "num_channels": 64},
    "celebahq": {"image_size": 128, "num_channels": 128},
    "bedroom": {"image_size": 128, "num_channels": 128},
    "horse": {"image_size": 128, "num_channels": 128},
    "toyfaces": {
        "image_size": 32, "num_channels": 16, "channel_mult": (1, 2, 4), "encoder_mult": (1, 2, 4, 8),
        "num_res_blocks": 1, "attention_sizes": (8,), "encoder_attention_sizes": (8,), "norm_groups": 4,
        "head_channels": 16, "decoder_channels": 8, "latent_dim": 64, "dropout": 0.0,
        "total_steps": 1_300, "batch_size": 32, "microbatch": 32, "lr": 3e-3, "ema_rule": "warmup",
        "log_interval": 25, "sample_interval": 250, "save_interval": 500, "save_interval_for_preemption": 100,
    },
    "sprites": {
        "image_size": 64, "num_channels": 16, "channel_mult": (1, 2, 4, 4), "encoder_mult": (1, 2, 4, 4, 8),
        "num_res_blocks": 1, "attention_sizes": (8,), "encoder_attention_sizes": (8,), "norm_groups": 4,
        "head_channels": 16, "decoder_channels": 8, "latent_dim": 10, "dropout": 0.0, "flip": False,
        "total_steps": 20_000, "batch_size": 64, "microbatch": 64, "lr": 1e-3, "ema_rule": "warmup",
        "sample_interval": 1_000, "save_interval": 5_000, "save_interval_for_preemption": 500,
    },
}  # fmt: skip
SIZES = by_size(
    tiny={"head_channels": 16, "decoder_channels": 8, "lr": 2e-3},
    small={"head_channels": 32, "decoder_channels": 32, "lr": 5e-4},
    base={},
)
UNPUBLISHED = unpublished(PUBLISHED, SIZES)


class DBAE(AutoEncoder):
    """Encoder, endpoint decoder and denoising U-Net around one bridge."""

    method = "dbae"
    Config = DBAEConfig
    CHECKED = ("image_size", "schedule", "stochastic", "end_data")
    OVERRIDABLE = ("end_data",)
    OFFICIAL_SAMPLING = (SampleConfig("euler", 100), SampleConfig("euler", 333, churn=0.33))
    FEW_STEPS = SampleConfig("dbim", 10, grid="logsnr")
    FLOAT32 = ("decoder",)  # its weights are divided by a norm, for which half precision is too coarse

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {**PUBLISHED, **UNPUBLISHED}
    SIZES = SIZES
    SIZED = tuple(UNPUBLISHED)

    def __init__(self, config: DBAEConfig) -> None:
        super().__init__(config)
        schedule, preconditioned = SCHEDULES[config.schedule]
        self.process = Bridge(schedule())
        self.precond = Karras(config.sigma_data, config.end_data) if preconditioned else Identity()
        self.stochastic = config.stochastic
        self.encoder = config.encoder(2 * config.latent_dim if config.stochastic else config.latent_dim)
        self.decoder = Decoder(config.image_size, config.latent_dim, config.decoder_channels)

        def attention(channels: int) -> nn.Module:
            heads = max(channels // config.head_channels, 1)
            if channels % heads:
                raise UserError(f"head_channels: expected a divisor of {channels} channels, got {config.head_channels}")
            return Attention2d(channels, heads, config.norm_groups)

        self.unet = UNet(
            config.image_size, 6, config.num_channels, config.channel_mult, config.num_res_blocks,
            config.attention_sizes, attention, config.norm_groups, config.dropout, 4 * config.num_channels,
            config.latent_dim,
        )  # fmt: skip
        for network in (self.encoder, self.unet):  # not the decoder, whose BatchNorm is slow so on a CPU
            network.to(memory_format=torch.channels_last)

    def objective(self) -> nn.Module:
        return self if self.config.tc == "none" else PenalisedLoss(self, self.config.tc, self.config.tc_weight)

    def decode(self, z: Tensor) -> Tensor:
        """Endpoint image x_T [N, 3, H, W] of codes z [N, latent]; not bounded to [-1, 1]."""
        return self.compute("decoder", z)

    def condition(
        self, x0: Tensor | None = None, y: Tensor | None = None, z: Tensor | None = None, x_T: Tensor | None = None
    ) -> Cond:
        z = self.encode(x0) if z is None else z
        return {"x_T": self.decode(z) if x_T is None else x_T, "z": z}

    def network(self, x: Tensor, c_noise: Tensor, x_T: Tensor, z: Tensor, blocks: tuple[str, ...] | None = None) -> Any:
        return self.compute("unet", torch.cat([x, x_T], dim=1), c_noise, z, blocks=blocks)

    def start(self, z: Tensor, generator: Generators = None) -> Tensor:
        return self.decode(z)

    def infer_xT(self, x: Tensor, z: Tensor | None = None, generator: Generators = None, **settings: Any) -> Tensor:
        """``Dec(z)``: the image is looked at only where z is not given."""
        return self.decode(self.encode(x) if z is None else z)

    def between(
        self, ends: Ends, z: Tensor, fractions: Tensor, generators: Sequence[Generators], **settings: Any
    ) -> Tensor:
        return self.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    # Files: the official ones hold the U-Net's tensors at the top level

    @staticmethod
    def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("unet."): tensor for name, tensor in state.items()}

    @staticmethod
    def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = ("encoder.", "decoder.")
        return {name if name.startswith(own) else f"unet.{name}": tensor for name, tensor in state.items()}

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor], path: str, dataset: str | None, **fields: Any) -> DBAEConfig:
        size = next((int(m[1]) for m in (re.fullmatch(r"decoder\.to_(\d+)\.weight_orig", n) for n in state) if m), None)
        try:
            latent_dim = state["label_emb.weight"].shape[1]
            shapes = {
                "image_size": size,
                "num_channels": state["input_blocks.0.0.weight"].shape[0],
                "decoder_channels": state["decoder.init.init.0.weight_orig"].shape[1] // 32,
                "latent_dim": latent_dim,
                "stochastic": state["encoder.out.3.bias"].shape[0] == 2 * latent_dim,
            }
        except (KeyError, IndexError) as error:
            raise UserError(f"{path}: not a DBAE checkpoint ({error} is missing)") from None
        if size is None:
            raise UserError(f"{path}: not a DBAE checkpoint (it has no endpoint decoder)")
        if fields.get("schedule") is None:
            raise UserError(f"schedule: needed for {path}, which has no config.json beside it")
        if dataset is not None and (expected := preset(cls, DBAEConfig, dataset, {}).image_size) != size:
            raise UserError(f"{path}: made for {size}x{size} images, but {dataset} is {expected}x{expected}")
        return DBAEConfig(**shapes, **{name: value for name, value in fields.items() if name not in shapes})

    @classmethod
    def result_name(cls, sampling: SampleConfig) -> str:
        """As the official code has it; our own settings are added where they are not the default."""
        label = f"{sampling.sampler}_{sampling.rho}_{sampling.steps}_w={sampling.guidance}_churn={sampling.churn}"
        for name in ("grid", "eta", "boot"):
            if getattr(sampling, name) != getattr(SampleConfig, name):
                label += f"_{name}={str(getattr(sampling, name)).lower()}"
        return label
