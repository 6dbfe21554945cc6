"""DER++: its loss by hand, the logits that are stored for it, and a head that grows in between."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import BaseLogger, EvaluationPlugin, SupervisedPlugin, avalanche_forward, stock_class
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.batch import Batch
from forgetlab.checks import rehearsal as checks
from forgetlab.costs.ledger import byte_count
from forgetlab.data.datasets import Samples
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.replay.memory import Memory
from forgetlab.seeding import generator
from forgetlab.training.competing_classes import MASK
from helpers.networks import bare, network
from helpers.runs import loaded
from helpers.streams import in_pairs, opposed, under_one_label
from helpers.training import SEED, OurBatches, difference, learned

MODEL = nn.Identity()  # the loss needs no more than the output
SIZE = 12  # of a task
PARTS = opposed("der parity", 40)  # for Avalanche's beside ours


def der(**options: float) -> Any:
    return registry.build("rehearsal", "der++", options)


def example(stored_width: int = 4) -> tuple[Batch, Batch, Tensor]:
    draw = generator("der")
    y = torch.tensor([0, 1, 2])
    new, drawn = (Batch(torch.zeros(3, 1), y, torch.zeros_like(y)) for _ in range(2))
    logits, output = torch.randn(3, stored_width, generator=draw), torch.randn(6, 4, generator=draw)
    return new, drawn._replace(extra={"logits": logits}), output


def test_the_loss_by_hand() -> None:
    new, drawn, output = example()
    dark = ((output[3:] - drawn.extra["logits"]) ** 2).sum() / 12
    expected = F.cross_entropy(output[:3], new.y) + 0.3 * dark + 0.7 * F.cross_entropy(output[3:], drawn.y)
    torch.testing.assert_close(der(alpha=0.3, beta=0.7, draws=1).loss(MODEL, new, drawn, output), expected)


def test_each_term_on_the_memory_has_a_batch_of_its_own() -> None:
    """Of four drawn samples the first two are compared with their logits, the last two with their labels."""
    new = Batch(torch.zeros(1, 1), torch.tensor([0]), torch.tensor([0]))
    stored = torch.tensor([[1.0, 0.0], [0.0, 3.0], [9.0, 9.0], [9.0, 9.0]])
    drawn = Batch(torch.zeros(4, 1), torch.tensor([1, 1, 0, 1]), torch.zeros(4).long(), {"logits": stored})
    output = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    dark = (1.0 + 4.0) / 4  # (2 - 1)^2 and (1 - 3)^2 over four logits
    expected = math.log(2) + 0.5 * dark + 2.0 * math.log(2)
    method = der(alpha=0.5, beta=2.0)
    assert method.draws == 2
    assert method.loss(MODEL, new, drawn, output).item() == pytest.approx(expected)


@pytest.mark.parametrize(("options", "draws"), [({}, 2), ({"draws": 1}, 1), ({"beta": 0.0}, 1), ({"alpha": 0.0}, 1)])
def test_a_term_without_weight_draws_nothing(options: dict[str, float], draws: int) -> None:
    assert der(**options).draws == draws


def test_without_beta_it_is_der_and_takes_no_labels_of_drawn_samples() -> None:
    new, drawn, output = example()
    method = der(beta=0.0)
    assert torch.equal(
        method.loss(MODEL, new, drawn, output),
        method.loss(MODEL, new, drawn._replace(y=(drawn.y + 1) % 4), output),
    )


@pytest.mark.parametrize("filled_up", [False, True])
def test_only_classes_that_were_there_are_compared(filled_up: bool) -> None:
    new, drawn, output = example(stored_width=2)
    stored = drawn.extra["logits"]
    if filled_up:
        drawn = drawn._replace(extra={"logits": F.pad(stored, (0, 2), value=MASK)})
    expected = F.cross_entropy(output[:3], new.y) + F.mse_loss(output[3:, :2], stored)
    torch.testing.assert_close(der(alpha=1.0, beta=0.0).loss(MODEL, new, drawn, output), expected)


def parts() -> list[Samples]:
    draw, found = generator("der stream"), []
    for task in range(3):
        found.append(Samples(torch.randn(SIZE, 4, generator=draw), 2 * task + torch.arange(SIZE) % 2))
    return found


class Watch(SupervisedPlugin):
    """Notes each new sample's logits of the last time it passed by, and each step's loss beside the one by hand."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.latest: dict[tuple[float, ...], Tensor] = {}
        self.losses: list[tuple[Tensor, Tensor]] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        incoming, drawn, output = self.memory._incoming, self.memory._drawn, strategy.mb_output
        assert incoming is not None
        for x, logits in zip(incoming.x, output.detach(), strict=False):
            self.latest[tuple(x.tolist())] = logits.clone()
        if drawn is not None and self.memory.rehearsal is not None:
            by_hand = self.memory.rehearsal.loss(strategy.model, incoming, drawn, output)
            self.losses.append((strategy.loss.detach(), by_hand.detach()))


def trained(rehearsal: Any, **options: Any) -> tuple[Memory, Watch]:
    memory = registry.build("memory", "ring", {"capacity": 3 * SIZE})  # has room for all
    memory.rehearsal = rehearsal
    watch = Watch(memory)
    stream = to_benchmark(in_pairs(parts()), told=options.get("task_known"))
    learned(network(**options), stream, memory, watch, optimizer="adam", batch_size=4, lr=0.05)
    return memory, watch


@pytest.mark.parametrize("options", [{}, {"loss_classes": "current"}, {"task_known": True, "head": "per-task"}])
def test_logits_are_stored_as_they_were_when_the_sample_came(options: Any) -> None:
    """In the task's last epoch, as the ring keeps the last; columns that came with later tasks hold MASK."""
    memory, watch = trained(der(), **options)
    kept = memory.slots.read(torch.arange(len(memory.slots)))
    assert len(kept.y) == 3 * SIZE and kept.extra["logits"].shape == (3 * SIZE, 6)
    for x, logits in zip(kept.x, kept.extra["logits"], strict=True):
        then = watch.latest[tuple(x.tolist())]
        assert torch.equal(logits, F.pad(then, (0, 6 - len(then)), value=MASK))
    own = [kept.extra["logits"][kept.y == label, label] for label in range(6)]
    assert all(bool((logits > MASK).all()) for logits in own)


@pytest.mark.parametrize(("rehearsal", "epochs"), [(None, 1), ("der++", 2)])
def test_a_sample_passes_by_once_but_in_every_epoch_where_its_logits_are_kept(
    rehearsal: str | None, epochs: int
) -> None:
    memory, _ = trained(der() if rehearsal else None)
    assert memory.state()[1]["seen"] == epochs * 3 * SIZE


def test_the_loop_trains_on_its_loss() -> None:
    _, watch = trained(der())
    assert len(watch.losses) > SIZE
    assert all(torch.equal(ours, by_hand) for ours, by_hand in watch.losses)
    assert max(float(loss) for loss, _ in watch.losses) < 100  # no MASK in it


def test_logits_are_kept_only_where_they_are_asked_for_and_are_counted() -> None:
    plain, _ = trained(None)
    dark, _ = trained(der())
    assert "logits" not in plain.slots.tensors
    assert byte_count(dark.state()[0]) - byte_count(plain.state()[0]) == 3 * SIZE * 6 * 4


def test_der_without_its_logits_is_found() -> None:
    """The deliberate break: the memory is not told that logits are needed."""
    broken = type("Broken", (type(der()),), {"keeps_logits": False})
    with pytest.raises(AssertionError, match="'logits', which it does not ask for"):
        checks.gradient_is_right(Plugin("rehearsal", "broken", broken))
    with pytest.raises(KeyError, match="logits"):
        trained(broken())


def test_a_scenario_file_gives_it_to_a_memory(tmp_path: Path) -> None:
    text = (
        "name: x\nscenario: split_digits\nmodel: mlp\nreferences: []\nstrategies:\n"
        "  - replay: {memory: reservoir, capacity: 500, rehearsal: der++, alpha: 0.7}\n"
    )
    (entry,) = loaded(tmp_path, text).strategies
    assert entry.name == "reservoir+der++" and entry.replay is not None
    assert entry.replay.memory == {"name": "reservoir", "capacity": 500, "ratio": 1.0}
    assert entry.replay.rehearsal == {"name": "der++", "alpha": 0.7, "beta": 0.5, "draws": 2}


class StockDER(OurBatches, stock_class("strategy", "DER")):  # type: ignore[misc]
    """Avalanche's own, fed with the batches of our loop; notes what it draws."""

    def _before_forward(self, **kwargs: Any) -> None:
        super()._before_forward(**kwargs)
        if self.replay_loader is not None:
            x, y, task = (field[: self.batch_size_mem].clone() for field in self.mbatch)
            self.drawn.append(Batch(x, y, task, {"logits": self.batch_logits.clone()}))


class Given(Memory):
    """Draws what Avalanche drew, from the second task on."""

    def __init__(self, drawn: list[Batch]) -> None:
        super().__init__(1)
        self.left, self.ended = iter(drawn), 0

    def __len__(self) -> int:
        return self.ended

    def store(self, batch: Batch, output: Tensor, generator: torch.Generator) -> None:
        """Nothing: all is given."""

    def end(self, model: nn.Module, data: Any, generator: torch.Generator) -> None:
        self.ended += 1

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return next(self.left)


