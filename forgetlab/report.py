"""Stored results as one row per strategy, as comparison tables, and as curves over the tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forgetlab import metrics, prices
from forgetlab.markdown import lines as markdown_lines
from forgetlab.statistics import Interval, t_interval
from forgetlab.store import Result, Row

if TYPE_CHECKING:
    from rich.console import Group

COUNTS = ("parameters", "trainable", "stored_bytes", "memory_bytes", "samples_seen", "updates")
SEARCHED = tuple(f"tuning_{name}" for name in ("trials", "samples_seen", "samples_replayed", "updates"))
SECTIONS = {
    "none": "No task identity used",
    "routed": "Task inferred by a router (routed)",
    "told": "Task told at test (oracle)",
}
NEW_MODEL_PER_TASK = ("joint", "separate")  # references that never learn in sequence, so nothing is forgotten
FURTHER = {  # shown where a stream asks for them
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "log_loss": "log-loss",
    "prequential_accuracy": "prequential accuracy",
}
PRICE = "What a task costs"
DASH = "\N{EN DASH}"
FORGETTING = "forgetting (best \N{MINUS SIGN} last)"
NOTE = (
    "± is a 95 % t-interval over seeds. Forgetting is a task's best accuracy since it was learned minus its "
    "last, averaged over all tasks but the last learned; joint and separate train a new model for each task, "
    "so theirs is a dash. Bytes kept are what a strategy stores plus what its memory holds. "
    "`forgetlab show metric NAME` gives each definition."
)


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
    return [_summary(name, runs, results) for (name, _), runs in _grouped(finished).items()]


def _grouped(finished: Sequence[Finished]) -> dict[tuple[str, str], list[Finished]]:
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
    cells = {key: _interval(row.get(key) for row in rows) for key in names}
    seeds = tuple(run.result.seed for run in runs)
    adopted = sum(run.adopted for run in runs)
    return Summary(first.strategy, name, first.family, first.task_identity, seeds, cells, adopted)


def _interval(values: Iterable[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return t_interval(known) if known else None


def _values(run: Finished, results: Sequence[Result]) -> dict[str, float | None]:
    """Everything that one run shows as a single number."""
    result = run.result
    guess = chance(result)
    values = metrics.own_metrics(result.accuracy, result.accuracy_initial, stored=result.metrics)
    values |= metrics.relative_metrics(
        result.accuracy, _reference("joint", result, results), _reference("separate", result, results), guess
    )
    values |= {name: metrics.average_accuracy(score) for name, score in result.scores.items()}
    values["chance"] = sum(guess) / len(guess)
    values["seconds"] = run.timing.get("seconds")
    total = result.counts.get("total", {})
    counted = {name: total[name] for name in SEARCHED if name in total}
    return values | counted | {name: total.get(name) for name in COUNTS} | prices.of_run(result.counts, run.timing)


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


def _sections(summaries: Sequence[Summary]) -> Iterator[tuple[str, list[Summary]]]:
    """The rows by how a test sample's task is known, which never share a table; references come first."""
    for task_identity, heading in SECTIONS.items():
        rows = [summary for summary in summaries if summary.task_identity == task_identity]
        if rows:
            yield heading, sorted(rows, key=lambda summary: summary.family != "reference")


def _columns(rows: Sequence[Summary]) -> dict[str, list[str]]:
    """One section's table, column by column: header to cells."""
    n = max(len(summary.seeds) for summary in rows)
    table = {
        "strategy": [summary.label for summary in rows],
        "average accuracy (final)": [_cell(summary, "average_accuracy", n) for summary in rows],
        FORGETTING: [DASH if _forgets_nothing(summary) else _cell(summary, "forgetting", n) for summary in rows],
        "learning accuracy": [_cell(summary, "learning_accuracy", n) for summary in rows],
        "seconds": [_amount(summary, ("seconds",), "{:,.1f}".format) for summary in rows],
        "parameters": [_amount(summary, ("parameters",), prices.short_count) for summary in rows],
        "bytes kept": [_amount(summary, ("stored_bytes", "memory_bytes"), prices.short_bytes) for summary in rows],
    }
    if any("tuning_trials" in summary.cells for summary in rows):
        table["trials"] = [_amount(summary, ("tuning_trials",), "{:.0f}".format) for summary in rows]
    for name, header in FURTHER.items():
        if any(name in summary.cells for summary in rows):
            table[header] = [_cell(summary, name, n) for summary in rows]
    if rows[0].task_identity == "routed":
        table["router accuracy"] = [_cell(summary, "router_accuracy", n) for summary in rows]
    return table


def _cell(summary: Summary, name: str, n: int) -> str:
    """mean ± half width, and the number of seeds where it is not the table's."""
    cell = summary.cells.get(name)
    if cell is None:
        return DASH
    return str(cell) if cell.n == n else f"{cell} (n={cell.n})"


def _forgets_nothing(summary: Summary) -> bool:
    return summary.family == "reference" and summary.strategy in NEW_MODEL_PER_TASK


def _amount(summary: Summary, names: Sequence[str], written: Callable[[float], str]) -> str:
    """The mean over seeds of a sum of counts, without an interval."""
    cells = [summary.cells.get(name) for name in names]
    known = [cell.mean for cell in cells if cell is not None]
    return written(sum(known)) if len(known) == len(names) else DASH


def _foot(rows: Sequence[Summary]) -> str:
    """What holds for one section: the number of seeds, what guessing gives where that is one number, and whose runs
    an earlier version made."""
    n = max(len(summary.seeds) for summary in rows)
    seeds = "1 seed, so no interval" if n == 1 else f"n = {n} seeds"
    guesses = {f"{cell.mean:.3f}" for summary in rows if (cell := summary.cells.get("chance")) is not None}
    foot = f"{seeds}; guessing gives {guesses.pop()}." if len(guesses) == 1 else f"{seeds}."
    adopted = [f"{summary.label} ({summary.adopted} of {len(summary.seeds)})" for summary in rows if summary.adopted]
    return f"{foot} Adopted, made by an earlier version: {', '.join(adopted)}." if adopted else foot


def markdown(summaries: Sequence[Summary], title: str) -> str:
    """The comparison as Markdown: one table per section, each with its foot, and the note."""
    lines = [f"## {title}", ""]
    for heading, rows in _sections(summaries):
        lines += [f"### {heading}", "", *markdown_lines(_columns(rows))]
        lines += ["", _foot(rows), ""]
    if paid := prices.price_columns(summaries):
        lines += [f"### {PRICE}", "", *markdown_lines(paid), ""]
    return "\n".join([*lines, NOTE, ""])


def table(summaries: Sequence[Summary]) -> Group:
    """The comparison for a terminal: one rich table per section, and the note."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = [(heading, _foot(rows), _columns(rows)) for heading, rows in _sections(summaries)]
    paid = prices.price_columns(summaries)
    parts: list[Table | Text] = []
    for heading, foot, content in [*tables, *([(PRICE, None, paid)] if paid else [])]:
        part = Table(title=heading, caption=foot, title_justify="left", caption_justify="left")
        for number, header in enumerate(content):
            part.add_column(header, justify="right" if number else "left", overflow="fold")
        for cells in zip(*content.values(), strict=True):
            part.add_row(*map(Text, cells))
        parts.append(part)
    return Group(*parts, Text(NOTE.replace("`", "")))


def step_metrics(result: Result) -> dict[str, list[tuple[int, float]]]:
    """Each curve of one run as (tasks learned, value) where it is defined; step 0: before any training."""
    n_tasks = len(result.task_names)
    forgetting = metrics.forgetting_curve(result.accuracy)
    series: dict[str, list[tuple[int, float]]] = {}
    for task in range(n_tasks):
        name = f"task_{task:0{len(str(n_tasks - 1))}}"
        before = result.accuracy_initial[task : task + 1] or [None]
        series[f"accuracy/{name}"] = _points([*before, *(row[task] for row in result.accuracy)], start=0)
        series[f"forgetting/{name}"] = _points([row[task] for row in forgetting])
    series["accuracy/average"] = _points(metrics.average_accuracy_curve(result.accuracy))
    series["forgetting/average"] = _points(metrics.average_forgetting_curve(result.accuracy))
    series["accuracy/pretrained"] = _points(result.pretrained_accuracy, start=0)
    return {name: points for name, points in series.items() if points}


def _points(values: Iterable[float | None], start: int = 1) -> list[tuple[int, float]]:
    return [
        (step, float(value)) for step, value in enumerate(values, start) if value is not None and not math.isnan(value)
    ]


def mean_step_metrics(results: Sequence[Result]) -> dict[str, list[tuple[int, Interval]]]:
    """Each curve's mean and t-interval over the runs that have the step."""
    gathered: dict[str, dict[int, list[float]]] = {}
    for result in results:
        for name, points in step_metrics(result).items():
            for step, value in points:
                gathered.setdefault(name, {}).setdefault(step, []).append(value)
    return {
        name: [(step, t_interval(values)) for step, values in sorted(steps.items())] for name, steps in gathered.items()
    }


def curves(finished: Sequence[Finished]) -> dict[tuple[str, str], dict[str, list[tuple[int, Interval]]]]:
    """``mean_step_metrics`` of each strategy, by its label and its task identity."""
    return {key: mean_step_metrics([run.result for run in runs]) for key, runs in _grouped(finished).items()}
