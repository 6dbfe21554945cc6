"""Whether a stream is sound: its shapes, labels and values, and whether any row is both learned from and tested on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forgetlab.data.datasets import Samples
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario, Task

NAMED = 5  # rows that a line names
LONG = 40  # characters of a task's name
CHUNK = 2**21  # bytes of input that are looked at together: they stay in the processor's cache
MIXER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd
KINDS = {"training": "train", "validation": "validation", "test": "test"}
APART = (("training", "test"), ("validation", "test"), ("training", "validation"))  # no row may be in both

Hashes = NDArray[np.uint64]  # (n,) one for each row


class TaskData(NamedTuple):
    """Training, validation or test data of one task."""

    task: str
    kind: str
    samples: Samples

    def __str__(self) -> str:
        return f"{self.task}, {self.kind}"


class Scan(NamedTuple):
    """What one pass over a part's inputs tells."""

    hashes: Hashes  # equal for equal rows
    broken: list[int]  # rows that hold NaN or infinity


def soundness_problems(scenario: Scenario) -> list[str]:
    """All that is wrong with a stream, a line each. Rows are counted from 0 within their part."""
    if not scenario.tasks:
        return ["the stream has no tasks; give it at least one"]
    tasks = {_named(i, task): task for i, task in enumerate(scenario.tasks)}
    sizes = dict.fromkeys(tasks, scenario.n_classes)
    if scenario.held_back is not None:
        tasks["the classes held back"] = scenario.held_back
        sizes["the classes held back"] = len(scenario.held_back.classes)  # they are numbered for themselves
    parts = [part for name, task in tasks.items() for part in _parts(name, task)]
    forms = {str(part): list(_form(part, parts[0])) for part in parts}
    found = [line for lines in forms.values() for line in lines]
    for name, task in tasks.items():
        found += _task_problems(name, task, sizes[name])
    found += [*_alone(scenario), *_never_learned(scenario)]
    return found + list(_row_problems([part for part in parts if not forms[str(part)]], scenario.rows_may_repeat))


def shared_rows(seen: Scenario, scored: Scenario) -> list[str]:
    """Rows that a stream to search on has in common with the one that is scored."""
    if seen.rows_may_repeat or scored.rows_may_repeat or seen.input_shape != scored.input_shape:
        return []
    theirs = [part for i, task in enumerate(scored.tasks) for part in _parts(_named(i, task), task)]
    ours = [part for i, task in enumerate(seen.tasks) for part in _parts(_named(i, task), task) if part.kind != "test"]
    if theirs[0].samples.x.dtype != ours[0].samples.x.dtype:
        return []
    index = Index(theirs, [_scan(part.samples.x).hashes for part in theirs])
    twins = {part: index.twins(part, *index.hits(_scan(part.samples.x).hashes)) for part in ours}
    return [
        f"{part}: {_count(some)} also in the scored stream (row {some[0][0]} is row {some[0][1]} of {some[0][2]}), "
        "so the search would see what is scored; search on the stream's own first 'tasks', or on other data"
        for part, some in twins.items()
        if some
    ]


def _named(number: int, task: Task) -> str:
    short = task.name if len(task.name) <= LONG else f"{task.name[: LONG - 3]}..."
    return f"task {number} ({short!r})"


def _parts(name: str, task: Task) -> Iterator[TaskData]:
    for kind, field in KINDS.items():
        if (samples := getattr(task, field)) is not None:
            yield TaskData(name, kind, samples)


def _form(part: TaskData, first: TaskData) -> Iterator[str]:
    """What the rows of a part look like beside those of the first."""
    (x, y), like = part.samples, first.samples.x
    if len(x) != len(y):
        yield f"{part}: {len(x):,} inputs but {len(y):,} labels; give every input one label"
    if y.dtype != torch.int64 or y.dim() != 1:
        yield f"{part}: labels are {_form_of(y)}; make them int64, one number for each row"
    if x.shape[1:] != like.shape[1:] or x.dtype != like.dtype:
        yield f"{part}: a row is {_form_of(x)}, but {_form_of(like)} in {first}; bring all rows to one form"
    if 0 in x.shape[1:]:
        yield f"{part}: a row is {_form_of(x)} and holds no values; give it some"


