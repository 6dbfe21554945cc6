"""What a stream tells and allows, and the refusal of what needs more."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetlab.config.load import load
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.plugins import registry

FILE = """
name: told
scenario: {{name: stream, data: digits, n_tasks: 2{stream}}}
model: {{name: mlp, hidden: [8]}}
protocol: {{{protocol}}}
strategies:
  - {entry}
"""
UNTOLD = "head: fixed, loss_classes: all, reset_optimizer: false"
BOUNDARIES = "it has to be told when a task ends, which this stream does not tell"
PASSES = "it goes over a task's data a second time, and in this stream every sample passes by once"
CLASSES = (
    "it compares how sure each task's own softmax is, and one over a single class always is, whatever the sample; "
    "where tasks have one class 'prototype', 'mahalanobis' or 'kmeans' can tell them apart"
)
RESERVOIR = "{replay: {memory: reservoir, capacity: 20}}"
EWC = "{regularization: {name: ewc, strength: 1}}"
SI = "{regularization: {name: si}}"
MODULE = "{isolation: {name: lora, rank: 2, sites: [mlp.in]}, router: %s}"
STOCK = "{avalanche: {plugin: MASPlugin}}"


def messages(folder: Path, entry: str, stream: str = "", protocol: str = "") -> list[str]:
    """What is wrong with a file: line, column, message."""
    path = folder / "scenario.yaml"
    path.write_text(FILE.format(entry=entry, stream=stream, protocol=protocol))
    try:
        load(path)
    except FileErrors as error:
        return [line.split("scenario.yaml:", 1)[1] for line in str(error).splitlines()]
    return []


@pytest.mark.parametrize(
    ("entry", "stream", "found"),
    [
        (RESERVOIR, "blurry: 0.1", []),
        (RESERVOIR, "online: true", []),
        ("{replay: {memory: ring, capacity: 20, rehearsal: der++}}", "boundaries: false, online: true", []),
        (SI, "online: true", []),
        (SI, "blurry: 0.1", [f"7:22: {BOUNDARIES}"]),
        (EWC, "online: true", [f"7:22: {PASSES}"]),
        (EWC, "blurry: 0.1, online: true", [f"7:22: {PASSES}", f"7:22: {BOUNDARIES}"]),
        (MODULE % "union", "online: true", []),
        (MODULE % "prototype", "online: true", [f"7:65: {PASSES}"]),
        (MODULE % "union", "boundaries: false", [f"7:17: {BOUNDARIES}", f"7:65: {BOUNDARIES}"]),
        (STOCK, "boundaries: false", [f"7:17: {BOUNDARIES}"]),
        (STOCK, "online: true", [f"7:17: {PASSES}"]),
    ],
)
def test_a_strategy_that_needs_more_than_the_stream_gives_is_refused(
    tmp_path: Path, entry: str, stream: str, found: list[str]
) -> None:
    assert messages(tmp_path, entry, f", {stream}", UNTOLD) == found
    assert messages(tmp_path, entry) == []


def test_a_stream_without_boundaries_needs_a_protocol_without(tmp_path: Path) -> None:
    (message,) = messages(tmp_path, RESERVOIR, ", blurry: 0.1")
    assert message.endswith(f"so it needs 'protocol: {{{UNTOLD}}}'") and message.startswith("3:")


@pytest.mark.parametrize("budget", ["{epochs: 2}", "{updates: 50}"])
def test_an_online_stream_is_gone_through_once(tmp_path: Path, budget: str) -> None:
    (message,) = messages(tmp_path, RESERVOIR, ", online: true", f"budget: {budget}")
    assert "5:" in message and "write 'budget: {epochs: 1}'" in message


def test_validation_data_must_be_there_to_be_evaluated_on(tmp_path: Path) -> None:
    (message,) = messages(tmp_path, RESERVOIR, "", "evaluate_on: validation")
    assert message == "5:25: the stream keeps no validation data apart: give its scenario 'validation: 0.1'"
    assert messages(tmp_path, RESERVOIR, ", validation: 0.1", "evaluate_on: validation") == []


AT_ANY_TIME = {"l2_sp"}  # they hold weights to where the stream began, whatever comes


@pytest.mark.parametrize("router", ["entropy", "max_probability", "union", "prototype", "kmeans"])
@pytest.mark.parametrize("classes", ["n_tasks: 10", "n_tasks: 3, classes_per_task: [1, 2, 7]", "n_tasks: 5"])
def test_a_router_that_compares_softmaxes_needs_two_classes_in_each_task(
    tmp_path: Path, router: str, classes: str
) -> None:
    """A softmax over one class is always sure: with a class per task the answer was .100, whatever was learned."""
    text = FILE.format(entry=MODULE % router, stream="", protocol="").replace("n_tasks: 2", classes)
    (tmp_path / "scenario.yaml").write_text(text)
    try:
        load(tmp_path / "scenario.yaml")
        found = []
    except FileErrors as error:
        found = [line.split("scenario.yaml:", 1)[1] for line in str(error).splitlines()]
    if router in ("entropy", "max_probability") and classes != "n_tasks: 5":
        assert found == [f"7:65: {CLASSES}"]
    else:
        assert found == []


def test_every_method_says_what_it_needs() -> None:
    untold = set()
    for kind in ("memory", "sampler", "rehearsal", "regularizer", "projection", "regime", "isolation", "router"):
        for name in registry.available(kind):
            needs = getattr(registry.find(kind, name).factory, "needs", frozenset())
            assert needs <= {"boundaries", "classes", "passes"}
            if kind not in ("memory", "sampler", "rehearsal") and "boundaries" not in needs:
                untold.add(name)
    assert untold == AT_ANY_TIME
