"""Command lines made from the configuration's fields, and one way to end with an error."""

import argparse
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

from dbae.config import UserError, printable

SWITCH_HELP = "true|false: true or false, for which yes or no, 1 or 0 may stand; the option alone is true."
SWITCHES = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
# Kinds of options: how their text is read, what is expected of it, and what stands for it in --help
KINDS = {
    int: (int, "a whole number", "N"),
    float: (float, "a number", "X"),
    bool: (lambda text: SWITCHES[text.lower()], "true or false (or yes, no, 1, 0)", "true|false"),
    str: (str, "text", "TEXT"),
    tuple[str, ...]: (str, "text", "TEXT"),
    tuple[int, ...]: (lambda text: tuple(map(int, text.split(","))), "whole numbers like 1,2,4", "N,N,..."),
    tuple[float, ...]: (lambda text: tuple(map(float, text.split(","))), "numbers like -0.3,0,0.3", "X,X,..."),
}


class Parser(argparse.ArgumentParser):
    """Options as ``--flag value`` or ``--flag=value``, with ``_`` or ``-``; an error is one line and status 2.

    ``~`` at the start of a value, and in ``folder:~/images``, is the home folder.
    """

    def __init__(self, description: str, epilog: str = "") -> None:
        super().__init__(
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )

    def error(self, message: str) -> Any:
        """End with status 2 and the message."""
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")

    def parse_args(self, args: list[str] | None = None, namespace: Any = None) -> Any:
        """Parse with dashes in option names read as underscores, ~ expanded, and -0.3,0.3 taken for a value."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if words and re.match(r"-\.?\d", word) and words[-1].startswith("--") and "=" not in words[-1]:
                words[-1] += f"={word}"
            else:
                words.append(_normalised(word))
        return super().parse_args(words, namespace)

    def add_config(self, title: str, cls: type, only: tuple[str, ...] = (), defaults: Any = None) -> None:
        """One option per field of a configuration class (or of ``only`` these), in a titled group.

        ``defaults`` is an instance whose values are shown in place of the class's.
        """
        group = self.add_argument_group(title)
        for name, hint in get_type_hints(cls).items():
            if only and name not in only:
                continue
            field = cls.__dataclass_fields__[name]
            about = field.metadata
            names = [f"--{name}"] + [f"--{about['alias']}"] * bool(about["alias"])
            default = getattr(defaults, name, field.default)
            shown = "" if default in ((), None, "") else f" (default: {_shown(default)})"
            # T | None is read as T
            convert, expected, metavar = next(KINDS[each] for each in (hint, *get_args(hint)) if each in KINDS)
            kind: dict[str, Any] = {"type": _reader(convert, expected), "metavar": metavar}
            if about["choices"]:
                kind = {"choices": about["choices"]}
            switch = bool in (hint, *get_args(hint))
            if switch and SWITCH_HELP not in self.epilog:
                self.epilog = f"{self.epilog} {SWITCH_HELP}".strip()
            if switch or "true" in about["choices"]:
                kind |= {"nargs": "?", "const": True if switch else "true"}
            if hint == tuple[str, ...]:
                kind |= {"nargs": "+"}
            group.add_argument(*names, dest=name, help=(about["help"] + shown).replace("%", "%%"), **kind)


def given(namespace: argparse.Namespace, cls: type, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of ``cls`` (or ``only`` these of them) that were typed."""
    names = only or tuple(f.name for f in dataclasses.fields(cls))
    return {name: getattr(namespace, name) for name in names if hasattr(namespace, name)}


def options_of(doc: str, title: str, cls: type, args: list[str] | None = None) -> Any:
    """Options of a program that has no others than the fields of ``cls``."""
    parser = Parser(doc)
    parser.add_config(title, cls)
    return cls(**given(parser.parse_args(args), cls))


def print_options(options: Any, **more: Any) -> None:
    """Print resolved options as JSON: what a dry run does."""
    print(json.dumps(dataclasses.asdict(options) | more, indent=2))


def peek(args: list[str] | None, name: str, default: str = "", known: Iterable[str] = ()) -> str:
    """The value of ``--name`` among the arguments, read before the options that depend on it are known.

    Raises UserError for one that is not ``known``, where that names any.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=default, nargs="?", const="")
    words = map(_normalised, sys.argv[1:] if args is None else args)
    value = getattr(parser.parse_known_args(list(words))[0], name)
    if known and value not in known:
        raise UserError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``; a UserError, or a path or disk that fails, becomes one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be Unicode
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _normalised(word: str) -> str:
    """A word of the command line with underscores in an option's name, and the home folder in place of ~."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    folder = "folder:" if value.startswith("folder:") else ""
    value = folder + os.path.expanduser(value.removeprefix(folder))
    return name.replace("-", "_").replace("__", "--", 1) + equals + value


def _reader(convert: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return convert(text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None

    return read


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
