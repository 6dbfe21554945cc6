"""Joint has the work that the others have had by then: by hand, in every shipped file, and in runs that are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetlab.config.load import load
from forgetlab.engine import one_run
from forgetlab.engine.search import Search
from forgetlab.experiment import Budget, Experiment, Run, StreamPart, Train
from forgetlab.learners.references import Joint
from helpers import runs
from helpers.paths import EXPERIMENTS

TRAIN = Train(batch_size=32)
SIZES = [100, 50, 33]  # training samples of each task: 4, 2 and 2 batches


@pytest.mark.parametrize(
    ("given", "planned", "together"),
    [
        (Budget(updates=40), [40, 40, 40], [{"updates": 40}, {"updates": 80}, {"updates": 120}]),
        (Budget(updates=(5, 3, 7)), [5, 3, 7], [{"updates": 5}, {"updates": 8}, {"updates": 15}]),
        (Budget(updates=40, first_task=9), [9, 40, 40], [{"updates": 9}, {"updates": 49}, {"updates": 89}]),
        (Budget(epochs=2), [8, 4, 4], [{"epochs": 2}, {"epochs": 2}, {"epochs": 2}]),
        (Budget(epochs=(5, 3, 7)), [20, 6, 14], [{"epochs": 5}, {"updates": 26}, {"updates": 40}]),
        (Budget(epochs=(5, 5, 1)), [20, 10, 2], [{"epochs": 5}, {"epochs": 5}, {"updates": 32}]),
        (Budget(epochs=2, first_task=3), [12, 4, 4], [{"epochs": 3}, {"updates": 16}, {"updates": 20}]),
    ],
)
def test_the_work_of_each_prefix_by_hand(given: Budget, planned: list[int], together: list[dict[str, int]]) -> None:
    assert given.planned_updates(SIZES, TRAIN) == planned
    found = [Joint().budget(task, given, SIZES, TRAIN) for task in range(3)]
    assert [budget.model_dump(exclude_none=True) for budget in found] == together


@pytest.mark.parametrize(
    ("given", "updates"),
    [
        (Budget(updates=40), [4, 7, 10]),  # of three equal parts a third, 3.33, and two, 6.67, rounded up
        (Budget(updates=(10, 30, 60)), [1, 4, 10]),
        (Budget(epochs=2), [5, 8, 10]),  # 8, 4 and 4 steps
    ],
)
def test_updates_of_its_own_are_shared_out_as_the_others_work_is(given: Budget, updates: list[int]) -> None:
    joint = Joint(updates=10)
    assert [joint.budget(task, given, SIZES, TRAIN) for task in range(3)] == [Budget(updates=n) for n in updates]


def under_updates_with_joint(path: Path) -> bool:
    text = path.read_text("utf-8")
    return "budget: {updates" in text and ("joint" in text or "references:" not in text)


UNDER_UPDATES = [path for path in sorted(EXPERIMENTS.rglob("*.yaml")) if under_updates_with_joint(path)]


@pytest.mark.slow
@pytest.mark.parametrize("path", UNDER_UPDATES, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_in_every_shipped_file_under_updates_joint_has_the_sum_of_the_others(path: Path) -> None:
    experiment = load(path)
    assert experiment.protocol.budget.updates is not None
    seed = experiment.seeds[0]
    joint_has_the_sum_of_the_others([experiment.run(entry, seed) for entry in experiment.entries])
    if experiment.tuning is not None:
        searches = [Search(experiment, entry, (seed,)) for entry in experiment.entries]
        joint_has_the_sum_of_the_others([one.run(one.entry, seed) for one in searches])


def joint_has_the_sum_of_the_others(compared: list[Run]) -> None:
    sizes = [len(task.train.y) for task in one_run.load_scenario(compared[0]).tasks]
    (run,) = (run for run in compared if run.strategy.name == "joint")
    joint = one_run.make_learner(run)
    assert isinstance(joint, Joint)
    for task in range(len(sizes)):
        others = {sum(other.budget.planned_updates(sizes, other.train)[: task + 1]) for other in compared}
        assert others == {joint.budget(task, run.budget, sizes, run.train).updates}


def test_there_are_such_files() -> None:
    assert {path.stem for path in UNDER_UPDATES} >= {"text_newsgroups", "joint_task", "joint_domain", "joint_class"}


DIGITS = """
name: fair
scenario: {name: split_digits}
model: {name: mlp, hidden: [16]}
protocol: {budget: BUDGET}
train: {batch_size: 64}
references: [naive, REFERENCE, separate]
"""


def counted(folder: Path, budget: str, reference: str = "joint") -> dict[str, list[int]]:
    """The optimizer's steps in each task of each entry, as they were counted in a run."""
    text = DIGITS.replace("BUDGET", budget).replace("REFERENCE", reference)
    return {result.strategy: result.counts["per_task"]["updates"] for result in runs.results(folder, text)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "each", "joint"),
    [
        ("{updates: 3}", [3, 3, 3, 3, 3], [3, 6, 9, 12, 15]),
        ("{updates: [1, 2, 3, 4, 5]}", [1, 2, 3, 4, 5], [1, 3, 6, 10, 15]),
        ("{updates: 2, first_task: 7}", [7, 2, 2, 2, 2], [7, 9, 11, 13, 15]),
    ],
)
def test_a_run_counts_what_was_planned(tmp_path: Path, budget: str, each: list[int], joint: list[int]) -> None:
    assert counted(tmp_path, budget) == {"naive": each, "joint": joint, "separate": each}


