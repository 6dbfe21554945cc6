"""The traps of Avalanche 0.6.0, each as a test: what goes wrong there, and that it does not here."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from forgetlab.avalanche.api import (
    BaseLogger,
    DataAttribute,
    EvaluationPlugin,
    SupervisedPlugin,
    TaskAwareSupervisedClassificationDataset,
    stock_plugin,
)
from forgetlab.avalanche.tensor_data import (
    Fetched,
    Labels,
    Numbers,
    TensorLoader,
    TensorTask,
    batches,
    to_benchmark,
    together,
)
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import UNKNOWN, Batch
from forgetlab.checks import common
from forgetlab.data.datasets import Dataset, Samples
from forgetlab.experiment import Budget, Train
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork, IsolationPlugin
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.streams.build import split
from forgetlab.streams.scenario import Scenario, Setting
from forgetlab.training.competing_classes import MASK
from forgetlab.training.heads import Head
from forgetlab.training.loop import Loop, carry_over, make_optimizer
from forgetlab.training.network import Network, SharedNetwork
from helpers.networks import network
from helpers.training import Recorder

SETTINGS: list[Setting] = ["class-incremental", "task-incremental", "domain-incremental"]
ONE_EPOCH = Budget(epochs=1)
QUIET = EvaluationPlugin(loggers=[BaseLogger()])


def stream(setting: Setting = "class-incremental") -> Scenario:
    """Three tasks of two classes, 12 samples each; the first feature numbers the samples."""
    y = torch.arange(6).repeat(6)
    x = torch.randn(36, 4, generator=torch.Generator().manual_seed(0)) + F.one_hot(y % 4)
    x[:, 0] = torch.arange(36) / 36
    samples = Samples(x, y)
    return split(Dataset(samples, samples, tuple("abcdef")), setting=setting, n_tasks=3, seed=0)


def lora() -> Isolation:
    return registry.build("isolation", "lora", {"sites": ["mlp.in"], "rank": 2})


def isolated(backbone: nn.Module | None = None, **options: Any) -> IsolatedNetwork:
    torch.manual_seed(0)
    return IsolatedNetwork(backbone or MLP((4,), (5,)), lora, **options)


def loop(model: Network, *methods: Any, budget: Budget = ONE_EPOCH, **options: Any) -> Loop:
    extra = [IsolationPlugin()] if isinstance(model, IsolatedNetwork) else []
    train = Train(batch_size=5, lr=0.05)
    return Loop(model=model, train=train, budget=budget, plugins=[*methods, *extra], **options)


def streams(setting: Setting = "class-incremental", told: bool | None = None) -> tuple[Any, Any]:
    benchmark = to_benchmark(stream(setting), told=told)
    return benchmark.streams["train"], benchmark.streams["test"]


# 1. The optimizer is made afresh for each task, of what is trainable


@pytest.mark.parametrize("make", [network, isolated], ids=["shared", "isolated"])
def test_the_optimizer_holds_what_is_trainable_and_nothing_else(make: Any) -> None:
    training = loop(make())
    for experience in streams("task-incremental")[0]:
        before = training.optimizer
        training.train(experience, [])
        held = [p for group in training.optimizer.param_groups for p in group["params"]]
        trainable = [p for p in training.model.parameters() if p.requires_grad]
        assert {id(p) for p in held} == {id(p) for p in trainable} and len(held) == len(trainable)
        assert training.optimizer is not before
        assert set(training.optimizer.state) == set(held)
        steps = {float(state["step"]) for state in training.optimizer.state.values()}
        assert steps == {training.clock.train_exp_iterations}


def test_avalanches_own_optimizer_takes_in_frozen_parameters() -> None:
    from avalanche.training.supervised import Naive

    model = isolated()
    optimizer = torch.optim.Adam(model.parameters())
    script = Naive(model=model, optimizer=optimizer, train_mb_size=5, evaluator=QUIET, plugins=[IsolationPlugin()])
    for experience in streams("task-incremental")[0]:
        script.train(experience)
    assert not all(p.requires_grad for group in script.optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_carried_state_goes_on_as_torch_does_where_the_head_grew(optimizer: Any) -> None:
    """The oracle is trained on all rows from the start; the rows to come get a gradient of zero."""
    train = Train(optimizer=optimizer, lr=0.05, weight_decay=0.0, momentum=0.9 if optimizer == "sgd" else 0.0)
    draw = torch.Generator().manual_seed(0)
    whole = nn.Parameter(torch.randn(5, 3, generator=draw))
    small = nn.Parameter(whole.detach()[:2].clone())
    oracle, ours = make_optimizer(train, [whole]), make_optimizer(train, [small])
    for _ in range(4):
        gradient = torch.randn(2, 3, generator=draw)
        small.grad, whole.grad = gradient, torch.cat([gradient, torch.zeros(3, 3)])
        ours.step()
        oracle.step()
    grown = nn.Parameter(torch.cat([small.detach(), whole.detach()[2:]]))
    goes_on = make_optimizer(train, [grown])
    carry_over(ours, goes_on, {id(small): "weight"}, {id(grown): "weight"})
    for _ in range(4):
        whole.grad = grown.grad = torch.randn(5, 3, generator=draw)
        oracle.step()
        goes_on.step()
        assert torch.equal(grown, whole)


@pytest.mark.parametrize("reset", [True, False])
def test_the_optimizers_state_is_carried_by_name_or_not_at_all(reset: bool) -> None:
    training = loop(network(), reset_optimizer=reset)
    steps = 0
    for experience in streams()[0]:
        training.train(experience, [])
        steps = training.clock.train_exp_iterations + (0 if reset else steps)
        for parameter, state in training.optimizer.state.items():
            assert float(state["step"]) == steps
            assert state["exp_avg"].shape == parameter.shape
    assert steps == (3 if reset else 9)


def test_old_state_stays_as_it_was_when_it_is_carried() -> None:
    old, new = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    first, second = (make_optimizer(Train(), [p]) for p in (old, new))
    old.grad = new.grad = torch.ones(2)
    first.step()
    kept = copy.deepcopy(first.state[old])
    carry_over(first, second, {id(old): "p"}, {id(new): "p"})
    second.step()
    for key, value in kept.items():
        assert torch.equal(first.state[old][key], value)


# 2. Evaluation opens nothing


@pytest.mark.parametrize("make", [network, isolated], ids=["shared", "isolated"])
def test_evaluating_a_task_makes_no_room_for_it(make: Any) -> None:
    train, test = streams("domain-incremental", told=True)
    model = make()
    training = loop(model)
    training.train(train[0], [])
    before = copy.deepcopy(model.state_dict())
    optimizer = training.optimizer
    for experience in [test[0], test[0]]:
        training.eval(experience)
    model.adaptation(test[2])
    assert list(model.classes_of) == [0] and model.current == 0
    assert training.optimizer is optimizer
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()


def test_avalanches_heads_grow_when_they_are_evaluated() -> None:
    from avalanche.models import MultiHeadClassifier

    head = MultiHeadClassifier(4)
    head.eval().adaptation(streams("task-incremental")[1][2])
    assert "2" in head.classifiers


# 3. A batch of several tasks


def test_classes_of_other_tasks_are_masked_and_not_zero() -> None:
    from avalanche.models import MultiHeadClassifier

    train, _ = streams("task-incremental")
    theirs, ours = MultiHeadClassifier(5, masking=False), network(task_known=True, head="per-task")
    for experience in train[:2]:
        theirs.adaptation(experience)
        ours.adaptation(experience)
    for head in (*theirs.modules(), *ours.modules()):
        if isinstance(head, nn.Linear | Head) and head.weight.shape == (2, 5):
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, -3.0)
    task = torch.tensor([0, 1, 0])
    their_answer = theirs(torch.rand(3, 5), task)
    assert their_answer[0, 2:].tolist() == [0.0, 0.0] and their_answer[0].argmax() >= 2
    answer = ours(torch.rand(3, 4), task)
    assert answer.tolist() == [[-3, -3, MASK, MASK], [MASK, MASK, -3, -3], [-3, -3, MASK, MASK]]


@pytest.mark.parametrize("head", ["growing", "fixed", "per-task"])
def test_the_gradient_of_the_squared_output_is_finite(head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAS differentiates the squared norm of the output; with a mask of -inf it gets nan."""

    def gradients() -> list[Tensor]:
        model = network(head=head, task_known=True, n_classes=6)
        model.open(0, [0, 1])
        model.open(1, [2, 3])
        output = model(torch.rand(3, 4), torch.tensor([0, 1, 0]))
        torch.norm(output, p="fro", dim=1).pow(2).mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    assert all(g.isfinite().all() for g in gradients()) and any(g.abs().sum() > 0 for g in gradients())
    monkeypatch.setattr("forgetlab.training.competing_classes.MASK", float("-inf"))
    assert any(g.isnan().any() for g in gradients())


