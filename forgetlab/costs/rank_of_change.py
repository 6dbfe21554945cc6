"""How a weight's change is counted: its rank, the rank that holds most of its energy, the entries that moved.

A convolution's kernel counts as the matrix (out, in * height * width).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TOLERANCE = 1e-12  # of the whole energy; the eigenvalues' rounding, in float64, is smaller


def numerical_rank(delta: Tensor) -> int | None:
    """Singular values above `torch.linalg.matrix_rank`'s default tolerance; none where an entry is not finite.

    Of a change that is small beside the weights, rounding makes full rank: see `energy_rank`. (out, in)
    """
    if not delta.isfinite().all():
        return None
    return int(torch.linalg.matrix_rank(delta.detach().flatten(1).to(torch.promote_types(delta.dtype, torch.float32))))


def energy_rank(delta: Tensor, share: float = 0.9) -> int | None:
    """The smallest k whose k largest squared singular values hold ``share`` of the sum of all; 0 for no change.

    None where an entry is not finite. From the smaller Gram matrix in float64; a share that misses by less than
    1e-12 counts as reached, so singular values below a millionth of the largest may be lost at share 1. (out, in)

    Raises:
        ValueError: ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share must be above 0 and at most 1, not {share}")
    if not delta.isfinite().all():
        return None
    wide = delta.detach().flatten(1).double()
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    energies = torch.linalg.eigvalsh(wide @ wide.T).flip(0)
    reached = energies.cumsum(0)
    total = energies.sum()
    return int((reached < (share - TOLERANCE) * total).sum()) + 1 if total > 0 else 0


def changed(deltas: Mapping[str, Tensor]) -> int:
    """Entries that are not 0, over all tensors."""
    return sum(int(torch.count_nonzero(delta)) for delta in deltas.values())
