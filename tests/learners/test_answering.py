"""All tasks' test samples in one pass: the same answers as task by task, and only where nothing else has a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from forgetlab.avalanche.api import SupervisedPlugin, stock_plugin
from forgetlab.backbones.mlp import MLP
from forgetlab.config.load import load
from forgetlab.engine import one_run
from forgetlab.learners.learner import Learner
from forgetlab.learners.one_pass_evaluation import answers_of_tasks, undisturbed
from forgetlab.learners.sequential import Sequential
from forgetlab.seeding import generator
from forgetlab.training.network import SharedNetwork

FILE = """
name: answers
scenario: {{name: split_digits, setting: {setting}, n_tasks: 5}}
model: {{name: mlp, hidden: [16]}}
protocol: {{head: {head}}}
train: {{lr: 1e-2, batch_size: 32}}
references: []
strategies: [{entry}]
"""


def rows(folder: Path, entry: str, setting: str, head: str = "growing") -> list[list[float | None]]:
    path = folder / "file.yaml"
    path.write_text(FILE.format(entry=entry, setting=setting, head=head), encoding="utf-8")
    (run,) = load(path).runs()
    return one_run.run(run).accuracy


@pytest.mark.slow
@pytest.mark.parametrize("head", ["growing", "fixed", "per-task"])
@pytest.mark.parametrize("setting", ["class-incremental", "task-incremental"])
def test_the_same_matrix_as_task_by_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, head: str
) -> None:
    if (setting, head) == ("class-incremental", "per-task"):
        return  # no head could answer there
    entry = "{replay: {memory: reservoir, capacity: 50}}"
    together = rows(tmp_path, entry, setting, head)
    monkeypatch.setattr(Sequential, "evaluate_all", Learner.evaluate_all)
    assert rows(tmp_path, entry, setting, head) == together
    assert together[0][-1] is None and together[-1][0] is not None


def test_batches_run_over_the_ends_of_tasks() -> None:
    class Says(torch.nn.Module):
        sizes: list[int] = []  # noqa: RUF012

        def forward(self, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
            self.sizes.append(len(x))
            return torch.cat([x, task.unsqueeze(1).float()], 1)

    tasks = [
        (torch.arange(n).float().unsqueeze(1), torch.arange(n), torch.full((n,), t)) for t, n in enumerate((3, 9, 1))
    ]
    network: Any = Says()
    found = list(answers_of_tasks(network, tasks, 5))
    assert network.sizes == [5, 5, 3]
    for (logits, y), (x, labels, task) in zip(found, tasks, strict=True):
        assert torch.equal(logits[:, :1], x) and torch.equal(logits[:, 1], task.float()) and torch.equal(y, labels)


def test_answers_are_those_of_evaluation_mode_and_the_mode_is_set_back() -> None:
    backbone = MLP((4,), (16,))
    backbone.layers.append(nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.5)))
    network = SharedNetwork(backbone)
    network.open(0, [0, 1])
    x, y, task = torch.rand(30, 4, generator=generator("answers")), torch.arange(30) % 2, torch.zeros(30).long()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for training in (True, False):
        network.train(training)
        ((logits, labels),) = answers_of_tasks(network, [(x, y, task)], 7)
        assert network.training == training
        with torch.no_grad():
            expected = network.eval()(x, task)
        torch.testing.assert_close(logits, expected)
        assert torch.equal(labels, y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_what_acts_in_evaluation_is_asked() -> None:
    class Turns(SupervisedPlugin):
        def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
            strategy.mb_output = -strategy.mb_output

    assert undisturbed(SupervisedPlugin()) and not undisturbed(Turns())
    assert undisturbed(stock_plugin({"plugin": "MASPlugin"}))
