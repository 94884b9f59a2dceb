"""Every command that README.md prints has options that parse, and placeholders that are known."""

import importlib
import re
import subprocess

import pytest
from conftest import ROOT

from scripts.cli import Parser
from scripts.page_commands import Command, commands

CKPT = "ckpt/toyfaces/det/ema_0.9999_016000.pt"
STOCHASTIC = "ckpt/toyfaces/sto/ema_0.9999_014000.pt"
VALUES = {
    **{"DATASET": "toyfaces", "SCHEDULE": "vp", "STO": "false", "MODEL_PATH": CKPT, "CKPT": CKPT, "[CKPT]": CKPT},
    **{"CHURN_STEP_RATIO": "0.33", "GUIDANCE": "1", "SPLIT": "test", "RHO": "7", "GEN_SAMPLER": "euler", "N": "20"},
    **{"NUM": "4", "T": "10", "DIR": "assets", "FILE": "features.pth", "folder:my_photos": "folder:assets"},
}
README = list(commands((ROOT / "README.md").read_text()))


class Parsed(Exception):
    """Raised in place of a program's work, once its options have been read."""


def fill(command):
    """The words with a value for every placeholder; where STO is true, the model is a stochastic one."""
    words, stochastic = [], "true" in command.words
    for word in command.words:
        name, equals, value = word.rpartition("=")
        value = VALUES.get(value, value)
        words.append(name + equals + (STOCHASTIC if stochastic and value == CKPT else value))
    return words


@pytest.fixture(scope="module")
def handed_on(tmp_path_factory):
    """Words that a launcher hands on to Python, by what was typed."""
    python = tmp_path_factory.mktemp("bin") / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def call(words):
        env = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "NPROC": "1"}
        done = subprocess.run(["bash", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return call


def parse(words, program, monkeypatch):
    """Let a Python program read its words, and print its settings where it has --dry_run."""
    module = importlib.import_module(words[1] if words[0] == "-m" else words[0].removesuffix(".py"))
    words = words[2:] if words[0] == "-m" else words[1:]
    result = program(module, *words, "--dry_run")
    if result[0] == 2 and "unrecognized arguments: --dry_run" in result[2]:
        read = Parser.parse_args

        def read_only(self, *args):
            read(self, *args)
            raise Parsed

        monkeypatch.setattr(Parser, "parse_args", read_only)
        with pytest.raises(Parsed):
            program(module, *words)
    else:
        assert result[0] == 0, result[2]


@pytest.mark.parametrize("command", [c for c in README if not c.setup], ids=lambda c: c.text[:70])
def test_options_parse(command, handed_on, program, monkeypatch):
    words = fill(command)
    if words[:2] == ["bash", "demo.sh"]:  # it knows one option, and tells by a look at it
        assert words[2:] in ([], ["--pretrained"])
        return
    assert words[0] in ("bash", "python", "python3"), "expected a launcher or a Python program"
    parse(handed_on(words[1:]) if words[0] == "bash" else words[1:], program, monkeypatch)


def test_a_wrong_option_is_noticed(program, monkeypatch):
    for text in ("python -m scripts.nearest --sample_pth DIR", "python -m scripts.walk --model_path CKPT --steps many"):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            parse(fill(Command(text))[1:], program, monkeypatch)


def test_what_is_left_out_of_a_run():
    def why(text, **mark):
        return Command(text, **mark).left_out(ROOT)

    assert "DATASET" in why("bash train_dbae.sh DATASET vp true") and "DIR" in why("python x.py --sample_path=DIR")
    assert "images of ffhq" in why("bash train_dbae.sh ffhq vp true")
    assert "me.jpg" in why(f"python -m scripts.edit encode --model {CKPT} --images me.jpg")
    assert "installs" in why("pip install -r requirements.txt") and why("bash demo.sh", parsed_only=True)
    shipped = f"bash recon_dbae.sh toyfaces vp {CKPT} 0.0 1 test 7 euler 3 false"
    assert why("bash demo.sh --pretrained") == "" and why(shipped) == ""


def test_blocks_are_read_as_printed():
    page = "```bash\na \\\n  b  # c\n\n# d\n```\n```python\ne\n```\n<!-- parsed only -->\n```bash\nf\n```\n"
    assert [(c.words, c.parsed_only) for c in commands(page)] == [(["a", "b"], False), (["f"], True)]


def test_the_first_commands_run():
    can = [command.text for command in README if not command.left_out(ROOT)]
    assert any(text.startswith("bash demo.sh --pretrained") for text in can)
    assert sum(bool(re.search("recon_dbae.sh|sample_dbae.sh|scripts.edit", text)) for text in can) >= 3
