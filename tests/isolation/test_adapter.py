"""Adapters: the paper's formula, place, start and size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.layers import Block
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.sites import Site
from forgetlab.backbones.vit import ViT
from forgetlab.checks import isolation
from forgetlab.isolation.module import Isolation
from forgetlab.metrics.accuracy_matrix import forgetting, learning_accuracy
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.adapters.adapter import Adapter, Bottleneck
from helpers import runs
from helpers.modules import attached, features

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT((1, 8, 8), width=16, depth=2, heads=2).eval()


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP((1, 8, 8), hidden=(16, 12)).eval()


def started_large(module: Isolation) -> Isolation:
    """Its weights as training might leave them, so that a wrong formula shows."""
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module


def on_both_backbones() -> list[tuple[nn.Module, Isolation]]:
    return [
        (vit(), attached(Adapter(bottleneck=3), vit())),
        (mlp(), attached(Adapter(bottleneck=3, sites=("mlp.in",)), mlp())),
    ]


def test_it_attaches_after_both_parts_of_a_layer_and_to_an_mlps_layers() -> None:
    (_, on_vit), (_, on_mlp) = on_both_backbones()
    per_layer = [(role, layer) for layer in range(2) for role in ("attn.out", "mlp.out")]
    assert [(site.role, site.layer) for site in on_vit.sites] == per_layer
    assert [(site.role, site.out_dim) for site in on_mlp.sites] == [("mlp.in", 16), ("mlp.in", 12)]


def test_with_a_zero_up_projection_it_is_the_bare_backbone_to_the_bit() -> None:
    for backbone, module in on_both_backbones():
        for name, weight in started_large(module).named_parameters():
            if ".up." in name:
                nn.init.zeros_(weight)
        with torch.no_grad():
            assert torch.equal(features(module, backbone, IMAGES), backbone(IMAGES))


def test_each_site_costs_2md_and_d_and_m() -> None:
    for _, module in on_both_backbones():
        m, widths = 3, [site.out_dim for site in module.sites]
        assert sum(p.numel() for p in module.parameters()) == sum(2 * m * d + d + m for d in widths)
        assert module.delta(module.parts[module.sites[0].key], module.sites[0]) is None  # not linear: no merging


def by_hand(h: Tensor, part: Bottleneck) -> Tensor:
    """a(h) with GELU written out as in the authors' code."""
    inner = h @ part.down.weight.T + part.down.bias
    inner = inner * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    return h + inner @ part.up.weight.T + part.up.bias


def part_of(module: Isolation, path: str) -> Bottleneck:
    part = module.parts[next(site.key for site in module.sites if site.path == path)]
    assert isinstance(part, Bottleneck)
    return part


@torch.no_grad()
def test_it_sits_before_the_residual_sum_of_each_half_of_a_layer() -> None:
    backbone = vit().double()
    module = started_large(attached(Adapter(bottleneck=3), backbone)).double()
    images = IMAGES.double()
    x = backbone.positions(backbone.embed(F.unfold(images, 4, stride=4).transpose(1, 2)))
    for i, block in enumerate(backbone.blocks):
        assert isinstance(block, Block)
        attention, feed_forward = (
            part_of(module, f"blocks.{i}.{path}") for path in ("attention.out", "feed_forward.outer")
        )
        x = x + by_hand(block.attention(block.norm_attention(x)), attention)
        x = x + by_hand(block.feed_forward(block.norm_feed_forward(x)), feed_forward)
    expected = backbone.norm(x).mean(1)
    torch.testing.assert_close(features(module, backbone, images), expected, rtol=0, atol=1e-12)


def test_an_adapter_after_the_residual_sum_is_another_function() -> None:
    """The break: the same part, attached to the stream instead of to what is added to it."""
    backbone = vit()
    inside = attached(Adapter(bottleneck=3, sites=("mlp.out",)), backbone)
    outside = attached(Adapter(bottleneck=3, sites=("block",)), backbone)  # type: ignore[arg-type]
    for a, b in zip(started_large(inside).parameters(), outside.parameters(), strict=True):
        b.data = a.data
    assert (features(inside, backbone, IMAGES) - features(outside, backbone, IMAGES)).abs().max() > 1e-2


def test_the_gelu_is_the_authors_and_not_torchs_default() -> None:
    torch.manual_seed(0)
    part, h = Bottleneck(8, 4).double(), torch.randn(5, 8, dtype=torch.float64)
    for weight in part.parameters():
        nn.init.normal_(weight)
    torch.testing.assert_close(h + part(h), by_hand(h, part), rtol=0, atol=1e-12)
    assert (part.up(F.gelu(part.down(h))) - part(h)).abs().max() > 1e-5


def test_it_starts_near_the_identity_within_two_deviations() -> None:
    torch.manual_seed(0)
    part = Bottleneck(256, 64)
    for layer in (part.down, part.up):
        assert layer.weight.abs().max() <= 2e-3
        assert layer.weight.std().item() == pytest.approx(1e-3 * math.sqrt(0.774), rel=0.02)  # of a normal cut at 2
        assert not layer.bias.any()
    uncut = nn.init.trunc_normal_(torch.empty(256, 64), std=1e-3)  # torch's own bounds are -2 and 2, whatever the std
    assert uncut.abs().max() > 2e-3


class CalledIdentity(Adapter):
    """The break: near the identity, and called the identity."""

    identity_at_birth = True


class StartsAsIdentity(Adapter):
    """The break: an exact identity that is not called one."""

    def make(self, site: Site) -> nn.Module:
        part = Bottleneck(site.out_dim, 4)
        nn.init.zeros_(part.up.weight)
        return part


@pytest.mark.slow
@pytest.mark.parametrize("broken", [CalledIdentity, StartsAsIdentity])
def test_near_the_identity_is_not_the_identity(broken: type[Adapter]) -> None:
    for backbone, module in on_both_backbones():
        gap = (features(module, backbone, IMAGES) - backbone(IMAGES)).abs().max()
        assert 0 < gap < 1e-3
    with pytest.raises(AssertionError, match="identity_at_birth"):
        isolation.untrained_is_base(Plugin("isolation", "broken", broken))


@pytest.mark.slow
def test_a_run_on_digits_learns_each_task_and_stores_what_it_says(tmp_path: Path) -> None:
    _, result, stored = runs.isolated(tmp_path, "isolation: {name: adapter, bottleneck: 8}")
    assert forgetting(result.accuracy) == 0.0
    assert (learning_accuracy(result.accuracy) or 0) > 0.8  # chance is 0.5
    module, head = 2 * (2 * 8 * 16 + 16 + 8), 2 * 16 + 2
    assert result.counts["per_task"]["trainable"] == [module + head] * 5
    assert [sum(t.numel() for t in tensors.values()) for tensors in stored] == [module + head] * 5
