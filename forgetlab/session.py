"""An experiment carried out: finished runs are found again, the others run, and each task is stored when it ends."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from forgetlab import engine, modules, plugins, tuning
from forgetlab.description import Experiment, Run, Strategy
from forgetlab.engine import Event, Observer, TaskEnded
from forgetlab.fingerprint import run_key
from forgetlab.loop import Diverged
from forgetlab.provenance import git_state, machine, packages
from forgetlab.search import Attempt, Search, chosen_by
from forgetlab.store import RunFolder, Store, copy_of, to_json, write_bytes, write_text
from forgetlab.workers import results

SLOW = 0.2  # seconds: what takes longer to write is written seldom, in a tenth of a run's time
LARGE = 10**6  # parameters of a network that must not wait for the garbage collector


@dataclass(frozen=True)
class Lasting:
    """What is worth telling when a run is over."""


@dataclass(frozen=True)
class RunFound(Lasting):
    """A finished run was found again."""

    run: Run
    folder: RunFolder


@dataclass(frozen=True)
class RunEnded(Lasting):
    run: Run
    folder: RunFolder


@dataclass(frozen=True)
class RunFailed(Lasting):
    """A run stopped with an error; the rows of its finished tasks are kept, and the traceback beside them."""

    run: Run
    folder: RunFolder
    error: Exception

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another an error goes as its words: it may hold anything."""
        return RunFailed, (self.run, self.folder, RuntimeError(str(self.error) or type(self.error).__name__))


@dataclass(frozen=True)
class TrialEnded(Lasting):
    """A run of a search is done; the last of it as it would be told of any run."""

    run: Run
    entry: Strategy
    number: str  # which trial, with what
    last: RunFound | RunEnded | RunFailed


@dataclass
class Recorder:
    """Writes a run's folder as its tasks end."""

    folder: RunFolder
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    start: float = field(default_factory=time.perf_counter)
    git: dict[str, Any] | None = field(default_factory=lambda: git_state(Path.cwd()))
    tasks: list[Mapping[str, float]] = field(default_factory=list)
    latency: float | None = None
    next_save: float = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskEnded):
            self.tasks.append(event.seconds)
            self.latency = event.latency
            for name, (tensors, values) in event.files.items():
                write_bytes(modules.path_of(self.folder, name), modules.pack(tensors, _about(event, name, values)))
            self._save(event)

    def _save(self, event: TaskEnded) -> None:
        """After the last task, and before as often as it takes no large share of the time."""
        if event.task + 1 == event.n_tasks or time.perf_counter() >= self.next_save:
            timing, start = self.timing(), time.perf_counter()
            self.folder.save(event.result, timing)
            took = time.perf_counter() - start
            self.next_save = start + took + (10 * took if took > SLOW else 0)

    def timing(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self.start,
            "tasks": [dict(seconds) for seconds in self.tasks],
            "latency": self.latency,
            "started": self.started.isoformat(timespec="seconds"),
            "packages": packages(),
            "git": self.git,
            **machine(),
        }


