"""Finished runs of an earlier version, taken over under the key that they have today.

A key holds a digest of the code that computes: where files move or change, it moves too, though no number may have
changed. A run is taken over if all is equal that its folder tells: each resolved setting, the versions of the packages
that compute, and the stream's tasks with their classes and the numbers of their test samples. The folder does not tell
its data beyond that, nor the code that made it: so the old key stays in ``config.yaml``, and the table says whose runs
were adopted. No result is written to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from forgetlab.engine import one_run, search_space
from forgetlab.engine.search import Search
from forgetlab.engine.settings_then import (
    FlatSettings,
    flat_settings,
    in_short,
    setting_differences,
    with_todays_defaults,
)
from forgetlab.experiment import Choice, Experiment, Run, Strategy
from forgetlab.results.run_key import (
    ARITHMETIC,
    OPTIONAL,
    plugin_files,
    run_key,
    used_plugins,
    versions,
)
from forgetlab.results.store import SET_ASIDE, Busy, Result, RunFolder, Store

UNREADABLE = "its config.yaml cannot be read"
OTHER_RESULT = "its result.json is none that this version reads"
OTHER_SEARCH = "its options were chosen by another search"
NO_VERSIONS = "its timing.json does not tell which packages made it"

Verdict = Literal["adopted", "current", "refused", "unfinished"]


@dataclass(frozen=True)
class Adoption:
    """What became of one run; ``refused``: it is finished, and was left as it is."""

    run: str  # in words
    verdict: Verdict
    reasons: tuple[str, ...] = ()  # why it was refused
    note: str = ""  # what its owner should know, though it was adopted
    trial: bool = False  # of a search


@dataclass(frozen=True)
class FoundRun:
    """A run folder as it was found; options that have come since it was made are there with their defaults."""

    folder: RunFolder
    key: str | None
    description: Mapping[str, Any] | None  # None: it cannot be read
    settings: FlatSettings

    @classmethod
    def read(cls, folder: RunFolder) -> FoundRun:
        try:
            description = with_todays_defaults(folder.description())
        except (OSError, ValueError, AttributeError, yaml.YAMLError):  # the last but one: it is no mapping
            return cls(folder, folder.key, None, {})
        return cls(folder, folder.key, description, flat_settings(description))


Wanted = Callable[[FoundRun], Run | None]  # the run of today that a folder may hold
Same = tuple[FoundRun, Run]  # a finished run, and its description today


def adopt(experiment: Experiment, store: Store, *, dry_run: bool = False) -> list[Adoption]:
    """Take over what is finished of an experiment, its runs and the trials of its searches; ``dry_run`` only tells.

    A run may lie anywhere in the store, as it may for `forgetlab run`. To take it over one file is replaced at once,
    so a command that is stopped leaves every run whole and can be given again.

    Raises:
        Busy: another process is at work on the experiment.
    """
    with nullcontext() if dry_run else store.alone(experiment.name):
        adopter = _Adopter(experiment, store, dry_run)
        runs = [adopter.run(entry, seed) for entry in experiment.entries for seed in experiment.seeds]
        return [*runs, *adopter.trials()]


class _Adopter:
    """Goes through one experiment's runs."""

    def __init__(self, experiment: Experiment, store: Store, dry_run: bool) -> None:
        self.experiment, self.store, self.dry_run = experiment, store, dry_run
        self.kept = [FoundRun.read(folder) for folder in store.everywhere()]

    def run(self, entry: Strategy, seed: int) -> Adoption:
        """Take over the run of an entry and a seed, from its own folder or from another that holds it."""
        told = f"{entry.name}, seed {seed}"
        own = FoundRun.read(self.store.folder(self.experiment.name, entry.name, seed))
        others = [kept for kept in self.kept if kept.folder != own.folder and kept.settings.get("seed") == seed]
        wanted = partial(_settled, self.experiment, entry, seed)
        same = list(_same([own, *others], wanted))
        return self._taken(told, same) if same else _left(told, own, wanted)

    def trials(self) -> Iterator[Adoption]:
        """Take over the trials of all searches that this experiment may ask for again."""
        searched = [entry for entry in self.experiment.entries if search_space.space(self.experiment, entry)]
        for folder in self.store.trials.everywhere(self.experiment.name) if searched else ():
            kept, aside = FoundRun.read(folder), folder.path.parent.name == SET_ASIDE
            name = folder.path.name if aside else folder.path.parent.name
            for entry in searched:
                if not aside and not name.startswith(f"{entry.name}."):
                    continue
                told = f"trial {name}, {folder.path.name.replace('-', ' ')}"
                wanted = partial(_trial, self.experiment, entry)
                if same := list(_same([kept], wanted)):
                    yield self._taken(told, same, trial=True)
                    break
                if not aside and wanted(kept) is not None:
                    yield _left(told, kept, wanted, trial=True)
                    break

    def _taken(self, told: str, same: Sequence[Same], *, trial: bool = False) -> Adoption:
        """Take over the first of these that nothing speaks against, unless one has today's key already."""
        keys = [_key(run) for _, run in same]
        if any(kept.key == key for (kept, _), key in zip(same, keys, strict=True)):
            return Adoption(told, "current", trial=trial)
        refused: list[str] = []
        for (kept, run), key in zip(same, keys, strict=True):
            against = _obstacles(kept.folder, run)
            if not against:
                against = self._rekeyed(kept, key)
            if not against:
                return Adoption(told, "adopted", note=_changed_since(kept.folder, run), trial=trial)
            refused = refused or against
        return Adoption(told, "refused", tuple(refused), trial=trial)

    def _rekeyed(self, kept: FoundRun, key: str) -> list[str]:
        """Give a run its key, alone with it; returns what stands against that."""
        if self.dry_run or kept.description is None:
            return []
        owner = _owner(kept.folder)
        try:
            with nullcontext() if owner in (None, self.experiment.name) else self.store.alone(owner):
                kept.folder.adopt(key, kept.description)
        except Busy as error:
            return [str(error)]
        return []


def _same(found: Sequence[FoundRun], wanted: Wanted) -> Iterator[Same]:
    """The folders that hold a finished run with the settings that it has today."""
    for kept in found:
        run = None if kept.description is None else wanted(kept)
        if (
            run is not None
            and not setting_differences(kept.settings, flat_settings(one_run.plain(run)))
            and _finished(kept.folder)
        ):
            yield kept, run


def _finished(folder: RunFolder) -> bool:
    result = folder.result()
    return result is not None and result.finished


def _left(told: str, kept: FoundRun, wanted: Wanted, *, trial: bool = False) -> Adoption:
    """Why a folder's run cannot be taken over, whatever made it."""
    if not _finished(kept.folder):
        unread = kept.folder.result() is None and (kept.folder.path / "result.json").is_file()
        return Adoption(told, "refused" if unread else "unfinished", (OTHER_RESULT,) if unread else (), trial=trial)
    run = None if kept.description is None else wanted(kept)
    if kept.description is None:
        reasons = [UNREADABLE]
    elif run is None:
        reasons = [OTHER_SEARCH]
    else:
        reasons = setting_differences(kept.settings, flat_settings(one_run.plain(run)))
    return Adoption(told, "refused", tuple(reasons), trial=trial)


def _settled(experiment: Experiment, entry: Strategy, seed: int, kept: FoundRun) -> Run | None:
    """The run of an entry and a seed, with what a search chose for it; None where another search did."""
    try:
        run = search_space.settled(experiment, entry, seed, dict(kept.description or {}))
    except (ValueError, LookupError, TypeError):  # what was chosen does not read as a choice
        return None
    if run is None or run.tuned is None:
        return run
    most = max(search_space.n_trials(experiment, other) for other in experiment.entries)
    as_many = (run.tuned.trials, run.tuned.of) == (search_space.n_trials(experiment, entry), most)
    return run if as_many else None


