"""BatchNorm under every family, and the batches of one sample that it cannot take."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.tensor_data import TensorLoader, to_benchmark
from forgetlab.backbones.batch_norm import has_batch_norm, kept_statistics_for_one, takes_one_sample
from forgetlab.backbones.cnn import CNN
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.resnet import ResNet
from forgetlab.batch import Batch
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Train
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins import registry
from forgetlab.plugins.registry import built
from forgetlab.seeding import generator
from forgetlab.toolbox.fisher import fisher, trainable
from forgetlab.training import pretraining
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.streams import in_pairs, opposed
from helpers.training import Recorder, learned

PLUGIN = '''
"""A perceptron with BatchNorm1d, as users bring one."""
import math

from torch import nn

from forgetlab.plugins import register


@register("model", "bn_mlp")
class NormalisedPerceptron(nn.Module):
    """One hidden layer, normalised over the batch."""

    def __init__(self, input_shape: tuple[int, ...], width: int = 12) -> None:
        super().__init__()
        self.n_features = width
        inputs = math.prod(input_shape)
        self.layers = nn.ModuleList([
            nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()),
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
        ])

    places = {"mlp.in": "layers.*.0", "block": "layers.*"}

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x
'''
FILE = """
name: normalised
scenario: {name: stream, data: digits, samples_per_task: 65, n_tasks: 3, classes_per_task: [4, 3, 3]}
model: {name: bn_mlp}
protocol: {budget: {epochs: 2}}
train: {batch_size: 32, lr: 1e-2}
plugins: [./bn_mlp.py]
references: []
strategies: [ENTRY]
"""


def experiment(folder: Path, entry: str, *changes: tuple[str, str]) -> Any:
    (folder / "bn_mlp.py").write_text(PLUGIN, encoding="utf-8")
    return runs.loaded(folder, FILE, ("ENTRY", entry), *changes)


def statistics(tensors: Any) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if "running" in name}


def batches_of(samples: int, size: int, no_single: bool) -> list[list[int]]:
    columns = (torch.arange(float(samples)), torch.zeros(samples), torch.zeros(samples))
    loader = TensorLoader(columns, size, no_single=no_single)
    found = [x.int().tolist() for x, *_ in loader]
    assert len(loader) == len(found)
    return found


@pytest.mark.parametrize(
    ("samples", "size", "lengths"),
    [(5, 2, [2, 3]), (4, 2, [2, 2]), (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (1, 2, [1]), (3, 1, [1, 1, 1]), (3, 2, [3])],
)
def test_a_last_batch_of_one_is_joined_to_the_one_before(samples: int, size: int, lengths: list[int]) -> None:
    found = batches_of(samples, size, no_single=True)
    assert [len(batch) for batch in found] == lengths
    assert [row for batch in found for row in batch] == list(range(samples))
    assert len(batches_of(samples, size, no_single=False)) == math.ceil(samples / size)


FAMILIES = {
    "nothing": "regularization: {name: l2, strength: 0}",
    "replay": "replay: {memory: reservoir, capacity: 20}",
    "gdumb": "replay: {memory: greedy, capacity: 33, rehearsal: gdumb}",
    "gem of one sample a task": "replay: {memory: task_ring, capacity: 3, projection: gem}",
    "agem of one sample": "replay: {memory: reservoir, capacity: 1, projection: agem}",
    "der++": "replay: {memory: reservoir, capacity: 20, rehearsal: der++}",
    "mir": "replay: {memory: reservoir, capacity: 20, sampler: mir}",
    "latent": "replay: {memory: reservoir, capacity: 20, depth: 1}",
    "general": "replay: {general: {ratio: 0.03, data: digits}}",
    "ewc": "regularization: {name: ewc, strength: 10}",
    "lwf": "regularization: lwf",
    "gpm": "regularization: gpm",
    "feature_distillation": "regularization: feature_distillation",
    "si and slca": "regularization: [si, slca]",
    "isolation": "isolation: linear_probe, router: prototype",
    "classifier": "classifier: ridge",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_tasks_of_65_samples_in_batches_of_32(family: str, tmp_path: Path) -> None:
    made = experiment(tmp_path, f"{{name: it, {FAMILIES[family]}}}")
    result = one_run.run(made.run(made.strategies[0], 0))
    assert all(math.isfinite(value or 0) for row in result.accuracy for value in row)


@pytest.mark.parametrize("reference", ["naive", "joint", "separate", "ridge"])
def test_every_reference_does(reference: str, tmp_path: Path) -> None:
    references = ("references: []\nstrategies: [ENTRY]", f"references: [{reference}]\nstrategies: []")
    made = experiment(tmp_path, "ENTRY", references)
    steps = one_run.run(made.runs()[0]).counts["total"]["updates"]
    assert steps == {"naive": 12, "separate": 12, "joint": (2 + 5 + 7) * 2, "ridge": 0}[reference]  # 65, 130, 195 in 32


@pytest.mark.parametrize("family", ["replay", "ewc", "lwf", "gpm", "latent", "isolation"])
def test_a_residual_network_under_each_family(family: str, tmp_path: Path) -> None:
    made = experiment(
        tmp_path, f"{{name: it, {FAMILIES[family]}}}", ("{name: bn_mlp}", "{name: resnet, depth: 20, width: 2}")
    )
    result = one_run.run(made.run(made.strategies[0], 0))
    assert all(math.isfinite(value or 0) for row in result.accuracy for value in row)


class Normalised(nn.Module):
    """BatchNorm on the inputs themselves, so that its statistics are theirs."""

    n_features = 6
    places: ClassVar = {"block": "linear"}

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x)).relu()


def stream(size: int = 17, tasks: int = 2) -> Any:
    return to_benchmark(in_pairs(opposed("normalised", size, tasks)))


def normalised_network() -> SharedNetwork:
    torch.manual_seed(0)
    return SharedNetwork(Normalised())


@pytest.mark.parametrize("replays", [False, True])
@torch.no_grad()
def test_statistics_move_with_what_is_trained_on_and_answer_in_evaluation(replays: bool) -> None:
    """The running mean is .9 of itself and .1 of the batch's, step by step: of new and drawn samples together."""
    recorder, model = Recorder(), normalised_network()
    memory = registry.build("memory", "reservoir", {"capacity": 9}) if replays else None
    plugins = [plugin for plugin in (memory, recorder) if plugin is not None]
    with torch.enable_grad():
        learned(model, stream(), *plugins)
    mean, variance = torch.zeros(6), torch.ones(6)
    for x, *_ in recorder.batches:
        mean = 0.9 * mean + 0.1 * x.mean(0)
        variance = 0.9 * variance + 0.1 * x.var(0)
    assert max(len(batch[1]) for batch in recorder.batches) == (18 if replays else 9)
    norm: Any = model.backbone.norm
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    x = torch.randn(3, 6, generator=generator("asked"))
    by_hand = (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    backbone: Any = model.eval().backbone
    torch.testing.assert_close(backbone(x), backbone.linear(by_hand).relu())


def test_the_teacher_of_lwf_keeps_the_statistics_of_its_task() -> None:
    model, lwf = normalised_network(), registry.build("regularizer", "lwf")
    first, second = stream().streams["train"]
    loop = Loop(model=model, train=Train(batch_size=8), budget=Budget(epochs=2), plugins=[lwf])
    loop.train(first, [])
    at_the_end = {name: tensor.clone() for name, tensor in statistics(model.state_dict()).items()}
    teachers = list[nn.Module]()
    lwf.after_update = lambda *_, **__: teachers.append(lwf.teacher)
    loop.train(second, [])
    assert len(teachers) == 4  # 17 samples in batches of 8: two a pass
    assert not any(part.training for part in teachers[-1].modules())
    for name, tensor in statistics(teachers[-1].state_dict()).items():
        assert torch.equal(tensor, at_the_end[name])
        assert not torch.equal(tensor, model.state_dict()[name])


@pytest.mark.parametrize("backbone", [lambda: CNN((1, 4, 4), (3,)), lambda: ResNet((1, 5, 5), 20, 1)])
def test_the_fisher_information_is_exact_per_sample_by_the_statistics_that_there_are(backbone: Any) -> None:
    torch.manual_seed(0)
    model = SharedNetwork(backbone())
    model.open(0, [0, 1, 2])
    side = 4 if isinstance(model.backbone, CNN) else 5
    x, task = torch.rand(5, 1, side, side, generator=generator("x")), torch.zeros(5, dtype=torch.int64)
    model.train()(x, task)  # so that the statistics are not those of a start
    held = {name: tensor.clone() for name, tensor in model.named_buffers()}
    found = fisher(model, [Batch(x[:3], task[:3], task[:3]), Batch(x[3:], task[3:], task[3:])])
    assert model.training
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.named_buffers())
    model.eval()
    by_hand = {name: torch.zeros_like(p) for name, p in trainable(model)}
    for i in range(5):
        answer = model(x[i : i + 1], task[:1]).log_softmax(1)[0]
        for label in range(3):
            gradients = torch.autograd.grad(answer[label], list(model.parameters()), retain_graph=True)
            for name, gradient in zip(by_hand, gradients, strict=True):
                by_hand[name] += answer[label].exp().detach() * gradient.square() / 5
    for name, expected in by_hand.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-6)


