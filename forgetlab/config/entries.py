"""The entries of a comparison as a scenario file writes them: references, and combinations of plug-ins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any

from pydantic import AfterValidator, PositiveInt
from pydantic_core import PydanticCustomError

from forgetlab.config.key_checks import ScenarioFile
from forgetlab.experiment import (
    ORACLE,
    REGULARIZATION,
    Frozen,
    GeneralSet,
    KeyPath,
    Replay,
    ReplayWeight,
    ResolvedSpec,
    Strategy,
    Train,
)
from forgetlab.plugins import registry
from forgetlab.replay.memory import SIZES

REFERENCES = ("naive", "joint", "separate", "ridge")  # unless the file names its own
ROUTER = "prototype"  # unless the task is told
COMBINED = "combined"  # the isolation plug-in of several modules
FAMILIES = ("replay", "regularization", "isolation", "classifier", "avalanche")
ANSWERS = ("router", "merge")  # who answers for isolation's modules
REPLAY = ("memory", "sampler", "rehearsal", "projection")
BESIDE_MEMORY = ("depth", "batch_size", "weight")  # what has no meaning without a memory
WHY_NOT = {  # sizes that a memory may not take
    "capacity": "how much it keeps is told otherwise",
    "per_class": "it does not choose class by class",
    "per_task": "it does not choose task by task",
    "share": "of what comes no fixed share stays in it",
}
AVALANCHE = ("plugin", "strategy")
MEANINGLESS = {  # beside isolation
    "replay": "the module of one task never sees samples of another, so there is nothing to replay",
    "regularization": "the module of each task starts afresh, so there is nothing old to be penalised",
    "avalanche": "what Avalanche trains is the backbone, which isolation keeps as it is",
}
OR_SHARED = "; 'shared: true' makes one module of them, which all tasks train"
ALONE = "a classifier has no meaning with {}: it answers by itself, from frozen features"
FOR_ALL = "{} has no meaning here: {} has one module that answers for all tasks"


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"(?!\.)[A-Za-z0-9._+-]{1,100}", name):
        message = "should be 1 to 100 letters, digits or . _ - + with no dot in front"
        raise PydanticCustomError("folder_name", message)
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


class Beside(Frozen):
    """What stands in a replay beside its plug-ins."""

    depth: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    weight: ReplayWeight | None = None
    general: GeneralSet | None = None


class StrategyName(Frozen):
    """What a strategy is called, and its run folder with it."""

    name: FolderName


def references(file: ScenarioFile, given: Any) -> tuple[ResolvedSpec, ...]:
    """The references; each is a name, a mapping with a name, or a mapping from a name to its options."""
    given = [] if given is None else given
    if not isinstance(given, list):
        file.refuse(("references",), "'references' must be a list")
        return ()
    found: dict[str, ResolvedSpec] = {}
    for i, item in enumerate(given):
        place: KeyPath = ("references", i)
        if isinstance(item, dict) and len(item) == 1 and "name" not in item:
            ((name, options),) = item.items()
            file.shorthands |= {place: (*place, name), (*place, "name"): place}
            options = {} if options is None else options
            item = {"name": name, **options} if isinstance(options, dict) else item
        spec = file.spec(("reference",), item, place)
        if spec and spec["name"] in found:
            file.refuse((*place, "name"), f"the reference {spec['name']!r} stands here twice")
        elif spec:
            found[spec["name"]] = spec
    return tuple(found.values())


def default_references() -> list[str]:
    return [name for name in REFERENCES if name in registry.available("reference")]


def strategies(file: ScenarioFile, given: Any, task_known: bool | None, taken: list[str]) -> tuple[Strategy, ...]:
    """The entries, of which none may be called as another or as one of those ``taken``."""
    if not isinstance(given, list):
        file.refuse(("strategies",), "'strategies' must be a list")
        return ()
    names = {name.casefold() for name in taken}  # some file systems do not tell cases apart
    found: list[Strategy] = []
    for i, item in enumerate(given):
        place: KeyPath = ("strategies", i)
        entry = _entry(file, item, place, task_known)
        if entry and entry.name.casefold() in names:
            message = f"two entries are called {entry.name!r}; give this one another 'name'"
            file.refuse((*place, "name"), message)
        if entry:
            names.add(entry.name.casefold())
            found.append(entry)
    return tuple(found)


def _entry(file: ScenarioFile, given: Any, place: KeyPath, task_known: bool | None) -> Strategy | None:
    """The entry; None where it is too broken to have a name."""
    if not isinstance(given, dict):
        file.refuse(place, "an entry must be a mapping, such as {replay: {memory: reservoir}}")
        return None
    known = file.known(given, ("name", *FAMILIES, "shared", *ANSWERS, "train"), place)
    misspelt = len(known) < len(given)
    given = {key: value for key, value in known.items() if value is not None}
    if not misspelt and not given.keys() & set(FAMILIES):
        file.refuse(place, f"an entry needs at least one of {', '.join(FAMILIES)}")
    _refuse_meaningless(file, given, place)
    parts: dict[str, Any] = {f: READERS[f](file, given[f], (*place, f)) for f in FAMILIES if f in given}
    if "shared" in given:
        parts["shared"] = True
    elif "isolation" in given and "classifier" not in given:
        parts |= _answers(file, given, parts["isolation"], place, task_known)
    train = given.get("train", {})
    options = dict(file.section(Train, train, (*place, "train")))
    overrides = {key: value for key, value in options.items() if key in train}
    if "name" not in given and None not in parts.values():
        given["name"] = "+".join(_names(parts, task_known)) or None
    named = file.section(StrategyName, {"name": given["name"]}, place) if given.get("name") is not None else None
    return Strategy(name=named.name, train=overrides, **parts) if named and named.model_fields_set else None


def _refuse_meaningless(file: ScenarioFile, given: Mapping[str, Any], place: KeyPath) -> None:
    if "classifier" in given:
        for other in sorted({*FAMILIES, *ANSWERS} - {"classifier", "isolation"} & given.keys()):
            file.refuse(place, ALONE.format(other))
    elif given.get("shared"):
        _refuse_shared(file, given, place)
    elif "isolation" in given:
        for other in sorted(MEANINGLESS.keys() & given.keys()):
            hint = "" if other == "avalanche" else OR_SHARED
            file.refuse(place, f"isolation has no meaning with {other}: {MEANINGLESS[other]}{hint}")
    elif "router" in given:
        file.refuse(place, "a router has no meaning without isolation: it chooses among modules of tasks")
    elif "merge" in given:
        file.refuse(place, "merge has no meaning without isolation: it makes one of the changes of all tasks")


def _refuse_shared(file: ScenarioFile, given: Mapping[str, Any], place: KeyPath) -> None:
    if given["shared"] is not True:
        file.refuse((*place, "shared"), "'shared' is true or left out")
    if "isolation" not in given:
        file.refuse((*place, "shared"), "'shared' has no meaning without isolation: it makes one module of all tasks'")
    for other in sorted({*ANSWERS, "avalanche"} & given.keys()):
        file.refuse((*place, other), f"{other!r} has no meaning here: one module answers for all tasks", of_key=True)


def _names(parts: Mapping[str, Any], task_known: bool | None) -> list[str]:
    """What an entry without a name is called: its plug-ins, in the order of the families."""
    replay = parts.get("replay")
    specs = [getattr(replay, part, None) for part in REPLAY]
    specs += [{"name": "general"} if getattr(replay, "general", None) else None]
    specs += [
        *(parts.get("regularization") or ()),
        *_members(parts.get("isolation")),
        parts.get("merge"),
        parts.get("classifier"),
    ]
    if not (task_known and parts.get("router") == {"name": ORACLE}):
        specs.append(parts.get("router"))
    names = [spec["name"] for spec in specs if spec] + (["shared"] if "shared" in parts else [])
    return names + [parts["avalanche"][key] for key in AVALANCHE if key in parts.get("avalanche", {})]


def _members(isolation: ResolvedSpec | None) -> list[ResolvedSpec]:
    """The modules of an entry, several where they are combined."""
    if isolation is None or isolation["name"] != COMBINED:
        return [isolation] if isolation else []
    return [member for part in isolation["parts"] for member in _members(part)]


def _answers(
    file: ScenarioFile,
    given: Mapping[str, Any],
    isolation: ResolvedSpec | None,
    place: KeyPath,
    task_known: bool | None,
) -> dict[str, Any]:
    """The router or the merger; neither where the newest module answers for all tasks."""
    kinds = {member["name"]: registry.find("isolation", member["name"]).factory for member in _members(isolation)}
    for_all = [name for name, kind in kinds.items() if getattr(kind, "speaks_for_all", False)]
    for key in ANSWERS if for_all else ():
        if key in given:
            file.refuse((*place, key), FOR_ALL.format(f"{key!r}", for_all[0]), of_key=True)
    if "merge" in given:
        if "router" in given:
            file.refuse((*place, "router"), FOR_ALL.format("'router'", "a merge"), of_key=True)
        return {"merge": file.spec(("merger",), given["merge"], (*place, "merge"))}
    return {} if for_all else {"router": _router(file, given.get("router"), (*place, "router"), task_known)}


def _isolation(file: ScenarioFile, given: Any, place: KeyPath) -> ResolvedSpec | None:
    """A module; several in a list act together."""
    if isinstance(given, list):
        file.shorthands[(*place, "parts")] = place
        given = {"name": COMBINED, "parts": given}
    return file.spec(("isolation",), given, place)


def _router(file: ScenarioFile, given: Any, place: KeyPath, task_known: bool | None) -> ResolvedSpec | None:
    named = file.named(given or (ORACLE if task_known else ROUTER), place)
    if named and named["name"] == ORACLE:
        file.known({key: value for key, value in named.items() if key != "name"}, (), place)
        return {"name": ORACLE}
    return file.spec(("router",), named, place) if named else None


def _avalanche(file: ScenarioFile, given: Any, place: KeyPath) -> ResolvedSpec | None:
    named = [given[key] for key in AVALANCHE if key in given] if isinstance(given, dict) else []
    if len(named) == 1 and named[0] and isinstance(named[0], str):
        return given
    message = "'avalanche' needs either 'plugin' or 'strategy', a class of Avalanche, and its arguments"
    file.refuse(place, message)
    return None


def _regularization(file: ScenarioFile, given: Any, place: KeyPath) -> tuple[ResolvedSpec, ...] | None:
    """What holds old knowledge; several in a list act together."""
    if not isinstance(given, list):
        file.shorthands[(*place, 0)] = place
        given = [given]
    specs = [file.spec(REGULARIZATION, item, (*place, i)) for i, item in enumerate(given)]
    found = tuple(spec for spec in specs if spec)
    return found if len(found) == len(given) > 0 else None


def _replay(file: ScenarioFile, given: Any, place: KeyPath) -> Replay | None:
    if not isinstance(given, dict):
        file.refuse(place, "'replay' must be a mapping, such as {memory: reservoir}")
        return None
    general = given.get("general")
    beside = {key: given[key] for key in BESIDE_MEMORY if given.get(key) is not None}
    plain = dict(file.section(Beside, beside, place))
    if general is not None:
        plain["general"] = _general(file, general, (*place, "general"))
    asked = [part for part in REPLAY if given.get(part) is not None or (part == "memory" and general is None)]
    if "memory" not in asked:
        for part in (*asked, *beside):
            file.refuse((*place, part), f"{part!r} has no meaning without a memory", of_key=True)
    found: dict[str, registry.Plugin] = {}
    specs: dict[str, ResolvedSpec] = {}
    for part in asked:
        named = file.named(given.get(part), (*place, part))
        if named and (plugin := file.plugin((part,), named["name"], (*place, part))):
            found[part], specs[part] = plugin, dict(named)
    options = {part: [option.name for option in registry.parameters(found[part])] for part in found}
    if "memory" in found and _size_refused(file, given, specs["memory"], options, place):
        del found["memory"]
    flat = {key: value for key, value in given.items() if key not in (*REPLAY, *Beside.model_fields)}
    if len(found) == len(asked):
        flat = file.known(flat, dict.fromkeys([*REPLAY, *Beside.model_fields, *chain(*options.values())]), place)
    _share_out(file, flat, options, specs, place)
    if "batch_size" in beside and "memory" in found:
        _ratio_refused(file, specs["memory"], place)
    parts = {part: file.options(found[part], specs[part], (*place, part)) for part in found}
    if (memory := parts.get("memory")) is not None:
        parts["memory"] = _without_what_is_not_told(memory, "batch_size" in beside)
    whole = len(found) == len(asked) and all(parts.values()) and (general is None) == (plain["general"] is None)
    return Replay.model_validate({**plain, **parts}) if whole else None


def _size_refused(
    file: ScenarioFile,
    given: Mapping[str, Any],
    memory: ResolvedSpec,
    options: Mapping[str, list[str]],
    place: KeyPath,
) -> bool:
    """Whether a size is given, in or beside the memory's own options, that this memory does not take."""
    known = set(chain(*options.values()))
    refused = False
    for where, values in (((), given), (("memory",), memory)):
        for key in [key for key in SIZES if key in values and key not in known]:
            takes = " or ".join(repr(name) for name in SIZES if name in options["memory"]) or "no size"
            others = [name for name in registry.available("memory") if key in _option_names(name)]
            may = f"it takes {takes}; {key!r} is for {', '.join(others)}"
            file.refuse((*place, *where, key), f"{memory['name']} has no {key!r}: {WHY_NOT[key]}; {may}", of_key=True)
            refused = True
    return refused


