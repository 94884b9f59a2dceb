"""Convert a weight file to .safetensors, which carries its configuration, or back to .pt and config.json.

examples:
  python -m scripts.convert --model_path ckpt/ffhq/det/ema_0.9999_1020000.pt --schedule vp --out ffhq.safetensors
  python -m scripts.convert --model_path ffhq.safetensors --out ckpt/again/ema_0.9999_1020000.pt

The tensors keep their names and values, which are those of the released files. A released file has no config.json, so
its --schedule is needed; the rest is read from the tensors.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbae.config import SCHEDULES, UserError, option
from scripts.cli import Parser, given, run

if TYPE_CHECKING:
    from dbae.methods.dbae import DBAE

OTHER = {".pt": ".safetensors", ".safetensors": ".pt"}


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert. Raises UserError for names of the wrong kind."""

    model_path: str = option("", "weight file to read: .pt or .safetensors", alias="model")
    out: str = option("", "file to write: .safetensors or .pt")
    schedule: str | None = option(None, "noise schedule, for a released file", SCHEDULES)
    dataset: str | None = option(None, "data set that a released file was trained on (checked against its size)")
    overwrite: bool = option(False, "replace files that are there already")

    def __post_init__(self) -> None:
        kind = next((ending for ending in OTHER if self.model_path.endswith(ending)), None)
        if kind is None:
            raise UserError(f"model_path: expected a weight file .pt or .safetensors, got {self.model_path!r}")
        if not self.out.endswith(OTHER[kind]):
            raise UserError(f"out: expected a name that ends in {OTHER[kind]} for a {kind} file, got {self.out!r}")


def check_free(options: ConvertOptions, paths: list[str]) -> None:
    """Raise UserError where something would be replaced that may not be."""
    import blobfile as bf

    for path in paths:
        if bf.exists(path) and not options.overwrite:
            raise UserError(f"out: {path} is there already; give --overwrite true to replace it, or another name")


def content_of(options: ConvertOptions, model: "DBAE") -> dict[str, Any]:
    """The configuration with all that stands in it, or a new one for a released file."""
    import blobfile as bf

    from dbae.checkpoint import read_config
    from dbae.safetensors_file import read_content

    carried = read_content(options.model_path) if options.model_path.endswith(".safetensors") else None
    found = carried or read_config(bf.dirname(options.model_path))
    return found or {"dataset": options.dataset or "", "model": dataclasses.asdict(model.config)}


def main() -> None:
    """Parse, load, which checks everything, and write."""
    parser = Parser(__doc__)
    parser.add_config("conversion", ConvertOptions)
    options = ConvertOptions(**given(parser.parse_args(), ConvertOptions))

    import blobfile as bf

    from dbae.checkpoint import load_model, to_released_names, write_tensors
    from dbae.io import atomic_write
    from dbae.safetensors_file import write_safetensors

    config_path = bf.join(bf.dirname(options.out), "config.json")
    check_free(options, [options.out] + [config_path] * options.out.endswith(".pt"))
    model = load_model(options.model_path, options.dataset, options.schedule)
    state, content = to_released_names(model.state_dict()), content_of(options, model)
    if options.out.endswith(".safetensors"):
        write_safetensors(options.out, state, content)
    else:
        write_tensors(options.out, state)
        with atomic_write(config_path, "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
    print(f"wrote {len(state)} tensors and their configuration to {options.out}")


if __name__ == "__main__":
    run(main)
