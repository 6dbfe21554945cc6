"""What is drawn: the balanced sampler by a chi-square test, MIR by its definition and beside Avalanche's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import stock_plugin
from forgetlab.batch import Batch
from forgetlab.checks import sampler as checks
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.plugins.registry import Plugin
from forgetlab.replay.sampler import Sampler
from forgetlab.replay.slots import Slots
from forgetlab.seeding import drawn_from, generator
from forgetlab.strategies.replay.samplers.balanced import Balanced
from forgetlab.strategies.replay.samplers.mir import MaximallyInterfered
from forgetlab.toolbox.teacher import logits
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.networks import network
from helpers.runs import final

RATE = 0.3
WAYS: tuple[Any, ...] = ("task", "classes", "nothing")
STREAMS = 2000
COUNTS = (2, 5, 40, 13)  # kept samples of each class


class Uniform(Sampler):
    """A deliberate break: each sample is equally likely, so large classes come more often."""

    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        return torch.randperm(len(slots), generator=generator)[:n]


class FirstOfEach(Sampler):
    """Another: each class equally often, but always by the same samples."""

    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        y = slots.tensors["y"][: len(slots)]
        first = [int((y == label).nonzero()[0]) for label in y.unique()]
        return torch.tensor(first)[torch.randint(len(first), (n,), generator=generator)]


def batch(x: Tensor, y: Tensor) -> Batch:
    return Batch(x, y, torch.zeros_like(y))


def unequal() -> Slots:
    y = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    y = y[torch.randperm(len(y), generator=generator("samplers"))]
    slots = Slots(len(y) + 5)
    slots.write(torch.arange(len(y)), batch(torch.arange(len(y)).float().unsqueeze(1), y))
    return slots


def drawn(sampler: Sampler, n: int) -> Tensor:
    """How often each place was drawn, in many draws of n."""
    slots, draw, new = unequal(), generator("samplers", 1), batch(torch.zeros(1, 1), torch.zeros(1).long())
    places = [sampler.choose(slots, n, new, nn.Identity(), RATE, draw) for _ in range(STREAMS)]
    return torch.bincount(torch.cat(places), minlength=len(slots)).double()


def classes_are_alike(often: Tensor) -> float:
    """The p-value of: each class is drawn equally often."""
    y = unequal().tensors["y"][: len(often)]
    return float(chisquare([often[y == label].sum().item() for label in y.unique()]).pvalue)


def samples_are_alike(often: Tensor) -> float:
    """The lowest p-value of: of one class, each sample is drawn equally often."""
    y = unequal().tensors["y"][: len(often)]
    return min(float(chisquare(often[y == label].tolist()).pvalue) for label in y.unique())


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 8])
def test_balanced_draws_each_class_equally_often_and_each_of_its_samples(n: int) -> None:
    """Within a draw a class's samples come in turn, which makes their counts less spread than independent ones."""
    often = drawn(Balanced(), n)
    assert classes_are_alike(often) > 0.01 and samples_are_alike(often) > 0.01


@pytest.mark.parametrize(("broken", "test"), [(Uniform(), classes_are_alike), (FirstOfEach(), samples_are_alike)])
def test_a_sampler_that_is_not_balanced_is_found(broken: Sampler, test: Any) -> None:
    assert test(drawn(broken, 8)) < 1e-6


def test_a_sample_comes_twice_only_when_all_of_its_class_have_come() -> None:
    slots = unequal()
    for seed in range(50):
        places = Balanced().choose(
            slots, 30, batch(torch.zeros(1, 1), torch.zeros(1).long()), nn.Identity(), RATE, generator("s", seed)
        )
        often = torch.bincount(places, minlength=len(slots))
        for label in range(len(COUNTS)):
            of_class = often[slots.tensors["y"][: len(slots)] == label]
            assert of_class.max() - of_class.min() <= 1


def mlp(classes: int = 4) -> SharedNetwork:
    model = network((6,), (16,))
    model.open(0, range(classes))
    return model.train()


def samples(n: int, seed: int) -> Batch:
    y = torch.arange(n) % 4
    return batch(torch.randn(n, 6, generator=generator("samplers", seed)) + torch.eye(6)[y], y)


def losses(model: nn.Module, kept: Batch) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(logits(model, kept), kept.y, reduction="none")


def by_hand(model: nn.Module, kept: Batch, new: Batch, rate: float = RATE) -> Tensor:
    """A step is taken by a copy."""
    ahead = copy.deepcopy(model)
    optimizer = torch.optim.SGD(ahead.parameters(), lr=rate)
    F.cross_entropy(logits(ahead, new), new.y).backward()
    optimizer.step()
    return losses(ahead, kept) - losses(model, kept)


class Forgotten(MaximallyInterfered):
    """A deliberate break: those that the step helps."""

    def interference(self, model: nn.Module, kept: Batch, new: Batch, rate: float) -> Tensor:
        return -super().interference(model, kept, new, rate)


class Hardest(MaximallyInterfered):
    """Another: those that are far off already."""

    def interference(self, model: nn.Module, kept: Batch, new: Batch, rate: float) -> Tensor:
        return losses(model, kept)


def test_interference_is_what_a_step_would_cost() -> None:
    model, kept, new = mlp(), samples(40, 0), samples(10, 1)
    found = MaximallyInterfered().interference(model, kept, new, RATE)
    torch.testing.assert_close(found, by_hand(model, kept, new), atol=1e-6, rtol=1e-5)
    assert found.abs().max() > 0.01


