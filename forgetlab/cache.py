"""What is computed from a data set once and kept on disk: token ids, features, decoded images.

Everything here can be deleted at any time. The folder is the one that the environment variable FORGETLAB_CACHE names,
else ``forgetlab`` in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def folder() -> Path:
    """Where things are kept."""
    named = os.environ.get("FORGETLAB_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "forgetlab"


def kept(what: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that ``make`` gives, computed once for each ``key`` (plain values that determine them)."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = folder() / what / f"{digest}.safetensors"
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):  # the second: a file that something cut short
        tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, partial)
    os.replace(partial, path)
    return tensors
