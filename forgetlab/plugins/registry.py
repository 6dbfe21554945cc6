"""The registry: a plug-in is a class or a function with a kind and a name, and its signature is its schema.

``@register("isolation", "lora")`` above a class is all that a method needs: its constructor's parameters become the
keys of the scenario file, with their types, defaults and limits. Plug-ins come from the packages inside
``forgetlab``, from the entry-point group ``forgetlab.plugins`` of installed packages, and from the files that a
scenario file names under ``plugins:``. Only these run code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from forgetlab.experiment import ResolvedSpec
from forgetlab.plugins import options
from forgetlab.plugins.options import Parameter, suggestion

ENTRY_POINTS = "forgetlab.plugins"
PLUGIN_PACKAGES = ("forgetlab.strategies", "forgetlab.scenarios")  # every file in them registers something
REGISTERING = (  # and these files of the core
    "forgetlab.backbones.cnn",
    "forgetlab.backbones.resnet",
    "forgetlab.backbones.dinov2",
    "forgetlab.backbones.hugging_face",
    "forgetlab.backbones.minilm",
    "forgetlab.backbones.mlp",
    "forgetlab.backbones.timm_vit",
    "forgetlab.backbones.transformer",
    "forgetlab.backbones.vit",
    "forgetlab.isolation.classifier",
    "forgetlab.learners.references",
)

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in; ``given`` are the parameters that the run fills in, so they are no keys of the file."""

    meaning: str
    family: str | None = None
    given: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "data": Kind("a data set"),
    "transform": Kind("how the domains of a stream differ", given=("seed", "n_tasks")),
    "scenario": Kind("a stream of tasks", given=("seed",)),
    "model": Kind("a backbone", given=("input_shape",)),
    "reference": Kind("what every comparison is held against"),
    "memory": Kind("which old samples are kept and drawn", "replay"),
    "sampler": Kind("which of the kept samples are drawn", "replay"),
    "rehearsal": Kind("the loss on new and drawn samples", "replay"),
    "regularizer": Kind("a penalty that holds old knowledge", "regularization"),
    "projection": Kind("a constraint on the gradient", "regularization"),
    "regime": Kind("rates, and what is done to the weights between tasks", "regularization"),
    "isolation": Kind("what one task adds to a frozen backbone", "isolation"),
    "router": Kind("which task's module answers a sample", "isolation"),
    "merger": Kind("how the tasks' changes become one that answers for all", "isolation"),
    "classifier": Kind("a closed form on features, in the place of trained heads", "isolation"),
}


class UnknownPlugin(LookupError):
    """No plug-in of this kind has this name."""


class PluginError(ValueError):
    """A plug-in file or package could not be loaded."""


@dataclass(frozen=True)
class Plugin:
    """One registered class or function."""

    kind: str
    name: str
    factory: Callable[..., Any]
    renewed: str | None = None  # the day since which it computes other numbers than before

    @property
    def module(self) -> str:
        return self.factory.__module__

    @property
    def source(self) -> Path:
        return Path(inspect.getsourcefile(self.factory) or "")


_plugins: dict[tuple[str, str], Plugin] = {}
_broken: dict[str, str] = {}  # entry points that did not load, and why
_files: dict[Path, str] = {}  # plug-in files that were loaded, and the digest of what was loaded


def register(kind: str, name: str, *, renewed: str | None = None) -> Callable[[T], T]:
    """Make a class or function known as ``name``.

    Args:
        renewed: the day (YYYY-MM-DD) since which equal options give other numbers, so that `forgetlab runs adopt`
            takes over no run that was made before it.

    Raises:
        PluginError: the kind does not exist, another plug-in has the name, or ``renewed`` is no day.
    """
    if kind not in KINDS:
        raise PluginError(f"no kind {kind!r} of plug-in{suggestion(kind, KINDS)}")
    if renewed is not None and not _is_day(renewed):
        raise PluginError(f"'renewed' of {kind} {name!r} should be a day such as 2026-12-01, not {renewed!r}")

    def add(factory: T) -> T:
        new = Plugin(kind, name, factory, renewed)
        old = _plugins.get((kind, name))
        if old is not None and old.source != new.source:
            raise PluginError(f"{kind} {name!r} exists already, in {old.module}; choose another name")
        _plugins[kind, name] = new
        return factory

    return add


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def available(kind: str) -> list[str]:
    """The names of all plug-ins of a kind."""
    discover()
    return sorted(name for a_kind, name in _plugins if a_kind == kind)


