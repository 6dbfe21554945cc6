"""How much a memory keeps: in all, of each class, of each task, or a share of what comes; and its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetlab.batch import Batch
from forgetlab.costs.ledger import byte_count
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError, parameters_of
from forgetlab.replay.memory import Memory
from forgetlab.replay.slots import Slots
from forgetlab.seeding import generator
from forgetlab.strategies.replay.memories.herding import Herding
from helpers import runs
from helpers.memories import contents, fill
from helpers.networks import network

LABELS = [0] * 30 + [1] * 3 + [0, 2] * 6


def memory(name: str, **size: float) -> Memory:
    return registry.build("memory", name, size)


def classes(kept: Memory, column: str = "y") -> dict[int, int]:
    return dict(sorted(Counter(kept.slots.kept()[column].tolist()).items()))


@pytest.mark.parametrize("name", ["ring", "class_balanced", "greedy"])
def test_each_class_has_its_places_and_the_memory_grows_with_them(name: str) -> None:
    """Four of each class, or all three that there are of class 1."""
    grows = memory(name, per_class=4)
    sizes = [len(fill(grows, LABELS[:n][before:]).slots) for before, n in ((0, 30), (30, 33), (33, 45))]
    assert sizes == [4, 7, 11] and classes(grows) == {0: 4, 1: 3, 2: 4}


def test_the_last_of_each_class_stay_in_a_ring_and_the_first_of_each_in_a_greedy_one() -> None:
    of_0 = [i for i, label in enumerate(LABELS) if label == 0]
    of_2 = [i for i, label in enumerate(LABELS) if label == 2]
    rest = [30, 31, 32]
    assert contents(fill(memory("ring", per_class=4), LABELS)) == sorted([*of_0[-4:], *rest, *of_2[-4:]])
    assert contents(fill(memory("greedy", per_class=4), LABELS)) == sorted([*of_0[:4], *rest, *of_2[:4]])


TASKS = [0] * 40 + [1] * 15 + [2] * 60


def test_a_share_of_each_task_stays_and_it_is_the_last_samples() -> None:
    """A fifth of 40, of 15 and of 60, whatever the batches; one place at least of what is few."""
    for batch_size in (1, 7, 10, 200):
        kept = fill(memory("task_ring", share=0.2), TASKS, batch_size=batch_size, tasks=TASKS)
        assert contents(kept) == [*range(32, 40), *range(52, 55), *range(103, 115)]
    few = fill(memory("task_ring", share=0.01), [0] * 5, tasks=[0] * 5)
    assert contents(few) == [4]


def test_each_task_has_its_places() -> None:
    kept = fill(memory("task_ring", per_task=20), TASKS, tasks=TASKS)
    assert classes(kept, "task") == {0: 20, 1: 15, 2: 20}


def herded(**size: Any) -> list[dict[int, int]]:
    """What is kept of each class after each of three tasks, the last of which brings a class again."""
    kept, model, found = Herding(**size), network((6,), (8,)).eval(), []
    for task, labels in enumerate(([0] * 20 + [1] * 10, [2] * 30, [0] * 10 + [3] * 10)):
        y = torch.tensor(labels)
        x = torch.randn(len(y), 6, generator=generator("sizes", task))
        kept.end(model, [Batch(x, y, torch.full_like(y, task))], generator("sizes"))
        found.append(classes(kept))
    return found


def test_herding_keeps_as_many_of_each_class_or_a_share_of_each() -> None:
    assert herded(per_class=12) == [{0: 12, 1: 10}, {0: 12, 1: 10, 2: 12}, {0: 12, 1: 10, 2: 12, 3: 10}]
    assert herded(share=0.2) == [{0: 4, 1: 2}, {0: 4, 1: 2, 2: 6}, {0: 6, 1: 2, 2: 6, 3: 2}]


def halves(name: str, tasks: Sequence[int], labels: Sequence[int], **size: float) -> tuple[Memory, Memory]:
    """A memory that all goes through, and one whose state is taken over half way."""
    half = len(labels) // 2
    whole, first, second = (memory(name, **size) for _ in range(3))
    draws = [generator("halves") for _ in range(2)]
    parts = [(labels[:half], tasks[:half]), (labels[half:], tasks[half:])]
    for part, (y, task) in enumerate(parts):
        if part:
            second.restore(*first.state())
        for kept, draw in zip((whole, second if part else first), draws, strict=True):
            columns = (torch.arange(len(y)).float().unsqueeze(1) + 100 * part, torch.tensor(y), torch.tensor(task))
            kept.store(Batch(*columns), torch.zeros(len(y), 1), draw)
    return whole, second


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("reservoir", {"capacity": 500}),
        ("ring", {"per_class": 4}),
        ("class_balanced", {"per_class": 4}),
        ("greedy", {"per_class": 4}),
        ("greedy", {"capacity": 90}),
        ("task_ring", {"share": 0.2}),
        ("task_ring", {"per_task": 9}),
    ],
)
def test_a_restored_memory_goes_on_as_it_was(name: str, size: dict[str, float]) -> None:
    """Whose state holds what is filled, and no places that wait."""
    whole, restored = halves(name, TASKS, [task % 2 for task in TASKS], **size)
    tensors, values = restored.state()
    assert {len(tensor) for tensor in tensors.values()} == {values["filled"]} == {len(restored)}
    for column, tensor in whole.state()[0].items():
        assert torch.equal(tensor, tensors[column]), column


def tensors_in(slots: Slots) -> int:
    return byte_count(slots.tensors)


def test_places_are_made_as_they_are_filled() -> None:
    """Twice as many each time, as few as are allowed at last; and what is kept is the same."""
    slots, sizes, x = Slots(40), [], torch.arange(40.0).unsqueeze(1)
    for start in range(0, 40, 8):
        rows = torch.arange(start, start + 8)
        slots.write(rows, Batch(x[rows], rows, rows))
        sizes.append(len(slots.tensors["y"]))
    assert sizes == [8, 16, 32, 32, 40]
    assert torch.equal(slots.read(torch.arange(40)).x, x)


@pytest.mark.parametrize("capacity", [10**9, 10**13, 2**70])
@pytest.mark.parametrize("name", ["reservoir", "ring", "class_balanced", "task_ring"])
def test_a_capacity_that_nothing_fills_takes_no_room(name: str, capacity: int) -> None:
    kept = fill(memory(name, capacity=capacity), LABELS, tasks=LABELS)
    assert len(kept) == len(LABELS) and tensors_in(kept.slots) < 10_000


FILE = """
name: sizes
scenario: {{name: split_digits, n_tasks: 5}}
model: {{name: mlp, hidden: [8]}}
train: {{lr: 1e-2, batch_size: 32}}
references: []
strategies: [{{replay: {{{replay}}}}}]
"""
DIGITS = 1347  # training samples, each of 64 numbers, with a label, a task and what its memory sorts it by


@pytest.mark.parametrize("capacity", [5000, 10**9, 10**13, 2**63])
@pytest.mark.parametrize(("name", "beside"), [("reservoir", 0), ("ring", 8), ("greedy", 8)])
def test_bytes_count_samples_and_not_places(tmp_path: Path, name: str, beside: int, capacity: int) -> None:
    (result,) = runs.results(tmp_path, FILE.format(replay=f"memory: {name}, capacity: {capacity}"))
    assert result.counts["total"]["memory_bytes"] == DIGITS * (4 * 64 + 8 + 8 + beside)
    assert DIGITS * (4 * 64 + 8 + 8) == 366_384


@pytest.mark.parametrize(
    ("replay", "samples"),
    [
        ("memory: {name: herding, per_class: 20}", 200),
        ("memory: ring, per_class: 20", 200),
        ("memory: {name: task_ring, per_task: 100}", 500),
        ("memory: {name: task_ring, share: 0.1}", 135),  # of 270, 271, 270, 269 and 267: 27 each
        ("memory: class_balanced, per_class: 7, sampler: balanced", 70),
    ],
)
def test_a_file_gives_any_size_and_the_run_keeps_as_much(tmp_path: Path, replay: str, samples: int) -> None:
    experiment = runs.loaded(tmp_path, FILE.format(replay=replay))
    (entry,) = experiment.strategies
    assert entry.replay is not None and "capacity" not in (entry.replay.memory or {})
    (result,) = runs.results(tmp_path, FILE.format(replay=replay))
    of_a_sample = 4 * 64 + 8 + 8 + 8
    assert result.counts["total"]["memory_bytes"] == pytest.approx(samples * of_a_sample, abs=2 * of_a_sample)
    assert result.counts["total"]["samples_replayed"] > 0


@pytest.mark.parametrize(
    ("replay", "place", "message"),
    [
        ("memory: reservoir, per_class: 20", "per_class", "reservoir has no 'per_class': it does not choose class by "),
        ("memory: {name: gss, per_class: 20}", "per_class", "it takes 'capacity'; 'per_class' is for class_balanced, "),
        ("memory: ring, per_task: 20", "per_task", "it takes 'capacity' or 'per_class'; 'per_task' is for task_ring"),
        ("memory: reservoir, share: 0.1", "share", "no fixed share stays in it; it takes 'capacity'; 'share' is for h"),
        ("memory: {name: gaussian, capacity: 9}", "capacity", "how much it keeps is told otherwise; it takes no size"),
        ("memory: ring, capacity: 9, per_class: 9", "", "'capacity' and 'per_class' both say how much is kept"),
        ("memory: {name: task_ring, share: 0.1, per_task: 9}", "", "'per_task' and 'share' both say how much"),
        ("memory: ring", "ring", "how much is kept is missing: give 'capacity' or 'per_class'"),
        ("memory: reservoir", "reservoir", "'capacity' is missing"),
        ("memory: task_ring, share: 1.5", "1.5", "'share': input should be less than or equal to 1"),
    ],
)
def test_a_size_without_meaning_is_refused_where_it_stands(
    tmp_path: Path, replay: str, place: str, message: str
) -> None:
    told = runs.told(tmp_path, FILE.format(replay=replay))
    assert [said for _, said in told if message in said] == [said for _, said in told] != []
    assert told[0][0].startswith(place)


def test_a_memory_of_ones_own_says_its_size_in_one_way() -> None:
    class Own(Memory):
        def __init__(self, capacity: int | None = None, per_task: int | None = None) -> None:
            super().__init__(capacity or 1)
            self.take_size(capacity, per_task=per_task)

        def store(self, batch: Batch, output: Tensor, generator: torch.Generator) -> None:
            """Nothing."""

    assert Own(5).slots.capacity == 5 and Own(per_task=5).slots.each == 5
    assert [option.name for option in parameters_of(Memory)] == ["capacity", "ratio"], "what one without options takes"
    for sizes in ({}, {"capacity": 5, "per_task": 5}):
        with pytest.raises(OptionError, match="how much is kept"):
            Own(**sizes)
