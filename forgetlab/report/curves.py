"""The curves of a comparison: what each metric is after each task."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from forgetlab.metrics import accuracy_matrix
from forgetlab.metrics.definition_texts import SHARE
from forgetlab.metrics.intervals import Interval, t_interval
from forgetlab.report.summary import Finished, grouped
from forgetlab.results.store import Result


def step_metrics(result: Result) -> dict[str, list[tuple[int, float]]]:
    """Each curve of one run as (tasks learned, value) where it is defined; step 0: before any training."""
    n_tasks = len(result.task_names)
    forgetting = accuracy_matrix.forgetting_curve(result.accuracy)
    series: dict[str, list[tuple[int, float]]] = {}
    for task in range(n_tasks):
        name = f"task_{task:0{len(str(n_tasks - 1))}}"
        before = result.accuracy_initial[task : task + 1] or [None]
        series[f"accuracy/{name}"] = _points([*before, *(row[task] for row in result.accuracy)], start=0)
        series[f"forgetting/{name}"] = _points([row[task] for row in forgetting])
    series["accuracy/average"] = _points(accuracy_matrix.average_accuracy_curve(result.accuracy))
    series["forgetting/average"] = _points(accuracy_matrix.average_forgetting_curve(result.accuracy))
    series["accuracy/pretrained"] = _points(result.pretrained_accuracy, start=0)
    return {name: points for name, points in series.items() if points}


def _points(values: Iterable[float | None], start: int = 1) -> list[tuple[int, float]]:
    return [
        (step, float(value)) for step, value in enumerate(values, start) if value is not None and not math.isnan(value)
    ]


def mean_step_metrics(results: Sequence[Result]) -> dict[str, list[tuple[int, Interval]]]:
    """Each curve's mean and t-interval, cut to [0, 1], over the runs that have the step; its n tells how many."""
    gathered: dict[str, dict[int, list[float]]] = {}
    for result in results:
        for name, points in step_metrics(result).items():
            for step, value in points:
                gathered.setdefault(name, {}).setdefault(step, []).append(value)
    return {
        name: [(step, t_interval(values, bounds=SHARE)) for step, values in sorted(steps.items())]
        for name, steps in gathered.items()
    }


def curves(finished: Sequence[Finished]) -> dict[tuple[str, str], dict[str, list[tuple[int, Interval]]]]:
    """``mean_step_metrics`` of each strategy, by its label and its task identity."""
    return {key: mean_step_metrics([run.result for run in runs]) for key, runs in grouped(finished).items()}
