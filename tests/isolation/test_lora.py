"""LoRA: peft's on the same weights, slices of a fused layer by hand, and the two variants' scale and start."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.backbones.sites import Site
from forgetlab.checks import isolation, promises
from forgetlab.checks.backbones import samples, tiny
from forgetlab.checks.check import Check
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.low_rank.lora import LoRA

RANK, ALPHA = 4, 6.0
PEFTS = {"attn.q": "query", "attn.v": "value"}


def attached(backbone: nn.Module, factory: type[LoRA] = LoRA, trained: bool = True, **options: Any) -> LoRA:
    """A module with B as training might leave it, unless it is to start afresh."""
    torch.manual_seed(1)
    module = factory(**{"rank": RANK, "alpha": ALPHA, **options})
    module.attach(backbone)
    for name, weight in module.named_parameters():
        if trained and name.endswith("B"):
            nn.init.normal_(weight, std=0.3)
    return module


def peft_lora(backbone: nn.Module, **options: Any) -> nn.Module:
    """A copy of a TextEncoder with peft's LoRA on the queries and values of its BERT."""
    from peft import LoraConfig, inject_adapter_in_model

    theirs: Any = copy.deepcopy(backbone)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(PEFTS.values()), **options)  # type: ignore[arg-type]
    inject_adapter_in_model(config, theirs.encoder)
    return theirs.eval()


def factors(theirs: nn.Module, site: Site) -> tuple[nn.Parameter, nn.Parameter]:
    layer: Any = theirs.get_submodule(site.path)
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def gaps(module: LoRA, backbone: nn.Module, theirs: nn.Module) -> tuple[float, float]:
    """How far features and the gradients of A and B are from peft's, at most."""
    for site in module.sites:
        for ours, factor in zip(("A", "B"), factors(theirs, site), strict=True):
            factor.data.copy_(module.parts[site.key].get_parameter(ours).data)
    x = samples(backbone, seed=3)
    found, expected = module.features(backbone, x), theirs(x)
    found.square().sum().backward()
    expected.square().sum().backward()
    pairs = [
        (module.parts[site.key].get_parameter(name).grad, factor.grad)
        for site in module.sites
        for name, factor in zip(("A", "B"), factors(theirs, site), strict=True)
    ]
    return difference(found, expected), max(difference(ours, other) for ours, other in pairs)


