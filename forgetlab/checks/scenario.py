"""What a scenario promises."""

from __future__ import annotations

from collections.abc import Callable

import torch

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.batch import UNKNOWN
from forgetlab.checks.common import require
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.streams import soundness
from forgetlab.streams.scenario import Scenario

Build = Callable[[int], Scenario]  # by seed


def same_seed_same_stream(build: Build) -> None:
    """The seed alone decides: no global draw, and nothing that one call leaves for the next."""
    first = build(0).checksum()
    torch.rand(3)
    build(1)
    require(build(0).checksum() == first, "the same seed gives another stream: draw from `forgetlab.seeding.generator`")


def is_sound(build: Build) -> None:
    """No training row is tested on; labels are in range and the tasks' own; nothing is empty or missing."""
    for seed in (0, 1):
        found = soundness.soundness_problems(build(seed))
        require(not found, "; ".join(found))


def tells_what_it_promises(build: Build) -> None:
    """The task is with the samples where the stream says that it is told, and nowhere else."""
    scenario = build(0)
    streams = to_benchmark(scenario).streams
    told = {"train": scenario.boundaries_known, "test": scenario.task_known_at_test}
    for name, known in told.items():
        for i, experience in enumerate(streams[name]):
            tasks = set(experience.dataset.targets_task_labels)
            require(tasks == {i if known else UNKNOWN}, f"the {name} samples of task {i} carry {tasks}")
    if scenario.task_known_at_test:
        require(scenario.boundaries_known, "the task is told at test but not in training")


ABOUT = (same_seed_same_stream, is_sound, tells_what_it_promises)


def _of_plugin(check: Callable[[Build], None]) -> Callable[[Plugin], None]:
    def checked(plugin: Plugin) -> None:
        if not any(p.required for p in registry.parameters(plugin)):  # there is no stream without its data
            check(lambda seed: registry.build("scenario", plugin.name, seed=seed))

    checked.__name__ = check.__name__
    return checked


CHECKS = tuple(map(_of_plugin, ABOUT))
