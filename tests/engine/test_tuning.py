"""Tuning without peeking: what may be listed, what a search is given, what it chooses, and what is told of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetlab.cli.progress import Progress
from forgetlab.config import load
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.engine import one_run, search, search_space
from forgetlab.engine.all_runs import carry_out
from forgetlab.engine.events import RunEnded, RunFailed, RunFound, TrialEnded
from forgetlab.experiment import Choice, Experiment, Replay, Run, Strategy
from forgetlab.plugins import registry
from forgetlab.report import mlflow_view, tables
from forgetlab.report import summary as report
from forgetlab.report.summary import Finished
from forgetlab.results.store import RunFolder, Store
from forgetlab.streams.scenario import Scenario
from helpers.commands import invoke
from helpers.runs import contents

SCENARIO = "{name: split_digits, n_tasks: 5}"
FILE = """
name: tuned
scenario: SCENARIO
model: {name: mlp, hidden: [16]}
protocol: {budget: {epochs: 2}}
train: {lr: [1e-3, 1e-2, 3e-2], batch_size: 32}
references: [naive, ridge]
strategies:
  - replay: {memory: reservoir, capacity: 50}
tuning: {tasks: 2}
"""
MASKED = '''
"""Digits whose data outside of the search's tasks, and all of whose test data, are noise if a file says so."""

from dataclasses import replace

import torch

from forgetlab import plugins
from forgetlab.plugins import register
from forgetlab.streams.scenario import Samples, Scenario


@register("scenario", "masked_digits")
def masked_digits(seed: int, noise: bool = False) -> Scenario:
    whole = plugins.build("scenario", "split_digits", {"n_tasks": 5}, seed=seed)
    draw = torch.Generator().manual_seed(seed)

    def noisy(samples):
        order = torch.randperm(len(samples.y), generator=draw)
        return Samples(torch.rand(samples.x.shape, generator=draw), samples.y[order])

    masked = [
        replace(task, test=noisy(task.test), train=task.train if i < 2 else noisy(task.train))
        for i, task in enumerate(whole.tasks)
    ]
    return replace(whole, tasks=tuple(masked)) if noise else whole
