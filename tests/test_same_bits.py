"""The same weight gives the same bits: wherever it lies in memory, and whether or not it is still being trained.

For an input that is not contiguous, such as a vision transformer's patches, torch computes a linear layer as ``mm``
where the weight asks for a gradient and as ``bmm`` where it does not. On Intel processors the two sum in different
orders; on other ones the products alone may show the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from forgetlab.checks.backbones import samples, tiny
from forgetlab.isolation import attachment
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.seeding import drawn_from
from forgetlab.strategies.isolation.modules.whole.full import Full

ADDRESSES = range(16)  # places for a number of four bytes in a line of 64
FAMILIES = ["transposing", "vit", "mlp", "bert", "gpt2"]
PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm")


class Transposing(nn.Module):
    """A backbone whose first layer reads a transposed input, as users bring them. (B, 1, 8, 8) -> (B, 16)"""

    places: ClassVar = {"block": "layers.*"}

    def __init__(self) -> None:
        super().__init__()
        self.n_features = 16
        with drawn_from("transposing"):
            self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(1).unflatten(1, (16, 4)).transpose(1, 2)  # (B, 4, 16)
        return self.layers[1](self.layers[0](columns).relu()).mean(1)


def backbone(family: str) -> nn.Module:
    return Transposing() if family == "transposing" else tiny(family)


def inputs(model: IsolatedNetwork) -> Tensor:
    reads_images = isinstance(model.backbone, Transposing)
    return samples(tiny("vit") if reads_images else model.backbone, 3)


class Products(TorchDispatchMode):
    """Notes which products of matrices are computed, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(operation).startswith(PRODUCTS):
            self.found.append(str(operation))
        return operation(*args, **(kwargs or {}))


def placed(tensor: Tensor, address: int) -> Tensor:
    """A copy that begins so many numbers behind a multiple of 64 bytes."""
    room = torch.empty(tensor.numel() + 32)
    behind = (room.data_ptr() % 64) // room.element_size()
    copy = room[(16 - behind) % 16 + address :][: tensor.numel()].view(tensor.shape)
    assert copy.data_ptr() % 64 == 4 * address
    return copy.copy_(tensor)


def whole_model(family: str) -> IsolatedNetwork:
    """A model with a task whose module holds a copy of every weight, so that its answers are the backbone's."""
    model = IsolatedNetwork(backbone(family), Full, task_known=True)
    model.open(0, [0, 1])
    return model.eval()


def with_frozen_weights(model: IsolatedNetwork) -> Tensor:
    return model.bare(inputs(model))


def with_weights_in_training(model: IsolatedNetwork) -> Tensor:
    return model.under(model.module_of(0), inputs(model))


def with_closed_weights(model: IsolatedNetwork) -> Tensor:
    model.open(1, [2, 3])
    return model.under(model.module_of(0), inputs(model))


WAYS: list[Callable[[IsolatedNetwork], Tensor]] = [with_weights_in_training, with_closed_weights]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_at_sixteen_addresses_answer_the_same(family: str) -> None:
    """As tensors that stand in for the backbone's, and as a task's own parameters, at each of sixteen addresses."""
    expected = with_frozen_weights(whole_model(family))
    for address in ADDRESSES:
        model = whole_model(family)
        standing_in = {name: placed(p, address) for name, p in model.backbone.named_parameters()}
        with attachment.swapped(model.backbone, standing_in):
            assert torch.equal(model.backbone(inputs(model)), expected), f"standing in at {address}"
        for parameter in model.module_of(0).parameters():
            parameter.data = placed(parameter, address)
        assert torch.equal(with_weights_in_training(model), expected), f"in training at {address}"


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_products_are_computed_before_and_after_a_task_is_closed(family: str, way: Any) -> None:
    """Red on any processor where weights that stand in keep asking for gradients at test."""
    model = whole_model(family)
    with Products() as expected:
        with_frozen_weights(model)
    with Products() as found:
        way(model)
    assert found.found == expected.found


@torch.no_grad()
def test_torch_chooses_the_product_by_whether_the_weight_asks_for_a_gradient() -> None:
    """What the above guards against; where torch stops doing so, the guard may go."""
    x, weight = torch.randn(12, 16, 4).transpose(1, 2), torch.randn(16, 16)
    chosen = []
    for tensor in (nn.Parameter(weight), weight):
        with Products() as products:
            nn.functional.linear(x, tensor)
        chosen += products.found
    assert chosen == ["aten.mm.default", "aten.bmm.default"]
