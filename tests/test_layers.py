"""Who may import whom; read from the source, so a violation names its line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.paths import ROOT

OWNERS = {  # who alone may use each
    "click": {"cli", "cli_plugins", "cli_runs"},
    "mlflow": {"tracking"},
    "avalanche": {"avalanche_api"},
}
NUMERIC = {"metrics", "statistics"}
UNKNOWN_TO_THE_ENGINE = {
    f"forgetlab.{name}" for name in ("tracking", "report", "cli", "cli_plugins", "cli_runs", "config")
}
LANGUAGE = set(sys.stdlib_module_names) | {"annotated_types", "pydantic", "typing_extensions"}  # and types
FOR_A_METHOD = {"forgetlab.plugins", "forgetlab.batch", "forgetlab.fisher", "forgetlab.teacher"}  # and its contracts
CONTRACTS = {
    "isolation": {
        "forgetlab.isolation",
        "forgetlab.combination",
        "forgetlab.tuners",
        "forgetlab.merger",
        "forgetlab.classifier",
    },
    "replay": {"forgetlab.replay", "forgetlab.exemplars", "forgetlab.gaussians", "forgetlab.vae"},
}
OF_STREAMS = ("scenario", "streams", "modifiers", "interop", "pixels")
OF_DATA = ("text", "table", "columns", "files", "arrays", "images", "hub", "vision", "cache")
FOR_A_SCENARIO = {f"forgetlab.{name}" for name in ("plugins", "seeding", *OF_STREAMS, *OF_DATA)}


def sources(*folders: str) -> list[str]:
    """Python files by path from the root; links are not followed, so each file comes once."""
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py"))


CORE = sources("forgetlab")
PLUGINS = sources("strategies", "scenarios")


@dataclass(frozen=True)
class Import:
    """One imported module; ``late``: inside a function."""

    module: str
    line: int
    late: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    def within(self, modules: set[str]) -> bool:
        return any(f"{self.module}.".startswith(f"{module}.") for module in modules)


def imports(source: str) -> list[Import]:
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {inner for function in functions for inner in ast.walk(function)}
    return [
        Import(module, node.lineno, node in late)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
        for module in modules_of(node)
    ]


def modules_of(node: ast.Import | ast.ImportFrom | ast.Call) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module="forgetlab", names=names, level=0):
            yield from (f"forgetlab.{alias.name}" for alias in names)
        case ast.ImportFrom(module=module, level=level):
            yield "." * level + (module or "")
        case ast.Call(
            func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            yield module


def allowed(place: tuple[str, ...], found: Import) -> bool:
    """Whether the file at ``place``, such as ``("strategies", "replay", "ring")``, may import this."""
    relative = found.module.startswith(".")
    if relative or found.within({"strategies", "scenarios", "forgetlab.strategies", "forgetlab.scenarios"}):
        return False
    if found.package in OWNERS:
        return place[0] == "forgetlab" and place[1] in OWNERS[found.package]
    match place:
        case ("strategies", family, _):
            known = FOR_A_METHOD | CONTRACTS.get(family, {f"forgetlab.{family}"})
            return found.package in LANGUAGE | {"torch"} or found.within(known)
        case ("scenarios", _) | ("scenarios", "data" | "transforms", _):
            data_library = found.late and found.package != "forgetlab"
            return found.package in LANGUAGE | {"torch"} or found.within(FOR_A_SCENARIO) or data_library
        case ("forgetlab", name, *_) if name in NUMERIC:
            return found.package in LANGUAGE | {"numpy", "scipy"}
        case ("forgetlab", "engine", *_):
            return not found.within(UNKNOWN_TO_THE_ENGINE)
        case ("forgetlab", *_):
            return True
    return found.package in LANGUAGE  # an __init__ above the families


def violations(path: str, source: str) -> list[str]:
    place = Path(path).with_suffix("").parts
    return [f"{path}:{f.line} imports {f.module}" for f in imports(source) if not allowed(place, f)]


@pytest.mark.parametrize("path", CORE + PLUGINS)
def test_imports_only_what_its_layer_may(path: str) -> None:
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("forgetlab/engine.py", "import mlflow.tracking"),
        ("forgetlab/engine.py", "from forgetlab import tracking"),
        ("forgetlab/engine.py", "from forgetlab.config import Experiment"),
        ("forgetlab/report.py", "def show():\n    import click"),
        ("forgetlab/replay.py", "from avalanche.training.plugins import ReplayPlugin"),
        ("forgetlab/replay.py", "import importlib\nimportlib.import_module('forgetlab.strategies.replay')"),
        ("forgetlab/plugins.py", "import forgetlab.scenarios.split_digits"),
        ("forgetlab/plugins.py", "from . import batch"),
        ("forgetlab/metrics.py", "import torch"),
        ("forgetlab/statistics.py", "from forgetlab.store import Result"),
        ("strategies/replay/ring.py", "from forgetlab.regularization import Regularizer"),
        ("strategies/replay/ring.py", "from strategies.replay import reservoir"),
        ("strategies/isolation/lora.py", "from forgetlab import engine"),
        ("strategies/isolation/lora.py", "def load():\n    import peft"),
        ("scenarios/split_digits.py", "from sklearn.datasets import load_digits"),
        ("scenarios/split_digits.py", "def split_digits():\n    from forgetlab.engine import run"),
        ("strategies/__init__.py", "import torch"),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    (line,) = violations(path, source)
    assert line.startswith(f"{path}:{len(source.splitlines())} imports ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("forgetlab/cli.py", "import click\nfrom forgetlab import config"),
        ("forgetlab/avalanche_api.py", "from avalanche.training.templates import SupervisedTemplate"),
        ("forgetlab/statistics.py", "import math\nfrom scipy import stats"),
        ("strategies/isolation/lora.py", "from torch import nn\nfrom forgetlab.isolation import Isolation"),
        ("scenarios/split_digits.py", "def split_digits():\n    from sklearn.datasets import load_digits"),
    ],
)
def test_what_the_layers_allow_is_let_through(path: str, source: str) -> None:
    assert violations(path, source) == []
