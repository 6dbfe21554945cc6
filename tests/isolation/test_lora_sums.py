"""O-LoRA, InfLoRA and SD-LoRA: one task of them, the sum of several, and what keeps tasks apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.backbones.sites import Site
from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples, tiny
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.metrics.accuracy_matrix import learning_accuracy
from forgetlab.strategies.isolation.modules.low_rank.inflora import InfLoRA
from forgetlab.strategies.isolation.modules.low_rank.lora import LoRA
from forgetlab.strategies.isolation.modules.low_rank.o_lora import OLoRA
from forgetlab.strategies.isolation.modules.low_rank.sd_lora import SDLoRA
from helpers import runs
from helpers.networks import isolated

RANK, TASKS = 4, 3
SUMS: dict[str, Callable[[], Isolation]] = {
    "o_lora": lambda: OLoRA(RANK),
    "inflora": lambda: InfLoRA(RANK),
    "sd_lora": lambda: SDLoRA(RANK),
}


def factors(network: IsolatedNetwork, task: int, site: Site) -> tuple[Tensor, Tensor]:
    part: Any = network.module_of(task).parts[site.key]
    return part.A.detach(), part.B.detach()


def with_weights(network: IsolatedNetwork, change: Callable[[Site], Tensor]) -> nn.Module:
    """A copy of the backbone with these changes of its weights."""
    backbone = copy.deepcopy(network.backbone)
    for site in network.module_of(0).sites:
        backbone.get_submodule(site.path).get_parameter("weight").data.add_(change(site))
    return backbone


def normalised(network: IsolatedNetwork, site: Site) -> Tensor:
    """The sum of SD-LoRA after its last task, by hand."""
    *old, newest = network.module_of(TASKS - 1).get_parameter("magnitudes").tolist()
    total = torch.zeros_like(site.weight)
    for task, magnitude in enumerate(old):
        a, b = factors(network, task, site)
        total += magnitude * b @ a / (a.square().sum().sqrt() * b.square().sum().sqrt())
    a, b = factors(network, TASKS - 1, site)
    return total + newest * b @ a


def summed(network: IsolatedNetwork, site: Site, scale: float) -> Tensor:
    return torch.stack([scale * b @ a for a, b in (factors(network, t, site) for t in range(TASKS))]).sum(0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("o_lora", lambda network, site: summed(network, site, 32 / RANK)),
        ("inflora", lambda network, site: summed(network, site, 1.0)),
        ("sd_lora", normalised),
    ],
)
@torch.no_grad()
def test_the_newest_answers_with_the_sum(name: str, change: Callable[[IsolatedNetwork, Site], Tensor]) -> None:
    with torch.enable_grad():
        network = isolated(SUMS[name], TASKS, task_known=False)
    x = samples(network.backbone, seed=3)
    found = network.under(network.speaker(0), x)
    torch.testing.assert_close(found, with_weights(network, lambda site: change(network, site))(x), rtol=0, atol=1e-4)
    own = with_weights(network, lambda site: torch.zeros_like(site.weight))(x)
    assert (found - own).abs().max() > 1e-2  # and the sum is something


@pytest.mark.parametrize(("name", "alpha"), [("o_lora", 32.0), ("inflora", RANK), ("sd_lora", 0.8 * RANK)])
def test_one_task_alone_is_lora(name: str, alpha: float) -> None:
    torch.manual_seed(1)
    network = IsolatedNetwork(tiny("vit"), SUMS[name], task_known=False)
    isolation.start(network, 0)
    module = network.module_of(0)
    roles: Any = ("attn.k", "attn.v") if name == "inflora" else ("attn.q", "attn.v")
    plain = LoRA(RANK, alpha, sites=roles)
    plain.attach(network.backbone)
    for site in plain.sites:
        nn.init.normal_(module.parts[site.key].get_parameter("B"), std=0.3)
        for ours, theirs in zip(factors(network, 0, site), plain.parts[site.key].parameters(), strict=True):
            theirs.data.copy_(ours)
    x = samples(network.backbone, seed=3)
    found, expected = (one.features(network.backbone, x) for one in (module, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if name == "inflora" else 1e-5)
    assert name != "o_lora" or torch.equal(found, expected)


def test_a_first_task_of_o_lora_trains_as_lora_to_the_bit() -> None:
    ours, plain = (isolated(kind, tasks=1, task_known=False) for kind in (SUMS["o_lora"], lambda: LoRA(RANK, 32.0)))
    for name, tensor in plain.task_tensors(0).items():
        assert torch.equal(ours.task_tensors(0)[name], tensor)


@pytest.mark.parametrize("name", list(SUMS))
def test_a_task_stores_its_own_factors_alone(name: str) -> None:
    network = isolated(SUMS[name], TASKS, task_known=False)
    for task in range(TASKS):
        stored = {key: t for key, t in network.task_tensors(task).items() if key.startswith("module.")}
        own = sum(RANK * (site.in_dim + site.out_dim) for site in network.module_of(task).sites)
        magnitudes = task + 1 if name == "sd_lora" else 0
        assert sum(t.numel() for t in stored.values()) == own + magnitudes


# O-LoRA


def second_task(power: Any = 1) -> tuple[OLoRA, list[tuple[Tensor, nn.Parameter]]]:
    """A module that has begun a second task, and each site's old and new A."""
    network = isolated(lambda: OLoRA(RANK, power=power), tasks=1, task_known=False)
    isolation.start(network, 1)
    module: Any = network.module_of(1)
    return module, [(factors(network, 0, site)[0], module.parts[site.key].A) for site in module.sites]


