"""One word, one meaning, and one place that decides: read from the source, so a second one names its line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgetlab.metrics import accuracy_matrix, definition_texts
from forgetlab.plugins import registry
from forgetlab.training import competing_classes

PACKAGE = Path(competing_classes.__file__).resolve().parent
while PACKAGE.name != "forgetlab":
    PACKAGE = PACKAGE.parent

WORDS = ("KeyPath", "MASK", "Problem", "Projection", "Spec", "UNKNOWN")  # that stood for several things once
REPEATED = {
    "T": "a type variable says nothing beyond its function",
    "auroc": "the score of one task, and its average, which is the metric of that name",
    "load": "makes of a file, or a folder, what it stands for",
    "log_loss": "as auroc",
    "macro_f1": "as auroc",
    "read": "gives what a file holds",
}


def sources(package: Path) -> dict[str, ast.Module]:
    """The package's own files by path; plug-ins are behind links, which are not followed, and have names of theirs."""
    links = [link.resolve() for link in package.iterdir() if link.is_symlink()]
    paths = [
        path for path in sorted(package.rglob("*.py")) if not any(link in path.resolve().parents for link in links)
    ]
    return {str(path.relative_to(package)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def is_command(function: ast.FunctionDef) -> bool:
    """Whether a function is a command line's, which is called what its command is called."""
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def names_in(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The types, type aliases, functions and constants that a module defines for others, each with its line."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and not is_command(node)):
            yield node.name, node.lineno
        elif isinstance(node, ast.Assign):
            stored = [one for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            yield from ((one.id, node.lineno) for one in stored)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.lineno


def definitions_of(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Where each public name is defined: file and line."""
    found: dict[str, list[str]] = {}
    for path, tree in trees.items():
        for name, line in names_in(tree):
            if not name.startswith("_"):
                found.setdefault(name, []).append(f"{path}:{line}")
    return found


def is_type_or_function(name: str) -> bool:
    """Constants in capitals belong to their file."""
    return not re.fullmatch(r"[A-Z][A-Z0-9_]+", name)


def repeated(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Types and functions with a name that another has; of checks not, as several kinds may make one promise."""
    core = {path: tree for path, tree in trees.items() if Path(path).parts[0] != "checks"}
    found = definitions_of(core)
    return {name: places for name, places in found.items() if len(places) > 1 and is_type_or_function(name)}


def calls(tree: ast.AST, function: str) -> list[ast.Call]:
    """The calls of a function, by its name alone or behind its module's."""
    every = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in every if ast.unparse(node.func).rpartition(".")[2] == function]


def docstrings(tree: ast.Module) -> set[ast.Constant]:
    owners = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    first = [owner.body[0].value for owner in owners if owner.body and isinstance(owner.body[0], ast.Expr)]
    return {value for value in first if isinstance(value, ast.Constant)}


def uses_of_mask(tree: ast.Module) -> list[int]:
    """Lines that put MASK somewhere, or compare with it."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "MASK"]


SOURCES = sources(PACKAGE)


def test_types_and_functions_have_names_of_their_own() -> None:
    assert {name: places for name, places in repeated(SOURCES).items() if name not in REPEATED} == {}


def test_every_exception_is_one() -> None:
    assert REPEATED.keys() <= repeated(SOURCES).keys()


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_the_house_is_defined_once(word: str) -> None:
    assert len(definitions_of(SOURCES)[word]) == 1


def test_projection_is_the_constraint_alone() -> None:
    """What shows results is a view."""
    named = [name for name in definitions_of(SOURCES) if "project" in name.lower()]
    assert named == ["Projection"] and "gradient" in registry.KINDS["projection"].meaning


def test_a_second_definition_is_found() -> None:
    planted = {"one.py": ast.parse("class Place: ..."), "rooms/two.py": ast.parse("Place = tuple[str, ...]")}
    assert repeated(planted) == {"Place": ["one.py:1", "rooms/two.py:1"]}


def test_one_module_masks_classes() -> None:
    """All others ask it: who fills with MASK, or compares with it, decides which classes compete."""
    deciding = {path: uses_of_mask(tree) for path, tree in SOURCES.items() if Path(path).parts[0] != "checks"}
    assert [Path(path).name for path, lines in deciding.items() if lines] == ["competing_classes.py"]


@pytest.mark.parametrize("attribute", ["task_known", "loss_classes"])
def test_one_module_asks_a_model_what_it_masks(attribute: str) -> None:
    asking = {
        Path(path).name
        for path, tree in SOURCES.items()
        for call in calls(tree, "getattr")
        if [ast.literal_eval(arg) for arg in call.args[1:2] if isinstance(arg, ast.Constant)] == [attribute]
    }
    assert asking == {"competing_classes.py"}


def test_a_misspelt_key_is_told_one_thing() -> None:
    saying = {
        Path(path).name
        for path, tree in SOURCES.items()
        for node in {n for n in ast.walk(tree) if isinstance(n, ast.Constant)} - docstrings(tree)
        if isinstance(node.value, str) and ("unknown key" in node.value or "valid keys: " in node.value)
    }
    assert saying == {"options.py"}


def test_final_metrics_are_worked_out_once() -> None:
    """As a run is stored; who shows a stored run hands over what it holds."""
    every = {Path(path).name: calls(tree, "own_metrics") for path, tree in SOURCES.items()}
    worked_out = [name for name, some in every.items() for call in some if not call.keywords]
    shown = [name for name, some in every.items() for call in some if [k.arg for k in call.keywords] == ["stored"]]
    assert len(worked_out) == len(shown) == 1 and worked_out != shown


def test_what_is_stored_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = accuracy_matrix.own_metrics([[1.0, None], [0.5, 0.75]], [None, None])
    asked: list[str] = []

    def never(accuracy: accuracy_matrix.Matrix) -> float:
        asked.append("again")
        return 0.0

    never.__name__ = "average_accuracy"
    monkeypatch.setattr(accuracy_matrix, "OWN", (never, *accuracy_matrix.OWN[1:]))
    assert accuracy_matrix.own_metrics([[1.0, None], [0.5, 0.75]], [None, None], stored=stored) == stored and not asked
    assert accuracy_matrix.own_metrics([[1.0]], [None])["average_accuracy"] == 0.0 and asked == ["again"]


def test_every_own_metric_is_defined() -> None:
    assert accuracy_matrix.own_metrics([[0.5]], [None]).keys() <= definition_texts.METRICS.keys()