def _form_of(tensor: Tensor) -> str:
    shape = " x ".join(map(str, tensor.shape[1:])) or "one number"
    return f"{shape} ({str(tensor.dtype).removeprefix('torch.')})"


def _task_problems(name: str, task: Task, n_classes: int) -> Iterator[str]:
    for kind in ("training", "test"):
        if not len(getattr(task, KINDS[kind]).y):
            yield f"{name} has no {kind} rows; give it some, or leave the task out"
    occurring: set[int] = set()
    for part in _parts(name, task):
        y = part.samples.y.flatten()
        wrong = (y < 0) | (y >= n_classes)
        if rows := wrong.nonzero().flatten().tolist():
            yield f"{part}: labels outside 0 to {n_classes - 1} in {_rows(rows)}; number the classes from 0"
        occurring |= set(y[~wrong].unique().tolist())
    if occurring != set(task.classes):
        told, truth = (_listed(map(str, sorted(labels))) for labels in (set(task.classes), occurring))
        yield f"{name}: its classes are given as {told}, but its rows have {truth}; name those that occur"


def _alone(scenario: Scenario) -> Iterator[str]:
    """Tasks that any answer solves. One new class in a task is sound where all seen classes compete."""
    for i, task in enumerate(scenario.tasks):
        if len(task.classes) == 1 and scenario.task_known_at_test:
            why = "is told at test and has one class, so nothing is left to tell apart"
            yield f"{_named(i, task)} {why}; give it two classes or more"
    if len({label for task in scenario.tasks for label in task.classes}) == 1 and not scenario.task_known_at_test:
        yield "all tasks have the same single class, so nothing is left to tell apart; give the stream two or more"


def _never_learned(scenario: Scenario) -> Iterator[str]:
    """Classes that are tested before any row of theirs was trained on."""
    learned: set[int] = set()
    for i, task in enumerate(scenario.tasks):
        learned |= set(task.train.y.tolist())
        if len(task.train.y) and (missing := set(task.test.y.tolist()) - learned):
            labels = _listed(map(str, sorted(missing)))
            yield f"{_named(i, task)} tests labels {labels}, of which no row was trained on by then; give it some"


def _row_problems(parts: Sequence[TaskData], may_repeat: bool) -> Iterator[str]:
    """What is found by looking at every row."""
    scans = [_scan(part.samples.x) for part in parts]
    for part, scan in zip(parts, scans, strict=True):
        if scan.broken:
            yield f"{part}: NaN or infinity in {_rows(scan.broken)}; replace these values, or leave the rows out"
    sides = {k: [(p, s.hashes) for p, s in zip(parts, scans, strict=True) if p.kind == k] for k in KINDS}
    for kind, apart in () if may_repeat else APART:
        if sides[kind] and sides[apart]:
            yield from _overlap(sides[kind], Index(*zip(*sides[apart], strict=True)))


def _overlap(parts: Sequence[tuple[TaskData, Hashes]], index: Index) -> Iterator[str]:
    """Rows that are kept apart as well."""
    for part, hashes in parts:
        if twins := index.twins(part, *index.hits(hashes)):
            named = _listed((f"row {row} is row {other} of {task}" for row, other, task in twins), "; ")
            where = f"{part}: {_count(twins)} also {index.parts[0].kind} data ({named})"
            yield f"{where}; keep each on one side, or say 'rows_may_repeat: true' where different things look the same"


def _scan(x: Tensor) -> Scan:
    """One pass over the rows, by `index_select` alone: they may lie on disk."""
    hashes, broken = [np.empty(0, np.uint64)], []
    for first, chunk in _chunks(x, torch.arange(len(x))):
        if chunk.is_floating_point() and not bool(torch.isfinite(chunk).all()):
            bad = ~torch.isfinite(chunk.reshape(len(chunk), -1)).all(1)
            broken += (bad.nonzero().flatten() + first).tolist()
        hashes.append(_hashed(_bytes(chunk)))
    return Scan(np.concatenate(hashes), broken)


def _chunks(x: Tensor, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The rows in pieces, each with the place of its first."""
    size = max(1, CHUNK // (math.prod(x.shape[1:]) * x.dtype.itemsize))
    for first in range(0, len(rows), size):
        yield first, x.index_select(0, rows[first : first + size])


def _bytes(chunk: Tensor) -> NDArray[np.uint8]:
    return chunk.reshape(len(chunk), -1).contiguous().view(torch.uint8).numpy()  # (n, bytes of a row)


def _hashed(rows: NDArray[np.uint8]) -> Hashes:
    """A 64-bit hash of each row: its words are mixed, then summed with fixed random factors, modulo 2^64."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8))) if rows.shape[1] % 8 else rows
    words = padded.view(np.uint64)
    mixed = (words ^ (words >> np.uint64(32))) * MIXER
    mixed ^= mixed >> np.uint64(29)
    return mixed @ _factors(words.shape[1])


@cache
def _factors(n: int) -> Hashes:
    drawn = torch.randint(-(2**63), 2**63 - 1, (n,), generator=generator("row hashes"))
    return drawn.numpy().view(np.uint64) | np.uint64(1)


class Index:
    """The rows of parts that are kept apart, to be found by their hashes."""

    def __init__(self, parts: Sequence[TaskData], hashes: Sequence[Hashes]) -> None:
        self.parts = parts
        self.hashes, self.first = np.unique(np.concatenate(hashes), return_index=True)
        self.ends = np.cumsum([len(part) for part in hashes])

    def hits(self, hashes: Hashes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which rows have a hash that is here, and its first place."""
        if not len(self.hashes):
            return np.empty(0, np.intp), np.empty(0, np.intp)
        at = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        rows = (self.hashes[at] == hashes).nonzero()[0]
        return rows, self.first[at[rows]]

    def twins(self, part: TaskData, rows: NDArray[np.intp], places: NDArray[np.intp]) -> list[tuple[int, int, str]]:
        """Those of the hits that are equal: (row, which row here, of which task)."""
        owners = np.searchsorted(self.ends, places, side="right")
        found = []
        for owner in np.unique(owners).tolist():
            there, start = self.parts[owner], int(self.ends[owner - 1]) if owner else 0
            mine, theirs = (torch.from_numpy(side[owners == owner]) for side in (rows, places - start))
            same = _equal(part.samples.x, mine, there.samples.x, theirs)
            task = there.task.partition(" (")[0]
            found += [(*pair, task) for pair in zip(mine[same].tolist(), theirs[same].tolist(), strict=True)]
        return sorted(found)


def _equal(x: Tensor, rows: Tensor, other: Tensor, other_rows: Tensor) -> Tensor:
    """Whether pairs of rows hold the same bytes."""
    pairs = zip(_chunks(x, rows), _chunks(other, other_rows), strict=True)
    same = [(_bytes(ours) == _bytes(theirs)).all(1) for (_, ours), (_, theirs) in pairs]
    return torch.from_numpy(np.concatenate(same))


def _rows(rows: Sequence[int]) -> str:
    return f"row{'s' if len(rows) > 1 else ''} {_listed(map(str, rows))}"


def _count(rows: Sequence[object]) -> str:
    return f"{len(rows):,} rows are" if len(rows) > 1 else "1 row is"


def _listed(items: Iterable[str], mark: str = ", ") -> str:
    """
    >>> _listed("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    every = list(items)
    more = f" and {len(every) - NAMED:,} more" if len(every) > NAMED else ""
    return mark.join(every[:NAMED]) + more
