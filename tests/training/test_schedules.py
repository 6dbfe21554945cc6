"""Schedules, clipping, rates of heads: rates equal torch's own, weights those of a loop written out in bare PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Budget, Schedule, Strategy, Train
from forgetlab.results.run_key import run_key
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.training.heads import Head
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork
from forgetlab.training.schedules import Rates, clipped_step
from helpers.runs import description, final, results, told

SIZES, BATCH, SEED = (50, 21), 8, 3


def stream() -> Scenario:
    draw = torch.Generator().manual_seed(0)
    tasks = []
    for i, size in enumerate(SIZES):
        samples = Samples(torch.randn(size, 4, generator=draw), 2 * i + torch.arange(size) % 2)
        tasks.append(Task(f"task {i}", samples, samples, (2 * i, 2 * i + 1)))
    return Scenario(tuple(tasks), tuple("abcd"), task_known_at_test=False)


class Watch(SupervisedPlugin):
    """The rates of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[list[float]] = [[]]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.rates.append([])

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.rates[-1].append(strategy.optimizer.param_groups[0]["lr"])


def trained(budget: Budget, **options: Any) -> tuple[Loop, list[list[float]]]:
    torch.manual_seed(0)
    watch = Watch()
    train = Train(batch_size=BATCH, **options)
    loop = Loop(model=SharedNetwork(MLP((4,), (5,)), seed=0), train=train, budget=budget, plugins=[watch], seed=SEED)
    for experience in to_benchmark(stream()).streams["train"]:
        loop.train(experience, [])
    return loop, watch.rates[1:]


def torchs(kind: Any, units: int, **how: Any) -> list[float]:
    """The rates of torch's own scheduler, from 0.5 on."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.5)
    scheduler, rates = kind(optimizer, **how), []
    for _ in range(units):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_steps_fall_after_epochs_as_torchs_do_and_begin_anew_with_each_task() -> None:
    schedule = {"name": "steps", "at": [2, 3], "factor": 0.2}
    _, rates = trained(Budget(epochs=4), optimizer="sgd", lr=0.5, schedule=schedule)
    expected = torchs(MultiStepLR, 4, milestones=[2, 3], gamma=0.2)
    for of_task, batches in zip(rates, (7, 3), strict=True):
        assert of_task == [rate for rate in expected for _ in range(batches)]


def test_under_updates_a_schedule_moves_at_every_step() -> None:
    schedule = {"name": "cosine", "end": 0.01}
    _, rates = trained(Budget(updates=9), optimizer="sgd", lr=0.5, schedule=schedule)
    assert rates == 2 * [torchs(CosineAnnealingLR, 9, T_max=9, eta_min=0.01)]


def test_a_cosine_moves_once_an_epoch() -> None:
    _, rates = trained(Budget(epochs=3), optimizer="sgd", lr=0.5, schedule={"name": "cosine"})
    expected = torchs(CosineAnnealingLR, 3, T_max=3)
    assert rates[0] == [rate for rate in expected for _ in range(7)]


def test_a_warm_up_rises_in_equal_steps_and_the_rest_is_torchs_own() -> None:
    _, rates = trained(Budget(updates=10), optimizer="sgd", lr=0.5, schedule={"name": "constant", "warmup": 0.3})
    assert rates[0] == pytest.approx([0.125, 0.25, 0.375] + 7 * [0.5])
    _, rates = trained(Budget(updates=10), optimizer="sgd", lr=0.5, schedule={"name": "cosine", "warmup": 0.3})
    assert rates[0] == pytest.approx([0.125, 0.25, 0.375, *torchs(CosineAnnealingLR, 7, T_max=7)])


def test_with_a_warm_up_milestones_in_epochs_are_counted_in_steps() -> None:
    schedule = {"name": "steps", "at": [1], "factor": 0.5, "warmup": 0.1}
    _, rates = trained(Budget(epochs=2), optimizer="sgd", lr=0.5, schedule=schedule)
    assert rates[0] == pytest.approx([0.25] + 6 * [0.5] + 7 * [0.25])


def test_schedule_clip_rate_of_the_head_and_betas_together_equal_bare_pytorch() -> None:
    schedule = {"name": "cosine", "end": 0.001, "warmup": 0.2}
    options = {"lr": 0.02, "head_lr": 0.05, "betas": (0.8, 0.95), "clip": 0.3, "weight_decay": 0.1}
    loop, _ = trained(Budget(epochs=2), optimizer="adamw", schedule=schedule, drop_last=True, **options)
    for ours, theirs in zip(loop.model.parameters(), bare_pytorch(schedule), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def bare_pytorch(schedule: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    backbone, start = MLP((4,), (5,)), Head(5, seed=0)
    start.grow(range(4))
    weight, bias = torch.empty(0, 5), torch.empty(0)
    for i, task in enumerate(stream().tasks):
        new = slice(len(weight), max(task.classes) + 1)
        weight = nn.Parameter(torch.cat([weight.detach(), start.weight.detach()[new]]))
        bias = nn.Parameter(torch.cat([bias.detach(), start.bias.detach()[new]]))
        head = {"params": [weight, bias], "lr": 0.05}
        optimizer = AdamW([{"params": [*backbone.parameters()]}, head], 0.02, betas=(0.8, 0.95), weight_decay=0.1)
        steps = 2 * (SIZES[i] // BATCH)
        warm, step = max(1, round(0.2 * steps)), 0
        for epoch in range(2):
            order = torch.randperm(SIZES[i], generator=generator("order", SEED, i, epoch))
            for rows in [rows for rows in order.split(BATCH) if len(rows) == BATCH]:
                for group, whole in zip(optimizer.param_groups, (0.02, 0.05), strict=True):
                    group["lr"] = rate(whole, step, warm, steps, schedule["end"])
                optimizer.zero_grad()
                logits = backbone(task.train.x[rows]) @ weight.T + bias
                F.cross_entropy(logits, task.train.y[rows]).backward()
                held = [p for group in optimizer.param_groups for p in group["params"]]
                norm = torch.stack([p.grad.norm() for p in held if p.grad is not None]).norm()
                for p in held:
                    if p.grad is not None and norm > 0.3:
                        p.grad *= 0.3 / (norm + 1e-6)
                optimizer.step()
                step += 1
    return [*backbone.parameters(), weight, bias]


def rate(whole: float, step: int, warm: int, steps: int, end: float) -> float:
    if step < warm:
        return whole * (step + 1) / (warm + 1)
    way = torch.pi * torch.tensor((step - warm) / (steps - warm), dtype=torch.float64)
    return end + (whole - end) * (1 + float(torch.cos(way))) / 2


def test_a_clipped_step_leaves_the_gradient_as_it_was() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    clipped_step(SGD([weight], 1.0), 1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    assert weight.grad.tolist() == [3.0, 4.0]


def test_rates_of_a_constant_schedule_stay_after_the_warm_up() -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.5)
    rates = Rates(Schedule(name="constant", warmup=0.5), optimizer, steps=4, epochs=None)
    for _ in range(3):
        optimizer.step()
        rates.after_step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


KEYS: dict[str, Any] = {
    "schedule": {"name": "cosine"},
    "clip": 1.0,
    "head_lr": 0.1,
    "betas": (0.5, 0.9),
    "drop_last": True,
}


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_part_of_the_runs_key(key: str) -> None:
    plain, changed = (description(Strategy(name="naive"), train=Train(**options)) for options in ({}, {key: KEYS[key]}))
    assert run_key(plain, stream()) != run_key(changed, stream())


FILE = """
name: tiny
scenario: {name: split_digits, setting: class-incremental, n_tasks: 2}
model: {name: mlp, hidden: [8]}
protocol: {budget: {epochs: 2}}
references: []
train: {lr: 1e-2, batch_size: 32TRAIN}
strategies:
  - ENTRY