# 4. At test, a model cannot look where it is not told


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("told", [None, True, False])
def test_test_samples_carry_their_task_only_where_it_is_told(setting: Setting, told: bool | None) -> None:
    train, test = streams(setting, told)
    expected = setting == "task-incremental" if told is None else told
    for i, (old, new) in enumerate(zip(train, test, strict=True)):
        assert set(old.dataset.targets_task_labels) == {i}
        label = i if expected else UNKNOWN
        assert set(new.dataset.targets_task_labels) == {label} and new.task_labels == [label]
        assert {int(sample[-1]) for sample in new.dataset} == {label}
        assert {int(t) for batch in batches(new.dataset, 5, "cpu") for t in batch.task} == {label}


@pytest.mark.parametrize("setting", ["class-incremental", "domain-incremental"])
def test_a_model_that_is_asked_is_not_told(setting: Setting) -> None:
    seen: set[int] = set()

    class Looks(SharedNetwork):
        def forward(self, x: Tensor, task_labels: Any = None) -> Any:
            if not self.training:
                seen.update(task_labels.tolist())
            return super().forward(x, task_labels)

    train, test = streams(setting)
    training = loop(Looks(MLP((4,), (5,))))
    for experience in train:
        training.train(experience, [])
    for experience in test:
        training.eval(experience)
    assert seen == {UNKNOWN}


