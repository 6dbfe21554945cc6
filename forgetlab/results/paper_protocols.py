"""Methods under another protocol than their papers assume: told beside their numbers, which are then of both.

A plug-in names what its paper assumes as ``paper_protocol``, by the keys of a scenario file's ``protocol``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forgetlab.experiment import Protocol, Run
from forgetlab.plugins.registry import Plugin
from forgetlab.results.run_key import used_plugins

Assumed = dict[str, Any]  # keys of ``protocol``, and the values that a paper assumes


def assumed_by(plugin: Plugin) -> Assumed:
    """What a plug-in's paper assumes of the protocol; nothing where it does not say."""
    return dict(getattr(plugin.factory, "paper_protocol", {}))


def departures(run: Run) -> Assumed:
    """What the papers of a run's methods assume and its protocol does not have."""
    assumed: Assumed = {}
    for plugin in used_plugins(run):
        assumed |= assumed_by(plugin)
    return {key: value for key, value in assumed.items() if getattr(run.protocol, key) != value}


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
