"""Our side: a learner as the engine prepares it, under the globals that the engine sets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.engine import one_run
from forgetlab.experiment import Protocol, Run, Strategy, Train
from forgetlab.learners.context import Context
from forgetlab.learners.sequential import Sequential
from forgetlab.streams.scenario import Scenario


def run(hidden: int, batch_size: int, strategy: Strategy) -> Run:
    """One epoch per task, Adam 1e-3, and every default of a scenario file."""
    return Run(
        scenario={"name": "split_fashion_mnist"},
        model={"name": "mlp", "hidden": [hidden, hidden]},
        pretrain=None,
        protocol=Protocol(),
        train=Train(optimizer="adam", lr=1e-3, batch_size=batch_size),
        strategy=strategy,
        seed=0,
        device="cpu",
        threads=1,
        plugins=(),
    )


def learner(scenario: Scenario, hidden: int, batch_size: int, **strategy: Any) -> Sequential:
    return prepared(run(hidden, batch_size, Strategy(name="ours", **strategy)), scenario)


def prepared(description: Run, scenario: Scenario) -> Sequential:
    """A learner, made ready for the first task."""
    made = one_run.make_learner(description)
    assert isinstance(made, Sequential)
    device = torch.device("cpu")
    made.prepare(Context(description, scenario, to_benchmark(scenario, device), device))
    return made


@contextlib.contextmanager
def globals_of_the_engine() -> Iterator[None]:
    """Inside, the process is set as for a run; afterwards PyTorch's defaults hold again."""
    one_run.set_process(run(1, 1, Strategy(name="none")))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.mha.set_fastpath_enabled(True)
