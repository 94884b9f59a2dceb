"""Settings that every method shares: how a model is trained and sampled, and how a setting becomes an option.

A setting is a field of a frozen dataclass, described once, here or beside its method; command-line options are made
from the fields.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, get_type_hints

from dbae.diffusion import DEFAULTS, GRIDS, SOLVERS, check_settings

OPTIMIZERS = ("radam", "adam", "adamw")
EMA_RULES = ("auto", "constant", "warmup", "inverse-power")
EMA_LENGTHS = 20  # of 1 / (1 - ema_rate) steps: then a constant rate leaves exp(-20) = 2e-9 of the random start
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
AUTOCAST = ("all", "unet")
MAX_STEPS = 100_000  # of a time grid; there are more times, but nobody waits for them
COMPILE = ("auto", "true", "false", "graphs")
COMPILE_FROM = 100_000  # network calls for one image: a minute's compilation, about 1 ms saved by each (not measured)


class UserError(ValueError):
    """Bad input: the message names what was wrong and what was expected. Programs print it and exit with status 2.

    It is one line: names may have control characters, which are escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """The text on one line: control characters, and bytes of a file name that are no text, as escapes like ``\\n``."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def option(default: Any, help: str, choices: tuple[str, ...] = (), alias: str = "") -> Any:
    """A field that is also a command-line option; ``alias`` is a second, official spelling of it."""
    return field(default=default, metadata={"help": help, "choices": choices, "alias": alias})


def require_positive(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number above 0."""
    if not 0 < value < inf:
        raise UserError(f"{name}: expected a number above 0, got {value}")


