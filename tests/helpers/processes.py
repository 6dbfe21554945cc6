"""Processes that a test starts."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def listening() -> None:
    """Hear Ctrl-C also where the tests run in the background of a shell, which ignores it for them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment_with(folder: Path) -> dict[str, str]:
    """The environment of a process that imports ForgetLab from this folder before any other."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path}