def _about(event: TaskEnded, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a stored file: enough to use it without the run that made it."""
    run = event.run
    if name == "router":
        return {"router": run.strategy.router, "values": values}
    shared = {"isolation": run.strategy.isolation, "model": run.model, "init": run.seed_of("init")}
    if name == "shared":
        return shared
    shape = list(engine.load_scenario(run).input_shape)
    pretrained = run.pretrain is not None
    task = engine.load_scenario(run).tasks[event.task]
    told = {"task": task.name, "classes": list(task.classes)}
    return {**shared, "number": event.task, "input_shape": shape, "pretrained": pretrained, **told, **values}


Report = Callable[[Event | RunFound | RunEnded | RunFailed | TrialEnded], None]


def carry_out(
    experiment: Experiment,
    store: Store,
    *,
    fresh: bool = False,
    report: Report = lambda _: None,
    after_strategy: Callable[[Strategy, list[RunFolder]], None] = lambda *_: None,
    workers: int = 1,
) -> list[RunFolder]:
    """Run what is not finished yet; ``fresh`` runs all again. Returns the folders in the experiment's order.

    What a search is to choose is chosen before. A run that fails is reported and left unfinished; the others go on.
    So many ``workers`` go through the runs side by side, each a process with the file's ``threads``; every number is
    the same as with one, but events within a run are then not reported.

    Raises:
        Busy: another process is at work on an experiment of this name.
        WorkerLost: one of several workers was killed.
    """
    units = [(entry, seeds) for entry in experiment.entries for seeds in _together(experiment, entry)]
    work = [partial(_unit, experiment, entry, seeds, store, fresh) for entry, seeds in units]
    left = Counter(entry.name for entry, _ in units)
    folders: dict[int, list[RunFolder]] = {}
    with store.alone(experiment.name):
        store.begin(experiment.name, engine.plain(experiment))
        for place, its in results(work, report, Lasting, workers):
            folders[place] = its
            entry, _ = units[place]
            left[entry.name] -= 1
            if not left[entry.name]:
                places = [i for i, (other, _) in enumerate(units) if other is entry]
                after_strategy(entry, [folder for i in places for folder in folders[i]])
    return [folder for place in range(len(units)) for folder in folders[place]]


def _together(experiment: Experiment, entry: Strategy) -> list[tuple[int, ...]]:
    """An entry's seeds, those together that have the trials of a search in common."""
    return [tuple(experiment.seeds)] if tuning.space(experiment, entry) else [(seed,) for seed in experiment.seeds]


def _unit(
    experiment: Experiment, entry: Strategy, seeds: tuple[int, ...], store: Store, fresh: bool, report: Report
) -> list[RunFolder]:
    for path in experiment.plugins:
        plugins.load_file(Path(path))
    if tuning.space(experiment, entry):
        return _tuned(experiment, entry, store, fresh, report)
    return [_one(experiment, experiment.run(entry, seed), store, fresh, report) for seed in seeds]


def _tuned(experiment: Experiment, entry: Strategy, store: Store, fresh: bool, report: Report) -> list[RunFolder]:
    """The seeds of an entry, each with what its search chooses."""
    assert experiment.tuning is not None
    found: dict[tuple[int, ...], Any] = {}
    folders = [store.folder(experiment.name, entry.name, seed) for seed in experiment.seeds]
    for folder, seed in zip(folders, experiment.seeds, strict=True):
        search = Search(experiment, entry, tuning.search_seeds(experiment.tuning, seed))
        try:
            if search.seeds not in found:
                found[search.seeds] = chosen_by(search, partial(_attempt, search, store.trials, fresh, report))
            tuned, log = found[search.seeds]
        except Exception as error:
            store.set_aside(folder, "")
            write_text(folder.path / "error.txt", traceback.format_exc())
            report(RunFailed(experiment.run(entry, seed), folder, error))
        else:
            _one(experiment, tuning.decided(experiment, entry, seed, tuned), store, fresh, report)
            write_text(folder.path / "tuning.json", to_json(log))
    return folders


def _attempt(search: Search, store: Store, fresh: bool, report: Report, run: Run, number: str) -> Attempt:
    """One run of a trial; training that diverges is an outcome like another.

    Raises:
        Exception: whatever else stops the run.
    """
    last: list[RunFound | RunEnded | RunFailed] = []

    def tell(event: Any) -> None:
        (last.append if isinstance(event, RunFound | RunEnded | RunFailed) else report)(event)

    folder = _one(search.experiment, run, store, fresh, tell, again=False)
    report(TrialEnded(run, search.entry, number, last[0]))
    error, result = getattr(last[0], "error", None), folder.result()
    if error is not None and not isinstance(error, Diverged):
        raise error
    counts = result.counts if result else {}
    score = result.metrics.get(tuning.OBJECTIVE) if result and result.finished else None
    return Attempt(score, counts, None if error is None else str(error))


def _one(
    experiment: Experiment, run: Run, store: Store, fresh: bool, report: Report, *, again: bool = True
) -> RunFolder:
    """``again``: a run whose training diverged is tried again."""
    folder = store.folder(experiment.name, run.strategy.name, run.seed)
    engine.set_process(run)
    key = run_key(run, engine.load_scenario(run))
    if not (again or fresh) and folder.key == key and (why := _diverged(folder)):
        report(RunFailed(run, folder, Diverged(why)))
        return folder
    found = None if fresh else store.find(key, first=folder)
    if found is None or found != folder:
        store.set_aside(folder, key)
    if found is not None:
        _copy(found, folder, run, key)
        report(RunFound(run, folder))
        return folder
    folder.begin(key, engine.plain(run))
    try:
        engine.run(run, _both(Recorder(folder), report), store.starts)
    except Exception as error:
        write_text(folder.path / "error.txt", traceback.format_exc())
        report(RunFailed(run, folder, error))
    else:
        report(RunEnded(run, folder))
    if (result := folder.result()) and result.counts["total"].get("parameters", 0) > LARGE:
        gc.collect()  # Avalanche's objects refer to each other in circles, and hold the networks until somebody looks
    return folder


def _diverged(folder: RunFolder) -> str | None:
    """Why training stopped, where it diverged; with the same key it would again."""
    path = folder.path / "error.txt"
    last = path.read_text(encoding="utf-8").splitlines()[-1] if path.is_file() else ""
    kind, _, why = last.partition(": ")
    return why if kind == f"{Diverged.__module__}.{Diverged.__qualname__}" else None


def _copy(found: RunFolder, folder: RunFolder, run: Run, key: str) -> None:
    """Make a finished run's files this run's, under this run's name."""
    result = found.result()
    if found == folder or result is None:
        return
    copy = copy_of(found, folder.path)
    copy.begin(key, engine.plain(run), found.adopted_from)
    copy.save(replace(result, strategy=run.strategy.name), found.timing())
    os.replace(copy.path, folder.path)


def _both(first: Observer, second: Report) -> Observer:
    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell
