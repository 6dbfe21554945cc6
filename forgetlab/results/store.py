"""The run folder: the one place that reads and writes what a run leaves.

``runs/<name>/<strategy>/seed-<n>/`` holds

- ``config.yaml``: the resolved description of this run; its first line is the run's key, the second may be
  ``adopted_from``: the keys that the run had in earlier versions;
- ``result.json``: only what the file, the code and the machine's arithmetic determine, so equal runs give
  equal bytes; it grows by one row when a task ends;
- ``timing.json``: seconds of the processor and by the wall clock, latency, dates, host, package versions, git state;
- ``modules/``: what a strategy stores for each task, as safetensors;
- ``tuning.json``: every trial of the search that chose its options, where one did.

``runs/<name>/experiment.yaml`` holds the experiment that was run last under this name, ``runs/.trials/`` the runs of
searches, in the same form. ``runs/.locks/<name>`` is held by the process that is at work on them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

RESULT_VERSION = 1
TRIALS = ".trials"
LOCKS = ".locks"  # a file for what one process alone may do at a time
SET_ASIDE = ".set-aside"  # finished runs whose place was taken by a run with other settings
Row = list[float | None]


class Busy(RuntimeError):
    """Another process is at work on an experiment's folder."""


@dataclass(frozen=True)
class Result:
    """What one run (a strategy and a seed) found. ``accuracy[i][j]``: task j after training task i; null: no answer."""

    strategy: str
    family: str  # reference, replay, regularization, isolation, avalanche, or several joined by "+"
    task_identity: str  # how a test sample's task is known: "none" (not used), "routed" (inferred) or "told"
    seed: int
    overrides: dict[str, Any]  # of the file's ``train:`` by this strategy; shown beside its name
    protocol: dict[str, Any]
    task_names: list[str]
    classes_per_task: list[list[int]]
    test_sizes: list[int]
    accuracy: list[Row]  # one row per finished task, T columns
    accuracy_initial: Row  # before any training on the sequence
    scores: dict[str, list[Row]] = field(default_factory=dict)  # further per-task scores, shaped like accuracy
    metrics: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    pretrained_accuracy: Row = field(
        default_factory=list
    )  # on the pretraining data: at the start, then after each task
    prequential_accuracy: Row = field(default_factory=list)  # online streams: of each task's samples before learning
    tuning: dict[str, Any] = field(default_factory=dict)  # what a search chose, on what, and what that took
    version: int = RESULT_VERSION

    @property
    def finished(self) -> bool:
        return len(self.accuracy) == len(self.task_names)


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; every write replaces a whole file at once, so a killed run leaves no half file."""

    path: Path

    @property
    def key(self) -> str | None:
        """The key of the run that this folder holds, or None."""
        return self._line(0, "key")

    @property
    def adopted_from(self) -> list[str]:
        """The keys that this run had in earlier versions, the oldest first; none where this version made it."""
        keys = (self._line(1, "adopted_from") or "").strip("[]")
        return [key.strip() for key in keys.split(",") if key.strip()]

    def _line(self, number: int, name: str) -> str | None:
        """What the file says in one of its first lines, if that line has this name."""
        try:
            with (self.path / "config.yaml").open(encoding="utf-8", errors="replace") as file:
                line = [file.readline() for _ in range(number + 1)][number]
        except OSError:
            return None
        return line.removeprefix(f"{name}:").strip() if line.startswith(f"{name}:") else None

    def begin(self, key: str, description: Mapping[str, Any], adopted_from: Sequence[str] = ()) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        adopted = f"adopted_from: [{', '.join(adopted_from)}]\n" if adopted_from else ""
        write_text(self.path / "config.yaml", f"key: {key}\n{adopted}{to_yaml(description)}")

    def adopt(self, key: str, description: Mapping[str, Any]) -> None:
        """Give the run the key and the description that it has today, and keep the keys that it had."""
        settings = {name: value for name, value in description.items() if name != "key"}
        had = [] if self.key is None else [self.key]
        self.begin(key, settings, [*self.adopted_from, *had])

    def description(self) -> dict[str, Any]:
        """What the run is, and its key; not which keys it had."""
        stored = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        return {name: value for name, value in stored.items() if name != "adopted_from"}

    def holds(self, description: Mapping[str, Any]) -> bool:
        """Whether this is the run that a description describes, wherever its plug-in files lay then."""
        if self.key is None:
            return False
        stored = self.description()
        return all(stored.get(name) == value for name, value in description.items() if name != "plugins")

    def save(self, result: Result, timing: Mapping[str, Any]) -> None:
        write_text(self.path / "timing.json", to_json(dict(timing)))
        write_text(self.path / "result.json", to_json(asdict(result)))  # last: with it the run is finished

    def result(self) -> Result | None:
        """The stored result, finished or not; None where there is none that this version can read."""
        try:
            stored = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        known = {f.name for f in fields(Result)}
        ours = isinstance(stored, dict) and stored.get("version") == RESULT_VERSION and stored.keys() == known
        return Result(**stored) if ours else None

    def timing(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / "timing.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


@dataclass(frozen=True)
class Store:
    """All run folders under one root."""

    root: Path
    shared: Path | None = None  # where pretrained backbones are, if not under the root

    def experiments(self) -> dict[str, dict[str, Any]]:
        """What was run, by name: the description that was run last under it."""
        paths = sorted(self.root.glob("*/experiment.yaml"))
        return {path.parent.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}

    def begin(self, name: str, description: Mapping[str, Any]) -> None:
        """Note what is run under a name from now on."""
        write_text(self.root / name / "experiment.yaml", to_yaml(description))

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Keep other processes off an experiment; one that ends leaves it free, however it ends.

        Raises:
            Busy: another one is at work on it.
        """
        path = self.root / LOCKS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            told = "another process is at work on it; wait for it, or name another folder with '--runs'"
            raise Busy(f"{self.root / name}: {told}") from error
        try:
            yield
        finally:
            lock.release()

    @property
    def starts(self) -> Path:
        """Where pretrained backbones are kept, by their content."""
        return self.shared or self.root / ".starts"

    @property
    def trials(self) -> Store:
        """The runs of searches, apart from those that are shown."""
        return Store(self.root / TRIALS, self.starts)

    def folder(self, name: str, strategy: str, seed: int) -> RunFolder:
        return RunFolder(self.root / name / strategy / f"seed-{seed}")

    def folders(self, name: str | None = None) -> Iterator[RunFolder]:
        """Every run folder, or those of one experiment, by path."""
        for path in sorted(self.root.glob(f"{name or '*'}/*/seed-*/config.yaml")):
            yield RunFolder(path.parent)

    def everywhere(self, name: str | None = None) -> Iterator[RunFolder]:
        """Every run folder, or those of one experiment, and all that were set aside."""
        yield from self.folders(name)
        for path in sorted((self.root / SET_ASIDE).glob("*/config.yaml")):
            yield RunFolder(path.parent)

    def find(self, key: str, first: RunFolder) -> RunFolder | None:
        """A finished run with this key, whatever it was called; ``first`` is looked at before all others."""
        for folder in (first, *self.everywhere()):
            if folder.key == key and (result := folder.result()) and result.finished:
                return folder
        return None

    def set_aside(self, folder: RunFolder, key: str) -> None:
        """Clear a folder for the run with this key; another run's finished work in it is kept under `SET_ASIDE`."""
        result = folder.result()
        if result and result.finished and folder.key and folder.key != key:
            where = self.root / SET_ASIDE / folder.key
            where.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(where, ignore_errors=True)
            os.replace(folder.path, where)
        shutil.rmtree(folder.path, ignore_errors=True)


def to_json(value: Any) -> str:
    """One form for one value: sorted keys, two spaces, no NaN."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def to_yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` in one step: readers see the old file or the new one, never a part."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_of(folder: RunFolder, near: Path) -> RunFolder:
    """A folder with the same files beside ``near``, from where one step brings it there."""
    copy = near.with_name(f".{near.name}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder.path, copy)
    return RunFolder(copy)
