"""A researcher's own plug-in: a file to start from with its test, and the checks of its kind told in words."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgetlab.checks.check import Check
    from forgetlab.plugins.registry import Plugin

ENTRY = {  # how a scenario file names one; the kinds that `new` writes
    "isolation": "isolation: {name}",
    "router": "{{isolation: lora, router: {name}}}",
    "merger": "{{isolation: lora, merge: {name}}}",
    "classifier": "classifier: {name}",
    "memory": "replay: {{memory: {name}, capacity: 200}}",
    "sampler": "replay: {{memory: reservoir, capacity: 200, sampler: {name}}}",
    "rehearsal": "replay: {{memory: reservoir, capacity: 200, rehearsal: {name}}}",
    "projection": "replay: {{memory: ring, capacity: 200, projection: {name}}}",
    "regularizer": "regularization: {{name: {name}, strength: 1}}",
    "regime": "regularization: {name}",
}
KINDS = tuple(ENTRY)
BROKEN, UNUSABLE = 1, 2


class Refused(ValueError):
    """What was asked for cannot be done."""


def new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py, which work as they are.

    Raises:
        Refused: there is such a file or plug-in already, or the name is none.
    """
    from forgetlab.plugins import registry

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise Refused(f"{name!r} is no name: small letters, digits and _, a letter first, such as my_module")
    if name in registry.available(kind):
        where = registry.find(kind, name).module
        raise Refused(f"{kind} {name!r} exists already, in {where}; 'forgetlab show {kind} {name}' shows it")
    made = {folder / f"{name}.py": kind, folder / f"test_{name}.py": "test"}
    for path in made:
        if path.exists():
            raise Refused(f"{path} is there already; nothing was written")
    words = {"kind": kind, "name": name, "Class": "".join(word.capitalize() for word in name.split("_"))}
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in made.items():
        text = files("forgetlab.checks").joinpath("templates", f"{template}.txt").read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(words), encoding="utf-8")
    return list(made)


def advice(kind: str, name: str, written: Sequence[Path]) -> list[str]:
    """What to do with a new file."""
    file, test = written
    return [
        f"Written: {file} and {test}. They work as they are. Next:",
        f"  forgetlab check-module {file}",
        f"  python -m pytest {test}",
        f"In a scenario file:  plugins: [./{file.name}]  and  strategies: [{ENTRY[kind].format(name=name)}]",
    ]


@dataclass
class Verdict:
    """What one check of one plug-in found."""

    promise: str
    kept: list[str] = field(default_factory=list)  # the families of backbone on which it holds
    broken: dict[str, list[str]] = field(default_factory=dict)  # what is wrong, where -> on which families

    @property
    def holds(self) -> bool:
        return not self.broken


def registered(path: Path, name: str | None = None) -> list[Plugin]:
    """What a file registers; this runs the file.

    Raises:
        Refused: nothing, or nothing of this name.
        PluginError: it does not load.
    """
    from forgetlab.plugins import options, registry

    registry.load_file(path)
    everything = [registry.find(kind, one) for kind in registry.KINDS for one in registry.available(kind)]
    found = [plugin for plugin in everything if plugin.source.resolve() == path.resolve()]
    if not found:
        kinds = ", ".join(registry.KINDS)
        raise Refused(f'{path.name} registers nothing: write @register("isolation", "NAME") above a class; {kinds}')
    names = [plugin.name for plugin in found]
    if name is not None and name not in names:
        raise Refused(f"{path.name} registers no {name!r}{options.suggestion(name, names)}; it has: {', '.join(names)}")
    return [plugin for plugin in found if name in (None, plugin.name)]


def verdicts(plugin: Plugin) -> Iterator[Verdict]:
    """Each check of a plug-in; of a module, on each family of backbone by itself."""
    from forgetlab.checks import checks

    families = fitting(plugin)
    for check in checks(plugin):
        verdict = Verdict(sentence(check))
        for family in families if check.__module__.endswith("isolation") else [""]:
            wrong = tried(check, plugin, family)
            if wrong is None:
                verdict.kept.append(family)
            else:
                verdict.broken.setdefault(wrong, []).append(family)
        yield verdict


def fitting(plugin: Plugin) -> list[str]:
    """The families of backbone that a module fits; one nameless place to try where it fits none, or is no module."""
    from forgetlab.checks import isolation

    if plugin.kind != "isolation":
        return [""]
    try:
        return isolation.fitting(plugin) or [""]
    except Exception:  # the checks themselves tell what it was
        return [""]


def tried(check: Check, plugin: Plugin, family: str) -> str | None:
    """What is wrong, and where in the file; None where the promise is kept."""
    from forgetlab.checks import isolation

    inside: AbstractContextManager[Any] = isolation.only_on(family) if family else nullcontext()
    try:
        with inside:
            check(plugin)
    except Exception as error:
        said = str(error) or type(error).__name__
        told = said if isinstance(error, AssertionError) else f"{type(error).__name__}: {said}"
        return f"{' '.join(told.split())} ({where(plugin, error)})"
    return None


def where(plugin: Plugin, error: Exception) -> str:
    """The innermost line of the file that an error came through, or that on which the plug-in starts."""
    inside = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == plugin.source]
    if inside:
        return f"{plugin.source.name}, line {inside[-1].lineno}: {inside[-1].line}"
    return f"{plugin.source.name}, {starts_at(plugin)}"


def starts_at(plugin: Plugin) -> str:
    return f"line {inspect.getsourcelines(plugin.factory)[1]}: {plugin.factory.__name__}"


def sentence(check: Check) -> str:
    """The first sentence of what a check is for."""
    words = " ".join((inspect.getdoc(check) or check.__name__).split())
    return words.split(". ")[0].rstrip(".")


def report(path: Path, name: str | None, console: Any) -> int:
    """Check all that a file registers and print it; returns how the command ends."""
    broken, known = 0, set[str]()
    for plugin in registered(path, name):
        console.print(f"[bold]{plugin.kind} {plugin.name}[/bold] ({path.name}, {starts_at(plugin)})", highlight=False)
        for verdict in verdicts(plugin):
            broken += not verdict.holds
            console.print(verdict_lines(verdict, known))
            known |= {*verdict.broken}
        if plugin.kind == "isolation":
            console.print(tried_on(plugin), markup=False, highlight=False)
    if broken:
        console.print(f"{broken} {'promise is' if broken == 1 else 'promises are'} broken.", style="red")
        return BROKEN
    console.print("Every promise is kept.", style="green")
    return 0


def verdict_lines(verdict: Verdict, known: Collection[str]) -> Any:
    """A verdict as it is printed, its lines below each other; what is ``known`` is not told at length again."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    style = "green" if verdict.holds else "red"
    grid.add_row("", Text("ok" if verdict.holds else "failed", style), Text(verdict.promise))
    for wrong, families in verdict.broken.items():
        on = f"on {', '.join(families)}: " if any(families) else ""
        grid.add_row("", "", Text(on + ("the same as above" if wrong in known else wrong), style))
    return grid


def tried_on(plugin: Plugin) -> str:
    """On which families of backbone a module was tried, and why not on others."""
    from forgetlab.checks.backbones import FAMILIES

    on = fitting(plugin)
    left = [family for family in FAMILIES if family not in on]
    return f"Tried on {', '.join(on)}" + (f"; it has no place to attach to on {', '.join(left)}" if left else "")
