"""Where a run came from: machine, packages, git state. Kept beside the result, never in it."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


@cache
def packages() -> dict[str, str]:
    """Every installed package and its version."""
    return dict(sorted({d.name: d.version for d in distributions() if d.name}.items()))


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder is at, and whether it has uncommitted changes; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }
