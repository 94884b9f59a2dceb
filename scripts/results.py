"""A folder of results of several commands, and ``edits.json`` in it, which says what each file was made from."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dbae.config import UserError
from dbae.io import atomic_write, check_outputs, command_line, differing, read_json

FILE = "edits.json"  # {"edits": [{"settings": {...}, "files": [name, ...]}, ...]}, each file in one edit


def check_report(
    report: str, files: Iterable[str], settings: dict[str, Any], inputs: Iterable[str], what: str, overwrite: bool
) -> None:
    """Raise UserError where some of the ``files`` are there whose ``report`` (JSON, with ``made_from``) says otherwise.

    Or where one of them is an input. ``what`` they hold stands in the message.
    """
    paths = [path for path in (report, *files) if os.path.exists(path)]
    check_outputs(paths, inputs)
    if not paths or overwrite:
        return
    if others := differing(read_json(report).get("made_from") if os.path.exists(report) else {}, settings):
        raise UserError(
            f"{os.path.dirname(report)} holds {what} with another {others}; "
            "give --overwrite true to replace it, --out another folder, or move it away"
        )


@dataclass(frozen=True)
class Results:
    """The results of one command, whose ``settings`` (ready for JSON) are all that they depend on."""

    folder: str
    settings: dict[str, Any]
    inputs: Sequence[str] = ()  # files that are read
    overwrite: bool = False

    def check(self, paths: Iterable[str]) -> None:
        """Raise UserError where a file to be written is an input, is written twice, or is there from other settings."""
        paths = list(paths)
        names = [os.path.basename(path).casefold() for path in paths]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"out: expected another name for every result, two would be {twice}")
        check_outputs([*paths, os.path.join(self.folder, FILE)], self.inputs)
        made = {name: edit["settings"] for edit in self._edits() for name in edit["files"]}
        for path in filter(os.path.exists, paths if not self.overwrite else ()):
            if others := differing(made.get(os.path.basename(path)), self.settings):
                raise UserError(
                    f"out: {path} is there already with another {others}; "
                    "give --overwrite true to replace it, or another --out"
                )

    def record(self, paths: Iterable[str]) -> None:
        """Note that the files were made with these settings."""
        names = [os.path.basename(path) for path in paths]
        edits = [{**edit, "files": [name for name in edit["files"] if name not in names]} for edit in self._edits()]
        edits = [edit for edit in edits if edit["files"]] + [
            {"settings": {**self.settings, "command": command_line()}, "files": names}
        ]
        with atomic_write(os.path.join(self.folder, FILE), "w") as file:
            file.write(json.dumps({"edits": edits}, indent=1) + "\n")

    def _edits(self) -> list[dict[str, Any]]:
        """The edits of the folder so far. Raises UserError where the file is not ours."""
        path = os.path.join(self.folder, FILE)
        edits = read_json(path).get("edits") if os.path.exists(path) else []
        entry = {"settings", "files"}
        if not isinstance(edits, list) or not all(isinstance(edit, dict) and set(edit) == entry for edit in edits):
            raise UserError(f"{path}: expected the list of edits that this program writes; move it away")
        return edits