# 5. Copies of a model


def test_a_copy_of_a_model_with_modules_has_no_tie_to_it() -> None:
    """LwF, BiC and MIR copy the model for a teacher; copied hooks would still point at the live module."""
    train, _ = streams("task-incremental")
    model = isolated()
    training = loop(model)
    training.train(train[0], [])
    x, task = torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)
    teacher = copy.deepcopy(model).eval()
    before = teacher(x, task)
    with torch.no_grad():
        for p in (*model.modules_of.parameters(), *model.heads.parameters()):
            p.add_(1.0)
    assert torch.equal(teacher(x, task), before)
    assert not torch.equal(model.eval()(x, task), before)


def test_no_hook_outlives_a_forward_pass_even_one_that_fails() -> None:
    model = isolated().eval()
    model.open(0, [0, 1])
    task = torch.zeros(2, dtype=torch.int64)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model(torch.rand(2, 4), task)
    assert hooks() == 0
    with pytest.raises(RuntimeError):
        model(torch.rand(2, 3), task)
    with pytest.raises(KeyboardInterrupt), model.module_of(0).active(model.backbone):
        assert hooks() == 1
        raise KeyboardInterrupt
    assert hooks() == 0


# 6. Buffers of a frozen backbone


class Normalised(nn.Module):
    """A backbone with BatchNorm."""

    n_features = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).relu()


def test_batch_norm_stays_as_it_was_below_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Normalised, "places", {"mlp.in": "layer", "block": "layer"}, raising=False)
    moved = {}
    for make in (isolated, SharedNetwork):
        backbone = Normalised()
        before = copy.deepcopy(backbone.state_dict())
        training = loop(make(backbone, task_known=True))
        for experience in streams("task-incremental")[0]:
            training.train(experience, [])
            training.model.train()
        after = backbone.state_dict()
        moved[make] = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert moved[isolated] == set()
    assert {"norm.running_mean", "norm.num_batches_tracked"} <= moved[SharedNetwork]


# 8. Whole batches from tensors


def rows(dataset: Any) -> list[float]:
    """The numbers of a dataset's samples, by way of Avalanche's own access, sample by sample."""
    return [float(dataset[i][0][0]) for i in range(len(dataset))]


def check_columns(dataset: Any) -> None:
    assert type(dataset) is TensorTask
    columns = dataset.columns()
    assert columns is not None
    x, y, task = columns
    assert x[:, 0].tolist() == rows(dataset)
    assert y.tolist() == list(dataset.targets) == [int(dataset[i][1]) for i in range(len(dataset))]
    assert task.tolist() == list(dataset.targets_task_labels) == [int(dataset[i][2]) for i in range(len(dataset))]


def test_a_tensor_task_stays_one_through_all_that_avalanche_does() -> None:
    train, _ = streams()
    first, second, third = (experience.dataset for experience in train)
    subsets = first.subset([3, 1, 5]).concat(second.subset([0, 7]))
    whole = first.concat(second).concat(third)
    cut = whole.subset([30, 0, 13, 35])
    for dataset in (first, first.train(), first.eval(), first + second, subsets, whole, cut):
        check_columns(dataset)
        check_columns(dataset.train().subset([2, 0]))
    check_columns(cut.concat(subsets).eval().subset([6, 0]))
    check_columns(first.concat(first.subset([1, 1])))
    assert len(whole) == 36 and len(set(rows(whole))) == 36
    check_columns(together([first, second, third]).dataset)


def test_a_plain_loader_fetches_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = streams()[0][0].dataset
    calls: list[int] = []
    fetch = TensorTask.__getitems__

    def counted(self: TensorTask, indices: list[int]) -> Any:
        calls.append(len(indices))
        return fetch(self, indices)

    def refused(self: TensorTask, index: Any) -> Any:
        raise AssertionError("a single sample was fetched")

    monkeypatch.setattr(TensorTask, "__getitems__", counted)
    monkeypatch.setattr(TensorTask, "__getitem__", refused)
    fetched = {
        collate: list(DataLoader(dataset, batch_size=5, collate_fn=collate))
        for collate in (dataset.collate_fn, default_collate)
    }
    assert calls == [5, 5, 2] * 2
    expected = list(TensorLoader(dataset.columns(), 5))
    for loaded in fetched.values():
        for ours, theirs in zip(loaded, expected, strict=True):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


def test_a_fetched_batch_is_also_a_list_of_samples() -> None:
    fetched = streams()[0][0].dataset.__getitems__([2, 0])
    assert isinstance(fetched, Fetched) and len(fetched) == 2
    assert [float(x[0]) for x, _, _ in fetched] == rows(streams()[0][0].dataset.subset([2, 0]))
    with pytest.raises(IndexError):
        fetched[2]


class Shifted(TensorDataset):
    """Tensors that are not what one gets."""

    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        return x + 1, y


class Listed(torch.utils.data.Dataset):
    """Samples with whole numbers for labels, as torchvision's data sets have them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((4,), 100.0 + index), 1


def foreign(below: Any) -> Any:
    n = len(below)
    attributes = [
        DataAttribute([1] * n, "targets"),
        DataAttribute([0] * n, "targets_task_labels", use_in_getitem=True),
    ]
    return TaskAwareSupervisedClassificationDataset([below], data_attributes=attributes)


def transformed(dataset: Any, **groups: Any) -> Any:
    from avalanche.benchmarks.utils import TransformGroups

    return TensorTask([dataset], transform_groups=TransformGroups(groups))


@pytest.mark.parametrize(
    ("mix", "newcomer"),
    [
        (lambda ours: ours.concat(foreign(Listed(3))), 100.0),
        (lambda ours: ours.concat(foreign(Shifted(torch.full((3, 4), 99.0), torch.ones(3).long()))), 100.0),
        (lambda ours: transformed(ours, train=lambda x: x + 100), 100.0),
    ],
    ids=["a foreign data set", "a data set that changes its tensors", "a transform"],
)
@pytest.mark.parametrize("asked_before", [False, True])
def test_what_is_not_ours_is_fetched_as_it_says(mix: Any, newcomer: float, asked_before: bool) -> None:
    experience = streams()[0][0]
    if asked_before:
        experience.dataset.columns()
    mixed = mix(experience.dataset)
    assert mixed.columns() is None
    found = torch.cat([batch.x[:, 0] for batch in batches(mixed, 5, "cpu")])
    assert found.tolist() == rows(mixed) and found.max() >= newcomer

    class Mixes(Recorder):
        def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
            strategy.adapted_dataset = mix(strategy.adapted_dataset)

    recorder = Mixes()
    training = loop(network(), recorder)
    training.train(experience, [])
    assert sorted(x for b in recorder.batches for x in b[0][:, 0].tolist()) == sorted(rows(mixed))
    check_kind(recorder.batches)


def check_kind(fetched: list[list[Tensor]]) -> None:
    """As the fast path's batches: inputs, labels and tasks as tensors."""
    for x, y, task in fetched:
        assert (x.dtype, y.dtype, task.dtype) == (torch.float32, torch.int64, torch.int64)
        assert len(x) == len(y) == len(task) and x.shape[1:] == (4,)


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_transform_counts_where_its_group_is_in_use(asked_before: bool) -> None:
    ours = streams()[0][0].dataset
    changed = transformed(ours, train=None, eval=lambda x: x + 100)
    for dataset in (changed, changed.concat(ours), ours.concat(changed)):
        for mode in (dataset, dataset.train()):
            check_columns(mode)
        if asked_before:
            dataset.columns()
        assert dataset.eval().columns() is None
        assert max(rows(dataset.eval())) > 100
        check_columns(dataset.eval().train())
    if asked_before:
        ours.columns()
    assert ours.replace_current_transform_group(lambda x: x + 100).columns() is None


