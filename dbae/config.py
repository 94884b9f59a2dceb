"""Every hyperparameter: the frozen configurations, their defaults, and one row of presets per data set.

Command-line options are made from these fields (``scripts/cli.py``), so a field is described once, here.
"""

import dataclasses
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, get_type_hints


class UserError(ValueError):
    """Bad input: the message names what was wrong and what was expected. Scripts print it and exit with status 2."""


SCHEDULES = ("vp", "ve", "vp_simple", "ve_simple")
GRIDS = ("karras", "uniform", "logsnr")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
HALVES = {"all": ("encoder", "decoder", "unet"), "unet": ("unet",)}  # name -> networks in half precision
COMPILE = ("auto", "true", "false", "graphs")

# Each sampler with what it reads beside steps and the time grid. The rest must keep its neutral value.
SAMPLERS = {
    "euler": ("churn_step_ratio", "guidance"),
    "heun": ("churn_step_ratio", "guidance"),
    "dbim": ("eta", "boot"),
    "dbim2": ("boot",),
    "dbim3": ("boot",),
    "dbm2": ("boot",),
    "one-step": (),
}
NEUTRAL = {"churn_step_ratio": 0, "guidance": 1, "eta": 0, "boot": False}

# Channel multipliers by image size. 64, 128 and 256 are the published ones; 32 is ours.
UNET_MULT = {32: (1, 2, 4), 64: (1, 2, 4, 8), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
ENCODER_MULT = {32: (1, 2, 4, 4), 64: (1, 2, 4, 8, 8), 128: (1, 1, 2, 3, 4, 4), 256: (1, 1, 2, 2, 4, 4, 4)}


def option(default: Any, help: str, choices: tuple[str, ...] = (), alias: str = "") -> Any:
    """A field that is also a command-line option; ``alias`` is a second, official spelling of it."""
    return field(default=default, metadata={"help": help, "choices": choices, "alias": alias})


@dataclass(frozen=True)
class ModelConfig:
    """What is needed to rebuild a model around its weights. Raises UserError where the values do not fit together."""

    image_size: int = option(128, "height and width in pixels: 32, 64, 128 or 256")
    num_channels: int = option(128, "base width of the U-Net and the encoder, a multiple of norm_groups")
    channel_mult: tuple[int, ...] = option((), "U-Net width of each level over the base width (default: by image size)")
    encoder_mult: tuple[int, ...] = option((), "the same for the encoder (default: by image size)")
    num_res_blocks: int = option(2, "residual blocks per level")
    attention_sizes: tuple[int, ...] = option((32, 16, 8), "feature map sizes with attention in the U-Net")
    encoder_attention_sizes: tuple[int, ...] = option((16,), "the same for the encoder")
    norm_groups: int = option(32, "groups of every GroupNorm; 32 in all published models")
    head_channels: int = option(64, "channels of an attention head in the U-Net")
    decoder_channels: int = option(64, "base width of the endpoint decoder")
    latent_dim: int = option(512, "length of the code z")
    dropout: float = option(0.1, "dropout in the U-Net's residual blocks")
    stochastic: bool = option(False, "stochastic encoder (DBAE) instead of the deterministic one (DBAE-d)", alias="sto")
    schedule: str = option("vp", "noise schedule of the bridge", SCHEDULES, alias="pred_mode")
    sigma_data: float = option(0.5, "standard deviation of the images, for the preconditioning")
    end_data: float = option(0.5, "standard deviation of the endpoints, for the preconditioning")

    def __post_init__(self) -> None:
        if self.image_size not in UNET_MULT:
            raise UserError(f"image_size: expected 32, 64, 128 or 256, got {self.image_size}")
        if not self.channel_mult:
            object.__setattr__(self, "channel_mult", UNET_MULT[self.image_size])
        if not self.encoder_mult:
            object.__setattr__(self, "encoder_mult", ENCODER_MULT[self.image_size])
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        require_positive("norm_groups", self.norm_groups)
        if self.num_channels < 1 or self.num_channels % self.norm_groups:
            raise UserError(
                f"num_channels: expected a multiple of norm_groups {self.norm_groups}, got {self.num_channels}"
            )
        if self.decoder_channels < 2 or self.decoder_channels % 2:
            raise UserError(f"decoder_channels: expected an even number from 2, got {self.decoder_channels}")
        for name in ("num_res_blocks", "head_channels", "latent_dim", "sigma_data"):
            require_positive(name, getattr(self, name))
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: expected a number in [0, 1), got {self.dropout}")
        if not 0 <= self.end_data < float("inf"):
            raise UserError(f"end_data: expected a number from 0, got {self.end_data}")
        for name in ("channel_mult", "encoder_mult"):
            factors = getattr(self, name)
            if min(factors) < 1 or self.image_size >> (len(factors) - 1) < 2:
                raise UserError(f"{name}: expected positive factors that fit {self.image_size} px, got {factors}")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Raises UserError where the values do not fit together."""

    total_steps: int = option(1_020_000, "optimizer steps until the run ends")
    batch_size: int = option(256, "images per step over all processes (the official 64 x 4 GPUs)")
    microbatch: int = option(32, "images per forward pass, averaged over a step; -1: all at once")
    lr: float = option(1e-4, "learning rate of RAdam, constant")
    weight_decay: float = option(0.0, "weight decay of RAdam")
    ema_rate: float = option(0.9999, "rate of the exponential moving average of the parameters")
    ema_warmup: bool = option(False, "start the average at rate (1 + step) / (10 + step): for short runs")
    flip: bool = option(True, "random horizontal flips")
    precision: str = option("auto", "auto: bf16, fp16 or fp32, the best the device has; weights stay fp32", PRECISIONS)
    half: str = option(
        "all", "networks that half precision is for: all, or unet alone as in the official code", tuple(HALVES)
    )
    compile: str = option(
        "auto", "compile the networks: auto (on a GPU), true, false, or graphs (CUDA graphs)", COMPILE
    )
    checkpointing: bool = option(False, "keep fewer activations and compute them twice: less memory")
    seed: int = option(0, "seed of weights, data order, noise and dropout")
    log_interval: int = option(100, "steps between rows of progress.csv")
    sample_interval: int = option(5_000, "steps between grids of reconstructions")
    save_interval: int = option(20_000, "steps between checkpoints that are kept")
    save_interval_for_preemption: int = option(1_000, "steps between checkpoints of which the newest stay (freq_)")
    max_bad_steps: int = option(100, "steps in a row without a finite loss and gradient that end the run")

    def __post_init__(self) -> None:
        for name in ("total_steps", "batch_size", "lr", "log_interval", "sample_interval"):
            require_positive(name, getattr(self, name))
        for name in ("save_interval", "save_interval_for_preemption", "max_bad_steps"):
            require_positive(name, getattr(self, name))
        if self.microbatch < 1 and self.microbatch != -1:
            raise UserError(f"microbatch: expected a number above 0, or -1 for all, got {self.microbatch}")
        if not 0 <= self.ema_rate < 1:
            raise UserError(f"ema_rate: expected a number in [0, 1), got {self.ema_rate}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name, choices in (("half", HALVES), ("compile", COMPILE)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(f"weight_decay: expected a number from 0, got {self.weight_decay}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed: expected a whole number from 0 and below 2^63, got {self.seed}")


@dataclass(frozen=True)
class SampleConfig:
    """How a bridge is sampled. Raises UserError where a value is out of range."""

    sampler: str = option("euler", "euler, heun, or for few steps dbim, dbim2, dbim3, dbm2, one-step", tuple(SAMPLERS))
    steps: int = option(100, "steps of the time grid; one-step takes one whatever is given")
    churn_step_ratio: float = option(0.0, "part of each step taken by the SDE, in [0, 1); 0 is the ODE (euler, heun)")
    guidance: float = option(1.0, "factor of the bridge's h-term; 1 is the model (euler, heun)")
    rho: float = option(7.0, "curvature of the karras grid")
    grid: str = option("karras", "time grid: karras, uniform in t, or uniform in the log of signal over noise", GRIDS)
    eta: float = option(0.0, "part of the noise drawn anew in each step, in [0, 1]; 0 draws none (dbim)")
    boot: bool = option(False, "draw the first state from the bridge instead of starting at x_T (dbim*, dbm2)")

    def __post_init__(self) -> None:
        require_positive("steps", self.steps)
        require_positive("rho", self.rho)
        if not 0 <= self.churn_step_ratio < 1:
            raise UserError(f"churn_step_ratio: expected a number in [0, 1), got {self.churn_step_ratio}")
        if not isfinite(self.guidance):
            raise UserError(f"guidance: expected a finite number, got {self.guidance}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta: expected a number in [0, 1], got {self.eta}")
        if self.grid not in GRIDS:
            raise UserError(f"grid: expected one of {', '.join(GRIDS)}, got {self.grid!r}")
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        check_unread(self.sampler, **{name: getattr(self, name) for name in NEUTRAL})

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of ``DBAE.generate_from``."""
        values = dataclasses.asdict(self)
        return values | {"churn": values.pop("churn_step_ratio")}

    @property
    def label(self) -> str:
        """Name of a folder of results, as the official code has it; our own options are added where they are set."""
        label = f"{self.sampler}_{self.rho}_{self.steps}_w={self.guidance}_churn={self.churn_step_ratio}"
        for name in ("grid", "eta", "boot"):
            if getattr(self, name) != getattr(SampleConfig, name):
                label += f"_{name}={str(getattr(self, name)).lower()}"
        return label


def check_unread(sampler: str, **values: float) -> None:
    """Raise UserError where an option of NEUTRAL is set that the sampler does not read."""
    for name, value in values.items():
        if name not in SAMPLERS[sampler] and value != NEUTRAL[name]:
            raise UserError(f"{name}: expected {str(NEUTRAL[name]).lower()} for {sampler}, got {str(value).lower()}")


def require_positive(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number above 0."""
    if not 0 < value < float("inf"):
        raise UserError(f"{name}: expected a number above 0, got {value}")


# One row per data set: what differs from the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "ffhq": {"image_size": 128, "num_channels": 128},
    "ffhq256": {"image_size": 256, "num_channels": 128},
    "celeba": {"image_size": 64, "num_channels": 64},
    "celebahq": {"image_size": 128, "num_channels": 128},
    "bedroom": {"image_size": 128, "num_channels": 128},
    "horse": {"image_size": 128, "num_channels": 128},
    "folder": {"image_size": 64, "num_channels": 64},
    "toyfaces": {
        "image_size": 32, "num_channels": 16, "channel_mult": (1, 2, 4), "encoder_mult": (1, 2, 4, 8),
        "num_res_blocks": 1, "attention_sizes": (8,), "encoder_attention_sizes": (8,), "norm_groups": 4,
        "head_channels": 16, "decoder_channels": 8, "latent_dim": 64, "dropout": 0.0,
        "total_steps": 1_300, "batch_size": 32, "microbatch": 32, "lr": 3e-3, "ema_warmup": True,
        "log_interval": 25, "sample_interval": 250, "save_interval": 500, "save_interval_for_preemption": 100,
    },
}  # fmt: skip


def preset_name(dataset: str) -> str:
    """Row of PRESETS for a data set: its name, or ``folder`` for ``folder:PATH``. Raises UserError for others."""
    name = "folder" if dataset.startswith("folder:") else dataset
    if name not in PRESETS or dataset == "folder":
        known = ", ".join(row for row in PRESETS if row != "folder")
        raise UserError(f"dataset: expected one of {known} or folder:PATH, got {dataset!r}")
    return name


def preset(cls: type, dataset: str, overrides: dict[str, Any]) -> Any:
    """A ``cls`` (ModelConfig or TrainConfig) from a data set's row and the overrides, which win."""
    names = {f.name for f in dataclasses.fields(cls)}
    values = {**PRESETS[preset_name(dataset)], **overrides}
    if "image_size" in overrides and overrides["image_size"] != PRESETS[preset_name(dataset)]["image_size"]:
        for name in {"channel_mult", "encoder_mult"} - overrides.keys():
            values.pop(name, None)  # the row's multipliers belong to the row's size
    return cls(**{name: value for name, value in values.items() if name in names})


def from_json(cls: type, values: Any, where: str) -> Any:
    """A configuration from parsed JSON. Raises UserError, naming ``where``, for unknown names or wrong types."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object of settings, got {type(values).__name__}")
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{where}: unknown setting {name!r}")
        if not _has_type(value, hints[name]):
            raise UserError(f"{where}: {name}: expected {getattr(hints[name], '__name__', hints[name])}, got {value!r}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _has_type(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, list) and all(type(item) is int for item in value)
