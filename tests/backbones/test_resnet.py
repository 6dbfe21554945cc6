"""Residual networks beside implementations that others wrote: equal weights give equal features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab import torchvision_ops
from forgetlab.backbones.resnet import ResNet
from forgetlab.backbones.sites import blocks, find_sites
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError

WEIGHED = (nn.Conv2d, nn.BatchNorm2d)


def images(n: int = 4, side: int = 32, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def scattered(model: nn.Module) -> nn.Module:
    """With weights and statistics that no initialisation gives, so that none of them can be left out unnoticed."""
    draws = torch.Generator().manual_seed(1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.running_var):
                tensor.uniform_(0.5, 1.5, generator=draws)  # type: ignore[union-attr]
            for tensor in (part.bias.data, part.running_mean):
                tensor.uniform_(-0.3, 0.3, generator=draws)  # type: ignore[union-attr]
    return model


def weighed(model: nn.Module) -> Iterator[nn.Module]:
    return (part for part in model.modules() if isinstance(part, WEIGHED))


def with_weights_of(model: nn.Module, other: nn.Module) -> nn.Module:
    """The model with the weights of another one, part by part in the order in which both hold them."""
    for own, given in zip(weighed(model), weighed(other), strict=True):
        own.load_state_dict(given.state_dict())
    return model


@pytest.mark.parametrize("width", [20, 4])
@pytest.mark.parametrize("training", [True, False])
@torch.no_grad()
def test_depth_18_equals_avalanches_slim_resnet(width: int, training: bool) -> None:
    torchvision_ops.ensure()
    from avalanche.models.slim_resnet18 import BasicBlock
    from avalanche.models.slim_resnet18 import ResNet as Theirs

    theirs: Any = scattered(Theirs(BasicBlock, [2, 2, 2, 2], 10, width)).train(training)
    ours = with_weights_of(ResNet((3, 32, 32), 18, width), theirs).train(training)
    x = images()
    expected = theirs(x)
    found = theirs.linear(ours(x))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert ours.n_features == 8 * width


@pytest.mark.parametrize("depth", [20, 32])
@torch.no_grad()
def test_depth_20_and_32_equal_avalanches_icarl_net_in_all_but_its_two_ways(depth: int) -> None:
    """It puts half of the zeros before the channels, and its last block has no ReLU: both are put right here."""
    torchvision_ops.ensure()
    from avalanche.models.icarl_resnet import IcarlNet

    theirs: Any = scattered(IcarlNet(10, n=(depth - 2) // 6)).eval()
    part: Any
    for part in theirs.modules():
        if isinstance(part, nn.ConstantPad3d):
            *sides, front, behind = part.padding
            part.padding = (*sides, 0, front + behind)  # type: ignore[assignment]
        if hasattr(part, "last"):
            part.last = False  # type: ignore[assignment]
    ours: Any = with_weights_of(ResNet((3, 32, 32), depth), theirs).eval()  # type: ignore[arg-type]
    torch.testing.assert_close(ours(images()), theirs.feature_extractor(images()), rtol=1e-5, atol=1e-5)
    assert ours.n_features == 64


@pytest.mark.parametrize(
    ("depth", "width", "parameters"),
    [
        (18, 64, 11_168_832),  # Mammoth's resnet18 has 11,173,962 with a head of 10 classes (512 x 10 + 10)
        (18, 20, 1_093_140),  # the slim one of GEM: 1,109,240 with one of 100
        (20, 16, 269_072),  # He et al.'s table 6: 0.27 M, with a head of 10 classes 269,722
        (32, 16, 463_504),  # and 0.46 M, 464,154
    ],
)
def test_parameters(depth: int, width: int, parameters: int) -> None:
    model = ResNet((3, 32, 32), depth, width)  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == parameters
    own = registry.build("model", "resnet", {"depth": depth}, input_shape=(3, 32, 32))
    assert (sum(p.numel() for p in own.parameters()) == parameters) == (width != 20)  # else the width is the default


@torch.no_grad()
def test_a_block_by_hand() -> None:
    """One that halves, with weights of one: relu(bn(conv(relu(bn(conv x)))) + every second pixel), zeros behind."""
    block = ResNet((1, 8, 8), 20, 1).layers[3].eval()
    for part in weighed(block):
        if isinstance(part, nn.Conv2d):
            part.weight.fill_(1.0)
    x = images(1, 8, 1)
    inner = F.avg_pool2d(x, 3, 2, 1, count_include_pad=True) * 9  # sums of 3 x 3
    outer = F.avg_pool2d(2 * inner, 3, 1, 1, count_include_pad=True) * 9  # of two equal channels
    both = torch.cat([outer + x[:, :, ::2, ::2], outer], 1)
    torch.testing.assert_close(block(x), both.relu(), rtol=1e-4, atol=1e-4)


def test_a_module_finds_its_blocks() -> None:
    model = ResNet((3, 32, 32), 18, 4)
    assert len(blocks(model)) == 8
    assert [(site.in_dim, site.out_dim) for site in find_sites(model, ["block"])][1:4] == [(4, 4), (4, 8), (8, 8)]


def test_one_image_can_be_trained_on_whatever_is_accepted() -> None:
    for depth, sides in ((18, (8, 9)), (20, (4, 5)), (32, (4, 5))):
        with pytest.raises(OptionError) as refused:
            ResNet((1, sides[0], 40), depth, 2)  # type: ignore[arg-type]
        assert refused.value.option == "depth"
        model = ResNet((1, sides[1], 40), depth, 2)  # type: ignore[arg-type]
        assert model.train()(torch.rand(1, 1, sides[1], 40)).isfinite().all()
    with pytest.raises(OptionError, match="images"):
        ResNet((64,), 18)
