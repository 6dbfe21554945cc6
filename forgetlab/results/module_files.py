"""What a run keeps of each task, as files: tensors, and beside them what is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from forgetlab.experiment import Run
from forgetlab.plugins import options as plugins_options
from forgetlab.results.store import RunFolder, Store, to_json


class ModulesError(ValueError):
    """What was asked of stored modules cannot be done."""


@dataclass(frozen=True)
class Stored:
    """One file: its tensors, and what it says of them."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below a name, such as "head"."""
        return {k.removeprefix(f"{name}."): t for k, t in self.tensors.items() if k.startswith(f"{name}.")}


def path_of(folder: RunFolder, name: str) -> Path:
    return folder.path / "modules" / f"{name}.safetensors"


def pack(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A file's bytes, equal for equal content: safetensors writes several metadata in any order, so it is one text."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(plain, metadata={"about": to_json(dict(about))})


def read(path: Path) -> Stored:
    """A stored file.

    Raises:
        ModulesError: there is none, or it is another kind of file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return Stored(json.loads((file.metadata() or {})["about"]), tensors)
    except FileNotFoundError as error:
        raise ModulesError(f"no such file: {path}") from error
    except (SafetensorError, KeyError, OSError) as error:
        raise ModulesError(f"{path.name} holds no module: {error}") from error


def task_files(folder: RunFolder) -> dict[int, Path]:
    """Each task's file, in the order of tasks."""
    found = {int(path.stem.removeprefix("task-")): path for path in folder.path.glob("modules/task-*.safetensors")}
    return dict(sorted(found.items()))


def run_folder(run: Path, runs: Path) -> RunFolder:
    """A run's folder by its path, or by NAME/STRATEGY[/seed-N] below the folder of all runs.

    Raises:
        ModulesError: there is none, or several.
    """
    for place in (run, runs / run):
        if (place / "config.yaml").is_file():
            return RunFolder(place.resolve())
        seeds = sorted(path.parent for path in place.glob("seed-*/config.yaml"))
        if len(seeds) == 1:
            return RunFolder(seeds[0].resolve())
        if seeds:
            raise ModulesError(f"{run} has {len(seeds)} runs; name one: {', '.join(seed.name for seed in seeds)}")
    known = [str(folder.path.relative_to(runs)) for folder in Store(runs).folders()]
    there = plugins_options.suggestion(str(run), known) or (f"; there are: {', '.join(known)}" if known else "")
    raise ModulesError(f"no run {run}, neither here nor under {runs}{there}")


def description(folder: RunFolder) -> Run:
    """What a run's folder holds; nothing is pretrained where the file does not say so."""
    told = {key: value for key, value in folder.description().items() if key != "key"}
    return Run.model_validate({"pretrain": None, **told})


def sizes(path: Path) -> tuple[dict[str, Any], int, int]:
    """What a file says of itself, and how many numbers and bytes its tensors are."""
    stored = read(path)
    return stored.about, *_totals(stored.tensors.values())


def _totals(tensors: Iterable[Tensor]) -> tuple[int, int]:
    listed = list(tensors)
    return sum(t.numel() for t in listed), sum(t.numel() * t.element_size() for t in listed)