def test_what_was_gathered_is_kept_where_nothing_changes() -> None:
    dataset = streams()[0][0].dataset
    columns = dataset.columns()
    assert dataset.train().columns() is dataset.eval().columns() is columns


def test_changed_task_labels_are_seen() -> None:
    dataset = streams()[0][0].dataset
    dataset.columns()
    labels = DataAttribute([7] * len(dataset), "targets_task_labels", use_in_getitem=True)
    check_columns(dataset.update_data_attribute("targets_task_labels", labels))


def test_labels_are_what_avalanches_own_lists_are() -> None:
    """Also where they are cut, joined with another's or with their own, and asked by slice."""
    first, second, third = (experience.dataset for experience in streams()[0])
    mixed = first.subset([3, 1, 5]).concat(third).concat(second.subset([0, 7]))
    for one in (first, mixed, first.concat(first), together([first, second]).dataset, mixed.concat(foreign(Listed(3)))):
        for ours in (one.targets, one.targets_task_labels):
            values = list(ours)
            theirs = DataAttribute(values, "targets")
            assert (
                ours.uniques == theirs.uniques and ours.count == theirs.count and ours.val_to_idx == theirs.val_to_idx
            )
            assert list(ours[2:5]) == values[2:5] and ours[1] == values[1] and type(ours[1]) is int
        assert one.targets_task_labels.use_in_getitem and not one.targets.use_in_getitem
    with pytest.raises(IndexError):
        first.targets[12]


