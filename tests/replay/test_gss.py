"""GSS, greedy: sample by sample what Avalanche's selects, the odds by hand, and where Avalanche's goes wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import stock_class
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from forgetlab.seeding import generator
from forgetlab.toolbox.teacher import gradient
from helpers.networks import bare
from helpers.runs import finals, loaded

BATCH, CAPACITY, SUBSETS = 10, 40, 3
STEPS = 30


def stream() -> Iterator[Batch]:
    """Classes that come one after the other, so that gradients point away from what is kept."""
    draws = generator("gss stream")
    for step in range(STEPS):
        y = torch.randint(0, 2, (BATCH,), generator=draws) + 2 * (step // 10 % 2)
        yield Batch(torch.randn(BATCH, 6, generator=draws) + 2 * torch.eye(6)[y], y, torch.zeros_like(y))


def gss(kind: type | None = None, **options: Any) -> Any:
    factory = kind or registry.find("memory", "gss").factory
    return factory(**{"capacity": CAPACITY, "subsets": SUBSETS, "subset": BATCH, **options})


def learn(model: nn.Module, batch: Batch) -> None:
    """One step, in training mode."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    F.cross_entropy(model(batch.x), batch.y).backward()
    optimizer.step()


def both(memory: Any) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Our scores and labels and Avalanche's after each batch: equal weights, batches and draws for each."""
    theirs: Any = stock_class("plugin", "GSS_greedyPlugin")(CAPACITY, SUBSETS, [6])
    memory.model = model = bare(4, hidden=8)
    for step, batch in enumerate(stream()):
        learn(model, batch)
        torch.manual_seed(step)
        strategy = SimpleNamespace(model=copy.deepcopy(model), mb_x=batch.x, mb_y=batch.y, device="cpu")
        strategy._criterion = F.cross_entropy
        theirs.after_forward(strategy)
        memory.store(batch, torch.empty(0), torch.Generator().manual_seed(step))
        n = len(memory.slots)
        assert n == theirs.ext_mem_list_current_index
        ours = memory.slots.tensors
        yield ours["score"][:n], theirs.buffer_score[:n], ours["x"][:n], theirs.ext_mem_list_x[:n]


@pytest.mark.slow
def test_it_keeps_what_avalanches_keeps_step_by_step() -> None:
    replaced, before = 0, torch.zeros(CAPACITY, 6)
    for ours, theirs, x, their_x in both(gss()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert torch.equal(x, their_x)
        if len(x) == CAPACITY:
            replaced += int((x != before).any(1).sum())
            before = x.clone()
    assert replaced > CAPACITY + 10, "old samples make room for new ones"


class OtherGradients(registry.find("memory", "gss").factory):  # type: ignore[misc]
    """A deliberate break: those of other labels."""

    def store(self, batch: Batch, output: Tensor, generator: torch.Generator) -> None:
        super().store(batch._replace(y=batch.y.flip(0)), output, generator)


class OddsTurned(registry.find("memory", "gss").factory):  # type: ignore[misc]
    """A deliberate break: the sample that is like the others comes in."""

    def exchanged(self, score: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return super().exchanged(-score, generator)


def test_other_gradients_are_found() -> None:
    with pytest.raises(AssertionError):
        for ours, theirs, _, _ in both(gss(OtherGradients)):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_score_is_the_highest_cosine() -> None:
    """By plain backward passes; batches of the memory that is known are all of it here, in one."""
    memory, batches = gss(capacity=2 * BATCH, subsets=1), list(stream())
    memory.model = model = bare(4, hidden=8)
    memory.store(batches[0], torch.empty(0), generator("g"))
    assert torch.equal(memory.slots.tensors["score"][:BATCH], torch.full((BATCH,), 0.1))
    memory.store(batches[12], torch.empty(0), generator("g"))
    mean = by_hand(model, batches[0])
    expected = [F.cosine_similarity(by_hand(model, batches[12].rows(torch.tensor([i]))), mean, 0) for i in range(BATCH)]
    torch.testing.assert_close(memory.slots.tensors["score"][BATCH:], torch.stack(expected))


def by_hand(model: nn.Module, batch: Batch) -> Tensor:
    copied = copy.deepcopy(model)
    copied.zero_grad()
    F.cross_entropy(copied(batch.x), batch.y).backward()
    return torch.cat([p.grad.flatten() for p in copied.parameters() if p.grad is not None])


def chances(memory: Any, score: float, draws: int = 4000) -> tuple[Tensor, Tensor]:
    """How often each place was given up for a sample of this score, and how often it should have been."""
    old, counts = memory.slots.tensors["score"], torch.zeros(len(memory.slots.tensors["score"]))
    for seed in range(draws):
        places, _ = memory.exchanged(torch.tensor([score]), generator("chances", seed))
        counts[places] += 1
    drawn = (old - old.min()) / (old - old.min()).sum()
    return counts, draws * drawn * (old + 1) / (old + score + 2)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "right"), [(None, True), (OddsTurned, False)])
