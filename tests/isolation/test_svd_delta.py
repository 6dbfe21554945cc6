"""Full fine-tuning that is cut to a low rank: the best approximation, and when it is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.backbones.sites import Site
from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples, tiny
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.low_rank.svd_delta import SVDDelta

RANK = 3
ROLES = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out")


def attached(factory: type[SVDDelta] = SVDDelta) -> tuple[nn.Module, SVDDelta]:
    """A backbone and a module whose weights are changed as training might leave them."""
    torch.manual_seed(1)
    backbone, module = tiny("vit"), factory(RANK)
    module.attach(backbone)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.1)
    return backbone, module


def changes(module: SVDDelta) -> dict[str, Tensor]:
    return {site.key: module.delta(module.parts[site.key], site).detach().clone() for site in module.sites}


def cut_is_the_best(factory: type[SVDDelta]) -> None:
    """Eckart and Young: what is lost is the energy of the singular values behind the first r."""
    backbone, module = attached(factory)
    before = changes(module)
    module.end([], [], {}, backbone)
    for key, after in changes(module).items():
        assert torch.linalg.matrix_rank(after) == RANK
        tail = torch.linalg.svdvals(before[key])[RANK:].square().sum()
        torch.testing.assert_close((before[key] - after).square().sum(), tail)


def test_the_cut_loses_the_tail_alone() -> None:
    cut_is_the_best(SVDDelta)


class LastDirections(SVDDelta):
    """The break: of the right rank, but the wrong directions."""

    def _factors(self, change: Tensor) -> nn.Module:
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        return nn.ParameterDict({"A": s[-RANK:, None] * v[-RANK:], "B": u[:, -RANK:].contiguous()})


def test_a_worse_approximation_is_found() -> None:
    with pytest.raises(AssertionError):
        cut_is_the_best(LastDirections)


@torch.no_grad()
def test_before_the_cut_it_is_full_fine_tuning_of_all_six_weights() -> None:
    backbone, module = attached()
    assert sorted({site.role for site in module.sites}) == sorted(ROLES)
    x = samples(backbone, seed=3)
    found, bare = module.features(backbone, x), backbone(x)
    for site in module.sites:
        backbone.get_submodule(site.path).get_parameter("weight").add_(module.parts[site.key].get_parameter("D"))
    torch.testing.assert_close(found, backbone(x), rtol=0, atol=1e-5)
    assert not torch.allclose(found, bare, atol=1e-2)


def test_a_change_of_low_rank_loses_nothing() -> None:
    backbone, module = attached()
    for site in module.sites:
        left, right = torch.randn(site.out_dim, RANK), torch.randn(RANK, site.in_dim)
        module.parts[site.key].get_parameter("D").data = 0.01 * left @ right
    x = samples(backbone, seed=3)
    before = module.features(backbone, x)
    module.end([], [], {}, backbone)
    torch.testing.assert_close(module.features(backbone, x), before, rtol=0, atol=1e-5)


def test_only_the_factors_are_stored_and_all_of_each_weight_is_trained() -> None:
    network = IsolatedNetwork(tiny("vit"), lambda: SVDDelta(RANK))
    network.open(0, [0, 1])
    module = network.module_of(0)
    assert sum(p.numel() for p in module.parameters()) == sum(site.weight.numel() for site in module.sites)
    isolation.train(network, 0)
    stored = [t for name, t in network.task_tensors(0).items() if name.startswith("module.")]
    assert sum(t.numel() for t in stored) == sum(RANK * (site.in_dim + site.out_dim) for site in module.sites)


class CutTooLate(SVDDelta):
    """The break: `end` leaves the change whole, so that dropping the rest changes the answers."""

    def end(self, data: Any, previous: Any, shared: Any, backbone: nn.Module) -> None:
        pass

    def materialise(self) -> None:
        super().materialise()
        self.rank -= 1  # cuts again the next time
        self.cut = self.rank < 1

    def delta(self, part: nn.Module, site: Site) -> Tensor:
        return part.get_parameter("D") if hasattr(part, "D") else part.get_parameter("B") @ part.get_parameter("A")

    def after(self, part: nn.Module, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y + nn.functional.linear(x, self.delta(part, site))


@pytest.mark.slow
def test_a_cut_that_comes_too_late_is_found() -> None:
    with pytest.raises(AssertionError, match="answers otherwise"):
        isolation.materialised_answers_alike(Plugin("isolation", "broken", CutTooLate))
