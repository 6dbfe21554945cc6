"""MAD-X: the formula, a shared part that the first task trains alone, and a coupling that can be undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.layers import Block
from forgetlab.backbones.vit import ViT
from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples, tiny
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.adapters.mad_x import MADX
from helpers.networks import isolated


def bottleneck(part: Any, h: Tensor) -> Tensor:
    return (h @ part[0].weight.T + part[0].bias).clamp(min=0) @ part[2].weight.T + part[2].bias


def large(module: MADX) -> Any:
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.3)
    return module


@torch.no_grad()
def test_it_is_the_formula_on_the_embeddings_and_after_the_feed_forward() -> None:
    backbone, images, module = tiny("vit").double(), samples(tiny("vit"), 0).double(), MADX()
    assert isinstance(backbone, ViT)
    module.attach(backbone)
    parts = large(module).double().parts
    h = backbone.positions(backbone.embed(F.unfold(images, 4, stride=4).transpose(1, 2)))
    e1, e2 = h[..., :8], h[..., 8:]
    o1 = e1 + bottleneck(parts["embed-0"].shared_f, e2)
    h = torch.cat([o1, e2 + bottleneck(parts["embed-0"].shared_g, o1)], dim=-1)
    for i, block in enumerate(backbone.blocks):
        assert isinstance(block, Block)
        h = h + block.attention(block.norm_attention(h))
        left, part = block.feed_forward(block.norm_feed_forward(h)), parts[f"mlp_out-{i}"]
        h = h + left + bottleneck(part.own, left + bottleneck(part.shared, left))
    expected = backbone.norm(h).mean(1)
    torch.testing.assert_close(module.features(backbone, images), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_coupling_can_be_undone() -> None:
    module = MADX()
    module.attach(tiny("vit").double())
    site, part = module.sites[0], large(module).double().parts["embed-0"]
    assert site.role == "embed"
    e = torch.randn(3, 4, 16, dtype=torch.float64)
    o1, o2 = module.after(part, site, e, e).tensor_split(2, dim=-1)
    e2 = o2 - bottleneck(part.shared_g, o1)
    e1 = o1 - bottleneck(part.shared_f, e2)
    torch.testing.assert_close(torch.cat([e1, e2], dim=-1), e, rtol=0, atol=1e-12)


def test_the_first_task_trains_the_shared_part_and_no_later_one_does() -> None:
    model = isolated(MADX)
    isolation.start(model, 0)
    before = {name: p.detach().clone() for name, p in model.module_of(0).parts.named_parameters()}
    model = isolated(MADX, tasks=1)
    shared = {name: tensor.clone() for name, tensor in model.shared.items()}
    assert shared and all(".shared" in name for name in shared)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in shared.items())
    for task in (1, 2):
        isolation.train(model, task)
        own = {name for name, _ in model.module_of(task).parts.named_parameters()}
        assert own and all(".own." in name for name in own)  # nothing else is trained
    assert all(torch.equal(model.shared[name], tensor) for name, tensor in shared.items())


def test_the_shared_part_is_stored_once_and_no_tasks_own() -> None:
    model = isolated(MADX, tasks=2)
    for task in range(2):
        assert not [name for name in model.task_tensors(task) if ".shared" in name]
    d, stored = 16, sum(tensor.numel() for tensor in model.shared.values())
    adapters = 2 * (d * d // 2 * 2 + d // 2 + d)
    coupling = 2 * (8 * 4 * 2 + 4 + 8)
    assert stored == adapters + coupling


class KeepsTraining(MADX):
    """The break: later tasks go on with the shared part, which earlier ones still use."""

    def recall(self, previous: Any, shared: Any) -> None:
        for name, parameter in self.parts.named_parameters():
            if name in shared:
                parameter.data = shared[name]

    def end(self, data: Any, previous: Any, shared: Any, backbone: nn.Module) -> None:
        shared.update({name: p.data for name, p in self.parts.named_parameters() if ".shared" in name})


def test_a_shared_part_that_goes_on_learning_is_found() -> None:
    with pytest.raises(AssertionError, match="moved an earlier one's"):
        isolation.old_answers_stay(Plugin("isolation", "broken", KeepsTraining))


def test_without_the_coupling_nothing_happens_below_the_first_feed_forward() -> None:
    module = MADX(invertible=False, layers=(-1,))
    module.attach(tiny("vit"))
    assert [(site.role, site.layer) for site in module.sites] == [("mlp.out", 1)]
    assert module.lowest() == 1 and copy.deepcopy(module).lowest() == 1
