"""GPM: outputs that stay, its bases against the criterion, what enters each kind of layer, what stands still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.cnn import CNN
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.transformer import Transformer
from forgetlab.backbones.vit import ViT
from forgetlab.batch import Batch
from forgetlab.data.datasets import Samples
from forgetlab.plugins import registry
from forgetlab.seeding import generator, reseed
from forgetlab.toolbox.projection_math import chosen, entering
from forgetlab.toolbox.teacher import logits
from forgetlab.training.network import SharedNetwork
from helpers.runs import finals
from helpers.streams import in_pairs
from helpers.training import learned

SIZE = 24  # of a task
KIND = registry.find("projection", "gpm").factory


def gpm(threshold: float = 1.0, increase: float = 0.0, samples: int = SIZE, kind: Any = KIND) -> Any:
    return kind(threshold=threshold, increase=increase, samples=samples)


def samples(task: int, shape: tuple[int, ...] = (40,)) -> Samples:
    y = 2 * task + torch.arange(SIZE) % 2
    return Samples(torch.randn(SIZE, *shape, generator=generator("gpm", task)) + y.view(-1, *[1] * len(shape)), y)


def batch(task: int = 0, shape: tuple[int, ...] = (40,)) -> Batch:
    x, y = samples(task, shape)
    return Batch(x, y, torch.full_like(y, task))


def network(backbone: str = "mlp", **options: Any) -> SharedNetwork:
    reseed("gpm")
    made = {
        "mlp": lambda: MLP((40,), (50, 50)),
        "vit": lambda: ViT((1, 8, 8), width=64, depth=1, heads=2, patch=4),
        "cnn": lambda: CNN((2, 8, 8), widths=(8, 16)),
    }
    return SharedNetwork(made[backbone](), **{"task_known": True, **options})


SHAPES = {"mlp": (40,), "vit": (1, 8, 8), "cnn": (2, 8, 8)}


class Watch(SupervisedPlugin):
    """The weights at a task's start, and the old samples' logits."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.old = batch(0, shape)
        self.starts: list[dict[str, Tensor]] = []
        self.answers: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.starts.append({name: p.detach().clone() for name, p in strategy.model.named_parameters()})

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            self.answers.append(logits(strategy.model.eval(), self.old)[:, :2])

    @property
    def change(self) -> float:
        """Of the first task's answers to its own samples, while the second was learned."""
        return float((self.answers[1] - self.answers[0]).norm() / self.answers[0].norm())


def trained(model: SharedNetwork, *found: Any, shape: tuple[int, ...] = (40,), **options: Any) -> Watch:
    watch, stream = Watch(shape), in_pairs([samples(task, shape) for task in range(2)], told=True)
    learned(model, to_benchmark(stream, told=True), *found, watch, epochs=3, **{"lr": 0.15, **options})
    return watch


@pytest.mark.parametrize("head", ["growing", "per-task"])
def test_with_all_directions_held_old_answers_stay(head: Any) -> None:
    """Through every layer, as each leaves what entered it as it was; and yet the second task is learned."""
    model = network(head=head)
    ours, naive = trained(model, gpm()), trained(network(head=head))
    print(ours.change, naive.change)
    assert ours.change < 1e-4 < 0.1 < naive.change
    moved = {name: float((p - ours.starts[1][name]).detach().abs().max()) for name, p in model.named_parameters()}
    assert min(moved[f"backbone.layers.{i}.0.weight"] for i in (0, 1)) > 1e-3
    new = batch(1)
    assert float((logits(model, new).argmax(1) == new.y).float().mean()) > 0.8


@pytest.mark.parametrize("threshold", [0.9, 0.99])
def test_the_threshold_bounds_what_a_layers_output_changes(threshold: float) -> None:
    """Of what enters, in squares, at most 1 - threshold lies where steps act: |D X|^2 <= (1 - t) |D|^2 |X|^2."""
    model, method = network(), gpm(threshold)
    model.open(0, [0, 1])
    method.consolidate(model.eval(), iter([batch()]))
    for layer, rows in entering(model, batch()).items():
        draw = torch.randn(model.get_parameter(f"{layer}.weight").shape, generator=generator("step"))
        step = method.project({f"{layer}.weight": draw}, [])[f"{layer}.weight"]
        squares = float((rows @ step.T).square().sum())
        most = float(torch.linalg.matrix_norm(step, 2) ** 2 * rows.square().sum())
        assert 0 < squares <= (1 - threshold) * most * (1 + 1e-4)


def transposed(self: Any, name: str, g: Tensor, n: int) -> Tensor:
    """On the side of the outputs."""
    basis = self.bases.get(name.rpartition(".")[0])
    if basis is None or not name.endswith("weight") or len(g) != len(basis):
        return g
    return g - basis @ (basis.T @ g)