def test_a_benchmark_is_made_without_a_look_at_each_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Avalanche makes each label an object, keeps it, and asks for it again."""

    def refused(*_: Any) -> Any:
        raise AssertionError("a single label was asked for")

    monkeypatch.setattr(Numbers, "__getitem__", refused)
    monkeypatch.setattr(Numbers, "__iter__", refused)
    train, _ = streams()
    whole = together([experience.dataset for experience in train])
    assert whole.classes_in_this_experience == set(range(6)) and set(whole.task_labels) == {0, 1, 2}
    assert [experience.classes_seen_so_far for experience in train] == [{0, 1}, {0, 1, 2, 3}, set(range(6))]
    monkeypatch.setattr(Labels, "uniques", DataAttribute.uniques)
    with pytest.raises(AssertionError, match="single label"):
        streams()


@pytest.mark.usefixtures("undeprecated")
def test_a_stock_replay_runs_in_the_loop_on_the_same_kind_of_batches() -> None:
    recorder = Recorder()
    replay = stock_plugin({"plugin": "ReplayPlugin", "mem_size": 6})
    training = loop(network(), replay, recorder)
    for i, experience in enumerate(streams()[0]):
        recorder.batches.clear()
        training.train(experience, [])
        check_kind(recorder.batches)
        assert {int(t) for _, _, task in recorder.batches for t in task} == set(range(i + 1))
        new = [x for x, _, task in recorder.batches for x in x[task == i, 0].tolist()]
        assert sorted(new) == sorted(rows(experience.dataset))


# 10. Replay


class Noted(Memory):
    """Keeps everything that it is given, and draws the first samples."""

    def __init__(self) -> None:
        super().__init__(capacity=1000)
        self.given: list[tuple[Batch, Tensor]] = []

    def store(self, batch: Batch, output: Tensor, generator: torch.Generator) -> None:
        self.given.append((batch, output))
        places = torch.arange(len(self.slots), len(self.slots) + len(batch.y))
        self.slots.write(places, batch)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        return self.slots.read(torch.arange(min(3, len(self.slots))))


def test_a_memory_joins_before_the_forward_pass_and_keeps_the_incoming_samples_alone() -> None:
    memory, recorder = Noted(), Recorder()
    outputs: list[Tensor] = []

    class Sees(SupervisedPlugin):
        def after_forward(self, strategy: Any, **kwargs: Any) -> None:
            outputs.append(strategy.mb_output.detach().clone())

    training = loop(network(), memory, recorder, Sees(), budget=Budget(epochs=2))
    for experience in streams()[0]:
        training.train(experience, [])
    assert len(recorder.batches) == len(outputs) == 3 * 2 * 3
    assert [len(b[1]) for b in recorder.batches] == [len(o) for o in outputs] == [5, 8, 5] * 1 + [8, 8, 5] * 5
    stored = [x for batch, _ in memory.given for x in batch.x[:, 0].tolist()]
    everything = [x for experience in streams()[0] for x in rows(experience.dataset)]
    assert sorted(stored) == sorted(everything)  # each once, although there were two epochs
    first_epochs = [i for task in range(3) for i in range(6 * task, 6 * task + 3)]
    for (batch, output), i in zip(memory.given, first_epochs, strict=True):
        n = len(batch.y)
        assert torch.equal(output, outputs[i][:n])
        assert torch.equal(batch.x, recorder.batches[i][0][:n])
    assert memory.replayed == 3 * 6


# 11. Plug-in methods, and the evaluation plug-in


@pytest.mark.parametrize("kind", ["memory", "regularizer", "projection", "regime"])
def test_avalanche_finds_nothing_to_warn_of_in_our_plugins(kind: str) -> None:
    for name in registry.available(kind):
        loop(network(), common.make(registry.find(kind, name)))
    loop(isolated())


def test_avalanche_warns_of_a_method_that_it_does_not_know() -> None:
    class Odd(SupervisedPlugin):
        def before_lunch(self, strategy: Any, **kwargs: Any) -> None: ...

    with pytest.warns(UserWarning, match="before_lunch"):
        loop(network(), Odd())


def test_no_evaluation_plugin_is_in_the_loop() -> None:
    training = loop(network())
    assert not any(isinstance(plugin, EvaluationPlugin) for plugin in training.plugins)
    assert training.plugins[-1] is training.clock


# 13. The order of the samples


class Draws(SupervisedPlugin):
    """Draws from every global generator."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        torch.rand(3)
        np.random.rand(3)
        random.random()


def order(*methods: Any, seed: int = 0) -> list[list[float]]:
    """What was trained on, a list per task and epoch."""
    recorder = Recorder()
    training = loop(network(), *methods, recorder, seed=seed, budget=Budget(epochs=2))
    for experience in streams()[0]:
        training.train(experience, [])
    numbers = [x for b in recorder.batches for x in b[0][:, 0].tolist()]
    return [numbers[i : i + 12] for i in range(0, len(numbers), 12)]


def test_the_order_of_samples_is_that_of_seed_task_and_epoch_alone() -> None:
    plain = order()
    torch.manual_seed(99)
    assert order(Draws()) == plain
    assert order(seed=1) != plain
    ranks = [sorted(range(12), key=epoch.__getitem__) for epoch in plain]
    assert len({tuple(rank) for rank in ranks}) == 6  # another order in every task and epoch


def test_a_memorys_draws_are_its_own() -> None:
    def kept(*methods: Any) -> Tensor:
        memory = registry.build("memory", "reservoir", {"capacity": 4, "ratio": 0.5})
        training = loop(network(), *methods, memory)
        for experience in streams()[0]:
            training.train(experience, [])
        return memory.slots.tensors["x"]

    assert torch.equal(kept(), kept(Draws()))


def test_stock_code_draws_the_same_for_the_same_seed_and_task() -> None:
    class Notes(SupervisedPlugin):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[tuple[float, float, float]] = []

        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            self.drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))

    def draws(seed: int) -> list[tuple[float, float, float]]:
        notes = Notes()
        training = loop(network(), notes, seed=seed)
        for experience in streams()[0]:
            training.train(experience, [])
            torch.rand(int(torch.randint(9, (1,))))
        return notes.drawn

    first = draws(0)
    assert first == draws(0) and len(set(first + draws(1))) == 6
