"""A data set as rows: what a stream is cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forgetlab.data.mapped_rows import Rows
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator


class Samples(NamedTuple):
    """Inputs and labels, one row per sample."""

    x: Tensor  # (N, ...) float, or uint8; past the bound `mapped_rows.Rows`, which are on disk
    y: Tensor  # (N,) int64


@dataclass(frozen=True)
class Dataset:
    """A data set with its official, or fixed, division into training and test data."""

    train: Samples
    test: Samples
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...] = ()  # months, authors, sources: what a row came from, where the data tell it
    domains: tuple[Tensor, Tensor] | None = None  # (N,) of the training rows and (M,) of the test rows
    tokenizer: str | None = None  # text: whose ids x holds
    scores: tuple[str, ...] = ()  # what to look at beside accuracy: names in `forgetlab.learners.scores`
    rows_may_repeat: bool = False  # whether what happened twice may look the same, as in a table of few values


def dataset(spec: str | Mapping[str, Any], option: str | None = None) -> Dataset:
    """A data set by its registered name, or by {"name": its name, option: value, ...}.

    Raises:
        OptionError: what it was given cannot work; where the spec stands in an ``option``, that leads to the place.
    """
    named = {"name": spec} if isinstance(spec, str) else spec
    try:
        return registry.build("data", named["name"], {key: value for key, value in named.items() if key != "name"})
    except OptionError as error:
        raise OptionError(str(error), ".".join(filter(None, [option, error.option])) or None) from error


def as_input(x: Tensor) -> Tensor:
    """What a model is given: bytes as float32 in [0, 1], anything else as it is."""
    x = x.read() if isinstance(x, Rows) else x
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def held_out(x: Tensor, y: Tensor, class_names: Sequence[str], test_share: float, seed: int) -> Dataset:
    """Divide data that has no official test set: the same share of every class, drawn once by a fixed seed."""
    draw = generator("held_out", seed)
    is_test = torch.zeros(len(y), dtype=torch.bool)
    for label in range(len(class_names)):
        rows = (y == label).nonzero().squeeze(1)
        chosen = torch.randperm(len(rows), generator=draw)[: round(test_share * len(rows))]
        is_test[rows[chosen]] = True
    train, test = Samples(x[~is_test], y[~is_test]), Samples(x[is_test], y[is_test])
    return Dataset(train, test, tuple(class_names))
