"""RanPAC: McDonnell et al. 2023, https://arxiv.org/abs/2307.02251. The paper's projection is 10,000 wide.
As there the strength, 10^-8 .. 10^8, has the smallest squared error on a fifth of the newest task after training on
the rest of that task; here it is every fifth sample that arrives, and the error comes from sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, arange

from forgetlab.isolation import RandomFeatures, add_samples, best_strength, ridge
from forgetlab.plugins import register

STRENGTHS = tuple(10.0**exponent for exponent in range(-8, 9))
PARTS, HELD_OUT = ("trained", "held"), 5  # every so many samples are held


@register("classifier", "ranpac")
class RanPAC(RandomFeatures):
    """W = (sum h h^T + s I)^-1 sum h onehot(y)^T on random features h = relu(P^T f), s chosen at each task's end."""

    needs = frozenset({"boundaries"})
    squares = True

    def __init__(self, projection: PositiveInt = 2000, strength: PositiveFloat | None = None) -> None:
        super().__init__(projection)
        self.fixed, self.strength = strength is not None, strength or 1.0
        self._sums_of: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}  # of the open task
        self.arrived = 0

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        super().update(task, features, labels)
        if not self.fixed:
            held = (self.arrived + 1 + arange(len(labels), device=labels.device)) % HELD_OUT == 0
            for part, rows in zip(PARTS, (~held, held), strict=True):
                if rows.any():
                    add_samples(self._sums_of[part], self.see(features[rows]), labels[rows], squares=True)
            self.arrived += len(labels)

    def close(self, task: int) -> None:
        trained, held = (self._sums_of[part] for part in PARTS)
        if trained and held:
            self.strength, self._solved = best_strength(trained, held, STRENGTHS), None
        self._sums_of, self.arrived = {part: {} for part in PARTS}, 0

    def solve(self) -> dict[str, Tensor]:
        weight = ridge(self.sums["ff"], self.sums["fy"], self.strength)
        return {"projection": self.sums["projection"], "weight": weight}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        opened = {f"{part}.{name}": tensor for part in PARTS for name, tensor in self._sums_of[part].items()}
        return self.sums | opened, {"strength": self.strength, "arrived": self.arrived}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        super().restore({name: tensor for name, tensor in tensors.items() if "." not in name}, values)
        self._sums_of = {p: {n[len(p) + 1 :]: t for n, t in tensors.items() if n.startswith(f"{p}.")} for p in PARTS}
        self.strength, self.arrived = values["strength"], values["arrived"]