def biases_free(self: Any, name: str, g: Tensor, n: int) -> Tensor:
    return g if name.endswith("bias") and "head" not in name else KIND.held(self, name, g, n)  # type: ignore[attr-defined]


@pytest.mark.parametrize("held", [transposed, biases_free])
def test_another_projection_does_not_hold_old_answers(held: Any) -> None:
    """Deliberate breaks."""
    broken = gpm(kind=type("Broken", (KIND,), {"held": held}))  # type: ignore[arg-type]
    assert trained(network(), broken).change > 1e-2


def authors(rows: np.ndarray, basis: np.ndarray | None, threshold: float) -> int:
    """How many directions the criterion asks for (equations 5, 9), by its words."""
    r = rows.T
    left = r if basis is None else r - basis @ basis.T @ r
    sizes = np.linalg.svd(left, compute_uv=False)
    k = 0
    while ((r**2).sum() - (left**2).sum()) + (sizes[:k] ** 2).sum() < threshold * (r**2).sum():
        k += 1
    return k


@pytest.mark.parametrize("samples", [10, 200])
def test_the_bases_are_the_fewest_that_hold_the_share(samples: int) -> None:
    """Fewer samples than inputs, or more; over three tasks, with a share that rises."""
    model, method = network(), gpm(0.8, 0.05, samples)
    held: dict[str, np.ndarray] = {}
    for number in range(3):
        model.open(number, [2 * number, 2 * number + 1])
        wide = torch.randn(samples, 40, generator=generator("gpm", "wide", number)) * torch.linspace(0, 2, 40) ** 2
        data = Batch(wide.roll(10 * number, 1), torch.full((samples,), 2 * number), torch.full((samples,), number))
        method.consolidate(model.eval(), iter([data]))
        method.tasks += 1
        for layer, rows in entering(model, data).items():
            ours, old, x = method.bases[layer].double().numpy(), held.get(layer), rows.double().numpy()
            asked = authors(x, old, 0.8 + 0.05 * number)
            assert ours.shape[1] == asked + (0 if old is None else old.shape[1])
            np.testing.assert_allclose(ours.T @ ours, np.eye(ours.shape[1]), atol=1e-6)
            share = ((x @ ours) ** 2).sum() / (x**2).sum()
            assert share > 0.8 + 0.05 * number - 1e-6
            if old is None:
                best = np.linalg.svd(x)[2][:asked]
                np.testing.assert_allclose(ours @ ours.T, best.T @ best, atol=1e-5)
            else:
                np.testing.assert_allclose(old - ours @ ours.T @ old, 0, atol=1e-5)  # the old ones are still in it
            held[layer] = ours
    print({layer: basis.shape for layer, basis in held.items()})


def test_it_keeps_no_more_than_a_layers_inputs_squared() -> None:
    model, method = network(), gpm(1.0, samples=SIZE)
    for number in range(5):
        model.open(number, [2 * number, 2 * number + 1])
        method.consolidate(model.eval(), iter([batch(number)]))
        method.tasks += 1
    assert method.bases["backbone.layers.0.0"].shape == (40, 40)  # 5 times 24 samples
    g = {"backbone.layers.0.0.weight": torch.randn(50, 40)}
    assert method.project(g, [])["backbone.layers.0.0.weight"].abs().max() < 1e-4


@pytest.mark.parametrize("backbone", ["mlp", "vit", "cnn"])
def test_what_enters_is_what_the_weight_acts_on(backbone: str) -> None:
    """Each layer's rows times its weight are what it gives, bias apart: positions and patches included."""
    model = network(backbone)
    model.open(0, [0, 1])
    given: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) or name == "head":
            layer.register_forward_hook(lambda _, __, out, name=name: given.update({name: out.detach()}))
    found = entering(model.eval(), batch(0, SHAPES[backbone]))
    assert found.keys() == given.keys()
    for name, rows in found.items():
        layer: Any = model.get_submodule(name)
        out = given[name] if layer.bias is None else given[name] - layer.bias.detach()
        flat = out.flatten(2).transpose(1, 2).flatten(0, 1) if isinstance(layer, nn.Conv2d) else out.flatten(0, -2)
        torch.testing.assert_close(rows @ layer.weight.detach().flatten(1).T, flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 2}, {"dilation": 2}, {"kernel_size": (1, 3)}])
def test_what_enters_a_convolution_of_any_form(options: Any) -> None:
    layer = nn.Conv2d(3, 4, **{"kernel_size": 3, "bias": False, **options})
    x = torch.randn(2, 3, 7, 8, generator=generator("convolution"))
    (rows,) = entering(nn.Sequential(layer), Batch(x, torch.zeros(2).long(), torch.zeros(2).long())).values()
    expected = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation).detach()  # type: ignore[arg-type]
    found = rows @ layer.weight.detach().flatten(1).T
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2).flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_layers_of_a_text_encoder_and_no_embedding() -> None:
    model = SharedNetwork(Transformer((7,), vocabulary=30, width=8, depth=1, heads=2))
    model.open(0, [0, 1])
    ids = torch.randint(1, 30, (5, 7), generator=generator("text"))
    method = gpm()
    method.consolidate(model.eval(), iter([Batch(ids, ids[:, 0] % 2, torch.zeros(5).long())]))
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)} | {"head"}
    assert method.bases.keys() == linear
    still = method.project({name: torch.ones_like(p) for name, p in model.named_parameters()}, [])
    assert all(not t.any() for name, t in still.items() if name.rpartition(".")[0] not in linear)


@pytest.mark.parametrize("head", ["growing", "per-task"])
def test_what_is_no_weight_of_a_layer_stands_still_and_new_rows_are_free(head: Any) -> None:
    model = network("vit", head=head)
    watch = trained(model, gpm(0.9), shape=(1, 8, 8))
    start = watch.starts[1]
    moved = {name: (p - start[name]).detach().abs() for name, p in model.named_parameters()}
    still = {name for name, m in moved.items() if not m.any()}
    parts = {name for name in moved if "norm" in name or "positions" in name or name.endswith("bias")}
    assert {name for name in parts if "head" not in name} <= still
    if head == "growing":
        assert not moved["head.bias"][:2].any() and moved["head.bias"][2:].all()
        assert moved["head.weight"][2:].any()
    else:
        assert {"head.0.weight", "head.0.bias"} <= still and moved["head.1.weight"].any() and moved["head.1.bias"].all()
    assert "backbone.blocks.0.attention.q.weight" not in still


def test_a_tasks_own_head_has_no_basis_that_would_be_kept_for_nothing() -> None:
    method = gpm()
    trained(network(head="per-task"), method)
    assert method.bases.keys() == {"backbone.layers.0.0", "backbone.layers.1.0"}


def test_a_convolutional_network_without_batch_norm_keeps_old_answers() -> None:
    def small() -> SharedNetwork:
        reseed("gpm")
        layers = nn.Sequential(nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, stride=2), nn.ReLU(), nn.Flatten())
        layers.n_features = 48  # type: ignore[assignment]
        return SharedNetwork(layers, task_known=True)

    ours, naive = (trained(small(), *found, shape=(2, 8, 8)) for found in ([gpm(0.9999)], []))
    print(ours.change, naive.change)
    assert ours.change < 0.02 < 0.1 < naive.change


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        ({}, True),
        ({"momentum": 0.9}, True),
        ({"weight_decay": 1e-2}, False),
        ({"optimizer": "adam", "lr": 1e-3}, False),
    ],
)
def test_sgd_keeps_old_answers_and_adam_and_weight_decay_do_not(options: Any, stays: bool) -> None:
    change = trained(network(), gpm(), **options).change
    assert change < 1e-4 if stays else change > 1e-3


def test_samples_are_drawn_by_name_and_fairly() -> None:
    data = [batch().rows(rows) for rows in torch.arange(SIZE).split(7)]
    data = [
        one._replace(x=torch.arange(i, i + len(one.y)).float()) for i, one in zip((0, 7, 14, 21), data, strict=True)
    ]
    assert torch.equal(chosen(iter(data), 5, generator("a")).x, chosen(iter(data), 5, generator("a")).x)
    assert not torch.equal(chosen(iter(data), 5, generator("a")).x, chosen(iter(data), 5, generator("b")).x)
    assert len(chosen(iter(data), 99, generator("a")).y) == SIZE
    often = torch.bincount(
        torch.cat([chosen(iter(data), 6, generator(i)).x for i in range(800)]).long(), minlength=SIZE
    ).double()
    assert ((often - 200) ** 2 / 200).sum() < 45  # chi-square with 23 degrees of freedom: beyond 41.6 in 1 of 100


FILE = """
name: gpm
scenario: {name: stream, data: digits, setting: domain-incremental, transform: permutation, n_tasks: 3}
model: {name: mlp, hidden: [50]}
protocol: {budget: {epochs: 2}}
train: {optimizer: sgd, lr: 0.05, batch_size: 10}
references: [naive]
strategies:
  - regularization: gpm
seeds: [0, 1, 2]
"""


@pytest.mark.slow
def test_it_forgets_less_than_naive_training(tmp_path: Path) -> None:
    final = finals(tmp_path, FILE)
    print(final)
    assert all(ours > naive for ours, naive in zip(final["gpm"], final["naive"], strict=True))