def test_at_a_small_rate_interference_is_how_far_gradients_are_opposed() -> None:
    """l(theta - r g) - l(theta) = -r g . grad l, but for terms in r^2: without any step, by gradients alone."""
    model, kept, new = mlp().double(), samples(8, 0), samples(10, 1)
    kept, new = (one._replace(x=one.x.double()) for one in (kept, new))

    def gradient(one: Batch) -> Tensor:
        loss = F.cross_entropy(logits(model, one), one.y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    opposed = torch.stack([-gradient(kept.rows(torch.tensor([i]))) @ gradient(new) for i in range(8)])
    found = MaximallyInterfered().interference(model, kept, new, 1e-6) / 1e-6
    torch.testing.assert_close(found, opposed, rtol=1e-3, atol=1e-5)


def slots_of(kept: Batch) -> Slots:
    slots = Slots(len(kept.y))
    slots.write(torch.arange(len(kept.y)), kept)
    return slots


def chosen(sampler: Sampler, n: int = 10, kept: Batch | None = None) -> list[int]:
    kept = samples(40, 0) if kept is None else kept
    places = sampler.choose(slots_of(kept), n, samples(10, 1), mlp(), RATE, generator("samplers", 2))
    return sorted(places.tolist())


def test_the_most_interfered_of_the_candidates_are_drawn() -> None:
    rises = by_hand(mlp(), samples(40, 0), samples(10, 1))
    assert chosen(MaximallyInterfered(4, at_most=1)) == sorted(rises.topk(10).indices.tolist())
    candidates = torch.randperm(40, generator=generator("samplers", 2))[:20]
    assert chosen(MaximallyInterfered(2)) == sorted(candidates[rises[candidates].topk(10).indices].tolist())
    assert chosen(MaximallyInterfered(1)) == sorted(candidates[:10].tolist())  # none to choose among
    assert len(chosen(MaximallyInterfered(), n=90)) == 40
    assert chosen(MaximallyInterfered(40)) == chosen(MaximallyInterfered(2)), "half of 40 are candidates at most"
    assert chosen(MaximallyInterfered(40, at_most=0.1)) == sorted(candidates[:10].tolist()), "as few as are drawn"


def of_tasks(kept: Batch, task: list[int], now: int) -> Slots:
    """Samples that came in these tasks, while one of them is at hand."""
    slots = Slots(len(kept.y))
    for i, came in enumerate(task):
        slots.experience = came
        slots.write(torch.tensor([i]), kept.rows(torch.tensor([i])))
    slots.experience = now
    return slots


def authors_choice(model: nn.Module, slots: Slots, new: Batch, n: int) -> list[int]:
    """Their retrieval where the memory holds no more candidates than they look at: a step of plain gradient descent is
    taken ahead, and of all samples of other tasks those are chosen whose loss it raises most."""
    theta = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(logits(model, new), new.y).backward()
    others = (slots.tensors["experience"][: len(slots)] != slots.experience).nonzero().flatten()
    kept = slots.read(others)
    with torch.no_grad():
        now = F.cross_entropy(logits(model, kept), kept.y, reduction="none")
        for p in model.parameters():
            p -= RATE * p.grad  # type: ignore[operator]
        ahead = F.cross_entropy(logits(model, kept), kept.y, reduction="none")
        for p, before in zip(model.parameters(), theta, strict=True):
            p.copy_(before)
    order = (ahead - now).sort(descending=True).indices[:n]
    return sorted(others[order].tolist())


@pytest.mark.parametrize(("n", "exclude", "same"), [(6, "task", True), (1, "task", True), (6, "nothing", False)])
def test_it_draws_what_its_authors_code_draws(n: int, exclude: Any, same: bool) -> None:
    """The deliberate break: samples of the task at hand are candidates too."""
    kept, new = samples(40, 0), samples(10, 1)
    slots = of_tasks(kept, [0] * 14 + [1] * 10 + [2] * 16, now=2)
    sampler = MaximallyInterfered(50, at_most=1, exclude=exclude)
    found = sampler.choose(slots, n, new, mlp(), RATE, generator("samplers", 2)).tolist()
    assert (sorted(found) == authors_choice(mlp(), slots, new, n)) == same
    assert (max(found) < 24) == same


def test_what_is_left_out_of_the_candidates() -> None:
    slots, new = of_tasks(samples(12, 0), [0] * 6 + [1] * 6, now=1), samples(2, 1)
    left = {how: MaximallyInterfered(exclude=how).may_be_drawn(slots, new).tolist() for how in WAYS}
    assert left["task"] == [0, 1, 2, 3, 4, 5] and left["nothing"] == list(range(12))
    assert left["classes"] == [2, 3, 6, 7, 10, 11], "the new ones are of classes 0 and 1"
    slots.experience = 0
    slots.tensors["experience"][:] = 0
    assert len(MaximallyInterfered().choose(slots, 3, new, mlp(), RATE, generator("samplers"))) == 0


class Seen:
    """What a model is given while a gradient is wanted."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: list[Tensor] = []
        model.register_forward_pre_hook(self.note)

    def note(self, model: nn.Module, given: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self.inputs.append(given[0])


def in_avalanche(model: nn.Module, kept: Batch, new: Batch, n: int) -> list[int]:
    """What Avalanche's plug-in draws of these candidates."""
    plugin: Any = stock_plugin({"plugin": "MIRPlugin", "batch_size_mem": n, "subsample": len(kept.y)})
    plugin.replay_loader = iter([kept[:3]])
    strategy: Any = type("Strategy", (), {})()
    strategy.model, strategy.device, strategy._criterion = model, "cpu", nn.CrossEntropyLoss()
    strategy.optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    strategy.loss = strategy._criterion(logits(model, new), new.y)
    seen = Seen(model)
    plugin.before_backward(strategy)
    (drawn,) = seen.inputs
    return sorted(int((kept.x == x).all(1).nonzero()) for x in drawn)


@pytest.mark.parametrize("n", [1, 10, 25])
def test_avalanches_plugin_draws_the_same_of_the_same_candidates(n: int) -> None:
    kept, new = samples(40, 0), samples(10, 1)
    theirs = in_avalanche(mlp(), kept, new, n)
    assert chosen(MaximallyInterfered(40, at_most=1), n) == theirs
    assert chosen(Forgotten(40, at_most=1), n) != theirs and chosen(Hardest(40, at_most=1), n) != theirs


def normalised() -> nn.Module:
    with drawn_from("samplers"):
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def test_a_look_at_the_candidates_moves_avalanches_statistics_and_not_ours() -> None:
    """They go through BatchNorm in training mode, as do the drawn ones later, so each counts up to three times."""
    kept, new = samples(40, 0), samples(10, 1)
    model = normalised()
    before = model[1].running_mean.clone()  # type: ignore[index,union-attr,operator]
    MaximallyInterfered().interference(model, kept, new, RATE)
    assert torch.equal(model[1].running_mean, before)  # type: ignore[index]
    logits(model, new)  # the pass of the step itself
    after_a_step = model[1].num_batches_tracked.item()  # type: ignore[index,union-attr,operator]
    in_avalanche(model, kept, new, 10)
    assert after_a_step == 1 and model[1].num_batches_tracked.item() == 4  # type: ignore[index,union-attr,operator]


class DrawsGlobally(Balanced):
    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        return torch.randperm(len(slots))[:n]


class TakesTheStep(MaximallyInterfered):
    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        F.cross_entropy(logits(model, new), new.y).backward()
        return super().choose(slots, n, new, model, rate, generator)


class Reaches(Balanced):
    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        return torch.randperm(slots.capacity, generator=generator)[:n]


class AlwaysTheFirst(Balanced):
    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        return torch.arange(min(n, len(slots)))


class Repeats(Balanced):
    def choose(self, slots: Slots, n: int, new: Batch, model: nn.Module, rate: float, generator: Generator) -> Tensor:
        return super().choose(slots, 1, new, model, rate, generator).expand(n)


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (DrawsGlobally, checks.draws_are_repeatable, "not the run's"),
        (AlwaysTheFirst, checks.draws_are_repeatable, "not used"),
        (TakesTheStep, checks.leaves_all_as_it_is, "a choice changes backbone.2.running_mean"),
        (Reaches, checks.gives_places, "hold no sample"),
        (Repeats, checks.gives_places, "drawn twice"),
        (Repeats, checks.gives_what_there_is, "of 1 kept"),
    ],
)
def test_the_checks_find_a_broken_sampler(broken: type, check: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(Plugin("sampler", "broken", broken))


FILE = """
name: samplers
scenario: {{name: split_digits, setting: {setting}, n_tasks: 5}}
model: {{name: {model}}}
protocol: {{head: {head}}}
train: {{lr: 1e-2, batch_size: 16}}
references: [naive]
strategies:
  - replay: {{memory: reservoir, capacity: 60, {replay}}}
"""


def run(
    folder: Path, replay: str, setting: str = "class-incremental", head: str = "growing", model: str = "mlp"
) -> Sequence[Any]:
    """Of naive fine-tuning, and of the entry."""
    return runs.results(folder, FILE.format(replay=replay, setting=setting, head=head, model=model))


VIT = "vit, width: 8, depth: 1, patch: 4, heads: 2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "head", "model"),
    [
        ("class-incremental", "fixed", VIT),
        ("task-incremental", "per-task", "mlp"),
        ("domain-incremental", "growing", "mlp"),
    ],
)
@pytest.mark.parametrize("sampler", ["balanced", "mir"])
def test_it_draws_for_any_memory_and_loss_in_every_setting(
    tmp_path: Path, sampler: str, setting: str, head: str, model: str
) -> None:
    (naive, method), again = (run(tmp_path, f"sampler: {sampler}", setting, head, model) for _ in range(2))
    assert final(method) > final(naive)
    assert method.counts["total"]["samples_replayed"] > 0
    assert method == again[1]


@pytest.mark.slow
def test_mir_has_to_see_samples_as_they_came(tmp_path: Path) -> None:
    with pytest.raises(FileErrors, match="mir reads samples as they came, and none are kept so"):
        run(tmp_path, "sampler: mir, depth: 1", model="mlp, hidden: [16, 16]")
    assert (
        run(tmp_path, "sampler: balanced, depth: 1", model="mlp, hidden: [16, 16]")[1].counts["total"][
            "samples_replayed"
        ]
        > 0
    )