"""
PENALTY = "regularization: ewc"


@pytest.mark.parametrize(
    ("train", "entry", "message"),
    [
        (", schedule: {name: steps, at: [1, 2]}", PENALTY, "a task ends after 2 epochs, so no rate falls after 2"),
        (", schedule: {name: steps, at: [1], warmup: 0.5}", PENALTY, "the rate still rises after 1 epochs"),
        (", schedule: {name: steps}", PENALTY, "steps needs 'at'"),
        (", schedule: {name: cosine, at: [1]}", PENALTY, "at is for 'name: steps'"),
        (", schedule: {name: cosine, end: 0.1}", PENALTY, "'end: 0.1' must be below"),
        (", schedule: {name: constant}", PENALTY, "constant without a warm-up is no schedule"),
        (", schedule: {name: cosine, end: 1e-4}", "regularization: stable_sgd", "a regime multiplies rates"),
        (", betas: [0.9, 0.999], optimizer: sgd", PENALTY, "betas are for adam and adamw"),
        (", betas: [0.9, 0.99]", "{regularization: ewc, train: {optimizer: sgd}}", "together with the file's own"),
        (", head_lr: 0.1", "replay: {memory: reservoir, capacity: 20, sampler: mir}", "'head_lr' makes two of it"),
        (", milestones: [49]", PENALTY, "schedule: {name: steps"),
        (", lr_min: 0", PENALTY, "schedule: {name: cosine"),
        (", num_workers: 4", PENALTY, "none is needed"),
        (", max_grad_norm: 1", PENALTY, "write 'clip: 1.0'"),
        (", clip: 1.0", "avalanche: {strategy: ER_ACE, mem_size: 20, batch_size_mem: 4}", "does not reach it"),
        (", drop_last: true", "avalanche: {plugin: ReplayPlugin, mem_size: 20}", "does not reach it"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path: Path, train: str, entry: str, message: str) -> None:
    found = told(tmp_path, FILE.replace("TRAIN", train).replace("ENTRY", entry))
    assert len(found) == 1, found
    assert message in found[0][1]


def test_a_task_smaller_than_a_batch_has_no_batch_to_keep(tmp_path: Path) -> None:
    text = FILE.replace("batch_size: 32TRAIN", "batch_size: 2000, drop_last: true").replace("ENTRY", PENALTY)
    ((place, message),) = told(tmp_path, text)
    assert place.startswith("true") and "fewer than 'batch_size: 2000'" in message


def test_a_file_with_all_keys_runs_whatever_the_family(tmp_path: Path) -> None:
    keys = ", schedule: {name: cosine, warmup: 0.1}, clip: 1.0, head_lr: 0.02, betas: [0.9, 0.99], drop_last: true"
    others = ("regularization: si", "regularization: stable_sgd", "replay: {memory: reservoir, capacity: 20}")
    entries = "\n  - ".join((PENALTY, *others, "isolation: full"))
    runs = results(tmp_path, FILE.replace("TRAIN", keys).replace("ENTRY", entries))
    assert len(runs) == 5 and all(0.1 < final(result) <= 1 for result in runs), [final(one) for one in runs]
