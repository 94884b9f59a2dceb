"""The latent prior: a diffusion over codes, from which an autoencoder generates (Preechakul et al., CVPR 2022)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dbae.config import SampleConfig, UserError, option, require_positive
from dbae.diffusion import ConstantBeta, Diffusion, Epsilon
from dbae.io import Generators, randn_like
from dbae.methods.base import Cond, DiffusionModel
from dbae.methods.presets import UNPUBLISHED, preset
from dbae.nn.mlp import SkipMLP


@dataclass(frozen=True)
class PriorConfig:
    """What is needed to rebuild a prior around its weights. Raises UserError for a value out of range."""

    latent_dim: int = option(512, "length of a code")
    layers: int = option(10, "layers of the MLP, 2 or more: 10 for faces, 20 for LSUN in the official configurations")
    width: int = option(2048, "width of the hidden layers")

    def __post_init__(self) -> None:
        for name in ("latent_dim", "width"):
            require_positive(name, getattr(self, name))
        if self.layers < 2:
            raise UserError(f"layers: expected 2 or more, got {self.layers}")

    @property
    def name(self) -> str:
        """``{latent}d_{layers}x{width}``."""
        return f"{self.latent_dim}d_{self.layers}x{self.width}"


STATISTICS = {"conds_mean": "mean", "conds_std": "std"}  # in official files, [1, latent], and here

# One row per data set of the autoencoder: what differs from the defaults of PriorConfig and TrainConfig. Steps are the
# official numbers of codes over the batch; where there is no official configuration, that of FFHQ stands in.
FACES = {"optimizer": "adamw", "weight_decay": 0.01, "clip": 1.0, "flip": False, "microbatch": -1}
DRAWN = {
    "layers": 6, "width": 512, "batch_size": 256, "total_steps": 6_000, "lr": 1e-3, "ema_rule": "warmup",
    "log_interval": 250, "sample_interval": 2_000, "save_interval": 2_000,
}  # fmt: skip
LSUN = {"optimizer": "adam", "clip": 1.0, "flip": False, "microbatch": -1, "batch_size": 2048, "layers": 20}


class LatentPrior(DiffusionModel):
    """An MLP that predicts the noise in normalised codes; ``mean`` and ``std`` [latent] are those of training codes."""

    method = "prior"
    Config = PriorConfig
    CHECKED = ()
    BOUNDED = False
    SAMPLING = SampleConfig("ddim", 100, grid="uniform")
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{name: {**FACES, "batch_size": 256, "total_steps": 394_531} for name in ("ffhq", "ffhq256")},
        **{name: {**FACES, "batch_size": 256, "total_steps": 394_531} for name in ("celebahq", *UNPUBLISHED)},
        "celeba": {**FACES, "batch_size": 512, "total_steps": 587_890},
        **{name: {**LSUN, "total_steps": 977_050} for name in ("horse", "bedroom")},
        **{name: {**FACES, **DRAWN} for name in ("toyfaces", "sprites")},
    }  # fmt: skip
    penalty = staticmethod(torch.abs)

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.process, self.precond = Diffusion(ConstantBeta()), Epsilon()
        self.latent_net = SkipMLP(config.latent_dim, config.width, config.layers)
        self.register_buffer("mean", torch.zeros(config.latent_dim))
        self.register_buffer("std", torch.ones(config.latent_dim))

    def fit_statistics(self, z: Tensor) -> None:
        """Take mean and unbiased standard deviation of the training codes [N, latent].

        Raises UserError for a number of the code that never changes, which normalisation would divide by 0.
        """
        self.mean.copy_(z.double().mean(dim=0))
        self.std.copy_(z.double().std(dim=0))
        dead = (self.std < 1e-6 * self.std.max().clamp(min=1e-30)).nonzero().flatten().tolist()
        if dead:
            raise UserError(f"codes: expected all numbers to vary, {len(dead)} are constant, the first is {dead[0]}")

    def prepare(self, batch: Tensor, flip: bool) -> Tensor:
        """Normalised codes from codes [N, latent]."""
        return (batch - self.mean) / self.std

    def condition(self, x0: Tensor | None = None, y: Tensor | None = None) -> Cond:
        return {}

    def network(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.compute("latent_net", x, c_noise)

    def decode(self, noise: Tensor, generator: Generators = None, **settings: Any) -> Tensor:
        """Codes [n, latent] of the autoencoder from ``noise`` like them; ``settings`` are fields of SampleConfig."""
        return self.sample(noise, {}, self.sampling(**settings), generator) * self.std + self.mean

    def generate(self, n: int, generator: Generators = None, **settings: Any) -> Tensor:
        """``n`` codes [n, latent] of the autoencoder; ``settings`` are fields of SampleConfig."""
        noise = randn_like(self.mean.new_empty(n, self.config.latent_dim), generator)
        return self.decode(noise, generator, **settings)

    # Files: the official ones hold the autoencoder as well, and the layers' scales under a second name

    @classmethod
    def own_tensors(cls, state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
        if not state.keys() >= STATISTICS.keys():
            return dict(state)
        own = {name: state[official].flatten() for official, name in STATISTICS.items()}
        for name in (name for name in state if name.startswith("latent_net.")):
            kept = name.replace(".cond_layers.1.", ".linear_emb.")
            if not torch.equal(own.setdefault(kept, state[name]), state[name]):
                raise UserError(f"{path}: expected equal tensors under {name!r} and {kept!r}, two names of one")
        return own

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor], path: str, dataset: str | None, **fields: Any) -> PriorConfig:
        layers = sum(re.fullmatch(r"latent_net\.layers\.\d+\.linear\.weight", name) is not None for name in state)
        first = state.get("latent_net.layers.0.linear.weight")
        if first is None or first.ndim != 2 or not state.keys() >= STATISTICS.keys():
            raise UserError(f"{path}: not an official file with a latent prior, and without a config.json beside it")
        config = PriorConfig(layers=layers, width=first.shape[0], latent_dim=first.shape[1])
        if dataset is not None and config != (expected := preset(cls, PriorConfig, dataset, {})):
            raise UserError(f"{path}: a prior {config.name}, but that of {dataset} is {expected.name}")
        return config
