"""Checkpoint files: their names, their configuration, and ``load_model``.

A run folder holds sets of three files, ``model_{step}.pt``, ``ema_{rate}_{step}.pt`` and ``opt_{step}.pt``, the
newest rolling checkpoints under ``freq_``, and ``config.json``. Weight files are flat dictionaries of tensors under the
names of the method's official release; others are read where ``weight_sets`` finds such a dictionary in them. A
``.safetensors`` file holds the same tensors, and in its metadata what stands in ``config.json``.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import blobfile as bf
import torch
from torch import Tensor

from dbae.config import UserError, from_json
from dbae.io import listdir, read_json, require_finite, write_json
from dbae.methods import METHODS, DiffusionModel
from dbae.methods.base import BESIDE
from dbae.tensors import (
    SAFE,
    describe_foreign,
    read_head,
    read_metadata,
    read_safetensors,
    read_tensors,
    write_safetensors,
    write_tensors,
)

NAME = re.compile(r"(?P<prefix>freq_)?(?P<kind>model|opt|ema_(?P<rate>[0-9.eE+-]+))_(?P<step>\d+)\.pt")
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "model.")  # of wrapped modules: DistributedDataParallel, compile...

State = Mapping[str, Tensor]


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


def load_model(
    path: str | os.PathLike[str],
    method: str | None = None,
    dataset: str | None = None,
    device: torch.device | str | None = None,
    **fields: Any,
) -> DiffusionModel:
    """Load a model from a weight file, in evaluation mode; on the CPU unless ``device`` says otherwise.

    Its class and architecture come from ``config.json`` beside the file, or from within a ``.safetensors`` file. An
    official file has neither: then ``method`` (default: dbae) says which model in it is meant, ``fields`` of its Config
    what tensor shapes do not tell, and ``dataset`` is checked against them; DDAE is told by the name of an official
    configuration, or the path of its yaml file, in place of a data set. Whatever else is given must agree with the
    file's configuration, but for fields that may change in evaluation, such as DBAE's ``end_data``. Raises UserError
    for a contradiction, and for a file that is missing, damaged, foreign or not made of tensors alone.
    """
    path = os.fspath(path)
    sets, content = read_weights(path)
    content = content or read_config(bf.dirname(path))
    stated = (content or {}).get("method", "dbae" if content else None)
    for name in filter(None, (stated, method)):
        if name not in METHODS:
            raise UserError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    asked = METHODS[method or stated or "dbae"]
    cls = METHODS[stated] if stated else asked.variant(dataset)
    if not issubclass(cls, asked) or cls.variant(dataset) is not cls:
        raise UserError(f"method: {path} is of {cls.method}, got {asked.variant(dataset).method}")
    found, fields = cls.method, {name: value for name, value in fields.items() if value is not None}
    unknown = fields.keys() - {f.name for f in dataclasses.fields(cls.Config)}
    if unknown:
        raise UserError(f"{min(unknown)}: {found} has no such setting")

    def build(state: Mapping[str, Tensor]) -> DiffusionModel:
        if content:
            config = from_json(cls.Config, content["model"], f"the configuration of {path}")
        else:
            config = cls.official_config(state, path, dataset, **fields)
        for name in fields.keys() - set(cls.OVERRIDABLE):
            if fields[name] != getattr(config, name):
                raise UserError(f"{name}: {path} was trained with {getattr(config, name)}, got {fields[name]}")
        changed = {name: fields[name] for name in fields.keys() & set(cls.OVERRIDABLE)}
        model = cls(dataclasses.replace(config, **changed))
        if not content:  # what was typed is told apart by this alone
            model.unstated = {"method": found, "model": json.loads(json.dumps(dataclasses.asdict(model.config)))}
        _fill(model, state, path)
        return model

    return _only_one(sets, build, path).to(device or "cpu").eval()


def load_weights(model: DiffusionModel, path: str) -> None:
    """Load a weight file strictly. Raises UserError, with the first name that does not fit, for a foreign one."""
    _only_one(read_weights(path)[0], lambda state: _fill(model, state, path), path)


def save_weights(path: str, model: DiffusionModel, content: Mapping[str, Any] | None = None) -> str | None:
    """Write a model under official names, as .pt (returns its fingerprint) or, by its ending, as .safetensors.

    A .safetensors file takes ``content``, that of a ``config.json``, into its metadata; it needs the package.
    """
    state = model.to_official(model.state_dict())
    if not path.endswith(".safetensors"):
        return write_tensors(path, state)
    write_safetensors(path, state, content)
    return None


def read_weights(path: str) -> tuple[dict[str, State], dict[str, Any] | None]:
    """Sets of tensors on the CPU as ``weight_sets`` gives them, and the configuration where the file carries one.

    The content tells the format, not the name. Raises UserError for any other file.
    """
    head, named = read_head(path), path.endswith(".safetensors")
    safe = SAFE.match(head)
    if named and not safe and describe_foreign(head):
        raise UserError(f"{path}: refused: {describe_foreign(head)}; expected weights")
    safe = safe or (named and not head.startswith(b"PK"))
    content, config = (read_safetensors(path), _carried(path)) if safe else (read_tensors(path, mapped=True), None)
    sets = weight_sets(content)
    if not sets:
        foreign = next((n for n, v in content.items() if not (isinstance(n, str) and isinstance(v, Tensor))), None)
        hint = "the optimizer's file; give the ema_ or model_ file beside it" if "optimizer" in content else "foreign?"
        raise UserError(f"{path}: expected tensors by name; {foreign!r} holds none ({hint})")
    return sets, config


def weight_sets(content: Mapping[str, Any]) -> dict[str, State]:
    """Every set of tensors that may be a model's, by where it stands in what a file holds.

    That is the file itself or an entry like ``state_dict``, and of either the tensors below one of PREFIXES, which
    names then go without, with those of BESIDE. Where there is an average, ``ema_model.``, no live weights are taken.
    """
    entries = {"": content, **{f"{name}: ": value for name, value in content.items() if isinstance(value, Mapping)}}
    sets = {}
    for where, entry in entries.items():
        if entry and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entry.items()):
            sets[where] = dict(entry)
    todo = list(sets.items())
    while todo:
        where, state = todo.pop()
        for prefix in PREFIXES:
            below = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if below:
                sets[where + prefix] = below = below | {name: state[name] for name in BESIDE if name in state}
                todo.append((where + prefix, below))
    averages = {where: state for where, state in sets.items() if "ema_model." in where}
    return averages or sets


def read_codes(path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, latent] of a training set, and their mean and std [latent], in DiffAE's official ``latent.pkl``.

    They stay in the file until they are used. Raises UserError for another file.
    """
    content = read_tensors(path, mapped=True)
    found = [content.get(name) for name in ("conds", "conds_mean", "conds_std")]
    floats = all(isinstance(each, Tensor) and each.is_floating_point() for each in found)
    if not floats or found[0].ndim != 2 or any(each.numel() != found[0].shape[1] for each in found[1:]):
        raise UserError(f"{path}: expected codes, their mean and std, as in DiffAE's latent.pkl")
    return found[0], require_finite(path, found[1].flatten()), require_finite(path, found[2].flatten())


def config_content(model: DiffusionModel, dataset: str, **more: Any) -> dict[str, Any]:
    """What ``config.json`` holds: the method, the data set's name, and each configuration's fields."""
    settings = {name: dataclasses.asdict(config) for name, config in {"model": model.config, **more}.items()}
    return {"method": model.method, "dataset": dataset, **settings}


def write_config(run_dir: str, content: Mapping[str, Any]) -> None:
    """Write ``config.json``."""
    write_json(bf.join(run_dir, "config.json"), content)


def read_config(run_dir: str) -> dict[str, Any] | None:
    """``config.json`` of a run folder, or None where there is none. Raises UserError where it is not an object."""
    path = bf.join(run_dir, "config.json")
    if not bf.exists(path):
        return None
    return _checked(read_json(path), path)


def _checked(content: Any, where: str) -> dict[str, Any]:
    names = ("method", "dataset")
    if (
        not isinstance(content, dict)
        or "model" not in content
        or any(type(content.get(n, "")) is not str for n in names)
    ):
        raise UserError(f'{where}: expected an object with "method", "dataset" and "model"')
    return content


def _carried(path: str) -> dict[str, Any] | None:
    content = read_metadata(path)
    return None if content is None else _checked(content, path)


def stated_config(path: str) -> dict[str, Any] | None:
    """The configuration of a weight file: what a ``.safetensors`` carries, else ``config.json`` beside it.

    None where there is neither. No tensors are read, and the file need not be there. Raises UserError where it is
    damaged.
    """
    carries = bf.exists(path) and SAFE.match(read_head(path))
    return (_carried(path) if carries else None) or read_config(bf.dirname(path))


def _only_one(sets: Mapping[str, State], build: Callable[[State], Any], path: str) -> Any:
    """What ``build`` makes of the one set that it does not refuse. Raises UserError where there are none or several."""
    made, problem = {}, None
    for where, state in sets.items():
        try:
            made[where] = build(state)
        except UserError as error:
            problem = error
    if len(made) > 1:
        names = ", ".join(where.strip(": .") or "the file itself" for where in made)
        raise UserError(f"{path}: holds several sets of weights that fit ({names}); save the right one alone to a file")
    if problem and not made:
        raise problem
    return next(iter(made.values()))


def _fill(model: DiffusionModel, state: State, path: str) -> None:
    """Load tensors under official names. The model stays as it was where ``fitting`` refuses them."""
    own = model.to_official(model.state_dict())
    model.load_state_dict(model.from_official(fitting(own, model.own_tensors(state, path), path)))


def fitting(own: State, state: State, path: str) -> dict[str, Tensor]:
    """The tensors that stand in a file, in the precision of a network's ``own``, whose values do not matter.

    Raises UserError for what does not fit or is not finite.
    """
    wrong = [n for n in own.keys() & state.keys() if own[n].shape != state[n].shape]
    kinds = [n for n in own.keys() & state.keys() if not _readable(own[n], state[n])]
    for problem, names in (
        ("lacks", own.keys() - state.keys()),
        ("has unknown", state.keys() - own.keys()),
        ("has another shape for", wrong),
        ("has another kind of number for", kinds),
    ):
        if names:
            raise UserError(f"{path}: does not fit the model: it {problem} {len(names)} tensors, e.g. {min(names)!r}")
    state = {
        name: value.to(own[name].dtype) if own[name].is_floating_point() else value for name, value in state.items()
    }
    damaged = [name for name, value in state.items() if not value.isfinite().all()]
    if damaged:
        raise UserError(f"{path}: expected finite weights, {damaged[0]!r} holds NaN or infinity")
    return state


def _readable(own: Tensor, other: Tensor) -> bool:
    """Whether ``other`` has values that ``own`` can take: not sparse, quantised or complex, nor whole for floating."""
    plain = other.layout is torch.strided and not (other.is_quantized or other.is_meta or other.is_complex())
    return plain and (other.is_floating_point() or not own.is_floating_point())
