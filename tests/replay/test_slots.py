"""The places of a memory: bytes stay bytes to the bit, and take a quarter of what numbers take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.costs.ledger import byte_count
from forgetlab.data.datasets import Samples, as_input
from forgetlab.engine import one_run
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.replay.slots import Slots
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.training.network import SharedNetwork
from helpers.runs import loaded
from helpers.streams import in_pairs
from helpers.training import learned

SHAPE = (3, 4, 4)


def every_byte() -> Tensor:
    """(16, 3, 4, 4): each of the 256 values three times."""
    return torch.arange(256, dtype=torch.uint8).repeat(3).view(16, *SHAPE)


def batch(x: Tensor, **beside: Tensor) -> Batch:
    y = torch.arange(len(x)) % 4
    return Batch(as_input(x), y, torch.zeros_like(y), beside)


def written(as_bytes: bool, **beside: Tensor) -> Slots:
    slots = Slots(16)
    slots.as_bytes = as_bytes
    slots.write(torch.arange(16), batch(every_byte(), **beside))
    return slots


def test_every_byte_comes_back_to_the_bit() -> None:
    slots = written(as_bytes=True)
    assert slots.tensors["x"].dtype == torch.uint8 and torch.equal(slots.tensors["x"], every_byte())
    read = slots.read(torch.arange(15, -1, -1))
    assert read.x.dtype == torch.float32 and torch.equal(read.x, as_input(every_byte()).flip(0))


@pytest.mark.parametrize("broken", [lambda x: x.float() / 256, lambda x: x.half().float() / 255 + 1e-4])
def test_another_reading_is_found(monkeypatch: pytest.MonkeyPatch, broken: Callable[[Tensor], Tensor]) -> None:
    """The deliberate break: bytes come back a little beside what they were."""
    slots = written(as_bytes=True)
    monkeypatch.setattr("forgetlab.replay.slots.as_input", broken)
    assert not torch.equal(slots.read(torch.arange(16)).x, as_input(every_byte()))


@pytest.mark.parametrize("width", [0, 7])
def test_inputs_take_a_quarter_and_what_stands_beside_stays_as_it_is(width: int) -> None:
    logits = torch.randn(16, width, generator=generator("logits"))
    small, large = (written(as_bytes, logits=logits) for as_bytes in (True, False))
    pixels, beside = 16 * 48, 16 * (8 + 8 + 4 * width)
    assert (byte_count(small.tensors), byte_count(large.tensors)) == (pixels + beside, 4 * pixels + beside)
    assert torch.equal(small.read(torch.arange(16)).extra["logits"], logits)
    assert torch.equal(large.read(torch.arange(16)).x, small.read(torch.arange(16)).x)


def stream(dtype: torch.dtype) -> Scenario:
    parts = []
    for task in range(2):
        x = torch.randint(256, (40, *SHAPE), dtype=torch.uint8, generator=generator("slots", task))
        parts.append(Samples(x if dtype == torch.uint8 else as_input(x), 2 * task + torch.arange(40) % 2))
    return in_pairs(parts)


def trained(as_bytes: bool, rehearsal: str | None) -> tuple[Memory, dict[str, Tensor]]:
    torch.manual_seed(0)
    memory: Memory = registry.build("memory", "reservoir", {"capacity": 12})
    memory.slots.as_bytes = as_bytes
    memory.rehearsal = registry.build("rehearsal", rehearsal) if rehearsal else None
    model = SharedNetwork(MLP(SHAPE, (6,)))
    learned(model, to_benchmark(stream(torch.uint8)), memory, optimizer="adam", lr=1e-3)
    return memory, dict(model.state_dict())


@pytest.mark.parametrize("rehearsal", [None, "der++"])
def test_training_is_the_same_to_the_bit(rehearsal: str | None) -> None:
    (small, ours), (large, theirs) = (trained(as_bytes, rehearsal) for as_bytes in (True, False))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tensors, values = small.state()
    assert tensors["x"].dtype == torch.uint8 and ("logits" in tensors) == (rehearsal is not None)
    assert byte_count(large.state()[0]) - byte_count(tensors) == 12 * 48 * 3
    again: Memory = registry.build("memory", "reservoir", {"capacity": 12})
    again.restore(tensors, values)
    a, b = (memory.sample(12, generator("again")) for memory in (small, again))
    assert torch.equal(a.x, b.x) and set(a.extra) == set(b.extra)


FILE = """
name: slots
scenario: {{name: stream, data: {data}, n_tasks: 5, samples_per_task: 40}}
model: {{name: mlp, hidden: [8, 8]}}
references: []
strategies: [{{replay: {{memory: reservoir, capacity: 20{more}}}}}]
"""


@pytest.mark.parametrize(
    ("data", "more", "of_a_sample"),
    [
        ("mnist_5k", "", 784),
        ("mnist_5k", ", rehearsal: der++", 784 + 4 * 10),
        ("mnist_5k", ", depth: 1", 4 * 8),
        ("digits", "", 4 * 64),
    ],
)
def test_a_file_keeps_bytes_where_the_stream_holds_bytes(
    tmp_path: Path, data: str, more: str, of_a_sample: int
) -> None:
    """And numbers where it holds numbers, or where samples are kept inside of the network."""
    (run, *_) = loaded(tmp_path, FILE.format(data=data, more=more)).runs()
    total: dict[str, Any] = one_run.run(run).counts["total"]
    assert total["memory_bytes"] == 20 * (of_a_sample + 8 + 8)
