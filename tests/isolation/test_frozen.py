"""What a frozen backbone computes is computed once, and answers as before."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.tensor_data import Source
from forgetlab.backbones.sites import blocks
from forgetlab.checks.backbones import samples, tiny
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Protocol, Strategy
from forgetlab.isolation import frozen_features
from forgetlab.isolation.frozen_features import FrozenWork
from helpers.runs import description


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    frozen_features.forget()
    yield
    frozen_features.forget()


class Counting:
    """How many samples went through a backbone's first and last block."""

    def __init__(self, backbone: nn.Module) -> None:
        self.first = self.last = 0
        layers = blocks(backbone)
        layers[0].register_forward_pre_hook(lambda _, entered: self._add("first", entered[0]))
        layers[-1].register_forward_pre_hook(lambda _, entered: self._add("last", entered[0]))

    def _add(self, name: str, entered: Tensor) -> None:
        setattr(self, name, getattr(self, name) + len(entered))


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "hf_vit", "timm"])
def test_each_sample_goes_through_once(name: str) -> None:
    backbone = tiny(name)
    x, work, count = samples(backbone, 0, n=100), FrozenWork(backbone), Counting(backbone)
    live = backbone(x).detach()
    count.first = 0
    for rows in (torch.arange(100), torch.randperm(100), torch.tensor([3, 99])):
        found = work.features(backbone, Source(x, rows))
        torch.testing.assert_close(found, live[rows], atol=1e-6, rtol=1e-6)
    assert count.first == 100


def test_what_lies_above_is_not_computed() -> None:
    backbone = tiny("bert")
    x, count = samples(backbone, 0), Counting(backbone)
    FrozenWork(backbone).entering(backbone, Source.all(x), 1)
    assert (count.first, count.last) == (len(x), len(x))  # of two blocks: the last is where it stops
    entered = frozen_features.entering_block(backbone, x, 1)
    after = []
    blocks(backbone)[0].register_forward_hook(
        lambda _, __, left: after.append(left[0] if isinstance(left, tuple) else left)
    )
    backbone(x)
    assert torch.equal(after[0], entered)


def test_equal_data_share_their_work_and_other_backbones_do_not() -> None:
    one, other = tiny("vit"), tiny("vit")
    x = samples(one, 0)
    kept = FrozenWork(one).features(one, Source.all(x))
    count = Counting(other)
    assert torch.equal(FrozenWork(other).features(other, Source.all(x.clone())), kept)
    assert count.first == 0  # the same weights and the same samples
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert not torch.equal(FrozenWork(other).features(other, Source.all(x)), kept)
    assert count.first == len(x)
    FrozenWork(one, "of another size").features(one, Source.all(x))
    assert len(frozen_features._kept) == 3


def test_other_samples_never_get_what_was_computed_of_the_first() -> None:
    """Of the same number and shape, as the tasks of a stream may be; also where one number differs."""
    backbone = tiny("vit")
    work, first = FrozenWork(backbone), samples(backbone, 0)
    changed = first.clone()
    changed[-1, 0, 0, 0] += 0.5
    for x in (first, samples(backbone, 1), changed):
        found = work.features(backbone, Source.all(x))
        torch.testing.assert_close(found, backbone(x).detach(), atol=1e-6, rtol=1e-6)
    entered = [work.entering(backbone, Source.all(x), 1) for x in (first, changed)]
    assert torch.equal(entered[0][:-1], entered[1][:-1]) and not torch.equal(entered[0][-1], entered[1][-1])


def test_the_values_do_not_depend_on_who_asks_first() -> None:
    backbone = tiny("bert")
    x = samples(backbone, 0, n=150)
    straight = FrozenWork(backbone).features(backbone, Source.all(x))
    frozen_features.forget()
    rows = torch.randperm(150)
    work = FrozenWork(backbone)
    mixed = torch.cat([work.features(backbone, Source(x, some)) for some in rows.split(7)])
    assert torch.equal(mixed, straight[rows])


@pytest.mark.slow
def test_beyond_the_bound_it_goes_to_disk_and_beyond_that_the_oldest_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    backbone = tiny("bert")
    x = samples(backbone, 0, n=100)
    in_memory = FrozenWork(backbone).taps(backbone, Source.all(x))
    size = sum(tap.nbytes for tap in in_memory)
    frozen_features.forget()
    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("FORGETLAB_MEMORY", str(size / 2 / 2**30))
    work = FrozenWork(backbone)
    on_disk = work.taps(backbone, Source.all(x))
    assert all(torch.equal(a, b) for a, b in zip(on_disk, in_memory, strict=True))
    (kept,) = frozen_features._kept.values()
    assert kept.file is not None and frozen_features.in_memory() == 0
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) == size
    for seed in range(1, 6):
        work.taps(backbone, Source.all(samples(backbone, seed, n=100)))
    assert frozen_features.kept_bytes() <= 8 * size / 2
    del kept
    frozen_features.forget()
    assert not list(tmp_path.rglob("*.bin"))  # a file goes with what it kept


def test_a_model_s_copy_keeps_the_same_work() -> None:
    work = FrozenWork(tiny("vit"))
    assert copy.deepcopy(work) is work


def run(reuse: bool, strategy: Strategy) -> tuple[list, dict]:
    one = description(
        strategy,
        scenario={"name": "split_digits", "setting": "class-incremental", "n_tasks": 3, "held_back": 4},
        model={"name": "vit", "width": 16, "depth": 3, "heads": 2, "patch": 4},
        protocol=Protocol(task_known_at_test=False, budget=Budget(epochs=2)),
        reuse_frozen=reuse,
    )
    result = one_run.run(one)
    return result.accuracy, {name: result.scores[name] for name in ("router_accuracy",) if name in result.scores}


TOP = Strategy(name="top", isolation={"name": "lora", "rank": 2, "layers": [-1]}, router={"name": "prototype"})


@pytest.mark.slow
def test_a_run_comes_to_the_same_with_and_without() -> None:
    (kept, kept_routes), (live, live_routes) = run(True, TOP), run(False, TOP)
    assert kept_routes == live_routes
    assert kept == live
    assert frozen_features._kept  # and something was kept


@pytest.mark.slow
def test_a_run_is_the_same_to_the_bit_whatever_ran_before() -> None:
    first = run(True, TOP)
    assert run(True, TOP) == first
    frozen_features.forget()
    assert run(True, TOP) == first