@pytest.mark.slow
def test_epochs_of_each_task_and_of_joint(tmp_path: Path) -> None:
    each = counted(tmp_path, "{epochs: [3, 1, 2, 1, 1]}")
    assert [steps // epochs for steps, epochs in zip(each["naive"], [3, 1, 2, 1, 1], strict=True)] == [5, 5, 5, 5, 5]
    assert each["separate"] == each["naive"] == [15, 5, 10, 5, 5]
    assert each["joint"] == [15, 20, 30, 35, 40]  # three passes over the first task alone, then as many steps in all


@pytest.mark.slow
def test_joint_with_updates_of_its_own(tmp_path: Path) -> None:
    found = counted(tmp_path, "{updates: 3}", "{joint: {updates: 12}}")
    assert found["joint"] == [3, 5, 8, 10, 12]  # 2.4, 4.8, 7.2, 9.6 and 12
    final = counted(tmp_path, "{updates: 3}", "{joint: {updates: 12, prefixes: final}}")
    assert final["joint"] == [12] and final["naive"] == [3, 3, 3, 3, 3]


CASE = """
name: jd
scenario: {name: split_digits}
model: {name: mlp, hidden: [64]}
protocol: {budget: {updates: 40}}
train: {batch_size: 32}
references: [joint]
"""


@pytest.mark.slow
def test_joint_at_equal_steps_on_digits(tmp_path: Path) -> None:
    """With 40 steps in all it reached .72."""
    (result,) = runs.results(tmp_path, CASE)
    assert result.counts["per_task"]["updates"] == [40, 80, 120, 160, 200]
    assert runs.final(result) >= 0.89


TUNED = """
name: tuned
scenario: {name: split_digits}
model: {name: mlp, hidden: [16]}
protocol: {budget: BUDGET}
train: {lr: [1e-3, 1e-2], batch_size: 64}
references: [naive, joint]
tuning: {tasks: 2}
"""


def searched_and_scored(experiment: Experiment) -> tuple[Run, Run]:
    """A run of joint's search, and the one that is scored."""
    joint = experiment.entries[1]
    return Search(experiment, joint, (0,)).run(joint, 0), experiment.run(joint, 0)


def test_a_list_goes_with_the_tasks_of_the_stream_when_a_search_takes_some(tmp_path: Path) -> None:
    trial, scored = searched_and_scored(runs.loaded(tmp_path, TUNED, ("BUDGET", "{updates: [1, 2, 3, 4, 5]}")))
    assert (trial.part, scored.part) == (StreamPart(last=2, validation=0.2), StreamPart(first=2))
    assert trial.budget.planned_updates([9, 9], TRAIN) == [1, 2]
    assert scored.budget == Budget(updates=(3, 4, 5))


@pytest.mark.slow
def test_a_first_task_is_that_of_the_search_and_of_the_scored_stream(tmp_path: Path) -> None:
    trial, scored = searched_and_scored(runs.loaded(tmp_path, TUNED, ("BUDGET", "{updates: 2, first_task: 7}")))
    assert one_run.run(trial).counts["per_task"]["updates"] == [7, 9]
    assert one_run.run(scored).counts["per_task"]["updates"] == [7, 9, 11]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("{epochs: [5, 3, 7]}", "a list of 3, and the stream has 5 tasks: write a number for each, or one for all"),
        ("{updates: [9]}", "a list of 1, and the stream has 5 tasks: write a number for each, or one for all"),
        ("{epochs: []}", "'epochs': should be a whole number above 0, or a list of one for each task, not []"),
        ("{updates: 0}", "'updates': should be a whole number above 0, or a list of one for each task, not 0"),
        ("{epochs: 2.5}", "'epochs': should be a whole number above 0, or a list of one for each task, not 2.5"),
        ("{epochs: true}", "'epochs': should be a whole number above 0, or a list of one for each task, not True"),
        ("{first_task: 5}", "give either epochs or updates"),
        (
            "{epochs: [1, 2, 3, 4, 5], first_task: 5}",
            "first_task stands beside one number; a list says already what the first task has",
        ),
    ],
)
def test_a_budget_that_has_no_meaning_is_refused_at_its_place(tmp_path: Path, budget: str, message: str) -> None:
    ((place, told),) = runs.told(tmp_path, DIGITS.replace("BUDGET", budget).replace("REFERENCE", "joint"))
    assert told == message
    assert place.startswith((budget, budget.split(": ", 1)[1]))


OTHER = """
name: other
scenario: {name: split_digits, n_tasks: 2}
model: {name: mlp, hidden: [16]}
protocol: {budget: {updates: [1, 2]}}
train: {lr: [1e-3, 1e-2]}
references: [naive]
tuning: {scenario: {name: stream, data: digits, n_tasks: N}}
"""


def test_a_list_has_to_be_long_enough_for_another_stream_of_a_search(tmp_path: Path) -> None:
    found = [message for _, message in runs.told(tmp_path, OTHER.replace("N", "5"))]
    assert any("lists 2 numbers, and the search is on 5 tasks" in message for message in found)
    assert not any("lists" in message for _, message in runs.told(tmp_path, OTHER.replace("N", "2")))


ONLINE = """
name: online
scenario: {name: stream, data: digits, setting: data-incremental, n_tasks: 3, online: true}
model: {name: mlp, hidden: [16]}
protocol: {budget: BUDGET}
references: [naive]
"""


@pytest.mark.parametrize(
    ("budget", "refused"),
    [("{epochs: [1, 1, 1]}", False), ("{epochs: [1, 2, 1]}", True), ("{epochs: 1, first_task: 2}", True)],
)
def test_an_online_stream_is_gone_through_once_whatever_the_task(tmp_path: Path, budget: str, refused: bool) -> None:
    found = [message for _, message in runs.told(tmp_path, ONLINE.replace("BUDGET", budget))]
    assert found == ["the stream is online, every sample passes by once, so write 'budget: {epochs: 1}'"] * refused
