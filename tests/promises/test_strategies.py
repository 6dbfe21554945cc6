"""Every method goes through a short stream of digits by way of a scenario file, and repeats itself to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetlab.results.store import Result
from helpers import runs
from helpers.runs import final

FILE = """
name: methods
scenario: {{name: split_digits, setting: {setting}, n_tasks: 5}}
model: {{name: mlp, hidden: [32]}}
protocol: {{{protocol}, budget: {{epochs: 2}}}}
train: {{{train}}}
references: [naive]
strategies: [{{{entry}}}]
"""
ADAM = "lr: 1e-2, batch_size: 32"
SGD = "optimizer: sgd, lr: 0.1, batch_size: 10"  # as DER's authors train on MNIST
REGULARIZERS = [
    "regularization: {name: lwf, strength: 3.0}",
    "regularization: {name: si, strength: 10.0}",
    "regularization: {name: ewc, strength: 100.0}",
    "regularization: {name: online_ewc, strength: 100.0}",
]
MEMORIES = ["reservoir", "ring", "class_balanced"]


def results(folder: Path, entry: str, setting: str, protocol: str = "head: growing", train: str = ADAM) -> list[Result]:
    """Of naive fine-tuning, and of the entry."""
    return runs.results(folder, FILE.format(entry=entry, setting=setting, protocol=protocol, train=train))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["growing", "per-task"])
@pytest.mark.parametrize("entry", REGULARIZERS)
def test_a_regularizer_forgets_less_than_naive_training_where_the_task_is_told(
    tmp_path: Path, entry: str, head: str
) -> None:
    naive, method = results(tmp_path, entry, "task-incremental", f"head: {head}")
    assert final(method) > final(naive) + 0.03
    assert (method.counts["total"]["memory_bytes"] or 0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("entry", REGULARIZERS)
def test_a_regularizer_runs_where_the_task_is_not_told(tmp_path: Path, entry: str) -> None:
    first, second = (results(tmp_path, entry, "class-incremental")[1] for _ in range(2))
    assert first == second and final(first) > 0


@pytest.mark.slow
@pytest.mark.parametrize("rehearsal", ["", ", rehearsal: der++"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_every_memory_serves_every_rehearsal(tmp_path: Path, memory: str, rehearsal: str) -> None:
    entry = f"replay: {{memory: {memory}, capacity: 90{rehearsal}}}"
    naive, method = results(tmp_path, entry, "class-incremental", "head: fixed, loss_classes: all", SGD)
    assert final(method) > final(naive) + 0.2
    assert method.counts["total"]["samples_replayed"] > 0
    logits = 10 * 4 if rehearsal else 0
    assert (method.counts["total"]["memory_bytes"] or 0) >= 90 * (64 * 4 + 8 + 8 + logits)


@pytest.mark.slow
def test_a_memory_and_a_regularizer_work_together(tmp_path: Path) -> None:
    """The penalty is added to the rehearsal's loss, not lost in it."""
    entry, protocol = "replay: {memory: ring, capacity: 90, rehearsal: der++}", "head: fixed, loss_classes: all"
    alone, both = (
        results(tmp_path, entry + more, "class-incremental", protocol, SGD) for more in ("", ", regularization: lwf")
    )
    assert final(both[1]) > final(both[0]) + 0.2
    assert both[0] == alone[0] and both[1].accuracy != alone[1].accuracy
