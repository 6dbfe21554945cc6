"""A-GEM: its formula, Avalanche's step by step, what an old task's head does, and what Adam makes of the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.api import CLScenario, SupervisedPlugin, stock_plugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.seeding import generator, reseed
from forgetlab.toolbox.teacher import logits
from forgetlab.training.network import SharedNetwork
from helpers.networks import bare
from helpers.runs import final, results
from helpers.streams import in_pairs, opposed, under_one_label
from helpers.training import EachStep, Weights, farthest, learned

SIZE, TASKS, TOLERANCE = 60, 3, 1e-6
PARTS = opposed("agem", SIZE, TASKS)


def agem(**changes: Any) -> Any:
    """The method, or one with methods changed."""
    kind = registry.find("projection", "agem").factory
    return type("Changed", (kind,), changes)() if changes else kind()  # type: ignore[arg-type]


def trained(
    *found: Any, model: nn.Module | None = None, stream: CLScenario | None = None, **train: Any
) -> list[Weights]:
    """The weights after each step."""
    watch = EachStep()
    learned(model or bare(), stream or under_one_label(PARTS), *found, watch, **train)
    return watch.weights


def beside(projection: Any, capacity: int = SIZE * TASKS, ratio: float = 1e3, name: str = "reservoir") -> list[Any]:
    """A memory, by default of all samples, which all make each reference, and a projection by it."""
    memory: Memory = registry.build("memory", name, {"capacity": capacity, "ratio": ratio})
    memory.joins, projection.memory = False, memory
    return [memory, projection]


def test_the_formula_by_hand() -> None:
    g, r = (
        {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([[2.0]])},
        {"a": torch.zeros(2), "b": torch.tensor([[-4.0]])},
    )
    left = agem().project(g, [r])
    assert left["a"].tolist() == [3.0, -1.0] and left["b"].tolist() == [[0.0]]
    for reference in ({name: -t for name, t in r.items()}, {name: 0 * t for name, t in r.items()}):
        assert agem().project(g, [reference]) is g
    assert agem().project(g, []) is g


@pytest.mark.slow
def test_every_step_is_avalanches_where_all_old_samples_make_the_reference() -> None:
    ours = trained(*beside(agem()))
    stock = {"plugin": "AGEMPlugin", "patterns_per_experience": SIZE, "sample_size": SIZE * (TASKS - 1)}
    theirs = trained(stock_plugin(stock))
    print(f"{len(ours)} steps, at most {farthest(ours, theirs):.1e} apart")
    assert farthest(ours, theirs) < TOLERANCE
    assert farthest(ours, trained()) > 1e-2


def test_every_step_is_avalanches_on_the_same_drawn_references(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Batch] = []

    def noted(self: Memory, draw: torch.Generator) -> list[Batch]:
        found = Memory.recalled(self, draw)
        drawn.extend(found)
        return found

    memory, projection = beside(agem(), capacity=40, ratio=1.5, name="ring")
    monkeypatch.setattr(type(memory), "recalled", noted, raising=False)
    ours = trained(memory, projection)
    assert {len(batch.y) for batch in drawn} == {12, 6}  # 1.5 for each new one; the last batch has 4
    theirs: Any = stock_plugin({"plugin": "AGEMPlugin", "patterns_per_experience": 5, "sample_size": 5})
    left = iter(drawn)
    theirs.sample_from_memory = lambda: next(left)[:3]
    assert farthest(ours, trained(theirs)) < TOLERANCE
    assert next(left, None) is None


def dot(a: Any, b: Any) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


@pytest.mark.parametrize(
    ("share", "where"),
    [
        (lambda along, square: along / square, lambda along: along < 0),
        (lambda along, square: along, lambda along: along < 0),
        (lambda along, square: -along / square, lambda along: along < 0),
        (lambda along, square: along / square, lambda along: True),
    ],
    ids=["right", "without dividing by r . r", "the other way", "always"],
)
def test_another_formula_is_not_avalanches(share: Any, where: Any, request: pytest.FixtureRequest) -> None:
    """Deliberate breaks, beside what is right."""

    def project(self: Any, gradient: Any, references: Any) -> Any:
        for r in references:
            along = dot(gradient, r)
            if where(along):
                return {name: g - share(along, dot(r, r)) * r[name] for name, g in gradient.items()}
        return gradient

    both = (with_heads(beside(method), "growing") for method in (agem(), agem(project=project)))
    apart = farthest(*([weights] for weights in both))  # here 21 of 32 steps would raise the old loss
    assert apart < TOLERANCE if "right" in request.node.name else apart > 1e-3


def with_heads(plugin: Any, head: Any, **options: Any) -> Weights:
    """The last weights; those of heads of their own stand as rows of one."""
    reseed("agem")
    model = SharedNetwork(MLP((6,), (16,)), head=head, task_known=True)
    found = plugin if isinstance(plugin, list) else [plugin]
    stream = to_benchmark(in_pairs(PARTS, told=True), told=True)
    last = trained(*found, model=model, stream=stream, **options)[-1]
    own = {name: t for name, t in last.items() if not name.startswith("head.")}
    for part in ("weight", "bias"):
        rows = [t for name, t in last.items() if name.startswith("head.") and name.endswith(part)]
        own[part] = torch.cat(rows)
    return own


def test_heads_of_their_own_are_rows_of_one_head() -> None:
    """The step is over all weights, so an old task's head moves too where its task's loss would rise."""
    apart, one = (with_heads(beside(agem()), head) for head in ("per-task", "growing"))
    assert farthest([apart], [one]) < TOLERANCE


@pytest.mark.slow
def test_avalanches_leaves_old_heads_out_of_the_step_but_not_out_of_the_length() -> None:
    """What it does with heads of their own is not what it does with the same rows of one head."""
    spec = {"plugin": "AGEMPlugin", "patterns_per_experience": SIZE, "sample_size": SIZE * (TASKS - 1)}
    apart, one = (with_heads(stock_plugin(spec), head) for head in ("per-task", "growing"))
    assert farthest([apart], [one]) > 1e-3
    assert farthest([one], [with_heads(beside(agem()), "growing")]) < TOLERANCE


class Rises(SupervisedPlugin):
    """By how much each step raises the loss on the last reference batch, to first order."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory, self.rises = memory, []
        self.old: dict[str, Tensor] = {}

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.old = {name: p.detach().clone() for name, p in strategy.model.named_parameters()}
        self.batches = self.memory.recalled(generator("all"))  # all of them, so no draw is in it
        losses = [nn.functional.cross_entropy(logits(strategy.model, batch), batch.y) for batch in self.batches]
        self.gradients = [torch.autograd.grad(loss, [*strategy.model.parameters()]) for loss in losses]

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        for gradient in self.gradients:
            moves = [p.detach() - self.old[name] for name, p in strategy.model.named_parameters()]
            self.rises.append(float(sum((m * g).sum() for m, g in zip(moves, gradient, strict=True))))


def rises(**options: Any) -> Tensor:
    found = beside(agem())
    watch = Rises(found[0])
    with_heads([*found, watch], "growing", **options)
    return torch.tensor(watch.rises)


@pytest.mark.slow
def test_a_step_of_sgd_raises_no_old_loss_but_momentum_and_weight_decay_do() -> None:
    assert rises().max() < 1e-6
    assert rises(momentum=0.9).max() > 1e-3
    assert rises(weight_decay=0.1).max() > 1e-3


@pytest.mark.parametrize(("optimizer", "rise"), [(torch.optim.SGD, 0.0), (torch.optim.Adam, 2.0)])
def test_adam_leaves_the_half_space(optimizer: Any, rise: float) -> None:
    """Its first step is as long in every direction: here r . step is -1 + 3 where the bound asks for 0."""
    reference, p = torch.tensor([1.0, 3.0]), nn.Parameter(torch.zeros(2))
    p.grad = left = agem().project({"p": torch.tensor([2.0, -4.0])}, [{"p": reference}])["p"]
    assert left.tolist() == [3.0, -1.0]
    optimizer([p], lr=1.0).step()
    assert float(reference @ p.detach()) == pytest.approx(rise, abs=1e-6)


FILE = """
name: agem
scenario: {name: split_digits, setting: task-incremental, n_tasks: 5}
model: {name: mlp, hidden: [32]}
protocol: {budget: {epochs: 3}}
train: {optimizer: sgd, lr: 0.1, batch_size: 10}
references: [naive]
strategies:
  - replay: {memory: class_balanced, capacity: 100, projection: agem}
seeds: [0, 1, 2]
"""


@pytest.mark.slow
def test_it_forgets_less_than_naive_training(tmp_path: Path) -> None:
    found = results(tmp_path, FILE)
    naive, ours = found[:3], found[3:]
    for result in ours:
        assert result.counts["total"]["memory_bytes"] == 100 * (64 * 4 + 8 + 8 + 8 + 8)  # experience and key beside
        assert result.counts["total"]["samples_replayed"] > 0
    gained = [final(b) - final(a) for a, b in zip(naive, ours, strict=True)]
    print(gained)
    assert min(gained) > 0