def test_a_frozen_backbone_keeps_its_statistics_in_training() -> None:
    torch.manual_seed(0)
    network = IsolatedNetwork(Normalised(), lambda: registry.build("isolation", "linear_probe"))
    network.open(0, [0, 1])
    held = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    network.train()(torch.randn(1, 6), torch.zeros(1, dtype=torch.int64)).sum().backward()
    assert all(torch.equal(tensor, held[name]) for name, tensor in network.backbone.state_dict().items())


def test_pretraining_hands_its_statistics_on(tmp_path: Path) -> None:
    stage = ("references: []", "references: []\npretrain: {epochs: 2}")
    held_back = ("classes_per_task: [4, 3, 3]", "held_back: 4")
    run = experiment(tmp_path, "{name: it, isolation: linear_probe, router: prototype}", stage, held_back).runs()[0]
    scenario = built("scenario", run.scenario, seed=0)
    backbone = built("model", run.model, input_shape=scenario.input_shape)
    begun = pretraining.start(run, scenario, backbone, torch.device("cpu"), None)
    assert begun is not None
    samples = sum(len(task.train.y) for task in begun.tasks)
    other = built("model", run.model, input_shape=scenario.input_shape)
    begun.load_into(other)
    moved = statistics(other.state_dict())
    assert len(moved) == 4
    assert all(tensor.std() > 0 for tensor in moved.values())
    assert other.layers[0][1].num_batches_tracked == 2 * math.ceil(samples / 32)


