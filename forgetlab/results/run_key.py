"""The key of a run: equal keys mean equal numbers. A finished run is found again by it, never by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from forgetlab.experiment import ORACLE, REGULARIZATION, ResolvedSpec, Run
from forgetlab.plugins import registry
from forgetlab.results import computing_code
from forgetlab.streams.scenario import Scenario, Task, pretraining_tasks

ARITHMETIC = ("torch", "avalanche-lib", "numpy")  # packages whose version can change a number,
OPTIONAL = ("transformers", "tokenizers", "kornia", "peft", "timm")  # also where they are installed


def run_key(run: Run, scenario: Scenario) -> str:
    """A digest of the resolved description (without names), the data, and the code that computes."""
    description = run.model_dump(mode="json", exclude={"plugins": True, "strategy": {"name"}})
    start = None
    if run.pretrain is not None:
        start = start_key(run, pretraining_tasks(run.pretrain, scenario, run.seed_of("class_order")))
    parts: dict[str, Any] = {
        "start": start,
        "description": description,
        "data": scenario.checksum(),
        "code": computing_code.digest(computing_code.RUN, *plugin_files(run)),
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def start_key(run: Run, tasks: tuple[Task, ...]) -> str:
    """A digest of all that determines a pretrained start: settings, data, code."""
    parts = {
        "model": run.model,
        "pretrain": run.pretrain,
        "seeds": [run.seed_of("init"), run.seed_of("data_order")],
        "data": Scenario(tasks, (), False).checksum(),
        "code": computing_code.digest(computing_code.START, registry.find("model", run.model["name"]).source),
        "machine": [run.device, run.threads, versions()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plugin_files(run: Run) -> set[Path]:
    """The files of all plug-ins that a run uses."""
    return {plugin.source for plugin in used_plugins(run)}


def used_plugins(run: Run) -> list[registry.Plugin]:
    """All plug-ins that a run uses, those named by others too."""
    return [registry.find(kind, spec["name"]) for kind, spec in with_nested(plugin_specs(run))]


def plugin_specs(run: Run) -> list[tuple[str, ResolvedSpec]]:
    """The plug-ins that a run uses: (kind, spec)."""
    strategy, replay = run.strategy, run.strategy.replay
    router = None if strategy.router == {"name": ORACLE} else strategy.router
    named: list[tuple[str, ResolvedSpec | None]] = [
        ("scenario", run.scenario),
        ("model", run.model),
        ("reference", strategy.reference),
        *((part, getattr(replay, part, None)) for part in ("memory", "sampler", "rehearsal", "projection")),
        ("data", replay.general.data if replay and replay.general else None),
        *((registry.kind_of(spec["name"], REGULARIZATION), spec) for spec in strategy.regularization or ()),
        ("isolation", strategy.isolation),
        ("router", router),
        ("merger", strategy.merge),
        ("classifier", strategy.classifier),
    ]
    return [(kind, spec) for kind, spec in named if spec is not None]


def with_nested(specs: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, ResolvedSpec]]:
    """These, and the plug-ins that their options name."""
    for kind, given in specs:
        spec = {"name": given} if isinstance(given, str) else given
        yield kind, spec
        for option, inner in registry.named(registry.find(kind, spec["name"])).items():
            chosen = spec.get(option)
            items = chosen if isinstance(chosen, list | tuple) else [chosen]
            yield from with_nested((inner, item) for item in items if item is not None)


@cache
def versions() -> dict[str, str]:
    """Of the packages that compute."""
    installed = [name for name in OPTIONAL if find_spec(name) is not None]
    return {name: version(name) for name in (*ARITHMETIC, *installed)}
