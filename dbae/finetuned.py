"""Classifiers of images made of a DDAE: its network up to a block, the mean over positions, and a linear layer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dbae.checkpoint import read_weights
from dbae.config import UserError, from_json
from dbae.io import Generators, randn_like
from dbae.methods import DDAE, METHODS
from dbae.tensors import write_safetensors


class FineTuned(nn.Module):
    """Images [N, 3, H, W] in [-1, 1] -> logits [N, classes]."""

    def __init__(self, model: DDAE, block: str, time: float, noise: bool, classes: Sequence[str]) -> None:
        """``model`` is cut in place: what comes after the block is gone. Raises UserError for an unknown block.

        The network is told ``time``; images have its noise, or with ``noise`` false are scaled as under it.
        """
        super().__init__()
        model.check_blocks([block])
        model.unet.keep_until(block)
        self.encoder, self.block, self.noise, self.classes = model, block, noise, tuple(classes)
        self.register_buffer("time", torch.tensor(time), persistent=False)
        width = dict(model.unet.named_blocks())[block].res.conv2[-1].out_channels
        self.head = nn.Linear(width, len(self.classes))

    def forward(self, x: Tensor, generator: Generators = None) -> Tensor:
        noise = randn_like(x, generator) if self.noise else torch.zeros_like(x)
        return self.head(self.encoder.activations(x, self.time, [self.block], noise)[self.block])

    def param_groups(self, lr: float, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
        """The optimizer's groups: ``lr`` for the last layer, times ``layer_decay`` for every level below it.

        Levels are those of the U-Net. Biases and the gains of norms are not decayed.
        """
        levels = [*self.encoder.unet.levels(), [self.head]]
        groups = []
        for depth, modules in enumerate(reversed(levels)):
            parameters = [p for module in modules for p in module.parameters()]
            for decay, chosen in (
                (weight_decay, [p for p in parameters if p.ndim > 1]),
                (0.0, [p for p in parameters if p.ndim <= 1]),
            ):
                groups.append({"params": chosen, "lr": lr * layer_decay**depth, "weight_decay": decay})
        return groups


def save_finetuned(path: str, network: FineTuned, dataset: str) -> None:
    """Write a .safetensors file with the weights and, in its metadata, all that ``load_finetuned`` needs."""
    model = network.encoder
    about = {"block": network.block, "time": network.time.item(), "noise": network.noise, "classes": network.classes}
    content = {"method": model.method, "dataset": dataset, "model": dataclasses.asdict(model.config)}
    write_safetensors(path, network.state_dict(), content | {"classifier": about})


def load_finetuned(path: str, device: torch.device | str | None = None) -> FineTuned:
    """A classifier in evaluation mode; its ``classes`` are the names. Raises UserError for another file."""
    sets, content = read_weights(path)
    about = (content or {}).get("classifier")
    method = METHODS.get((content or {}).get("method", ""), object)
    if not isinstance(about, dict) or not issubclass(method, DDAE):
        raise UserError(f"{path}: expected a fine-tuned classifier, such as ddae/finetune.sh writes")
    try:
        model = method(from_json(method.Config, content["model"], f"the configuration of {path}"))
        network = FineTuned(model, **about)
        network.load_state_dict(sets[""])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit its configuration ({' '.join(str(error).split())[:200]})") from None
    return network.to(device or "cpu").eval()
