"""Methods that train the backbone's own weights for one task: which ones they train, and what stands in for them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.sites import Site
from forgetlab.checks.backbones import FAMILIES, samples, tiny
from forgetlab.checks.isolation import start, train
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Budget, Train
from forgetlab.isolation.attachment import standing_in
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork, IsolationPlugin
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin, arguments
from forgetlab.seeding import generator
from forgetlab.strategies.isolation.modules.adapters.ia3 import IA3
from forgetlab.strategies.isolation.modules.whole.bitfit import BitFit
from forgetlab.strategies.isolation.modules.whole.full import Full
from forgetlab.strategies.isolation.modules.whole.gradual import Gradual
from forgetlab.strategies.isolation.modules.whole.linear_probe import LinearProbe
from forgetlab.strategies.isolation.modules.whole.selective import Selective
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.training.loop import Loop
from helpers.modules import attached, features, moved
from helpers.networks import isolated

TRANSFORMERS = [name for name in FAMILIES if name not in ("mlp", "cnn")]


def trained_names(module: Isolation, backbone: nn.Module) -> set[str]:
    """The backbone's parameters that the module replaces, by its own names."""
    return set(standing_in(module, backbone))


def block_of(name: str) -> int | None:
    """The number in a parameter's path; no family has one outside its blocks."""
    return next((int(piece) for piece in name.split(".") if piece.isdigit()), None)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_method_trains_what_it_says(family: str) -> None:
    backbone = tiny(family)
    everything = {name for name, _ in backbone.named_parameters()}
    assert trained_names(attached(Full(), backbone), backbone) == everything
    assert trained_names(attached(LinearProbe(), backbone), backbone) == set()
    if family == "cnn":
        return
    in_blocks = {name for name in everything if block_of(name) is not None}
    last = {name for name in in_blocks if block_of(name) == 1}
    assert len(in_blocks) > len(last) > 0
    assert trained_names(attached(Selective(), backbone), backbone) == last
    assert trained_names(attached(Selective(blocks=2), backbone), backbone) == in_blocks
    assert trained_names(attached(Gradual(), backbone), backbone) == in_blocks
    biases = {name for name in in_blocks if name.endswith("bias")}
    assert trained_names(attached(BitFit(), backbone), backbone) == biases
    assert trained_names(attached(BitFit(layers=(-1,)), backbone), backbone) == biases & last
    if family != "mlp":
        assert any("norm" in name.lower() or "ln_" in name for name in biases & last)  # layer norms included


def test_more_blocks_than_there_are_is_refused_by_the_option_that_says_so() -> None:
    with pytest.raises(OptionError, match="no layer -3; the backbone has 2") as refused:
        attached(Selective(blocks=3), tiny("vit"))
    assert refused.value.option == "blocks"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [Full, Selective, Gradual, BitFit])
def test_it_is_the_backbone_with_these_weights_to_the_bit(family: str, make: Callable[[], Isolation]) -> None:
    if family == "cnn" and make is not Full:
        return
    backbone = tiny(family)
    module, edited = moved(attached(make(), backbone)), copy.deepcopy(backbone)
    for name, tensor in standing_in(module, backbone).items():
        edited.get_parameter(name).data.copy_(tensor)
    x = samples(backbone, 3)
    found = features(module, backbone, x)
    assert torch.equal(found, edited(x))
    assert (found - backbone(x)).abs().max() > 1e-3


def test_a_change_added_to_the_pretrained_weight_is_not_the_weight() -> None:
    """Why weights are stored and not differences: theta_0 + (theta_t - theta_0) rounds."""
    backbone = tiny("vit")
    module = attached(Full(), backbone)
    for parameter in module.parameters():  # far from theta_0; one small step away from it, nothing is lost yet
        parameter.data = torch.randn(parameter.shape, generator=generator("far"))
    changed, weights = module.changes(), standing_in(module, backbone)
    back = {name: p + changed[f"whole-0.{name}"] for name, p in backbone.named_parameters()}
    assert any(not torch.equal(back[name], weights[name]) for name in back)
    assert all(torch.allclose(back[name], weights[name], atol=1e-6) for name in back)


@pytest.mark.parametrize("begins", ["pretrained", "previous"])
def test_a_task_starts_from_the_pretrained_weights_or_the_last_tasks(begins: Any) -> None:
    model = isolated(lambda: Full(begins))
    train(model, 0)
    start(model, 1)
    first, second = (standing_in(model.module_of(task), model.backbone) for task in range(2))
    theta_0 = dict(model.backbone.named_parameters())
    expected = first if begins == "previous" else theta_0
    assert all(torch.equal(second[name], expected[name]) for name in theta_0)
    assert not all(torch.equal(first[name], theta_0[name]) for name in theta_0)
    kept = {name: tensor.clone() for name, tensor in first.items()}
    train(model, 1)
    assert all(torch.equal(first[name], kept[name]) for name in theta_0)  # copied, not shared
    moved_from_start = model.module_of(1).changes()
    for name, tensor in model.backbone.named_parameters():  # as a merger reads them: from the pretrained weights
        found = model.module_of(1).parts["whole-0"].get_parameter(name.replace(".", "/"))
        assert torch.equal(moved_from_start[f"whole-0.{name}"], found - tensor)


class StepByStep(SupervisedPlugin):
    """Keeps every part's parameters before each step and at the end of the task."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[Tensor]] = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        network = strategy.model
        parts = network.module_of(network.current).parts.values()
        flat = [torch.cat([p.detach().flatten() for p in part.parameters()]) for part in parts]
        self.seen.append([*flat, network.heads[str(network.current)].weight.detach().clone()])


def run(make: Callable[[], Isolation], optimizer: str, depth: int = 3) -> list[list[Tensor]]:
    """Twelve steps with momentum and weight decay on one task, in our loop."""
    draws = generator("fine-tuning")
    x, y = torch.randn(40, 6, generator=draws), torch.arange(40) % 2
    scenario = Scenario((Task("a", Samples(x, y), Samples(x, y), (0, 1)),), ("a", "b"), task_known_at_test=True)
    torch.manual_seed(0)
    model = IsolatedNetwork(MLP((6,), (5,) * depth), make, task_known=True)
    watcher = StepByStep()
    hyper = Train(batch_size=10, lr=0.05, optimizer=optimizer, weight_decay=0.1)  # type: ignore[arg-type]
    loop = Loop(model=model, train=hyper, budget=Budget(epochs=3), plugins=[IsolationPlugin(), watcher])
    for experience in to_benchmark(scenario).streams["train"]:
        loop.train(experience, [])
    return watcher.seen


def thaws_from_the_top(seen: list[list[Tensor]], depth: int = 3) -> None:
    """In quarter k of the steps the top k of three blocks move, and the head always."""
    assert len(seen) == 12
    for step in range(1, 12):
        moves = [not torch.equal(old, new) for old, new in zip(seen[step - 1], seen[step], strict=True)]
        thawed = step * (depth + 1) // 12
        assert moves == [layer >= depth - thawed for layer in range(depth)] + [True], f"at step {step}: {moves}"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_blocks_thaw_from_the_top_and_a_frozen_one_does_not_move(optimizer: str) -> None:
    thaws_from_the_top(run(Gradual, optimizer))


class ThawsAtOnce(Gradual):
    """The break: all blocks train from the beginning."""

    def step(self, done: float) -> None: ...


class ZeroesGradients(Gradual):
    """The break: a frozen block's gradients are zero rather than absent, so that weight decay moves it."""

    def step(self, done: float) -> None:
        super().step(done)
        for part in self.parts.values():
            for parameter in part.parameters():
                parameter.grad = torch.zeros_like(parameter) if not parameter.requires_grad else parameter.grad


@pytest.mark.parametrize("broken", [ThawsAtOnce, ZeroesGradients])
def test_a_block_that_moves_too_early_is_found(broken: type[Gradual], monkeypatch: pytest.MonkeyPatch) -> None:
    if broken is ZeroesGradients:  # what the optimizer sees is what the module left
        monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: None)
    with pytest.raises(AssertionError, match="at step"):
        thaws_from_the_top(run(broken, "adamw"))


@pytest.mark.parametrize("n_steps", [4, 7, 49, 100])
def test_the_shares_are_equal(n_steps: int) -> None:
    module, counts = attached(Gradual(), tiny("vit")), [0, 0, 0]
    for step in range(n_steps):
        module.step(step / n_steps)
        counts[sum(next(part.parameters()).requires_grad for part in module.parts.values())] += 1
    assert max(counts) - min(counts) <= 1 and sum(counts) == n_steps


def test_bitfit_counts_one_number_per_bias() -> None:
    """Of a tiny vit's block: four of the attention, two layer norms and the outer layer of 16, the inner one of 64."""
    module = attached(BitFit(), tiny("vit"))
    assert sum(p.numel() for p in module.parameters()) == 2 * (4 * 16 + 2 * 16 + 64 + 16)
    names = {key.rpartition(".")[2] for key in module.changes()}
    assert names == {"bias"}


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_ia3_is_pefts_output_to_the_bit_and_its_gradient(family: str) -> None:
    ours, theirs, scales = beside_peft(family, IA3)
    x = samples(ours[1], 3)
    outputs = [ours[0].features(ours[1], x), theirs(x)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for mine, peft, part in scales:
        assert mine.grad is not None and peft.grad is not None
        assert mine.grad.abs().sum() > 0
        fused = family == "gpt2"  # what is cut into slices is summed in another order
        expected = peft.grad.flatten()[part]
        rounding = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(mine.grad, expected, rtol=0, atol=rounding if fused else 0)


class ScalesTheOutput(IA3):
    """The break: l_ff behind the second layer instead of in front of it."""

    def make(self, site: Site) -> nn.Module:
        return nn.ParameterDict({"scale": torch.ones(max(site.in_dim, site.out_dim))})

    def before(self, part: Any, site: Site, x: Tensor) -> Tensor:
        return x

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y * part["scale"][: site.out_dim]


@pytest.mark.slow
def test_ia3_at_another_place_is_found() -> None:
    ours, theirs, _ = beside_peft("bert", ScalesTheOutput)
    x = samples(ours[1], 3)
    assert not torch.allclose(ours[0].features(ours[1], x), theirs(x), atol=1e-3)


Scales = Iterator[tuple[nn.Parameter, nn.Parameter, slice]]


def beside_peft(family: str, make: Callable[[], IA3]) -> tuple[tuple[Isolation, nn.Module], nn.Module, Scales]:
    """Our module with its backbone, HF peft's on a copy, and their scales, which are the same."""
    from peft import IA3Config, inject_adapter_in_model

    backbone = tiny(family).requires_grad_(False)
    paths = {
        "bert": (r"attention\.self\.(key|value)", r"\d+\.output\.dense"),
        "gpt2": (r"attn\.c_attn", r"mlp\.c_proj"),
    }
    attention, outer = paths[family]
    config = IA3Config(target_modules=rf".*({attention}|{outer})", feedforward_modules=rf".*{outer}")
    theirs = inject_adapter_in_model(config, copy.deepcopy(backbone)).eval()
    module = moved(attached(make(), backbone))
    pairs = []
    for site in module.sites:
        mine = module.parts[site.key].get_parameter("scale")
        peft: Any = theirs.get_submodule(site.path)
        pairs.append((mine, peft.ia3_l["default"], site.part))
        pairs[-1][1].data.flatten()[site.part] = mine.data[: site.in_dim if site.role == "mlp.out" else None]
    return (module, backbone), theirs, iter(pairs)


@torch.no_grad()
def test_ia3_is_a_feed_forward_part_and_attention_with_three_vectors() -> None:
    """By hand on an own block: K and V scaled before the heads are split, the inner activation after ReLU or GELU."""
    backbone: Any = tiny("vit").double()
    module = moved(attached(IA3(layers=(0,)), backbone).double())
    l_k, l_v, l_ff = (module.parts[key].get_parameter("scale") for key in ("attn_k-0", "attn_v-0", "mlp_out-0"))
    x = torch.randn(2, 4, 16, dtype=torch.float64, generator=generator("ia3"))
    block = backbone.blocks[0]
    h, attention = block.norm_attention(x), block.attention
    heads = [
        t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (attention.q(h), l_k * attention.k(h), l_v * attention.v(h))
    ]
    y = x + attention.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
    feed_forward = block.feed_forward
    inner = F.gelu(feed_forward.inner(block.norm_feed_forward(y)))
    expected = y + F.linear(l_ff * inner, feed_forward.outer.weight, feed_forward.outer.bias)
    with module.active(backbone):
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


def test_ia3_changes_a_bias_with_its_weight() -> None:
    """Scaling k scales its bias too; scaling the input of a layer does not."""
    backbone = tiny("bert")
    module = moved(attached(IA3(), backbone))
    changes, names = module.changes(), set(module.changes())
    for site in module.sites:
        part, scale = site.key, module.parts[site.key].get_parameter("scale")
        scaled = site.weight * (scale if site.role == "mlp.out" else scale[:, None])
        torch.testing.assert_close(site.weight + changes[f"{part}.weight"], scaled)
        if site.role != "mlp.out":
            torch.testing.assert_close(site.tensors["bias"] + changes[f"{part}.bias"], site.tensors["bias"] * scale)
    assert {"attn_k-0.bias", "attn_v-1.bias", "mlp_out-0.weight"} <= names and "mlp_out-0.bias" not in names


def test_a_linear_probe_is_the_frozen_features_and_a_head() -> None:
    model = isolated(LinearProbe, family="bert")
    train(model, 0)
    x = samples(model.backbone, 3)
    assert torch.equal(model.answer(0, x), model.heads["0"](model.backbone(x)))
    assert all(name.startswith("head.") for name in model.task_tensors(0))


def test_full_stores_a_model_per_task_and_the_others_what_they_train() -> None:
    backbone = tiny("bert")
    whole = sum(p.numel() for p in backbone.parameters())
    block = sum(p.numel() for name, p in backbone.named_parameters() if block_of(name) == 1)
    for make, expected in ((Full, whole), (Selective, block), (Gradual, 2 * block), (LinearProbe, 0)):
        model = isolated(make, family="bert")
        train(model, 0)
        kept = [t for name, t in model.task_tensors(0).items() if name.startswith("module.")]
        assert sum(t.numel() for t in kept) == expected


def test_options_are_strict() -> None:
    assert arguments(Plugin("isolation", "selective", Selective), {"blocks": 2}) == {"blocks": 2}
    with pytest.raises(ValueError, match="greater than 0"):
        arguments(Plugin("isolation", "selective", Selective), {"blocks": 0})
