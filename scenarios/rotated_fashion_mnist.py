"""Rotated Fashion-MNIST: the same clothes in every task, turned by an angle of the task's own.

Lopez-Paz & Ranzato 2017, https://arxiv.org/abs/1706.08840, for MNIST, who draw the angles; here they are evenly spaced
from 0, so that the distance between tasks is known.
"""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from forgetlab.data import dataset
from forgetlab.plugins import register, registry
from forgetlab.streams import Scenario, Setting, domains


@register("scenario", "rotated_fashion_mnist")
def rotated_fashion_mnist(
    seed: int,
    setting: Setting = "domain-incremental",
    n_tasks: PositiveInt = 5,
    max_angle: PositiveFloat = 180.0,  # degrees, of the last task
) -> Scenario:
    """All ten kinds of clothes, turned by task / (n_tasks - 1) * max_angle degrees."""
    changes = registry.build("transform", "rotation", {"max_angle": max_angle}, seed=seed, n_tasks=n_tasks)
    return domains(dataset("fashion_mnist"), changes, setting)
