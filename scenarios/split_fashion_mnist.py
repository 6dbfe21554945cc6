"""Split Fashion-MNIST: clothes cut into tasks of different kinds.

The usual cut is five tasks of two. The data set: `forgetlab show data fashion_mnist`.
"""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from forgetlab.data import dataset
from forgetlab.plugins import register
from forgetlab.streams import Order, Scenario, Setting, split


@register("scenario", "split_fashion_mnist")
def split_fashion_mnist(
    seed: int,
    setting: Setting = "class-incremental",
    n_tasks: PositiveInt = 5,
    held_back: NonNegativeInt = 0,
    class_order: Order = "drawn",  # or as given, listed, or {numpy_seed: 1993} as others draw it
) -> Scenario:
    """Clothes in ``n_tasks`` tasks; the first ``held_back`` classes stay out of the stream, for pretraining."""
    told = {"setting": setting, "n_tasks": n_tasks, "held_back": held_back, "class_order": class_order}
    return split(dataset("fashion_mnist"), seed=seed, **told)
