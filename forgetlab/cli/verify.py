"""Ours beside what others published or what their code gives: each row's file is run, and an equivalence test judges.

A verdict is on the margin that the row named beforehand: see `forgetlab.metrics.equivalence`. What was run on a
shortened schedule, or stands beside a number of other data, is shown and not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forgetlab.cli.progress import Progress, say
from forgetlab.cli.published_targets import NONE, OTHER_DATA, Target, TargetsError, chosen_targets, read
from forgetlab.config.load import load
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.engine import one_run
from forgetlab.engine.all_runs import carry_out
from forgetlab.experiment import Amount, Budget, Experiment
from forgetlab.learners.references import Joint
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
class RowProtocol:
    """What of a file's protocol decides its number, in a table's words."""

    class_order: str  # as in `forgetlab.cli.published_targets.CLASS_ORDERS`
    optimizer: str  # as in `forgetlab.cli.published_targets.OPTIMIZERS`
    work: str  # how long a task is trained, or all of them together

    @property
    def training(self) -> str:
        """The work, and what becomes of the optimizer between tasks."""
        return self.work if self.optimizer == NONE else f"{self.work}, optimizer {self.optimizer}"


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
    protocols = {file: row_protocol(one) for file, one in experiments.items()}
    for target in targets:
        refuse_other_protocol(target, protocols[target.file])
    found: list[Outcome] = []
    for file, one in experiments.items():
        values = accuracies(_carried_out(one, Store(runs), workers))
        found += [outcome(target, values, quick) for target in targets if target.file == file]
    found.sort(key=lambda one: targets.index(one.target))
    if markdown:
        print(as_markdown(found, quick, protocols))
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


def row_protocol(one: Experiment) -> RowProtocol:
    """What a row's file says of its one entry."""
    (run, *_) = one.runs()
    scenario = run.scenario
    by_class = scenario.get("transform") is None and scenario.get("by") in (None, "class")
    drawn = scenario.get("class_order", "drawn") == "drawn" and "class_order" in run.protocol.seeds_vary
    class_order = ("drawn" if drawn else "given") if by_class else NONE
    joint = one_run.make_learner(run)
    if isinstance(joint, Joint):
        sizes = [len(task.train.y) for task in one_run.load_scenario(run).tasks]
        budget = joint.budget(len(sizes) - 1, run.budget, sizes, run.train)
        return RowProtocol(class_order, NONE, f"{_amounts(budget)} in all")
    optimizer = "reset" if run.protocol.reset_optimizer else "kept"
    return RowProtocol(class_order, optimizer, f"{_amounts(run.budget)} a task")


def _amounts(budget: Budget) -> str:
    """A budget in words: 1 epoch, 100 updates."""
    unit = "epochs" if budget.updates is None else "updates"
    amount = budget.updates or budget.epochs
    numbers = ", ".join(map(str, amount)) if isinstance(amount, tuple) else str(amount)
    first = "" if budget.first_task is None else f" ({budget.first_task} in the first)"
    return f"{numbers} {unit[:-1] if numbers == '1' else unit}{first}"


def refuse_other_protocol(target: Target, ours: RowProtocol) -> None:
    """
    Raises:
        TargetsError: a row is judged whose file is of another protocol than its reference.
    """
    for what in ("class_order", "optimizer") if target.judged else ():
        theirs, our = getattr(target, what), getattr(ours, what)
        if theirs != our:
            told = f"row {target.name!r} was made with '{what}' {theirs}, and its file has it {our}"
            raise TargetsError(f"{target.file}: {told}; mend either, or give the row the status {OTHER_DATA!r}")


def shortened(whole: Experiment) -> Experiment:
    """Fewer seeds and a part of each task's training, under another name: the runs of the row stay where they are."""
    given = whole.protocol.budget.model_dump(exclude_none=True)
    budget = Budget.model_validate({name: _a_part(amount) for name, amount in given.items()})
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


def as_markdown(found: Sequence[Outcome], quick: bool, protocols: Mapping[Path, RowProtocol]) -> str:
    """The same for a text, with each row's method, stream, protocol and source."""
    targets = [one.target for one in found]
    ours = [protocols[target.file] for target in targets]
    row, setting, *rest = outcome_columns(found).items()
    words = {
        "method": [target.method for target in targets],
        "stream": [target.scenario for target in targets],
        "source": [target.source for target in targets],
    }
    protocol = {
        "class order": [_both(one.class_order, target.class_order) for one, target in zip(ours, targets, strict=True)],
        "training": [one.training for one in ours],
    }
    table = dict([row, *words.items(), setting, *protocol.items(), *rest])
    return "\n".join([f"{TITLE}:", "", *lines(table, words=7), "", *_told(found, quick), ""])


def _both(ours: str, theirs: str) -> str:
    return ours if ours == theirs else f"{ours}, theirs {theirs}"


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
