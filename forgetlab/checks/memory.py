"""What a replay memory promises."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.checks.common import CAPACITY, inputs, make, names_no_strange_callback, require
from forgetlab.checks.task_end import looks_in_evaluation_mode
from forgetlab.data.datasets import held_out
from forgetlab.experiment import Budget, Train
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.replay.memory import Memory
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.seeding import drawn_from, generator
from forgetlab.streams.build import split
from forgetlab.toolbox.teacher import logits
from forgetlab.training.competing_classes import MASK
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork

TASK = 2  # batches


def stream(n: int = 8, size: int = 10) -> Iterator[Batch]:
    """Batches in which sample i of the stream holds the number i and the label i mod 4."""
    for start in range(0, n * size, size):
        i = torch.arange(start, start + size)
        yield Batch(i.float().unsqueeze(1), i % 4, i // 20)


def made(plugin: Plugin) -> Memory:
    """A small one, that learns what it learns in a moment."""
    taken = {option.name for option in registry.parameters(plugin)}
    return make(plugin, **{name: value for name, value in {"capacity": CAPACITY, "steps": 9}.items() if name in taken})


def filled(plugin: Plugin, seed: int = 0, n: int = 8) -> Memory:
    memory = made(plugin)
    send(memory, n, generator("checks", seed))
    return memory


def send(memory: Memory, n: int, draw: torch.Generator) -> None:
    """Let a stream pass by, tasks of two batches, which a memory may also keep samples of when they end."""
    task: list[Batch] = []
    memory.model = network()
    for one in stream(n):
        task.append(one._replace(x=one.x.clone() if memory.has_slots else one.x / 80))  # pixels lie from 0 to 1
        memory.store(task[-1], torch.zeros(len(one.y), 4), draw)
        if len(task) == TASK:
            memory.end(memory.model, task, draw)
            for given in task:
                given.x.fill_(-1)  # a memory that keeps a view instead of a copy is found out
            task.clear()
        require(len(memory.slots) <= CAPACITY, f"{len(memory.slots)} samples in a memory of {CAPACITY}")


def network() -> SharedNetwork:
    """A network of four classes, in evaluation mode."""
    with drawn_from("checks"):
        model = SharedNetwork(MLP((1,), hidden=(10,)))
    model.open(0, range(4))
    return model.eval()


def keeps_real_samples(plugin: Plugin) -> None:
    """What is drawn was in the stream, with its own label and task, and no draw has a sample twice."""
    memory = filled(plugin)
    if not memory.has_slots:
        return
    drawn = memory.sample(CAPACITY, generator("checks", 1))
    i = drawn.x[:, 0].long()
    told = f"not as many samples as asked for: {len(i)} of the {len(memory.slots)} that are kept"
    require(len(i) == len(memory.slots) > 0, told)
    require(bool((i >= 0).all()), "the memory keeps a view of the batch, not a copy")
    require(torch.equal(drawn.y, i % 4), "labels and inputs were mixed up")
    require(torch.equal(drawn.task, i // 20), "tasks and inputs were mixed up")
    require(len(i.unique()) == len(i), "a sample stands in the memory twice")


def keeps_what_is_stored_beside(plugin: Plugin) -> None:
    """Logits that come with the samples stay with theirs; what the network did not have then is MASK when it grows.

    A memory that chooses when a task ends keeps the logits of that moment, where its rehearsal asks for them.
    """
    memory = made(plugin)
    if not memory.has_slots:
        return None
    memory.model = network()
    if type(memory).end is not Memory.end:
        return _keeps_logits_of_the_end(memory)
    draw = generator("checks", 0)
    for step, one in enumerate(stream()):
        width = 2 if step < 4 else 5
        stored = one.x + torch.arange(width)
        memory.store(one._replace(extra={"logits": stored}), stored, draw)
    drawn = memory.sample(CAPACITY, generator("checks", 1))
    require("logits" in drawn.extra, "the memory drops what comes beside the samples")
    kept = F.pad(drawn.extra["logits"], (0, 5 - drawn.extra["logits"].shape[1]), value=MASK)  # if no later one stayed
    there = torch.where(drawn.x < 40, 2, 5) > torch.arange(5)
    expected = torch.where(there, drawn.x + torch.arange(5), MASK)
    require(torch.equal(kept, expected), "what comes beside the samples is mixed up")


def _keeps_logits_of_the_end(memory: Memory) -> None:
    memory.rehearsal = AsksForLogits()
    send(memory, TASK, generator("checks", 0))
    drawn = memory.sample(CAPACITY, generator("checks", 1))
    require("logits" in drawn.extra, "the memory keeps no logits, which its rehearsal asks for")
    expected = logits(network(), drawn).detach()
    require(torch.allclose(drawn.extra["logits"], expected, atol=1e-5), "the logits are not those of the task's end")


class AsksForLogits(Rehearsal):
    keeps_logits = True

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        return output.sum()


def draws_are_fair(plugin: Plugin) -> None:
    """Every kept sample is drawn about equally often: a chi-square test at a fixed seed."""
    memory, draw, n = filled(plugin), generator("checks", 9), 1000
    if not memory.has_slots:
        return
    drawn = torch.cat([memory.sample(5, draw).x[:, 0].long() for _ in range(n)])
    kept = memory.sample(CAPACITY, draw).x[:, 0].long()
    counts = torch.stack([(drawn == i).sum() for i in kept]).double()
    expected = 5 * n / len(kept)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    require(
        statistic < 2.5 * len(kept), f"some samples are drawn more often: chi-square {statistic:.0f} of {len(kept)}"
    )


def draws_what_it_learned(plugin: Plugin) -> None:
    """Where no samples are kept, as many as asked for are drawn of what was seen, once a task has ended."""
    memory, model = made(plugin), network()
    if memory.has_slots:
        return
    memory.store(next(stream()), torch.zeros(10, 4), generator("checks", 0))
    require(not len(memory), "something can be drawn before a task has ended")
    memory = filled(plugin)
    drawn = memory.sample(50, generator("checks", 1))
    width = model.n_features if memory.inside else 1
    require(len(memory), "no samples are drawn: its length is 0 after the end of a task")
    told = f"no samples are drawn as asked for: 50 of {width} numbers each, not {tuple(drawn.x.shape)}"
    require(drawn.x.shape == (50, width), told)
    require(bool(drawn.x.isfinite().all()), "a drawn sample is not finite")
    told = {*drawn.y.tolist()} <= {0, 1, 2, 3} and {*drawn.task.tolist()} <= {UNKNOWN, 0, 1, 2, 3}
    require(told, "labels or tasks are drawn that nobody has seen")


def draws_are_repeatable(plugin: Plugin) -> None:
    """Equal generators give equal contents and draws, other generators other draws."""
    first, second, third = (filled(plugin, seed) for seed in (0, 0, 1))
    a, b = (memory.sample(5, generator("checks", 2)) for memory in (first, second))
    require(torch.equal(a.x, b.x), "the memory draws from a generator that is not the run's")
    require(not torch.equal(a.x, third.sample(5, generator("checks", 3)).x), "the generator is not used")


def state_holds_all(plugin: Plugin) -> None:
    """A new memory with the restored state goes on as the old one."""
    old, new = filled(plugin), made(plugin)
    tensors, values = old.state()
    new.restore({name: t.clone() for name, t in tensors.items()}, copy.deepcopy(values))
    for memory in (old, new):
        send(memory, 12, generator("checks", 4))
    a, b = (memory.sample(CAPACITY, generator("checks", 5)) for memory in (old, new))
    require(torch.equal(a.x, b.x), "a restored memory goes on otherwise")


def joins_the_steps(plugin: Plugin) -> None:
    """In training it keeps what comes by and draws from it, in every step of the second task."""
    memory, per_task = made(plugin), 40
    data = held_out(inputs(n=2 * per_task), torch.arange(2 * per_task) % 4, "abcd", test_share=0.5, seed=0)
    with drawn_from("checks"):
        model = SharedNetwork(MLP((1, 8, 8), hidden=(10,)))
    train = Train(optimizer="sgd", lr=0.1, batch_size=5)
    loop = Loop(model=model, train=train, budget=Budget(epochs=1), plugins=[memory])
    for experience in to_benchmark(split(data, setting="class-incremental", n_tasks=2, seed=0)).streams["train"]:
        loop.train(experience, [])
    require(memory.replayed, "no step of the second task is trained on what was kept")


CHECKS = (
    names_no_strange_callback,
    keeps_real_samples,
    keeps_what_is_stored_beside,
    draws_are_fair,
    draws_what_it_learned,
    draws_are_repeatable,
    state_holds_all,
    joins_the_steps,
    looks_in_evaluation_mode,
)
