"""DDAE: a plain diffusion over images, whose denoising network is the encoder: features of a block of a noised image.

Xiang et al., Denoising Diffusion Autoencoders are Unified Self-supervised Learners, ICCV 2023. Two variants, in the
frameworks of DDPM (Ho et al., NeurIPS 2020) and EDM (Karras et al., NeurIPS 2022), with the same networks.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dbae.config import SampleConfig, UserError
from dbae.diffusion import VE, Diffusion, Epsilon, Karras, LinearBeta, Process, Update
from dbae.methods import ddae_config
from dbae.methods.augment import augment, draw_parameters
from dbae.methods.base import Cond, DiffusionModel
from dbae.methods.ddae_config import DDPMConfig, EDMConfig
from dbae.methods.presets import preset

CHAIN = 1000  # times of DDPM, from 1; 0 is the data
P_MEAN, P_STD = -1.2, 1.2  # of ln sigma in the training of EDM


class DDIMChain(LinearBeta):
    """The noise levels of official DDIM sampling: betas are spread over the times 0..1000, in training over 1..1000.

    So a time has a little more noise than it had in training, and 0, where the sampler ends, still has ``c = 0.01``.
    """

    def __init__(self) -> None:
        super().__init__(CHAIN, start=1)
        log_s = torch.log1p(-torch.linspace(1e-4, 0.02, CHAIN + 1, dtype=torch.float64, device="cpu")).cumsum(0) / 2
        self._set_table(torch.cat([log_s, log_s.new_tensor([-torch.inf])]))


class DDAE(DiffusionModel):
    """The DDPM variant. Times are those of the official code: 1 to 1000, told to the network as t / 1000."""

    method = "ddae"
    Config = DDPMConfig
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = ddae_config.PRESETS["DDPM"]
    ROWS = "config"
    CHECKED = ("image_size", "ddim_schedule", "feature_block", "feature_time")
    OVERRIDABLE = ("ddim_schedule", "feature_block", "feature_time")
    SAMPLING = SampleConfig("ddim", 100, grid="uniform")
    FEATURE_TIMES: ClassVar[tuple[float, ...]] = (1, 11, 21)

    def __init__(self, config: DDPMConfig | EDMConfig) -> None:
        super().__init__(config)
        self.process, self.precond = self._diffusion()
        self.unet = config.unet().to(memory_format=torch.channels_last)
        self.FEATURES = (config.feature_block, config.feature_time)

    def _diffusion(self) -> tuple[Process, Any]:
        self._ddim_process = Diffusion(DDIMChain())
        return Diffusion(LinearBeta(CHAIN, start=1)), Epsilon(time_scale=CHAIN)

    def condition(self, x0: Tensor | None = None, y: Tensor | None = None) -> Cond:
        """``y`` are labels of the augmentation pipe [N, 9], in training alone."""
        return {} if y is None else {"labels": y}

    def network(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, blocks: tuple[str, ...] | None = None
    ) -> Any:
        return self.compute("unet", x, c_noise, labels, blocks=blocks)

    def forward(self, x0: Tensor, y: Tensor | None = None) -> Tensor:
        """Training loss [N]: of augmented images, where the configuration says so."""
        if self.config.augment:
            x0, y = augment(x0, draw_parameters(len(x0)))
        return self.loss(x0, y)

    # Official sampling

    def sampling_process(self, sampling: SampleConfig) -> Process:
        official = sampling.sampler == "ddim" and self.config.ddim_schedule == "official"
        return self._ddim_process if official else self.process

    def updates(self, sampling: SampleConfig, invert: bool = False) -> list[Update]:
        """As for every method, but ``ddpm`` has the larger variance, and the last step of ``ddim`` draws nothing."""
        if sampling.sampler == "ddpm":
            sampling = dataclasses.replace(sampling, sampler="ddpm-large")
        updates = super().updates(sampling, invert)
        if sampling.sampler == "ddim":
            updates[-1] = updates[-1]._replace(k_eps=0.0)
        return updates

    # Presets and files

    @classmethod
    def variant(cls, row: str | None) -> type[DiffusionModel]:
        if ddae_config.is_yaml(row):
            kind = ddae_config.framework(ddae_config.read_yaml(row), row)
            return EDMDDAE if kind == "EDM" else DDAE
        return next((each for each in (DDAE, EDMDDAE) if row in each.PRESETS), cls)

    @classmethod
    def preset_row(cls, name: str, size: str | None = None) -> Mapping[str, Any]:
        """The row of a configuration: an official one, one of ours, or an official yaml file. There are no sizes."""
        if size is not None:
            raise UserError(f"preset: expected none with {cls.method}, whose --config says the size, got {size!r}")
        if ddae_config.is_yaml(name):
            return ddae_config.yaml_row(name)
        if name not in cls.PRESETS:
            known = ", ".join(row for rows in ddae_config.PRESETS.values() for row in rows)
            raise UserError(f"config: expected one of {known}, or the path of a yaml file, got {name!r}")
        return cls.PRESETS[name]

    @staticmethod
    def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("unet.", "nn_model.", 1): tensor for name, tensor in state.items()}

    @staticmethod
    def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.replace("nn_model.", "unet.", 1): tensor for name, tensor in state.items()}

    @classmethod
    def official_config(cls, state: Mapping[str, Tensor], path: str, dataset: str | None, **fields: Any) -> Any:
        """That of the row ``dataset``: tensors tell neither the framework nor the resolutions with attention."""
        if "nn_model.image_proj.weight" not in state:
            raise UserError(f"{path}: not a DDAE checkpoint ('nn_model.image_proj.weight' is missing)")
        if dataset is None:
            raise UserError(f"{path}: expected the configuration it was trained with, as dataset; the file has none")
        return preset(cls, cls.Config, dataset, fields)


class EDMDDAE(DDAE):
    """The EDM variant. Times are noise levels sigma, told to the network as ln(sigma) / 4."""

    method = "ddae_edm"
    Config = EDMConfig
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = ddae_config.PRESETS["EDM"]
    CHECKED = ("image_size", "feature_block", "feature_time")
    OVERRIDABLE = ("feature_block", "feature_time")
    FEATURE_TIMES = tuple(map(ddae_config.sigma_of_step, (3, 4, 5)))
    SAMPLING = SampleConfig("edm", ddae_config.EDM_STEPS, S_min=0.01, S_max=1.0, S_noise=1.007)

    def _diffusion(self) -> tuple[Process, Any]:
        return Diffusion(VE()), Karras(log_scale=0.25)

    def draw_times(self, n: int, device: torch.device) -> Tensor:
        return (P_MEAN + P_STD * torch.randn(n, device=device)).exp()

    def sampling_process(self, sampling: SampleConfig) -> Process:
        return self.process
