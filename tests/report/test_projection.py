"""What a run shows, without a tracker."""

from __future__ import annotations

import json

import pytest

from forgetlab.report import mlflow_view
from forgetlab.report import summary as report
from forgetlab.report.summary import Finished
from forgetlab.results.store import Result, Row


def result(strategy: str = "ewc", n_tasks: int = 2, seed: int = 0, names: list[str] | None = None) -> Result:
    matrix: list[Row] = [[1 - 0.001 * (i - j) if j <= i else None for j in range(n_tasks)] for i in range(n_tasks)]
    return Result(
        strategy=strategy,
        family="reference" if strategy in ("joint", "naive") else "regularization",
        task_identity="told" if strategy == "oracle" else "none",
        seed=seed,
        overrides={},
        protocol={},
        task_names=names or [f"part {number}" for number in range(n_tasks)],
        classes_per_task=[[2 * task, 2 * task + 1] for task in range(n_tasks)],
        test_sizes=[10] * n_tasks,
        accuracy=matrix,
        accuracy_initial=[None] * n_tasks,
    )


def test_a_single_seed_has_no_intervals() -> None:
    results = [result()]
    (summary,) = report.summarise([Finished(one, {"processor_seconds": 1.0}) for one in results])
    names = {name for name, _, _ in mlflow_view.points(mlflow_view.thinned_curves(results), summary)}
    assert {"accuracy/average", "accuracy/task_0", "final/average_accuracy", "price/seconds"} <= names
    assert not [name for name in names if name.startswith("interval/")]


def test_the_last_tasks_forgetting_is_no_curve() -> None:
    assert set(mlflow_view.thinned_curves([result(n_tasks=3)])) == {
        "accuracy/average", "accuracy/task_0", "accuracy/task_1", "accuracy/task_2",
        "forgetting/average", "forgetting/task_0", "forgetting/task_1",
    }  # fmt: skip


def test_a_model_made_anew_for_each_task_forgets_nothing() -> None:
    assert [name for name in mlflow_view.thinned_curves([result("naive")]) if name.startswith("forgetting/")]
    assert not [name for name in mlflow_view.thinned_curves([result("joint")]) if name.startswith("forgetting/")]


@pytest.mark.slow
def test_many_tasks_are_thinned_to_the_first_the_last_and_some_between() -> None:
    curves = mlflow_view.thinned_curves([result(n_tasks=250)])
    tasks = sorted(name for name in curves if name.startswith("accuracy/task_"))
    assert len(tasks) == mlflow_view.MOST_CURVES and {tasks[0], tasks[-1]} == {"accuracy/task_000", "accuracy/task_249"}
    steps = [step for step, _ in curves["accuracy/average"]]
    assert len(steps) == mlflow_view.MOST_POINTS and {steps[0], steps[-1]} == {1, 250}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((["a", "b"], ["a", "b"]), ["a", "b"]),
        ((["a", "b"], ["b", "a"]), ["task 0", "task 1"]),  # the order of the classes varies with the seed
        ((["a", "a"], ["a", "a"]), ["task 0", "task 1"]),
    ],
)
def test_tasks_bear_their_names_where_all_seeds_agree(names: tuple[list[str], list[str]], expected: list[str]) -> None:
    results = [result(seed=seed, names=mine) for seed, mine in enumerate(names)]
    files = mlflow_view.files(results, mlflow_view.thinned_curves(results), "ewc")
    assert set(files) == {"accuracy.json", "accuracy.png", "forgetting.png"}
    assert all(f'"{name}"'.encode() in files["accuracy.json"] for name in expected)


def test_a_cell_that_one_seed_lacks_is_no_mean_of_the_others() -> None:
    """Else the mean of one cell would be over other seeds than that of the next."""
    results = [result(seed=seed) for seed in (0, 1)]
    results[1].accuracy[1][0] = None
    files = mlflow_view.files(results, mlflow_view.thinned_curves(results), "ewc")
    assert json.loads(files["accuracy.json"])["accuracy"] == [[1.0, None], [None, 1.0]]


def test_the_note_keeps_to_its_room_and_says_where_the_rest_is() -> None:
    finished = [Finished(result(f"method-{number}"), {}) for number in range(40)] + [Finished(result("oracle"), {})]
    summaries = report.summarise(finished)
    whole = mlflow_view.note("many", summaries, 10**6)
    assert whole.splitlines()[0].endswith("method-39 1.000; task told: oracle 1.000")
    cut = mlflow_view.note("many", summaries, 3000)
    assert len(cut) <= 3000 and cut.endswith("The whole table: `forgetlab compare many`.")
    assert whole.startswith(cut.rpartition("\n\n")[0])
