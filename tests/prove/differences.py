"""What two folders of finished runs differ in: every file that the runs left, the tables, and what MLflow holds.

It reads files alone and imports nothing of ForgetLab, so it looks at any two trees in the same way. Keys of runs, times
and dates may differ; all else may not.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TIMED_COLUMNS = ("seconds", "latency")  # of a table
TIMED_METRICS = ("price/seconds", "price/latency")  # of MLflow
KEYED_TAGS = ("forgetlab.key", "forgetlab.parent_key", "forgetlab.projected")  # of MLflow: keys and dates
FOREIGN_TAGS = ("mlflow.parentRunId", "mlflow.user", "mlflow.source.name", "mlflow.source.type")  # MLflow's own
NOTE = "mlflow.note.content"
CUT_NOTE = "The whole table:"  # what a note ends with that was too long for MLflow
NOTHING = "nothing"
FLOATS: Mapping[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class Difference:
    """One place where the two are not the same."""

    where: str  # a file and a place in it, or a run of MLflow and what it holds
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.where}\n      old: {_short(self.old)}\n      new: {_short(self.new)}"


@dataclass
class Found:
    """All differences, and how much was compared."""

    differences: list[Difference] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def unequal(self, where: str, old: Any, new: Any) -> None:
        self.differences.append(Difference(where, str(old), str(new)))

    def both(self, where: str, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> Iterator[Any]:
        """The names that both have; those that only one has are differences."""
        for name in sorted(old.keys() | new.keys(), key=str):
            if name in old and name in new:
                yield name
            else:
                told = [NOTHING if name not in side else "there" for side in (old, new)]
                self.unequal(f"{where}{name}", *told)


# Files


def compare_files(found: Found, label: str, old: Path, new: Path) -> None:
    """Every file below two folders of runs, by its kind."""
    ours, theirs = _named(old), _named(new)
    for name in found.both(f"{label}: ", ours, theirs):
        compare_file(found, f"{label}: {name}", ours[name], theirs[name])


def compare_file(found: Found, where: str, old: Path, new: Path) -> None:
    """One file of a run folder, or among the files of an MLflow run."""
    found.counts["files"] += 1
    before = len(found.differences)
    if old.name == "timing.json":
        _deep(found, where, sorted(json.loads(old.read_text())), sorted(json.loads(new.read_text())))
        return
    if old.name == "error.txt":
        compare_errors(found, where, old, new)
        return
    if old.suffix == ".safetensors":
        compare_tensors(found, where, old, new)
        return
    one, other = old.read_bytes(), new.read_bytes()
    if old.name == "config.yaml":
        one, other = (re.sub(rb"\Akey: \w+\n", b"", content) for content in (one, other))
    if one == other:
        return
    if old.suffix == ".json":
        _deep(found, where, json.loads(one), json.loads(other))
    elif old.suffix == ".yaml":
        _deep(found, where, yaml.safe_load(one), yaml.safe_load(other))
    if len(found.differences) == before:
        digests = [f"{len(content)} bytes, {hashlib.sha256(content).hexdigest()[:12]}" for content in (one, other)]
        found.unequal(f"{where} (bytes)", *digests)


def compare_errors(found: Found, where: str, old: Path, new: Path) -> None:
    """The last line of a traceback: the lines above it tell where in the code it arose."""
    one, other = (path.read_text(encoding="utf-8").splitlines()[-1] for path in (old, new))
    if one != other:
        found.unequal(f"{where} (last line)", one, other)


def compare_tensors(found: Found, where: str, old: Path, new: Path) -> None:
    """The tensors of two files to the bit, and what the files say of them."""
    (about, tensors), (about_new, tensors_new) = _safetensors(old), _safetensors(new)
    _deep(found, f"{where}: about", about, about_new)
    for name in found.both(f"{where}: ", tensors, tensors_new):
        found.counts["tensors"] += 1
        (kind, shape, content), (kind_new, shape_new, content_new) = tensors[name], tensors_new[name]
        if (kind, shape) != (kind_new, shape_new):
            found.unequal(f"{where}: {name}", f"{kind} {shape}", f"{kind_new} {shape_new}")
        elif content != content_new:
            told = _told_apart(kind, content, content_new)
            found.unequal(f"{where}: {name}", f"{kind} {shape}", f"{kind} {shape}, {told}")


def _told_apart(kind: str, old: bytes, new: bytes) -> str:
    if kind in FLOATS:
        one, other = (np.frombuffer(content, FLOATS[kind]).astype(np.float64) for content in (old, new))
        unlike = np.frombuffer(old, f"V{np.dtype(FLOATS[kind]).itemsize}") != np.frombuffer(
            new, f"V{np.dtype(FLOATS[kind]).itemsize}"
        )
        return f"{int(unlike.sum())} of {len(one)} numbers differ, by {np.nanmax(np.abs(one - other)):.3g} at most"
    unlike = np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)
    return f"{int(unlike.sum())} of {len(old)} bytes differ"


def _safetensors(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, list[int], bytes]]]:
    """What a file says, and its tensors: kind, shape, bytes. The format: length of a header, the header, the bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    about = header.pop("__metadata__", {})
    told = {name: json.loads(text) if text[:1] in "{[" else text for name, text in about.items()}
    tensors = {}
    for name, one in header.items():
        begin, end = one["data_offsets"]
        tensors[name] = (one["dtype"], one["shape"], content[start + begin : start + end])
    return told, tensors


