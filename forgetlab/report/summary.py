"""Stored results as one row per strategy: means and intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forgetlab.metrics import accuracy_matrix
from forgetlab.metrics.definition_texts import METRICS
from forgetlab.metrics.intervals import UNBOUNDED, Bounds, Interval, t_interval
from forgetlab.metrics.price_definitions import PRICES
from forgetlab.results.store import Result, Row
from forgetlab.results.timing import processor_seconds

COUNTS = ("parameters", "trainable", "stored_bytes", "memory_bytes", "samples_seen", "updates", "extra_updates")
SEARCHED = tuple(f"tuning_{name}" for name in ("trials", "samples_seen", "samples_replayed", "updates"))
NEW_MODEL_PER_TASK = ("joint", "separate")  # references that never learn in sequence, so nothing is forgotten


@dataclass(frozen=True)
class Finished:
    """One run as stored."""

    result: Result
    timing: Mapping[str, Any]
    adopted: bool = False  # made by an earlier version, and taken over


@dataclass(frozen=True)
class Summary:
    """One strategy over its seeds."""

    strategy: str
    label: str  # the name, and what the strategy overrides: "lora-r8 (lr=0.01)"
    family: str
    task_identity: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Interval | None]  # by metric, score, "chance", "seconds" or count; None: undefined
    adopted: int = 0  # of its seeds, how many an earlier version made


def summarise(finished: Sequence[Finished]) -> list[Summary]:
    """One row per strategy, in order of first appearance.

    A relative metric is measured against the reference of the same seed and class order, and only where both
    models were told the task or neither was: who knows the task is no yardstick for who does not.
    """
    results = [run.result for run in finished]
    return [_summary(name, runs, results) for (name, _), runs in grouped(finished).items()]


def by_seed(finished: Sequence[Finished], metric: str) -> dict[tuple[str, str], dict[int, float]]:
    """A metric's value for each seed that defines it, by the strategy's label and its task identity."""
    results = [run.result for run in finished]
    found: dict[tuple[str, str], dict[int, float]] = {}
    for key, runs in grouped(finished).items():
        values = {run.result.seed: _values(run, results).get(metric) for run in runs}
        found[key] = {seed: value for seed, value in values.items() if value is not None and not math.isnan(value)}
    return found


def grouped(finished: Sequence[Finished]) -> dict[tuple[str, str], list[Finished]]:
    """The runs of each strategy, by its label and its task identity."""
    groups: dict[tuple[str, str], list[Finished]] = {}
    for run in finished:
        fixed = replace(run.result, tuning={}, overrides=_fixed(run.result))
        groups.setdefault((label([fixed]), run.result.task_identity), []).append(run)
    return {(label([run.result for run in runs]), told): runs for (_, told), runs in groups.items()}


def _fixed(result: Result) -> dict[str, Any]:
    """What the file overrides, without what was chosen."""
    return {key: value for key, value in result.overrides.items() if key not in result.tuning.get("values", {})}


def label(results: Sequence[Result]) -> str:
    """A strategy's name, what it overrides, and what was chosen for it, for each seed that chose something else.

    >>> from types import SimpleNamespace
    >>> one = SimpleNamespace(strategy="lora-r8", overrides={"lr": 1e-2, "augment": {"crop": 4}}, tuning={})
    >>> other = SimpleNamespace(strategy="ewc", overrides={}, tuning={"values": {"strength": 100.0}})
    >>> label([one]), label([other, SimpleNamespace(**{**vars(other), "tuning": {"values": {"strength": 10.0}}})])
    ('lora-r8 (lr=0.01, augment=crop 4)', 'ewc (strength=10|100)')
    """

    def written(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {part}" for key, part in value.items())
        return f"{value:g}" if isinstance(value, float) else str(value)

    chosen: dict[str, set[Any]] = {}
    for result in results:
        for key, value in result.tuning.get("values", {}).items():
            chosen.setdefault(key, set()).add(value)
    parts = {key: written(value) for key, value in _fixed(results[0]).items()}
    parts |= {key: "|".join(map(written, sorted(values))) for key, values in chosen.items()}
    changes = ", ".join(f"{key}={part}" for key, part in parts.items())
    return f"{results[0].strategy} ({changes})" if changes else results[0].strategy


def _summary(name: str, runs: Sequence[Finished], results: Sequence[Result]) -> Summary:
    first = runs[0].result
    rows = [_values(run, results) for run in runs]
    names = dict.fromkeys(key for row in rows for key in row)
    cells = {key: _interval(key, [row.get(key) for row in rows]) for key in names}
    seeds = tuple(run.result.seed for run in runs)
    adopted = sum(run.adopted for run in runs)
    return Summary(first.strategy, name, first.family, first.task_identity, seeds, cells, adopted)


def _interval(name: str, values: Iterable[float | None]) -> Interval | None:
    """Over the seeds that define the value: its n tells how many those are."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return t_interval(known, bounds=bounds_of(name)) if known else None


def bounds_of(name: str) -> Bounds:
    """Between which values a metric lies; what is no metric of ours is not cut."""
    return METRICS[name].bounds if name in METRICS else UNBOUNDED


def _values(run: Finished, results: Sequence[Result]) -> dict[str, float | None]:
    """Everything that one run shows as a single number."""
    result = run.result
    guess = chance(result)
    values = accuracy_matrix.own_metrics(result.accuracy, result.accuracy_initial, stored=result.metrics)
    values |= accuracy_matrix.relative_metrics(
        result.accuracy, _reference("joint", result, results), _reference("separate", result, results), guess
    )
    values |= {name: accuracy_matrix.average_accuracy(score) for name, score in result.scores.items()}
    values["chance"] = sum(guess) / len(guess)
    values["seconds"] = processor_seconds(run.timing)
    total = result.counts.get("total", {})
    counted = {name: total[name] for name in SEARCHED if name in total}
    return values | counted | {name: total.get(name) for name in COUNTS} | of_run(result.counts, run.timing)


def _reference(name: str, result: Result, results: Sequence[Result]) -> list[Row] | None:
    """The matrix of a reference that may be compared with this result."""
    for other in results:
        if (
            other.strategy == name != result.strategy
            and other.family == "reference"
            and other.seed == result.seed
            and other.classes_per_task == result.classes_per_task
            and (other.task_identity == "told") == (result.task_identity == "told")
        ):
            return other.accuracy
    return None


def chance(result: Result) -> list[float]:
    """The accuracy of uniform guessing on each task: among its own classes where told, else among all."""
    if result.task_identity == "told":
        return [1 / len(classes) for classes in result.classes_per_task]
    n_classes = len(set().union(*result.classes_per_task))
    return [1 / n_classes for _ in result.classes_per_task]


def of_run(counts: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float | None]:
    """Everything that a run paid, as single numbers."""
    per_task, total = counts.get("per_task", {}), counts.get("total", {})
    found = {name: _mean(per_task[name]) for name in PRICES if name in per_task and name != "trainable"}
    found |= {"backbone_parameters": total.get("backbone_parameters"), "latency": timing.get("latency")}
    kept, backbone = found.get("task_bytes"), found["backbone_parameters"]
    return found | {"task_share": kept / (4 * backbone) if kept is not None and backbone else None}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
