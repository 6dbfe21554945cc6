"""Ours beside what others published or what their code gives: each row's file is run, and an equivalence test judges.

A verdict is on the margin that the row named beforehand: see `forgetlab.equivalence`. What was run on a shortened
schedule, or stands beside a number of other data, is shown and not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forgetlab.config import load
from forgetlab.description import Budget, Experiment
from forgetlab.equivalence import Difference, Sample, difference, verdict
from forgetlab.progress import Progress, say
from forgetlab.session import carry_out
from forgetlab.store import RunFolder, Store
from forgetlab.targets import OTHER_DATA, Target, TargetsError, chosen, read
from forgetlab.yaml_file import FileErrors

AGREES, DIFFERS, UNDECIDED, FAILED = "agrees", "differs", "undecided", "failed"
NOT_COMPARABLE = "not comparable"
QUICK_SEEDS, QUICK_SHARE = 2, 5  # the first seeds, and one part in so many of a task's training
QUICK = f"the schedule was shortened: {QUICK_SEEDS} seeds, 1/{QUICK_SHARE} of the updates or epochs"
METRIC = "average_accuracy"
COLOURS = {AGREES: "green", DIFFERS: "red", FAILED: "red", UNDECIDED: "yellow"}


@dataclass(frozen=True)
class Outcome:
    """A row, what we found, and what may be said of the two."""

    target: Target
    ours: Sample | None  # None where a run failed
    verdict: str

    @property
    def difference(self) -> Difference | None:
        return None if self.ours is None else difference(self.ours, self.target.theirs)

    @property
    def red(self) -> bool:
        return self.verdict in (DIFFERS, FAILED)


def verify(path: Path, names: Sequence[str], runs: Path, quick: bool = False) -> bool:
    """Run the rows of a table, print them, and tell whether any that was judged differs, or failed.

    Raises:
        TargetsError: the table, a name, or a row's file cannot be used.
    """
    targets = chosen(read(path), names)
    experiments = {target.file: experiment(target.file, quick) for target in targets}
    found: list[Outcome] = []
    for file, one in experiments.items():
        values = accuracies(_carried_out(one, Store(runs)))
        found += [outcome(target, values, quick) for target in targets if target.file == file]
    found.sort(key=lambda one: targets.index(one.target))
    print_table(found, quick)
    return any(one.red for one in found)


def experiment(file: Path, quick: bool = False) -> Experiment:
    """The one strategy of a row's file, on a shortened schedule where that is enough.

    Raises:
        TargetsError: the file is refused, or holds more than one strategy or fewer than two seeds.
    """
    try:
        whole = load(file)
    except FileErrors as error:
        raise TargetsError(str(error)) from error
    if len(whole.entries) != 1 or len(whole.seeds) < 2:
        told = f"{len(whole.entries)} entries and {len(whole.seeds)} seeds"
        raise TargetsError(f"{file}: a row's file has one entry and two seeds or more, not {told}")
    return shortened(whole) if quick else whole


def shortened(whole: Experiment) -> Experiment:
    """Fewer seeds and a part of each task's training, under another name: the runs of the row stay where they are."""
    budget = whole.protocol.budget
    parts = {name: max(1, n // QUICK_SHARE) for name, n in budget.model_dump().items() if n is not None}
    protocol = whole.protocol.model_copy(update={"budget": Budget(**parts)})
    return whole.model_copy(
        update={"name": f"{whole.name}-quick", "seeds": whole.seeds[:QUICK_SEEDS], "protocol": protocol}
    )


def accuracies(folders: Iterable[RunFolder]) -> list[float | None]:
    """Of each run; None where it failed."""
    results = [folder.result() for folder in folders]
    return [result.metrics[METRIC] if result is not None and result.finished else None for result in results]


def outcome(target: Target, values: Sequence[float | None], quick: bool = False) -> Outcome:
    """What may be said of a row."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Outcome(target, None, FAILED)
    ours = Sample.of(known)
    if quick:
        return Outcome(target, ours, NOT_COMPARABLE)
    if target.margin is None:
        return Outcome(target, ours, OTHER_DATA)
    return Outcome(target, ours, verdict(difference(ours, target.theirs), target.margin))


def print_table(found: Sequence[Outcome], quick: bool) -> None:
    from rich.table import Table

    from forgetlab.shelf import right, screen

    names = ("ours", "theirs", "difference", "in its errors", "margin")
    table = Table("row", "setting", *right(*names), "verdict", box=None)
    for one in found:
        style = COLOURS.get(one.verdict, "dim")
        table.add_row(one.target.name, one.target.setting, *_cells(one), f"[{style}]{one.verdict}[/{style}]")
    console = screen()
    console.print("\n[bold]Accuracy after the last task, mean ± standard deviation (seeds)[/bold]")
    console.print(table)
    for line in _told(found, quick):
        console.print(line, highlight=False)


def _cells(one: Outcome) -> Iterator[str]:
    gap, margin = one.difference, one.target.margin
    yield "-" if one.ours is None else str(one.ours)
    yield str(one.target.theirs)
    yield "-" if gap is None else f"{gap.value:+.3f}"
    yield "-" if gap is None or gap.in_errors is None else f"{gap.in_errors:+.1f}"
    yield "-" if margin is None else f"{margin:g}"


def _told(found: Sequence[Outcome], quick: bool) -> Iterator[str]:
    """How many rows have which verdict, and what the verdicts mean."""
    verdicts = [one.verdict for one in found]
    yield ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    if quick:
        yield f"{NOT_COMPARABLE}: {QUICK}"
    elif any(one.target.judged for one in found):
        yield "agrees: the 90 % interval of the difference lies inside ±margin; differs: outside of it"
    if OTHER_DATA in verdicts:
        yield f"{OTHER_DATA}: the number is of data that are not here; it stands beside and is not judged"


def _carried_out(one: Experiment, store: Store) -> list[RunFolder]:
    from rich.console import Console

    say(f"{one.name}:")
    with Progress(one, Console(stderr=True)) as report:
        return carry_out(one, store, report=report)
