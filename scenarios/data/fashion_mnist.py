"""Fashion-MNIST: Xiao, Rasul & Vollgraf 2017, https://arxiv.org/abs/1708.07747.

Read from the four .gz files of the original, as Debian's package dataset-fashion-mnist installs them, or as they lie
in the folder that the environment variable FORGETLAB_DATA names, under fashion-mnist/.
Licence: MIT.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import torch
from torch import Tensor

from forgetlab.data import Dataset, Samples
from forgetlab.plugins import register

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FOLDERS = (Path(os.environ.get("FORGETLAB_DATA", "data")) / "fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))


@register("data", "fashion_mnist")
def fashion_mnist() -> Dataset:
    """70,000 photographs of clothes, 10,000 of them for testing: x (1, 28, 28) bytes, 10 classes."""
    return Dataset(_samples("train"), _samples("t10k"), NAMES)


def _samples(part: str) -> Samples:
    images = _read(f"{part}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    return Samples(images, _read(f"{part}-labels-idx1-ubyte.gz", header=8).long())


def _read(name: str, header: int) -> Tensor:
    for folder in FOLDERS:
        if (folder / name).is_file():
            content = gzip.decompress((folder / name).read_bytes())
            return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)
    where = "install Debian's package dataset-fashion-mnist ('make data'), or name a folder in FORGETLAB_DATA"
    raise FileNotFoundError(f"Fashion-MNIST is not on this machine: {where} that holds fashion-mnist/{name}")
