"""Models as folders of three files, and such folders on the Hugging Face Hub.

A folder holds ``model.safetensors``, which carries its configuration, the same configuration as ``config.json``, and a
model card. Only the first two are downloaded, and nothing in them can be executed.
"""

import os
import re
import tempfile
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from dbae.checkpoint import config_content, load_model, read_config, save_weights, write_config
from dbae.config import UserError
from dbae.io import atomic_write
from dbae.methods import DiffusionModel

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TEMPLATE = """---
library_name: dbae
pipeline_tag: image-to-image
tags: [diffusion-autoencoder, representation-learning]
---

# {title}

{millions:.3g}M parameters, trained on {dataset}.

| setting | value |
|---|---|
{settings}

```python
from dbae.hub import from_pretrained

model = from_pretrained("OWNER/NAME")  # this repository, or a folder with its files
```

Weights inherit the terms of the data they were trained on: state them here before you publish.
"""


def save_pretrained(model: DiffusionModel, folder: str, dataset: str = "") -> None:
    """Write a model's folder; ``dataset`` names what it was trained on. A card that is there already is kept.

    Raises UserError without the package safetensors, and for the folder of a training run, whose config.json it needs.
    """
    if "train" in (read_config(folder) or {}):
        raise UserError(f"{folder}: expected another folder, this one is of a training run")
    content = config_content(model, dataset)
    save_weights(os.path.join(folder, WEIGHTS), model, content)
    write_config(folder, content)
    card = os.path.join(folder, CARD)
    if not os.path.exists(card):
        with atomic_write(card, "w") as file:
            file.write(model_card(model, dataset))


def from_pretrained(
    path_or_repo: str, revision: str | None = None, device: torch.device | str | None = None
) -> DiffusionModel:
    """The model in a folder that ``save_pretrained`` wrote, or in a repository OWNER/NAME of the Hub.

    It is in evaluation mode, on the CPU unless ``device`` says otherwise; ``revision`` is a branch, tag or commit of
    the repository. Raises UserError for what is neither, cannot be downloaded, or is no model.
    """
    if os.path.isdir(path_or_repo):
        path = os.path.join(path_or_repo, WEIGHTS)
        if not os.path.isfile(path):
            raise UserError(f"{path_or_repo}: expected a folder with {WEIGHTS}, as save_pretrained writes it")
        return load_model(path, device=device)
    hub = _client(path_or_repo)
    for name in (CONFIG, WEIGHTS):
        path = _ask(path_or_repo, lambda name=name: hub.hf_hub_download(path_or_repo, name, revision=revision))
    return load_model(path, device=device)


def push_to_hub(
    model: DiffusionModel, repo: str, dataset: str = "", private: bool = True, token: str | None = None
) -> str:
    """Upload a model's folder to the repository OWNER/NAME, which is made if need be; returns its address.

    ``token`` is one that may write (default: that of ``hf auth login``). Raises UserError where the Hub refuses.
    """
    api = _client(repo).HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, dataset)
        address = _ask(repo, lambda: api.create_repo(repo, private=private, exist_ok=True))
        _ask(repo, lambda: api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Weights"))
    return str(address)


def model_card(model: DiffusionModel, dataset: str = "") -> str:
    """A model card in Markdown: what the model is, and how to load it."""
    content = config_content(model, dataset)
    return TEMPLATE.format(
        title=type(model).__name__,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        dataset=dataset or "data that is not stated",
        settings="\n".join(f"| {name} | {value} |" for name, value in content["model"].items()),
    )


def _client(repo: str) -> ModuleType:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise UserError(f"{repo}: expected a folder, or a repository of the Hub like OWNER/NAME; neither is there")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the Hub needs the package huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


def _ask(repo: str, request: Callable[[], Any]) -> Any:
    """What the Hub answers. Raises UserError, with its reason in one line, where it does not."""
    try:
        return request()
    except Exception as error:  # the client, its HTTP library and the network each raise their own kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{repo}: the Hub does not answer as expected: {reason}") from None