def test_the_chance_to_take_a_place_is_that_of_algorithm_2(kind: type | None, right: bool) -> None:
    """A chi-square test; places are drawn by how far their score is above the lowest, as in the authors' code."""
    memory = gss(kind, capacity=5)
    old = torch.tensor([-0.8, -0.2, 0.1, 0.5, 0.9])
    memory.slots.write(torch.arange(5), Batch(torch.zeros(5, 1), torch.arange(5), torch.zeros(5), {"score": old}))
    counts, expected = chances(memory, score=-0.6)
    assert counts[0] == expected[0] == 0, "the lowest score stays"
    statistic = ((counts - expected) ** 2 / expected)[1:].sum() + (counts.sum() - expected.sum()) ** 2 / (
        4000 - expected.sum()
    )
    assert (chi2.sf(statistic.item(), 4) > 0.01) == right


def test_a_batch_that_is_like_what_is_kept_changes_nothing() -> None:
    memory, first = gss(capacity=BATCH), next(stream())
    memory.model = bare(4, hidden=8)
    for _ in range(3):
        memory.store(first, torch.empty(0), generator("like"))
    assert torch.equal(memory.slots.tensors["x"], first.x)


def test_equal_scores_and_a_batch_larger_than_the_memory() -> None:
    """Avalanche's stops at both: there is no place above the lowest, and no batch of the memory as large."""
    memory, batches = gss(capacity=6), list(stream())
    memory.model = bare(4, hidden=8)
    memory.store(batches[0], torch.empty(0), generator("large"))
    assert len(memory.slots) == 6 and len(set(memory.slots.tensors["score"].tolist())) == 1
    memory.store(batches[12], torch.empty(0), generator("large"))
    assert len(memory.slots) == 6
    theirs: Any = stock_class("plugin", "GSS_greedyPlugin")(6, SUBSETS, [6])
    strategy = SimpleNamespace(model=bare(4, hidden=8), mb_x=batches[0].x, mb_y=batches[0].y, device="cpu")
    strategy._criterion = F.cross_entropy
    theirs.after_forward(strategy)
    with pytest.raises(ValueError, match="empty"):
        theirs.after_forward(strategy)


def test_the_model_stays_as_it_is_where_avalanches_adds_to_its_gradients() -> None:
    """So in training Avalanche's steps go by the sum of the loss's gradient and that of the sample scored last."""
    model, batch = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4)), next(stream())
    memory = gss()
    memory.model = model.train()
    learn(model, batch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    drawn = torch.get_rng_state()
    for _ in range(2):
        memory.store(batch, torch.empty(0), generator("stays"))
    assert model.training and torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True) if p.grad is not None)
    theirs: Any = stock_class("plugin", "GSS_greedyPlugin")(CAPACITY, SUBSETS, [6])
    strategy = SimpleNamespace(model=model, mb_x=batch.x, mb_y=batch.y, device="cpu", _criterion=F.cross_entropy)
    for _ in range(2):
        theirs.after_forward(strategy)
    assert not all(
        torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True) if p.grad is not None
    )


def test_frozen_parameters_and_those_that_no_answer_uses_are_no_obstacle() -> None:
    model: Any = bare(4, hidden=8)
    model[0].weight.requires_grad_(False)
    model.idle = nn.Parameter(torch.ones(3))
    model.forward = lambda x: nn.Sequential.forward(nn.Sequential(model[0], model[1], model[2]), x)
    batch = next(stream())
    found = gradient(model, batch)
    assert len(found) == sum(p.numel() for p in model.parameters()) - 48 and int((found == 0).sum()) >= 3


FILE = """
name: gss
scenario: {name: split_digits, n_tasks: 5}
model: {name: mlp, hidden: [32]}
protocol: {budget: {epochs: 2}}
train: {lr: 1e-2, batch_size: 32}
references: [naive]
strategies: [{replay: {memory: gss, capacity: 100}}]
seeds: [0, 1, 2]
"""


@pytest.mark.slow
def test_it_beats_naive_training(tmp_path: Path) -> None:
    naive, method = finals(tmp_path, FILE).values()
    print(f"naive {naive}, gss {method}")
    assert all(ours > theirs + 0.15 for ours, theirs in zip(method, naive, strict=True))


@pytest.mark.parametrize("more", ["depth: 1, ", ""])
def test_with_samples_that_are_kept_inside_it_is_refused(tmp_path: Path, more: str) -> None:
    """It puts them through the whole network."""
    text = FILE.replace("[32]", "[32, 32]").replace("{memory: gss", f"{{{more}memory: gss")
    if more:
        with pytest.raises(ValueError, match="gss reads samples as they came"):
            loaded(tmp_path, text)
    else:
        loaded(tmp_path, text)
