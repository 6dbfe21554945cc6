"""What is done to a cut: fewer samples, rare classes, wrong labels, blurred borders, classes that come back.

Each takes a cut and gives one. Training rows change; test rows stay, but where their number is bounded. All draws come
from generators of their own name, so that one choice in a file does not move another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.streams.cuts import Cut, Draft, StreamRows


def modified(
    cut: Cut,
    seed: int,
    *,
    shots: int | None,
    long_tail: float,
    samples_per_task: int | Sequence[int] | None,
    test_samples_per_task: int | None,
    repetition: float,
    blurry: float,
    label_noise: float,
    validation: float,
) -> Cut:
    """All that is asked for, in this order."""
    steps: list[tuple[Callable[..., Cut], Any]] = [
        (few_shot, shots),
        (long_tailed, long_tail if long_tail > 1 else 0),
        (sized, samples_per_task),
        (evaluated_on, test_samples_per_task),
        (repeating, repetition),
        (blurred, blurry),
        (mislabelled, label_noise),
        (validated, validation),
    ]
    for modify, amount in steps:
        cut = modify(cut, amount, seed) if amount else cut
    return cut


def few_shot(cut: Cut, shots: int, seed: int) -> Cut:
    """After the first task only ``shots`` samples of each class (Tao et al. 2020, https://arxiv.org/abs/2004.10956)."""

    def fewer(task: int, train: StreamRows) -> StreamRows:
        draw = generator("few_shot", seed, task)
        kept = [_some((train.y == label).nonzero().squeeze(1), shots, draw) for label in train.y.unique()]
        return train.take(torch.cat(kept).sort().values)

    return _each(cut, lambda task, train: fewer(task, train) if task else train)


def long_tailed(cut: Cut, factor: float, seed: int) -> Cut:
    """Of the k-th of C classes n factor^(-k / (C - 1)) samples stay, in an order of the classes that the seed draws.

    Cui et al. 2019, https://arxiv.org/abs/1901.05555; as streams: Liu et al. 2022, https://arxiv.org/abs/2210.00266.
    """
    n_classes = len(cut.class_names)
    rank = torch.randperm(n_classes, generator=generator("long_tail", seed))

    def thinned(task: int, train: StreamRows) -> StreamRows:
        draw, kept = generator("long_tail", seed, task), []
        for label in train.y.unique():
            rows = (train.y == label).nonzero().squeeze(1)
            share = factor ** -(int(rank[label]) / max(n_classes - 1, 1))
            kept.append(_some(rows, max(round(share * len(rows)), 1), draw))
        return train.take(torch.cat(kept).sort().values)

    return _each(cut, thinned)


def sized(cut: Cut, sizes: int | Sequence[int], seed: int) -> Cut:
    """At most so many training samples per task, drawn at random.

    Raises:
        OptionError: a list of another length.
    """
    each = [sizes] * len(cut.drafts) if isinstance(sizes, int) else list(sizes)
    if len(each) != len(cut.drafts):
        raise OptionError(f"{len(each)} sizes for {len(cut.drafts)} tasks", "samples_per_task")

    def fewer(task: int, train: StreamRows) -> StreamRows:
        rows = _some(torch.arange(len(train.y)), each[task], generator("sizes", seed, task))
        return train.take(rows.sort().values)

    return _each(cut, fewer)


def evaluated_on(cut: Cut, size: int, seed: int) -> Cut:
    """At most so many test samples per task, drawn at random: for models whose answers are dear."""
    drawn = [
        _some(torch.arange(len(d.test.y)), size, generator("test_sizes", seed, i)) for i, d in enumerate(cut.drafts)
    ]
    drafts = [d._replace(test=d.test.take(rows.sort().values)) for d, rows in zip(cut.drafts, drawn, strict=True)]
    return replace(cut, drafts=tuple(drafts))


def repeating(cut: Cut, probability: float, seed: int) -> Cut:
    """Each class comes back in every later task with this probability; its samples are dealt to its appearances.

    Streams with repetition: Hemati et al. 2023, https://arxiv.org/abs/2301.11396. A class whose labels are in every
    task anyway (domains) comes back with those of its task. A task is tested on what appears in it first.
    """
    draw = generator("repetition", seed)
    pieces: list[list[StreamRows]] = [[] for _ in cut.drafts]
    for task, draft in enumerate(cut.drafts):
        for label in draft.train.y.unique():
            rows = (draft.train.y == label).nonzero().squeeze(1)
            rows = rows[torch.randperm(len(rows), generator=draw)]
            later = (torch.rand(len(cut.drafts) - task - 1, generator=draw) < probability).nonzero().squeeze(1)
            places = [task, *(later + task + 1).tolist()]
            for place, part in zip(places, rows.tensor_split(len(places)), strict=True):
                pieces[place].append(draft.train.take(part))
    return _each(cut, lambda task, _: pieces[task][0].join(*pieces[task][1:]))


def blurred(cut: Cut, share: float, seed: int) -> Cut:
    """This share of every task's samples goes into one pot, from which all tasks are filled up again at random.

    So each task holds mostly its own classes or domain, and some of all others before and after it (Bang et al. 2021,
    https://arxiv.org/abs/2103.17230, who call the share M).
    """
    orders = [torch.randperm(len(d.train.y), generator=generator("blurry", seed, i)) for i, d in enumerate(cut.drafts)]
    counts = [round(share * len(order)) for order in orders]
    given = [d.train.take(order[:n]) for d, order, n in zip(cut.drafts, orders, counts, strict=True)]
    kept = [d.train.take(order[n:]) for d, order, n in zip(cut.drafts, orders, counts, strict=True)]
    pot = given[0].join(*given[1:])
    pot = pot.take(torch.randperm(len(pot.y), generator=generator("blurry", seed)))
    ends = torch.tensor([0, *counts]).cumsum(0).tolist()
    dealt = [pot.take(torch.arange(first, last)) for first, last in pairwise(ends)]
    return _each(cut, lambda task, _: kept[task].join(dealt[task]))


def mislabelled(cut: Cut, share: float, seed: int) -> Cut:
    """This share of every task's training labels becomes another of the labels in that task, each equally likely."""

    def wrong(task: int, train: StreamRows) -> StreamRows:
        draw, labels = generator("label_noise", seed, task), train.y.unique()
        if len(labels) < 2:
            return train
        chosen = torch.randperm(len(train.y), generator=draw)[: round(share * len(train.y))]
        shift = torch.randint(1, len(labels), (len(chosen),), generator=draw)
        y = train.y.clone()
        y[chosen] = labels[(torch.searchsorted(labels, y[chosen]) + shift) % len(labels)]
        return train._replace(y=y)

    return _each(cut, wrong)


def validated(cut: Cut, share: float, seed: int) -> Cut:
    """This share of every task's training samples, of each class alike, is kept apart for selection."""

    def divided(task: int, draft: Draft) -> Draft:
        train, draw = draft.train, generator("validation", seed, task)
        apart = torch.zeros(len(train.y), dtype=torch.bool)
        for label in train.y.unique():
            rows = (train.y == label).nonzero().squeeze(1)
            apart[_some(rows, round(share * len(rows)), draw)] = True
        kept, held = (train.take(mask.nonzero().squeeze(1)) for mask in (~apart, apart))
        return draft._replace(train=kept, validation=held)

    return replace(cut, drafts=tuple(divided(i, draft) for i, draft in enumerate(cut.drafts)))


def _each(cut: Cut, change: Callable[[int, StreamRows], StreamRows]) -> Cut:
    drafts = [draft._replace(train=change(i, draft.train)) for i, draft in enumerate(cut.drafts)]
    return replace(cut, drafts=tuple(drafts))


def _some(rows: Tensor, n: int, draw: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=draw)[:n]]