def require_from_zero(name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a finite number from 0."""
    if not 0 <= value < inf:
        raise UserError(f"{name}: expected a number from 0, got {value}")


def check_numbers(config: Any, positive: Iterable[str] = (), from_zero: Iterable[str] = ()) -> None:
    """Raise UserError unless these fields of a configuration are above 0, and those from 0, or None."""
    for names, check in ((positive, require_positive), (from_zero, require_from_zero)):
        for name in names:
            if (value := getattr(config, name)) is not None:
                check(name, value)


def check_choices(config: Any) -> None:
    """Raise UserError where a field of a configuration is none of its choices."""
    for each in dataclasses.fields(config):
        choices, value = each.metadata.get("choices"), getattr(config, each.name)
        if choices and value not in choices:
            raise UserError(f"{each.name}: expected one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class RuntimeConfig:
    """How a model computes."""

    precision: str = option(
        "auto",
        "auto: bf16, fp16 or fp32, the best the device has; tf32: float32 on a GPU's tensor cores; weights stay fp32",
        PRECISIONS,
    )
    autocast: str = option(
        "all",
        "networks in half precision: all but an endpoint decoder, or unet alone as in official DBAE",
        AUTOCAST,
        alias="half",
    )
    compile: str = option(
        "auto",
        "compile the networks, which takes a minute or more: true, false, graphs (CUDA graphs), or auto: on a GPU in "
        f"training, and in reconstruct, sample and encode from {COMPILE_FROM:,} network calls x images on each process",
        COMPILE,
    )


@dataclass(frozen=True)
class TrainConfig(RuntimeConfig):
    """How a model is trained. Raises UserError where the values do not fit together."""

    total_steps: int = option(1_020_000, "optimizer steps until the run ends")
    batch_size: int = option(256, "images per step over all processes (official DBAE: 64 on each of 4 GPUs)")
    microbatch: int = option(32, "images per forward and backward pass (gradient accumulation); -1: all at once")
    optimizer: str = option("radam", "optimizer, torch's own", OPTIMIZERS)
    lr: float = option(1e-4, "learning rate, constant after its warm-up")
    lr_warmup: int = option(0, "steps over which the learning rate grows linearly from 0; 0: none")
    weight_decay: float = option(0.0, "weight decay of the optimizer")
    clip: float = option(0.0, "clip the norm of the gradient over all parameters to this; 0: no clipping")
    ema_rate: float = option(0.9999, "rate of the exponential moving average of the parameters")
    ema_rule: str = option(
        "auto",
        "rate at step k: constant: ema_rate; warmup (EMA warm-up): min(ema_rate, (1 + k) / (10 + k)), for short runs; "
        "inverse-power: min(ema_rate, 1 - k^(-2/3)), as in DDAE; auto: constant where total_steps is at least "
        f"{EMA_LENGTHS} / (1 - ema_rate), which is 200,000 for 0.9999, else warmup",
        EMA_RULES,
    )
    flip: bool = option(True, "random horizontal flips")
    checkpointing: bool = option(
        False, "gradient checkpointing: recompute activations in the backward pass, less memory"
    )
    seed: int = option(0, "seed of weights, data order, noise and dropout")
    log_interval: int = option(100, "steps between rows of progress.csv")
    sample_interval: int = option(5_000, "steps between grids of sample pictures")
    save_interval: int = option(20_000, "steps between checkpoints that are kept")
    save_interval_for_preemption: int = option(
        1_000, "steps between rolling checkpoints (freq_*), of which only the two newest are kept"
    )
    max_bad_steps: int = option(
        100, "end the run after so many steps in a row with a loss or gradient that is not finite"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("total_steps", "batch_size", "lr", "log_interval", "sample_interval", "save_interval"):
            require_positive(name, getattr(self, name))
        for name in ("save_interval_for_preemption", "max_bad_steps"):
            require_positive(name, getattr(self, name))
        for name in ("lr_warmup", "weight_decay", "clip"):
            require_from_zero(name, getattr(self, name))
        if self.microbatch < 1 and self.microbatch != -1:
            raise UserError(f"microbatch: expected a number above 0, or -1 for all, got {self.microbatch}")
        if not 0 <= self.ema_rate < 1:
            raise UserError(f"ema_rate: expected a number in [0, 1), got {self.ema_rate}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed: expected a whole number from 0 and below 2^63, got {self.seed}")

    def resolved(self) -> "TrainConfig":
        """The same with the rule of the average that ``auto`` stands for at this number of steps."""
        if self.ema_rule != "auto":
            return self
        long = self.total_steps * (1 - self.ema_rate) >= EMA_LENGTHS * (1 - 1e-9)  # as 1 - 0.9999 is not exact
        return replace(self, ema_rule="constant" if long else "warmup")


@dataclass(frozen=True)
class SampleConfig:
    """How a model is sampled. Raises UserError for a value out of range, or one that the sampler does not read."""

    sampler: str = option("euler", "solver; for few steps ddim (the same as dbim), dbim2, dbim3, dbm2", tuple(SOLVERS))
    steps: int = option(100, "steps of the time grid; one-step takes one whatever is given")
    churn: float = option(
        DEFAULTS["churn"],
        "fraction of each step that is stochastic (SDE), in [0, 1); the rest follows the ODE (euler, heun)",
        (),
        "churn_step_ratio",
    )
    guidance: float = option(
        DEFAULTS["guidance"], "scale of Doob's h-term; 1: the model's own reverse process (euler, heun)"
    )
    rho: float = option(7.0, "exponent of the karras grid")
    grid: str = option(
        "karras", "time grid: karras, uniform in t, or uniform in the log of signal over noise", tuple(GRIDS)
    )
    eta: float = option(
        DEFAULTS["eta"], "stochasticity of DDIM and DBIM, or part of EDM's greatest churn, in [0, 1]; 0 draws no noise"
    )
    boot: bool = option(DEFAULTS["boot"], "booting noise: begin with a draw from the bridge, not at x_T (dbim*, dbm2)")
    xT: str = option(
        "inferred",
        "where a reconstruction starts: inferred from the image as officially; retraced: by an inversion along the "
        "sampler's own times, for few steps; or random",
        ("inferred", "retraced", "random"),
    )
    inversion_steps: int = option(
        0, "steps of the inversion that gives x_T, for methods that invert; 0: as many as --steps"
    )
    S_churn: float = option(DEFAULTS["S_churn"], "EDM's stochasticity; 0 draws no noise (edm)")
    S_min: float = option(DEFAULTS["S_min"], "noise level from which EDM's churn acts (edm)")
    S_max: float = option(DEFAULTS["S_max"], "noise level up to which EDM's churn acts (edm)")
    S_noise: float = option(DEFAULTS["S_noise"], "factor of EDM's churn noise (edm)")

    def __post_init__(self) -> None:
        check_choices(self)
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps: expected 1 to {MAX_STEPS}, got {self.steps}")
        require_positive("rho", self.rho)
        require_from_zero("inversion_steps", self.inversion_steps)
        try:
            check_settings(self.sampler, **self.solver_settings)
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def solver_settings(self) -> dict[str, Any]:
        """What ``dbae.diffusion.sample`` takes beside the sampler's name and the time grid."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def as_dict(self) -> dict[str, Any]:
        """What the result depends on, ready for JSON: sampler, grid, and the settings that the sampler reads."""
        names = ("sampler", "steps", "grid", "rho", "xT", "inversion_steps", *SOLVERS[self.sampler].reads)
        return {name: "inf" if getattr(self, name) == inf else getattr(self, name) for name in names}


def from_json(cls: type, values: Any, where: str) -> Any:
    """A configuration from parsed JSON. Raises UserError, naming ``where``, for unknown names or wrong types."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object of settings, got {type(values).__name__}")
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{where}: unknown setting {name!r}; is it of a newer version?")
        if not _has_type(value, hints[name]):
            raise UserError(f"{where}: {name}: expected {getattr(hints[name], '__name__', hints[name])}, got {value!r}")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _has_type(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint in (int, bool, str):
        return type(value) is hint
    return isinstance(value, list) and all(type(item) is int for item in value)
