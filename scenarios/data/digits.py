"""Digits: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49.

The copy inside scikit-learn. A quarter of every class is held out as the test set, the same for every seed.
Licence: CC BY 4.0 (the data), BSD-3 (scikit-learn).
"""

from __future__ import annotations

import torch

from forgetlab.data import Dataset, held_out
from forgetlab.plugins import register


@register("data", "digits")
def digits() -> Dataset:
    """1,797 handwritten digits: x (1, 8, 8) in [0, 1], 10 classes."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return held_out(x, torch.tensor(labels), [str(d) for d in range(10)], test_share=0.25, seed=0)
