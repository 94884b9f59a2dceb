"""Configurations of DDAE: options, presets, and the official yaml files read as such."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dbae.config import UserError, check_choices, option, require_positive
from dbae.diffusion import VE, Diffusion, time_grid
from dbae.methods.augment import LABELS
from dbae.nn.unet_ddpm import GROUPS, DDPMUNet

EDM_STEPS = 18  # of the grid by whose steps the official code names noise levels


def sigma_of_step(step: int) -> float:
    """Noise level of a step of EDM's grid of 18, counted from the data: 0 is 0, 1 is .002, 4 is .05995, 18 is 80."""
    if not 0 <= step <= EDM_STEPS:
        raise UserError(f"timestep: expected a step of EDM's grid, 0 to {EDM_STEPS}, got {step}")
    return time_grid(Diffusion(VE()), EDM_STEPS).flip(0)[step].item()


@dataclass(frozen=True)
class DDAEConfig:
    """What is needed to rebuild a model around its weights. Raises UserError where the values do not fit together."""

    image_size: int = option(32, "height and width in pixels")
    num_channels: int = option(128, f"width of the first level, a multiple of {GROUPS}")
    channel_mult: tuple[int, ...] = option((1, 2, 2, 2), "channel multipliers per resolution level")
    num_res_blocks: int = option(2, "residual blocks per level, one more on the way up")
    attention_sizes: tuple[int, ...] = option((16,), "resolutions with attention")
    head_channels: int = option(0, "channels of an attention head; 0: one head of all")
    residual_resampling: bool = option(False, "resample by residual blocks (DDPM++), or by convolutions (DDPM)")
    dropout: float = option(0.1, "dropout in the residual blocks")
    augment: bool = option(False, "train on images of EDM's augmentation pipe, of which the network is told")
    feature_block: str = option("out_6", "block whose features stand for an image")
    feature_time: float = option(0.0, "time at which they are taken")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("image_size", "num_channels", "num_res_blocks"):
            require_positive(name, getattr(self, name))
        levels = len(self.channel_mult)
        if not levels or any(factor < 1 for factor in self.channel_mult):
            raise UserError(f"channel_mult: expected numbers above 0, got {self.channel_mult}")
        if self.num_channels % GROUPS:
            raise UserError(f"num_channels: expected a multiple of {GROUPS}, got {self.num_channels}")
        if self.image_size % 2 ** (levels - 1):
            raise UserError(f"image_size: expected a multiple of {2 ** (levels - 1)}, got {self.image_size}")
        sizes = [self.image_size >> level for level in range(levels)]
        if not set(self.attention_sizes) <= set(sizes):
            raise UserError(f"attention_sizes: expected some of the resolutions {sizes}, got {self.attention_sizes}")
        attended = {f for f, size in zip(self.channel_mult, sizes, strict=True) if size in self.attention_sizes}
        for factor in attended | {self.channel_mult[-1]}:
            if self.head_channels < 0 or (self.head_channels and self.num_channels * factor % self.head_channels):
                width = self.num_channels * factor
                raise UserError(
                    f"head_channels: expected a divisor of {width}, or 0 for one head, got {self.head_channels}"
                )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: expected a number in [0, 1), got {self.dropout}")
        blocks = levels * (self.num_res_blocks + 1)
        if self.feature_block not in {f"out_{k}" for k in range(1, blocks + 1)}:
            raise UserError(f"feature_block: expected one of out_1 to out_{blocks}, got {self.feature_block!r}")
        self._check_time()

    def _check_time(self) -> None:
        if not 0 <= self.feature_time <= 80:
            raise UserError(f"feature_time: expected a noise level from 0 to 80, got {self.feature_time}")

    def unet(self) -> DDPMUNet:
        return DDPMUNet(
            self.image_size, self.num_channels, self.channel_mult, self.num_res_blocks, self.attention_sizes,
            self.head_channels, self.dropout, self.residual_resampling, LABELS if self.augment else 0,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """``{size}_{channels}``; runs are rather named by their configuration."""
        return f"{self.image_size}_{self.num_channels}"


@dataclass(frozen=True)
class DDPMConfig(DDAEConfig):
    """The same for the DDPM variant."""

    feature_time: float = option(11, "time at which they are taken, 1 to 1000")
    ddim_schedule: str = option(
        "official",
        "noise levels of DDIM: official, which spreads the betas over one time more, or those of training",
        ("official", "train"),
    )

    def _check_time(self) -> None:
        if self.feature_time not in range(1, 1001):
            raise UserError(f"feature_time: expected a whole number from 1 to 1000, got {self.feature_time}")


@dataclass(frozen=True)
class EDMConfig(DDAEConfig):
    """The same for the EDM variant."""

    feature_block: str = option("out_7", "block whose features stand for an image")
    feature_time: float = option(sigma_of_step(4), "noise level at which they are taken (default: step 4 of 18)")


# One row per configuration: its data set, and what differs from the defaults of its Config and TrainConfig. Batch and
# learning rate are those of all processes together of the official runs: of 4 (EDM_ddpmpp_aug: 8) processes with 128
# images (ddpmpp: 64) and 1e-4 each. Steps are epochs of 50,000 images in such batches.
OFFICIAL = {"dataset": "cifar10", "optimizer": "adam", "clip": 1.0, "ema_rule": "inverse-power", "microbatch": 128}
DDPMPP = {"channel_mult": (2, 2, 2), "num_res_blocks": 4, "residual_resampling": True}
EDM = {"dropout": 0.13, "ema_rate": 0.9993}
BATCH_512 = {"batch_size": 512, "lr": 4e-4, "save_interval": 9_800, "sample_interval": 9_800}  # of 100 epochs
BATCH_256 = {"batch_size": 256, "lr": 4e-4, "save_interval": 19_600, "sample_interval": 19_600}
SMALL = {  # 1.11 million parameters, for CPUs
    **OFFICIAL, "num_channels": 32, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "dropout": 0.0,
    "feature_block": "out_3", "batch_size": 64, "lr": 1e-3, "lr_warmup": 200, "total_steps": 4_700,
    "log_interval": 50, "sample_interval": 500, "save_interval": 1_000, "save_interval_for_preemption": 250,
}  # fmt: skip
TOY = {"dataset": "toyfaces", "batch_size": 32, "total_steps": 1_300, "lr_warmup": 100, "sample_interval": 250}
PRESETS = {
    "DDPM": {
        "DDPM_ddpm": {**OFFICIAL, **BATCH_512, "total_steps": 196_000, "lr_warmup": 1_274},
        "DDPM_ddpmpp": {**OFFICIAL, **DDPMPP, **BATCH_256, "total_steps": 392_000, "lr_warmup": 2_548},
        "DDPM_small": SMALL,
        "DDPM_toyfaces": {**SMALL, **TOY},
    },
    "EDM": {
        "EDM_ddpm": {**OFFICIAL, **EDM, **BATCH_512, "total_steps": 196_000, "lr_warmup": 19_600},
        "EDM_ddpmpp": {**OFFICIAL, **EDM, **DDPMPP, **BATCH_256, "total_steps": 392_000, "lr_warmup": 39_200},
        "EDM_ddpmpp_aug": {
            **OFFICIAL, **EDM, **DDPMPP, **BATCH_512, "lr": 8e-4, "total_steps": 392_000, "lr_warmup": 19_600,
            "augment": True,
        },
        "EDM_small": SMALL,
        "EDM_toyfaces": {**SMALL, **TOY},
    },
}  # fmt: skip

# Official yaml files
DATASETS = {"cifar": ("cifar10", 50_000), "cifar100": ("cifar100", 50_000), "tiny": ("tiny", 100_000)}
FIXED = {  # of diffusions: what this repository has, under every spelling that is compared without case
    "n_t": 1000, "betas": [1e-4, 0.02], "beta1": 1e-4, "betat": 0.02, "sigma_data": 0.5, "p_std": 1.2, "p_mean": -1.2,
}  # fmt: skip
ELSEWHERE = ("save_dir", "load_epoch", "model_type", "n_sample", "DDPM", "EDM", "linear")  # read by name, or not needed


def is_yaml(name: str | None) -> bool:
    """Whether a configuration's name is the path of a yaml file."""
    return bool(name) and name.endswith((".yaml", ".yml"))


def read_yaml(path: str) -> dict[str, Any]:
    """What a yaml file holds, by a loader that makes nothing but plain values. Raises UserError for another file."""
    try:
        import yaml
    except ImportError:
        raise UserError(f"{path}: yaml files need the package pyyaml: pip install pyyaml") from None
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a yaml file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("network"), dict):
        raise UserError(f"{path}: expected a configuration of DDAE, with `network:`")
    return content