def find(kind: str, name: str) -> Plugin:
    """The plug-in of this kind and name.

    Raises:
        UnknownPlugin: with the nearest name.
    """
    names = available(kind)
    if name in names:
        return _plugins[kind, name]
    failed = "".join(f"; the package {package!r} did not load: {why}" for package, why in _broken.items())
    has = f"; there are: {', '.join(names)}" if names else "; there is none yet"
    raise UnknownPlugin(f"no {kind} {name!r}{suggestion(name, names) or has}{failed}")


def kind_of(name: str, kinds: Iterable[str]) -> str:
    """The first of these kinds that has a plug-in of this name (of the first, where none has)."""
    kinds = tuple(kinds)
    return next((kind for kind in kinds if name in available(kind)), kinds[0])


def resolve(kind: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with all defaults filled in, as plain values.

    Raises:
        OptionsError: an unknown, ill-typed, missing or out-of-range option.
    """
    return _checked(find(kind, name), given).model_dump(mode="json")


def build(kind: str, name: str, chosen: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """Call the plug-in with checked options and what the run gives.

    Raises:
        UnknownPlugin: no such plug-in.
        OptionsError: options that do not fit its signature.
    """
    plugin = find(kind, name)
    return plugin.factory(**arguments(plugin, chosen or {}), **given)


def arguments(plugin: Plugin, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Checked options as the values that the plug-in is called with, defaults filled in.

    Raises:
        OptionsError: options that do not fit its signature.
    """
    checked = _checked(plugin, chosen)
    return {key: getattr(checked, key) for key in type(checked).model_fields}


def paths(plugin: Plugin) -> set[str]:
    """The options of a plug-in that are paths."""
    return options.path_options(plugin.factory)


def fields(plugin: Plugin) -> Mapping[str, FieldInfo]:
    """What a plug-in's options have to be."""
    return options.schema(plugin.factory, KINDS[plugin.kind].given).model_fields


def named(plugin: Plugin) -> dict[str, str]:
    """The options of a plug-in that name other plug-ins, and the kind of each."""
    return options.naming_options(plugin.factory)


def parameters(plugin: Plugin) -> list[Parameter]:
    """The keys that a plug-in takes in a scenario file."""
    return options.parameters_of(plugin.factory, KINDS[plugin.kind].given)


def discover() -> None:
    """Import every plug-in of the packages inside forgetlab and of installed packages; once."""
    _import_own()
    _load_entry_points()


@cache
def _import_own() -> None:
    for name in REGISTERING:
        importlib.import_module(name)
    for name in PLUGIN_PACKAGES:
        package = importlib.import_module(name)
        for info in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(info.name)


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # somebody else's package must not stop ours
            _broken[entry.name] = f"{type(error).__name__}: {error}"


def load_file(path: Path) -> None:
    """Run a plug-in file, so that what it registers is known.

    Raises:
        PluginError: the file is missing, raises, or takes a name that is in use.
    """
    path = path.resolve()
    if not path.is_file():
        raise PluginError(f"no such plug-in file: {path.name}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _files.get(path) == digest:
        return
    discover()
    name = f"forgetlab_plugin_{path.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    before = dict(_plugins)
    try:
        spec.loader.exec_module(module)
        for key, plugin in _plugins.items():
            if before.get(key) is not plugin:
                options.schema(plugin.factory, KINDS[plugin.kind].given)  # its annotations must be known types
    except (Exception, SystemExit) as error:
        sys.modules.pop(name)
        _plugins.clear()
        _plugins.update(before)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path.name}, line {lines[-1]}" if lines else path.name
        raise PluginError(f"{where}: {type(error).__name__}: {error}") from error
    _files[path] = digest


def _checked(plugin: Plugin, given: Mapping[str, Any]) -> BaseModel:
    return options.checked(plugin.factory, KINDS[plugin.kind].given, given)


def built(kind: str, spec: ResolvedSpec, **given: Any) -> Any:
    """Build a plug-in from its resolved spec."""
    return build(kind, spec["name"], {key: value for key, value in spec.items() if key != "name"}, **given)
