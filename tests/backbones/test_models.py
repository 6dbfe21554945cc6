"""Own backbones: the same numbers as torch's parts, and refusals that name the option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from forgetlab.backbones.layers import Attention
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.vit import ViT
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError


def test_attention_equals_torch_multihead_attention_on_the_same_weights() -> None:
    torch.manual_seed(0)
    own, theirs = Attention(width=12, heads=3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        assert theirs.in_proj_weight is not None
        theirs.in_proj_weight.copy_(torch.cat([own.q.weight, own.k.weight, own.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([own.q.bias, own.k.bias, own.v.bias]))
        theirs.out_proj.load_state_dict(own.out.state_dict())
    x = torch.randn(4, 7, 12)
    expected, _ = theirs(x, x, x, need_weights=False)
    torch.testing.assert_close(own(x), expected, rtol=0, atol=1e-6)


def test_an_mlp_is_layers_with_relu_after_each() -> None:
    torch.manual_seed(0)
    model = MLP((1, 2, 3), (5, 4))
    x = torch.randn(3, 1, 2, 3)
    first, second = (layer.get_submodule("0") for layer in model.layers)
    torch.testing.assert_close(model(x), second(first(x.reshape(3, 6)).clamp(min=0)).clamp(min=0))


@pytest.mark.parametrize(
    ("name", "options", "n_features"),
    [
        ("mlp", {"hidden": [7, 5]}, 5),
        ("mlp", {"hidden": []}, 64),
        ("vit", {"width": 8, "depth": 2, "heads": 2, "patch": 4}, 8),
    ],
)
def test_features_are_as_many_as_the_model_says(name: str, options: dict[str, Any], n_features: int) -> None:
    model = registry.build("model", name, options, input_shape=(1, 8, 8))
    assert model.n_features == n_features
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, n_features)


def test_a_vit_cuts_the_image_into_squares_and_knows_where_each_was() -> None:
    torch.manual_seed(0)
    model = ViT((1, 4, 4), width=8, depth=1, heads=2, patch=2).eval()
    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, :2, :2] = images[1, 0, 2:, 2:] = torch.rand(2, 2)  # one square, in two places
    assert not torch.allclose(*model(images))
    nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(*model(images))


@pytest.mark.parametrize(
    ("input_shape", "options", "option"),
    [
        ((1, 8, 8), {"patch": 3}, "patch"),
        ((1, 8, 6), {"patch": 4}, "patch"),
        ((1, 8, 8), {"width": 10, "heads": 4}, "heads"),
        ((64,), {}, None),
    ],
)
def test_a_vit_that_cannot_be_built_names_the_option(
    input_shape: tuple[int, ...], options: dict[str, int], option: str | None
) -> None:
    with pytest.raises(OptionError) as refused:
        registry.build("model", "vit", options, input_shape=input_shape)
    assert refused.value.option == option
