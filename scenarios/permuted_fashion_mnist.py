"""Permuted Fashion-MNIST: the same clothes in every task, the pixels shuffled in a way of the task's own.

Goodfellow et al. 2013, https://arxiv.org/abs/1312.6211, for MNIST. The first task is not shuffled.
"""

from __future__ import annotations

from pydantic import PositiveInt

from forgetlab.data import dataset
from forgetlab.plugins import register, registry
from forgetlab.streams import Scenario, Setting, domains


@register("scenario", "permuted_fashion_mnist")
def permuted_fashion_mnist(seed: int, setting: Setting = "domain-incremental", n_tasks: PositiveInt = 5) -> Scenario:
    """All ten kinds of clothes in each of ``n_tasks`` permutations of the pixels, which the seed draws."""
    changes = registry.build("transform", "permutation", seed=seed, n_tasks=n_tasks)
    return domains(dataset("fashion_mnist"), changes, setting)