def framework(content: Mapping[str, Any], path: str) -> str:
    """DDPM or EDM: by ``model_type``, the entry of that name, or the name of the run or the file."""
    said = str(content.get("model_type", "")).upper()
    named = [name for name in PRESETS if name in content] or [
        name for name in PRESETS if name in str(content.get("save_dir", "")) or name in path.rpartition("/")[2]
    ]
    found = [said] if said else named
    if len(found) != 1 or found[0] not in PRESETS:
        raise UserError(f"{path}: expected a configuration of DDPM or of EDM, got {' and '.join(found) or 'neither'}")
    return found[0]


def yaml_row(path: str) -> dict[str, Any]:
    """A row of presets from an official yaml file. Raises UserError for a network or diffusion that there is none of.

    Its batch and learning rate are of one process: like the published runs, this takes 4 of them, and 8 with
    augmentation.
    """
    content = read_yaml(path)
    kind = framework(content, path)
    try:
        return _row(content, kind, path)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path}: {error} is missing") from None
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: a setting is of another kind than expected ({error})") from None


def _row(content: dict[str, Any], kind: str, path: str) -> dict[str, Any]:
    network, rest = dict(content["network"]), {k: v for k, v in content.items() if k != "network"}
    channels, *sides = network.pop("image_shape")
    if channels != 3 or len(set(sides)) != 1 or len(sides) != 2:
        raise UserError(f"{path}: image_shape: expected 3 channels of a square, got {[channels, *sides]}")
    labels = network.pop("augment_dim", 0) or 0
    if labels not in (0, LABELS):
        raise UserError(f"{path}: augment_dim: expected 0 or {LABELS}, got {labels}")
    attended = network.pop("is_attn")
    row = {
        "image_size": int(sides[0]),
        "num_channels": int(network.pop("n_channels")),
        "channel_mult": tuple(map(int, network.pop("ch_mults"))),
        "attention_sizes": tuple(int(sides[0]) >> level for level, yes in enumerate(attended) if yes),
        "head_channels": int(network.pop("attn_channels_per_head", None) or 0),
        "num_res_blocks": int(network.pop("n_blocks")),
        "residual_resampling": bool(network.pop("use_res_for_updown")),
        "dropout": float(network.pop("dropout")),
        "augment": labels > 0,
    }
    if len(attended) != len(row["channel_mult"]):
        raise UserError(f"{path}: is_attn: expected one value for each of ch_mults, got {len(attended)}")

    # Training
    name = rest.pop("dataset")
    if name not in DATASETS:
        raise UserError(f"{path}: dataset: expected one of {', '.join(DATASETS)}, got {name!r}")
    dataset, images = DATASETS[name]
    world = 8 if row["augment"] else 4
    batch = world * int(rest.pop("batch_size"))
    epoch = math.ceil(images / batch)  # steps
    rate = next((rest.pop(key) for key in ("lrate", "lr") if key in rest), 1e-4)
    optimizer, more = str(rest.pop("optim", "Adam")).lower(), dict(rest.pop("optim_args", None) or {})
    row |= {
        **OFFICIAL, "dataset": dataset, "batch_size": batch, "lr": world * float(rate), "optimizer": optimizer,
        "total_steps": int(rest.pop("n_epoch")) * epoch, "lr_warmup": int(rest.pop("warm_epoch", 0)) * epoch,
        "ema_rate": float(rest.pop("ema")), "flip": bool(rest.pop("flip", True)),
        "weight_decay": float(more.pop("weight_decay", 0.01 if optimizer == "adamw" else 0.0)),
        "save_interval": 100 * epoch, "sample_interval": 100 * epoch,
    }  # fmt: skip

    # The probe's setting, and what must be as it is here
    linear = rest.get("linear") or {}
    if "blockname" in linear:
        row["feature_block"] = str(linear["blockname"])
    if "timestep" in linear:
        row["feature_time"] = sigma_of_step(int(linear["timestep"])) if kind == "EDM" else int(linear["timestep"])
    diffusion = {**(rest.get(kind) or {}), **{k: v for k, v in rest.items() if k.lower() in FIXED}}
    for key, value in diffusion.items():
        fixed = FIXED.get(key.lower())
        if fixed is not None and [float(v) for v in _listed(value)] != [float(v) for v in _listed(fixed)]:
            raise UserError(f"{path}: {key}: expected {fixed}, got {value}")
    if unknown := [*network, *more]:
        raise UserError(f"{path}: unknown setting {unknown[0]!r}")
    others = [*(key for key in rest if key not in ELSEWHERE), *(rest.get(kind) or {})]
    if ignored := [str(key) for key in others if str(key).lower() not in FIXED]:
        _warn_once(f"{path}: settings that are not known here, and not used: {', '.join(ignored)}")
    return row


@lru_cache
def _warn_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
