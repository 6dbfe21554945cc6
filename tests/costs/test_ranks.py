"""How a change is counted, on changes whose counts are known."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import structural_rank
from torch import Tensor

from forgetlab.costs.rank_of_change import changed, energy_rank, numerical_rank
from forgetlab.seeding import generator


def normal(*shape: int, name: str = "ranks") -> Tensor:
    return torch.randn(*shape, generator=generator(name, *shape))


def with_singular_values(values: Tensor, out: int, into: int) -> Tensor:
    """A matrix that has these singular values and no others."""
    left = torch.linalg.qr(normal(out, len(values), name="left").double()).Q
    right = torch.linalg.qr(normal(into, len(values), name="right").double()).Q
    return (left * values) @ right.T


def by_singular_values(delta: Tensor, share: float) -> int:
    energies = torch.linalg.svdvals(delta.double()) ** 2
    held = energies.cumsum(0) / energies.sum()
    return int(torch.searchsorted(held, share)) + 1


@pytest.mark.parametrize(("out", "into"), [(96, 64), (64, 96), (64, 64)])
@pytest.mark.parametrize("rank", [1, 8, 64])
def test_a_product_of_two_factors_has_their_rank(out: int, into: int, rank: int) -> None:
    delta = normal(out, rank, name="b") @ normal(rank, into, name="a")
    assert numerical_rank(delta) == rank
    assert 1 <= (energy_rank(delta) or 0) <= rank
    assert energy_rank(delta.double(), share=1) == rank


def test_no_change_has_rank_0() -> None:
    nothing = torch.zeros(48, 32)
    assert (numerical_rank(nothing), energy_rank(nothing), changed({"w": nothing})) == (0, 0, 0)


@pytest.mark.parametrize(
    ("squares", "share", "rank"),
    [
        ([1.0] * 10, 0.9, 9),  # exactly the share: rounding must not ask for one more
        ([1.0] * 10, 0.901, 10),
        ([80.0, 10.0, 6.0, 4.0], 0.9, 2),
        ([80.0, 10.0, 6.0, 4.0], 0.95, 3),
        ([80.0, 10.0, 6.0, 4.0], 0.5, 1),
        ([80.0, 10.0, 6.0, 4.0], 1.0, 4),
    ],
)
@pytest.mark.parametrize("size", [(40, 24), (24, 40)])
def test_the_energy_rank_of_given_singular_values(
    squares: list[float], share: float, rank: int, size: tuple[int, int]
) -> None:
    values = torch.tensor(squares, dtype=torch.float64).sqrt()
    assert energy_rank(with_singular_values(values, *size), share) == rank


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_gram_matrix_gives_what_the_singular_values_give(share: float) -> None:
    for delta in (normal(1536, 384), normal(384, 1536), normal(256, 384) * 1e-20, normal(384, 64) * 1e15):
        assert energy_rank(delta, share) == by_singular_values(delta, share)


@pytest.mark.parametrize("size", [(90, 4), (4, 90)])
def test_the_smaller_gram_matrix_is_solved(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    solved, solve = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: solved.append(gram) or solve(gram))
    energy_rank(normal(*size))
    assert [(gram.shape, gram.dtype) for gram in solved] == [((4, 4), torch.float64)]


def test_rounding_makes_a_small_change_full_rank_and_hardly_moves_the_energy_rank() -> None:
    weight = normal(128, 96, name="weight")
    step = with_singular_values(torch.tensor([3e-3, 2e-3, 1e-3, 5e-4], dtype=torch.float64), 128, 96).float()
    delta = (weight + step) - weight
    assert numerical_rank(step) == 4
    assert numerical_rank(delta) == 96
    assert energy_rank(delta) == energy_rank(step) == 2  # 13 of 14.25


def test_a_sparse_mask_has_a_high_rank_and_a_low_rank_change_no_zero() -> None:
    mask = torch.rand(384, 384, generator=generator("mask")) < 0.005
    sparse = normal(384, 384) * mask
    low = normal(384, 8, name="b") @ normal(8, 384, name="a")
    assert numerical_rank(sparse.double()) == structural_rank(csr_matrix(mask.numpy()))
    assert 270 < (numerical_rank(sparse) or 0) < 310
    assert numerical_rank(low) == 8
    assert changed({"sparse": sparse}) == int(mask.sum())
    assert changed({"low": low}) == low.numel()


def test_changed_entries_add_up_over_tensors_of_any_shape() -> None:
    deltas = {"weight": torch.eye(5), "bias": torch.tensor([0.0, -1e-30, 2.0]), "still": torch.zeros(7, 2)}
    assert changed(deltas) == 5 + 2
    assert changed({}) == 0


def test_a_convolution_counts_by_output_channel() -> None:
    kernel = (normal(16, 3, name="b") @ normal(3, 36, name="a")).reshape(16, 4, 3, 3)
    assert numerical_rank(kernel) == 3
    assert energy_rank(kernel.double(), share=1) == 3


def test_a_diverged_change_has_no_rank() -> None:
    for value in (float("nan"), float("inf")):
        delta = torch.eye(4).index_fill(0, torch.tensor([1]), value)
        assert numerical_rank(delta) is None
        assert energy_rank(delta) is None


def test_half_precision_is_read_too() -> None:
    delta = torch.diag(torch.tensor([4.0, 2.0, 0.0])).bfloat16()
    assert (numerical_rank(delta), energy_rank(delta), energy_rank(delta, 0.5)) == (2, 2, 1)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_outside_of_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        energy_rank(torch.eye(2), share)
