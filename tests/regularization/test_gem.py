"""GEM: its program against another solver and the conditions of its optimum, Avalanche's step by step, its memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetlab.avalanche.api import stock_plugin
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.seeding import generator
from helpers.memories import contents, fill
from helpers.networks import bare
from helpers.runs import finals
from helpers.streams import opposed, under_one_label
from helpers.training import EachStep, Weights, farthest, learned

SIZE, TASKS, TOLERANCE = 60, 4, 1e-5
RIDGE = 1e-3  # Avalanche's


def gem(margin: float = 0.5, ridge: float = 0.0) -> Any:
    return registry.build("projection", "gem", {"margin": margin, "ridge": ridge})


def projected(g: Tensor, references: Tensor, **options: float) -> Tensor:
    """(P,), (T, P) -> (P,)"""
    return gem(**options).project({"p": g}, [{"p": row} for row in references])["p"]


def problem(seed: int, tasks: int = 5, size: int = 30) -> tuple[Tensor, Tensor]:
    """A gradient, and the tasks' at wide angles to it."""
    draw = generator("gem", seed)
    g, references = torch.randn(size, generator=draw), torch.randn(tasks, size, generator=draw)
    return g, references - 0.3 * g


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(10))
def test_the_solution_is_avalanches(seed: int, margin: float) -> None:
    """By quadprog, another algorithm on the same program."""
    g, references = problem(seed)
    assert bool((references @ g < 0).any())
    theirs: Any = stock_plugin({"plugin": "GEMPlugin", "patterns_per_experience": 1, "memory_strength": margin})
    theirs.G = references
    torch.testing.assert_close(
        projected(g, references, margin=margin, ridge=RIDGE), theirs.solve_quadprog(g), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_it_is_the_optimum(margin: float) -> None:
    """What is added is G'v with v >= margin, no old loss rises, and a v above the margin belongs to a tight bound."""
    tight = loose = 0
    for seed in range(20):
        g, references = (t.double() for t in problem(seed))
        left = projected(g, references, margin=margin)
        v = torch.linalg.lstsq(references.T, (left - g)[:, None]).solution[:, 0]
        torch.testing.assert_close(g + v @ references, left)
        slack = references @ left
        assert v.min() > margin - 1e-9 and slack.min() > -1e-9
        assert ((v - margin) * slack).abs().max() < 1e-9
        tight, loose = tight + int((v > margin + 1e-3).sum()), loose + int((slack > 1e-3).sum())
    assert tight + loose == 100 and min(tight, loose) > 5


def test_one_task_by_hand() -> None:
    g, r = torch.tensor([1.0, -2.0]), torch.tensor([[0.0, 4.0]])
    assert projected(g, r, margin=0.0).tolist() == [1.0, 0.0]  # A-GEM's
    assert projected(g, r, margin=0.25).tolist() == [1.0, 0.0]  # v is 0.5 already
    assert projected(g, r, margin=1.5).tolist() == [1.0, 4.0]
    assert projected(-g, r, margin=1.5).tolist() == [-1.0, 2.0]  # as it raises nothing


@pytest.mark.parametrize("extra", [lambda r: r[:1], lambda r: 0 * r[:1], lambda r: r[:1] + r[1:2]])
def test_tasks_that_say_the_same_or_nothing_change_nothing(extra: Any) -> None:
    g, references = problem(0)
    more = projected(g, torch.cat([references, extra(references)]), margin=0.0)
    torch.testing.assert_close(more, projected(g, references, margin=0.0), rtol=0, atol=1e-5)


def test_more_tasks_than_weights_leave_no_step() -> None:
    left = projected(torch.ones(3), torch.cat([torch.eye(3), -torch.eye(3)]), margin=0.0)
    assert left.abs().max() < 1e-6


def test_avalanches_ridge_breaks_the_bounds_where_gradients_are_small() -> None:
    """It adds a number to squared lengths: at 0.01 of the scale the old losses rise, and the step is another."""
    g, references = problem(1)
    for scale, broken in ((1.0, False), (0.01, True)):
        theirs: Any = stock_plugin({"plugin": "GEMPlugin", "patterns_per_experience": 1, "memory_strength": 0.0})
        theirs.G = scale * references
        left = theirs.solve_quadprog(scale * g)
        cosines = references @ left / left.norm() / references.norm(dim=1)
        assert bool((cosines < -0.01).any()) == broken
        ours = projected(scale * g, scale * references, margin=0.0)
        assert (references @ ours / ours.norm()).min() > -1e-5
        torch.testing.assert_close(ours / scale, projected(g, references, margin=0.0), rtol=0, atol=1e-5)


def trained(*found: Any) -> list[Weights]:
    """The weights after each step."""
    watch = EachStep()
    learned(bare(2 * TASKS), under_one_label(opposed("gem", SIZE, TASKS)), *found, watch, lr=0.05)
    return watch.weights


def beside(projection: Any, capacity: int = SIZE * TASKS) -> list[Any]:
    memory: Memory = registry.build("memory", "task_ring", {"capacity": capacity})
    memory.joins, projection.memory = False, memory
    return [memory, projection]


@pytest.fixture(scope="module")
def avalanches() -> list[Weights]:
    spec = {"plugin": "GEMPlugin", "patterns_per_experience": SIZE, "memory_strength": 0.5}
    return trained(stock_plugin(spec))


@pytest.mark.slow
def test_every_step_is_avalanches(avalanches: list[Weights]) -> None:
    """With all samples of a task in the memory, so that both look at the same."""
    ours = trained(*beside(gem(ridge=RIDGE)))
    print(f"{len(ours)} steps, at most {farthest(ours, avalanches):.1e} apart")
    assert farthest(ours, avalanches) < TOLERANCE
    assert farthest(ours, trained()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        gem(margin=0.25, ridge=RIDGE),  # a strength off by 2
        gem(margin=0.0, ridge=RIDGE),
        type("OneByOne", (type(gem()),), {"project": lambda self, g, rs: one_by_one(g, rs)})(ridge=RIDGE),
        type("OneLess", (type(gem()),), {"project": lambda self, g, rs: gem(ridge=RIDGE).project(g, rs[1:])})(),
    ],
    ids=["margin off by 2", "no margin", "one task after the other", "the first task left out"],
)
def test_another_program_is_not_avalanches(broken: Any, avalanches: list[Weights]) -> None:
    """Deliberate breaks."""
    assert farthest(trained(*beside(broken)), avalanches) > 1e-3


