"""An experiment carried out: finished runs are found again, the others run, and each task is stored when it ends."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forgetlab import engine, modules
from forgetlab.description import Experiment, Run, Strategy
from forgetlab.engine import Event, Observer, TaskEnded
from forgetlab.fingerprint import run_key
from forgetlab.provenance import git_state, machine, packages
from forgetlab.store import RunFolder, Store, copy_of, write_bytes, write_text

SLOW = 0.05  # seconds: what takes longer to write is written seldom, in a tenth of a run's time
LARGE = 10**6  # parameters of a network that must not wait for the garbage collector


@dataclass(frozen=True)
class RunFound:
    """A finished run was found again."""

    run: Run
    folder: RunFolder


@dataclass(frozen=True)
class RunEnded:
    run: Run
    folder: RunFolder


@dataclass(frozen=True)
class RunFailed:
    """A run stopped with an error; the rows of its finished tasks are kept, and the traceback beside them."""

    run: Run
    folder: RunFolder
    error: Exception


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
        now = time.perf_counter()
        if event.task + 1 == event.n_tasks or now >= self.next_save:
            self.folder.save(event.result, self.timing())
            took = time.perf_counter() - now
            self.next_save = now + (10 * took if took > SLOW else 0)

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


Report = Callable[[Event | RunFound | RunEnded | RunFailed], None]


def carry_out(
    experiment: Experiment,
    store: Store,
    *,
    fresh: bool = False,
    report: Report = lambda _: None,
    after_strategy: Callable[[Strategy, list[RunFolder]], None] = lambda *_: None,
) -> list[RunFolder]:
    """Run what is not finished yet; ``fresh`` runs all again. Returns the folders in the experiment's order.

    A run that fails is reported and left unfinished; the others go on.
    """
    folders: list[RunFolder] = []
    store.begin(experiment.name, engine.plain(experiment))
    for entry in experiment.entries:
        its = [_one(experiment, experiment.run(entry, seed), store, fresh, report) for seed in experiment.seeds]
        after_strategy(entry, its)
        folders += its
    return folders


def _one(experiment: Experiment, run: Run, store: Store, fresh: bool, report: Report) -> RunFolder:
    folder = store.folder(experiment.name, run.strategy.name, run.seed)
    engine.set_process(run)
    key = run_key(run, engine.load_scenario(run))
    found = None if fresh else store.find(key, first=folder)
    if found is None or found != folder:
        store.set_aside(folder, key)
    if found is not None:
        _adopt(found, folder, run, key)
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


def _adopt(found: RunFolder, folder: RunFolder, run: Run, key: str) -> None:
    """Make a finished run's files this run's, under this run's name."""
    result = found.result()
    if found == folder or result is None:
        return
    copy = copy_of(found, folder.path)
    copy.begin(key, engine.plain(run))
    copy.save(replace(result, strategy=run.strategy.name), found.timing())
    os.replace(copy.path, folder.path)


def _both(first: Observer, second: Report) -> Observer:
    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell
