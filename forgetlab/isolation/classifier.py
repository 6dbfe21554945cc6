"""Classifiers in closed form on frozen or adapted features: they know the past as sums, in which no order is left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from forgetlab.plugins.registry import register
from forgetlab.seeding import generator
from forgetlab.training.competing_classes import only


class Classifier(ABC):
    """Answers from features, without training by gradients."""

    needs: ClassVar[frozenset[str]] = frozenset()
    adapts: ClassVar[Literal["first", "every"]] = "first"  # where the entry has a module too: whose modules are trained
    drawn: ClassVar[frozenset[str]] = frozenset()  # what of `stored` is drawn, not learned
    seed: int = 0  # of what is drawn; the run gives its own before the first sample

    @abstractmethod
    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        """Take in some samples. (N, m, d) features under each of m modules (m = 1: one, or the bare backbone), (N,)

        ``task`` is UNKNOWN where the stream does not tell it.
        """

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """(B, m, d) -> (B, C) for classes 0 .. C - 1, C the largest label so far plus one; MASK for those unseen."""

    def close(self, task: int) -> None:  # noqa: B027 - may be empty
        """A task's samples have all been taken in."""

    def stored(self) -> dict[str, Tensor]:
        """What is enough to answer, by the names of `state` where it is there too; the rest is for learning on."""
        return self.state()[0]

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept: tensors and plain values."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""


class FromSums(Classifier):
    """Keeps ``sums``, among them y (C,), the samples of each class; `solve` makes of them what answers.

    What answers is linear, f^T weight + intercept, unless `score` says something else.
    """

    squares: ClassVar[bool] = False  # whether the sum ff, of f f^T, is needed

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self._solved: dict[str, Tensor] | None = None

    @abstractmethod
    def solve(self) -> dict[str, Tensor]:
        """What answers, from the sums so far."""

    def see(self, features: Tensor) -> Tensor:
        """What the sums are of. (B, m, d) -> (B, d') float64"""
        return features.flatten(1).double()

    def score(self, features: Tensor, solved: Mapping[str, Tensor]) -> Tensor:
        """(B, m, d) -> (B, C), unseen classes included"""
        scores = self.see(features) @ solved["weight"]
        return scores + solved["intercept"] if "intercept" in solved else scores

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        add_samples(self.sums, self.see(features), labels, self.squares)
        self._solved = None

    def logits(self, features: Tensor) -> Tensor:
        return only(self.score(features, self.stored()), self.sums["y"] != 0)

    def stored(self) -> dict[str, Tensor]:
        if self._solved is None:
            self._solved = self.solve()
        return self._solved

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.sums), {}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.sums, self._solved = dict(tensors), None


class RandomFeatures(FromSums):
    """Sums of relu(P^T f), P (d, width) drawn once, standard normal by default; of f itself where the width is 0."""

    drawn = frozenset({"projection"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def see(self, features: Tensor) -> Tensor:
        f = super().see(features)
        if self.width == 0:
            return f
        if "projection" not in self.sums:
            drawn = self.draw(f.shape[1], generator("projection", self.seed))
            self.sums["projection"] = drawn.to(f.device)
        return F.relu(f @ self.sums["projection"].to(f))

    def draw(self, n_features: int, draws: torch.Generator) -> Tensor:
        """P. (d, width)"""
        return torch.randn(n_features, self.width, generator=draws)


@register("classifier", "ridge")
class Ridge(FromSums):
    """Ridge regression to one-hot labels, W = (G + s g I)^-1 Q, exact however the samples arrive.

    G = sum (f - mean f)(f - mean f)^T and Q = sum (f - mean f) onehot(y)^T over all samples so far, g the mean of
    G's diagonal, s the strength; the intercept is not penalised.
    """

    squares = True

    def __init__(self, strength: PositiveFloat = 1e-3) -> None:
        super().__init__()
        self.strength = strength

    def update(self, task: int, features: Tensor, labels: Tensor) -> None:
        super().update(task, features, labels)
        self.sums["f"] = self.sums.get("f", 0) + self.see(features).sum(0)

    def solve(self) -> dict[str, Tensor]:
        n = self.sums["y"].sum()
        mean_f, mean_y = self.sums["f"] / n, self.sums["y"] / n
        g = self.sums["ff"] - n * torch.outer(mean_f, mean_f)
        q = self.sums["fy"] - n * torch.outer(mean_f, mean_y)
        weight = ridge(g, q, self.strength * g.diagonal().mean().item())
        return {"weight": weight, "intercept": mean_y - mean_f @ weight}


def add_samples(sums: dict[str, Tensor], features: Tensor, labels: Tensor, squares: bool = False) -> None:
    """Add samples to y = sum onehot (C,), fy = sum f onehot^T (d, C) and, with ``squares``, ff = sum f f^T (d, d)."""
    count_classes(sums, labels)
    onehot = one_hot(labels, len(sums["y"]))
    fy = sums.get("fy", features.new_zeros(features.shape[1], 0))
    sums["fy"] = wider(fy, onehot.shape[1]) + features.T @ onehot
    if squares:
        sums["ff"] = sums.get("ff", 0) + features.T @ features


def count_classes(sums: dict[str, Tensor], labels: Tensor) -> None:
    """Add labels to y = sum onehot (C,), which grows to the largest of them."""
    known = sums.get("y", torch.zeros(0, dtype=torch.float64, device=labels.device))
    n_classes = max(len(known), int(labels.max()) + 1)
    sums["y"] = wider(known, n_classes) + one_hot(labels, n_classes).sum(0)


def one_hot(labels: Tensor, n_classes: int) -> Tensor:
    """(N,) -> (N, C) float64"""
    return F.one_hot(labels, n_classes).double()


def wider(sums: Tensor, n_classes: int) -> Tensor:
    """With columns of zeros for the classes that are new. (..., C) -> (..., n_classes)"""
    return F.pad(sums, (0, n_classes - sums.shape[-1]))


def means(sums: Mapping[str, Tensor]) -> Tensor:
    """Each class' mean, zero for those unseen. (d, C)"""
    return sums["fy"] / sums["y"].clamp(min=1)


def ridge(g: Tensor, q: Tensor, strength: float) -> Tensor:
    """(G + strength I)^-1 Q. (d, d), (d, C) -> (d, C)"""
    return torch.linalg.solve(g + strength * torch.eye(len(g)).to(g), q)


def best_strength(trained: Mapping[str, Tensor], held: Mapping[str, Tensor], strengths: Iterable[float]) -> float:
    """The strength whose ridge on some sums (ff, fy) has the smallest squared error on the samples of others."""
    n_classes = max(trained["fy"].shape[1], held["fy"].shape[1])
    q, held_q = (wider(sums["fy"], n_classes) for sums in (trained, held))
    errors: dict[float, float] = {}
    for strength in strengths:
        factor, failed = torch.linalg.cholesky_ex(trained["ff"] + strength * torch.eye(len(q)).to(q))
        if not failed:  # singular but for rounding: no strength to trust
            w = torch.cholesky_solve(q, factor)
            errors[strength] = (w * (held["ff"] @ w - 2 * held_q)).sum().item()  # less sum y^2, the same for all
    return min(errors, key=errors.__getitem__)
