"""Tables and curves from results made by hand."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from forgetlab.metrics import accuracy_matrix
from forgetlab.metrics.definition_texts import SHARE
from forgetlab.metrics.intervals import t_interval
from forgetlab.report import curves as report_curves
from forgetlab.report import mlflow_view, tables
from forgetlab.report import summary as report
from forgetlab.report.summary import Finished, Summary
from forgetlab.report.tables import DASH
from forgetlab.results.store import Result, Row

FALLS: list[Row] = [[0.9, None], [0.5, 0.8]]
STAYS: list[Row] = [[0.9, None], [0.9, 0.9]]
RELATIVE = ("intransigence", "relative_learning_accuracy", "normalised_accuracy")


def run(strategy: str, accuracy: Sequence[Row] = FALLS, seed: int = 0, **changes: Any) -> Finished:
    fields: dict[str, Any] = {
        "family": "reference" if strategy in ("naive", "joint", "separate", "ridge") else "replay",
        "task_identity": "none",
        "overrides": {},
        "protocol": {},
        "task_names": [f"task {j}" for j in range(len(accuracy[0]))],
        "classes_per_task": [[2 * j, 2 * j + 1] for j in range(len(accuracy[0]))],
        "test_sizes": [100] * len(accuracy[0]),
        "accuracy_initial": [None] * len(accuracy[0]),
        "counts": {"total": {"parameters": 12_345, "stored_bytes": 1024, "memory_bytes": 512}},
    }
    timing = {"processor_seconds": changes.pop("seconds", 2.0), "wall_seconds": 60.0}
    result = Result(strategy=strategy, seed=seed, accuracy=list(accuracy), **fields | changes)
    return Finished(result, timing)


def mean(summary: Summary, name: str) -> float:
    cell = summary.cells[name]
    assert cell is not None
    return cell.mean


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def cells(text: str, strategy: str) -> list[str]:
    (line,) = lines(text, f"| {strategy} |")
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_summary_holds_mean_and_interval_over_seeds():
    second: list[Row] = [[0.8, None], [0.6, 0.9]]
    (summary,) = report.summarise([run("er"), run("er", second, seed=3, seconds=4)])
    assert (summary.strategy, summary.label, summary.seeds) == ("er", "er", (0, 3))
    assert summary.cells["average_accuracy"] == t_interval([0.65, 0.75], bounds=SHARE)
    assert str(summary.cells["forgetting"]) == str(t_interval([0.4, 0.2], bounds=SHARE))
    assert summary.cells["seconds"] == t_interval([2, 4])
    assert summary.cells["parameters"] == t_interval([12_345, 12_345])
    assert summary.cells["updates"] is None, "not counted"
    assert summary.cells["forward_transfer"] is None, "a growing head"


def test_seconds_are_the_processors_and_never_mixed_with_the_wall_clocks():
    earlier = replace(run("er", seed=1), timing={"seconds": 60.0})
    (summary,) = report.summarise([run("er"), earlier])
    assert summary.cells["seconds"] == t_interval([2.0])
    assert report.summarise([earlier])[0].cells["seconds"] is None
    assert cells(tables.markdown([summary], "x"), "er")[4] == "2.0 (n = 1)"


def test_what_the_store_holds_is_shown_as_it_is():
    (summary,) = report.summarise([run("er", metrics={"average_accuracy": 0.25, "own_invention": 7.0})])
    assert summary.cells["average_accuracy"] == t_interval([0.25], bounds=SHARE)
    assert summary.cells["own_invention"] == t_interval([7.0])
    assert mean(summary, "learning_accuracy") == pytest.approx(0.85), "not stored, so worked out"


def test_a_strategy_with_other_overrides_is_another_row():
    runs = [run("er"), run("er", overrides={"lr": 1e-2}), run("er", seed=1)]
    summaries = report.summarise(runs)
    assert [(s.label, s.seeds) for s in summaries] == [("er", (0, 1)), ("er (lr=0.01)", (0,))]


def test_relative_metrics_use_the_references_of_the_same_seed():
    runs = [
        run("joint", [[0.9, None], [0.7, 0.9]], seed=0),
        run("separate", [[1.0, None], [1.0, 1.0]], seed=1),
        run("er", seed=0),
        run("er", seed=1),
    ]
    *_, er = report.summarise(runs)
    assert mean(er, "intransigence") == pytest.approx(0.05)
    assert mean(er, "relative_learning_accuracy") == pytest.approx(-0.15)
    normalised = [(0.5 - 0.25) / (0.7 - 0.25), (0.8 - 0.25) / (0.9 - 0.25)]  # chance: 1 of 4 classes
    assert mean(er, "normalised_accuracy") == pytest.approx(sum(normalised) / 2)
    assert {cell.n for name, cell in er.cells.items() if cell and name in RELATIVE} == {1}, "one seed each"


@pytest.mark.parametrize(
    "other",
    [
        {"task_identity": "told"},
        {"seed": 1},
        {"classes_per_task": [[3, 2], [1, 0]]},
        {"family": "replay"},
    ],
    ids=["knows the task", "other seed", "other classes", "no reference"],
)
def test_a_reference_that_is_no_yardstick_is_not_used(other: dict[str, Any]):
    er = report.summarise([run("joint", STAYS, **other), run("er")])[-1]
    assert er.cells["intransigence"] is None
    assert er.cells["normalised_accuracy"] is None


def test_a_routed_strategy_is_compared_with_an_untold_joint():
    er = report.summarise([run("joint", STAYS), run("lora", task_identity="routed")])[-1]
    assert mean(er, "intransigence") == pytest.approx(0.05)


def test_chance_follows_from_what_is_told():
    tasks: dict[str, Any] = {"classes_per_task": [[0, 1], [2, 3, 4, 5]]}
    assert report.chance(run("er", **tasks).result) == [1 / 6, 1 / 6]
    assert report.chance(run("er", task_identity="told", **tasks).result) == [1 / 2, 1 / 4]
    domains: dict[str, Any] = {"classes_per_task": [[0, 1], [0, 1]]}
    assert report.chance(run("er", **domains).result) == [1 / 2, 1 / 2]


def test_a_router_is_not_told_so_it_guesses_among_all_classes():
    tasks: dict[str, Any] = {"classes_per_task": [[0, 1], [2, 3, 4, 5]]}
    assert report.chance(run("lora", task_identity="routed", **tasks).result) == [1 / 6, 1 / 6]


def test_a_whole_markdown_table():
    runs = [
        run("er", seed=0),
        run("naive", seed=0),
        run("joint", STAYS, seed=0),
        run("er", [[0.9, None], [0.7, 0.8]], seed=1),
        run("naive", seed=1),
        run("joint", STAYS, seed=1),
    ]
    text = tables.markdown(report.summarise(runs), "split")
    assert text.startswith("## split\n\n### No task identity used\n\n| strategy | average accuracy (final) |")
    assert [line.split(" | ")[0] for line in lines(text, "| ")][1:] == ["| :--", "| naive", "| joint", "| er"]
    expected = ["naive", "0.650 ± 0.000", "0.400 ± 0.000", "0.850 ± 0.000", "2.0", "12.3k", "1.5 KiB"]
    assert cells(text, "naive") == expected
    assert cells(text, "joint")[1:4] == ["0.900 ± 0.000", DASH, "0.900 ± 0.000"]
    assert cells(text, "er")[1:3] == ["0.700 [0.065, 1.000]", "0.300 [0.000, 1.000]"]  # t(1, .975) = 12.706
    assert "n = 2 seeds; guessing gives 0.250." in text
    assert "± is a 95 % t-interval over seeds" in text
    assert "`forgetlab show metric NAME` gives each definition" in text


def test_sections_never_share_a_table_and_stand_in_order():
    router = {"router_accuracy": [[1.0, None], [0.5, 0.75]]}
    runs = [
        run("separate", STAYS, task_identity="told"),
        run("lora", task_identity="routed", scores=router),
        run("er"),
    ]
    text = tables.markdown(report.summarise(runs), "all")
    assert lines(text, "### ") == [
        "### No task identity used",
        "### Task inferred by a router (routed)",
        "### Task told at test (oracle)",
    ]
    assert [header.endswith("router accuracy |") for header in lines(text, "| strategy")] == [
        False,
        True,
        False,
    ]
    assert cells(text, "lora")[-1] == "0.625"
    assert "guessing gives 0.250" in text.split("### Task told")[0]
    assert "guessing gives 0.500" in text.split("### Task told")[1]


def test_a_file_with_the_task_told_throughout_has_one_section():
    runs = [run("naive", task_identity="told"), run("er", task_identity="told")]
    assert len(lines(tables.markdown(report.summarise(runs), "til"), "### ")) == 1


def test_separate_and_joint_have_no_forgetting_but_a_strategy_of_that_name_has():
    text = tables.markdown(report.summarise([run("separate"), run("joint", family="replay")]), "x")
    assert cells(text, "separate")[2] == DASH
    assert cells(text, "joint")[2] == "0.400"


def test_a_cell_over_fewer_seeds_says_so():
    unknown: list[Row] = [[None, None], [None, 0.5]]
    runs = [run("er"), run("er", seed=1), run("er", unknown, seed=2), run("ewc"), run("ewc", seed=1), run("lwf")]
    summaries = report.summarise(runs)
    text = tables.markdown(summaries, "x")
    assert cells(text, "er")[:3] == ["er", "0.650 ± 0.000 (n = 2)", "0.400 ± 0.000 (n = 2)"]
    assert cells(text, "er")[4] == "2.0", "all three runs took time"
    assert cells(text, "ewc")[1:5] == [
        "0.650 ± 0.000 (n = 2)",
        "0.400 ± 0.000 (n = 2)",
        "0.850 ± 0.000 (n = 2)",
        "2.0 (n = 2)",
    ], "a run that failed is missing from the whole row"
    assert cells(text, "lwf")[1] == "0.650 (n = 1)"
    (foot,) = lines(text, "n = 3 seeds")
    assert tables.TWO_SEEDS in foot
    out = io.StringIO()
    Console(file=out, width=250).print(tables.table(summaries))
    assert "0.650 ± 0.000 (n = 2)" in out.getvalue() and "t = 12.7" in out.getvalue()
    note = mlflow_view.note("x", summaries, 5000)
    assert note.startswith("Average accuracy at the end: er 0.650 (n = 2), ewc 0.650 (n = 2), lwf 0.650 (n = 1)")
    assert "| 0.650 ± 0.000 (n = 2) |" in note


@pytest.mark.parametrize(("n", "told"), [(1, False), (2, True), (3, False)])
def test_the_foot_says_what_two_seeds_are_worth_and_only_then(n: int, told: bool):
    text = tables.markdown(report.summarise([run("er", seed=seed) for seed in range(n)]), "x")
    assert ("t = 12.7" in text) == told
    factor = t_interval([0.0, 1.0]).half_width
    assert factor is not None and factor / 0.5**0.5 == pytest.approx(9, abs=0.1), "standard deviations to each side"


def test_an_interval_stays_within_the_bounds_of_its_metric():
    better: list[Row] = [[0.98, None], [0.96, 0.98]]
    worse: list[Row] = [[0.9, None], [0.86, 0.9]]
    (summary,) = report.summarise([run("er", better), run("er", worse, seed=1), run("er", better, seed=2)])
    text = tables.markdown([summary], "x")
    plain = t_interval([0.97, 0.88, 0.97])
    assert plain.high is not None and plain.high > 1
    assert cells(text, "er")[1] == f"0.940 [{plain.low:.3f}, 1.000]"
    assert cells(text, "er")[2] == "0.027 [0.000, 0.055]", "forgetting is never negative"
    transfer = summary.cells["backward_transfer"]
    assert transfer is not None and transfer.bounds == (-1, 1)
    points = dict((name, value) for name, value, _ in mlflow_view.points({}, summary))
    assert points["interval/final_average_accuracy_high"] == 1.0
    assert points["interval/final_average_accuracy_low"] == plain.low
    assert "interval/final_average_accuracy_n" not in points


def test_a_tracker_is_told_the_seeds_behind_a_value():
    unknown: list[Row] = [[None, None], [None, 0.5]]
    runs = [run("er"), run("er", seed=1), run("er", unknown, seed=2)]
    (summary,) = report.summarise(runs)
    curves = mlflow_view.thinned_curves([one.result for one in runs])
    points = {(name, step): value for name, value, step in mlflow_view.points(curves, summary)}
    assert points["interval/final_average_accuracy_n", 0] == 2.0
    assert points["interval/accuracy_task_0_n", 1] == 2.0
    assert ("interval/accuracy_task_1_n", 2) not in points


def test_one_seed_and_missing_counts():
    text = tables.markdown(report.summarise([run("er", counts={})]), "x")
    assert cells(text, "er") == ["er", "0.650", "0.400", "0.850", "2.0", DASH, DASH]
    assert "1 seed, so no interval" in text


def test_a_label_cannot_break_the_tables():
    summaries = report.summarise([run("er", overrides={"note": "a|b[red]"})])
    assert r"| er (note=a\|b[red]) |" in tables.markdown(summaries, "x")
    out = io.StringIO()
    Console(file=out, width=200).print(tables.table(summaries))
    assert "er (note=a|b[red])" in out.getvalue()


def test_the_terminal_table_says_what_the_markdown_says():
    runs = [run("naive"), run("lora", STAYS, task_identity="routed"), run("joint", STAYS)]
    summaries = report.summarise(runs)
    out = io.StringIO()
    Console(file=out, width=220).print(tables.table(summaries))
    shown = out.getvalue()
    for line in lines(tables.markdown(summaries, "x"), "| "):
        if not line.startswith("| :--"):
            row = " ".join(line.strip("| ").replace("|", " ").split())
            plain = [" ".join(part.replace("│", " ").replace("┃", " ").split()) for part in shown.splitlines()]
            assert row in plain
    assert shown.index("No task identity used") < shown.index("(routed)")


def test_step_metrics_of_one_run():
    accuracy: list[Row] = [[0.75, 0.5, None], [0.25, 1.0, None]]
    series = report_curves.step_metrics(run("er", accuracy, accuracy_initial=[0.5, None, None]).result)
    assert series == {
        "accuracy/task_0": [(0, 0.5), (1, 0.75), (2, 0.25)],
        "accuracy/task_1": [(1, 0.5), (2, 1.0)],
        "forgetting/task_0": [(1, 0.0), (2, 0.5)],
        "forgetting/task_1": [(2, 0.0)],
        "accuracy/average": [(1, 0.75), (2, 0.625)],
        "forgetting/average": [(2, 0.5)],
    }


@pytest.mark.parametrize(("n_tasks", "first"), [(10, "task_0"), (11, "task_00"), (101, "task_000")])
def test_task_numbers_sort_as_names(n_tasks: int, first: str):
    names = report_curves.step_metrics(run("er", [[0.5] * n_tasks]).result)
    assert f"accuracy/{first}" in names
    accuracy = [name for name in names if name.startswith("accuracy/task_")]
    assert accuracy == sorted(accuracy) and len(accuracy) == n_tasks


def test_the_last_step_agrees_with_the_metrics():
    series = report_curves.step_metrics(run("er").result)
    own = accuracy_matrix.own_metrics(FALLS, [None, None])
    assert series["accuracy/average"][-1] == (2, own["average_accuracy"])
    assert series["forgetting/average"][-1] == (2, own["forgetting"])


def test_mean_step_metrics_over_seeds_of_unequal_length():
    results = [run("er").result, run("er", [[0.7, None]], seed=1).result]
    curves = report_curves.mean_step_metrics(results)
    assert curves["accuracy/average"] == [
        (1, t_interval([0.9, 0.7], bounds=SHARE)),
        (2, t_interval([0.65], bounds=SHARE)),
    ]
    assert curves["accuracy/task_1"] == [(2, t_interval([0.8], bounds=SHARE))]


def test_curves_by_strategy_and_task_identity():
    curves = report_curves.curves([run("er"), run("er", task_identity="told"), run("er", seed=1)])
    assert list(curves) == [("er", "none"), ("er", "told")]
    assert [interval.n for _, interval in curves["er", "none"]["accuracy/average"]] == [2, 2]


def test_importing_the_report_loads_nothing_heavy():
    code = "import sys, forgetlab.report.summary; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "rich", "mlflow", "matplotlib", "scipy.stats"} & set(loaded)


def test_the_foot_tells_how_many_seeds_were_adopted_and_of_whom() -> None:
    runs = [run("er", seed=seed) for seed in (0, 1, 2)] + [run("ewc", seed=seed) for seed in (0, 1, 2)]
    text = tables.markdown(report.summarise(runs), "title")
    assert "Adopted" not in text
    adopted = [replace(one, adopted=one.result.strategy == "er" and one.result.seed > 0) for one in runs]
    text = tables.markdown(report.summarise(adopted), "title")
    (foot,) = lines(text, "n = 3 seeds")
    assert foot.endswith(". Adopted, made by an earlier version: er (2 of 3).")
