"""Methods under another protocol than their papers assume: told beside their numbers, which are then of both.

A plug-in names what its paper assumes as ``paper_protocol``, by the keys of a scenario file's ``protocol``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forgetlab.experiment import Protocol, Run
from forgetlab.plugins.registry import Plugin
from forgetlab.results.run_key import used_plugins
from forgetlab.streams.scenario import Scenario

Assumed = dict[str, Any]  # keys of ``protocol``, and the values that a paper assumes


def assumed_by(plugin: Plugin) -> Assumed:
    """What a plug-in's paper assumes of the protocol; nothing where it does not say."""
    return dict(getattr(plugin.factory, "paper_protocol", {}))


def departures(run: Run, scenario: Scenario) -> Assumed:
    """What the papers of a run's methods assume and its protocol does not have, where that makes a difference.

    Where all tasks have the same classes, heads of every kind but one per task and all losses are over these; where the
    task is told, the loss is over its classes alone, whatever else the file says.
    """
    assumed: Assumed = {}
    for plugin in used_plugins(run):
        assumed |= assumed_by(plugin)
    there = {key: getattr(run.protocol, key) for key in assumed}
    if scenario.task_known_at_test and "loss_classes" in there:
        there["loss_classes"] = "current"
    if len({task.classes for task in scenario.tasks}) == 1:
        there |= {key: assumed[key] for key in there if key == "loss_classes"}
        there |= {key: assumed[key] for key in there if key == "head" and "per-task" not in (there[key], assumed[key])}
    return {key: value for key, value in assumed.items() if there[key] != value}


def as_written(assumed: Mapping[str, Any]) -> str:
    """As a scenario file has it.

    >>> as_written({"head": "fixed", "reset_optimizer": False})
    'head: fixed, reset_optimizer: false'
    """
    return ", ".join(
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in assumed.items()
    )


def known_keys() -> set[str]:
    """The keys that a paper's protocol may name."""
    return set(Protocol.model_fields) - {"budget", "evaluate_on", "seeds_vary"}
