"""Short runs: from the text of a scenario file, and from values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from forgetlab.config import load
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.engine import events as engine_events
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Experiment, Protocol, Run, Strategy, Train
from forgetlab.results.store import Result, RunFolder


def written(folder: Path, text: str) -> Path:
    """A scenario file of this text."""
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path, text: str, *changes: tuple[str, str]) -> Experiment:
    """The experiment of this text; each change puts words in the place of others, which must be there."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return load.load(written(folder, text))


def results(folder: Path, text: str, **how: Any) -> list[Result]:
    """Of all runs of this text, in their order: strategy by strategy, for each seed by seed."""
    return [one_run.run(run, **how) for run in loaded(folder, text).runs()]


def told(folder: Path, text: str) -> list[tuple[str, str]]:
    """For each problem the text that stands where it is found, up to the line's end, and the message."""
    try:
        loaded(folder, text)
    except FileErrors as error:
        lines = text.splitlines()
        return [(lines[p.line - 1][p.column - 1 :], p.message) for p in error.problems]
    return []


def final(result: Result) -> float:
    """The average accuracy after the last task."""
    return float(result.metrics["average_accuracy"] or 0)


def description(strategy: Strategy, **changes: Any) -> Run:
    """A run on five tasks of digits by a small perceptron, one epoch each, with seed 0 on one thread."""
    given: dict[str, Any] = {
        "scenario": {"name": "split_digits", "setting": "class-incremental", "n_tasks": 5},
        "model": {"name": "mlp", "hidden": [16]},
        "pretrain": None,
        "protocol": Protocol(budget=Budget(epochs=1)),
        "train": Train(batch_size=32, lr=1e-2),
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "plugins": (),
    }
    return Run(strategy=strategy, **given | changes)


def finals(folder: Path, text: str, **how: Any) -> dict[str, list[float]]:
    """The final average accuracies of each strategy, seed by seed."""
    found: dict[str, list[float]] = {}
    for result in results(folder, text, **how):
        found.setdefault(result.strategy, []).append(final(result))
    return found


def learned_late(strategy: Strategy, seed: int) -> float:
    """The accuracy on each of the last five of 20 permutations of digits, just learned."""
    stream = {"name": "stream", "data": {"name": "digits"}, "setting": "domain-incremental", "by": "transform"}
    scenario = {**stream, "transform": {"name": "permutation"}, "n_tasks": 20}
    run = description(strategy, scenario=scenario, model={"name": "mlp", "hidden": [64]}, seed=seed)
    accuracy = one_run.run(run).accuracy
    return mean(accuracy[task][task] or 0.0 for task in range(15, 20))


def contents(folder: RunFolder) -> dict[str, bytes]:
    """The files of a run, by their paths in its folder."""
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}


ISOLATED = """
name: tiny
scenario: {{name: split_digits, setting: {setting}, n_tasks: {n_tasks}}}
model: {{name: vit, width: 16, depth: 1, patch: 4}}
protocol: {{budget: {{epochs: {epochs}}}}}
train: {{lr: 1e-2, batch_size: 32}}
strategies: [{{{entry}}}]
"""


def isolated(
    folder: Path, entry: str, setting: str = "task-incremental", n_tasks: int = 5, epochs: int = 2
) -> tuple[Run, Result, list[Mapping[str, Tensor]]]:
    """A run of one entry on digits with a small vision transformer, its result, and what it stored of each task."""
    experiment = loaded(folder, ISOLATED.format(entry=entry, setting=setting, n_tasks=n_tasks, epochs=epochs))
    run, events = experiment.run(experiment.strategies[0], 0), list[Any]()
    result = one_run.run(run, events.append)
    return run, result, [event.tensors for event in events if isinstance(event, engine_events.TaskEnded)]
