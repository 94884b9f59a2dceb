"""A model small enough to train in a test."""

import torch

from dbae.checkpoint import config_content, save_weights, write_config
from dbae.config import TrainConfig
from dbae.methods.dbae import DBAE, DBAEConfig

OPTIONS = {
    "image_size": 32,
    "num_channels": 32,
    "channel_mult": (1, 1),
    "encoder_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_sizes": (16,),
    "encoder_attention_sizes": (16,),
    "decoder_channels": 2,
    "latent_dim": 8,
    "dropout": 0.0,
}
SMALL = {  # of the sibling methods
    "image_size": 32, "num_channels": 8, "channel_mult": (1, 1), "encoder_mult": (1, 1), "num_res_blocks": 1,
    "attention_sizes": (16,), "encoder_attention_sizes": (16,), "norm_groups": 4, "emb_channels": 16, "dropout": 0.0,
}  # fmt: skip
FLAGS = [f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in OPTIONS.items()]


def config(**changes) -> DBAEConfig:
    return DBAEConfig(**{**OPTIONS, **changes})


def model(**changes) -> DBAE:
    """A tiny model in evaluation mode whose zero-initialised layers are filled, so that every part has an effect."""
    torch.manual_seed(0)
    made = DBAE(config(**changes))
    for parameter in made.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    with torch.no_grad():
        for _ in range(20):  # let spectral norms and running statistics settle
            made.decode(torch.randn(16, 8))
    return made.eval()


def images(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def written(folder, model, **training):
    """The averaged weights of a run folder with this model, whose zero-initialised layers are filled."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    write_config(str(folder), config_content(model, "toyfaces", train=TrainConfig(**training)))
    save_weights(str(folder / "ema_0.9999_000020.pt"), model)
    return folder / "ema_0.9999_000020.pt"
