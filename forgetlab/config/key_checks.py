"""A scenario file while it is checked: what it holds, and everything that was found wrong with it so far."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from forgetlab.config import candidates
from forgetlab.config.other_spellings import spelt_here
from forgetlab.config.yaml_reader import FileErrors, FileProblem, parse
from forgetlab.experiment import ORACLE, Choice, KeyPath, ResolvedSpec
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionsError, option_problems, suggestion, unknown_key

M = TypeVar("M", bound=BaseModel)


class ScenarioFile:
    """Checks go on after a problem, so that one look at a file tells them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document = parse(path)
        self.problems: list[FileProblem] = []
        self.shorthands: dict[KeyPath, KeyPath] = {}  # where the file has what is elsewhere in the whole form
        self.incomplete = False  # plug-ins are missing, so that a name is unknown says nothing
        self.searches = self.document.data.get("tuning") is not None
        self.choices: list[Choice] = []  # options with several values, of which a search chooses

    def refuse(self, place: KeyPath, message: str, *, of_key: bool = False) -> None:
        whole = max((p for p in self.shorthands if place[: len(p)] == p), key=len, default=())
        place = (*self.shorthands.get(whole, ()), *place[len(whole) :])
        self.problems.append(FileProblem(*self.document.position(place, of_key=of_key), message))

    def stop_if_refused(self) -> None:
        """Where the text itself is wrong, what else is said of the same place follows from that."""
        told = {problem[:2] for problem in self.document.problems}
        found = [problem for problem in self.problems if problem[:2] not in told]
        if found or told:
            raise FileErrors(self.path, self.document.problems + found)

    def known(self, given: Mapping[str, Any], valid: Collection[str], place: KeyPath) -> dict[str, Any]:
        """The given values without those that nothing takes."""
        within = _key(place) if place else ""
        for key in [key for key in given if key not in valid]:
            said = spelt_here(key, within, valid)
            self.refuse((*place, key), unknown_key(key, valid, within, said=said), of_key=True)
        return {key: value for key, value in given.items() if key in valid}

    def section(self, model: type[M], given: Any, place: KeyPath) -> M:
        """The model, with a default in place of each value that does not fit."""
        if not isinstance(given, dict):
            self.refuse(place, f"{_key(place)!r} must be a mapping of keys to values")
            return model.model_construct()
        given = self.known(given, model.model_fields, place)
        inner = {key: kind for key in given if given[key] is not None and (kind := _section_of(model, key))}
        sections = {key: self.section(kind, given.pop(key), (*place, key)) for key, kind in inner.items()}
        given, refused = candidates.first_of(
            self, given, model.model_fields, place, lambda one: dict(_validated(model, one))
        )
        try:
            checked = _validated(model, given)
        except OptionsError as error:
            self._refuse_options(error, place, refused)
            wrong = {where[0] for where, _ in error.problems if where}
            checked = model.model_construct(**{k: v for k, v in given.items() if k not in wrong})
        return checked.model_copy(update=sections)

    def load_plugins(self, files: list[Path], *, whole: bool) -> None:
        """Load plug-in files; ``whole``: these are all that the file names."""
        self.incomplete = not whole
        for i, file in enumerate(files):
            try:
                registry.load_file(file)
            except (ValueError, OSError) as error:  # PluginError, and a path that no file can have
                self.refuse(("plugins", i), str(error))
                self.incomplete = True

    def spec(self, kinds: tuple[str, ...], given: Any, place: KeyPath) -> ResolvedSpec | None:
        """A plug-in of one of these kinds and all its options; None where that was refused."""
        named = self.named(given, place)
        plugin = self.plugin(kinds, named["name"], place) if named else None
        return self.options(plugin, named, place) if named and plugin else None

    def named(self, given: Any, place: KeyPath) -> ResolvedSpec | None:
        """A name alone, or a mapping with a name and options, as the latter."""
        if isinstance(given, str):
            return {"name": given}
        if isinstance(given, dict) and isinstance(given.get("name"), str):
            return given
        form = "must be a plug-in's name, or a mapping that holds its 'name' and its options"
        self.refuse((*place, "name"), f"{_key(place)!r} {'is missing' if given is None else form}")
        return None

    def plugin(self, kinds: tuple[str, ...], name: str, place: KeyPath) -> registry.Plugin | None:
        told = []
        for kind in kinds:
            try:
                return registry.find(kind, name)
            except registry.UnknownPlugin as error:
                told.append(str(error))
        names = [known for kind in kinds for known in registry.available(kind)]
        near = suggestion(name, [*names, ORACLE] if "router" in kinds else names)
        message = f"no {' or '.join(kinds)} {name!r}{near}" if near else "; ".join(told)
        if not self.incomplete:
            self.refuse((*place, "name"), message)
        return None

    def options(self, plugin: registry.Plugin, named: ResolvedSpec, place: KeyPath) -> ResolvedSpec | None:
        given = {key: value for key, value in named.items() if key != "name"}
        given = self.known(given, [p.name for p in registry.parameters(plugin)], place)
        refused = self._nested(plugin, given, place)
        for key in registry.paths(plugin) & given.keys():
            if isinstance(given[key], str):
                given[key] = str(self.path.parent / Path(given[key]).expanduser())
        resolve = partial(registry.resolve, plugin.kind, plugin.name)
        given, unfit = candidates.first_of(self, given, registry.fields(plugin), place, resolve)
        try:
            resolved = {"name": plugin.name, **resolve(given)}
        except OptionsError as error:
            self._refuse_options(error, place, refused | unfit)
            return None
        return None if refused | unfit else resolved

    def _refuse_options(self, error: OptionsError, place: KeyPath, told: set[str]) -> None:
        """Refuse each option that was not refused before."""
        for where, message in error.problems:
            if not {*where[:1]} & told:
                self.refuse((*place, *where), message)

    def _nested(self, plugin: registry.Plugin, given: dict[str, Any], place: KeyPath) -> set[str]:
        """Put whole specs in the place of those that options name; returns the options in which one was refused."""
        for option, kind in registry.named(plugin).items():
            value = given.get(option)
            if isinstance(value, list):
                given[option] = [self.spec((kind,), item, (*place, option, i)) for i, item in enumerate(value)]
            elif value is not None:
                given[option] = self.spec((kind,), value, (*place, option)) or [None]
        return {name for name in registry.named(plugin) if isinstance(given.get(name), list) and None in given[name]}


def _validated(model: type[M], given: Mapping[str, Any]) -> M:
    """
    Raises:
        OptionsError: values that do not fit the model.
    """
    try:
        return model.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        of_all = [((), i["msg"].removeprefix("Value error, ")) for i in error.errors() if not i["loc"]]
        raise OptionsError(of_all or option_problems(error, model.model_fields)) from error


def _key(place: KeyPath) -> str:
    return [step for step in place if isinstance(step, str)][-1]


def _section_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    kind = model.model_fields[key].annotation
    inside = [part for part in get_args(kind) if part is not NoneType]
    if len(inside) == 1 and NoneType in get_args(kind):  # a section that may be left out
        (kind,) = inside
    return kind if inspect.isclass(kind) and issubclass(kind, BaseModel) else None