def avalanches(alpha: float, beta: float) -> Any:
    model = bare()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"mem_size": 24, "alpha": alpha, "beta": beta, "train_mb_size": 8, "train_epochs": 2}
    silent = EvaluationPlugin(loggers=[BaseLogger()])
    stock: Any = StockDER(model=model, optimizer=optimizer, evaluator=silent, **options)
    stock.drawn, stock.at_end = [], []
    for experience in under_one_label(PARTS).streams["train"]:
        stock.train(experience, [])
        kept = [stock.storage_policy.buffer[i] for i in range(len(stock.storage_policy.buffer))]
        x, logits = (torch.stack([torch.as_tensor(sample[i]) for sample in kept]) for i in (0, -1))
        stock.at_end.append((x, logits, model(x).detach()))
    return stock


def ours(drawn: list[Batch], rehearsal: Any) -> nn.Module:
    memory = Given(drawn)
    memory.rehearsal = rehearsal
    model = learned(bare(), under_one_label(PARTS), memory, seed=SEED)
    assert next(memory.left, None) is None, "not as many draws as Avalanche made"
    return model


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_on_equal_draws_each_step_is_avalanches(beta: float) -> None:
    """DER and DER++ from equal weights, over three tasks; with half the strength training goes another way."""
    theirs = avalanches(0.3, beta)
    assert len(theirs.drawn) == 20
    found = difference(ours(theirs.drawn, der(alpha=0.3, beta=beta, draws=1)), theirs.model)
    print(f"DER, beta {beta}: {found:.2g}")
    assert found < 1e-6
    assert difference(ours(theirs.drawn, der(alpha=0.15, beta=beta, draws=1)), theirs.model) > 1e-3


Step = tuple[Batch, Batch | None]  # the new samples, and what was drawn for them


def algorithm_2(model: nn.Module, steps: list[Step], alpha: float, beta: float) -> nn.Module:
    """The paper's, on given batches: each term is carried back by itself, and one step is taken of their sum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for new, drawn in steps:
        optimizer.zero_grad()
        F.cross_entropy(model(new.x), new.y).backward()
        if drawn is not None:
            first, second = (drawn.rows(rows) for rows in torch.arange(len(drawn.y)).chunk(2))
            (alpha * F.mse_loss(model(first.x), first.extra["logits"])).backward()
            (beta * F.cross_entropy(model(second.x), second.y)).backward()
        optimizer.step()
    return model


class Steps(SupervisedPlugin):
    """Notes what the steps are taken on."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory, self.steps = memory, list[Step]()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        assert self.memory._incoming is not None
        self.steps.append((self.memory._incoming, self.memory._drawn))


class OneForBoth(registry.find("rehearsal", "der++").factory):  # type: ignore[misc]
    """The deliberate break: the labels are those of the batch whose logits were compared."""

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        n = len(new.y)
        rows = torch.arange(len(drawn.y) // 2).repeat(2)
        return super().loss(model, new, drawn.rows(rows), torch.cat([output[:n], output[n:][rows]]))


@pytest.mark.parametrize("broken", [False, True])
def test_each_step_is_that_of_algorithm_2(broken: bool) -> None:
    memory: Memory = registry.build("memory", "reservoir", {"capacity": 30})
    memory.rehearsal = OneForBoth(0.3, 0.7) if broken else der(alpha=0.3, beta=0.7)
    watch = Steps(memory)
    model = learned(bare(), under_one_label(PARTS), memory, watch, seed=SEED)
    sizes = {len(drawn.y) // len(new.y) for new, drawn in watch.steps if drawn is not None}
    assert max(sizes) == 2
    found = difference(algorithm_2(bare(), watch.steps, 0.3, 0.7), model)
    print(f"algorithm 2: {found:.2g}")
    assert (found < 1e-6) != broken


def test_avalanche_keeps_the_logits_of_the_tasks_end_and_the_paper_those_of_the_way() -> None:
    """There are no trajectories in its memory: of a task that has just ended, all are the final model's own logits."""
    theirs = avalanches(0.3, 0.5)
    for task, (x, logits, final) in enumerate(theirs.at_end):
        of_task = (x.argmax(1) // 2 == task) if task else torch.ones(len(x), dtype=torch.bool)
        same = (logits - final).abs().amax(1) < 1e-5
        assert same.sum() >= 8 and (task or bool(same[of_task].all()))
    memory, _ = trained(der())
    kept = memory.slots.read(torch.arange(len(memory.slots)))
    assert memory.model is not None
    final = avalanche_forward(memory.model.eval(), kept.x, kept.task).detach()
    newest = kept.y >= 4
    assert (kept.extra["logits"][newest] - final[newest]).abs().amax(1).min() > 1e-4
