"""Mergers against sums done by hand and, where the definitions agree, against the functions of Hugging Face's peft."""

from __future__ import annotations

import copy
import importlib
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from forgetlab import torchvision_ops
from forgetlab.backbones.mlp import MLP
from forgetlab.checks import merger as checks
from forgetlab.isolation.merger import Changes, Merger
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError, OptionsError
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import drawn_from, generator

PLACE = "blocks-0.weight"
FAITHFUL: dict[str, dict[str, Any]] = {  # with these options one task's change is what comes out
    "average": {},
    "task_arithmetic": {"scale": 1.0},
    "ties": {"density": 1.0},
    "dare": {"drop": 0.0},
    "magmax": {},
    "wise_ft": {"alpha": 1.0},
    "ema": {},
}
IN_ANY_ORDER = ("average", "task_arithmetic", "ties", "magmax")


@pytest.fixture(scope="module")
def peft() -> Any:
    """The functions of Hugging Face's peft for merging adapters."""
    torchvision_ops.ensure()  # it imports transformers, and that torchvision
    return importlib.import_module("peft.utils.merge_utils")


def merger(name: str, **options: Any) -> Merger:
    return registry.build("merger", name, options)


def merged(name: str, *rows: Sequence[float], **options: Any) -> list[float]:
    """What becomes of one place's changes, a row per task."""
    changes = [{PLACE: torch.tensor(row)} for row in rows]
    return merger(name, **options).merge(changes)[PLACE].tolist()


def drawn(*name: int, n: int = 3) -> list[dict[str, Tensor]]:
    draw = generator("test of mergers", *name)
    return [{"a": torch.randn(4, 5, generator=draw), "b": torch.randn(7, generator=draw)} for _ in range(n)]


def equal(one: Changes, other: Changes, within: float = 0.0) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], rtol=within, atol=within) for k in one)


def test_all_that_are_registered_are_tested_here() -> None:
    assert set(FAITHFUL) == set(registry.available("merger"))


def test_the_average_is_the_mean_of_all_tasks() -> None:
    assert merged("average", [3.0, 0.0], [0.0, -1.5], [0.0, 0.0]) == [1.0, -0.5]


def test_task_arithmetic_is_the_scaled_sum() -> None:
    assert merged("task_arithmetic", [3.0, 1.0], [1.0, -1.0], scale=0.25) == [1.0, 0.0]
    assert equal(merger("task_arithmetic", scale=1 / 3).merge(drawn(1)), merger("average").merge(drawn(1)), within=1e-6)


def test_the_largest_change_wins_in_magmax_and_equals_go_to_the_earliest() -> None:
    assert merged("magmax", [1.0, -2.0, 0.5], [-3.0, 1.0, -0.5], [2.0, 1.0, 0.5]) == [-3.0, -2.0, 0.5]
    assert merged("magmax", [1.0], [-3.0], scale=0.5) == [-1.5]


def test_wise_ft_is_a_point_on_the_way_to_the_last_task() -> None:
    assert merged("wise_ft", [9.0, 9.0], [4.0, -2.0], alpha=0.25) == [1.0, -0.5]
    assert merged("wise_ft", [9.0], [4.0], alpha=0.0) == [0.0]


def test_the_moving_average_starts_with_the_first_task() -> None:
    assert merged("ema", [8.0], [0.0], [4.0], newest=0.25) == [0.75 * (0.75 * 8.0) + 0.25 * 4.0]
    assert merged("ema", [8.0], [0.0], [4.0], newest=1.0) == [4.0]


def test_ties_trims_elects_and_averages_what_agrees() -> None:
    """Three tasks, one parameter a column. Trimmed to half of six entries each:
    task 1 keeps 5, 3, -4; task 2 keeps -2, 6, -7; task 3 keeps 1, -9, 8.
    Sums: 5 - 2 = 3, 3 + 6 - 9 = 0, -4 + 8 = 4, -7, 1. The second is undecided and becomes 0."""
    first = [5.0, 3.0, -4.0, 0.5, 0.0, 0.1]
    second = [-2.0, 6.0, 1.0, -7.0, 0.0, 0.2]
    third = [0.5, -9.0, 8.0, 0.0, 1.0, 0.3]
    assert merged("ties", first, second, third, density=0.5) == [5.0, 0.0, 8.0, -7.0, 1.0, 0.0]
    assert merged("ties", first, second, third, density=0.5, scale=0.5) == [2.5, 0.0, 4.0, -3.5, 0.5, 0.0]


def test_ties_averages_over_those_that_agree_only() -> None:
    """What the paper's first figure shows: a redundant value near 0 no longer pulls an influential one towards 0, and
    of values with both signs the heavier sign stays."""
    influential, redundant, against = [4.0, 2.0, 3.0], [0.1, 6.0, -1.0], [0.2, 4.0, 2.0]
    assert merged("average", influential, redundant, against)[0] == pytest.approx(4.3 / 3)
    assert merged("ties", influential, redundant, against, density=2 / 3) == [4.0, 5.0, 2.5]


def test_the_sign_is_elected_by_weight_and_not_by_number() -> None:
    assert merged("ties", [-5.0], [1.0], [2.0], density=1.0) == [-5.0]


def test_ties_counts_the_entries_of_a_task_over_all_its_places() -> None:
    """A place of small changes loses them all; trimmed place by place, it would keep a fifth."""
    change = {"large": torch.arange(1.0, 11.0), "small": torch.full((40,), 0.1)}
    found = merger("ties", density=0.2).merge([change])
    assert torch.equal(found["large"], change["large"])
    assert not found["small"].any()


def test_ties_keeps_one_entry_at_least_and_all_that_equal_the_least() -> None:
    assert merged("ties", [3.0, -3.0, 1.0], density=0.01) == [3.0, -3.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("density", [0.2, 0.6])
def test_ties_on_a_dense_matrix_is_that_of_peft(peft: Any, seed: int, density: float) -> None:
    """With one place the two trim alike, and with random numbers no sum is 0."""
    tensors = [one["a"] for one in drawn(2, seed, n=4)]
    theirs = peft.ties(tensors, torch.ones(4), density)
    ours = merger("ties", density=density).merge([{PLACE: tensor} for tensor in tensors])
    assert torch.allclose(ours[PLACE], theirs, atol=1e-6)


def test_where_peft_decides_otherwise(peft: Any) -> None:
    """It trims each matrix for itself, and elects plus where the sum is 0."""
    change = {"large": torch.arange(1.0, 11.0), "small": torch.full((40,), 0.1)}
    assert peft.ties([change["small"]], torch.ones(1), 0.2).any()
    assert peft.ties([torch.tensor([2.0]), torch.tensor([-2.0])], torch.ones(2), 0.5).tolist() == [0.0]
    undecided = [torch.tensor([2.0, 1.0]), torch.tensor([-2.0, 0.0])]
    assert peft.ties(undecided, torch.ones(2), 0.5).tolist() == [2.0, 0.0]
    assert merged("ties", *(tensor.tolist() for tensor in undecided), density=0.5) == [0.0, 0.0]


def test_merging_a_and_b_apart_is_not_merging_their_products(peft: Any) -> None:
    """What a LoRA's author may expect of peft's adapters: the sum of A's times the sum of B's has mixed terms."""
    draw = generator("test of mergers", 3)
    parts = [(torch.randn(4, 2, generator=draw), torch.randn(2, 5, generator=draw)) for _ in range(2)]
    ours = merger("task_arithmetic", scale=1.0).merge([{PLACE: b @ a} for b, a in parts])[PLACE]
    apart = [peft.task_arithmetic([*factors], torch.ones(2)) for factors in zip(*parts, strict=True)]
    mixed = parts[0][0] @ parts[1][1] + parts[1][0] @ parts[0][1]
    assert torch.allclose(apart[0] @ apart[1] - ours, mixed, atol=1e-5)
    assert mixed.abs().max() > 0.1


def test_task_arithmetic_is_that_of_peft(peft: Any) -> None:
    tensors = [one["a"] for one in drawn(4)]
    theirs = peft.task_arithmetic(tensors, torch.full((3,), 0.4))
    assert torch.allclose(merger("task_arithmetic").merge([{PLACE: t} for t in tensors])[PLACE], theirs, atol=1e-6)


def test_peft_prunes_by_magnitude_as_ties_trims(peft: Any) -> None:
    tensor = drawn(5)[0]["a"]
    theirs = peft.magnitude_prune([tensor], torch.ones(1), 0.3)
    assert torch.equal(merger("ties", density=0.3).merge([{PLACE: tensor}])[PLACE], theirs)


def large(n: int = 1) -> list[dict[str, Tensor]]:
    return [{PLACE: torch.randn(200, 200, generator=generator("test of mergers", 6, task))} for task in range(n)]


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_dare_drops_that_share_and_keeps_the_expected_change(drop: float) -> None:
    """40 000 entries: the share's deviation is at most 0.25 %; what stays is larger by 1 / (1 - drop), to the bit."""
    (change,) = large()
    found = merger("dare", drop=drop).merge([change])[PLACE]
    stays = found != 0
    assert stays.double().mean().item() == pytest.approx(1 - drop, abs=0.015)
    assert torch.equal(found[stays], change[PLACE][stays] / (1 - drop))
    deviation = (drop / (1 - drop)) ** 0.5 * change[PLACE].norm().item()
    assert found.sum().item() == pytest.approx(change[PLACE].sum().item(), abs=3 * deviation)


def test_dare_drops_other_entries_for_each_task_and_place_and_the_same_in_any_company() -> None:
    ones = [{"a": torch.ones(50, 50), "b": torch.ones(50, 50)} for _ in range(2)]
    dare = merger("dare", drop=0.5)
    thinned = [dare.thinned(task, one) for task, one in enumerate(ones)]  # type: ignore[attr-defined]
    four = [tensor != 0 for one in thinned for tensor in one.values()]
    for one, other in itertools.combinations(four, 2):
        assert (one == other).double().mean().item() == pytest.approx(0.5, abs=0.06)
    assert equal(dare.merge(ones[:1]), thinned[0])
    assert equal(dare.merge([{"b": torch.ones(50, 50)}, {}]), {"b": thinned[0]["b"] / 2})


def test_dare_hands_on_to_any_merger() -> None:
    changes, dare = large(2), merger("dare", drop=0.5)
    thinned = [dare.thinned(task, one) for task, one in enumerate(changes)]  # type: ignore[attr-defined]
    for then in ("task_arithmetic", {"name": "ties", "density": 0.5}, {"name": "dare", "drop": 0.5}):
        options = {"name": then} if isinstance(then, str) else dict(then)
        expected = merger(options.pop("name"), **options).merge(thinned)
        assert equal(merger("dare", drop=0.5, then=then).merge(changes), expected)


def test_dare_then_the_sum_has_the_law_of_peft(peft: Any) -> None:
    """Its draws are other ones; mean and spread over 40 000 equal entries agree."""
    ones = [{PLACE: torch.full((200, 200), value)} for value in (1.0, 3.0)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peft.dare_linear([one[PLACE] for one in ones], torch.ones(2), 0.25)
    ours = merger("dare", drop=0.75, then={"name": "task_arithmetic", "scale": 1.0}).merge(ones)[PLACE]
    assert set(ours.unique().tolist()) == set(theirs.unique().tolist()) == {0.0, 4.0, 12.0, 16.0}
    assert ours.mean().item() == pytest.approx(4.0, abs=0.15) == theirs.mean().item()
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.03)


@pytest.mark.parametrize(("name", "options"), FAITHFUL.items())
def test_one_task_stays_as_it_is(name: str, options: dict[str, Any]) -> None:
    for seed in range(5):
        (change,) = drawn(7, seed, n=1)
        assert equal(merger(name, **options).merge([change]), change)


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_larger_change_is_merged_alike_and_the_opposite_one_oppositely(name: str) -> None:
    for seed in range(5):
        changes = drawn(8, seed)
        expected = {place: -4 * change for place, change in merger(name).merge(changes).items()}
        scaled = [{place: -4 * change for place, change in one.items()} for one in changes]
        assert equal(merger(name).merge(scaled), expected)  # a power of two: no rounding


@pytest.mark.parametrize("name", FAITHFUL)
def test_the_order_of_the_tasks_counts_only_where_the_method_says_so(name: str) -> None:
    differences = []
    for seed in range(3):
        changes = drawn(9, seed)
        for order in itertools.permutations(changes):
            whole, other = merger(name).merge(changes), merger(name).merge(order)
            differences.append(max((whole[place] - other[place]).abs().max().item() for place in whole))
    assert max(differences) < 1e-6 if name in IN_ANY_ORDER else max(differences) > 0.1


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_place_that_a_task_leaves_alone_has_no_change_of_that_task(name: str) -> None:
    """But for `ties`, which trims a share of the entries there are: full zeros would make it keep more of the rest."""
    options = {"density": 1.0} if name == "ties" else {}
    for seed, missing in itertools.product(range(3), range(3)):
        changes = drawn(10, seed)
        filled = [dict(one) for one in changes]
        filled[missing]["b"] = torch.zeros(7)
        del changes[missing]["b"]
        found, expected = (merger(name, **options).merge(given) for given in (changes, filled))
        found.setdefault("b", torch.zeros(7))  # what a merger leaves out stays as it was
        assert equal(found, expected, within=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", FAITHFUL)
def test_the_type_of_the_numbers_stays(name: str, dtype: torch.dtype) -> None:
    changes = [{place: change.to(dtype) for place, change in one.items()} for one in drawn(11)]
    assert {change.dtype for change in merger(name).merge(changes).values()} == {dtype}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ties", {"density": 0.0}),
        ("ties", {"density": 1.1}),
        ("task_arithmetic", {"scale": 0.0}),
        ("dare", {"drop": 1.0}),
        ("wise_ft", {"alpha": 1.5}),
        ("ema", {"newest": 0.0}),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises((OptionError, OptionsError), match="should be"):
        merger(name, **options)


@pytest.mark.parametrize(("name", "options"), FAITHFUL.items())  # of `dare` the draws are named by place
@torch.no_grad()
def test_a_network_answers_with_the_merged_weights(name: str, options: dict[str, Any]) -> None:
    """Of three LoRAs: the backbone's weights, with what the merger makes of the products B A added by hand."""
    with drawn_from("test of mergers"):
        backbone = MLP((4,), (5, 5))
        lora = partial(registry.build, "isolation", "lora", {"sites": ["mlp.in"], "rank": 2})
        network = IsolatedNetwork(copy.deepcopy(backbone), lora, merger=merger(name, **options), task_known=False)
        for task in range(3):
            network.open(task, [2 * task, 2 * task + 1])
            for tensor in network.modules_of[str(task)].parameters():
                torch.nn.init.normal_(tensor)
            network.merge()
    network.eval()
    modules = [network.module_of(task) for task in range(3)]
    products: list[Any] = [
        {site.path: module.delta(module.parts[site.key], site) for site in module.sites} for module in modules
    ]
    for path, change in merger(name, **options).merge(products).items():
        backbone.get_parameter(f"{path}.weight").add_(change)
    x = torch.randn(8, 4, generator=generator("test of mergers", 12))
    for task in range(3):
        expected = network.heads[str(task)](backbone(x))
        assert torch.allclose(network(x, torch.full((8,), -1))[:, 2 * task : 2 * task + 2], expected, atol=1e-4)


class Average(Merger):
    """A correct one, to break."""

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        places = {place for one in changes for place in one}
        found = {place: [one[place] for one in changes if place in one] for place in places}
        return {place: torch.stack(each).mean(0) for place, each in found.items()}


class NeedsAllPlaces(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return super().merge([{place: one[place] for place in checks.SHAPES if place in changes[0]} for one in changes])


class KeepsTheTasksAxis(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return {place: change.unsqueeze(0) for place, change in super().merge(changes).items()}


class Doubles(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return {place: change.double() for place, change in super().merge(changes).items()}


class DividesByTheSize(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return {place: change / change.abs().max() for place, change in super().merge(changes).items()}


class GivesWhatTheTaskOwns(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return dict(changes[-1])


class AddsInPlace(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return super().merge([{place: change.mul_(2) for place, change in one.items()} for one in changes])


class Remembers(Average):
    def __init__(self) -> None:
        self.last = 0

    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        self.last += len(changes)
        return {place: change / self.last for place, change in super().merge(changes).items()}


class DrawsGlobally(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return {place: change * torch.rand_like(change) for place, change in super().merge(changes).items()}


class AddsNoise(Average):
    def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
        return {place: change + 1e-3 for place, change in super().merge(changes).items()}


@pytest.mark.parametrize("check", checks.CHECKS)
def test_a_good_merger_passes(check: Any) -> None:
    check(Plugin("merger", "planted", Average))


@pytest.mark.parametrize(
    ("broken", "check", "error", "message"),
    [
        (NeedsAllPlaces, checks.gives_one_change, KeyError, "first.bias"),
        (KeepsTheTasksAxis, checks.gives_one_change, AssertionError, "another shape"),
        (Doubles, checks.gives_one_change, AssertionError, "another type"),
        (DividesByTheSize, checks.nothing_becomes_nothing, AssertionError, "become a change"),
        (AddsNoise, checks.nothing_becomes_nothing, AssertionError, "become a change"),
        (GivesWhatTheTaskOwns, checks.leaves_the_tasks_alone, AssertionError, "what the tasks own"),
        (AddsInPlace, checks.leaves_the_tasks_alone, AssertionError, "what the tasks own"),
        (Remembers, checks.is_repeatable, AssertionError, "merged before"),
        (DrawsGlobally, checks.is_repeatable, AssertionError, "merged before"),
    ],
)
def test_a_broken_merger_is_found(broken: type, check: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(Plugin("merger", "planted", broken))


def test_a_merger_that_takes_the_runs_draws_is_found() -> None:
    class Wastes(Average):
        def merge(self, changes: Sequence[Changes]) -> dict[str, Tensor]:
            torch.rand(1)
            return super().merge(changes)

    with pytest.raises(AssertionError, match="the run's generator"):
        checks.is_repeatable(Plugin("merger", "planted", Wastes))
