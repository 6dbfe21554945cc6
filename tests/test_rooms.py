"""Who may import whom: the rooms in their order, no circle, and who alone may use a package.

Everything is read from the source, late imports and those for types too, so that a violation names its line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from helpers.paths import ROOT

WORDS = ("batch", "seeding", "cache", "torchvision_ops", "experiment")  # files that every room may use
ROOMS = (  # a file imports from its own room and those before it
    "plugins",
    "metrics",
    "backbones",
    "data",
    "streams",
    "avalanche",
    "results",
    "training",
    "isolation",
    "toolbox",
    "replay",
    "regularization",
    "costs",
    "learners",
    "engine",
    "preflight",
    "config",
    "report",
    "checks",
    "cli",
)
ORDER = {name: place for place, name in enumerate((*WORDS, *ROOMS))}
LINKS = {"strategies", "scenarios"}
MOST_IN_A_ROOM, MOST_FILES_ON_TOP = 25, 10
OWNERS = {"click": "cli", "mlflow": "report", "avalanche": "avalanche"}  # the only room that imports each
NUMERIC = {"numpy", "scipy"}  # all that metrics may use
LANGUAGE = set(sys.stdlib_module_names) | {"annotated_types", "pydantic", "typing_extensions"}  # and types
FOR_A_METHOD = {"forgetlab.plugins", "forgetlab.batch", "forgetlab.toolbox"}  # and the contracts of its family
FOR_A_SCENARIO = {
    f"forgetlab.{name}" for name in ("plugins", "seeding", "cache", "data", "streams", "avalanche.streams")
}
OF_A_TOKENIZER = "forgetlab.backbones.tokenizer"


@dataclass(frozen=True)
class Import:
    """One imported module; ``late``: inside a function."""

    module: str
    line: int
    late: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    def within(self, modules: Iterable[str]) -> bool:
        return any(f"{self.module}.".startswith(f"{module}.") for module in modules)


def sources(*folders: str) -> list[str]:
    """Python files by path from the root; links are not followed, so each file comes once."""
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py"))


CORE = sources("forgetlab")
PLUGINS = sources("strategies", "scenarios")
MODULES = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in CORE}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def imports(source: str) -> tuple[Import, ...]:
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = {inner for function in functions for inner in ast.walk(function)}
    return tuple(
        Import(module, node.lineno, node in late)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
        for module in modules_of(node)
    )


def modules_of(node: ast.Import | ast.ImportFrom | ast.Call) -> Iterator[str]:
    """The modules that a statement imports; of ForgetLab's down to the file."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names, level=0):
            inside = {f"{module}.{alias.name}" for alias in names} & {
                *MODULES,
                "forgetlab.strategies",
                "forgetlab.scenarios",
            }
            yield from sorted(inside)
            if len(inside) < len(names):
                yield module
        case ast.ImportFrom(module=module, level=level):
            yield "." * level + (module or "")
        case ast.Call(
            func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            yield module


def room(module: str) -> str:
    """The room, or the file on top, that a module of ForgetLab's belongs to; "" for the package itself."""
    return (f"{module}.").split(".")[1]


def refused(path: str, found: Import) -> str | None:
    """Why the file at this path may not import this; None where it may."""
    place = Path(path).with_suffix("").parts
    if found.module.startswith("."):
        return "relative"
    if found.within({"strategies", "scenarios", "forgetlab.strategies", "forgetlab.scenarios"}):
        return "a plug-in"
    if place[0] != "forgetlab":
        return None if leaf_may(place, found) else "a plug-in may not"
    mine = place[1] if len(place) > 1 else ""
    if found.package in OWNERS and mine != OWNERS[found.package]:
        return f"only {OWNERS[found.package]} may"
    if mine == "metrics" and found.package not in LANGUAGE | NUMERIC | {"forgetlab"}:
        return "metrics are numbers alone"
    if found.package == "forgetlab" and mine in ORDER and room(found.module) in ORDER:
        return "a later room" if ORDER[room(found.module)] > ORDER[mine] else None
    return None


def leaf_may(place: tuple[str, ...], found: Import) -> bool:
    """Whether a plug-in, or what lies above plug-ins, may import this."""
    if place[-1] == "__init__":
        return found.package in LANGUAGE
    if place[0] == "strategies":
        known = FOR_A_METHOD | {f"forgetlab.{place[1]}"}
        return found.package in LANGUAGE | {"torch"} or found.within(known)
    data_library = found.late and found.package != "forgetlab"
    return found.package in LANGUAGE | {"torch"} or found.within(FOR_A_SCENARIO | {OF_A_TOKENIZER}) or data_library


def violations(path: str, source: str) -> list[str]:
    found = [(one, refused(path, one)) for one in imports(source)]
    return [f"{path}:{one.line} imports {one.module}: {why}" for one, why in found if why]


def dependencies(planted: Mapping[str, str] | None = None) -> dict[str, set[str]]:
    """Each file of the core and the files that it imports; ``planted``: other sources for some."""
    planted = planted or {}
    found: dict[str, set[str]] = {}
    for path in CORE:
        modules = {one.module for one in imports(planted.get(path, read(path)))}
        found[path] = {MODULES[module] for module in modules if module in MODULES} - {path}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The files of one circle; none where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("path", CORE + PLUGINS)
def test_imports_only_what_its_room_may(path: str) -> None:
    assert violations(path, read(path)) == []


def test_no_file_is_in_a_circle() -> None:
    assert circle(dependencies()) == []


def test_every_file_is_in_a_room() -> None:
    top = {path.name for path in (ROOT / "forgetlab").iterdir() if path.name != "__pycache__"}
    files = {name for name in top if (ROOT / "forgetlab" / name).is_file()}
    assert top - files == {*ROOMS, *LINKS}
    assert len(files) <= MOST_FILES_ON_TOP
    assert {f"{name}.py" for name in WORDS} < files


def folders() -> list[Path]:
    inside = [
        path for root in ("forgetlab", *sorted(LINKS)) for path in sorted((ROOT / root).rglob("*")) if path.is_dir()
    ]
    return [path for path in inside if "__pycache__" not in path.parts and not path.is_symlink()]


@pytest.mark.parametrize("folder", folders(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_room_is_crowded(folder: Path) -> None:
    entries = [path for path in folder.iterdir() if path.name not in ("__pycache__", "__init__.py")]
    assert len(entries) <= MOST_IN_A_ROOM


@pytest.mark.parametrize("path", [path for path in CORE if path.endswith("/__init__.py")])
def test_no_name_is_a_module_here_and_something_else_there(path: str) -> None:
    """Else ``from forgetlab.data import x`` would give one or the other, by what was imported before."""
    tree = ast.parse(read(path))
    handed_on = {
        alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names
    }
    files = {file.stem for file in (ROOT / path).parent.glob("*.py")}
    assert not handed_on & files


TESTS = sources("tests")


@pytest.mark.parametrize("path", TESTS)
def test_no_test_looks_at_a_room_as_a_whole(path: str) -> None:
    """What a room hands on is defined in one of its files: patching the room changes nothing and stays green."""
    tree = ast.parse(read(path))
    asked = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "forgetlab"]
    rooms = {alias.name for node in asked for alias in node.names} & {*ROOMS}
    assert rooms <= {"checks"}  # which hands nothing on


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("forgetlab/training/loop.py", "from forgetlab.engine import events"),
        ("forgetlab/metrics/intervals.py", "from forgetlab.results.store import Result"),
        ("forgetlab/batch.py", "def f():\n    from forgetlab.plugins import registry"),
        ("forgetlab/engine/one_run.py", "import mlflow.tracking"),
        ("forgetlab/report/tables.py", "def show():\n    import click"),
        ("forgetlab/replay/memory.py", "from avalanche.training.plugins import ReplayPlugin"),
        ("forgetlab/replay/memory.py", "import importlib\nimportlib.import_module('forgetlab.strategies.replay')"),
        ("forgetlab/plugins/registry.py", "import forgetlab.scenarios.split_digits"),
        ("forgetlab/plugins/registry.py", "from . import options"),
        ("forgetlab/metrics/equivalence.py", "import torch"),
        ("strategies/replay/memories/ring.py", "from forgetlab.regularization import Regularizer"),
        ("strategies/replay/memories/ring.py", "from strategies.replay.memories import reservoir"),
        ("strategies/isolation/modules/low_rank/lora.py", "from forgetlab.engine import one_run"),
        ("strategies/isolation/modules/low_rank/lora.py", "def load():\n    import peft"),
        ("scenarios/split_digits.py", "from sklearn.datasets import load_digits"),
        ("scenarios/split_digits.py", "def split_digits():\n    from forgetlab.engine.one_run import run"),
        ("strategies/__init__.py", "import torch"),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    (line,) = violations(path, source)
    assert line.startswith(f"{path}:{len(source.splitlines())} imports ")


def test_a_planted_circle_is_found() -> None:
    """Inside a room, where the order says nothing."""
    tables, curves = "forgetlab/report/tables.py", "forgetlab/report/curves.py"
    planted = {
        tables: "def table():\n    from forgetlab.report.curves import curves",
        curves: "from forgetlab.report import tables",
    }
    assert {*circle(dependencies(planted))} == {tables, curves}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("forgetlab/cli/main.py", "import click\nfrom forgetlab.config import load"),
        ("forgetlab/avalanche/api.py", "from avalanche.training.templates import SupervisedTemplate"),
        ("forgetlab/metrics/intervals.py", "import math\nfrom scipy import stats"),
        (
            "strategies/isolation/modules/low_rank/lora.py",
            "from torch import nn\nfrom forgetlab.isolation import Isolation",
        ),
        ("scenarios/split_digits.py", "def split_digits():\n    from sklearn.datasets import load_digits"),
    ],
)
def test_what_the_rooms_allow_is_let_through(path: str, source: str) -> None:
    assert violations(path, source) == []
