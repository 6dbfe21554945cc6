"""Ladder side-tuning: the formula by hand, its size, and a backward pass that never enters the backbone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab import torchvision_ops
from forgetlab.avalanche.tensor_data import Source
from forgetlab.backbones.encoders import TextEncoder
from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples, tiny
from forgetlab.costs.training_step import measure
from forgetlab.isolation.frozen_features import FrozenWork
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins.options import OptionError
from forgetlab.strategies.isolation.modules.adapters.ladder import Ladder
from forgetlab.strategies.isolation.modules.low_rank.lora import LoRA
from helpers.modules import attached


def side_block(block: Any, h: Tensor) -> Tensor:
    """One sample's layer with one head, written out. (T, w) -> (T, w)"""
    w = h.shape[1]
    q, k, v = (F.layer_norm(h, (w,), block.first.weight, block.first.bias) @ block.qkv.weight.T + block.qkv.bias).split(
        w, dim=1
    )
    h = h + (q @ k.T / w**0.5).softmax(1) @ v @ block.out.weight.T + block.out.bias
    inner, _, outer = block.feed_forward
    normed = F.layer_norm(h, (w,), block.second.weight, block.second.bias)
    return h + F.gelu(normed @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias


@torch.no_grad()
def test_it_is_the_formula_over_the_real_tokens() -> None:
    """With padding taken out by hand, and pooled as the backbone pools."""
    backbone: Any = tiny("bert").double()
    ids = samples(backbone, 0)
    module = attached(Ladder(reduction=4), backbone, spread=0.3).double()
    for site in module.sites:
        site_part = module.parts[site.key]
        assert [block.heads for block in site_part.blocks] == [2, 2]
        for block in site_part.blocks:
            block.heads = 1  # the hand's
    found = module.features(backbone, ids)
    (part,) = module.parts.values()
    for row, expected in zip(ids, found, strict=True):
        real = row[row != backbone.padding].unsqueeze(0)
        states = backbone.encoder(real, output_hidden_states=True).hidden_states
        h = states[0][0] @ part.down[0].weight.T
        for i, block in enumerate(part.blocks):
            g = torch.sigmoid(part.gates[i] / 0.1)
            h = side_block(block, g * h + (1 - g) * states[i + 1][0] @ part.down[i + 1].weight.T)
        torch.testing.assert_close((h @ part.up.weight.T).mean(0), expected, rtol=0, atol=1e-9)


def test_a_gate_starts_half_open_and_chosen_layers_have_rungs_alone() -> None:
    backbone = tiny("vit")
    module = Ladder(layers=(-1,))
    module.attach(backbone)
    (part,) = module.parts.values()
    assert module.rungs == [1] and torch.equal(part.get_parameter("gates"), torch.zeros(1))
    for wrong in ((2,), (), (0, -2)):
        with pytest.raises(OptionError) as refused:
            Ladder(layers=wrong).attach(backbone)
        assert refused.value.option == "layers"


def minilm_sized() -> TextEncoder:
    torchvision_ops.ensure()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=100,  # the embedding costs no arithmetic
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    return TextEncoder(BertModel(config, add_pooling_layer=False), "tiny").eval()


@pytest.mark.slow
def test_at_minilms_size_it_has_the_counted_parameters_and_hardly_a_backward_pass() -> None:
    backbone, ids = minilm_sized(), torch.ones(4, 64, dtype=torch.int64)

    def cost(module: Isolation) -> Any:
        network = IsolatedNetwork(backbone, lambda: module, task_known=True)
        network.open(0, [0, 1, 2, 3])
        network.train()
        task, y = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
        trained = [p for p in network.parameters() if p.requires_grad]
        spent = measure(lambda: F.cross_entropy(network(ids, task), y), trained, network)
        return sum(p.numel() for p in trained), spent.flops_backward / spent.flops_forward

    trainable, ratio = cost(Ladder())
    assert trainable == 318_634  # with a head of 1,540
    assert ratio < 0.1
    assert cost(LoRA())[1] > 0.9  # what goes through the backbone instead


def test_no_gradient_enters_the_backbone() -> None:
    backbone = tiny("vit").requires_grad_(True)  # even where it could
    module = attached(Ladder(), backbone, spread=0.3)
    module.features(backbone, samples(backbone, 0)).sum().backward()
    within = [name for name, p in backbone.named_parameters() if p.grad is not None]
    assert {name.split(".")[0] for name in within} == {"norm"}  # what comes after the last block
    assert all(p.grad is not None for p in module.parameters())


def test_cached_states_train_it_just_as_well() -> None:
    gradients: list[list[Tensor]] = []
    for kept in (False, True):
        network = IsolatedNetwork(tiny("bert"), Ladder, task_known=True)
        (batch,) = isolation.start(network, 0)
        network.train()
        if kept:
            network.work = FrozenWork(network.backbone)
            network.look(Source.all(batch.x))
        isolation.loss(network, batch).backward()
        gradients.append([p.grad.clone() for p in network.module_of(0).parameters() if p.grad is not None])
    for live, cached in zip(*gradients, strict=True):
        torch.testing.assert_close(cached, live, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_padding_is_seen_by_no_real_token() -> None:
    backbone: Any = tiny("bert")
    module, ids = attached(Ladder(reduction=2), backbone, spread=0.3), samples(tiny("bert"), 0)
    other = copy.deepcopy(module)
    longer = F.pad(ids, (0, 3), value=backbone.padding)
    torch.testing.assert_close(module.features(backbone, longer), module.features(backbone, ids), rtol=0, atol=1e-4)
    other.side = lambda taps, real: Ladder.side(other, taps, None)  # the break: the mask is not used
    assert (other.features(backbone, longer) - other.features(backbone, ids)).abs().max() > 1e-2
