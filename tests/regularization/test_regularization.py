"""What regularizers share: the quadratic's gradient is the one that autograd would find."""

from __future__ import annotations

import torch
from torch import nn

from forgetlab.regularization.regularizer import quadratic


def test_the_quadratic_and_its_gradient_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    rows = {"weight": 2, "bias": 4}  # the weight has grown by two rows since
    theta = {name: model.get_parameter(name) for name in rows}
    weight = {name: torch.rand_like(theta[name][:n]) for name, n in rows.items()}
    centre = {name: torch.randn_like(theta[name][:n]) for name, n in rows.items()}

    expected = torch.stack([(weight[n] * (theta[n][:k] - centre[n]) ** 2).sum() for n, k in rows.items()]).sum()
    found = quadratic(model, weight, centre)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(5 * found, list(theta.values())),
        torch.autograd.grad(5 * expected, list(theta.values())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
