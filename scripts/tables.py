"""Tables that programs print or write: Markdown, or CSV by the file's ending."""

import csv
import io
import os
from collections.abc import Sequence

from dbae.config import UserError
from dbae.io import atomic_write
from scripts.cli import Parser


def add_options(parser: Parser) -> None:
    """``--out`` and ``--overwrite``, as ``write_table`` takes them."""
    parser.add_argument("--out", default="", metavar="PATH", help="file to write, .md or .csv (default: print)")
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace another file")


def check_out(out: str) -> None:
    """Raise UserError for a file that has another ending."""
    if out and not out.endswith((".md", ".csv")):
        raise UserError(f"out: expected a name that ends in .md or .csv, got {out!r}")


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], out: str = "", overwrite: bool = False) -> None:
    """Print the table, or write it to ``out``. Raises UserError where another file is there, unless ``overwrite``."""
    if out.endswith(".csv"):
        buffer = io.StringIO()
        csv.writer(buffer).writerows([header, *rows])
        text = buffer.getvalue()
    else:
        text = "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *rows])
    if not out:
        print(text, end="")
        return
    if os.path.exists(out) and not overwrite:
        with open(out, "rb") as file:
            if file.read() != text.encode(errors="backslashreplace"):
                raise UserError(f"out: {out} is there already; give --overwrite to replace it, or another name")
    with atomic_write(out, "w") as file:
        file.write(text)
    print(f"wrote {len(rows)} rows to {out}")
