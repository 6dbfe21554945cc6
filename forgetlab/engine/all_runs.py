"""An experiment carried out: finished runs are found again, the others run, and each task is stored when it ends."""

from __future__ import annotations

import gc
import os
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from forgetlab.engine import one_run, search_space
from forgetlab.engine.events import Event, Lasting, Observer, RunEnded, RunFailed, RunFound, TrialEnded
from forgetlab.engine.recorder import Recorder
from forgetlab.engine.search import Attempt, Search, chosen_by
from forgetlab.engine.workers import results
from forgetlab.experiment import Experiment, Run, Strategy
from forgetlab.plugins import registry
from forgetlab.results.run_key import run_key
from forgetlab.results.store import RunFolder, Store, copy_of, to_json, write_text
from forgetlab.training.loop import Diverged

LARGE = 10**6  # parameters of a network that must not wait for the garbage collector
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
        store.begin(experiment.name, one_run.plain(experiment))
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
    return (
        [tuple(experiment.seeds)] if search_space.space(experiment, entry) else [(seed,) for seed in experiment.seeds]
    )


def _unit(
    experiment: Experiment, entry: Strategy, seeds: tuple[int, ...], store: Store, fresh: bool, report: Report
) -> list[RunFolder]:
    for path in experiment.plugins:
        registry.load_file(Path(path))
    if search_space.space(experiment, entry):
        return _tuned(experiment, entry, store, fresh, report)
    return [_one(experiment, experiment.run(entry, seed), store, fresh, report) for seed in seeds]


def _tuned(experiment: Experiment, entry: Strategy, store: Store, fresh: bool, report: Report) -> list[RunFolder]:
    """The seeds of an entry, each with what its search chooses."""
    assert experiment.tuning is not None
    found: dict[tuple[int, ...], Any] = {}
    folders = [store.folder(experiment.name, entry.name, seed) for seed in experiment.seeds]
    for folder, seed in zip(folders, experiment.seeds, strict=True):
        search = Search(experiment, entry, search_space.search_seeds(experiment.tuning, seed))
        try:
            if search.seeds not in found:
                found[search.seeds] = chosen_by(search, partial(_attempt, search, store.trials, fresh, report))
            tuned, log = found[search.seeds]
        except Exception as error:
            store.set_aside(folder, "")
            write_text(folder.path / "error.txt", traceback.format_exc())
            report(RunFailed(experiment.run(entry, seed), folder, error))
        else:
            _one(experiment, search_space.decided(experiment, entry, seed, tuned), store, fresh, report)
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
    score = result.metrics.get(search_space.OBJECTIVE) if result and result.finished else None
    return Attempt(score, counts, None if error is None else str(error))


def _one(
    experiment: Experiment, run: Run, store: Store, fresh: bool, report: Report, *, again: bool = True
) -> RunFolder:
    """``again``: a run whose training diverged is tried again."""
    folder = store.folder(experiment.name, run.strategy.name, run.seed)
    one_run.set_process(run)
    key = run_key(run, one_run.load_scenario(run))
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
    folder.begin(key, one_run.plain(run))
    try:
        one_run.run(run, _both(Recorder(folder), report), store.starts)
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
    copy.begin(key, one_run.plain(run), found.adopted_from)
    copy.save(replace(result, strategy=run.strategy.name), found.timing())
    os.replace(copy.path, folder.path)


def _both(first: Observer, second: Report) -> Observer:
    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell
