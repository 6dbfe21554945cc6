"""The view of a run in a tracker: its parameters, metrics in the order that they are looked at, files, and the note.

A strategy over its seeds and a single seed show the same things; a single seed has no intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from forgetlab.metrics import price_definitions
from forgetlab.metrics.intervals import Interval
from forgetlab.report import curves as report_curves
from forgetlab.report import pictures, tables
from forgetlab.report import summary as report
from forgetlab.report.number_format import of_seeds
from forgetlab.report.summary import Summary
from forgetlab.results.store import Result, Row, to_json

MOST_CURVES, MOST_POINTS = 50, 200  # tasks with curves, and points of each; the matrix among the files is whole
PRICE = (*report.COUNTS, *report.SEARCHED, *price_definitions.PRICES)
OF_FORGETTING = ("forgetting", "forgetting_first_last", "backward_transfer")
IDENTITIES = {"none": "", "routed": "with a router: ", "told": "task told: "}

T = TypeVar("T")
Curves = Mapping[str, Sequence[tuple[int, Interval]]]
Point = tuple[str, float, int]  # metric, value, step


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names.

    >>> flatten({"train": {"lr": 0.1}, "seeds": [0, 1]})
    {'train.lr': 0.1, 'seeds': [0, 1]}
    """
    if not isinstance(value, Mapping):
        return {name: value}
    parts = [flatten(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: part for one in parts for key, part in one.items()}


def same_for_all_seeds(descriptions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What holds for all seeds; where a search chose for each of them, all that it chose.

    >>> same_for_all_seeds([{"seed": 0, "lr": 0.1, "tuned.values.k": 1}, {"seed": 1, "lr": 0.1, "tuned.values.k": 2}])
    {'lr': 0.1, 'tuned.values.k': '1|2'}
    """
    found = {}
    for name in descriptions[0]:
        values = list(dict.fromkeys(str(one.get(name)) for one in descriptions))
        if name not in ("key", "seed") and (len(values) == 1 or name.startswith("tuned.values.")):
            found[name] = descriptions[0][name] if len(values) == 1 else "|".join(values)
    return found


def thinned_curves(results: Sequence[Result]) -> Curves:
    """The mean over seeds (of one seed: itself) at each step, thinned where tasks are very many."""
    series = report_curves.mean_step_metrics(results)
    tasks = list(dict.fromkeys(name.split("/")[1] for name in series if "/task_" in name))
    left_out = set(tasks) - set(evenly(tasks, MOST_CURVES))
    return {
        name: evenly(curve, MOST_POINTS)
        for name, curve in series.items()
        if name.split("/")[1] not in left_out
        and (_forgets(results[0]) or not name.startswith("forgetting/"))
        and (len(curve) > 1 or not name.startswith("forgetting/task_"))  # the last task's: one 0
    }


def points(curves: Curves, summary: Summary) -> Iterator[Point]:
    """All metrics, named so that MLflow's sections come as accuracy, final, forgetting, interval, price.

    What is no curve stands at step 0, so that it is drawn as bars; ``interval/`` holds both ends of the t-interval, cut
    to the metric's bounds, and the number of seeds behind a value where some do not define it.
    """
    cells = {name: cell for name, cell in summary.cells.items() if cell is not None and name != "chance"}
    known = {name: cell for name, cell in cells.items() if _forgets(summary) or name not in OF_FORGETTING}
    single = {f"{'price' if name in PRICE else 'final'}/{name}": [(0, cell)] for name, cell in known.items()}
    series = {**single, **curves}
    for name, curve in series.items():
        yield from ((name, mean.mean, step) for step, mean in curve)
    for name, curve in series.items():
        if not name.startswith("price/"):
            yield from _interval_points(f"interval/{name.replace('/', '_')}", curve, len(summary.seeds))


def _interval_points(name: str, curve: Sequence[tuple[int, Interval]], n_seeds: int) -> Iterator[Point]:
    """The ends of each step's interval; its n at all steps where it is not always the number of seeds."""
    for step, mean in curve:
        if mean.low is not None and mean.high is not None:
            yield f"{name}_low", mean.low, step
            yield f"{name}_high", mean.high, step
    if any(mean.n < n_seeds for _, mean in curve):
        yield from ((f"{name}_n", float(mean.n), step) for step, mean in curve)


def files(results: Sequence[Result], curves: Curves, label: str) -> dict[str, bytes]:
    """The accuracy matrix as numbers and as a picture, and a picture of each task's forgetting."""
    names = _task_names(results)
    title = f"{label}, " + (f"seed {results[0].seed}" if len(results) == 1 else f"mean of {len(results)} seeds")
    accuracy = [_mean(rows) for rows in zip(*(result.accuracy for result in results), strict=True)]
    initial = _mean([result.accuracy_initial for result in results])
    matrix = {"accuracy": accuracy, "accuracy_initial": initial, "task_names": names}
    tasks = {name: curve for name, curve in curves.items() if name.startswith("forgetting/task_")}
    named = {names[int(name.removeprefix("forgetting/task_"))]: curve for name, curve in tasks.items()}
    pngs = {"accuracy.png": pictures.accuracy_heat_map(accuracy, names, f"{title}: accuracy", initial=initial)}
    if named:
        pngs["forgetting.png"] = pictures.forgetting_curves(named, f"{title}: forgetting (best so far minus now)")
    return {"accuracy.json": to_json(matrix).encode(), **pngs}


def note(name: str, summaries: Sequence[Summary], longest: int) -> str:
    """One line that MLflow shows folded, then the comparison table as far as there is room for it."""
    groups = []
    for identity, heading in IDENTITIES.items():
        rows = [s for s in summaries if s.task_identity == identity]
        n = max((len(summary.seeds) for summary in rows), default=0)
        finals = [(summary.label, summary.cells.get("average_accuracy")) for summary in rows]
        told = [of_seeds(f"{label} {cell.mean:.3f}", cell.n, n) for label, cell in finals if cell is not None]
        if told:
            groups.append(heading + ", ".join(told))
    text = f"Average accuracy at the end: {'; '.join(groups)}\n\n{tables.markdown(summaries, name)}"
    if len(text) <= longest:
        return text
    rest = f"\n\nThe whole table: `forgetlab compare {name}`."
    return text[: longest - len(rest)].rpartition("\n")[0] + rest


def evenly(items: Sequence[T], most: int) -> list[T]:
    """
    >>> evenly(range(1000), 3)
    [0, 500, 999]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def _forgets(one: Result | Summary) -> bool:
    """A reference that trains a new model for each task has nothing to forget: a dash in the table, no curve here."""
    return one.family != "reference" or one.strategy not in report.NEW_MODEL_PER_TASK


def _task_names(results: Sequence[Result]) -> list[str]:
    """The tasks' own names where they are the same for every seed and tell the tasks apart, else their numbers."""
    names = results[0].task_names
    if len(set(names)) == len(names) and all(result.task_names == names for result in results):
        return names
    return [f"task {number}" for number in range(len(names))]


def _mean(rows: Sequence[Row]) -> Row:
    """Cell by cell; None where a seed has no answer."""
    return [
        None if None in cells else sum(cell for cell in cells if cell is not None) / len(cells)
        for cells in zip(*rows, strict=True)
    ]
