"""What the programs of the DiT probe share: networks from weight files, and the folder of codes between them.

The folder has the official code's names: ``train_code_0.npy`` to ``train_code_9.npy`` and ``test_code_0.npy`` (float32
[N, C, h, w]), ``train_label.npy`` and ``test_label.npy`` (int64 [N]); beside them we keep ``latents.json``.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.base import digest_of
from dbae.checkpoint import State, fitting, read_weights
from dbae.config import UserError
from dbae.io import read_json
from dbae.nn.dit import DiT
from dbae.nn.vae import VAEEncoder, encoder_state

REPORT = "latents.json"  # what the codes were made from, and the names of the classes
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the published DiTs, by width
SPLITS = ("train", "test")


# Networks


def read_state(path: str, option: str, what: str, names: Sequence[str]) -> State:
    """The one set of tensors in a file that has the ``names`` of ``what`` is expected. UserError for another file."""
    if not os.path.exists(path):
        raise UserError(f"{option}: no such file: {path}")
    sets = read_weights(path)[0]
    found = {where: state for where, state in sets.items() if all(name in state for name in names)}
    if not found:
        missing = next((name for name in names if all(name not in state for state in sets.values())), names[0])
        raise UserError(f"{option}: {path} is not {what} ({missing!r} is missing)")
    if len(found) > 1:
        several = ", ".join(where.strip(": .") or "the file itself" for where in found)
        raise UserError(
            f"{option}: {path} holds several sets of weights that fit ({several}); save the right one alone"
        )
    return next(iter(found.values()))


def load_vae(path: str) -> VAEEncoder:
    """The encoder of an autoencoder's file in the format of ``diffusers``, whatever its widths, in evaluation mode."""
    names = ("encoder.conv_in.weight", "quant_conv.weight", "encoder.conv_out.weight")
    state = encoder_state(read_state(path, "vae_path", "the autoencoder of Stable Diffusion", names))
    convolution = re.compile(r"encoder\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    widths = {int(m[1]): len(value) for name, value in state.items() if (m := convolution.fullmatch(name))}
    if sorted(widths) != list(range(len(widths))) or any(width % 32 for width in widths.values()) or not widths:
        raise UserError(f"vae_path: {path}: expected down_blocks.0, 1, ... of widths divisible by 32")
    with torch.device("meta"):
        net = VAEEncoder(len(state["quant_conv.weight"]) // 2, [widths[level] for level in range(len(widths))])
    net.load_state_dict(fitting(net.state_dict(), state, path), assign=True)
    return net.requires_grad_(False).eval()


def load_dit(path: str, heads: int = 0) -> DiT:
    """A DiT in evaluation mode, with the depth, width, patches and size that its tensors tell.

    ``heads`` of its attention they do not tell; 0: as published for that width. Tensors of a .pt file stay in it until
    they are used.
    """
    names = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight", "blocks.0.attn.qkv.weight")
    state = read_state(path, "dit_path", "a DiT", names)
    patches, positions, classes = (state[name].shape for name in names[:3])
    if (len(patches), len(positions), len(classes)) != (4, 3, 2) or isqrt(positions[1]) ** 2 != positions[1]:
        shapes = ", ".join(str(list(state[name].shape)) for name in names[:3])
        raise UserError(f"dit_path: {path}: expected a DiT with a square grid of patches, got {shapes}")
    width = patches[0]
    heads = heads or HEADS.get(width, 0)
    if not heads:
        raise UserError(f"heads: expected the number of attention heads, which a width of {width} does not tell")
    if width % heads or width % 4:
        raise UserError(f"heads: expected a number that divides the width of {width}, got {heads}")
    numbers = [int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name)]
    with torch.device("meta"):
        size = isqrt(positions[1]) * patches[2]
        net = DiT(size, patches[2], patches[1], width, max(numbers) + 1, heads, classes[0] - 1)
    net.load_state_dict(fitting(net.state_dict(), state, path), assign=True)
    return net.requires_grad_(False).eval()


def precision_name(asked: str, dtype: torch.dtype | None) -> str:
    """How results note the precision of a network that computes in ``dtype`` (None: float32, or TF32 if asked)."""
    return asked if asked == "tf32" else str(dtype or torch.float32).removeprefix("torch.")


# Codes


@dataclass(frozen=True)
class Codes:
    """Codes of the images of a split, of which there may be several copies; they stay in their files."""

    copies: Sequence[np.ndarray]  # each float32 [N, C, h, w]

    def __len__(self) -> int:
        return len(self.copies[0])

    def rows(self, numbers: list[int], device: torch.device, training: bool) -> Tensor:
        """Codes [n, C, h, w] of some images; for ``training`` each from any of the copies, else from the first."""
        chosen = torch.randint(len(self.copies), (len(numbers),)).tolist() if training else [0] * len(numbers)
        shape = (len(numbers), *self.copies[0].shape[1:])
        x = torch.empty(shape, pin_memory=device.type == "cuda")
        for row, copy, number in zip(x.numpy(), chosen, numbers, strict=True):
            row[:] = self.copies[copy][number]
        return x.to(device, non_blocking=True)


@dataclass(frozen=True)
class CodeFolder:
    """All that a folder of codes holds, of train and test."""

    codes: dict[str, Codes]
    classes: dict[str, Tensor]  # int64 [N]
    names: tuple[str, ...]  # of the classes
    made_from: dict[str, Any] | None  # None: not stated, as in the official code's folders
    digest: str  # of files and contents


def folder_of(root: str, dataset: str) -> str:
    """Where the codes of a data set are: of ``folder:PATH`` under the name of that folder."""
    kind, _, path = dataset.partition(":")
    return os.path.join(root, os.path.basename(os.path.abspath(path)) if kind == "folder" else dataset)


def code_file(folder: str, split: str, copy: int = 0) -> str:
    return os.path.join(folder, f"{split}_code_{copy}.npy")


def label_file(folder: str, split: str) -> str:
    return os.path.join(folder, f"{split}_label.npy")


def read_folder(folder: str, copies: int = 0) -> CodeFolder:
    """Codes of ``copies`` of the training images (0: all that are there without a gap), and labels.

    Raises UserError for what is missing, damaged, or does not fit together.
    """
    there = next(k for k in range(10**6) if not os.path.exists(code_file(folder, "train", k)))
    if not there or there < copies:
        wanted = code_file(folder, "train", there)
        raise UserError(f"codes: no such file: {wanted}; `bash ddae/dit_latents.sh DATASET VAE_PATH` writes it")
    paths = {"train": [code_file(folder, "train", k) for k in range(copies or there)]}
    paths["test"] = [code_file(folder, "test")]
    codes = {split: Codes([_array(path, "float32", 4) for path in paths[split]]) for split in SPLITS}
    classes = {split: _array(label_file(folder, split), "int64", 1) for split in SPLITS}
    shape = codes["train"].copies[0].shape
    for split in SPLITS:
        for path, array in zip(paths[split], codes[split].copies, strict=True):
            expected = (len(classes[split]), *shape[1:])
            if array.shape != expected:
                raise UserError(f"codes: {path}: expected {list(expected)} as elsewhere, got {list(array.shape)}")

    report = os.path.join(folder, REPORT)
    about = read_json(report) if os.path.exists(report) else {}
    last = max(int(values.max()) for values in classes.values())
    names = tuple(map(str, about.get("classes", range(last + 1))))
    if min(int(values.min()) for values in classes.values()) < 0 or last >= len(names):
        raise UserError(f"codes: {folder}: expected labels from 0 and below {len(names)}, got others")
    # Labels and the names of classes first: of many large files the contents of the first alone count
    files = [label_file(folder, split) for split in SPLITS] + [path for split in SPLITS for path in paths[split]]
    digest = digest_of([*map(os.path.basename, files), *names], files)
    tensors = {split: torch.from_numpy(np.array(values)) for split, values in classes.items()}
    return CodeFolder(codes, tensors, names, about.get("made_from"), digest)


def _array(path: str, dtype: str, dims: int) -> np.ndarray:
    """An array that stays in its file. Raises UserError for another one than expected."""
    if not os.path.exists(path):
        raise UserError(f"codes: no such file: {path}; `bash ddae/dit_latents.sh DATASET VAE_PATH` writes it")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"codes: {path}: damaged, or not an array ({' '.join(str(error).split())})") from None
    if array.dtype != dtype or array.ndim != dims or not array.size:
        expected = f"{dtype} of {dims} dimension{'s' * (dims > 1)}"
        raise UserError(f"codes: {path}: expected {expected}, got {array.dtype} {list(array.shape)}")
    return array
