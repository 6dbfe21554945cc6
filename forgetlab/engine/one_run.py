"""One run: a strategy and a seed go through a stream; after each task all tasks are evaluated.

A run is a pure function of its description, its data and the code; it reports what happens as events and knows
nothing of folders, MLflow or screens.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.engine.events import EpochEnded, Observer, TaskEnded, TaskStarted
from forgetlab.experiment import Run, StreamPart, Tuned
from forgetlab.learners.context import Context
from forgetlab.learners.learner import Learner, Scores
from forgetlab.learners.sequential import Sequential
from forgetlab.metrics.accuracy_matrix import own_metrics, prequential_accuracy, pretrained_forgetting
from forgetlab.plugins import registry
from forgetlab.plugins.registry import built
from forgetlab.results.paper_protocols import departures
from forgetlab.results.store import Result, Row
from forgetlab.results.timing import Stopwatch
from forgetlab.seeding import reseed
from forgetlab.streams.scenario import Scenario


def run(description: Run, emit: Observer = lambda _: None, starts: Path | None = None) -> Result:
    """Carry out one run, telling ``emit`` of each event; ``starts`` is a folder that keeps pretrained backbones.

    Raises:
        OptionError: the description cannot be carried out; `forgetlab.preflight.problems` finds this beforehand.
    """
    set_process(description)
    scenario = load_scenario(description)
    learner = make_learner(description)
    n_tasks, now = len(scenario.tasks), {"task": 0}
    told = description.task_identity == "told"
    device = torch.device(description.device)
    context = Context(
        run=description,
        scenario=scenario,
        benchmark=to_benchmark(scenario, device, told),
        device=device,
        on_epoch=lambda epoch: emit(EpochEnded(description, now["task"], epoch)),
        starts=starts,
    )
    learner.prepare(context)
    initial, rows, pretrained = learner.evaluate_all(), [], pretrained_accuracy(context, context.backbone())
    so_far = partial(to_result, description, scenario, learner, initial, rows, pretrained)
    for task in range(n_tasks):
        now["task"] = task
        emit(TaskStarted(description, task, n_tasks))
        training = Stopwatch()
        learner.learn(task)
        seconds = {"train": training.seconds()}
        evaluation = Stopwatch()
        rows.append(learner.evaluate_all())
        pretrained += pretrained_accuracy(context, learner.current_backbone())
        seconds["evaluate"] = evaluation.seconds()
        tensors, files = learner.task_tensors(task), learner.files(task)
        emit(TaskEnded(description, task, n_tasks, so_far, seconds, tensors, learner.latency, files))
    return so_far()


def set_process(description: Run) -> None:
    """The only place that sets the process's globals."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism needs on a GPU
    torch.set_num_threads(description.threads)
    threadpool_limits(description.threads)  # of what numpy and scipy compute with
    torch.use_deterministic_algorithms(True)
    torch.backends.mha.set_fastpath_enabled(False)  # it would skip what is attached to layers
    reseed("run", description.seed)
    for path in description.plugins:
        registry.load_file(Path(path))


def load_scenario(description: Run) -> Scenario:
    """The stream of this run; kept while one experiment's strategies go through it."""
    spec = json.dumps(description.scenario, sort_keys=True)
    part, evaluate_on = description.part or StreamPart(), description.protocol.evaluate_on
    return _load_scenario(spec, description.seed_of("class_order"), part.first, part.last, part.validation, evaluate_on)


@lru_cache(maxsize=8)
def _load_scenario(spec: str, seed: int, first: int, last: int | None, validation: float, evaluate_on: str) -> Scenario:
    scenario = _whole_scenario(spec, seed)
    if (first, last) != (0, None):
        scenario = scenario.part(first, last)
    if validation:
        scenario = scenario.with_validation(validation)
    return scenario.on_validation() if evaluate_on == "validation" else scenario


@lru_cache(maxsize=2)
def _whole_scenario(spec: str, seed: int) -> Scenario:
    return built("scenario", json.loads(spec), seed=seed)


def make_learner(description: Run) -> Learner:
    strategy = description.strategy
    if strategy.classifier is not None:
        from forgetlab.learners.closed_form import ClosedForm

        return ClosedForm()
    return Sequential() if strategy.reference is None else built("reference", strategy.reference)


def pretrained_accuracy(context: Context, backbone: nn.Module | None) -> Row:
    """What a backbone still gets right of the pretraining data, as one value; nothing where nothing was pretrained."""
    if context.start is None:
        return []
    return [None if backbone is None else context.start.accuracy(backbone, context.device)]


def pretraining_metrics(pretrained: Row) -> dict[str, float | None]:
    return {"pretrained_forgetting": pretrained_forgetting(pretrained)} if pretrained else {}


def prequential_metrics(learner: Learner) -> dict[str, float | None]:
    known = learner.prequential
    return {"prequential_accuracy": prequential_accuracy(known, learner.counts.samples_seen)} if known else {}


def to_result(
    description: Run,
    scenario: Scenario,
    learner: Learner,
    initial: list[Scores | None],
    rows: list[list[Scores | None]],
    pretrained: Row,
) -> Result:
    def column(scores: list[Scores | None], name: str) -> Row:
        return [None if one is None else one.get(name) for one in scores]

    names = sorted({name for row in rows for one in row if one for name in one} - {"accuracy"})
    accuracy, accuracy_initial = [column(row, "accuracy") for row in rows], column(initial, "accuracy")
    strategy = description.strategy
    return Result(
        strategy=strategy.name,
        family=strategy.family,
        task_identity=description.task_identity,
        seed=description.seed,
        overrides=dict(strategy.train),
        protocol=description.protocol.model_dump(mode="json"),
        task_names=[task.name for task in scenario.tasks],
        classes_per_task=[list(task.classes) for task in scenario.tasks],
        test_sizes=[len(task.test.y) for task in scenario.tasks],
        accuracy=accuracy,
        accuracy_initial=accuracy_initial,
        scores={name: [column(row, name) for row in rows] for name in names},
        metrics={
            **own_metrics(accuracy, accuracy_initial),
            **pretraining_metrics(pretrained),
            **prequential_metrics(learner),
        },
        counts=priced(learner.counts.as_plain(), description.tuned),
        pretrained_accuracy=list(pretrained),
        prequential_accuracy=learner.prequential,
        tuning={} if description.tuned is None else plain(description.tuned),
        papers_assume=departures(description, scenario),
    )


def priced(counts: dict[str, Any], tuned: Tuned | None) -> dict[str, Any]:
    """What the run took, and beside it what the search took."""
    if tuned is None:
        return counts
    spent = tuned.model_dump(include={"trials", "samples_seen", "samples_replayed", "updates"})
    return {**counts, "total": {**counts["total"], **{f"tuning_{name}": n for name, n in spent.items()}}}


def plain(value: Any) -> Any:
    """A description as plain values, for a file or a key."""
    return value.model_dump(mode="json", exclude_none=True)
