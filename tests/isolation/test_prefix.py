"""Prefixes: attention written out by hand, what is and is not the identity, and what is left after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.layers import Attention, Block, Positions
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.sites import Site
from forgetlab.backbones.vit import ViT
from forgetlab.checks import isolation, promises
from forgetlab.checks.backbones import FAMILIES, tiny
from forgetlab.checks.check import Check
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.metrics.accuracy_matrix import forgetting, learning_accuracy
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.prompts.prefix import Prefix
from helpers import runs
from helpers.modules import features

LENGTH, WIDTH, DEPTH, HEADS, HIDDEN = 3, 16, 2, 2, 24
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT((1, 8, 8), width=WIDTH, depth=DEPTH, heads=HEADS).eval()


def attached(backbone: nn.Module, reparameterization: Any = "mlp", length: int = LENGTH) -> Prefix:
    torch.manual_seed(1)
    module = Prefix(length, reparameterization, HIDDEN)
    module.attach(backbone)
    return module


def prefixes(module: Prefix) -> list[Tensor]:
    """P_K and P_V of each layer. (2, heads, length, head_dim) each"""
    return [module.prefix(module.parts[site.key], site).detach() for site in module.sites]


def softmax_mean(scores: Tensor, values: Tensor) -> Tensor:
    """softmax(scores) values, written out. (T, S), (S, d) -> (T, d)"""
    weights = scores.exp()
    return weights @ values / weights.sum(1, keepdim=True)


def heads_of(attention: Attention, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each head's queries, keys and values of one sample. (T, d) -> (T, d / heads) each"""
    projected = [x @ p.weight.T + p.bias for p in (attention.q, attention.k, attention.v)]
    columns = torch.arange(WIDTH).chunk(HEADS)
    return [(q, k, v) for q, k, v in ([p[:, some] for p in projected] for some in columns)]


def attention_by_hand(attention: Attention, x: Tensor, prefix: Tensor | None, bias: float = 0.0) -> Tensor:
    """Attention to the prefix and the tokens of one sample; ``bias`` is added to the prefix's scores. (T, d)"""
    found = []
    for head, (q, k, v) in enumerate(heads_of(attention, x)):
        scores = q @ k.T / math.sqrt(WIDTH / HEADS)
        if prefix is not None:
            scores = torch.cat([q @ prefix[0, head].T / math.sqrt(WIDTH / HEADS) + bias, scores], dim=1)
            v = torch.cat([prefix[1, head], v])
        found.append(softmax_mean(scores, v))
    return torch.cat(found, dim=1) @ attention.out.weight.T + attention.out.bias


def vit_by_hand(backbone: ViT, images: Tensor, given: Sequence[Tensor | None], bias: float = 0.0) -> Tensor:
    """The backbone with these prefixes; the tokens keep the positions 0 to T - 1. (B, width)"""
    found = []
    for patches in F.unfold(images, 4, stride=4).transpose(1, 2):
        x = patches @ backbone.embed.weight.T + backbone.embed.bias + backbone.positions.weight
        for block, prefix in zip(backbone.blocks, given, strict=True):
            assert isinstance(block, Block)
            x = x + attention_by_hand(block.attention, block.norm_attention(x), prefix, bias)
            x = x + block.feed_forward(block.norm_feed_forward(x))
        found.append(backbone.norm(x).mean(0))
    return torch.stack(found)


