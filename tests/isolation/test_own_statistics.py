"""What owns all weights of a place owns its buffers: BatchNorm counts for the task, as in a model of its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.checks.backbones import samples, tiny
from forgetlab.checks.isolation import train
from forgetlab.engine import events as engine_events
from forgetlab.engine import one_run, reopened
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork, Merged
from forgetlab.learners.counts import Counts
from forgetlab.strategies.isolation.mergers.average import Average
from forgetlab.strategies.isolation.modules.masks.diff_pruning import DiffPruning
from forgetlab.strategies.isolation.modules.whole.full import Full
from forgetlab.strategies.isolation.modules.whole.gradual import Gradual
from forgetlab.strategies.isolation.modules.whole.selective import Selective
from helpers.modules import attached
from helpers.networks import isolated
from helpers.runs import loaded, results

ON_A_CNN = """
name: full
scenario: {name: stream, data: digits, setting: task-incremental, n_tasks: 2}
model: {name: cnn, widths: [8, 16]}
protocol: {budget: {epochs: 1}}
train: {batch_size: 32}
references: [separate]
strategies:
  - isolation: full
"""


def steps(model: Any, backbone: nn.Module, parameters: list[nn.Parameter], n: int = 3) -> None:
    """Some steps on the features' squares; ``model`` gives the features."""
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for step in range(n):
        optimizer.zero_grad()
        model(samples(backbone, step)).square().mean().backward()
        optimizer.step()


def owned(module: Isolation) -> dict[str, Tensor]:
    """What a module of whole blocks holds, by the backbone's names."""
    tensors: dict[str, Tensor] = {}
    for site in module.sites:
        part: Any = module.parts[site.key]
        for name, tensor in {**module.weights(part, site), **module.statistics(part, site)}.items():
            tensors[f"{site.path}.{name}".removeprefix(".")] = tensor.detach()
    return tensors


