"""All that is to be measured on one GPU, in half an hour: FOLDER/gpu.json, and FOLDER/gpu.md with its tables.

Every part is a process of its own with a limit of time. What it found before an error or the limit is kept, and the
next part goes on. Run the same command again for the parts that are not done.

examples:
  python -m benchmarks.gpu --out gpu
  python -m benchmarks.gpu --out gpu --parts training,sampling
  python -m benchmarks.gpu --out toy --device cpu --toy      that all parts run, with small networks: minutes on a CPU
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_checks, gpu_parts
from benchmarks.gpu_parts import Setup, Table
from benchmarks.timing import about, commit, markdown
from dbae.config import UserError, option
from dbae.io import atomic_write, read_json, write_json
from scripts.cli import options_of, run

ROOT = Path(__file__).resolve().parents[1]


class Part(NamedTuple):
    """What is measured, and the seconds that it may take: all together 30 minutes."""

    tables: Callable[[Setup], Iterator[list[Table]]]
    limit: int


PARTS = {
    "correctness": Part(gpu_checks.correctness, 240),
    "training": Part(gpu_parts.celeba, 480),
    "ffhq": Part(gpu_parts.ffhq, 360),
    "upsampling": Part(gpu_parts.upsampling, 120),
    "sampling": Part(gpu_parts.sampling, 300),
    "run": Part(gpu_checks.whole_run, 240),
    "ffhq256": Part(gpu_parts.ffhq256, 60),
}


@dataclass(frozen=True)
class GPUOptions:
    """What is measured, and where. Raises UserError for an unknown part."""

    out: str = option("", "folder to write to")
    parts: str = option(",".join(PARTS), "what to measure")
    device: str = option("cuda", "cuda, cuda:N or cpu")
    toy: bool = option(False, "small networks and few images")
    only: str = option("", "measure one part in this process, and write FOLDER/PART.json: what every part is run by")

    def __post_init__(self) -> None:
        if not self.out:
            raise UserError("out: expected a folder, got none")
        for name in [*self.parts.split(","), *filter(None, [self.only])]:
            if name not in PARTS:
                raise UserError(f"parts: expected some of {', '.join(PARTS)}, got {name!r}")


def measure_here(options: GPUOptions) -> None:
    """Measure the part ``only`` in this process; its file holds what is known after each of its steps."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {options.device!r} cannot be used here")
    facts = {"about": about(device), "commit": commit(), "toy": options.toy}
    folder = Path(options.out)
    for tables in PARTS[options.only].tables(Setup(options.device, options.toy, str(folder / options.only))):
        write_json(str(folder / f"{options.only}.json"), {**facts, "tables": tables})


def measure(options: GPUOptions, name: str) -> dict[str, Any]:
    """What the part found in a process of its own: its tables, ``seconds``, and ``error``, None where it is done."""
    folder, limit = Path(options.out).resolve(), PARTS[name].limit
    (folder / f"{name}.json").unlink(missing_ok=True)
    words = [f"--out={folder}", f"--device={options.device}", f"--toy={str(options.toy).lower()}", f"--only={name}"]
    begin = time.monotonic()
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            error = f"status {status}, see {name}.log" if (status := process.wait(limit)) else None
        except subprocess.TimeoutExpired:
            error = f"not done after {limit} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            process.wait()
    found = read_json(str(folder / f"{name}.json")) if (folder / f"{name}.json").exists() else {"tables": []}
    return {**found, "seconds": round(time.monotonic() - begin, 1), "error": error}


def page(parts: dict[str, Any]) -> str:
    """All tables in Markdown."""
    lines = ["# One GPU", ""]
    for name, part in parts.items():
        at = f"{part['about']}, at {part['commit']}" if "about" in part else "nothing measured"
        toy = "; small networks and few images, which say nothing of speed" * part.get("toy", False)
        error = f" **Not done: {part['error']}.**" if part["error"] else ""
        lines += [f"## {name}", "", f"{at}; {part['seconds']} s{toy}.{error}", ""]
        for table in part["tables"]:
            lines += [table["title"], "", markdown(table["rows"], table["columns"]), ""]
    return "\n".join(lines)


def main(args: list[str] | None = None) -> None:
    """Measure the parts that are not done, and write both files after each."""
    options = options_of(__doc__, "options", GPUOptions, args)
    if options.only:
        return measure_here(options)
    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, "gpu.json")
    parts = read_json(path)["parts"] if os.path.exists(path) else {}
    for name in options.parts.split(","):
        if name in parts and not parts[name]["error"]:
            print(f"{name}: done already")
            continue
        parts[name] = measure(options, name)
        write_json(path, {"parts": parts})
        with atomic_write(os.path.join(options.out, "gpu.md"), "w") as file:
            file.write(page(parts))
        print(f"{name}: {parts[name]['error'] or 'done'}, {parts[name]['seconds']} s", flush=True)
    if failed := [name for name in options.parts.split(",") if parts[name]["error"]]:
        raise SystemExit(f"not done: {', '.join(failed)}; the same command tries them again")
    return None


if __name__ == "__main__":
    run(main)