def _named(root: Path) -> dict[str, Path]:
    """Every file below a folder of runs by its name; where a key is part of the path, what it stands for is."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if not path.is_file() or ".locks" in parts:
            continue
        if ".set-aside" in parts:  # a run folder by its key
            place = parts.index(".set-aside") + 1
            parts = (*parts[:place], _described(root.joinpath(*parts[: place + 1])), *parts[place + 1 :])
        elif ".starts" in parts:  # a pretrained backbone by its key
            parts = (*parts[:-1], f"start {_digest_of_tensors(path)}")
        name = "/".join(parts)
        while name in found:  # the same start under two keys
            name += " again"
        found[name] = path
    return found


def _described(folder: Path) -> str:
    """A digest of a run's settings, without its key."""
    text = (folder / "config.yaml").read_bytes().partition(b"\n")[2]
    return f"settings {hashlib.sha256(text).hexdigest()[:12]}"


def _digest_of_tensors(path: Path) -> str:
    _, tensors = _safetensors(path)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        kind, shape, content = tensors[name]
        digest.update(f"{name} {kind} {shape} ".encode() + content)
    return digest.hexdigest()[:12]


def _deep(found: Found, where: str, old: Any, new: Any) -> None:
    """Plain values, part by part; numbers must be the same number of the same type."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in found.both(f"{where}: ", old, new):
            _deep(found, f"{where}: {name}", old[name], new[name])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            _deep(found, f"{where}[{number}]", one, other)
    elif type(old) is not type(new) or old != new:
        found.unequal(where, repr(old), repr(new))


# Tables


def compare_tables(found: Found, where: str, old: str, new: str) -> None:
    """Printed tables, cell by cell, without the columns that hold times."""
    one, other = rows(old), rows(new)
    found.counts["table rows"] += len(one)
    if len(one) != len(other):
        found.unequal(f"{where} (rows)", len(one), len(other))
    for number, (row, row_new) in enumerate(zip(one, other, strict=False)):
        if row != row_new:
            found.unequal(f"{where}, row {number}, {row[0] if row else ''}", " | ".join(row), " | ".join(row_new))


def rows(text: str) -> list[list[str]]:
    """The lines of a text; of a table's lines the cells, without columns of times. Lines that only draw are left out.

    >>> rows("seen\\n| strategy | seconds | bytes |\\n| :-- | --: | --: |\\n| naive | 0.3 | 5 |")
    [['seen'], ['strategy', 'bytes'], ['naive', '5']]
    >>> rows("| strategy | seconds | bytes |\\n| naive (0.1 | 0.2) | 0.3 | 5 |")
    [['strategy', 'bytes'], ['naive (0.1 | 0.2)', '5']]
    """
    found: list[list[str]] = []
    header: list[str] | None = None
    for line in text.splitlines():
        parts = re.split("[|┃│]", line.strip())
        cells = [cell.strip() for cell in parts[1:-1]] if len(parts) > 2 else None
        if cells is None:
            header = header if _draws(line) else None
            if line.strip() and not _draws(line):
                found.append([line.strip()])
            continue
        if _draws(line):
            continue
        header = header or cells
        more = len(cells) - len(header)  # bars in the first cell: a strategy's name with several chosen values
        cells = [" | ".join(cells[: more + 1]), *cells[more + 1 :]]
        timed = [number for number, name in enumerate(header) if name in TIMED_COLUMNS]
        found.append([cell for number, cell in enumerate(cells) if number not in timed])
    return found


def _draws(line: str) -> bool:
    return bool(line.strip()) and not re.search(r"\w", line)


# MLflow


@dataclass
class Tracked:
    """What an MLflow store holds, by names that do not change from one store to another."""

    experiments: dict[str, dict[str, str]]  # tags, by the experiment's name
    runs: dict[str, dict[str, Any]]  # what each run holds, by "experiment / strategy / run"
    files: dict[str, Path]  # of all runs


def compare_tracked(found: Found, old: Path, new: Path) -> None:
    """Two MLflow stores: points, parameters, tags and files of every run."""
    one, other = read_tracked(old), read_tracked(new)
    for name in found.both("MLflow: ", one.experiments, other.experiments):
        _compare_tags(found, f"MLflow: {name}", one.experiments[name], other.experiments[name])
    for name in found.both("MLflow: ", one.runs, other.runs):
        before, after = one.runs[name], other.runs[name]
        found.counts["MLflow runs"] += 1
        found.counts["MLflow points"] += len(before["points"])
        found.counts["MLflow parameters"] += len(before["parameters"])
        for part in ("points", "parameters", "status"):
            _deep(found, f"MLflow: {name}: {part}", before[part], after[part])
        _compare_tags(found, f"MLflow: {name}", before["tags"], after["tags"])
    for name in found.both("MLflow: ", one.files, other.files):
        compare_file(found, f"MLflow: {name}", one.files[name], other.files[name])


def _compare_tags(found: Found, where: str, old: dict[str, str], new: dict[str, str]) -> None:
    for name in found.both(f"{where}: tag ", old, new):
        if name != NOTE:
            _deep(found, f"{where}: tag {name}", old[name], new[name])
            continue
        one, other = old[name], new[name]
        if CUT_NOTE in one or CUT_NOTE in other:  # where it is cut depends on how long the cells of seconds are
            length = min(len(text.splitlines()) for text in (one, other)) - 3
            one, other = ("\n".join(text.splitlines()[:length]) for text in (one, other))
        compare_tables(found, f"{where}: note", one, other)


def read_tracked(folder: Path) -> Tracked:
    """The store in a folder: the database ``mlflow.db``, and ``mlartifacts`` beside it."""
    connection = sqlite3.connect(f"file:{folder / 'mlflow.db'}?mode=ro", uri=True)
    try:
        named = dict(connection.execute("select experiment_id, name from experiments"))
        tags = _grouped(connection.execute("select experiment_id, key, value from experiment_tags"))
        experiments = {name: _without(tags.get(number, {}), KEYED_TAGS) for number, name in named.items()}
        listed = list(
            connection.execute(
                "select run_uuid, name, status, experiment_id from runs where lifecycle_stage = 'active'"
            )
        )
        run_tags = _grouped(connection.execute("select run_uuid, key, value from tags"))
        parameters = _grouped(connection.execute("select run_uuid, key, value from params"))
        points: dict[str, dict[str, float | str]] = {}
        for run, name, step, value, is_nan in connection.execute(
            "select run_uuid, key, step, value, is_nan from metrics"
        ):
            if name not in TIMED_METRICS:
                points.setdefault(run, {})[f"{name} at {step}"] = "nan" if is_nan else value
    finally:
        connection.close()
    names = {}
    for run, name, _, experiment in listed:
        strategy = run_tags[run].get("forgetlab.strategy", "?")
        names[run] = f"{named[experiment]} / {strategy} / {name}"
    if len(set(names.values())) < len(names):
        raise ValueError(f"{folder}: two runs of MLflow have one name")
    runs, files = {}, {}
    for run, _, status, experiment in listed:
        tags_of_run = _without(run_tags[run], (*KEYED_TAGS, *FOREIGN_TAGS))
        parent = run_tags[run].get("mlflow.parentRunId")
        tags_of_run["parent"] = names[parent] if parent else NOTHING
        runs[names[run]] = {
            "points": points.get(run, {}),
            "parameters": _without(parameters.get(run, {}), ("key",)),
            "tags": tags_of_run,
            "status": status,
        }
        its = folder / "mlartifacts" / str(experiment) / run / "artifacts"
        for path in sorted(its.rglob("*")):
            if path.is_file():
                files[f"{names[run]}: {path.relative_to(its)}"] = path
    return Tracked(experiments, runs, files)


def _grouped(triples: Any) -> dict[Any, dict[str, str]]:
    found: dict[Any, dict[str, str]] = {}
    for owner, name, value in triples:
        found.setdefault(owner, {})[name] = value
    return found


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."
