"""Checkpoint files: their names, safe reading and writing, and ``load_model``.

A run folder holds sets of three files, ``model_{step}.pt``, ``ema_{rate}_{step}.pt`` and ``opt_{step}.pt``, the newest
preemption set under ``freq_``, and ``config.json``. Weight files are flat dictionaries of tensors with the names of the
released ones: ``encoder.*``, ``decoder.*``, and everything else is the U-Net. They are read with ``weights_only=True``.
"""

import dataclasses
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import blobfile as bf
import torch
from torch import Tensor

from dbae.config import ModelConfig, UserError, from_json, preset
from dbae.io import atomic_write, listdir
from dbae.methods.dbae import DBAE
from dbae.safetensors_file import read_safetensors

NAME = re.compile(r"(?P<prefix>freq_)?(?P<kind>model|opt|ema_(?P<rate>[0-9.eE+-]+))_(?P<step>\d+)\.pt")


def step_of(path: str) -> int:
    """Training step in a checkpoint's file name, of any length. Raises UserError for another kind of name."""
    match = NAME.fullmatch(bf.basename(path))
    if not match:
        raise UserError(f"model_path: expected a name like ema_0.9999_1020000.pt or model_000500.pt, got {path!r}")
    return int(match["step"])


def set_names(step: int, ema_rate: float, prefix: str = "") -> dict[str, str]:
    """File names of the set of ``step``: kind (model, ema, opt) -> name. ``prefix`` is "" or "freq_"."""
    kinds = {"model": "model", "ema": f"ema_{ema_rate}", "opt": "opt"}
    return {kind: f"{prefix}{stem}_{step:06d}.pt" for kind, stem in kinds.items()}


def complete_sets(run_dir: str, ema_rate: float) -> list[tuple[int, str]]:
    """(step, prefix) of every complete set in a run folder, oldest first; at equal steps the kept set comes last."""
    names = set(listdir(run_dir))
    found = {(int(m["step"]), m["prefix"] or "") for m in map(NAME.fullmatch, names) if m}
    return sorted(
        (entry for entry in found if names.issuperset(set_names(entry[0], ema_rate, entry[1]).values())),
        key=lambda entry: (entry[0], entry[1] == ""),
    )


def write_tensors(path: str, content: Mapping[str, Any]) -> str:
    """Write a dictionary of tensors and plain values, and return the file's ``fingerprint``.

    Tensors are written contiguous and each on its own. The file appears under its name only when it is complete. Raises
    OSError where it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(_apart(content), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]


def _apart(content: Any) -> Any:
    """The same with every tensor a contiguous one on the CPU, which shares its memory with no other."""
    if isinstance(content, Mapping):
        return {name: _apart(value) for name, value in content.items()}
    if isinstance(content, Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    return content


def read_tensors(path: str) -> dict[str, Any]:
    """Read a dictionary written by ``torch.save`` without executing anything in it.

    Raises UserError for a file that is missing, damaged (a single wrong bit suffices) or holds something else.
    """
    try:
        with bf.BlobFile(path, "rb") as file:
            wrong = _damaged_part(file)
            file.seek(0)
            content = None if wrong else torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, bf.Error):
        raise UserError(f"model_path: no such file: {path}") from None
    except Exception as error:  # torch raises a dozen kinds for damaged or hostile files
        code = "GLOBAL" in str(error)
        reason = "it holds more than tensors, and nothing in a file is executed" if code else "damaged or no torch file"
        raise UserError(f"{path}: refused: {reason}; expected tensors written by torch.save") from None
    if wrong:
        raise UserError(f"{path}: refused: damaged: the checksum of its part {wrong} is wrong")
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return content


def fingerprint(path: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file: which weights something was computed with."""
    digest = hashlib.sha256()
    with bf.BlobFile(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def to_released_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the released names: the U-Net's tensors stand at the top level."""
    return {name.removeprefix("unet."): tensor for name, tensor in state.items()}


def from_released_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``to_released_names``."""
    return {n if n.startswith(("encoder.", "decoder.")) else f"unet.{n}": tensor for n, tensor in state.items()}


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Load a weight file strictly. Raises UserError, with the first name that does not fit, for a foreign one."""
    _fill(model, _weights(path), path)


def load_model(
    path: str,
    dataset: str | None = None,
    schedule: str | None = None,
    stochastic: bool | None = None,
    end_data: float | None = None,
    device: torch.device | str | None = None,
) -> DBAE:
    """Load a model from a weight file, in evaluation mode; on the CPU unless ``device`` says otherwise.

    The architecture comes from ``config.json`` beside the file, or from within a ``.safetensors`` file. A released file
    has none: then ``schedule`` is needed, and the rest is read from tensor shapes. Whatever else is given is checked
    against that, and a contradiction raises UserError, as does a file that is missing, damaged, foreign or not made of
    tensors alone. ``end_data`` overrides the endpoint's standard deviation in the preconditioning (0.5; the official
    sampling scripts used 0).
    """
    state, config = read_safetensors(path) if path.endswith(".safetensors") else (_weights(path), None)
    config = config or _config_beside(path) or _released_config(state, path, dataset, schedule)
    for name, given in (("schedule", schedule), ("stochastic", stochastic)):
        if given is not None and given != getattr(config, name):
            raise UserError(f"{name}: {path} was trained with {getattr(config, name)}, got {given}")
    if end_data is not None:
        config = dataclasses.replace(config, end_data=float(end_data))
    model = DBAE(config)
    _fill(model, state, path)
    return model.to(device or "cpu").eval()


def write_config(run_dir: str, dataset: str, **configs: Any) -> None:
    """Write ``config.json``: the data set's name and each configuration's fields."""
    content = {"dataset": dataset} | {name: dataclasses.asdict(config) for name, config in configs.items()}
    with atomic_write(bf.join(run_dir, "config.json"), "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")


def read_config(run_dir: str) -> dict[str, Any] | None:
    """``config.json`` of a run folder, or None where there is none. Raises UserError where it is not an object."""
    path = bf.join(run_dir, "config.json")
    if not bf.exists(path):
        return None
    try:
        with bf.BlobFile(path, "r") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f'{path}: expected an object with "dataset", "model" and "train"')
    return content