@pytest.mark.parametrize("power", [1, 2])
def test_the_penalty_is_what_is_not_orthogonal(power: int) -> None:
    module, pairs = second_task(power)
    products = [float(row @ other) for old, new in pairs for row in old for other in new.detach()]
    by_hand = sum(abs(product) ** power for product in products)
    penalty = module.penalty()
    assert penalty is not None and penalty.item() == pytest.approx(0.5 * by_hand, rel=1e-4)


def test_the_penalty_is_0_where_and_only_where_the_rows_are_orthogonal() -> None:
    module, pairs = second_task()
    for old, new in pairs:
        basis = torch.linalg.qr(old.T).Q
        new.data -= new.data @ basis @ basis.T
    assert (clean := module.penalty()) is not None and clean.item() < 1e-4
    old, new = pairs[-1]
    new.data[0] += 0.1 * old[0]
    assert (leaning := module.penalty()) is not None and leaning.item() > 100 * clean.item()


def test_the_penalty_moves_the_new_a_alone() -> None:
    module, pairs = second_task()
    penalty = module.penalty()
    assert penalty is not None
    penalty.backward()
    for old, new in pairs:
        assert old.grad is None and new.grad is not None and bool(new.grad.abs().sum() > 0)


def test_a_first_task_has_no_penalty() -> None:
    assert isolated(SUMS["o_lora"], tasks=1, task_known=False).module_of(0).penalty() is None


# InfLoRA


class Told(InfLoRA):
    """What enters is told, not measured."""

    told: Tensor

    def moments(self, backbone: nn.Module, data: Any) -> dict[str, Tensor]:
        return {site.key: self.told for site in self.sites}


def told(moment: Tensor, shared: dict[str, Tensor], before: int = 0, rank: int = 1, **options: Any) -> Told:
    """A module that began and ended a task with inputs of this second moment, on the keys of one layer."""
    module = Told(rank, sites=("attn.k",), layers=(0,), **options)
    module.told = torch.zeros(16, 16, dtype=torch.float64)
    module.told[: len(moment), : len(moment)] = moment.double()
    module.attach(tiny("vit"))
    module.begin([], [None] * before, shared, nn.Module())
    module.end([], [None] * before, shared, nn.Module())
    return module


def axes(tensor: Tensor) -> list[int]:
    return [int(i) for i in (tensor.abs() > 1e-4).any(0).nonzero()]


