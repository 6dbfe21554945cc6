"""Writes a run's folder as its tasks end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forgetlab.engine import one_run
from forgetlab.engine.events import Event, TaskEnded, TaskSeconds
from forgetlab.results import module_files
from forgetlab.results.provenance import git_state, machine, packages
from forgetlab.results.store import RunFolder, write_bytes
from forgetlab.results.timing import Stopwatch

SLOW = 0.2  # seconds: what takes longer to write is written seldom, in a tenth of a run's time


@dataclass
class Recorder:
    """Writes a run's folder as its tasks end."""

    folder: RunFolder
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    watch: Stopwatch = field(default_factory=Stopwatch)
    git: dict[str, Any] | None = field(default_factory=lambda: git_state(Path.cwd()))
    tasks: list[TaskSeconds] = field(default_factory=list)
    latency: float | None = None
    next_save: float = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, TaskEnded):
            self.tasks.append(event.seconds)
            self.latency = event.latency
            for name, (tensors, values) in event.files.items():
                write_bytes(
                    module_files.path_of(self.folder, name), module_files.pack(tensors, _about(event, name, values))
                )
            self._save(event)

    def _save(self, event: TaskEnded) -> None:
        """After the last task, and before as often as it takes no large share of the time."""
        if event.task + 1 == event.n_tasks or time.perf_counter() >= self.next_save:
            timing, start = self.timing(), time.perf_counter()
            self.folder.save(event.result, timing)
            took = time.perf_counter() - start
            self.next_save = start + took + (10 * took if took > SLOW else 0)

    def timing(self) -> dict[str, Any]:
        taken = self.watch.seconds()
        return {
            "processor_seconds": taken["processor"],
            "wall_seconds": taken["wall"],
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
    shape = list(one_run.load_scenario(run).input_shape)
    pretrained = run.pretrain is not None
    task = one_run.load_scenario(run).tasks[event.task]
    told = {"task": task.name, "classes": list(task.classes)}
    return {**shared, "number": event.task, "input_shape": shape, "pretrained": pretrained, **told, **values}
