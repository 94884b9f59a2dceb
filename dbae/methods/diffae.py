"""DiffAE: a code z = Enc(x_0) conditions a diffusion, whose inversion x_T keeps what z leaves out; the DDIM baseline.

Preechakul et al., Diffusion Autoencoders: Toward a Meaningful and Decodable Representation, CVPR 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dbae.config import SampleConfig, UserError, option, require_positive
from dbae.diffusion import Diffusion, Epsilon, LinearBeta
from dbae.io import Generators, randn_like
from dbae.methods.autoencoder import AutoEncoder, AutoEncoderConfig, Ends
from dbae.methods.base import BESIDE, Cond, DiffusionModel
from dbae.methods.codes import slerp
from dbae.methods.presets import by_size, preset, unpublished
from dbae.nn.layers import Attention1d
from dbae.nn.unet import UNet

# Official names of the time MLP: one level deeper in the autoencoder than in its baseline
TIME, OFFICIAL_TIME = "unet.time_embed.", "time_embed.time_embed."


@dataclass(frozen=True)
class DDIMConfig(AutoEncoderConfig):
    """What is needed to rebuild the baseline around its weights. Raises UserError where values do not fit together."""

    emb_channels: int = option(512, "width of the embedding of time; 512 in all published models")
    latent_dim: int = option(0, "0: the baseline has no code")
    has_code = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("emb_channels", self.emb_channels)
        if (self.latent_dim > 0) != self.has_code:
            expected = "a number above 0" if self.has_code else "0 for the baseline, which has no code"
            raise UserError(f"latent_dim: expected {expected}, got {self.latent_dim}")

    def unet(self) -> UNet:
        """The noise predictor; the code, if any, scales the norm of every block."""
        attention = partial(Attention1d, heads=1, groups=self.norm_groups)
        return UNet(
            self.image_size, 3, self.num_channels, self.channel_mult, self.num_res_blocks, self.attention_sizes,
            attention, self.norm_groups, self.dropout, self.emb_channels, self.latent_dim, scales=True,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """``{size}_{channels}_{latent}d``."""
        return f"{self.image_size}_{self.num_channels}_{self.latent_dim}d"


@dataclass(frozen=True)
class DiffAEConfig(DDIMConfig):
    """The same for the autoencoder."""

    latent_dim: int = option(512, "length of the code z")
    has_code = True


# One row per published data set: what differs from the defaults of DiffAEConfig and TrainConfig. Steps are the
# official numbers of images over the batch.
OFFICIAL = {"optimizer": "adam", "clip": 1.0, "batch_size": 128}
PUBLISHED = {
    "celeba": {"image_size": 64, "num_channels": 64, "total_steps": 562_500, **OFFICIAL},
    "ffhq64": {"image_size": 64, "num_channels": 64, "total_steps": 562_500, **OFFICIAL},
    "ffhq": {"total_steps": 1_015_625, **OFFICIAL},
    "celebahq": {"total_steps": 1_015_625, **OFFICIAL},
    "horse": {"total_steps": 1_015_625, **OFFICIAL},
    "bedroom": {"total_steps": 937_500, **OFFICIAL},
    "ffhq256": {"image_size": 256, "total_steps": 3_125_000, **OFFICIAL, "batch_size": 64, "microbatch": 16},
    "toyfaces": {
        "image_size": 32, "num_channels": 16, "channel_mult": (1, 2, 4), "encoder_mult": (1, 2, 4, 8),
        "num_res_blocks": 1, "attention_sizes": (8,), "encoder_attention_sizes": (8,), "norm_groups": 4,
        "emb_channels": 64, "latent_dim": 64, "dropout": 0.0,
        **OFFICIAL, "total_steps": 1_300, "batch_size": 32, "lr": 1e-3, "ema_rule": "warmup",
        "log_interval": 25, "sample_interval": 250, "save_interval": 500, "save_interval_for_preemption": 100,
    },
    "sprites": {
        "image_size": 64, "num_channels": 16, "channel_mult": (1, 2, 4, 4), "encoder_mult": (1, 2, 4, 4, 8),
        "num_res_blocks": 1, "attention_sizes": (8,), "encoder_attention_sizes": (8,), "norm_groups": 4,
        "emb_channels": 64, "latent_dim": 10, "dropout": 0.0, "flip": False,
        **OFFICIAL, "total_steps": 20_000, "batch_size": 64, "lr": 1e-3, "ema_rule": "warmup",
        "sample_interval": 1_000, "save_interval": 5_000, "save_interval_for_preemption": 500,
    },
}  # fmt: skip
SIZES = by_size(
    tiny={"emb_channels": 64, **OFFICIAL, "batch_size": 16, "lr": 1e-3},
    small={"emb_channels": 128, **OFFICIAL, "batch_size": 64, "lr": 5e-4},
    base={"total_steps": 562_500, **OFFICIAL},
)
UNPUBLISHED = unpublished(PUBLISHED, SIZES)
PRESETS = {**PUBLISHED, **UNPUBLISHED}


def _without_code(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        row: {name: value for name, value in fields.items() if name != "latent_dim"} for row, fields in rows.items()
    }


class DDIM(DiffusionModel):
    """The baseline: the same diffusion and U-Net without a code. Its representation is a block of the network."""

    method = "ddim"
    Config = DDIMConfig
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = _without_code(PRESETS)
    SIZES: ClassVar[Mapping[str, Mapping[str, Any]]] = _without_code(SIZES)
    SIZED = tuple(UNPUBLISHED)
    SIZE_DEPENDENT = ("channel_mult", "encoder_mult")
    SAMPLING = SampleConfig("ddim", 100, grid="uniform")
    FEATURES = ("middle_block", 100)
    INVERTS = True

    def __init__(self, config: DDIMConfig) -> None:
        super().__init__(config)
        self.process, self.precond = Diffusion(LinearBeta()), Epsilon()
        self.unet = config.unet().to(memory_format=torch.channels_last)

    def condition(self, x0: Tensor | None = None, y: Tensor | None = None) -> Cond:
        return {}

    def network(self, x: Tensor, c_noise: Tensor, blocks: tuple[str, ...] | None = None) -> Any:
        return self.compute("unet", x, c_noise, blocks=blocks)

    @staticmethod
    def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("unet."): tensor for name, tensor in state.items()}

    @staticmethod
    def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"unet.{name}": tensor for name, tensor in state.items()}

    @classmethod
    def own_tensors(cls, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if name not in BESIDE}

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor], path: str, dataset: str | None, **fields: Any) -> DDIMConfig:
        return _official_config(cls, {"emb_channels": "time_embed.0.weight"}, state, path, dataset, fields)


class DiffAE(AutoEncoder):
    """Encoder, and a U-Net that predicts the noise given the code."""

    method = "diffae"
    Config = DiffAEConfig
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    SIZES = SIZES
    SIZED = tuple(UNPUBLISHED)
    SAMPLING = SampleConfig("ddim", 100, grid="uniform")
    OFFICIAL_SAMPLING = (SAMPLING, SampleConfig("ddim", 100, grid="uniform", xT="random"))
    FEW_STEPS = SampleConfig("dbim2", 10, grid="logsnr", xT="retraced")
    INVERTS = True

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__(config)
        self.process, self.precond = Diffusion(LinearBeta()), Epsilon()
        self.encoder = config.encoder(config.latent_dim).to(memory_format=torch.channels_last)
        self.unet = config.unet().to(memory_format=torch.channels_last)

    def condition(
        self, x0: Tensor | None = None, y: Tensor | None = None, z: Tensor | None = None, x_T: Tensor | None = None
    ) -> Cond:
        return {"z": self.encode(x0) if z is None else z}

    def network(self, x: Tensor, c_noise: Tensor, z: Tensor, blocks: tuple[str, ...] | None = None) -> Any:
        return self.compute("unet", x, c_noise, z, blocks=blocks)

    def start(self, z: Tensor, generator: Generators = None) -> Tensor:
        size = self.config.image_size
        return randn_like(z.new_empty(len(z), 3, size, size), generator)

    def infer_xT(self, x: Tensor, z: Tensor | None = None, generator: Generators = None, **settings: Any) -> Tensor:
        """The stochastic code: the inversion of x given z, or for ``xT="random"`` noise."""
        return self.invert(self.checked(x), self.condition(x, z=z), self.sampling(**settings), generator)

    def between(
        self, ends: Ends, z: Tensor, fractions: Tensor, generators: Sequence[Generators], **settings: Any
    ) -> Tensor:
        """On the arc between the two inversions."""
        x_T = (self.infer_xT(*end, each, **settings) for end, each in zip(ends, generators, strict=True))
        return slerp(*x_T, fractions)

    # Files: the official ones hold the U-Net's tensors at the top level

    @staticmethod
    def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace(TIME, OFFICIAL_TIME).removeprefix("unet."): tensor for name, tensor in state.items()}

    @staticmethod
    def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {n if n.startswith("encoder.") else f"unet.{n}": tensor for n, tensor in state.items()}
        return {name.replace(f"unet.{OFFICIAL_TIME}", TIME): tensor for name, tensor in own.items()}

    @classmethod
    def own_tensors(cls, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if not name.startswith(("latent_net.", *BESIDE))}

    @classmethod
    def official_config(
        cls, state: Mapping[str, Tensor], path: str, dataset: str | None, **fields: Any
    ) -> DiffAEConfig:
        widths = {"emb_channels": "time_embed.time_embed.0.weight", "latent_dim": "encoder.out.3.bias"}
        return _official_config(cls, widths, state, path, dataset, fields)


def _official_config(
    cls: type[DiffusionModel],
    widths: Mapping[str, str],
    state: Mapping[str, Tensor],
    path: str,
    dataset: str | None,
    fields: Mapping[str, Any],
) -> Any:
    """Fields of ``widths`` are the first dimensions of tensors; the image size is that of the previews' noise, if any.

    Otherwise it is typed, or that of the data set's preset: the networks do not tell it.
    """
    try:
        widths = {"num_channels": "input_blocks.0.0.weight", **widths}
        shapes = {field: state[name].shape[0] for field, name in widths.items()}
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: not a {cls.method} checkpoint ({error} is missing)") from None
    expected = preset(cls, cls.Config, dataset, {}).image_size if dataset else None
    size = state["x_T"].shape[-1] if "x_T" in state else fields.get("image_size") or expected
    if size is None:
        raise UserError(f"image_size: needed for {path}, which has no config.json beside it")
    if expected not in (None, size):
        raise UserError(f"{path}: made for {size}x{size} images, but {dataset} is {expected}x{expected}")
    return cls.Config(**{**fields, **shapes, "image_size": size})
