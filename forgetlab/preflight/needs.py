"""What a method has to be told or allowed, held against what the stream tells and allows.

A class says what it needs: ``needs = frozenset({"boundaries"})``. References may know everything: they are what the
others are held against.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from forgetlab.experiment import ORACLE, REGULARIZATION, Experiment, KeyPath, Problem, Strategy
from forgetlab.plugins import registry
from forgetlab.replay.memory import BY_TASKS
from forgetlab.streams.scenario import Scenario

UNTOLD = {"head": "fixed", "loss_classes": "all", "reset_optimizer": False}  # what no boundary has to be known for
WHY = {
    "boundaries": "it has to be told when a task ends, which this stream does not tell",
    "classes": "it compares how sure each task's own softmax is, and one over a single class always is, whatever the "
    "sample; where tasks have one class 'prototype', 'mahalanobis' or 'kmeans' can tell them apart",
    "passes": "it goes over a task's data a second time, and in this stream every sample passes by once",
}


def unmet_needs(experiment: Experiment, scenario: Scenario) -> Iterator[Problem]:
    """Where the file asks for more than the stream gives."""
    missing = {
        "boundaries": not scenario.boundaries_known,
        "passes": scenario.one_pass,
        "classes": any(len(task.classes) == 1 for task in scenario.tasks),
    }
    protocol = experiment.protocol
    if missing["boundaries"] and any(getattr(protocol, key) != value for key, value in UNTOLD.items()):
        written = ", ".join(f"{key}: {str(value).lower()}" for key, value in UNTOLD.items())
        yield ("scenario",), f"the stream does not tell where tasks begin, so it needs 'protocol: {{{written}}}'"
    passes = {protocol.budget.epochs_of(task) for task in range(len(scenario.tasks))}
    if missing["passes"] and passes != {1}:
        yield (
            ("protocol", "budget"),
            "the stream is online, every sample passes by once, so write 'budget: {epochs: 1}'",
        )
    for i, entry in enumerate(experiment.strategies):
        for family, needs in _needs(entry):
            for need in sorted(need for need in needs if missing[need]):
                yield ("strategies", i, *family), WHY[need]


def _needs(entry: Strategy) -> Iterator[tuple[KeyPath, frozenset[str]]]:
    """What each part of an entry needs, with its keys in the file."""
    if entry.replay is not None:
        for part in ("memory", "sampler", "rehearsal", "projection"):
            if (spec := getattr(entry.replay, part)) is not None:
                yield ("replay", part), _of(part, spec)
        if entry.replay.weight == BY_TASKS:
            yield ("replay", "weight"), frozenset({"boundaries"})
    for i, spec in enumerate(entry.regularization or ()):
        yield ("regularization", i), _of(registry.kind_of(spec["name"], REGULARIZATION), spec)
    if entry.isolation is not None:
        yield ("isolation",), _of("isolation", entry.isolation)
        if entry.router is not None and entry.router["name"] != ORACLE:
            yield ("router",), _of("router", entry.router)
    if entry.classifier is not None:
        adapted = frozenset() if entry.isolation is None else frozenset({"boundaries", "passes"})  # to train a module
        yield ("classifier",), _of("classifier", entry.classifier) | adapted
    if entry.avalanche is not None:  # Avalanche's classes update what they keep from a whole task's data
        yield ("avalanche",), frozenset({"boundaries", "passes"})


def _of(kind: str, spec: dict[str, Any]) -> frozenset[str]:
    factory = registry.find(kind, spec["name"]).factory
    by_options = getattr(factory, "needs_of", None)  # where an option decides
    return getattr(factory, "needs", frozenset()) | (by_options(spec) if by_options else frozenset())