def _damaged_part(file: IO[bytes]) -> str | None:
    """The first part of a torch file whose CRC-32 does not agree; torch writes these checksums and never reads them.

    The old format has none, and in files whose writer left them out all are 0.
    """
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        return archive.testzip() if any(part.CRC for part in archive.infolist()) else None


def _config_beside(path: str) -> ModelConfig | None:
    folder = bf.dirname(path)
    content = read_config(folder)
    return content and from_json(ModelConfig, content["model"], bf.join(folder, "config.json"))


def _weights(path: str) -> dict[str, Tensor]:
    state = read_tensors(path)
    foreign = next((n for n, v in state.items() if not (isinstance(n, str) and isinstance(v, Tensor))), None)
    if foreign is not None or not state:
        raise UserError(f"{path}: expected tensors by name; {foreign!r} holds none (an optimizer or foreign file?)")
    return state


def _released_config(state: dict[str, Tensor], path: str, dataset: str | None, schedule: str | None) -> ModelConfig:
    """Configuration of a bare file: what the shapes tell, the published architecture for the rest."""
    if schedule is None:
        raise UserError(f"schedule: needed for {path}, which has no config.json beside it")
    size = next((int(m[1]) for m in (re.fullmatch(r"decoder\.to_(\d+)\.weight_orig", n) for n in state) if m), None)
    try:
        latent_dim = state["label_emb.weight"].shape[1]
        shapes = {
            "image_size": size,
            "num_channels": state["input_blocks.0.0.weight"].shape[0],
            "decoder_channels": state["decoder.init.init.0.weight_orig"].shape[1] // 32,
            "latent_dim": latent_dim,
            "stochastic": state["encoder.out.3.bias"].shape[0] == 2 * latent_dim,
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: not a DBAE checkpoint ({error} is missing)") from None
    if size is None:
        raise UserError(f"{path}: not a DBAE checkpoint (it has no endpoint decoder)")
    if dataset is not None and (expected := preset(ModelConfig, dataset, {}).image_size) != size:
        raise UserError(f"{path}: made for {size}x{size} images, but {dataset} is {expected}x{expected}")
    return ModelConfig(schedule=schedule, **shapes)


def _fill(model: torch.nn.Module, state: dict[str, Tensor], path: str) -> None:
    own = to_released_names(model.state_dict())
    wrong = [n for n in own.keys() & state.keys() if own[n].shape != state[n].shape]
    for problem, names in (
        ("lacks", own.keys() - state.keys()),
        ("has unknown", state.keys() - own.keys()),
        ("has another shape for", wrong),
    ):
        if names:
            raise UserError(f"{path}: does not fit the model: it {problem} {len(names)} tensors, e.g. {min(names)!r}")
    model.load_state_dict(from_released_names(state))
