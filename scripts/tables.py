"""Tables that programs print or write: Markdown, or CSV by the file's ending."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence

from dbae.config import UserError
from dbae.io import atomic_write
from scripts.cli import Parser

Rows = Iterable[Sequence[str]]


def collect(
    doc: str, what: str, header: Sequence[str], published: Callable[[], Rows], rows_of: Callable[[str], Rows],
    args: list[str] | None = None,
) -> None:  # fmt: skip
    """A program's main function: the ``published`` rows, then those of the folders of ``what`` that are typed."""
    parser = Parser(doc)
    parser.add_argument("--runs", required=True, metavar="DIR,DIR,...", help=f"folders with {what}")
    parser.add_argument("--out", default="", metavar="PATH", help="file to write, .md or .csv (default: print)")
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace another file")
    options = parser.parse_args(args)
    if options.out and not options.out.endswith((".md", ".csv")):
        raise UserError(f"out: expected a name that ends in .md or .csv, got {options.out!r}")
    rows = [*published(), *(row for run_dir in options.runs.split(",") for row in rows_of(run_dir))]
    write_table(header, rows, options.out, options.overwrite)


def markdown(header: Sequence[str], rows: Rows) -> str:
    """The table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *rows])


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], out: str = "", overwrite: bool = False) -> None:
    """Print the table, or write it to ``out``. Raises UserError where another file is there, unless ``overwrite``."""
    if out.endswith(".csv"):
        buffer = io.StringIO()
        csv.writer(buffer).writerows([header, *rows])
        text = buffer.getvalue()
    else:
        text = markdown(header, rows)
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
