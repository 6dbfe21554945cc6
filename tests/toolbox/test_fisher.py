"""The Fisher information and EWC's penalty, against slower or closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import MultiTaskModule, stock_plugin
from forgetlab.backbones.layers import Block
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.vit import ViT
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from forgetlab.seeding import generator
from forgetlab.toolbox.fisher import RULES, Measure, Variant, covered, fisher, layer_wise, per_sample, sensitivity
from forgetlab.training.network import SharedNetwork
from helpers.networks import opened

VARIANTS: tuple[Variant, ...] = get_args(Variant)
MEASURES: tuple[Measure, ...] = (*VARIANTS, "norm")


def network(backbone: nn.Module, **options: Any) -> nn.Module:
    return opened(SharedNetwork(backbone, **options), 2).double().eval()


def mlp(**options: Any) -> nn.Module:
    return network(MLP((1, 4, 4), (6, 5)), **options)


def vit(**options: Any) -> nn.Module:
    return network(ViT((1, 4, 4), width=8, depth=2, heads=2, patch=2), **options)


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.LazyLinear(4)).double().eval()


def data(n: int = 7) -> Batch:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 4, 4, generator=draw, dtype=torch.float64)
    y = torch.arange(n) % 4
    return Batch(x, y, y // 2)


def parts(batch: Batch, size: int) -> list[Batch]:
    pieces = zip(batch.x.split(size), batch.y.split(size), batch.task.split(size), strict=True)
    return [Batch(x, y, task) for x, y, task in pieces]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def both_ways(model: nn.Module, variant: Measure) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The sums from the layers, and sample by sample; with the same draws."""
    batch = data()
    return layer_wise(model, batch, variant, generator("f")), per_sample(model, batch, variant, generator("f"))


@pytest.mark.parametrize("variant", MEASURES)
@pytest.mark.parametrize("make", [mlp, vit])
def test_layer_wise_equals_per_sample(make: Callable[..., nn.Module], variant: Measure) -> None:
    torch.manual_seed(0)
    model = make()
    assert covered(model)
    ours, theirs = both_ways(model, variant)
    assert ours.keys() == {name for name, _ in model.named_parameters()}
    for name, value in ours.items():  # a bias of the keys moves all of a softmax's inputs alike
        assert (value.max() > 1e-6) == ("attention.k.bias" not in name)
    same(ours, theirs)


class Reader(nn.Module):
    """A transformer over token ids, in which 0 fills up."""

    n_features = 8

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 8, padding_idx=0, **options)
        self.positions = nn.Embedding(9, 8)
        self.block = Block(8, heads=2, hidden=12)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device).expand_as(x)
        return self.block(self.tokens(x) + self.positions(places)).mean(1)


def sentences() -> Batch:
    """Of tokens that repeat within a sample, padding included, and between samples."""
    x = torch.tensor([[1, 2, 1, 1, 3], [4, 4, 4, 0, 0], [2, 1, 5, 0, 0]], dtype=torch.int32)
    y = torch.tensor([0, 2, 3])
    return Batch(x, y, y // 2)


@pytest.mark.parametrize("variant", MEASURES)
def test_the_tokens_of_a_sample_are_added_before_their_size_is_taken(variant: Measure) -> None:
    torch.manual_seed(0)
    model = network(Reader())
    assert covered(model)
    ours = layer_wise(model, sentences(), variant, generator("f"))
    same(ours, per_sample(model, sentences(), variant, generator("f")))
    used = ours["backbone.tokens.weight"].sum(1) > 0
    assert used.tolist() == [False, True, True, True, True, True, False]
    assert (ours["backbone.positions.weight"].sum(1) > 0).sum() == 5


def test_squaring_each_position_of_a_token_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = network(Reader())
    theirs = per_sample(model, sentences(), "exact", generator())

    def each_position(layer: Any, a: Tensor, g: Tensor, size: object) -> dict[str, Tensor]:
        return {"weight": torch.zeros_like(layer.weight).index_add_(0, a.flatten(), g.flatten(0, 1) ** 2)}

    monkeypatch.setitem(RULES, nn.Embedding, each_position)
    broken = layer_wise(model, sentences(), "exact", generator())
    same({**broken, "backbone.tokens.weight": theirs["backbone.tokens.weight"]}, theirs)
    difference = broken["backbone.tokens.weight"] - theirs["backbone.tokens.weight"]
    assert difference.norm() > 0.1 * theirs["backbone.tokens.weight"].norm()


def test_a_sample_may_be_one_token() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 4)).double().eval()
    x, y = torch.tensor([3, 1, 3, 0]), torch.tensor([0, 1, 2, 3])
    batch = Batch(x, y, torch.zeros_like(y))
    assert covered(model)
    same(fisher(model, [batch], "exact"), one_by_one(model, batch))


def test_an_embedding_that_counts_the_batchs_tokens_goes_through_vmap() -> None:
    torch.manual_seed(0)
    model, batch = network(Reader(scale_grad_by_freq=True)), sentences()
    assert not covered(model)
    same(fisher(model, parts(batch, 2), "exact"), one_by_one(model, batch))


def test_masked_classes_and_frozen_parameters_count_for_nothing() -> None:
    torch.manual_seed(0)
    model = vit(task_known=True)
    model.get_submodule("backbone.blocks.0").requires_grad_(False)
    ours, theirs = both_ways(model, "exact")
    assert not any(name.startswith("backbone.blocks.0") for name in ours)
    same(ours, theirs)
    only_first = layer_wise(model, Batch(data().x, data().y, torch.zeros(7, dtype=torch.int64)), "exact", generator())
    assert only_first["head.weight"][:2].min() > 0 and only_first["head.weight"][2:].max() == 0


def test_separate_heads_share_a_batch_of_both_tasks() -> None:
    torch.manual_seed(0)
    model = mlp(head="per-task", task_known=True)
    batch = data()
    masks = [batch.task == task for task in (0, 1)]
    rows = [Batch(batch.x[mask], batch.y[mask], batch.task[mask]) for mask in masks]
    separate = [layer_wise(model, part, "exact", generator()) for part in rows]
    whole = layer_wise(model, batch, "exact", generator())
    names = [name for name, _ in model.named_parameters()]
    same(whole, {name: sum(part[name] for part in separate if name in part) for name in names})  # type: ignore[misc]


@pytest.mark.parametrize("variant", VARIANTS)
def test_softmax_regression_has_a_closed_form(variant: Variant) -> None:
    """With logits W x + b, d log p_y / d W_ci = ([c = y] - p_c) x_i. Squared and averaged over y ~ p, this is
    p_c (1 - p_c)^2 + (1 - p_c) p_c^2 = p_c (1 - p_c) times x_i^2."""
    torch.manual_seed(0)
    model, batch = sequential(nn.Flatten()), data()
    x = batch.x.flatten(1)
    p = model(batch.x).softmax(1)
    drawn = torch.multinomial(p.detach(), 1, generator=generator("fisher", 0)).squeeze(1)
    label = {"predicted": p.argmax(1), "empirical": batch.y, "sampled": drawn}.get(variant)
    of_logits = p * (1 - p) if label is None else (F.one_hot(label, 4) - p) ** 2  # (B, classes)
    weight = torch.einsum("bc,bi->ci", of_logits, x**2) / len(x)
    found = fisher(model, [batch], variant)
    same(found, {"1.weight": weight, "1.bias": of_logits.mean(0)})
    broken = fisher(model, [Batch(batch.x, (batch.y + 1) % 4, batch.task)], variant)
    assert torch.equal(broken["1.bias"], found["1.bias"]) == (variant != "empirical")  # it alone looks at labels


def test_the_sensitivity_of_linear_logits_has_a_closed_form() -> None:
    """With f = W x + b, d ||f||^2 / d W_ci = 2 f_c x_i."""
    torch.manual_seed(0)
    model, batch = sequential(nn.Flatten()), data()
    x, f = batch.x.flatten(1), model(batch.x)
    weight = torch.einsum("bc,bi->ci", 2 * f.abs(), x.abs()) / len(x)
    same(sensitivity(model, parts(batch, 3)), {"1.weight": weight, "1.bias": 2 * f.abs().mean(0)})


def test_the_sampled_variant_tends_to_the_exact_one() -> None:
    torch.manual_seed(0)
    model, batch = mlp(), data()
    many = [fisher(model, [batch], "sampled", seed=seed) for seed in range(300)]
    exact = fisher(model, [batch], "exact")
    for name, value in exact.items():
        mean = torch.stack([one[name] for one in many]).mean(0)
        assert (mean - value).norm() < 0.15 * value.norm()
    same(many[0], fisher(model, [batch], "sampled", seed=0))
    assert not torch.equal(many[0]["head.weight"], many[1]["head.weight"])


@pytest.mark.parametrize("variant", MEASURES)
def test_the_batch_size_does_not_matter(variant: Measure) -> None:
    torch.manual_seed(0)
    model, batch = vit(), data()
    whole = averaged(model, [batch], variant)
    for size in (1, 3):
        same(whole, averaged(model, parts(batch, size), variant))


def averaged(model: nn.Module, data: list[Batch], measure: Measure) -> dict[str, Tensor]:
    return sensitivity(model, data) if measure == "norm" else fisher(model, data, measure)


def test_the_model_answers_in_evaluation_mode_and_is_left_as_it_was() -> None:
    """Dropout has no part in it, and BatchNorm learns nothing from it."""
    torch.manual_seed(0)
    model, batch = sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout()), data()
    model(batch.x)
    asked = fisher(model, [batch], "empirical")
    same(fisher(model.train(), [batch], "empirical"), asked)
    assert model.training and model.get_buffer("1.num_batches_tracked") == 0


def one_by_one(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The exact Fisher information by autograd, a sample and a label at a time."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    sums = {name: torch.zeros_like(p) for name, p in named}
    for x in batch.x:
        log_p = model(x.unsqueeze(0)).log_softmax(1)[0]
        for one in log_p:
            gradients = torch.autograd.grad(one, [p for _, p in named], retain_graph=True)
            for (name, _), gradient in zip(named, gradients, strict=True):
                sums[name] += one.exp().detach() * gradient**2
    return {name: value / len(batch.y) for name, value in sums.items()}


def test_the_model_itself_may_be_a_layer() -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3).double(), data()._replace(x=torch.randn(7, 4).double())
    same(fisher(model, [batch], "exact"), one_by_one(model, batch))


class Shift(nn.Module):
    """A layer with a parameter of its own and no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.full((16,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten()],
        [nn.Flatten(), nn.BatchNorm1d(16)],
        [nn.Flatten(), Shift()],
    ],
    ids=["convolution", "batch norm", "own parameter"],
)
def test_a_layer_without_a_rule_goes_through_vmap(layers: list[nn.Module]) -> None:
    torch.manual_seed(0)
    model, batch = sequential(*layers), data()
    model(batch.x)
    assert not covered(model)
    same(fisher(model, parts(batch, 4), "exact"), one_by_one(model, batch))


class Twice(nn.Module):
    """A layer that is used twice: its gradient is a sum, and the square of a sum is not the sum of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Rows(nn.Module):
    """Applies a layer to parts of each sample as if they were samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 4)).tanh().reshape(len(x), -1)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Flatten(), nn.Linear(16, 6), nn.ReLU(inplace=True), nn.Dropout()],  # as Avalanche's SimpleMLP
        [nn.Flatten(), Twice()],
        [nn.Flatten(), Rows()],
        [nn.Flatten(), Tied()],
        [nn.Flatten(), nn.Linear(16, 6, bias=False), nn.LayerNorm(6, bias=False), nn.Tanh()],
    ],
    ids=["in-place activation", "used twice", "samples as rows", "tied weights", "no bias"],
)
def test_models_that_layers_alone_would_get_wrong(layers: list[nn.Module]) -> None:
    torch.manual_seed(0)
    model, batch = sequential(*layers), data()
    model(batch.x)
    same(fisher(model, [batch], "exact"), one_by_one(model, batch))


class ForeignHeads(MultiTaskModule):
    """A task-aware model as an Avalanche script may bring it, with a layer that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.head = Shift(), nn.Linear(16, 4)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        return self.head(self.shift(x.flatten(1))) * (1 + task_labels.unsqueeze(1))


def test_a_task_aware_model_of_others_is_told_the_tasks() -> None:
    torch.manual_seed(0)
    model, batch = ForeignHeads().double().eval(), data()
    found = fisher(model, [batch], "empirical")
    (both,) = parts(batch, len(batch.y))
    log_p = model(both.x, both.task).log_softmax(1).gather(1, both.y.unsqueeze(1))
    squares = [torch.autograd.grad(one, model.head.bias, retain_graph=True)[0] ** 2 for one in log_p.unbind()]
    torch.testing.assert_close(found["head.bias"], torch.stack(squares).mean(0))


def test_avalanches_importance_is_the_squared_gradient_of_a_batch_mean() -> None:
    """So it depends on the batch size, and vanishes for large batches of a trained model; ours does not."""
    torch.manual_seed(0)
    model, batch = sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh()), data(8)
    model(batch.x)
    samples = [(x, y, t) for x, y, t in zip(batch.x, batch.y.tolist(), batch.task.tolist(), strict=True)]
    stock: Any = stock_plugin({"plugin": "EWCPlugin", "ewc_lambda": 1.0})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def theirs(size: int) -> dict[str, Tensor]:
        found = stock.compute_importances(model, F.cross_entropy, optimizer, samples, "cpu", size)
        model.eval()
        return {name: value.data.double() for name, value in found.items()}

    named = dict(model.named_parameters())
    for size in (1, 4, 8):
        means = {name: torch.zeros_like(p) for name, p in named.items()}
        for part in parts(batch, size):
            loss = F.cross_entropy(model(part.x), part.y)
            for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
                means[name] += gradient**2 * size / len(batch.y)
        same(theirs(size), means, 1e-7)  # it keeps them in float32
    assert theirs(8)["3.weight"].sum() < 0.5 * theirs(1)["3.weight"].sum()
    same(theirs(1), fisher(model, [batch], "empirical"), 1e-7)


@pytest.mark.parametrize("variant", ["exact", "empirical"])
def test_ewc_keeps_one_quadratic_that_equals_the_sum_over_tasks(variant: Variant) -> None:
    """Three tasks, and a head that grows by the classes of each."""
    torch.manual_seed(0)
    model = SharedNetwork(MLP((4,), (5,))).double().eval()
    ewc: Any = registry.build("regularizer", "ewc", {"fisher": variant})
    kept: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []  # each task's F and theta
    for task in range(3):
        model.open(task, [2 * task, 2 * task + 1])
        if kept:
            check_penalty(ewc, model, kept)  # new rows are free
        x, y = torch.randn(9, 4).double(), torch.randint(2 * task, 2 * task + 2, (9,))
        with torch.no_grad():
            for p in model.parameters():
                p += 0.3 * torch.randn_like(p)
        batch = Batch(x, y, torch.full_like(y, task))
        ewc.consolidate(model, [batch])
        theta = {name: p.detach().clone() for name, p in model.named_parameters()}
        kept.append((fisher(model, [batch], variant), theta))
        check_penalty(ewc, model, kept)


def check_penalty(ewc: Any, model: nn.Module, kept: list[Any]) -> None:
    """1/2 sum over tasks and parameters of F (theta - theta_t)^2, in value and gradient, away from any theta_t."""
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    named = dict(model.named_parameters())
    terms = [(f[name] * (named[name][: len(f[name])] - theta[name]) ** 2).sum() / 2 for f, theta in kept for name in f]
    ours, explicit = ewc.penalty(model, data(), torch.empty(0)), torch.stack(terms).sum()
    torch.testing.assert_close(ours, explicit, rtol=1e-9, atol=0)
    pairs = zip(*(torch.autograd.grad(one, list(named.values())) for one in (ours, explicit)), strict=True)
    for own, theirs in pairs:
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-12)
