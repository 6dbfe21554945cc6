"""GDumb: what the greedy memory keeps, and that each task is learned from it by a model that really starts anew."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import SupervisedPlugin, stock_plugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Budget, Train
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.seeding import generator
from forgetlab.strategies.replay.memories.gdumb import Dumb, Greedy
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.training.heads import Head
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.memories import contents, fill
from helpers.runs import final
from helpers.streams import in_pairs
from helpers.training import Recorder

SIZES = (40, 24, 16)  # samples of each task
BATCH, EPOCHS, SEED = 8, 2, 5


def test_a_class_keeps_its_first_samples_as_long_as_there_is_room() -> None:
    """12 places: 6 of each of two classes, whose later samples come for nothing."""
    assert contents(fill(Greedy(12), [0, 1] * 50)) == list(range(12))
    for rare in (3, 20):
        kept, share = contents(fill(Greedy(12), [0] * 20 + [1] * rare)), min(rare, 6)
        assert kept[-share:] == list(range(20, 20 + share)) and len(kept) == 12 and max(kept[:-share]) < 12


@pytest.mark.slow
def test_the_largest_class_makes_room_at_random() -> None:
    """Of its first 12 samples each stays equally often: a chi-square test, for draws of 6 of 12."""
    often, streams = torch.zeros(12, dtype=torch.float64), 1000
    for seed in range(streams):
        kept = [i for i in contents(fill(Greedy(12), [0] * 20 + [1] * 20, seed=seed)) if i < 20]
        assert len(kept) == 6
        often[kept] += 1
    spread = ((often - streams / 2) ** 2).sum() / (streams / 4) * 11 / 12
    assert chi2.sf(spread.item(), 11) > 0.01


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_classes_have_equal_shares(batch_size: int) -> None:
    labels = [0] * 40 + [1] * 3 + [2, 0] * 20 + [3] * 30
    kept = fill(Greedy(13), labels, batch_size).slots.tensors["y"][:13].tolist()
    assert sorted(Counter(kept).items()) == [(0, 4), (1, 3), (2, 3), (3, 3)]


def stream() -> Scenario:
    draw, parts = generator("gdumb stream"), []
    for task, size in enumerate(SIZES):
        parts.append(Samples(torch.randn(size, 4, generator=draw), 2 * task + torch.arange(size) % 2))
    return in_pairs(parts)


def backbone() -> MLP:
    torch.manual_seed(0)
    return MLP((4,), (5,))


def loop(memory: Memory, *beside: SupervisedPlugin, budget: Budget | None = None, **options: Any) -> Loop:
    memory.rehearsal, memory.seed = Dumb(), SEED
    given: dict[str, Any] = {"train": Train(optimizer="sgd", lr=0.1, momentum=0.9, batch_size=BATCH), **options}
    model, budget = given.pop("model", None) or SharedNetwork(backbone()), budget or Budget(epochs=EPOCHS)
    return Loop(model=model, budget=budget, plugins=[memory, *beside], seed=SEED, **given)


def learn(training: Loop, tasks: Sequence[int] = (0, 1, 2)) -> list[Tensor]:
    for task in tasks:
        training.train(to_benchmark(stream()).streams["train"][task], [])
    return [p.detach().clone() for p in training.model.parameters()]


def bare_pytorch(memory: Memory, task: int, kind: Any, **options: Any) -> list[Tensor]:
    """A new model trained on what is kept when the task has ended, written out."""
    kept = memory.slots.read(torch.arange(len(memory.slots)))
    body, head = backbone(), Head(5, seed=0)
    head.grow(range(2 * task + 2))
    optimizer = kind([*body.parameters(), *head.parameters()], fused=True, **options)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(kept.y), generator=generator("order", SEED, task, epoch)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(head(body(kept.x[rows])), kept.y[rows]).backward()
            optimizer.step()
    return [p.detach() for p in (*body.parameters(), *head.parameters())]


class GoesOn(Greedy):
    """A deliberate break: the weights are those of before the task."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._start = {}
        super().before_training_exp(strategy, **kwargs)


