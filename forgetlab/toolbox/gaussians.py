"""What may be kept of a class in the place of its samples: how many features there were, their mean and their scatter.

The numbers lie in a mapping by "class/name", so that they can be a part of any method's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor

RIDGE = 1e-4  # added to a covariance, which few samples do not determine

Known = dict[str, Tensor]


def labels(known: Mapping[str, Tensor]) -> list[int]:
    """The classes, in order."""
    return sorted({int(name.partition("/")[0]) for name in known})


def add(known: Known, features: Tensor, y: Tensor) -> None:
    """Join features of classes to what is known of them, as if all had come at once. (n, d), (n,)"""
    for label in y.unique().tolist():
        new = features[y == label].double()
        n, mean = torch.tensor(len(new), device=new.device), new.mean(0)
        scatter = (new - mean).T @ (new - mean)
        if f"{label}/count" in known:
            before, centre = (known[f"{label}/{name}"] for name in ("count", "mean"))
            spread = known.get(f"{label}/scatter", 0.0)
            apart, share = mean - centre, n / (before + n)
            mean = centre + share * apart
            scatter, n = spread + scatter + before * share * torch.outer(apart, apart), before + n
        named = {"count": n, "mean": mean.to(features.dtype), "scatter": scatter.to(features.dtype)}
        known.update({f"{label}/{name}": value for name, value in named.items()})


def covariance(known: Mapping[str, Tensor], label: int) -> Tensor:
    """The unbiased estimate, with a ridge. (d, d)"""
    scatter, count = known[f"{label}/scatter"], known[f"{label}/count"]
    return scatter / (count - 1).clamp(min=1) + RIDGE * torch.eye(len(scatter), device=scatter.device)


def root(sigma: Tensor) -> Tensor:
    """F with F F^T = sigma, of which rounding may have brought small eigenvalues below 0. (d, d)"""
    factor, failed = torch.linalg.cholesky_ex(sigma.double())
    if failed:
        values, vectors = torch.linalg.eigh(sigma.double())
        factor = vectors * values.clamp(min=0).sqrt()
    return factor.to(sigma.dtype)


def sampled(known: Mapping[str, Tensor], n: int, draws: Generator) -> tuple[Tensor, Tensor]:
    """n features of each class from its Gaussian, class by class, and their labels. -> (C n, d), (C n,)"""
    features = []
    for label in labels(known):
        mean, factor = known[f"{label}/mean"], root(covariance(known, label))
        noise = torch.randn(n, len(mean), generator=draws).to(mean)
        features.append(mean + noise @ factor.T)
    x = torch.cat(features)
    return x, torch.tensor(labels(known), device=x.device).repeat_interleave(n)


def drawn_batches(known: Mapping[str, Tensor], n: int, size: int, draws: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in a random order, some at a time. -> (size, d), (size,)"""
    x, y = sampled(known, n, draws)
    for rows in torch.randperm(len(y), generator=draws).to(y.device).split(size):
        yield x[rows], y[rows]


def pool(known: Known, within: Known) -> None:
    """Move the classes' scatters into their sum, which is that of one covariance within all of them."""
    for name in [name for name in known if name.endswith("/scatter")]:
        within["0/scatter"] = within.get("0/scatter", 0.0) + known.pop(name)
    free = [count - 1 for name, count in known.items() if name.endswith("/count")]
    within["0/count"] = torch.stack(free).sum() + 1


def factors(known: Mapping[str, Tensor], within: Mapping[str, Tensor], shrinkage: float) -> list[Tensor]:
    """A matrix F for each class in order, with F F^T = (1 - shrinkage) Sigma + shrinkage tr(Sigma) / d I. (d, d) each

    Sigma is the class's own, or that ``within`` all of them.
    """
    found: list[Tensor] = []
    for label in labels(known):
        if not within or not found:
            sigma = (covariance(within, 0) if within else covariance(known, label)).double()
            sigma = sigma.lerp(sigma.diagonal().mean() * torch.eye(len(sigma)).to(sigma), shrinkage)
            values, vectors = torch.linalg.eigh(sigma)
            found.append((vectors * values.clamp(min=0).sqrt()).to(known[f"{label}/mean"].dtype))
        else:
            found.append(found[0])
    return found


def drawn(known: Mapping[str, Tensor], by: list[Tensor], n: int, draws: Generator) -> tuple[Tensor, Tensor]:
    """n features, each of any class with equal probability, by these `factors`, and their classes. -> (n, d), (n,)"""
    means = torch.stack([known[f"{label}/mean"] for label in labels(known)])
    chosen = torch.randint(len(means), (n,), generator=draws)
    noise = torch.randn(n, means.shape[1], generator=draws).to(means)
    x = means[chosen.to(means.device)]
    for i in chosen.unique().tolist():
        rows = (chosen == i).to(means.device)
        x[rows] += noise[rows] @ by[i].T
    return x, torch.tensor(labels(known))[chosen].to(means.device)