'''


def experiment(folder: Path, *changes: tuple[str, str], file: str = FILE) -> Experiment:
    text = file
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "file.yaml"
    path.write_text(text.replace("SCENARIO", SCENARIO), encoding="utf-8")
    return load.load(path)


def refused(folder: Path, *changes: tuple[str, str]) -> list[str]:
    """What is told of a file that is refused: ``LINE:COLUMN: message``."""
    with pytest.raises(FileErrors) as caught:
        experiment(folder, *changes)
    return [f"{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


def carried_out(given: Experiment, root: Path, **options: Any) -> tuple[list[RunFolder], list[str]]:
    """The folders, and what was told of runs and of trials, in short."""
    told: list[str] = []
    kinds = {RunFound: "found", RunEnded: "trained", RunFailed: "failed"}

    def note(event: Any) -> None:
        if isinstance(event, TrialEnded):
            told.append(f"trial {kinds[type(event.last)]}")
        elif type(event) in kinds:
            told.append(kinds[type(event)])

    return carry_out(given, Store(root), report=note, **options), told


def log(folder: RunFolder) -> dict[str, Any]:
    return json.loads((folder.path / "tuning.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path, list[RunFolder]]:
    """One experiment, carried out once."""
    folder = tmp_path_factory.mktemp("tuned")
    given = experiment(folder)
    folders, told = carried_out(given, folder / "runs")
    assert told == [*["trial trained"] * 3, "trained", "trained", *["trial trained"] * 3, "trained"]
    return given, folder, folders


@pytest.fixture
def masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    registry.discover()
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(registry, "_files", dict(registry._files))
    (tmp_path / "masked.py").write_text(MASKED, encoding="utf-8")
    one_run._load_scenario.cache_clear()
    yield tmp_path
    one_run._load_scenario.cache_clear()


def whole(**options: Any) -> Scenario:
    return registry.build("scenario", "stream", {"data": "digits", "n_tasks": 5, **options}, seed=0)


# A part of a stream


def test_the_tasks_after_the_search_are_a_stream_of_their_own() -> None:
    stream = whole()
    part = stream.part(2)
    assert [task.name for task in part.tasks] == [task.name for task in stream.tasks[2:]]
    assert [task.classes for task in part.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert part.class_names == stream.class_names[4:]
    for mine, its in zip(part.tasks, stream.tasks[2:], strict=True):
        assert torch.equal(mine.train.x, its.train.x) and torch.equal(mine.train.y, its.train.y - 4)
        assert torch.equal(mine.test.x, its.test.x) and torch.equal(mine.test.y, its.test.y - 4)


def test_what_comes_back_in_later_tasks_is_numbered_as_it_appears() -> None:
    stream = whole(repetition=0.5)
    part = stream.part(2)
    first = [min(i for i, task in enumerate(part.tasks) if label in task.classes) for label in range(part.n_classes)]
    assert first == sorted(first)
    for mine, its in zip(part.tasks, stream.tasks[2:], strict=True):
        names = [
            {stream_.class_names[label] for label in task.classes} for stream_, task in ((part, mine), (stream, its))
        ]
        assert names[0] == names[1]


def test_domains_keep_their_labels() -> None:
    stream = whole(setting="domain-incremental", transform="permutation")
    part = stream.part(2)
    assert part.class_names == stream.class_names and part.tasks == stream.tasks[2:]


def test_validation_data_are_cut_from_training_data_where_a_stream_keeps_none() -> None:
    stream = whole().part(0, 2)
    cut = stream.with_validation(0.2)
    for task, before in zip(cut.tasks, stream.tasks, strict=True):
        assert task.validation is not None
        for label in before.classes:
            n = int((before.train.y == label).sum())
            assert int((task.validation.y == label).sum()) == round(0.2 * n)
            assert int((task.train.y == label).sum()) == n - round(0.2 * n)
        rows = {x.numpy().tobytes() for x in (*task.train.x, *task.validation.x)}
        assert rows == {x.numpy().tobytes() for x in before.train.x}
        assert task.test is before.test
    assert cut.checksum() == stream.with_validation(0.2).checksum()
    kept = whole(validation=0.1)
    assert kept.with_validation(0.2) == kept


# What a file may list


def test_lists_of_numbers_are_choices_and_lists_by_type_are_not(tmp_path: Path) -> None:
    given = experiment(
        tmp_path,
        ("naive, ridge", "naive, ridge: {strength: [1, 10, 100]}"),
        ("capacity: 50}", "capacity: [20, 50, 80]}\n    train: {lr: 1e-2}"),
        (
            "tuning:",
            "  - regularization: [{name: ewc, strength: [1, 2, 4]}, {name: si}]\n    train: {lr: 0.1}\n"
            "  - isolation: [{name: lora, rank: [1, 2, 4], sites: [mlp.in]}]\n    train: {lr: 0.1}\ntuning:",
        ),
    )
    assert given.tuning is not None and given.model["hidden"] == [16]
    listed = {choice.at: choice.values for choice in given.tuning.choices}
    assert listed == {
        ("train", "lr"): (1e-3, 1e-2, 3e-2),
        ("references", 1, "strength"): (1.0, 10.0, 100.0),
        ("strategies", 0, "replay", "memory", "capacity"): (20, 50, 80),
        ("strategies", 1, "regularization", 0, "strength"): (1.0, 2.0, 4.0),
        ("strategies", 2, "isolation", "parts", 0, "rank"): (1, 2, 4),
    }
    spaces = {entry.name: search_space.choice_names(entry, search_space.space(given, entry)) for entry in given.entries}
    assert spaces == {
        "naive": ["lr"],
        "ridge": ["strength"],
        "reservoir": ["capacity"],
        "ewc+si": ["strength"],
        "lora+prototype": ["rank"],
    }
    assert [search_space.n_trials(given, entry) for entry in given.entries] == [3, 3, 3, 3, 3]
    (_, _, memory, ewc, lora) = given.entries
    assert [placed.replay.memory["capacity"] for placed in search_space.variants(given, memory)] == [50, 80]  # type: ignore
    assert [placed.regularization[0]["strength"] for placed in search_space.variants(given, ewc)] == [2.0, 4.0]  # type: ignore
    assert [placed.isolation["parts"][0]["rank"] for placed in search_space.variants(given, lora)] == [2, 4]  # type: ignore


def test_the_resolved_file_describes_the_same_search(tmp_path: Path) -> None:
    rate = ("lr: [1e-3, 1e-2, 3e-2]", "lr: {low: 1e-3, high: 1e-1, log: true}")
    own = ("capacity: 50}", "capacity: [20, 50]}\n    train: {lr: [0.1, 0.2]}")
    how = ("{tasks: 2}", "{search: optuna, trials: 4, seeds: [3]}\nseeds: [3]")
    for changes in ((), (own, ("{tasks: 2}", "{trials: 4}")), (rate, own, how)):
        given = experiment(tmp_path, *changes)
        text = load.resolved(given)
        assert "choices" not in text
        assert experiment(tmp_path, file=text) == given


def test_a_grid_is_in_the_order_of_the_file(tmp_path: Path) -> None:
    changes = (
        ("lr: [1e-3, 1e-2, 3e-2]", "weight_decay: [0, 0.1], lr: [1e-3, 1e-2], batch_size: [8, 16]"),
        (", batch_size: 32", ""),
        ("tuning:", "  - regularization: {name: lwf, temperature: [1, 2], strength: [3, 4]}\ntuning:"),
        ("{tasks: 2}", "{trials: 4}"),
    )
    given = experiment(tmp_path, *changes)
    naive, lwf = given.entries[0], given.entries[-1]
    assert search_space.choice_names(naive, search_space.space(given, naive)) == ["weight_decay", "lr", "batch_size"]
    chosen = search_space.choice_names(lwf, search_space.space(given, lwf))
    assert chosen == ["weight_decay", "lr", "batch_size", "temperature", "strength"]


def test_choices_have_the_shortest_names_that_tell_them_apart() -> None:
    entry = Strategy(
        name="many",
        replay=Replay(memory={"name": "reservoir", "capacity": 5}),
        regularization=({"name": "ewc", "strength": 1.0}, {"name": "lwf", "strength": 2.0}),
        isolation={"name": "odd", "lr": 0.1},
    )
    called = {
        ("train", "lr"): "lr",
        ("replay", "memory", "capacity"): "capacity",
        ("isolation", "lr"): "isolation.lr",  # not the rate of training
        ("regularization", 0, "strength"): "ewc.strength",
        ("regularization", 1, "strength"): "lwf.strength",
    }
    assert search_space.choice_names(entry, tuple(Choice(at=at) for at in called)) == list(called.values())
    both = tuple(Choice(at=("regularization", i, "strength")) for i in range(2))
    assert search_space.choice_names(entry, both[:1]) == ["strength"]
    twins = entry.model_copy(update={"regularization": ({"name": "ewc", "strength": 1.0},) * 2})
    assert search_space.choice_names(twins, both) == ["0.strength", "1.strength"]


# What is refused


def test_unequal_trials_are_refused_unless_the_file_says_how_many(tmp_path: Path) -> None:
    longer = ("capacity: 50}", "capacity: [20, 50]}")
    (line,) = refused(tmp_path, longer)  # ridge trains nothing and has nothing listed
    assert line.startswith("7:14: 3 combinations to try in naive, 6 in reservoir: list as many")
    given = experiment(tmp_path, longer, ("{tasks: 2}", "{tasks: 2, trials: 4}"))
    assert [search_space.n_trials(given, entry) for entry in given.entries] == [3, 0, 4]
    (line,) = refused(tmp_path, longer, ("references: [naive, ridge]", "references: [ridge: {strength: [1, 2]}]"))
    assert line.startswith("7:21: 2 combinations to try in ridge, 6 in reservoir")
    fixed = ("capacity: 50}", "capacity: 50}\n    train: {lr: 0.1}")
    (line,) = refused(tmp_path, fixed)
    assert line.startswith("9:5: 1 combination to try in reservoir, 3 in naive")


@pytest.mark.parametrize(
    ("seeds", "vary", "is_refused"),
    [
        ("seeds: [0, 1]", "[class_order, init]", True),
        ("seeds: [5]", "[class_order, init]", True),
        ("seeds: [5, 6, 7]", "[init]", False),
        ("seeds: each", "[class_order, init]", False),
        ("tasks: 2", "[class_order, init]", False),
    ],
)
def test_no_class_that_one_seed_searched_on_is_scored_under_another(
    tmp_path: Path, seeds: str, vary: str, is_refused: bool
) -> None:
    changes = (
        ("epochs: 2}", f"epochs: 2}}, seeds_vary: {vary}"),
        ("{tasks: 2}", f"{{{seeds}}}\nseeds: [0, 1]"),
    )
    if is_refused:
        (line,) = refused(tmp_path, *changes)
        assert line.startswith("10:17: the class order varies with the seed")
    else:
        experiment(tmp_path, *changes)


def test_every_candidate_is_built_before_anything_is_trained(tmp_path: Path) -> None:
    lora = "  - {isolation: {name: lora, rank: [2, 4, 9999], sites: [attn.q]}, train: {lr: 0.1}}\ntuning:"
    (line,) = refused(tmp_path, ("tuning:", lora))
    assert line.startswith("10:57: a mlp has no 'attn.q' to attach to")


@pytest.mark.parametrize(
    ("rank", "tuning"),
    [("[2, 4, 999]", "{tasks: 2}"), ("{low: 2, high: 999}", "{tasks: 2, search: optuna, trials: 3}")],
)
def test_a_candidate_that_cannot_be_built_is_told_though_the_first_can(tmp_path: Path, rank: str, tuning: str) -> None:
    """Of a range both ends are built."""
    module = f"{{name: lora, rank: {rank}, start: pissa, sites: [mlp.in]}}"
    lora = f"  - {{isolation: {module}, train: {{lr: 0.1}}}}\ntuning:"
    (line,) = refused(tmp_path, ("tuning:", lora), ("{tasks: 2}", tuning))
    assert line.startswith("10:") and "there are 16 singular vectors to start from" in line


OTHER = "{name: stream, data: mnist_5k, n_tasks: 2, samples_per_task: 60, test_samples_per_task: 20%s}"


def test_another_stream_to_search_on(tmp_path: Path) -> None:
    given = experiment(tmp_path, ("{tasks: 2}", f"{{scenario: {OTHER % ''}}}\nseeds: [4, 5]"))
    assert given.tuning is not None and (given.tuning.tasks, given.tuning.seeds) == (None, (4,))
    run = search.Search(given, given.entries[0], (4,)).run(given.entries[0], 4)
    assert [len(task.train.y) for task in one_run.load_scenario(run).tasks] == [48, 49]
    assert given.part is None and len(one_run.load_scenario(given.runs()[0]).tasks) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        ("{name: split_digits, n_tasks: 2}", "10:20: task 0 ('3,6,8,2,5'), training: 672 rows are also in the scored"),
        (OTHER % ", setting: task-incremental", "10:20: in one of both streams the task is told at test"),
        ("{name: split_mnist_5k, n_tasks: 1}", "10:20: the search needs 2 tasks, and this stream has 1"),
        ("{name: split_mnist_5k, n_tasks: 11}", "10:52: 11 tasks cannot be cut from 10 classes"),
        (
            "{name: stream, data: reuters_r8}",
            "10:20: it holds minilm, and the scored stream numbers",
        ),
        ("{name: stream, data: {name: table, path: none.csv, label: kind}}", "10:61: "),
    ],
)
def test_another_stream_that_does_not_do(tmp_path: Path, scenario: str, told: str) -> None:
    assert any(line.startswith(told) for line in refused(tmp_path, ("{tasks: 2}", f"{{scenario: {scenario}}}")))


# What a search is given


def test_a_trial_is_given_the_first_tasks_and_their_validation_data(tmp_path: Path) -> None:
    given = experiment(tmp_path)
    run = search.Search(given, given.entries[0], (0,)).run(given.entries[0], 0)
    searched, scored = one_run.load_scenario(run), one_run.load_scenario(given.runs()[0])
    stream = whole()
    assert [task.name for task in searched.tasks] == [task.name for task in stream.tasks[:2]]
    assert [task.name for task in scored.tasks] == [task.name for task in stream.tasks[2:]]
    assert searched.n_classes == 4
    training = {x.numpy().tobytes() for task in stream.tasks[:2] for x in task.train.x}
    seen = [x.numpy().tobytes() for task in searched.tasks for part in (task.train, task.test) for x in part.x]
    assert set(seen) == training and len(seen) == sum(len(task.train.y) for task in stream.tasks[:2])


PEEKS = {
    "none": {},
    "at test data": {"on_validation": lambda scenario: scenario},
    "at later tasks": {"part": lambda scenario, first, last=None: scenario},
}


@pytest.mark.slow
@pytest.mark.parametrize("peek", PEEKS)
def test_nothing_but_the_first_tasks_is_looked_at(masked: Path, monkeypatch: pytest.MonkeyPatch, peek: str) -> None:
    """All test data and the training data of later tasks are replaced by noise: the search must not notice."""
    for name, broken in PEEKS[peek].items():
        monkeypatch.setattr(Scenario, name, broken)
    logs = []
    for noise in ("false", "true"):
        scenario = (f"scenario: {SCENARIO}", f"scenario: {{name: masked_digits, noise: {noise}}}\nplugins: [masked.py]")
        text = FILE.replace("SCENARIO", SCENARIO)
        given = experiment(masked, scenario, file=text)
        entry = given.entries[-1]
        found = search.Search(given, entry, (0,))
        _, one = search.chosen_by(found, lambda run, _: attempted(run))
        logs.append(json.dumps(one, sort_keys=True))
    assert (logs[0] == logs[1]) == (peek == "none")


def attempted(run: Any) -> search.Attempt:
    result = one_run.run(run)
    return search.Attempt(result.metrics[search_space.OBJECTIVE], result.counts)


# What it chooses


def test_the_best_on_validation_data_is_scored_on_the_later_tasks(
    tuned: tuple[Experiment, Path, list[RunFolder]],
) -> None:
    _, _, (naive, ridge, reservoir) = tuned
    for folder in (naive, reservoir):
        told, result = log(folder), folder.result()
        assert result is not None and len(result.task_names) == 3
        trials = told["trials"]
        assert [trial["values"]["lr"] for trial in trials] == [1e-3, 1e-2, 3e-2]
        best = max(trials, key=lambda trial: trial["score"])
        assert told["chosen"]["values"] == result.tuning["values"] == best["values"]
        assert result.overrides == best["values"]
        assert folder.description()["train"]["lr"] == best["values"]["lr"]
        (saw,) = told["saw"]
        assert len(saw["tasks"]) == 2 and not {*saw["tasks"]} & {*result.task_names}
        total = result.counts["total"]
        assert total["tuning_trials"] == 3
        assert (total["tuning_samples_replayed"] > 0) == (folder == reservoir)
        spent = sum(trial["samples_seen"] for trial in trials)
        assert total["tuning_samples_seen"] == spent == 3 * 2 * sum(saw["training_samples"])
    result = ridge.result()
    assert result is not None and result.tuning == {} and len(result.task_names) == 3
    assert not (ridge.path / "tuning.json").exists()


def test_what_was_chosen_and_how_many_trials_stand_in_the_table(
    tuned: tuple[Experiment, Path, list[RunFolder]],
) -> None:
    given, folder, folders = tuned
    pairs = [(one.result(), one.timing()) for one in folders]
    summaries = report.summarise([Finished(result, timing) for result, timing in pairs if result is not None])
    rates = [f"{log(one)['chosen']['values']['lr']:g}" for one in (folders[0], folders[2])]
    assert [summary.label for summary in summaries] == [f"naive (lr={rates[0]})", "ridge", f"reservoir (lr={rates[1]})"]
    text = tables.markdown(summaries, "tuned")
    assert "| bytes kept | trials |" in text
    cells = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = {row[1].strip(): row[-2].strip() for row in cells}
    assert rows[f"naive (lr={rates[0]})"] == "3" and rows["ridge"] == tables.DASH
    printed = invoke("compare", "--runs", str(folder / "runs"), "--markdown")
    assert printed.exit_code == 0 and printed.stdout.strip() == text.strip()
    assert list(Store(folder / "runs").experiments()) == ["tuned"]
    assert given.name == "tuned"


def test_a_rerun_trains_nothing_and_changes_no_byte(
    tuned: tuple[Experiment, Path, list[RunFolder]],
) -> None:
    given, folder, folders = tuned
    before = [contents(one) for one in folders]
    _, told = carried_out(given, folder / "runs")
    assert {*told} == {"trial found", "found"} and len(told) == 9
    assert [contents(one) for one in folders] == before


@pytest.mark.slow
def test_equal_files_choose_the_same(tuned: tuple[Experiment, Path, list[RunFolder]], tmp_path: Path) -> None:
    given, _, folders = tuned
    again, told = carried_out(given, tmp_path / "elsewhere")
    assert "found" not in told and "trial found" not in told
    for one, other in zip(folders, again, strict=True):
        for name in ("result.json", "tuning.json"):
            if (one.path / name).exists():
                assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


@pytest.mark.slow
def test_a_trial_more_tries_that_one_alone(tuned: tuple[Experiment, Path, list[RunFolder]], tmp_path: Path) -> None:
    _, folder, _ = tuned
    runs = shutil.copytree(folder / "runs", tmp_path / "runs")
    more = experiment(tmp_path, ("[1e-3, 1e-2, 3e-2]", "[1e-3, 1e-2, 3e-2, 1e-4]"), ("name: tuned", "name: more"))
    _, told = carried_out(more, runs)
    assert told.count("trial trained") == 2 and told.count("trial found") == 6
    compared = invoke("compare", "more", "tuned", "--runs", str(runs))
    assert "runs are finished" not in compared.stderr
    (runs / "more" / "experiment.yaml").write_bytes((runs / "tuned" / "experiment.yaml").read_bytes())
    compared = invoke("compare", "more", "--runs", str(runs))
    assert "1 of 3 runs are finished" in compared.stderr  # what another search chose is not shown


@pytest.mark.slow
def test_each_seed_has_a_search_of_its_own(tmp_path: Path) -> None:
    given = experiment(
        tmp_path, ("[naive, ridge]", "[naive]"), ("  - replay: {memory: reservoir, capacity: 50}\n", ""),
        ("strategies:", "strategies: []"), ("{tasks: 2}", "{tasks: 2}\nseeds: [0, 1]"),
    )  # fmt: skip
    folders, told = carried_out(given, tmp_path / "runs")
    assert told == [*["trial trained"] * 3, "trained"] * 2 and search_space.planned(given) == 6
    (first,), (second,) = (log(folder)["saw"] for folder in folders)
    assert (first["seed"], second["seed"]) == (0, 1) and first["tasks"] != second["tasks"]
    results = [folder.result() for folder in folders]
    results[0].tuning["values"]["lr"] = 0.5  # type: ignore[union-attr] - whatever both have chosen
    results[1].tuning["values"]["lr"] = 0.25  # type: ignore[union-attr]
    (summary,) = report.summarise([Finished(result, {}) for result in results if result is not None])
    assert summary.label == "naive (lr=0.25|0.5)" and summary.seeds == (0, 1)


@pytest.mark.slow
def test_one_search_with_named_seeds_chooses_for_all(tmp_path: Path) -> None:
    given = experiment(
        tmp_path, ("[naive, ridge]", "[naive]"), ("  - replay: {memory: reservoir, capacity: 50}\n", ""),
        ("strategies:", "strategies: []"), ("epochs: 2}", "epochs: 2}, seeds_vary: [init, data_order]"),
        ("{tasks: 2}", "{tasks: 2, seeds: [7, 8]}\nseeds: [0, 1]"),
    )  # fmt: skip
    folders, told = carried_out(given, tmp_path / "runs")
    assert told == [*["trial trained"] * 6, "trained", "trained"] and search_space.planned(given) == 6
    one, other = (log(folder) for folder in folders)
    assert one == other and [saw["seed"] for saw in one["saw"]] == [7, 8]
    for trial in one["trials"]:
        assert trial["score"] == sum(trial["scores"]) / 2 and trial["scores"][0] != trial["scores"][1]


# How values are proposed


def proposed(given: Experiment, name: str, scores: dict[tuple[float, ...], float | None] | None = None) -> list[Any]:
    """The values that a search proposes where the score is minus the distance of the first one from 0.01."""
    entry = next(entry for entry in given.entries if entry.name == name)
    tried: list[Any] = []

    def attempt(run: Any, _: str) -> search.Attempt:
        tried.append(run.train.lr)
        return search.Attempt(-abs(run.train.lr - 0.01), {"total": {"samples_seen": 1, "updates": 1}})

    chosen, _ = search.chosen_by(search.Search(given, entry, (0,)), attempt)
    assert chosen.values["lr"] == min(tried, key=lambda lr: abs(lr - 0.01)) and chosen.trials == len(tried)
    assert (chosen.samples_seen, chosen.updates) == (len(tried), len(tried))
    return tried


def test_a_grid_with_fewer_trials_is_drawn_once(tmp_path: Path) -> None:
    rates = [0.001 * i for i in range(1, 21)]
    listed = ("[1e-3, 1e-2, 3e-2]", str([f"{rate:.3f}" for rate in rates]).replace("'", ""))
    drawn = [
        proposed(experiment(tmp_path, listed, ("{tasks: 2}", f"{{trials: 6, seed: {seed}}}")), "naive")
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({*drawn[0]}) == 6 and drawn[0] == sorted(drawn[0])


@pytest.mark.slow
def test_optuna_draws_from_ranges_and_lists(tmp_path: Path) -> None:
    rate = ("[1e-3, 1e-2, 3e-2]", "{low: 1e-4, high: 1, log: true}")
    how = ("{tasks: 2}", "{search: optuna, trials: 24, seed: 1}")
    given = experiment(tmp_path, rate, how, ("capacity: 50}", "capacity: {low: 10, high: 20}}"))
    assert [search_space.n_trials(given, entry) for entry in given.entries] == [24, 0, 24]
    tried = proposed(given, "naive")
    assert tried == proposed(given, "naive") and len({*tried}) == 24
    assert all(1e-4 <= lr <= 1 for lr in tried)
    late, early = (sum(0.003 < lr < 0.03 for lr in part) for part in (tried[12:], tried[:12]))
    assert late > early  # it goes where the score is good
    other = experiment(tmp_path, rate, ("{tasks: 2}", "{search: optuna, trials: 24, seed: 2}"))
    assert proposed(other, "naive") != tried
    listed = experiment(tmp_path, how)
    assert {*proposed(listed, "naive")} == {1e-3, 1e-2, 3e-2}


def test_the_first_of_equals_is_taken(tmp_path: Path) -> None:
    given = experiment(tmp_path)
    found, told = search.chosen_by(
        search.Search(given, given.entries[0], (0,)),
        lambda run, _: search.Attempt(None if run.train.lr == 1e-3 else 0.5, {}, "the loss is nan"),
    )
    assert found.values == {"lr": 1e-2}
    assert [trial["score"] for trial in told["trials"]] == [None, 0.5, 0.5]


# What goes wrong


def test_what_diverges_with_one_of_two_seeds_is_never_chosen(tmp_path: Path) -> None:
    """However good the other seed's score is: a mean over those that are left would choose it."""
    fixed = "protocol: {budget: {epochs: 2}, seeds_vary: [init, data_order]}"
    changes = ("tuning: {tasks: 2}", "tuning: {tasks: 2, seeds: [0, 1]}"), ("protocol: {budget: {epochs: 2}}", fixed)
    given = experiment(tmp_path, *changes)
    scores = {(1e-3, 0): 0.5, (1e-3, 1): 0.5, (1e-2, 0): 0.99, (1e-2, 1): None, (3e-2, 0): None, (3e-2, 1): 0.98}

    def attempt(run: Run, _: str) -> search.Attempt:
        score = scores[run.train.lr, run.seed]
        return search.Attempt(score, {"total": {"updates": 5}}, "the loss is nan" if score is None else None)

    chosen, told = search.chosen_by(search.Search(given, given.entries[0], (0, 1)), attempt)
    assert chosen.values == {"lr": 1e-3} and chosen.score == 0.5
    assert [trial["score"] for trial in told["trials"]] == [0.5, None, None]
    assert [trial["scores"] for trial in told["trials"]] == [[0.5, 0.5], [0.99, None], [None, 0.98]]
    assert [len(trial["errors"]) for trial in told["trials"]] == [0, 1, 1]
    assert chosen.updates == 6 * 5  # what diverged was trained, too


WILD = ("train: {lr: [1e-3, 1e-2, 3e-2], batch_size: 32}", "train: {optimizer: sgd, lr: [1e-1, 1e+30], batch_size: 32}")


@pytest.mark.slow
def test_a_rate_at_which_training_diverges_is_never_chosen_and_not_tried_again(tmp_path: Path) -> None:
    given = experiment(tmp_path, WILD)
    folders, told = carried_out(given, tmp_path / "runs")
    assert told == ["trial trained", "trial failed", "trained", "trained", "trial trained", "trial failed", "trained"]
    assert log(folders[0])["chosen"]["values"] == {"lr": 0.1}
    assert "the loss is nan" in log(folders[0])["trials"][1]["errors"][0]
    store = Store(tmp_path / "runs").trials
    (failed,) = (folder for folder in store.folders() if folder.path.parent.name == "naive.lr=1e+30")
    before = (failed.path / "error.txt").stat().st_mtime_ns
    again, _ = carried_out(given, tmp_path / "runs")
    assert (failed.path / "error.txt").stat().st_mtime_ns == before and log(again[0]) == log(folders[0])
    carried_out(given, tmp_path / "runs", fresh=True)
    assert (failed.path / "error.txt").stat().st_mtime_ns != before


@pytest.mark.slow
def test_where_every_trial_diverges_the_strategy_fails_and_the_others_go_on(tmp_path: Path) -> None:
    carried_out(experiment(tmp_path, WILD), tmp_path / "runs")  # what it leaves must not be taken for the next one's
    worse = experiment(tmp_path, (WILD[0], WILD[1].replace("1e-1, ", "1e+31, ")))
    folders, told = carried_out(worse, tmp_path / "runs")
    assert told == ["trial failed", "trial failed", "failed", "trained", "trial failed", "trial failed", "failed"]
    assert [folder.result() is None for folder in folders] == [True, False, True]
    assert "training diverged in each of the 2 trials" in (folders[0].path / "error.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_another_error_in_a_trial_stops_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = experiment(tmp_path, ("[naive, ridge]", "[naive]"))
    real = one_run.run

    def broken(description: Any, *rest: Any) -> Any:
        if description.train.lr == 1e-2 and description.strategy.name.startswith("naive"):
            raise ValueError("a plug-in's own mistake")
        return real(description, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(one_run, "run", broken)
        _, told = carried_out(given, tmp_path / "runs")
    assert told == ["trial trained", "trial failed", "failed", *["trial trained"] * 3, "trained"]
    _, told = carried_out(given, tmp_path / "runs")
    assert told[:4] == ["trial found", "trial trained", "trial trained", "trained"]


# What is seen of it


@pytest.mark.slow
def test_each_trial_is_a_line(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    given, out = experiment(tmp_path, WILD, ("[naive, ridge]", "[naive]")), StringIO()
    with Progress(given, Console(file=out)) as progress:
        carry_out(given, Store(tmp_path / "runs"), report=progress)
    lines = out.getvalue().splitlines()
    assert len(lines) == 6 and progress.failed == 0
    assert lines[0].startswith("[1/6] naive, seed 0, trial 1/2 (lr=0.1): validation accuracy 0.")
    assert lines[1].startswith("[2/6] naive, seed 0, trial 2/2 (lr=1e+30): the loss is nan")
    assert lines[2].startswith("[3/6] naive, seed 0: accuracy 0.")


def test_a_tracker_is_shown_what_was_chosen_and_what_it_took(
    tuned: tuple[Experiment, Path, list[RunFolder]],
) -> None:
    _, _, folders = tuned
    result = folders[0].result()
    assert result is not None
    chosen = log(folders[0])["chosen"]
    (summary,) = report.summarise([Finished(result, folders[0].timing())])
    parameters = mlflow_view.flatten(folders[0].description())
    assert parameters["tuned.values.lr"] == parameters["train.lr"] == chosen["values"]["lr"]
    assert parameters["tuned.search.choices.lr"] == [1e-3, 1e-2, 3e-2]
    points = {name: value for name, value, _ in mlflow_view.points(mlflow_view.thinned_curves([result]), summary)}
    assert points["price/tuning_samples_seen"] == chosen["samples_seen"] and points["price/tuning_trials"] == 3
