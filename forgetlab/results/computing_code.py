"""The code that a run computes with: the files that its own import, and those that these import.

No list of files is kept: what is imported is read from the source, late imports too. A name that a room hands on stands
for the file that defines it, so that a memory does not hang on all that the room of memories holds.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
RUN = "engine/one_run.py"  # what carries a run out
START = "training/pretraining.py"  # what makes a pretrained start
EXEMPT: Mapping[str, str] = {  # files that a run imports and that change no number, each with the reason
    "results/run_key.py": "says what goes into a key; what it says is in the key",
    "results/computing_code.py": "as run_key",
    "results/store.py": "writes what was computed; what its files look like has a version of its own",
}


def digest(*files: Path | str) -> str:
    """Of these files, given as paths or from the package's folder, and of all of ForgetLab that they import."""
    found = hashlib.sha256()
    for path in sorted(computing(PACKAGE / file for file in files)):
        found.update(name_in_digest(path).encode() + path.read_bytes())
    return found.hexdigest()


def computing(files: Iterable[Path]) -> set[Path]:
    """These files, and all files of ForgetLab that they import, but for what is exempt."""
    found: set[Path] = set()
    left = [file.resolve() for file in files]
    while left:
        file = left.pop()
        if file not in found and name_in_digest(file) not in EXEMPT:
            found.add(file)
            left += imported(file)
    return found


def name_in_digest(path: Path) -> str:
    """A file's name in a digest: its path in the package, or for a file of somebody else's its last part."""
    for root in (PACKAGE.resolve(), *_links()):
        if path.is_relative_to(root):
            return str(path.relative_to(root if root == PACKAGE.resolve() else root.parent))
    return path.name


def _links() -> list[Path]:
    """Where the families of plug-ins really are: in a checkout behind links."""
    return [(PACKAGE / name).resolve() for name in ("strategies", "scenarios")]


def imported(file: Path) -> list[Path]:
    """The files of ForgetLab that a file imports, whenever it does."""
    modules = {_defining(module, name) for module, name in _imports(file.read_bytes())}
    return [path for path in map(_file_of, sorted(modules)) if path is not None]


@cache
def _imports(source: bytes) -> tuple[tuple[str, str | None], ...]:
    """Each import of ForgetLab's as (module, name asked of it or None), but for those that types alone need."""
    tree = ast.parse(source)
    for_types = {id(node) for block in _type_checking(tree) for node in ast.walk(block)}
    found: list[tuple[str, str | None]] = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
    return tuple((module, name) for module, name in found if f"{module}.".startswith("forgetlab."))


def _type_checking(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from node.body


def _defining(module: str, name: str | None) -> str:
    """The module that an import reaches: a room's file, or the one from which a room hands a name on."""
    if name is None:
        return module
    if _file_of(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    file = _file_of(module)
    if file is None or file.name != "__init__.py":
        return module
    handed_on = {as_name: source for source, as_name in _imports(file.read_bytes()) if as_name is not None}
    return _defining(handed_on[name], name) if name in handed_on else module


def _file_of(module: str) -> Path | None:
    """A module's file; None where the package has none of that name."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path.resolve()
    return None
