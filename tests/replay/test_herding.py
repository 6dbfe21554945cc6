"""Herding: the order by the paper's formula, what is cut as classes come, and when samples enter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.batch import Batch
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.plugins import registry
from forgetlab.seeding import generator
from forgetlab.strategies.replay.memories.herding import Herding, herded
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.networks import network
from helpers.runs import final

N, D = 30, 5  # samples of a class, features


def features(seed: int = 0, n: int = N, length_1: bool = True) -> Tensor:
    phi = torch.randn(n, D, generator=generator("herding", seed), dtype=torch.float64).relu() + 0.1
    return F.normalize(phi) if length_1 else phi


def by_the_formula(phi: Tensor, n: int) -> list[int]:
    """p_k = argmin_x || mu - (phi(x) + sum_{j<k} phi(p_j)) / k ||, written out."""
    chosen: list[int] = []
    for k in range(1, n + 1):
        left = [i for i in range(len(phi)) if i not in chosen]
        distance = [(phi.mean(0) - (phi[i] + phi[chosen].sum(0)) / k).norm() for i in left]
        chosen.append(left[int(torch.stack(distance).argmin())])
    return chosen


def in_avalanche(phi: Tensor, n: int) -> list[int]:
    from avalanche.training.storage_policy import HerdingSelectionStrategy

    selection = HerdingSelectionStrategy(torch.nn.Identity(), "")
    return selection.make_sorted_indices_from_features(phi)[:n]


def closest_to_the_mean(phi: Tensor, n: int) -> Tensor:
    """The deliberate break: what herding is often taken for."""
    return (phi - phi.mean(0)).norm(dim=1).argsort()[:n]


def follows(reference: Callable[[Tensor, int], list[int]], herd: Callable[[Tensor, int], Tensor]) -> bool:
    data = [features(seed, length_1=seed % 2 == 0) for seed in range(6)]
    return all(herd(phi, n).tolist() == reference(phi, n) for phi in data for n in (1, 7, N))


def opened() -> SharedNetwork:
    model = network((3,), (8,))
    model.open(0, range(6))
    return model.eval()


@pytest.mark.parametrize("reference", [by_the_formula, in_avalanche])
def test_the_order_is_the_papers_and_avalanches(reference: Callable[[Tensor, int], list[int]]) -> None:
    assert follows(reference, herded)
    assert not follows(reference, closest_to_the_mean)


def test_exemplars_have_nearly_the_mean_of_their_class() -> None:
    """Which is what they are for; as many of those closest to it, or the first, have another."""
    near = {"herded": 0.0, "closest": 0.0, "first": 0.0}
    for seed in range(10):
        phi = features(seed, n=200)
        for name, rows in {
            "herded": herded(phi, 10),
            "closest": closest_to_the_mean(phi, 10),
            "first": torch.arange(10),
        }.items():
            near[name] += (phi[rows].mean(0) - phi.mean(0)).norm().item() / 10
    print(near)
    assert 2 * near["herded"] < min(near["closest"], near["first"])


def test_more_are_asked_for_than_there_are_and_features_may_be_nought() -> None:
    assert sorted(herded(features(n=4), 9).tolist()) == [0, 1, 2, 3]
    assert sorted(herded(torch.zeros(4, D), 4).tolist()) == [0, 1, 2, 3]


def task(number: int, classes: Sequence[int], n: int = 24) -> Batch:
    """Sample i of the task begins with the number 100 * task + i."""
    x = torch.randn(n, 3, generator=generator("herding task", number))
    x[:, 0] = 100 * number + torch.arange(n)
    y = torch.tensor(classes)[torch.arange(n) % len(classes)]
    return Batch(x, y, torch.full((n,), number))


def cut(data: Batch, size: int) -> list[Batch]:
    return [data.rows(rows) for rows in torch.arange(len(data.y)).split(size)]


def end(memory: Herding, data: Batch, size: int = 7) -> None:
    memory.end(opened(), cut(data, size), generator("herding"))


def lists(memory: Herding) -> dict[int, list[int]]:
    """The numbers of each class's exemplars, in their order."""
    kept = memory.slots.read(torch.arange(len(memory.slots)))
    order = (-kept.extra["key"]).argsort(stable=True)
    found: dict[int, list[int]] = {}
    for number, label in zip(kept.x[order, 0].tolist(), kept.y[order].tolist(), strict=True):
        found.setdefault(label, []).append(int(number))
    return found


def expected(data: Batch, label: int, n: int) -> list[int]:
    rows = (data.y == label).nonzero().squeeze(1)
    phi = F.normalize(opened().backbone(data.x[rows])).double().detach()
    return [int(data.x[rows[i], 0]) for i in by_the_formula(phi, n)]


@pytest.mark.parametrize("size", [1, 7, 24])
def test_each_task_cuts_the_lists_from_their_ends(size: int) -> None:
    """12 places: 6 of each class of the first task, then 3 of each, then 2; however the data are cut into batches."""
    memory, tasks = Herding(12), [task(0, (0, 1)), task(1, (2, 3)), task(2, (4, 5))]
    for after, share in enumerate((6, 3, 2)):
        end(memory, tasks[after], size)
        there = {label: tasks[label // 2] for label in range(2 * after + 2)}
        assert lists(memory) == {label: expected(data, label, share) for label, data in there.items()}


def test_a_class_with_few_samples_leaves_its_places_to_others() -> None:
    memory, few = Herding(12), task(0, (0, 1), n=24).rows(torch.tensor([1, *range(0, 24, 2)]))
    end(memory, few)
    assert {label: len(numbers) for label, numbers in lists(memory).items()} == {0: 11, 1: 1}
    end(memory, task(1, (2,)))
    assert {label: len(numbers) for label, numbers in lists(memory).items()} == {0: 6, 1: 1, 2: 5}
    assert lists(memory)[0] == expected(few, 0, 6)


def test_a_class_that_comes_again_gets_a_list_of_the_same_length() -> None:
    memory, tasks = Herding(12), [task(0, (0, 1)), task(1, (0, 1))]
    for data in tasks:
        end(memory, data)
    for label, numbers in lists(memory).items():
        old, new = ([n for n in numbers if n // 100 == number] for number in (0, 1))
        assert (old, new) == (expected(tasks[0], label, 3), expected(tasks[1], label, 3))


def test_what_goes_on_from_its_state_goes_on_alike() -> None:
    old, new = Herding(10), Herding(10)
    end(old, task(0, (0, 1)))
    new.restore(*old.state())
    for memory in (old, new):
        end(memory, task(1, (2, 3)))
    assert lists(old) == lists(new)


FILE = """
name: herding
scenario: {{name: {scenario}, setting: {setting}, n_tasks: 5}}
model: {{name: {model}}}
protocol: {{head: {head}, budget: {{epochs: 2}}}}
train: {{optimizer: sgd, lr: 0.1, batch_size: 16}}
references: [naive]
strategies: [{{replay: {{{replay}}}}}]
"""


def run(folder: Path, replay: str, **options: str) -> list[Any]:
    """Of naive fine-tuning, and of the entry."""
    given = {"scenario": "split_digits", "setting": "class-incremental", "head": "growing", "model": "mlp", **options}
    return runs.results(folder, FILE.format(replay=replay, **given))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "head"),
    [("class-incremental", "fixed"), ("task-incremental", "per-task"), ("domain-incremental", "growing")],
)
def test_it_forgets_less_than_naive_training_in_every_setting(tmp_path: Path, setting: str, head: str) -> None:
    naive, herding = run(tmp_path, "memory: herding, capacity: 100", setting=setting, head=head)
    print(setting, final(naive), final(herding))
    assert final(herding) > final(naive) + 0.03
    assert herding.counts["per_task"]["samples_replayed"][0] == 0  # nothing is kept before the first task's end
    assert min(herding.counts["per_task"]["samples_replayed"][1:]) > 0


@pytest.mark.slow
def test_a_vit_and_der_have_it_as_their_memory(tmp_path: Path) -> None:
    vit = "vit, width: 16, depth: 2, patch: 4, heads: 2"
    naive, herding = run(tmp_path, "memory: herding, capacity: 100, rehearsal: der++", model=vit)
    assert final(herding) > final(naive)
    logits = 100 * 10 * 4
    assert herding.counts["total"]["memory_bytes"] == 100 * (64 * 4 + 3 * 8) + logits


def test_a_stream_of_one_pass_is_refused(tmp_path: Path) -> None:
    """It looks at a task's samples once more when the task has ended."""
    with pytest.raises(FileErrors, match="second time"):
        run(tmp_path, "memory: herding, capacity: 20", scenario="stream, data: digits, online: true")


def test_a_model_without_a_backbone_is_told_so() -> None:
    memory = registry.build("memory", "herding", {"capacity": 4})
    with pytest.raises(TypeError, match="backbone"):
        memory.end(torch.nn.Linear(3, 2), cut(task(0, (0, 1)), 7), generator("herding"))