def _option_names(memory: str) -> list[str]:
    return [option.name for option in registry.parameters(registry.find("memory", memory))]


def _ratio_refused(file: ScenarioFile, memory: ResolvedSpec, place: KeyPath) -> None:
    """Both say how many samples a step draws."""
    if memory.get("ratio") is not None:
        message = "'ratio' and 'batch_size' both say how many samples a step draws: give one of them"
        file.refuse((*place, "batch_size"), message, of_key=True)


def _without_what_is_not_told(memory: ResolvedSpec, own_batch: bool) -> ResolvedSpec:
    """A memory without the sizes that it is not told, and without the ratio where a batch size stands for it."""
    return {
        key: value
        for key, value in memory.items()
        if not (key in SIZES and value is None) and not (key == "ratio" and own_batch)
    }


def _general(file: ScenarioFile, given: Any, place: KeyPath) -> GeneralSet | None:
    if not isinstance(given, dict):
        file.refuse(place, "'general' must be a mapping, such as {ratio: 0.25}")
        return None
    data = given.get("data")
    spec = None if data is None else file.spec(("data",), data, (*place, "data"))
    ratio = {key: value for key, value in given.items() if key != "data"}
    section = file.section(GeneralSet, ratio, place)
    return None if data is not None and spec is None else section.model_copy(update={"data": spec})