@pytest.mark.parametrize("make", [Full, Selective])
def test_it_learns_as_the_backbone_itself_does_to_the_bit(make: Any) -> None:
    backbone, alone = tiny("cnn"), tiny("cnn")
    before = copy.deepcopy(backbone.state_dict())
    module = attached(make(), backbone).train()
    steps(lambda x: module.features(backbone, x), backbone, list(module.parameters()))
    trained: Any = alone if make is Full else alone.get_submodule("layers.1")
    steps(alone, backbone, list(trained.train().parameters()))
    found, wanted = owned(module), alone.state_dict()
    assert found.keys() == (wanted.keys() if make is Full else {name for name in wanted if name.startswith("layers.1")})
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert not torch.equal(found["layers.1.1.running_mean"], before["layers.1.1.running_mean"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(layer.training for layer in backbone.modules())
    x = samples(backbone, 9)
    assert torch.equal(module.eval().features(backbone, x), alone.eval()(x))


def test_a_block_counts_from_when_it_is_thawed_on() -> None:
    backbone = tiny("cnn")
    module: Any = attached(Gradual(), backbone).train()
    means = [module.parts[site.key].get_buffer("1/running_mean") for site in module.sites]
    moved: list[list[bool]] = []
    for done in (0.0, 0.5, 0.9):
        module.step(done)
        before = [mean.clone() for mean in means]
        module.features(backbone, samples(backbone, 0))
        moved.append([not torch.equal(mean, old) for mean, old in zip(means, before, strict=True)])
    assert moved == [[False, False], [False, True], [True, True]]  # from the top


def test_sparse_changes_of_all_weights_count_for_themselves() -> None:
    model = isolated(lambda: DiffPruning(budget=0.1), tasks=2, family="cnn")
    (first, second) = (model.module_of(task).all_statistics() for task in range(2))
    kept = dict(model.backbone.named_buffers())
    for name, mean in first.items():
        if name.endswith("running_mean"):
            assert not torch.equal(mean, second[name]) and not torch.equal(mean, kept[name.removeprefix("whole-0.")])


def test_a_task_goes_on_from_the_last_ones_statistics() -> None:
    model = isolated(lambda: Full("previous"), tasks=1, family="cnn")
    first = {name: tensor.clone() for name, tensor in model.module_of(0).all_statistics().items()}
    counted = "whole-0.layers.0.1.num_batches_tracked"
    assert int(first[counted]) > 0
    train(model, 1, steps=0)
    second = model.module_of(1).all_statistics()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    train(model, 2)
    assert int(model.module_of(2).all_statistics()[counted]) == 2 * int(first[counted])
    assert all(torch.equal(model.module_of(0).all_statistics()[name], tensor) for name, tensor in first.items())


def test_a_merged_change_has_the_mean_of_the_tasks_statistics() -> None:
    model = isolated(Full, tasks=2, family="cnn")
    modules = [model.module_of(task) for task in range(2)]
    both = Merged(modules, Average().merge([module.changes() for module in modules]))
    (site,) = both.sites
    found = both.statistics(both.parts[site.key], site)
    for name, mean in found.items():
        one, other = (module.all_statistics()[f"whole-0.{name}"] for module in modules)
        torch.testing.assert_close(mean, ((one.double() + other.double()) / 2).to(mean.dtype))
    one = Merged(modules[:1], modules[0].changes())
    x = samples(model.backbone, 3)
    torch.testing.assert_close(model.under(one, x), model.under(modules[0], x))
    whole = reopened.merged(model, 0)
    alone = copy.deepcopy(model.backbone)
    alone.load_state_dict({n.removeprefix("backbone."): t for n, t in whole.items() if n.startswith("backbone.")})
    torch.testing.assert_close(alone.eval()(x), model.under(modules[0], x))


@pytest.mark.slow
def test_full_is_separate_on_a_cnn_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Tensor]] = []
    keep = Counts.keep

    def remember(self: Counts, tensors: Any, **how: Any) -> None:
        kept.append({name: tensor.clone() for name, tensor in tensors.items()})
        keep(self, tensors, **how)

    monkeypatch.setattr(Counts, "keep", remember)
    separate, _ = loaded(tmp_path, ON_A_CNN).runs()
    apart = one_run.run(separate)
    models = list(kept)
    _, full = loaded(tmp_path, ON_A_CNN).runs()
    events: list[Any] = []
    ours = one_run.run(full, events.append)
    assert (apart.strategy, ours.strategy, len(models)) == ("separate", "full", 2)
    ended = [event for event in events if isinstance(event, engine_events.TaskEnded)]
    for task, model in enumerate(models):
        tensors = ended[task].tensors
        backbone = {name: t for name, t in model.items() if name.startswith("backbone.")}
        assert len(backbone) == 12
        for name, tensor in backbone.items():
            own = name.removeprefix("backbone.").replace(".", "/")
            assert torch.equal(tensors[f"module.parts.whole-0.{own}"], tensor), name
    assert [ours.accuracy[i][i] for i in range(2)] == [apart.accuracy[i][i] for i in range(2)]
    assert ours.accuracy[1][0] == ours.accuracy[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["{name: full, start: previous}", "selective", "gradual", "diff_pruning"])
def test_a_run_on_a_cnn_forgets_nothing(tmp_path: Path, entry: str) -> None:
    text = ON_A_CNN.replace("isolation: full", f"isolation: {entry}").replace(
        "references: [separate]\n", "references: []\n"
    )
    (result,) = results(tmp_path, text)
    assert result.accuracy[1][0] == result.accuracy[0][0]


def test_a_network_is_where_it_was(tmp_path: Path) -> None:
    """Evaluation in the middle of training neither counts nor leaves a mode behind."""
    model: IsolatedNetwork = isolated(Full, tasks=1, family="cnn")
    model.open(1, [2, 3])
    x, task = samples(model.backbone, 1), torch.ones(12, dtype=torch.int64)
    model.train()
    module = model.module_of(1)
    before = {name: tensor.clone() for name, tensor in module.all_statistics().items()}
    with torch.no_grad():
        model.eval()(x, task)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.all_statistics().items())
    model.train()(x, task)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in module.all_statistics().items())
    assert not any(layer.training for layer in model.backbone.modules())
