"""Published and reference numbers to be met: a CSV table with a row for each, beside the files that make ours.

Lines that begin with ``#`` say how the table came about. Every row names its protocol, its source and its margin.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from forgetlab.metrics.equivalence import Sample
from forgetlab.plugins.options import suggestion

JUDGED, OTHER_DATA = "judged", "other data"
NONE = "-"  # what a row has no choice of
CLASS_ORDERS = ("given", "drawn", NONE)  # drawn: by each seed anew; none where classes are not shared out among tasks
OPTIMIZERS = ("kept", "reset", NONE)  # from task to task; none where there is one training
ROUNDING = 5e-4  # of means and spreads against the values that they are of


class TargetsError(ValueError):
    """The table cannot be used: its file, the line, and what is wrong there."""


@dataclass(frozen=True)
class Target:
    """One number, and what it is a number of."""

    name: str
    method: str
    scenario: str
    setting: str
    class_order: str  # one of `CLASS_ORDERS`: that of the reference
    optimizer: str  # one of `OPTIMIZERS`: that of the reference
    status: str  # `JUDGED`, or `OTHER_DATA` where the number is of data that cannot be had here
    value: float  # mean accuracy over tasks after the last one, mean over seeds
    spread: float  # standard deviation over seeds
    seeds: int
    margin: float | None  # None where nothing is judged
    source: str
    origin: str  # how the number was made: code, version, command, and what was replaced
    file: Path  # the scenario file with the same protocol
    values: tuple[float, ...]  # of each seed, where they are known

    @property
    def judged(self) -> bool:
        return self.status == JUDGED

    @property
    def theirs(self) -> Sample:
        return Sample(self.value, self.spread, self.seeds)


COLUMNS = tuple(field.name for field in fields(Target))


def read(path: Path) -> list[Target]:
    """
    Raises:
        TargetsError: there is no such file, or it is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = "; the table lies in ForgetLab's repository, '--targets' names another"
        raise TargetsError(f"{path}: {error.strerror}{hint}") from error
    lines = list(_lines(text))
    if not lines:
        raise TargetsError(f"{path}: the table is empty")
    (number, header), *rows = lines
    if sorted(header) != sorted(COLUMNS):
        refuse(path, number, f"the columns are {', '.join(header)}; they should be {', '.join(COLUMNS)}")
    found: dict[str, Target] = {}
    for number, cells in rows:
        if len(cells) != len(header):
            refuse(path, number, f"{len(cells)} cells for {len(header)} columns")
        target = _Line(path, number, dict(zip(header, map(str.strip, cells), strict=True))).target()
        if target.name in found:
            refuse(path, number, f"a second row {target.name!r}")
        found[target.name] = target
    return list(found.values())


def chosen_targets(targets: Sequence[Target], names: Iterable[str]) -> list[Target]:
    """The targets of these names, or all.

    Raises:
        TargetsError: there is no row of a name.
    """
    by_name = {target.name: target for target in targets}
    for name in names:
        if name not in by_name:
            hint = suggestion(name, by_name) or f"; there are: {', '.join(by_name)}"
            raise TargetsError(f"no row {name!r} among the published numbers{hint}")
    return [by_name[name] for name in names] or list(targets)


def refuse(path: Path, line: int, message: str) -> NoReturn:
    raise TargetsError(f"{path}:{line}: {message}")


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """What is neither a remark nor empty, with its number."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, next(csv.reader([line]))


@dataclass(frozen=True)
class _Line:
    """A row as it is read."""

    path: Path
    line: int
    cells: dict[str, str]

    def target(self) -> Target:
        texts = {name: self.text(name) for name in ("name", "method", "scenario", "setting", "source", "origin")}
        status = self.one_of("status", (JUDGED, OTHER_DATA))
        class_order, optimizer = self.one_of("class_order", CLASS_ORDERS), self.one_of("optimizer", OPTIMIZERS)
        seeds = self.seeds()
        values = tuple(self._number("values", part) for part in self.cells["values"].split(";") if part.strip())
        value, spread = self.number("value"), self.number("spread")
        if spread < 0:
            self.refuse(f"spread is {spread:g}, below 0")
        self.check(values, value, spread, seeds)
        margin = None if status == OTHER_DATA else self.margin()
        file = self.path.parent / self.text("file")
        if not file.is_file():
            self.refuse(f"file: there is no {file}")
        return Target(
            **texts,
            class_order=class_order,
            optimizer=optimizer,
            status=status,
            value=value,
            spread=spread,
            seeds=seeds,
            margin=margin,
            file=file,
            values=values,
        )

    def text(self, column: str) -> str:
        return self.cells[column] or self.refuse(f"{column} is empty")

    def one_of(self, column: str, words: Sequence[str]) -> str:
        word = self.text(column)
        if word not in words:
            self.refuse(f"{column} is {word!r}{suggestion(word, words)}; {' or '.join(words)}")
        return word

    def number(self, column: str) -> float:
        return self._number(column, self.text(column))

    def seeds(self) -> int:
        seeds = self.number("seeds")
        if seeds < 2 or seeds != int(seeds):
            self.refuse(f"seeds is {seeds:g}; a spread needs a whole number of at least 2")
        return int(seeds)

    def margin(self) -> float:
        margin = self.number("margin")
        return margin if margin > 0 else self.refuse(f"margin is {margin:g}; it is above 0")

    def check(self, values: tuple[float, ...], value: float, spread: float, seeds: int) -> None:
        """Whether mean and spread are those of the values."""
        if values and len(values) != seeds:
            self.refuse(f"{len(values)} values for {seeds} seeds")
        told = Sample.of(values) if values else Sample(value, spread, seeds)
        for name, given, true in (("value", value, told.mean), ("spread", spread, told.deviation)):
            if abs(given - true) > ROUNDING:
                self.refuse(f"{name} is {given:g}, but the values give {true:.4f}")

    def _number(self, column: str, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        return number if math.isfinite(number) else self.refuse(f"{column}: {text!r} is not a number")

    def refuse(self, message: str) -> NoReturn:
        refuse(self.path, self.line, message)
