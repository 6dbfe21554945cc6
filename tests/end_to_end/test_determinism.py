"""One file, one set of numbers: whatever the process, the folder, the order; and what strategies share, they share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetlab.config import load
from forgetlab.engine import one_run
from forgetlab.experiment import Experiment, Run
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.training.loop import Loop

BEGIN = """
name: same
scenario: {name: split_digits, n_tasks: 3}
model: {name: mlp, hidden: [16]}
train: {batch_size: 32}
seeds: [0, 1]
"""
ENTRIES = [
    "{replay: {memory: reservoir, capacity: 50}}",
    "{regularization: {name: ewc, strength: 100}}",
    "{regularization: {name: ewc, strength: 100, fisher: sampled}, name: sampled}",
    "{isolation: {name: lora, rank: 2, sites: [mlp.in]}}",
    "{replay: {memory: reservoir, capacity: 50}, regularization: ewc}",
    "{avalanche: {plugin: LwFPlugin, alpha: 1.0, temperature: 2.0}}",
]
PACKAGES = Path(one_run.__file__).parents[2]  # where forgetlab is, whether it is installed or not
REFERENCES = ["naive", "joint", "separate", "ridge"]


def text(entries: list[str], references: list[str]) -> str:
    lines = [f"  - {entry}" for entry in entries]
    return "\n".join([BEGIN, f"references: [{', '.join(references)}]", "strategies:", *lines, ""])


def all_results(folder: Path, hash_seed: str, entries: list[str], references: list[str]) -> dict[str, bytes]:
    """Every ``result.json`` of a fresh run in a process of its own."""
    folder.mkdir()
    (folder / "file.yaml").write_text(text(entries, references), encoding="utf-8")
    program = [sys.executable, "-m", "forgetlab", "run", "file.yaml", "--fresh", "--no-tracking", "--runs", "here"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(PACKAGES)}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith(("[", "Run folders: here")) for line in lines), lines  # and no warning
    root = folder / "here" / "same"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob("*/*/result.json")}


@pytest.mark.slow
def test_two_processes_give_equal_bytes(tmp_path: Path) -> None:
    one = all_results(tmp_path / "one", "1", ENTRIES, REFERENCES)
    other = all_results(tmp_path / "other", "2", ENTRIES[::-1], REFERENCES[::-1])
    assert len(one) == 2 * (len(ENTRIES) + len(REFERENCES))
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


class Record:
    """What a run starts from and what it is fed."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, Tensor, Tensor]] = []  # task, x, y
        self.backbone: dict[str, Tensor] = {}
        self.head: dict[int, Tensor] = {}  # a class's row at the start of the first task
        self.result: Any = None

    def note(self, loop: Loop) -> None:
        if not self.batches:
            network: Any = loop.model
            self.backbone = {name: t.clone() for name, t in network.backbone.state_dict().items()}
            head: Any = network.heads["0"] if isinstance(network, IsolatedNetwork) else network.head
            self.head = dict(zip(network.classes_of[0], head.weight.detach().clone(), strict=True))
        self.batches.append((loop.task, loop.mb_x.clone(), loop.mb_y.clone()))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Carries out a run and returns its record."""
    now: list[Record] = []
    original = Loop._before_training_iteration

    def noting(loop: Loop, **kwargs: Any) -> None:
        now[-1].note(loop)
        torch.rand(len(now))  # each strategy draws more than the one before; nothing may follow from that
        original(loop, **kwargs)

    monkeypatch.setattr(Loop, "_before_training_iteration", noting)

    def record(run: Run) -> Record:
        now.append(Record())
        now[-1].result = one_run.run(run)
        return now[-1]

    yield record


def experiment(folder: Path, more: str = "") -> Experiment:
    path = folder / "file.yaml"
    path.write_text(text(ENTRIES, ["naive", "separate", "joint"]) + more, encoding="utf-8")
    return load.load(path)


def same_batches(one: list[tuple[int, Tensor, Tensor]], other: list[tuple[int, Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a, b in zip(one, other, strict=True)
    )


def same_tensors(one: dict[Any, Tensor], other: dict[Any, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_all_strategies_of_a_seed_share_start_and_data(tmp_path: Path, recorded: Any) -> None:
    whole = experiment(tmp_path)
    naive, *others = [recorded(whole.run(entry, seed=1)) for entry in whole.entries]
    assert len(naive.batches) > 3 and len(naive.head) == 4
    for entry, other in zip(whole.entries[1:], others, strict=True):
        assert other.result.task_names == naive.result.task_names
        assert same_tensors(other.backbone, naive.backbone), entry.name
        assert same_tensors(other.head, naive.head), entry.name
        steps = [batch for batch in naive.batches if batch[0] == 0] if entry.name == "joint" else naive.batches
        assert same_batches(other.batches[: len(steps)], steps), entry.name
        assert entry.name == "joint" or len(other.batches) == len(steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vary", "classes", "start", "order"),
    [
        ([], True, True, True),
        (["class_order"], False, True, True),
        (["init"], True, False, True),
        (["data_order"], True, True, False),
        (["class_order", "init", "data_order"], False, False, False),
    ],
)
def test_seeds_vary_holds_fixed_what_it_leaves_out(
    tmp_path: Path, recorded: Any, vary: list[str], classes: bool, start: bool, order: bool
) -> None:
    whole = experiment(tmp_path, f"protocol: {{seeds_vary: [{', '.join(vary)}]}}\n")
    one, other = (recorded(whole.run(whole.entries[0], seed)) for seed in (0, 1))
    assert (one.result.task_names == other.result.task_names) == classes
    assert same_tensors(one.backbone, other.backbone) == start
    assert same_tensors(one.head, other.head) == start
    if classes:
        assert same_batches(one.batches, other.batches) == order
    assert (one.result.accuracy == other.result.accuracy) == (vary == [])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(ENTRIES)))
def test_a_strategy_with_nothing_left_to_vary_gives_one_result(tmp_path: Path, number: int) -> None:
    whole = experiment(tmp_path, "protocol: {seeds_vary: []}\n")
    one, other = (one_run.run(whole.run(whole.strategies[number], seed)) for seed in (0, 1))
    assert (one.accuracy, one.counts) == (other.accuracy, other.counts)