class KeepsItsMomentum(Greedy):
    """Another: the weights start anew, but not the optimizer that is kept from task to task."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        state = dict(strategy.optimizer.state)
        super().before_training_exp(strategy, **kwargs)
        strategy.optimizer.state.update(state)


SGD, ADAM = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}, {"optimizer": "adam", "lr": 0.01}


def starts_anew(memory: Memory, given: dict[str, Any], reset: bool) -> bool:
    training = loop(memory, train=Train(batch_size=BATCH, **given), reset_optimizer=reset)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[given["optimizer"]]
    options = {key: value for key, value in given.items() if key != "optimizer"}
    for task in range(3):
        ours = learn(training, [task])
        expected = bare_pytorch(memory, task, kind, **options)
        if not all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True)):
            return False
    return True


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("given", [SGD, ADAM])
def test_after_each_task_the_model_is_that_of_bare_pytorch_on_what_is_kept(given: dict[str, Any], reset: bool) -> None:
    """To the bit: weights, the rows of classes that have come since, and the optimizer start anew."""
    assert starts_anew(Greedy(30), given, reset)
    assert not starts_anew(GoesOn(30), given, reset)
    assert starts_anew(KeepsItsMomentum(30), given, reset) is reset


def test_any_memory_that_keeps_samples_as_they_come_will_do() -> None:
    for name in ("reservoir", "ring", "class_balanced"):
        assert starts_anew(registry.build("memory", name, {"capacity": 30}), ADAM, True)


def test_with_room_for_all_and_whole_batches_it_goes_avalanches_way() -> None:
    """Where neither the draw of the memory nor the order of its samples matters."""
    whole = {"train": Train(optimizer="sgd", lr=0.1, batch_size=100), "budget": Budget(epochs=5)}
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6))
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6))
    model.load_state_dict(plain.state_dict())
    ours = learn(loop(Greedy(100), model=plain, **whole))
    stock = Loop(model=model, plugins=[stock_plugin({"plugin": "GDumbPlugin", "mem_size": 200})], seed=SEED, **whole)
    theirs = learn(stock)
    difference = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
    print(f"GDumb: {difference:.2g}")
    assert difference < 1e-6


def test_all_that_is_trained_on_is_kept_and_is_counted_as_replayed() -> None:
    memory, watch = Greedy(30), Recorder()
    training = loop(memory, watch)
    for task in range(3):
        watch.batches.clear()
        learn(training, [task])
        kept = memory.slots.read(torch.arange(len(memory.slots))).x
        assert len(kept) == 30
        rows = torch.cat([x for x, *_ in watch.batches])
        assert sorted(rows.tolist()) == sorted(torch.cat([kept] * EPOCHS).tolist())
        assert (memory.replayed, training.seen, training.steps) == (EPOCHS * 30, 0, EPOCHS * math.ceil(30 / BATCH))


def test_a_budget_of_updates_holds() -> None:
    training = loop(Greedy(30), budget=Budget(updates=11))
    for task in range(3):
        learn(training, [task])
        assert training.steps == 11


def test_bytes_are_learned_as_numbers() -> None:
    """Kept as bytes, they come to the model as they would from the stream."""
    found, x = [], torch.randint(0, 256, (40, 4), generator=generator("gdumb bytes"), dtype=torch.uint8)
    for as_bytes in (True, False):
        memory, samples = Greedy(30), Samples(x if as_bytes else x.float() / 255, torch.arange(40) % 2)
        memory.slots.as_bytes = as_bytes
        scenario = Scenario((Task("t", samples, samples, (0, 1)),), tuple("ab"), task_known_at_test=False)
        training = loop(memory)
        training.train(to_benchmark(scenario).streams["train"][0], [])
        found.append([p.detach() for p in training.model.parameters()])
        assert memory.slots.tensors["x"].dtype == (torch.uint8 if as_bytes else torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_goes_on_from_its_state_starts_from_the_same_weights() -> None:
    memory = Greedy(30)
    training = loop(memory)
    learn(training, [0, 1])
    tensors, values = memory.state()
    assert "start/head.weight" in tensors and tensors["start/head.weight"].shape == (4, 5)
    new = Greedy(30)
    new.restore({name: tensor.clone() for name, tensor in tensors.items()}, values)
    old = learn(training, [2])
    resumed = loop(new)
    resumed.clock.train_exp_counter = 2
    for task in (0, 1):
        resumed.model.open(task, (2 * task, 2 * task + 1))
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.mul_(2.0)
    assert all(torch.equal(a, b) for a, b in zip(old, learn(resumed, [2]), strict=True))


FILE = """
name: gdumb
scenario: {{name: {scenario}, setting: {setting}, n_tasks: 5}}
model: {{name: {model}}}
protocol: {{head: {head}, budget: {{epochs: {epochs}}}{protocol}}}
train: {{lr: 1e-2, batch_size: 16}}
references: [naive]
strategies:
  - replay: {{memory: {memory}, capacity: 100, rehearsal: gdumb{more}}}