def test_a_takes_the_largest_direction_that_is_free() -> None:
    shared: dict[str, Tensor] = {}
    first = told(torch.diag(torch.tensor([4.0, 2.0, 1.0])), shared)
    (key,) = shared
    row = first.parts[key].get_buffer("A")
    assert axes(row) == [0] and row.norm().item() == pytest.approx(3**-0.5)
    assert axes(shared[key].T) == [0, 1]  # 16 / 21 is less than 0.95, 20 / 21 is more
    second = told(torch.diag(torch.tensor([9.0, 9.0, 2.0, 3.0])), shared, before=1)
    assert axes(second.parts[key].get_buffer("A")) == [3]  # not 0 and 1, where inputs are larger


def test_the_threshold_rises_from_task_to_task() -> None:
    moment = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    sizes = []
    for before in (0, 1, 2, 9):  # 0.95, 0.9625, ... , and not to 1
        shared: dict[str, Tensor] = {}
        told(moment, shared, before=before, rise=4)
        sizes.append(next(iter(shared.values())).shape[1])
    assert sizes == [2, 3, 3, 3]  # 20 / 21 is 0.952


def test_a_space_that_holds_enough_does_not_grow() -> None:
    shared: dict[str, Tensor] = {}
    told(torch.diag(torch.tensor([4.0, 2.0, 1.0])), shared)
    told(torch.diag(torch.tensor([4.0, 2.0, 1.0])), shared)
    assert next(iter(shared.values())).shape == (16, 2)
    told(torch.diag(torch.tensor([4.0, 2.0, 1.0, 4.0])), shared)
    assert axes(next(iter(shared.values())).T) == [0, 1, 3]


def old_inputs_change(network: IsolatedNetwork, shared: dict[str, Tensor]) -> float:
    """How much what lies in the old tasks' space is changed by a new task, whatever B is, beside other inputs."""
    isolation.start(network, TASKS)
    largest = 0.0
    for site in network.module_of(TASKS).sites:
        a, b = factors(network, TASKS, site)
        change = torch.randn_like(b) @ a
        inside = shared[site.key] @ torch.randn(shared[site.key].shape[1], 5)
        outside = torch.randn(site.in_dim, 5)
        largest = max(largest, ((change @ inside).norm() / (change @ outside).norm()).item())
    return largest


def test_a_new_task_changes_nothing_for_inputs_in_the_old_space() -> None:
    network = isolated(SUMS["inflora"], TASKS, task_known=False)
    assert all(0 < space.shape[1] < 16 for space in network.shared.values())
    assert old_inputs_change(network, dict(network.shared)) < 1e-5


def test_a_space_that_is_forgotten_is_seen() -> None:
    """The break: the new task does not know of the old ones' inputs."""
    network = isolated(SUMS["inflora"], TASKS, task_known=False)
    kept = dict(network.shared)
    network.shared.clear()
    assert old_inputs_change(network, kept) > 1e-2


def test_a_is_orthonormal_over_root_3_and_fixed() -> None:
    network = isolated(SUMS["inflora"], tasks=1, task_known=False)
    for site in network.module_of(0).sites:
        a, _ = factors(network, 0, site)
        torch.testing.assert_close(a @ a.T, torch.eye(RANK) / 3, rtol=0, atol=1e-5)
    assert {name.rsplit(".", 1)[1] for name, _ in network.module_of(0).named_parameters()} == {"B"}


# in a run


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SUMS))
def test_a_run_on_digits(tmp_path: Path, name: str) -> None:
    _, result, stored = runs.isolated(tmp_path, f"isolation: {{name: {name}, rank: 2}}", "class-incremental")
    assert (learning_accuracy(result.accuracy) or 0) > 0.15
    if name == "sd_lora":  # it grows after the optimizer was built, and is trained all the same
        magnitudes = [tensors["module.magnitudes"] for tensors in stored]
        assert [len(each) for each in magnitudes] == [1, 2, 3, 4, 5]
        assert all((each != 0.8).all() for each in magnitudes)
