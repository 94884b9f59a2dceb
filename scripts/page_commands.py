"""Run the bash commands of README.md as printed, in order, in one fresh clone; a long check, by hand.

Left out, by rule: commands with a placeholder (a word in capitals, or one that names a file or data set that is not in
the clone), blocks after <!-- parsed only -->, and what installs, tests or serves. Those alone are parsed by
tests/test_page_commands.py. Nothing is installed: the clone's .venv takes the packages of the running interpreter.

example:
  python -m scripts.page_commands --clone /tmp/clone
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dbae.config import UserError, option
from scripts.cli import Parser, given, run

BLOCK = re.compile(r"(<!-- parsed only -->\n)?```bash\n(.*?)```", re.DOTALL)
PLACEHOLDER = re.compile(r"(?:[\w-]*=)?\[?[A-Z][A-Z_]+\]?")
DRAWN = ("toyfaces", "sprites")  # data sets that need no files
SETUP = ("pip", "source", "python3 -m venv", "bash test.sh", "python -m scripts.web")


@dataclass(frozen=True)
class Command:
    """A line of a page, without its comment."""

    text: str
    parsed_only: bool = False  # by the page's mark

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def setup(self) -> bool:
        """Whether it installs, tests or serves, and is no program with options."""
        return self.text.startswith(SETUP)

    def left_out(self, root: Path) -> str:
        """Why it cannot run in a clone at ``root``; empty where it can."""
        if self.setup or self.parsed_only:
            return "installs, tests or serves" if self.setup else "parsed only"
        for word in self.words:
            if PLACEHOLDER.fullmatch(word):
                return f"placeholder {word}"
        if re.search(r"/?train\w*\.sh|recon\w*\.sh", self.words[1]) and self.words[2] not in DRAWN:
            return f"needs the images of {self.words[2]}"
        for before, word in zip(["", *self.words], self.words, strict=False):
            path = word.partition("=")[2] if word.startswith("--") else word
            file = re.search(r"\.(pt|png|jpg|npz)$|^ckpt/.*\.pt", path)
            if file and before != "--out" and not (root / path).exists():
                return f"needs {path}"
            if path.startswith("ckpt/") and not (root / path.split("/sample_")[0].split(",")[0]).exists():
                return f"needs {path}"
        return ""


def commands(page: str) -> Iterator[Command]:
    """The commands in the bash blocks of a page, in order; continued lines are one."""
    for mark, block in BLOCK.findall(page):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            if line.strip() and not line.startswith("#"):
                yield Command(line.strip(), bool(mark))


@dataclass(frozen=True)
class PageOptions:
    """Which page, and where the clone is made."""

    page: str = option("README.md", "page of this repository whose commands are run")
    clone: str | None = option(None, "new folder for the clone")
    only: tuple[str, ...] = option((), "run only commands with one of these texts")
    timeout: int = option(3600, "seconds that a command may take")


def make_clone(folder: Path) -> None:
    """Clone what is committed, with a .venv of the running interpreter's packages.

    Raises UserError for a folder that is there.
    """
    if folder.exists():
        raise UserError(f"clone: expected a new folder, {folder} is there")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ".", str(folder)], check=True)
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "of_the_caller.pth").write_text(sysconfig.get_path("purelib") + "\n")
    requirements = "".join(path.read_text() for path in sorted(folder.glob("requirements*.txt")))
    (venv / "installed-requirements.txt").write_text(requirements)  # scripts/environment.sh then installs nothing


def main(args: list[str] | None = None) -> None:
    """Clone, run one after the other, report; status 1 where a command failed."""
    parser = Parser(__doc__)
    parser.add_config("page", PageOptions)
    options = PageOptions(**given(parser.parse_args(args), PageOptions))
    if not options.clone:
        raise UserError("clone: expected a new folder, got none")
    page = list(commands(Path(options.page).read_text()))
    root = Path(options.clone).resolve()
    make_clone(root)
    path = f"{root}/.venv/bin{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON"} | {"PATH": path, "NPROC": "1"}
    failed = 0
    for command in page:
        if options.only and not any(text in command.text for text in options.only):
            continue
        if why := command.left_out(root):
            print(f"left out  {command.text}  ({why})", flush=True)
            continue
        start, log = time.monotonic(), root / ".venv" / "command.log"
        with log.open("w") as out:
            how = {"cwd": root, "env": environment, "stdout": out, "stderr": out, "timeout": options.timeout}
            status = subprocess.run(["bash", "-c", command.text], check=False, **how).returncode
        print(f"{status:>8}  {command.text}  ({time.monotonic() - start:.0f} s)", flush=True)
        if status:
            failed += 1
            print(log.read_text()[-1000:], flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
