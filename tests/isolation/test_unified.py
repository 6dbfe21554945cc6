"""The unified view of He et al. by hand: what is read, where it is added, what it starts as, and what it leaves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.backbones.layers import Block
from forgetlab.backbones.sites import Site
from forgetlab.backbones.vit import ViT
from forgetlab.checks.backbones import samples, tiny
from forgetlab.strategies.isolation.modules.adapters.pfeiffer import Pfeiffer
from forgetlab.strategies.isolation.modules.adapters.unified import Unified
from helpers.modules import attached, features

WIDTH = 16


def change(module: Unified, role: str, layer: int, x: Tensor) -> Tensor:
    """s f(x W_down + b1) W_up + b2, written out."""
    part: Any = module.parts[f"{role}-{layer}"]
    inner = x @ part[0].weight.T + part[0].bias
    inner = inner if module.form == "linear" else inner.clamp(min=0)
    return part.scale * (inner @ part[2].weight.T + part[2].bias)


def vit_by_hand(backbone: ViT, module: Unified, images: Tensor, insertion: str, place: str) -> Tensor:
    h = backbone.positions(backbone.embed(F.unfold(images, 4, stride=4).transpose(1, 2)))
    for i, block in enumerate(backbone.blocks):
        assert isinstance(block, Block)
        parts = (("attn", block.norm_attention, block.attention), ("ffn", block.norm_feed_forward, block.feed_forward))
        for name, norm, part in parts:
            entered = norm(h)
            left = part(entered)
            if name == place:
                role = "attn_out" if place == "attn" else "mlp_out"
                left = left + change(module, role, i, entered if insertion == "parallel" else left)
            h = h + left
    return backbone.norm(h).mean(1)


@pytest.mark.parametrize("insertion", ["parallel", "sequential"])
@pytest.mark.parametrize("place", ["attn", "ffn"])
@pytest.mark.parametrize(("form", "composition"), [("bottleneck", "scaled"), ("linear", "learned"), ("linear", "add")])
@torch.no_grad()
def test_it_is_the_formula_at_its_place(insertion: Any, place: Any, form: Any, composition: Any) -> None:
    backbone, images = tiny("vit").double(), samples(tiny("vit"), 0).double()
    module = attached(Unified(form, insertion, place, composition, bottleneck=3), backbone, spread=0.3).double()
    assert isinstance(backbone, ViT)
    expected = vit_by_hand(backbone, module, images, insertion, place)
    torch.testing.assert_close(features(module, backbone, images), expected, rtol=0, atol=1e-10)
    other = vit_by_hand(backbone, module, images, "sequential" if insertion == "parallel" else "parallel", place)
    assert (other - expected).abs().max() > 1e-2  # so the hand would see what is read


class Spy(Unified):
    """Keeps what it was given to read."""

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        if site.role == self.last:
            self.read = self.entered[site.layer]
        return super().after(part, site, x, y)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vit", "blocks.1.{}"),
        ("timm", "encoder.blocks.1.{}"),
        ("gpt2", "encoder.h.1.{}"),
        ("hf_vit", "encoder.layers.1.{}"),
        ("bert", "encoder.encoder.layer.1.{}"),
    ],
)
@pytest.mark.parametrize("place", ["attn", "ffn"])
def test_x_is_what_enters_the_whole_part_on_every_backbone(name: str, path: str, place: Any) -> None:
    part = {
        "vit": ("attention", "feed_forward"),
        "timm": ("attn", "mlp"),
        "gpt2": ("attn", "mlp"),
        "hf_vit": ("attention", "mlp"),
        "bert": ("attention", "intermediate"),
    }[name][place == "ffn"]
    backbone, entered = tiny(name), list[Tensor]()
    module = attached(Spy(place=place, bottleneck=3), backbone, spread=0.3)
    target = backbone.get_submodule(path.format(part))
    handle = target.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    features(module, backbone, samples(backbone, 0))
    handle.remove()
    assert torch.equal(module.read, entered[0])


def test_a_scale_of_0_is_the_bare_backbone_and_a_learned_one_starts_at_1() -> None:
    backbone, images = tiny("vit"), samples(tiny("vit"), 0)
    assert torch.equal(
        features(attached(Unified(scale=0.0, bottleneck=3), backbone, spread=0.3), backbone, images), backbone(images)
    )
    learned = attached(Unified(composition="learned", bottleneck=3), backbone)
    assert [part.scale.item() for part in learned.parts.values() if hasattr(part, "scale")] == [1.0, 1.0]
    assert all(
        part.scale == 4.0 for part in attached(Unified(), backbone, spread=0.3).parts.values() if hasattr(part, "scale")
    )


def test_lora_starts_at_the_identity_and_bert_near_it() -> None:
    backbone, images = tiny("vit"), samples(tiny("vit"), 0)
    lora, bert = (attached(Unified(start=start), backbone) for start in ("lora", "bert"))
    assert torch.equal(features(lora, backbone, images), backbone(images))
    assert 0 < (features(bert, backbone, images) - backbone(images)).abs().max() < 0.2
    down, up = (bert.parts["mlp_out-0"][i].weight for i in (0, 2))
    for weight in (down, up):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    bound = WIDTH**-0.5  # of the uniform start of LoRA's A
    assert lora.parts["mlp_out-0"][0].weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_what_it_carries_is_gone_after_the_pass_and_after_an_error_in_it() -> None:
    backbone, images = tiny("vit"), samples(tiny("vit"), 0)
    module = attached(Unified(bottleneck=3), backbone, spread=0.3)
    module.features(backbone, images).sum().backward()
    assert module.entered == {}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = backbone.get_submodule("blocks.1.feed_forward.inner").register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        module.features(backbone, images)
    handle.remove()
    assert module.entered == {}
    copy.deepcopy(module)  # a tensor of a graph would stop it


def test_it_costs_2md_and_d_and_m_in_each_layer() -> None:
    module = attached(Unified(bottleneck=5), tiny("vit"))
    assert sum(p.numel() for p in module.parameters()) == 2 * (2 * 5 * WIDTH + WIDTH + 5)


def test_pfeiffers_adapter_is_a_sequential_one_of_a_sixteenth_of_the_width() -> None:
    backbone, images = tiny("vit"), samples(tiny("vit"), 0)
    ours = attached(Pfeiffer(), backbone, spread=0.3)
    assert [(site.role, site.layer) for site in ours.sites] == [("mlp.out", 0), ("mlp.out", 1)]
    same = attached(Unified(insertion="sequential", composition="add", bottleneck=4), backbone, spread=0.3)
    for a, b in zip(same.parameters(), ours.parameters(), strict=True):
        a.data = b.data
    assert torch.equal(features(ours, backbone, images), features(same, backbone, images))
    wide = attached(Pfeiffer(), ViT((1, 8, 8), width=64, depth=1))
    (part,) = wide.parts.values()
    assert part[0].weight.shape == (4, 64) and not part[0].bias.any() and not part[2].bias.any()
    assert part[0].weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert (features(ours, backbone, images) - backbone(images)).abs().max() > 1e-2
