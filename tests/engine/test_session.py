"""Finished work is found again by what determines its numbers, and by nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetlab.engine import all_runs, one_run
from forgetlab.engine.all_runs import carry_out
from forgetlab.engine.events import RunEnded, RunFound, TaskEnded
from forgetlab.experiment import Experiment, Run
from forgetlab.plugins import registry
from forgetlab.results.run_key import run_key
from forgetlab.results.store import RunFolder, Store
from forgetlab.seeding import drawn_from
from helpers import runs
from helpers.commands import invoke
from helpers.runs import contents

FILE = """
name: first
scenario: {name: split_digits, n_tasks: 3}
model: {name: mlp, hidden: [8]}
references: [naive]
strategies:
  - isolation: {name: lora, rank: 2, sites: [mlp.in]}
    name: lora
"""
MODEL = """
from torch import nn
from forgetlab.plugins import register

@register("model", "session_model")
class SessionModel(nn.Module):
    def __init__(self, input_shape, width: int = 8) -> None:
        super().__init__()
        self.layer, self.n_features = nn.Linear(64, width), width

    def forward(self, x):
        return self.layer(x.flatten(1))
"""


def experiment(folder: Path, *changes: tuple[str, str]) -> Experiment:
    return runs.loaded(folder, FILE, *changes)


def carried_out(given: Experiment, root: Path, **options: Any) -> tuple[list[RunFolder], list[str]]:
    """The folders, and for each run whether it was found or trained."""
    events: list[str] = []

    def note(event: object) -> None:
        if isinstance(event, (RunFound, RunEnded)):
            events.append("found" if isinstance(event, RunFound) else "trained")

    return carry_out(given, Store(root), report=note, **options), events


def first_run(given: Experiment) -> Run:
    return given.runs()[0]


def key_of(run: Run) -> str:
    one_run.set_process(run)
    return run_key(run, one_run.load_scenario(run))


def results(folders: list[RunFolder]) -> list[dict[str, Any]]:
    return [json.loads((folder.path / "result.json").read_text(encoding="utf-8")) for folder in folders]


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    registry.discover()
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(registry, "_files", dict(registry._files))


def test_finished_work_is_found_under_another_experiment_name(tmp_path: Path) -> None:
    old, how = carried_out(experiment(tmp_path), tmp_path / "runs")
    assert how == ["trained", "trained"]
    new, how = carried_out(experiment(tmp_path, ("name: first", "name: second")), tmp_path / "runs")
    assert how == ["found", "found"]
    for one, other in zip(old, new, strict=True):
        assert other.path.parts[-3:-2] == ("second",)
        assert contents(one) == contents(other)
    assert "modules/task-2.safetensors" in contents(new[1])


def test_finished_work_is_found_under_another_strategy_name(tmp_path: Path) -> None:
    old, _ = carried_out(experiment(tmp_path), tmp_path / "runs")
    new, how = carried_out(experiment(tmp_path, ("name: lora\n", "name: mine\n")), tmp_path / "runs")
    assert how == ["found", "found"]
    before, after = results(old)[1], results(new)[1]
    assert (before["strategy"], after["strategy"]) == ("lora", "mine")
    assert before == after | {"strategy": "lora"}
    assert {**contents(old[1]), "result.json": b"", "config.yaml": b""} == {
        **contents(new[1]),
        "result.json": b"",
        "config.yaml": b"",
    }
    assert new[1].description() == {
        **old[1].description(),
        "strategy": {**old[1].description()["strategy"], "name": "mine"},
    }


@pytest.mark.slow
def test_finished_work_with_other_settings_is_set_aside_and_found_when_they_come_back(tmp_path: Path) -> None:
    settings = ("references:", "train: {lr: 0.1}\nreferences:")
    (old, *_), _ = carried_out(experiment(tmp_path), tmp_path / "runs")
    before = contents(old)
    (new, *_), how = carried_out(experiment(tmp_path, settings), tmp_path / "runs")
    assert how == ["trained", "trained"]
    assert new == old and contents(new) != before
    changed = contents(new)
    (back, *_), how = carried_out(experiment(tmp_path), tmp_path / "runs")
    assert how == ["found", "found"]
    assert contents(back) == before
    (again, *_), how = carried_out(experiment(tmp_path, settings), tmp_path / "runs")
    assert how == ["found", "found"] and contents(again) == changed


@pytest.mark.slow
def test_a_result_of_another_description_is_never_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half shows that the first can fail: with a key that ignores the description it would."""
    longer = ("references:", "name: longer\nprotocol: {budget: {epochs: 9}}\nreferences:"), ("name: first\n", "")

    def accuracies(root: Path) -> list[Any]:
        one, _ = carried_out(experiment(tmp_path), root)
        other, _ = carried_out(experiment(tmp_path, *longer), root)
        return [results(folders)[0]["accuracy"] for folders in (one, other)]

    one, other = accuracies(tmp_path / "runs")
    assert one != other
    monkeypatch.setattr(all_runs, "run_key", lambda *_: "the same for all")
    one, other = accuracies(tmp_path / "served wrongly")
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "second"])
def test_an_unfinished_run_is_never_found(tmp_path: Path, name: str) -> None:
    def stop(event: object) -> None:
        if isinstance(event, TaskEnded) and event.task == 1:
            raise KeyboardInterrupt

    whole, _ = carried_out(experiment(tmp_path), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        carry_out(experiment(tmp_path), Store(tmp_path / "runs"), report=stop)
    partial = Store(tmp_path / "runs").folder("first", "naive", 0)
    assert results([partial])[0]["accuracy"] == results(whole)[0]["accuracy"][:2]
    assert Store(tmp_path / "runs").find(partial.key or "", first=partial) is None
    again, how = carried_out(experiment(tmp_path, ("name: first", f"name: {name}")), tmp_path / "runs")
    assert how == ["trained", "trained"]
    assert results(again) == results(whole)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1}', "\xff"])