def one_by_one(gradient: Any, references: Any) -> Any:
    for reference in references:
        gradient = gem(ridge=RIDGE).project(gradient, [reference])
    return gradient


@pytest.mark.slow
def test_a_reference_for_each_task_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stream of one label too; what came in the task in training is in the memory and in no reference."""
    seen: list[list[list[int]]] = []
    method, right = gem(), type(gem()).project

    def project(self: Any, gradient: Any, references: Any) -> Any:
        seen.append([sorted(Counter(batch.y.tolist())) for batch in self.memory.by_task()])
        assert len(references) == len(seen[-1])
        return right(self, gradient, references)

    monkeypatch.setattr(type(method), "project", project)
    memory, _ = beside(method, capacity=24)
    trained(memory, method)
    steps = len(seen) // (TASKS - 1)
    for task in range(1, TASKS):
        expected = [[2 * old, 2 * old + 1] for old in range(task)]
        assert all(found == expected for found in seen[(task - 1) * steps : task * steps])
    assert Counter(memory.slots.tensors["experience"].tolist()) == dict.fromkeys(range(TASKS), 24 // TASKS)
    assert set(memory.slots.tensors["task"].tolist()) == {0}


def ring(tasks: list[int], batch_size: int, capacity: int = 12) -> list[int]:
    """What is kept of samples of these tasks, of three classes each."""
    memory: Memory = registry.build("memory", "task_ring", {"capacity": capacity})
    return contents(fill(memory, [i % 3 for i in range(len(tasks))], batch_size, tasks=tasks))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_task_ring_keeps_the_last_samples_of_each_task(batch_size: int) -> None:
    assert ring([0] * 30, batch_size) == [*range(18, 30)]
    assert ring([0] * 30 + [1] * 20, batch_size) == [*range(24, 30), *range(44, 50)]
    assert ring([0] * 30 + [1] * 20 + [2] * 25, batch_size) == [*range(26, 30), *range(46, 50), *range(71, 75)]
    assert ring([0] * 30 + [1] * 2, batch_size) == [*range(20, 32)]  # a short task leaves room to the others


def test_a_ring_by_class_would_keep_others() -> None:
    """The deliberate break: equal shares of the classes are not those of the tasks."""
    kept = registry.build("memory", "ring", {"capacity": 12})
    task = torch.tensor([0] * 30 + [1] * 20)
    rows = torch.arange(50)
    kept.store(Batch(rows.float()[:, None], torch.where(task == 0, 0, rows % 3), task), rows[:, None], generator("r"))
    held = sorted(int(x) for x in kept.slots.read(torch.arange(12)).x[:, 0])
    assert held != [*range(24, 30), *range(44, 50)]


FILE = """
name: gem
scenario: {name: split_digits, setting: task-incremental, n_tasks: 5}
model: {name: mlp, hidden: [32]}
protocol: {budget: {epochs: 2}}
train: {optimizer: sgd, lr: 0.1, batch_size: 10}
references: [naive]
strategies:
  - replay: {memory: task_ring, capacity: 100, projection: gem}
seeds: [0, 1, 2]
"""


@pytest.mark.slow
def test_it_forgets_less_than_naive_training(tmp_path: Path) -> None:
    final = finals(tmp_path, FILE)
    print(final)
    assert all(ours > naive for ours, naive in zip(final["task_ring+gem"], final["naive"], strict=True))
