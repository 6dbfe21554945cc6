"""What a method's paper assumes of the protocol is told below the table where the file has it otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetlab.cli.plugin_commands import plugin_text
from forgetlab.engine import one_run
from forgetlab.experiment import Protocol
from forgetlab.plugins import registry
from forgetlab.report import summary, tables
from forgetlab.report.summary import Finished
from forgetlab.results.paper_protocols import assumed_by, departures, known_keys
from helpers.runs import loaded

FILE = """
name: papers
scenario: {name: split_digits, n_tasks: 2}
model: {name: mlp, hidden: [8]}
protocol: {budget: {updates: 2}}
references: [naive]
strategies:
  - {replay: {memory: reservoir, capacity: 20, rehearsal: {name: der++, beta: 0}}, name: der}
  - {replay: {memory: reservoir, capacity: 20, rehearsal: der++}, name: der++}
  - {regularization: lwf}
  - {regularization: {name: ewc, strength: 10}}
"""
OWN = ("protocol: {", "protocol: {head: fixed, loss_classes: all, ")
CURRENT = ("protocol: {", "protocol: {loss_classes: current, ")


def feet(folder: Path, *changes: tuple[str, str]) -> str:
    runs = loaded(folder, FILE, *changes).runs()
    done = [Finished(one_run.run(run), {}) for run in runs]
    return " ".join(part.foot for part in tables.parts_of(summary.summarise(done)))


def test_methods_under_another_protocol_stand_below_the_table_those_alike_together(tmp_path: Path) -> None:
    told = "Under another protocol than their papers': der, der++ (there head: fixed, loss_classes: all); "
    assert f"{told}lwf (there loss_classes: current)." in feet(tmp_path)


def test_a_method_under_its_own_protocol_is_not_told(tmp_path: Path) -> None:
    own = feet(tmp_path, OWN)
    assert "papers': lwf (there loss_classes: current)." in own and "der++" not in own
    current = feet(tmp_path, CURRENT)
    assert "papers': der, der++ (there head: fixed, loss_classes: all)." in current and "lwf" not in current


def test_one_key_that_differs_is_told_alone(tmp_path: Path) -> None:
    (der, *_) = [run for run in loaded(tmp_path, FILE, ("protocol: {", "protocol: {head: fixed, ")).runs()][1:]
    assert departures(der, one_run.load_scenario(der)) == {"loss_classes": "all"}


def test_where_all_tasks_have_the_same_classes_no_support_of_the_loss_is_another_protocol(tmp_path: Path) -> None:
    domains = (
        "{name: split_digits, n_tasks: 2}",
        "{name: stream, data: digits, setting: domain-incremental, transform: permutation, n_tasks: 2}",
    )
    for run in loaded(tmp_path, FILE, domains).runs():
        assert departures(run, one_run.load_scenario(run)) == {}


def test_where_the_task_is_told_the_loss_is_over_its_classes(tmp_path: Path) -> None:
    told = ("n_tasks: 2}", "n_tasks: 2, setting: task-incremental}")
    by_name = {run.strategy.name: run for run in loaded(tmp_path, FILE, told).runs()}
    lwf, der = by_name["lwf"], by_name["der"]
    assert departures(lwf, one_run.load_scenario(lwf)) == {}
    assert departures(der, one_run.load_scenario(der)) == {"head": "fixed", "loss_classes": "all"}


def test_show_tells_what_a_paper_assumes() -> None:
    told = plugin_text(registry.find("rehearsal", "der++"))
    assert "Its paper assumes 'protocol: {head: fixed, loss_classes: all}'." in told
    assert "Its paper assumes" not in plugin_text(registry.find("regularizer", "ewc"))


@pytest.mark.parametrize("kind", registry.KINDS)
def test_what_is_assumed_are_keys_and_values_of_a_protocol(kind: str) -> None:
    for name in registry.available(kind):
        assumed = assumed_by(registry.find(kind, name))
        assert assumed.keys() <= known_keys()
        Protocol(**assumed)