def _trial(experiment: Experiment, entry: Strategy, kept: FoundRun) -> Run | None:
    """The trial of an entry's search with the values that a folder holds; None where none may have them."""
    chosen = search_space.space(experiment, entry)
    try:
        seed = kept.settings["seed"]
        values = [kept.settings[".".join(["strategy", *map(str, choice.at)])] for choice in chosen]
        asked = all(_may_be(choice, value) for choice, value in zip(chosen, values, strict=True))
        variant = search_space.with_values(entry, chosen, values)
        return Search(experiment, entry, (seed,)).run(variant, seed) if asked else None
    except (ValueError, LookupError, TypeError):  # something is missing, or is no number
        return None


def _may_be(choice: Choice, value: Any) -> bool:
    if choice.low is None or choice.high is None:
        return value in choice.values
    return isinstance(value, int | float) and choice.low <= value <= choice.high


def _key(run: Run) -> str:
    one_run.set_process(run)
    return run_key(run, one_run.load_scenario(run))


def _obstacles(folder: RunFolder, run: Run) -> list[str]:
    """What else than settings differs from today, as far as a folder tells."""
    result, timing = folder.result(), folder.timing()
    stream = [] if result is None else _other_stream(result, run)
    return [*_other_versions(timing), *_renewed_since(timing, run), *stream]


def _other_versions(timing: Mapping[str, Any]) -> list[str]:
    """Packages that compute and were installed in another version, or are."""
    packages = timing.get("packages") if isinstance(timing, Mapping) else None
    if not isinstance(packages, Mapping) or not packages:
        return [NO_VERSIONS]
    then = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in packages.items()}
    now, missing = versions(), "not installed"
    pairs = {name: (then.get(name, missing), now.get(name, missing)) for name in (*ARITHMETIC, *OPTIONAL)}
    return [f"{name} {old} then, {new} now" for name, (old, new) in pairs.items() if old != new]


def _renewed_since(timing: Mapping[str, Any], run: Run) -> list[str]:
    """Plug-ins of the run that have computed other numbers since it began."""
    started = timing.get("started") if isinstance(timing, Mapping) else None
    began = started[: len("2026-01-01")] if isinstance(started, str) else ""
    renewed = [plugin for plugin in used_plugins(run) if plugin.renewed is not None and began < plugin.renewed]
    return [f"{plugin.kind} {plugin.name} computes other numbers since {plugin.renewed}" for plugin in renewed]


def _other_stream(result: Result, run: Run) -> list[str]:
    """What a result tells of its stream that is otherwise today."""
    tasks = one_run.load_scenario(run).tasks
    told = {
        "tasks": (result.task_names, [task.name for task in tasks]),
        "classes of the tasks": (result.classes_per_task, [list(task.classes) for task in tasks]),
        "test samples of the tasks": (result.test_sizes, [len(task.test.y) for task in tasks]),
    }
    return [f"{what}: {in_short(old)} then, {in_short(new)} now" for what, (old, new) in told.items() if old != new]


def _changed_since(folder: RunFolder, run: Run) -> str:
    """Own plug-in files that a run uses and that were written to after it began."""
    started = folder.timing().get("started")
    if not isinstance(started, str):
        return ""
    named = {Path(path).resolve() for path in run.plugins}
    used = {path.resolve() for path in plugin_files(run)}
    began = datetime.fromisoformat(started).timestamp()
    changed = [path.name for path in sorted(named & used) if path.stat().st_mtime > began]
    return f"{', '.join(changed)} was changed after it; its numbers are of the file as it was" if changed else ""


def _owner(folder: RunFolder) -> str | None:
    """The experiment that a folder belongs to; None where it was set aside."""
    return None if folder.path.parent.name == SET_ASIDE else folder.path.parents[1].name
