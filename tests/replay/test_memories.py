"""What memories keep, and what is drawn of it: fair samples, equal shares, the last ones; counted at fixed seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.checks.memory import made
from forgetlab.data.datasets import held_out
from forgetlab.experiment import Budget, Train
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.replay.slots import equal_shares
from forgetlab.seeding import drawn_from, generator
from forgetlab.streams.build import split
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork
from helpers.memories import contents, fill

STREAMS = 1000


def memory(name: str, capacity: int) -> Memory:
    return registry.build("memory", name, {"capacity": capacity})


def shares(kept: Memory) -> dict[int, int]:
    return dict(sorted(Counter(kept.slots.tensors["y"][: len(kept.slots)].tolist()).items()))


def fairness(name: str, labels: Sequence[int], capacity: int, of: int) -> float:
    """The p-value of: each sample of a class is kept equally often.

    Each stream keeps m of the class's n samples, which makes the counts (n - 1) / n times as spread as independent ones
    would be, and p (1 - p) times the number of streams wide.
    """
    numbers = [i for i, label in enumerate(labels) if label == of]
    often = torch.zeros(len(labels), dtype=torch.float64)
    for seed in range(STREAMS):
        often[contents(fill(memory(name, capacity), labels, seed=seed))] += 1
    often = often[numbers]
    n, p = len(numbers), (often.sum() / STREAMS / len(numbers)).item()
    statistic = ((often - STREAMS * p) ** 2).sum() / (STREAMS * p * (1 - p)) * (n - 1) / n
    return float(chi2.sf(statistic.item(), n - 1))


@pytest.mark.slow
def test_the_reservoir_keeps_every_sample_equally_often() -> None:
    assert fairness("reservoir", [0] * 45, capacity=12, of=0) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("of", [0, 1])
def test_class_balanced_keeps_every_sample_of_a_class_equally_often(of: int) -> None:
    """Of classes of different size that come one after the other, and one among the other."""
    labels = [0] * 24 + [0, 1] * 9 + [2] * 7
    assert fairness("class_balanced", labels, capacity=12, of=of) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.available("memory"))
def test_a_sample_comes_by_once_however_many_epochs_it_is_trained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what a memory keeps of a stream would depend on how long its tasks are trained."""
    kept = made(registry.find("memory", name))
    came: list[Tensor] = []
    store = type(kept).store

    def note(self: Memory, batch: Batch, output: Tensor, draw: torch.Generator) -> None:
        came.append(batch.x.clone())
        store(self, batch, output, draw)

    monkeypatch.setattr(type(kept), "store", note)
    x = torch.rand(40, 1, 8, 8, generator=generator("epochs"))
    data = held_out(x, torch.arange(40) % 4, "abcd", test_share=0.5, seed=0)
    scenario = split(data, setting="class-incremental", n_tasks=2, seed=0)
    with drawn_from("epochs"):
        model = SharedNetwork(MLP((1, 8, 8), hidden=(10,)))
    loop = Loop(model=model, train=Train(batch_size=5), budget=Budget(epochs=3), plugins=[kept])
    for experience in to_benchmark(scenario).streams["train"]:
        loop.train(experience, [])
    there = torch.cat([task.train.x for task in scenario.tasks])
    by_sum = [images[images.sum((1, 2, 3)).argsort()] for images in (torch.cat(came), there)]
    assert torch.equal(*by_sum)


def test_a_memory_that_is_not_fair_is_found() -> None:
    assert fairness("ring", [0] * 20, capacity=12, of=0) < 1e-6


def draw_fairness(kept: Memory, n: int) -> float:
    """The p-value of: each kept sample is drawn equally often, in draws of n different ones."""
    draw, places = generator("draws"), len(kept.slots)
    drawn = torch.cat([kept.sample(n, draw).x[:, 0].long() for _ in range(STREAMS)])
    often = torch.bincount(drawn)[torch.tensor(contents(kept))].double()
    p = n / places
    statistic = ((often - STREAMS * p) ** 2).sum() / (STREAMS * p * (1 - p)) * (places - 1) / places
    return float(chi2.sf(statistic.item(), places - 1))


class FavoursTheFirst(registry.find("memory", "reservoir").factory):  # type: ignore[misc]
    """The deliberate break: half of its draws are from the first half."""

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        places = torch.randperm(len(self.slots), generator=generator)
        return self.slots.read(torch.cat([places[places < len(places) // 2], places])[:n])


@pytest.mark.parametrize("n", [1, 5, 11])
@pytest.mark.parametrize("name", ["reservoir", "ring", "class_balanced", "greedy"])
def test_every_kept_sample_is_drawn_equally_often(name: str, n: int) -> None:
    assert draw_fairness(fill(memory(name, 12), [0] * 20 + [1, 2] * 9), n) > 0.01


def test_draws_that_are_not_fair_are_found() -> None:
    assert draw_fairness(fill(FavoursTheFirst(12), [0] * 40), 5) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("name", ["ring", "class_balanced", "greedy"])
def test_classes_have_equal_shares_at_every_moment(name: str, batch_size: int) -> None:
    """Or all their samples, where these are fewer; no place is idle."""
    labels = [0] * 40 + [1] * 3 + [2, 0] * 20 + [3] * 30
    for seen in range(1, len(labels) + 1, 8):
        kept = shares(fill(memory(name, 13), labels[:seen], batch_size))
        available = Counter(labels[:seen])
        assert sum(kept.values()) == min(seen, 13)
        full = [count for label, count in kept.items() if count < available[label]]
        assert not full or max(kept.values()) - min(full) <= 1


def test_ring_keeps_the_last_samples_of_each_class() -> None:
    labels = [0] * 20 + [1] * 20 + [0, 1, 2] * 4
    kept = contents(fill(memory("ring", 9), labels))
    last = [[i for i, other in enumerate(labels) if other == label][-3:] for label in range(3)]
    assert kept == sorted(chain(*last))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 100])
def test_ring_does_not_depend_on_how_the_stream_is_cut(batch_size: int) -> None:
    labels = [*torch.randint(0, 4, (90,), generator=generator("ring")).sort().values.tolist(), 0, 3, 1, 1, 2]
    assert contents(fill(memory("ring", 11), labels, batch_size)) == contents(fill(memory("ring", 11), labels, 5))


def test_the_newest_push_the_oldest_of_their_class_out() -> None:
    kept = fill(memory("ring", 4), [0, 0, 1, 1])
    kept.store(Batch(torch.tensor([[4.0]]), torch.tensor([0]), torch.tensor([0])), torch.zeros(1, 1), generator("r"))
    assert contents(kept) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["ring", "class_balanced", "greedy"])
def test_with_more_classes_than_places_the_first_classes_have_one_each(name: str) -> None:
    labels = [label for label in range(8) for _ in range(5)]
    assert shares(fill(memory(name, 3), labels)) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("name", ["reservoir", "ring", "class_balanced", "greedy"])
def test_a_batch_larger_than_the_memory_fits(name: str) -> None:
    assert len(contents(fill(memory(name, 4), [0, 1] * 20, batch_size=40))) == 4


@pytest.mark.parametrize("name", ["reservoir", "ring", "class_balanced", "greedy"])
def test_drawing_more_than_there_are_gives_each_once(name: str) -> None:
    kept = fill(memory(name, 6), [0, 1, 2] * 9)
    drawn = kept.sample(50, generator("draw"))
    assert sorted(int(x) for x in drawn.x[:, 0]) == contents(kept)


@pytest.mark.parametrize(
    ("counts", "capacity", "expected"),
    [
        ([5], 3, [3]),
        ([1, 9, 9], 9, [1, 4, 4]),
        ([1, 9, 9], 10, [1, 5, 4]),
        ([2, 3, 20, 4], 12, [2, 3, 4, 3]),
        ([2, 2], 9, [2, 2]),
        ([4, 4, 4], 2, [1, 1, 0]),
    ],
)
def test_shares_by_hand(counts: list[int], capacity: int, expected: list[int]) -> None:
    assert equal_shares(torch.tensor(counts), capacity).tolist() == expected
