"""Modules that train whole layers own their buffers too: on BatchNorm `full` is `separate`, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forgetlab.backbones.cnn import CNN
from forgetlab.engine import reopened
from forgetlab.engine.all_runs import carry_out
from forgetlab.isolation.layer_copies import own_tensors
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.results.store import Store
from forgetlab.strategies.isolation.modules.masks.diff_pruning import DiffPruning
from forgetlab.strategies.isolation.modules.whole.full import Full
from forgetlab.strategies.isolation.modules.whole.gradual import Gradual
from forgetlab.strategies.isolation.modules.whole.selective import Selective
from helpers.modules import attached
from helpers.runs import loaded, results, told

FILE = """
name: own
scenario: {name: stream, data: digits, setting: task-incremental, n_tasks: 5}
model: {name: cnn, widths: [4, 8]}
protocol: {budget: {epochs: 2}}
train: {batch_size: 32}
references: [separate]
strategies:
  - isolation: full
"""
MERGED = FILE.replace("[separate]", "[]").replace("isolation: full", "{isolation: full, merge: average}")


def small() -> tuple[CNN, torch.Tensor]:
    """A network with BatchNorm, and what it reads."""
    torch.manual_seed(0)
    return CNN((1, 8, 8), (4, 8)).eval(), torch.rand(16, 1, 8, 8)


def buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def test_full_is_separate_to_the_bit(tmp_path: Path) -> None:
    """With the start's statistics in evaluation mode, which is how it was, three of five tasks are guessed."""
    separate, full = results(tmp_path, FILE)
    assert [full.accuracy[i][i] for i in range(5)] == [separate.accuracy[i][i] for i in range(5)]
    assert full.accuracy[-1] == separate.accuracy[-1]
    assert full.counts["total"]["updates"] == separate.counts["total"]["updates"]


def test_an_old_tasks_statistics_stay(tmp_path: Path) -> None:
    (run,) = [run for run in loaded(tmp_path, FILE).runs() if run.strategy.name == "full"]
    from forgetlab.engine import one_run

    accuracy = one_run.run(run).accuracy
    assert [row[0] for row in accuracy] == [accuracy[0][0]] * 5


@pytest.mark.parametrize("make", [Full, Selective, Gradual, DiffPruning])
def test_statistics_move_in_training_alone_and_the_backbones_never(make: Callable[[], Isolation]) -> None:
    backbone, x = small()
    module = attached(make(), backbone)
    bare, mine = buffers(backbone), buffers(module)
    assert mine and module.draws
    modes = [layer.training for layer in backbone.modules()]
    module.eval().features(backbone, x)
    assert all(torch.equal(tensor, mine[name]) for name, tensor in module.named_buffers())
    module.train().features(backbone, x)
    moved = [name for name, tensor in module.named_buffers() if not torch.equal(tensor, mine[name])]
    assert moved == list(mine)
    assert all(torch.equal(tensor, bare[name]) for name, tensor in backbone.named_buffers())
    assert [layer.training for layer in backbone.modules()] == modes


def test_training_goes_by_the_batchs_statistics() -> None:
    backbone, x = small()
    alone = copy.deepcopy(backbone).train()
    module = attached(Full(), backbone.eval()).train()
    assert torch.equal(module.features(backbone, x), alone(x))
    named = {name: tensor for tensors in map(own_tensors, module.parts.values()) for name, tensor in tensors.items()}
    assert all(torch.equal(named[name], tensor) for name, tensor in alone.state_dict().items())


def test_a_task_that_starts_from_the_last_ones_weights_starts_from_its_statistics() -> None:
    backbone, x = small()
    first, second = (attached(Full(start="previous"), backbone) for _ in range(2))
    first.train().features(backbone, x)
    second.begin([], [first], {}, backbone)
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in second.state_dict().items())


def test_a_stored_task_answers_as_before_and_merged_has_its_statistics(tmp_path: Path) -> None:
    carry_out(loaded(tmp_path, FILE), Store(tmp_path / "runs"))
    folder = tmp_path / "runs" / "own" / "full" / "seed-0"
    learner = reopened.reopened(folder)
    network, asked = learner.network, learner.context.scenario.tasks[1].test.x[:16]
    assert isinstance(network, IsolatedNetwork)
    gap = reopened.write_merged(Store(tmp_path / "runs").folder("own", "full", 0), 1, tmp_path / "merged.safetensors")
    assert gap < 1e-5
    with torch.no_grad():
        whole = reopened.open_merged(tmp_path / "merged.safetensors")(asked)
        torch.testing.assert_close(whole, network.answer(1, asked))


def test_statistics_of_several_tasks_are_not_merged(tmp_path: Path) -> None:
    ((_, message),) = told(tmp_path, MERGED)
    assert "statistics of batch normalisation for each task, which no merger merges" in message