def difference(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None and other is not None
    return (one - other).abs().max().item()


@pytest.mark.parametrize("rslora", [False, True])
def test_it_is_pefts_to_the_bit(rslora: bool) -> None:
    backbone = tiny("bert")
    module = attached(backbone, scaling="rslora" if rslora else "standard")
    assert gaps(module, backbone, peft_lora(backbone, use_rslora=rslora)) == (0.0, 0.0)


def test_a_wrong_scale_is_seen() -> None:
    """The break: alpha / sqrt(r) where alpha / r is meant."""
    backbone = tiny("bert")
    output, gradient = gaps(attached(backbone, scaling="rslora"), backbone, peft_lora(backbone))
    assert output > 1e-2 and gradient > 1e-2


def test_pissa_starts_where_pefts_does_and_goes_on_alike() -> None:
    """Not to the bit: theirs computes (W0 - s B0 A0) x, ours W0 x - s B0 A0 x."""
    backbone = tiny("bert")
    module, theirs = attached(backbone, trained=False, start="pissa"), peft_lora(backbone, init_lora_weights="pissa")
    for site in module.sites:
        part = module.parts[site.key]
        for name, factor in zip(("A", "B"), factors(theirs, site), strict=True):
            torch.testing.assert_close(part.get_parameter(name), factor, rtol=0, atol=1e-6)
            part.get_parameter(name).data.add_(0.1)
    output, gradient = gaps(module, backbone, theirs)
    assert output < 5e-6 and gradient < 1e-4  # of 3 and 28


@torch.no_grad()
def test_pissa_starts_from_the_best_approximation_and_changes_nothing_at_birth() -> None:
    backbone = tiny("vit")
    module = attached(backbone, trained=False, start="pissa")
    x = samples(backbone, seed=3)
    assert torch.equal(module.features(backbone, x), backbone(x))
    assert {name.rsplit(".", 1)[1] for name in module.state_dict()} == {"A", "B"}  # the start is not stored
    for site in module.sites:
        part = module.parts[site.key]
        assert not module.delta(part, site).any()
        product = ALPHA / RANK * part.get_parameter("B") @ part.get_parameter("A")
        tail = torch.linalg.svdvals(site.weight)[RANK:].square().sum()
        torch.testing.assert_close((site.weight - product).square().sum(), tail)


def test_pissa_has_no_more_directions_than_the_weight() -> None:
    with pytest.raises(OptionError, match="16 singular vectors") as refused:
        attached(tiny("vit"), rank=17, start="pissa")
    assert refused.value.option == "rank"


@torch.no_grad()
def test_a_fused_layer_gets_its_change_in_the_slices_named() -> None:
    """The merged form of the authors' code: rows of q and v of the fused weight change, those of k do not."""
    backbone = tiny("gpt2").double()
    module = attached(backbone).double()
    by_hand = copy.deepcopy(backbone)
    width = module.sites[0].in_dim
    for site in module.sites:
        part, third = module.parts[site.key], {"attn.q": 0, "attn.v": 2}[site.role]
        columns = slice(third * width, (third + 1) * width)
        change = ALPHA / RANK * part.get_parameter("B") @ part.get_parameter("A")
        by_hand.get_submodule(site.path).get_parameter("weight")[:, columns] += change.T  # stored (in, 3 out)
    x = samples(backbone, seed=3)
    torch.testing.assert_close(module.features(backbone, x), by_hand(x), rtol=0, atol=1e-10)
    assert difference(by_hand(x), backbone(x)) > 1e-2


def test_the_keys_of_a_fused_layer_are_left_as_they_are() -> None:
    backbone = tiny("gpt2")
    module = attached(backbone)
    layer, width = backbone.get_submodule(module.sites[0].path), module.sites[0].in_dim
    x = torch.randn(2, 3, width)
    with torch.no_grad(), module.active(backbone):
        inside = layer(x)
    bare = layer(x)
    assert torch.equal(inside[..., width : 2 * width], bare[..., width : 2 * width])
    assert not torch.isclose(inside[..., :width], bare[..., :width]).all()


def test_the_change_has_the_rank_and_grows_with_alpha() -> None:
    backbone = tiny("vit")
    for site in (module := attached(backbone)).sites:
        change = module.delta(module.parts[site.key], site)
        assert torch.linalg.matrix_rank(change) == RANK
        twice = attached(backbone, alpha=2 * ALPHA)
        torch.testing.assert_close(twice.delta(twice.parts[site.key], site), 2 * change)


def test_starts_are_those_of_the_code_and_of_the_paper() -> None:
    torch.manual_seed(0)
    site = attached(tiny("vit")).sites[0]
    wide = Site(site.role, 0, 1, "", 4096, 4, 1, {"weight": torch.zeros(4, 4096)})
    for start, deviation in (("kaiming", (3 * 4096) ** -0.5), ("gaussian", 1 / RANK)):
        part = LoRA(RANK, start=start).make(wide)  # type: ignore[arg-type]
        assert part.get_parameter("A").std().item() == pytest.approx(deviation, rel=0.03)
        assert not part.get_parameter("B").any()


def test_dropout_draws_in_training_alone() -> None:
    backbone = tiny("vit")
    module, x = attached(backbone, dropout=0.5), samples(backbone, seed=3)
    assert module.draws and not attached(backbone).draws
    assert not torch.equal(module.features(backbone, x), module.features(backbone, x))
    assert torch.equal(module.eval().features(backbone, x), attached(backbone).features(backbone, x))


def test_it_attaches_to_the_layers_named() -> None:
    module = attached(tiny("vit"), layers=(-1,))
    assert [(site.role, site.layer) for site in module.sites] == [("attn.q", 1), ("attn.v", 1)]


def pissa(rank: int = RANK, sites: tuple[Any, ...] = ("attn.q", "attn.v")) -> LoRA:
    return LoRA(rank, start="pissa", sites=sites)


@pytest.mark.slow
@pytest.mark.parametrize("check", promises.CHECKS["isolation"])
def test_pissa_keeps_the_promises_too(check: Check) -> None:
    check(Plugin("isolation", "pissa", pissa))


class KeepsTheStart(LoRA):
    """The break: the start is not taken off."""

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        part.A0.zero_()
        return super().after(part, site, x, y)


def test_a_start_that_stays_is_found() -> None:
    def broken(sites: tuple[Any, ...] = ("attn.q", "attn.v")) -> LoRA:
        return KeepsTheStart(RANK, start="pissa", sites=sites)

    with pytest.raises(AssertionError, match="identity_at_birth"):
        isolation.untrained_is_base(Plugin("isolation", "broken", broken))
