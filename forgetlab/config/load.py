"""From a scenario file to an experiment: defaults filled in, or everything that is wrong with it at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from forgetlab.config.entries import FolderName, default_references, references, strategies
from forgetlab.config.key_checks import ScenarioFile
from forgetlab.config.yaml_reader import to_text
from forgetlab.experiment import Augment, Experiment, Frozen, Protocol, ResolvedSpec, Strategy, Tracking, Train, Tuning
from forgetlab.preflight import search as preflight_search


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?|mps", name):
        raise PydanticCustomError("device", "should be auto, cpu, cuda, cuda:N or mps")
    return name


def _seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise PydanticCustomError("seeds", "should be at least one number, and all different")
    return seeds


class Settings(Frozen):
    """The sections of a file in which no plug-in is named."""

    name: FolderName
    protocol: Protocol = Protocol()
    train: Train = Train()
    seeds: Annotated[tuple[NonNegativeInt, ...], AfterValidator(_seeds)] = (0,)
    device: Annotated[str, AfterValidator(_device)] = "auto"
    threads: PositiveInt = 1
    reuse_frozen: bool = True
    tracking: Tracking = Tracking()
    plugins: tuple[str, ...] = ()


OF_OBJECTIVE = {"share": "masked", "temperature": "contrastive"}  # keys that mean something to one alone


class Pretraining(Frozen):
    """How the backbone is trained before the stream, beside the scenario that it is trained on."""

    objective: Literal["supervised", "masked", "causal", "contrastive"] = "supervised"
    epochs: PositiveInt = 5
    share: float = Field(default=0.15, gt=0.0, lt=1.0)  # masked: of a text's pieces, those that are to be told
    temperature: PositiveFloat = 0.5  # contrastive: what similarities are divided by
    augment: Augment = Augment()  # instead of train's, where any is named

    @model_validator(mode="after")
    def _of_its_objective(self) -> Pretraining:
        for key, objective in OF_OBJECTIVE.items():
            if key in self.model_fields_set and self.objective != objective:
                raise ValueError(f"{key} is for 'objective: {objective}'; {self.objective} has none to set")
        return self

    @property
    def used(self) -> ResolvedSpec:
        """What counts for the objective."""
        given = self.model_dump(mode="json", exclude={"augment"})
        used = {key: value for key, value in given.items() if OF_OBJECTIVE.get(key, self.objective) == self.objective}
        return {**used, "augment": self.augment.named} if self.augment.named else used


def load(path: Path) -> Experiment:
    """The experiment that a scenario file describes; runs the files that it names under ``plugins:``.

    Raises:
        FileErrors: all that is wrong with the file.
    """
    file = ScenarioFile(path)
    experiment = _experiment(file)
    from forgetlab.preflight import problems  # imports torch, which a file that is refused need not wait for

    for place, message in [*preflight_search.search_problems(experiment), *problems.experiment_problems(experiment)]:
        file.refuse(tuple(place), message)
    file.stop_if_refused()
    return experiment


def resolved(experiment: Experiment) -> str:
    """The experiment as a scenario file in which nothing is left out."""
    whole = deepcopy(_plain(experiment))
    for choice in whole.get("tuning", {}).pop("choices", []):
        *way, option = choice["at"]
        reduce(getitem, way, whole)[option] = choice.get("values") or {k: choice[k] for k in ("low", "high", "log")}
    return to_text(whole)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        parts = {key: _plain(part) for key, part in value}
        return {key: part for key, part in parts.items() if part is not None and part != {}}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _experiment(file: ScenarioFile) -> Experiment:
    written = file.known(file.document.data, Experiment.model_fields, ())
    given = {key: value for key, value in written.items() if value is not None}
    settings = file.section(Settings, {k: v for k, v in given.items() if k in Settings.model_fields}, ())
    files = [file.path.parent / name for name in settings.plugins]
    file.load_plugins(files, whole=bool(files) or not given.get("plugins"))
    scenario = file.spec(("scenario",), given.get("scenario"), ("scenario",))
    model = file.spec(("model",), given.get("model"), ("model",))
    pretrain = _pretrain(file, given["pretrain"]) if "pretrain" in given else None
    task_known = _task_known(file, settings.protocol, scenario)
    compared = references(file, written.get("references", default_references()))
    taken = [spec["name"] for spec in compared]
    entries = strategies(file, given.get("strategies", []), task_known, taken)
    _check_head(file, settings.protocol, task_known, compared, entries)
    search = _tuning(file, given["tuning"], settings.seeds) if "tuning" in given else None
    file.stop_if_refused()
    _check_overrides(file, settings.train, entries)
    file.stop_if_refused()
    protocol = settings.protocol.model_copy(update={"task_known_at_test": task_known})
    plain = {"protocol": protocol, "device": _available(settings.device), "plugins": tuple(map(str, files))}
    plugged = {"scenario": scenario, "model": model, "pretrain": pretrain, "tuning": search}
    return Experiment(**{**dict(settings), **plain, **plugged}, references=compared, strategies=entries)


def _pretrain(file: ScenarioFile, given: Any) -> ResolvedSpec | None:
    place = ("pretrain",)
    if not isinstance(given, dict):
        file.refuse(place, "'pretrain' must be a mapping, such as {scenario: NAME, epochs: 5}")
        return None
    given = file.known(given, ("scenario", *Pretraining.model_fields), place)
    named = given.pop("scenario", None)
    scenario = {} if named is None else {"scenario": file.spec(("scenario",), named, (*place, "scenario"))}
    return {**scenario, **file.section(Pretraining, given, place).used}


def _tuning(file: ScenarioFile, given: Any, seeds: tuple[int, ...]) -> Tuning | None:
    """How the lists of the file are searched, with the defaults that depend on what it searches on."""
    place = ("tuning",)
    if not isinstance(given, dict):
        file.refuse(place, "'tuning' must be a mapping, such as {tasks: 2, search: grid}")
        return None
    keys = [key for key in Tuning.model_fields if key != "choices"]
    given = file.known(given, keys, place)
    named = given.pop("scenario", None)
    scenario = None if named is None else file.spec(("scenario",), named, (*place, "scenario"))
    search = file.section(Tuning, given, place)
    if not file.choices and not file.problems:
        form = "a list where one number is expected, such as 'train: {lr: [1e-3, 1e-2]}'"
        file.refuse(place, f"there is nothing to choose: write {form}")
    default = {"tasks": 2, "seeds": "each"} if named is None else {"seeds": seeds[:1]}
    missing = {key: value for key, value in default.items() if getattr(search, key) is None}
    return search.model_copy(update={**missing, "scenario": scenario, "choices": tuple(file.choices)})


def _task_known(file: ScenarioFile, protocol: Protocol, scenario: ResolvedSpec | None) -> bool | None:
    """Whether a test sample's task is told; None where the scenario was refused."""
    said = protocol.task_known_at_test
    if scenario is None:
        return None
    if (setting := scenario.get("setting")) is None:
        return bool(said)
    known = setting == "task-incremental"
    if said not in (None, known):
        means = f"'setting: {setting}' means that the task is {'' if known else 'not '}known at test"
        file.refuse(("protocol", "task_known_at_test"), f"{means}; leave this out, or change the setting")
    return known


def _check_head(
    file: ScenarioFile,
    protocol: Protocol,
    task_known: bool | None,
    compared: Sequence[ResolvedSpec],
    entries: Sequence[Strategy],
) -> None:
    if protocol.loss_classes == "all" and protocol.head != "fixed":
        why = f"a {protocol.head} head has no outputs for classes that are still to come"
        file.refuse(("protocol", "loss_classes"), f"'all' needs 'head: fixed': {why}")
    untold = [spec["name"] for spec in compared if spec["name"] != "separate"]
    untold += [entry.name for entry in entries if entry.isolation is None and entry.classifier is None]
    if protocol.head == "per-task" and task_known is False and untold:
        why = f"the task is not known at test, so nothing tells which head answers in {', '.join(untold)}"
        file.refuse(("protocol", "head"), f"'per-task' cannot work: {why}")


def _check_overrides(file: ScenarioFile, train: Train, entries: Sequence[Strategy]) -> None:
    """Refuse what an entry sets in `train` where it does not go with what the file has there."""
    for i, entry in enumerate(entries):
        try:
            Train(**{**train.model_dump(), **entry.train})
        except ValidationError as error:
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            file.refuse(("strategies", i, "train"), f"together with the file's own 'train': {why}")


def _available(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
