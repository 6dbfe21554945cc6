"""Where the project's own files are, counted once from here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EXPERIMENTS = ROOT / "experiments"
BROKEN_FILES = ROOT / "tests" / "config" / "broken_files"