@torch.no_grad()
def equals_attention_by_hand(reparameterization: str) -> None:
    backbone, images = vit().double(), IMAGES.double()
    module = attached(backbone, reparameterization).double()
    expected = vit_by_hand(backbone, images, prefixes(module))
    torch.testing.assert_close(features(module, backbone, images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reparameterization", ["flat", "mlp"])
def test_it_is_attention_to_the_prefix_and_the_tokens(reparameterization: str) -> None:
    equals_attention_by_hand(reparameterization)


def test_positions_that_shift_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The break: the tokens' positions are counted on from the prefix, as where it goes in as keys of the past."""
    monkeypatch.setattr(Positions, "forward", lambda self, x: x + self.weight.roll(-LENGTH, 0))
    with pytest.raises(AssertionError, match="not close"):
        equals_attention_by_hand("flat")


def test_the_tokens_own_keys_and_values_are_left_as_they_are() -> None:
    module = attached(vit())
    site = module.sites[0]
    k, v = torch.randn(2, 5, HEADS, 4, WIDTH // HEADS)
    longer = module.keys_values(module.parts[site.key], site, k, v)
    for old, new, prefix in zip((k, v), longer, prefixes(module)[0], strict=True):
        assert torch.equal(new[:, :, LENGTH:], old)
        assert torch.equal(new[:, :, :LENGTH], prefix.expand(5, -1, -1, -1))


@torch.no_grad()
def test_it_is_a_gate_between_attention_and_the_prefix() -> None:
    """Attn' = (1 - l) Attn(Q, K, V) + l softmax(Q P_K^T) P_V: equation 7 of https://arxiv.org/abs/2110.04366."""
    backbone = vit().double()
    module = attached(backbone).double()
    attention, x = backbone.get_submodule("blocks.0.attention"), torch.randn(1, 4, WIDTH, dtype=torch.float64)
    assert isinstance(attention, Attention)
    with module.active(backbone):
        found = attention(x)[0]
    gated = []
    for (q, k, v), p_k, p_v in zip(heads_of(attention, x[0]), *prefixes(module)[0], strict=True):
        own, given = (q @ keys.T / math.sqrt(WIDTH / HEADS) for keys in (k, p_k))
        gate = given.exp().sum(1, keepdim=True) / (given.exp().sum(1, keepdim=True) + own.exp().sum(1, keepdim=True))
        gated.append((1 - gate) * softmax_mean(own, v) + gate * softmax_mean(given, p_v))
    expected = torch.cat(gated, dim=1) @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_prefix_of_length_0_is_the_identity_and_so_is_a_masked_one() -> None:
    backbone, images = vit().double(), IMAGES.double()
    none = attached(backbone, "flat", length=0)
    assert torch.equal(features(none, backbone, images), backbone(images))
    masked = vit_by_hand(backbone, images, prefixes(attached(backbone).double()), bias=-math.inf)
    torch.testing.assert_close(masked, backbone(images), rtol=0, atol=1e-12)


class CalledIdentity(Prefix):
    """The break: a prefix of zeros, called the identity."""

    identity_at_birth = True

    def make(self, site: Site) -> nn.Module:
        part = super().make(site)
        for weight in part.parameters():
            nn.init.zeros_(weight)
        return part


def test_a_prefix_of_zeros_is_not_the_identity() -> None:
    backbone, module = vit(), attached(vit(), "flat")
    for weight in module.parameters():
        nn.init.zeros_(weight)
    assert (features(module, backbone, IMAGES) - backbone(IMAGES)).abs().max() > 1e-2
    with pytest.raises(AssertionError, match="identity_at_birth"):
        isolation.untrained_is_base(Plugin("isolation", "broken", CalledIdentity))


def test_the_mlp_is_the_authors_with_its_last_layer_cut_by_layer() -> None:
    """Theirs: one last layer for all layers, viewed as (length, layers * 2, heads, head_dim)."""
    module = attached(vit())
    assert isinstance(module.trunk, nn.Sequential)
    parts = [module.parts[site.key] for site in module.sites]
    weight, bias = (torch.cat([part.get_parameter(name).data for part in parts]) for name in ("weight", "bias"))
    rows = F.linear(module.trunk(torch.arange(LENGTH)), weight, bias)
    theirs = rows.view(LENGTH, DEPTH * 2, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3).split(2)
    for ours, expected in zip(prefixes(module), theirs, strict=True):
        torch.testing.assert_close(ours, expected)
    assert [type(layer) for layer in module.trunk] == [nn.Embedding, nn.Linear, nn.Tanh]


def flat_prefix(length: PositiveInt = LENGTH) -> Prefix:
    return Prefix(length, "flat")


@pytest.mark.slow
@pytest.mark.parametrize("check", promises.CHECKS["isolation"])
def test_a_flat_prefix_keeps_the_promises_too(check: Check) -> None:
    check(Plugin("isolation", "flat", flat_prefix))


def test_it_fits_what_has_attention() -> None:
    for name in FAMILIES.keys() - {"mlp"}:
        module = Prefix()
        module.attach(tiny(name))
        assert [site.role for site in module.sites] == ["attn.kv"] * 2
    with pytest.raises(OptionError, match=r"no 'attn\.kv'") as refused:
        Prefix().attach(MLP((1, 8, 8), hidden=(16,)))
    assert refused.value.option == "sites"


def trained(factory: type[Prefix] = Prefix) -> IsolatedNetwork:
    """A network with one trained task, its training not ended."""
    network = IsolatedNetwork(vit(), lambda: factory(LENGTH, "mlp", HIDDEN))
    (batch,) = isolation.start(network, 0)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        isolation.loss(network.train(), batch).backward()
        optimizer.step()
    return network.eval()


def test_the_prefix_left_after_training_answers_as_the_mlp_did_to_the_bit() -> None:
    network = trained()
    module, before = network.module_of(0), network.answer(0, IMAGES)
    module.materialise()
    assert torch.equal(network.answer(0, IMAGES), before)
    flat = attached(network.backbone, "flat")
    flat.load_state_dict(module.state_dict())  # nothing tells it from one that was flat all along
    with flat.active(network.backbone):
        assert torch.equal(network.heads["0"](network.backbone(IMAGES)), before)


def stores_the_prefix_alone(network: IsolatedNetwork) -> None:
    """2 * depth * length * width numbers of four bytes, nothing of the MLP."""
    network.module_of(0).materialise()
    stored = {name: t for name, t in network.task_tensors(0).items() if name.startswith("module.")}
    assert len(stored) == DEPTH
    assert sum(t.numel() * t.element_size() for t in stored.values()) == 4 * 2 * DEPTH * LENGTH * WIDTH


class KeepsTheMLP(Prefix):
    """The break: what only training needs is stored with the task."""

    def materialise(self) -> None:
        pass


class ForgetsTheMLP(Prefix):
    """The break: what is left is not what was trained."""

    def materialise(self) -> None:
        self.reparameterization, self.trunk = "flat", None
        self.parts = nn.ModuleDict({site.key: self.make(site) for site in self.sites})


def test_only_the_prefix_is_stored() -> None:
    stores_the_prefix_alone(trained())
    with pytest.raises(AssertionError):
        stores_the_prefix_alone(trained(KeepsTheMLP))


def test_a_prefix_that_is_not_the_trained_one_is_found() -> None:
    stores_the_prefix_alone(trained(ForgetsTheMLP))
    with pytest.raises(AssertionError, match="answers otherwise"):
        isolation.materialised_answers_alike(Plugin("isolation", "broken", ForgetsTheMLP))


@pytest.mark.slow
@pytest.mark.parametrize("reparameterization", ["flat", "mlp"])
def test_a_run_on_digits_learns_each_task_and_keeps_the_prefix_alone(tmp_path: Path, reparameterization: str) -> None:
    entry = f"isolation: {{name: prefix, reparameterization: {reparameterization}}}"
    _, result, stored = runs.isolated(tmp_path, entry)
    assert forgetting(result.accuracy) == 0.0
    assert (learning_accuracy(result.accuracy) or 0) > 0.8  # chance is 0.5
    flat, head = 2 * 10 * 16, 2 * 16 + 2
    mlp = 10 * 16 + 16 * 512 + 512 + 512 * 2 * 16 + 2 * 16
    assert result.counts["per_task"]["trainable"] == [(mlp if reparameterization == "mlp" else flat) + head] * 5
    assert [sum(t.numel() for t in tensors.values()) for tensors in stored] == [flat + head] * 5
    backbone = result.counts["total"]["parameters"] - 5 * (flat + head)
    assert backbone == sum(p.numel() for p in ViT((1, 8, 8), width=16, depth=1).parameters())
