"""Split MNIST on 5,000 images: handwritten digits cut into tasks of different digits.

Split MNIST is Zenke et al. 2017, https://arxiv.org/abs/1703.04200; the numbers of the whole data set do not carry
over to this subset. The data set: `forgetlab show data mnist_5k`.
"""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from forgetlab.data import dataset
from forgetlab.plugins import register
from forgetlab.streams import Order, Scenario, Setting, split


@register("scenario", "split_mnist_5k")
def split_mnist_5k(
    seed: int,
    setting: Setting = "class-incremental",
    n_tasks: PositiveInt = 5,
    held_back: NonNegativeInt = 0,
    class_order: Order = "drawn",  # or as given, listed, or {numpy_seed: 1993} as others draw it
) -> Scenario:
    """Digits in ``n_tasks`` tasks; the first ``held_back`` classes stay out of the stream, for pretraining."""
    told = {"setting": setting, "n_tasks": n_tasks, "held_back": held_back, "class_order": class_order}
    return split(dataset("mnist_5k"), seed=seed, **told)
