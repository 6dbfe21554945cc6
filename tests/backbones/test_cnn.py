"""The convolutional network: halved layer by layer, normalised over the batch, and its statistics are no parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from forgetlab.backbones.cnn import CNN
from forgetlab.data.datasets import dataset
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError


def images(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 2, 9, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_is_convolution_statistics_and_relu_halving_the_image_each_time() -> None:
    torch.manual_seed(0)
    model, x = CNN((2, 9, 8), (3, 4)), images()
    sides = []
    expected = x
    for stride, layer in zip((1, 2), model.layers, strict=True):
        expected = F.conv2d(expected, layer.get_submodule("0").weight, stride=stride, padding=1)  # type: ignore[arg-type]
        mean, variance = expected.mean((0, 2, 3), keepdim=True), expected.var((0, 2, 3), unbiased=False, keepdim=True)
        expected = ((expected - mean) / (variance + 1e-5).sqrt()).relu()
        sides.append(expected.shape[2:])
    assert sides == [(9, 8), (5, 4)]
    torch.testing.assert_close(model(x), expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert model.n_features == 4


@torch.no_grad()
def test_training_on_other_images_moves_its_answers_though_no_parameter_moves() -> None:
    """The trap that frozen parameters are not a frozen backbone."""
    torch.manual_seed(0)
    model = registry.build("model", "cnn", {"widths": [4, 8]}, input_shape=(2, 9, 8)).eval()
    before, weights = model(images()), copy.deepcopy(list(model.parameters()))
    model.train()(images() + 3)
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))
    assert (model.eval()(images()) - before).abs().max() > 0.01
    assert torch.equal(model.eval()(images()), model(images()))


@pytest.mark.slow
def test_it_learns_digits() -> None:
    torch.manual_seed(0)
    digits = dataset("digits")
    x, y = digits.train.x[:256], digits.train.y[:256]
    x = x.float() / x.max()
    model = CNN(tuple(x.shape[1:]), (8, 16))
    head = nn.Linear(16, 10)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(head(model(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (head(model.eval()(x)).argmax(1) == y).float().mean() > 0.9


def test_one_image_can_be_trained_on_whatever_is_accepted() -> None:
    """Without two places in the last layer, the statistics of one image would be of one number."""
    for side in range(2, 10):
        for depth in range(1, 5):
            try:
                model = CNN((1, side, side), (2,) * depth)
            except OptionError as refused:
                assert refused.option == "widths"
                continue
            assert model.train()(torch.rand(1, 1, side, side)).isfinite().all()


@pytest.mark.parametrize(
    ("shape", "widths", "option"), [((64,), (4,), None), ((1, 8, 8), (), "widths"), ((1, 8, 8), (2,) * 4, "widths")]
)
def test_what_cannot_be_built_names_the_option(
    shape: tuple[int, ...], widths: tuple[int, ...], option: str | None
) -> None:
    with pytest.raises(OptionError) as refused:
        CNN(shape, widths)
    assert refused.value.option == option