def _share_out(
    file: ScenarioFile,
    flat: Mapping[str, Any],
    options: Mapping[str, list[str]],
    specs: dict[str, ResolvedSpec],
    place: KeyPath,
) -> None:
    """Give each option that stands beside the names to the one plug-in that takes it."""
    for key, value in flat.items():
        owners = [part for part in options if key in options[part]]
        if owners:
            _give(file, key, value, owners, specs, place)


def _give(
    file: ScenarioFile, key: str, value: Any, owners: list[str], specs: dict[str, ResolvedSpec], place: KeyPath
) -> None:
    if len(owners) != 1:
        both = f"{key!r} is an option of both {' and '.join(owners)}"
        form = f"write it inside of one: '{owners[0]}: {{name: {specs[owners[0]]['name']}, {key}: ...}}'"
        file.refuse((*place, key), f"{both}; {form}", of_key=True)
    elif key in specs[owners[0]]:
        file.refuse((*place, key), f"{key!r} is given here and in {owners[0]!r}", of_key=True)
    else:
        specs[owners[0]][key] = value
        file.shorthands[*place, owners[0], key] = (*place, key)


READERS = {
    "replay": _replay,
    "regularization": _regularization,
    "isolation": _isolation,
    "classifier": lambda file, given, place: file.spec(("classifier",), given, place),
    "avalanche": _avalanche,
}