seeds: [{seeds}]
"""


def run(folder: Path, **options: str) -> tuple[list[Any], list[Any]]:
    """Of naive fine-tuning and of GDumb, seed by seed."""
    given = {"scenario": "split_digits", "setting": "class-incremental", "head": "growing", "model": "mlp"}
    given |= {"epochs": "10", "memory": "greedy", "more": "", "protocol": "", "seeds": "0", **options}
    found = runs.results(folder, FILE.format(**given))
    return found[: len(found) // 2], found[len(found) // 2 :]


@pytest.mark.slow
def test_it_forgets_less_than_naive_training_with_every_seed(tmp_path: Path) -> None:
    naive, ours = run(tmp_path, seeds="0, 1, 2")
    gained = [final(b) - final(a) for a, b in zip(naive, ours, strict=True)]
    print(gained)
    assert min(gained) > 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "head", "model"),
    [
        ("task-incremental", "per-task", "mlp"),
        ("domain-incremental", "fixed", "mlp"),
        ("class-incremental", "fixed", "vit, width: 16, depth: 1, patch: 4, heads: 2"),
    ],
)
def test_it_runs_in_every_setting_and_repeats_itself(tmp_path: Path, setting: str, head: str, model: str) -> None:
    options = {"setting": setting, "head": head, "model": model}
    (naive, ours), again = run(tmp_path, **options), run(tmp_path, **options)
    print(setting, final(naive[0]), final(ours[0]))
    assert ours == again[1] and final(ours[0]) > 0.4


@pytest.mark.slow
def test_in_one_pass_nothing_is_answered_before_it_is_learned(tmp_path: Path) -> None:
    """What it trains on is the memory's, so it has no word on samples that come by."""
    options = {"scenario": "stream, data: digits, online: true, boundaries: false", "head": "fixed", "epochs": "1"}
    (naive,), (ours,) = run(tmp_path, **options, protocol=", loss_classes: all, reset_optimizer: false")
    assert ours.prequential_accuracy == [None] * 5 and ours.metrics["prequential_accuracy"] is None
    assert None not in naive.prequential_accuracy
    assert ours.counts["total"]["samples_seen"] == 0 < ours.counts["total"]["samples_replayed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "herding"}, "this memory keeps it afterwards"),
        ({"more": ", sampler: balanced"}, "nothing is drawn"),
        ({"more": ", depth: 1", "model": "mlp, hidden: [8, 8]"}, "gdumb reads samples as they came"),
    ],
)
def test_what_it_cannot_stand_beside_is_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(FileErrors, match=message):
        run(tmp_path, **options)
