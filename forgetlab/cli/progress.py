"""What is seen while an experiment runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from forgetlab.engine.events import EpochEnded, RunEnded, RunFailed, RunFound, TaskEnded, TaskStarted, TrialEnded
from forgetlab.engine.search_space import planned
from forgetlab.experiment import Experiment, Run
from forgetlab.results.timing import wall_seconds


class Progress:
    """Shows how far runs, tasks and epochs are; use as a context, and call with each event."""

    def __init__(self, experiment: Experiment, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.runs = len(experiment.entries) * len(experiment.seeds) + planned(experiment)
        self.console, self.done, self.failed = console, 0, 0
        self.bars: Any = None
        if console.is_interactive:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bars = Progress(*columns, console=console, transient=True)
            self.all = self.bars.add_task(experiment.name, total=self.runs)
            self.now = self.bars.add_task("", total=None)

    def __enter__(self) -> Progress:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, event: Any) -> None:
        if isinstance(event, RunFailed):
            self._run_failed(event)
        elif isinstance(event, TrialEnded):
            self._trial_done(event)
        elif isinstance(event, (RunEnded, RunFound)):
            self._run_done(event)
        elif self.bars is not None:
            self._move(event)

    def _run_failed(self, event: RunFailed) -> None:
        self.done, self.failed = self.done + 1, self.failed + 1
        reason = str(event.error).splitlines()[0] if str(event.error) else type(event.error).__name__
        line = f"[{self.done}/{self.runs}] {_name(event.run)}: failed: {reason} ({event.folder.path / 'error.txt'})"
        self.console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)

    def _run_done(self, event: RunEnded | RunFound) -> None:
        self._done(f"{_name(event.run)}: accuracy {_outcome(event)}")

    def _trial_done(self, event: TrialEnded) -> None:
        last = event.last
        outcome = str(last.error) if isinstance(last, RunFailed) else f"validation accuracy {_outcome(last)}"
        self._done(f"{event.entry.name}, seed {event.run.seed}, {event.number}: {outcome}")

    def _done(self, line: str) -> None:
        """One more run; a line of it where there are no bars."""
        self.done += 1
        if self.bars is not None:
            self.bars.update(self.all, completed=self.done)
        else:
            self.console.print(f"[{self.done}/{self.runs}] {line}", markup=False, highlight=False, soft_wrap=True)

    def _move(self, event: Any) -> None:
        if isinstance(event, TaskStarted):
            text = f"{_name(event.run)}, task {event.task + 1}/{event.n_tasks}"
            self.bars.update(self.now, description=text, completed=0, total=None)
        elif isinstance(event, EpochEnded):
            self.bars.update(self.now, completed=event.epoch.epoch, total=event.epoch.epochs)
        elif isinstance(event, TaskEnded):
            self.bars.refresh()


def _outcome(event: RunEnded | RunFound) -> str:
    """The accuracy at the end, and how long it took."""
    result = event.folder.result()
    final = result.metrics.get("average_accuracy") if result else None
    accuracy = "none" if final is None else f"{final:.3f}"
    how = "found" if isinstance(event, RunFound) else f"{wall_seconds(event.folder.timing()):.1f} s"
    return f"{accuracy}, {how}"


def _name(run: Run) -> str:
    return f"{run.strategy.name}, seed {run.seed}"


def say(text: str) -> None:
    """A line for people, beside the output that programs read."""
    print(text, file=sys.stderr, flush=True)
