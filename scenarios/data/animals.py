"""Animal-MNIST: shapes of animals in the format of MNIST, from the package animal_mnist (SinaSR-6, 2025).

The package does not say which pictures the shapes were cut from. Of its 10,000 images 9,716 are distinct and kept, each
once; a fifth of every class is held out as the test set, the same for every seed.
Licence: MIT (the package); of the pictures unknown.
"""

from __future__ import annotations

import gzip
import pickle
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from forgetlab.backbones.tokenizer import packaged
from forgetlab.data import Dataset, held_out
from forgetlab.plugins import register

NAMES = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


@register("data", "animals")
def animals() -> Dataset:
    """9,716 shapes of animals, 1,941 of them for testing: x (1, 28, 28) bytes, 10 classes."""
    x, y = _read("data").unsqueeze(1), _read("label")
    first: dict[bytes, int] = {}
    for row, image in enumerate(x.numpy()):
        first.setdefault(image.tobytes(), row)
    rows = torch.tensor(list(first.values()))
    return held_out(x[rows], y[rows], NAMES, test_share=0.2, seed=0)


def _read(what: str) -> Tensor:
    path = packaged("animal_mnist", f"animal_mnist/data/Animal_MNIST/animal_{what}_version_3.gz")
    return torch.from_numpy(Arrays(BytesIO(gzip.decompress(path.read_bytes()))).load())


class Arrays(pickle.Unpickler):
    """Reads numpy arrays of numbers, and knows no name that could run anything else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """
        Raises:
            UnpicklingError: the file names anything but what an array is made of.
        """
        import numpy as np

        known = {
            ("numpy.core.multiarray", "_reconstruct"): lambda kind, shape, code: np.ndarray((0,), code),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module_name, global_name) not in known:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is no array")
        return known[module_name, global_name]
