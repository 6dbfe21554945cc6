"""What a stored run was asked for, beside what today's file asks for: settings by dotted names, and how they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from textwrap import shorten
from typing import Any

from pydantic import ValidationError

from forgetlab.engine import one_run
from forgetlab.experiment import ResolvedSpec, Run, Train
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionsError
from forgetlab.results.run_key import plugin_specs

LONGEST = 60  # letters of a setting that is told
NOT_COMPARED = ("key", "plugins", "strategy.name")  # where plug-in files lay, and what the run was called

FlatSettings = dict[str, Any]  # of a description, by dotted names


def with_todays_defaults(description: Mapping[str, Any]) -> dict[str, Any]:
    """A stored description with the options that have come since, each at its default.

    An option that is added keeps by its default what was done before it was there; code whose numbers change all the
    same says so where it registers (``renewed``). What today's version does not read is given back as it is.
    """
    given = deepcopy(dict(description))
    key = given.pop("key", None)
    try:
        run = Run.model_validate({"pretrain": None, **given})  # None is left out of a file
        if run.pretrain is not None and "train" in run.pretrain:
            run.pretrain["train"] = Train.model_validate(run.pretrain["train"]).model_dump(mode="json")
    except ValidationError:
        return dict(description)
    for kind, spec in plugin_specs(run):
        spec.update(_with_default_options(kind, spec))
    return {**({} if key is None else {"key": key}), **one_run.plain(run)}


def _with_default_options(kind: str, spec: ResolvedSpec) -> ResolvedSpec:
    """A plug-in's options and those of the plug-ins that they name; as they are where the plug-in takes others."""
    options = {name: value for name, value in spec.items() if name != "name"}
    try:
        plugin = registry.find(kind, spec["name"])
        for option, inner in registry.named(plugin).items():
            options[option] = _inner_defaults(inner, options.get(option))
        return {"name": spec["name"], **registry.resolve(kind, spec["name"], options)}
    except (registry.UnknownPlugin, OptionsError):
        return spec


def _inner_defaults(kind: str, named: Any) -> Any:
    """The same of what an option names: one plug-in, several, or none."""
    if isinstance(named, list):
        return [_inner_defaults(kind, one) for one in named]
    return _with_default_options(kind, named) if isinstance(named, dict) and "name" in named else named


def flat_settings(description: Mapping[str, Any]) -> FlatSettings:
    """All that a description sets, by dotted names, without what it is called.

    >>> flat_settings({"key": "1f", "seed": 0, "strategy": {"name": "mine", "isolation": {"sites": ["q", "block"]}}})
    {'seed': 0, 'strategy.isolation.sites.0': 'q', 'strategy.isolation.sites.1': 'block'}
    """

    def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            parts = dict(value)
        elif isinstance(value, list):
            parts = dict(enumerate(value))
        else:
            yield name, value
            return
        for key, part in parts.items():
            yield from flat(part, f"{name}.{key}" if name else str(key))

    told = {name: value for name, value in description.items() if name not in NOT_COMPARED}
    return {name: value for name, value in flat(told, "") if name not in NOT_COMPARED}


def setting_differences(then: FlatSettings, now: FlatSettings) -> list[str]:
    """Which settings differ, in words.

    >>> setting_differences({"train.lr": 0.1, "seed": 0}, {"train.lr": 0.2, "seed": 0, "threads": 1})
    ['train.lr: 0.1 then, 0.2 now', 'threads: nothing then, 1 now']
    """
    nothing = "nothing"
    pairs = {name: (then.get(name, nothing), now.get(name, nothing)) for name in {**then, **now}}
    return [f"{name}: {in_short(old)} then, {in_short(new)} now" for name, (old, new) in pairs.items() if old != new]


def in_short(value: Any) -> str:
    """A value in no more letters than a line has room for."""
    return shorten(str(value), LONGEST, placeholder=" ...")