def test_a_result_that_cannot_be_read_is_no_result(tmp_path: Path, text: str) -> None:
    (folder, _), _ = carried_out(experiment(tmp_path), tmp_path / "runs")
    (folder.path / "result.json").write_text(text, encoding="latin-1")
    assert folder.result() is None
    assert carried_out(experiment(tmp_path), tmp_path / "runs")[1] == ["trained", "found"]


@pytest.mark.slow
def test_a_copy_that_is_cut_short_leaves_no_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    carried_out(experiment(tmp_path), tmp_path / "runs")
    other = experiment(tmp_path, ("name: first", "name: second"))
    with monkeypatch.context() as patch:
        patch.setattr(all_runs, "replace", cut_short)
        with pytest.raises(KeyboardInterrupt):
            carry_out(other, Store(tmp_path / "runs"))
    assert list(Store(tmp_path / "runs").folders("second")) == []
    assert carried_out(other, tmp_path / "runs")[1] == ["found", "found"]


def test_names_are_no_part_of_the_key_and_all_else_is(tmp_path: Path) -> None:
    key = key_of(first_run(experiment(tmp_path)))
    run = experiment(tmp_path, ("name: first", "name: second")).runs()[0]
    assert key_of(run) == key
    assert key_of(run.model_copy(update={"strategy": run.strategy.model_copy(update={"name": "mine"})})) == key
    changes = {
        "seed": 1,
        "threads": 2,
        "device": "cuda",
        "model": {"name": "mlp", "hidden": [9]},
        "train": run.train.model_copy(update={"lr": 0.2}),
        "protocol": run.protocol.model_copy(update={"reset_optimizer": False}),
        "strategy": run.strategy.model_copy(update={"reference": {"name": "joint", "prefixes": "all"}}),
    }
    scenario = one_run.load_scenario(run)
    changed = {name: run_key(run.model_copy(update={name: value}), scenario) for name, value in changes.items()}
    assert len({key, *changed.values()}) == 1 + len(changes)
    assert run_key(run, replace(scenario, class_names=("?", *scenario.class_names[1:]))) != key


@pytest.mark.usefixtures("own_registry")
def test_a_change_of_a_plugin_file_changes_the_key(tmp_path: Path) -> None:
    file, alone = tmp_path / "mine.py", (FILE[FILE.index("strategies:") :], "plugins: [./mine.py]\n")

    def key(code: str) -> str:
        file.write_text(code, encoding="utf-8")
        return key_of(first_run(experiment(tmp_path, alone, ("{name: mlp, hidden: [8]}", "session_model"))))

    before = key(MODEL)
    assert key(MODEL.replace("self.layer(", "2 * self.layer(")) != before
    assert key(MODEL) == before
    assert key_of(first_run(experiment(tmp_path, alone))) == key_of(first_run(experiment(tmp_path)))  # not used


@pytest.mark.usefixtures("own_registry")
def test_a_plugin_file_that_has_changed_is_loaded_again(tmp_path: Path) -> None:
    """A key that tells the new code beside numbers of the old would be worse than either."""
    file, mine = tmp_path / "mine.py", (FILE[FILE.index("strategies:") :], "plugins: [./mine.py]\n")
    x = torch.ones(1, 64)

    def answer(code: str) -> torch.Tensor:
        file.write_text(code, encoding="utf-8")
        one_run.set_process(first_run(experiment(tmp_path, mine, ("{name: mlp, hidden: [8]}", "session_model"))))
        with drawn_from("session"):
            return registry.build("model", "session_model", input_shape=(64,))(x).detach()

    before = answer(MODEL)
    assert torch.equal(answer(MODEL.replace("return self.layer(", "return 2 * self.layer(")), 2 * before)
    assert torch.equal(answer(MODEL), before)


