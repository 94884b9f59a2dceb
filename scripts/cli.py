"""Command lines made from the configuration's fields, and one way to end with an error."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

from dbae.config import UserError

SWITCHES = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


class Parser(argparse.ArgumentParser):
    """Options as ``--flag value`` or ``--flag=value``, with ``_`` or ``-``; an error is one line and status 2."""

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
        """Parse with dashes in option names read as underscores, and values like -0.3,0.3 read as values."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if words and re.match(r"-\.?\d", word) and words[-1].startswith("--") and "=" not in words[-1]:
                words[-1] += f"={word}"
            else:
                words.append(_underscored(word))
        return super().parse_args(words, namespace)

    def add_config(self, title: str, cls: type, only: tuple[str, ...] = ()) -> None:
        """One option per field of a configuration class (or of ``only`` these), in a titled group."""
        group = self.add_argument_group(title)
        for name, hint in get_type_hints(cls).items():
            if only and name not in only:
                continue
            field = cls.__dataclass_fields__[name]
            about = field.metadata
            names = [f"--{name}"] + [f"--{about['alias']}"] * bool(about["alias"])
            shown = "" if field.default in ((), None, "") else f" (default: {_shown(field.default)})"
            kind: dict[str, Any] = {"type": _reader(hint), "metavar": _metavar(hint)}
            if about["choices"]:
                kind = {"choices": about["choices"]}
            if hint is bool or "true" in about["choices"]:
                kind |= {"nargs": "?", "const": True if hint is bool else "true"}
            if hint == tuple[str, ...]:
                kind |= {"nargs": "+"}
            group.add_argument(*names, dest=name, help=(about["help"] + shown).replace("%", "%%"), **kind)


def given(namespace: argparse.Namespace, cls: type, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of ``cls`` (or ``only`` these of them) that were typed."""
    names = only or tuple(f.name for f in dataclasses.fields(cls))
    return {name: getattr(namespace, name) for name in names if hasattr(namespace, name)}


def peek(args: list[str] | None, name: str, known: Iterable[str], default: str) -> str:
    """The value of ``--name`` among the arguments, read before the options that depend on it are known.

    Raises UserError for one that is not ``known``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=default)
    value = getattr(parser.parse_known_args(args)[0], name)
    if value not in known:
        raise UserError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return value


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``; a UserError, or a path or disk that fails, becomes one line and exit status 2."""
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def _switch(text: str) -> bool:
    try:
        return SWITCHES[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}") from None


def _number(kind: type, wanted: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None

    return read


def _numbers(kind: type, wanted: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None

    return read


def _plain(hint: Any) -> Any:
    """``int | None`` -> ``int``."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and type(None) in get_args(hint) else hint


def _reader(hint: Any) -> Callable[[str], Any]:
    readers = {
        int: _number(int, "a whole number"),
        float: _number(float, "a number"),
        bool: _switch,
        str: str,
        tuple[int, ...]: _numbers(int, "whole numbers like 1,2,4"),
        tuple[float, ...]: _numbers(float, "numbers like -0.3,0,0.3"),
        tuple[str, ...]: str,
    }
    return readers[_plain(hint)]


def _metavar(hint: Any) -> str:
    names = {
        int: "N",
        float: "X",
        bool: "true|false",
        str: "TEXT",
        tuple[str, ...]: "TEXT",
        tuple[float, ...]: "X,X,...",
    }
    return names.get(_plain(hint), "N,N,...")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
