"""Several commands of one program in one process, so that what it imports is loaded once.

    python commands.py MODULE COMMANDS

``COMMANDS`` is JSON, a list of {"arguments": [...], "to": FILE or null}; ``to`` is where its standard output goes. It
ends with the first status that is not 0.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any


def call(module: str, arguments: list[str], to: str | None) -> Any:
    """What a command ends with."""
    sys.argv = [module, *arguments]
    with contextlib.ExitStack() as stack:
        if to is not None:
            file = stack.enter_context(Path(to).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(file))
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            return end.code
    return 0


if __name__ == "__main__":
    module, listed = sys.argv[1:]
    for command in json.loads(listed):
        if status := call(module, command["arguments"], command["to"]):
            sys.exit(status)
