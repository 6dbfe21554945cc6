"""Ours beside what others published or what their code gives: each row's file is run, and an equivalence test judges.

A verdict is on the margin that the row named beforehand: see `forgetlab.metrics.equivalence`. What was run on a
shortened schedule, or stands beside a number of other data, is shown and not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forgetlab.cli.progress import Progress, say
from forgetlab.cli.published_targets import OTHER_DATA, Target, TargetsError, chosen_targets, read
from forgetlab.config.load import load
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.engine.all_runs import carry_out
from forgetlab.experiment import Amount, Budget, Experiment
from forgetlab.metrics.equivalence import Difference, Sample, difference, verdict
from forgetlab.report.markdown import lines
from forgetlab.results.store import RunFolder, Store

AGREES, DIFFERS, UNDECIDED, FAILED = "agrees", "differs", "undecided", "failed"
NOT_COMPARABLE = "not comparable"
QUICK_SEEDS, QUICK_SHARE = 2, 5  # the first seeds, and one part in so many of a task's training
QUICK = f"the schedule was shortened: {QUICK_SEEDS} seeds, 1/{QUICK_SHARE} of the updates or epochs"
METRIC = "average_accuracy"
TITLE = "Accuracy after the last task, mean ± standard deviation (seeds)"
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


def verify(
    path: Path, names: Sequence[str], runs: Path, quick: bool = False, markdown: bool = False, workers: int = 1
) -> bool:
    """Run the rows of a table, print them, and tell whether any that was judged differs, or failed.

    Raises:
        TargetsError: the table, a name, or a row's file cannot be used.
    """
    targets = chosen_targets(read(path), names)
    experiments = {target.file: experiment(target.file, quick) for target in targets}
    found: list[Outcome] = []
    for file, one in experiments.items():
        values = accuracies(_carried_out(one, Store(runs), workers))
        found += [outcome(target, values, quick) for target in targets if target.file == file]
    found.sort(key=lambda one: targets.index(one.target))
    if markdown:
        print(as_markdown(found, quick))
    else:
        print_outcomes(found, quick)
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
    given = whole.protocol.budget.model_dump(exclude_none=True)
    budget = Budget(**{name: _a_part(amount) for name, amount in given.items()})
    protocol = whole.protocol.model_copy(update={"budget": budget})
    return whole.model_copy(
        update={"name": f"{whole.name}-quick", "seeds": whole.seeds[:QUICK_SEEDS], "protocol": protocol}
    )


def _a_part(amount: int | tuple[int, ...]) -> Amount:
    """Of a number, or of each of a list."""
    if isinstance(amount, tuple):
        return tuple(max(1, n // QUICK_SHARE) for n in amount)
    return max(1, amount // QUICK_SHARE)


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


def outcome_columns(found: Sequence[Outcome]) -> dict[str, list[str]]:
    """The table by its columns: two of words, then numbers, and the verdict at last."""
    return {
        "row": [one.target.name for one in found],
        "setting": [one.target.setting for one in found],
        "ours": ["-" if one.ours is None else str(one.ours) for one in found],
        "theirs": [str(one.target.theirs) for one in found],
        "difference": [f"{gap.value:+.3f}" if (gap := one.difference) else "-" for one in found],
        "in its errors": [_in_errors(one.difference) for one in found],
        "margin": ["-" if one.target.margin is None else f"{one.target.margin:g}" for one in found],
        "verdict": [one.verdict for one in found],
    }


def _in_errors(gap: Difference | None) -> str:
    return "-" if gap is None or gap.in_errors is None else f"{gap.in_errors:+.1f}"


def print_outcomes(found: Sequence[Outcome], quick: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from forgetlab.cli.tables import right, screen

    row, setting, *numbers, verdict = content = outcome_columns(found)
    table = Table(row, setting, *right(*numbers), verdict, box=None)
    for *cells, word in zip(*content.values(), strict=True):
        table.add_row(*cells, Text(word, COLOURS.get(word, "dim")))
    console = screen()
    console.print(f"\n[bold]{TITLE}[/bold]")
    console.print(table)
    for line in _told(found, quick):
        console.print(line, highlight=False)


def as_markdown(found: Sequence[Outcome], quick: bool) -> str:
    """The same for a text, with each row's method, stream and source."""
    targets = [one.target for one in found]
    row, setting, *rest = outcome_columns(found).items()
    words = {
        "method": [target.method for target in targets],
        "stream": [target.scenario for target in targets],
        "source": [target.source for target in targets],
    }
    table = dict([row, *words.items(), setting, *rest])
    return "\n".join([f"{TITLE}:", "", *lines(table, words=5), "", *_told(found, quick), ""])


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


def _carried_out(one: Experiment, store: Store, workers: int) -> list[RunFolder]:
    from rich.console import Console

    say(f"{one.name}:")
    with Progress(one, Console(stderr=True)) as report:
        folders = carry_out(one, store, report=report, workers=workers)
    if adopted := sum(bool(folder.adopted_from) for folder in folders):
        told = f"{adopted} of {len(folders)} runs were made by an earlier version and adopted"
        say(f"{told}; 'forgetlab run --fresh' of the row's file makes them anew")
    return folders