NESTED = """
from torch import nn
from forgetlab.isolation import Isolation
from forgetlab.isolation.merger import Merger, by_place
from forgetlab.plugins import register

@register("merger", "session_merger")
class SessionMerger(Merger):
    def merge(self, changes):
        return by_place(changes, lambda each: each.amax(0))

@register("isolation", "session_module")
class SessionModule(Isolation):
    def __init__(self):
        super().__init__(("mlp.in",))

    def make(self, site):
        return nn.Linear(site.out_dim, site.out_dim)

    def after(self, part, site, x, y):
        return y + part(y)

@register("data", "session_data")
def session_data():
    from forgetlab.data import dataset
    return dataset("digits")
"""
INSIDE = {  # an entry, and how the file's code changes without a change in what is named
    "a merger that another hands on to": (
        "isolation: {name: lora, rank: 2, sites: [mlp.in]}",
        "isolation: {name: lora, rank: 2, sites: [mlp.in]}\n    merge: {name: dare, then: session_merger}",
    ),
    "a module among others": (
        "isolation: {name: lora, rank: 2, sites: [mlp.in]}",
        "isolation: {name: combined, parts: [{name: lora, rank: 2, sites: [mlp.in]}, session_module]}",
    ),
    "the data of a stream": (
        "scenario: {name: split_digits, n_tasks: 3}",
        "scenario: {name: stream, data: session_data, n_tasks: 5}",
    ),
}


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("where", INSIDE)
def test_a_change_of_a_plugin_that_another_one_names_changes_the_key(tmp_path: Path, where: str) -> None:
    file = tmp_path / "mine.py"

    def key(code: str, *changes: tuple[str, str]) -> str:
        file.write_text(code, encoding="utf-8")
        given = experiment(tmp_path, ("references: [naive]", "references: []\nplugins: [./mine.py]"), *changes)
        (run,) = given.runs()
        return key_of(run)

    before = key(NESTED, INSIDE[where])
    changed = NESTED + "# the code does something else now\n"
    assert key(changed, INSIDE[where]) != before
    assert key(NESTED, INSIDE[where]) == before
    assert key(changed) == key(NESTED)  # where nothing of the file is used


def test_timing_tells_where_a_run_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder, _), _ = carried_out(experiment(tmp_path), tmp_path / "runs")
    timing = folder.timing()
    assert timing["git"] is None and timing["processors"] == os.cpu_count()
    assert [set(task) for task in timing["tasks"]] == [{"train", "evaluate"}] * 3
    clocks = {"processor", "wall"}
    assert all(clock.keys() == clocks for task in timing["tasks"] for clock in task.values())
    of_tasks = [sum(clock["processor"] for clock in task.values()) for task in timing["tasks"]]
    assert 0 < sum(of_tasks) <= timing["processor_seconds"]
    text = (folder.path / "result.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "seconds" not in text


DIVERGES = """
name: diverges
scenario: {name: split_digits, n_tasks: 2}
model: {name: mlp, hidden: [8]}
references: [naive]
strategies:
  - {regularization: {name: ewc, strength: 1.0}, name: wild, train: {optimizer: sgd, lr: 1e30}}
"""


def test_a_run_that_diverges_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(DIVERGES)
    command = ["run", str(tmp_path / "scenario.yaml"), "--runs", str(tmp_path / "runs"), "--no-tracking"]
    result = invoke(*command)
    assert result.exit_code == 1
    assert "wild, seed 0: failed: the loss is nan in task 0, epoch 1" in result.stderr
    assert "1 of 2 runs failed" in result.stderr and "naive" in result.stdout
    store = Store(tmp_path / "runs")
    assert "Diverged" in (store.folder("diverges", "wild", 0).path / "error.txt").read_text()
    assert store.folder("diverges", "wild", 0).result() is None
    naive = store.folder("diverges", "naive", 0).result()
    assert naive is not None and naive.finished


def test_a_tracking_store_that_cannot_be_reached_stops_nothing(tmp_path: Path) -> None:
    text = DIVERGES.split("strategies")[0] + "tracking: {uri: 'http://127.0.0.1:9'}\n"
    (tmp_path / "scenario.yaml").write_text(text)
    result = invoke("run", str(tmp_path / "scenario.yaml"), "--runs", str(tmp_path / "runs"))
    assert result.exit_code == 0 and "naive" in result.stdout
    assert "MLflow at http://127.0.0.1:9 was not filled" in result.stderr