def test_one_sample_that_goes_through_alone_is_normalised_by_what_there_is() -> None:
    norm = nn.BatchNorm1d(2).train()
    norm.running_mean, norm.running_var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])
    with kept_statistics_for_one(norm, 1):
        found = norm(torch.tensor([[3.0, 8.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0]]))
    assert norm.training and norm.running_mean.tolist() == [1.0, 2.0]
    with kept_statistics_for_one(norm, 2):
        assert norm.training


def test_who_takes_one_sample_is_tried_and_left_as_it_was() -> None:
    x = torch.rand(2, 6)
    model = Normalised()
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not takes_one_sample(model.eval(), x)
    assert takes_one_sample(MLP((6,), (3,)), x) and takes_one_sample(CNN((1, 4, 4), (2,)), torch.rand(2, 1, 4, 4))
    assert not model.norm.training
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())
    assert has_batch_norm(model) and not has_batch_norm(MLP((6,), (3,)))


ONE = "BatchNorm has no variance of one sample"


@pytest.mark.parametrize(
    ("entry", "changes", "where"),
    [
        ("{name: it, replay: {memory: reservoir, capacity: 9}}", [("batch_size: 32", "batch_size: 1")], "1, lr"),
        ("{name: it, regularization: lwf, train: {batch_size: 1}}", [], "1}}"),
        ("{name: it, regularization: lwf}", [("65", "[30, 1, 30]"), ("[4, 3, 3]", "[4, 1, 5]")], "{name: stream"),
        ("{name: it, isolation: linear_probe, router: prototype}", [("batch_size: 32", "batch_size: 1")], None),
        ("{name: it, regularization: lwf}", [("batch_size: 32", "batch_size: 1"), ("bn_mlp}", "mlp}")], None),
        (
            "{name: it, regularization: lwf}",
            [("batch_size: 32", "batch_size: 1"), ("bn_mlp}", "cnn, widths: [4]}")],
            None,
        ),
    ],
)
def test_nothing_but_batches_of_one_is_refused_where_they_cannot_be_taken(
    entry: str, changes: list[tuple[str, str]], where: str | None, tmp_path: Path
) -> None:
    (tmp_path / "bn_mlp.py").write_text(PLUGIN, encoding="utf-8")
    text = FILE.replace("ENTRY", entry)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    found = runs.told(tmp_path, text)
    assert [text for _, text in found if ONE in text] == [text for _, text in found]
    assert len(found) == (where is not None)
    if where is not None:
        assert found[0][0].startswith(where)
