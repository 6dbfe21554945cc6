"""Whether a resolved experiment can be carried out: streams are cut, models, modules and methods are built and tried
on two samples, before anything is trained."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from forgetlab.avalanche import stock
from forgetlab.avalanche.api import stock_plugin
from forgetlab.batch import Batch
from forgetlab.data.datasets import as_input
from forgetlab.engine import search_space
from forgetlab.experiment import ORACLE, REGULARIZATION, Experiment, KeyPath, Problem, ResolvedSpec, Strategy, Train
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.shared_module import refuse_unshareable
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import built
from forgetlab.preflight import batches_of_one, combinations, needs, search, train_keys
from forgetlab.streams import soundness
from forgetlab.streams.scenario import Scenario, Task, pretraining_tasks
from forgetlab.training import augmentation, pretraining
from forgetlab.training.loop import OWN_BATCHES, Loop, TensorPath, stock_loop
from forgetlab.training.network import SharedNetwork

T = TypeVar("T")


def experiment_problems(experiment: Experiment) -> list[Problem]:
    """All that would stop the experiment, with where in its file."""
    found = list(_sections(experiment))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        references = [
            _try(found, ("references", i), "reference", spec, lambda spec=spec: built("reference", spec))
            for i, spec in enumerate(experiment.references)
        ]
        for place, spec in search_space.reference_variants(experiment):
            _try(found, place, "reference", spec, partial(built, "reference", spec))
        backbone, x = _backbone(found, experiment, references)
        found += _augment_problems(experiment.train, ("train",), x)
        for i, entry in enumerate(experiment.strategies):
            for one in [entry, *search_space.variants(experiment, entry)]:
                found += _entry_problems(one, ("strategies", i), experiment, backbone, x)
            if "augment" in entry.train:
                found += _augment_problems(_train(experiment, entry), ("strategies", i, "train"), x)
            found += _stock_problems(entry, ("strategies", i), experiment, backbone)
    return found


def _sections(experiment: Experiment) -> Iterator[Problem]:
    try:
        torch.zeros(1, device=experiment.device)
    except (RuntimeError, AssertionError):  # the second where torch was built without it
        yield ("device",), f"this machine has no {experiment.device!r} device; use auto or cpu"


def _backbone(found: list[Problem], experiment: Experiment, references: list[Any]) -> tuple[nn.Module | None, Tensor]:
    """The backbone and two samples; None where it cannot be made, or no samples for it."""
    spec = experiment.scenario
    seed = experiment.seeds[0] if "class_order" in experiment.protocol.seeds_vary else 0
    scenario: Scenario | None = _try(found, ("scenario",), "scenario", spec, lambda: built("scenario", spec, seed=seed))
    unsound = scenario and _try(found, ("scenario",), "scenario", spec, lambda: soundness.soundness_problems(scenario))
    if scenario is None or unsound != []:
        found += [(("scenario",), message) for message in unsound or []]
        return None, torch.empty(0)
    wrong_length = list(_budget_problems(experiment, scenario))
    found += wrong_length or needs.unmet_needs(experiment, scenario)
    found += [] if wrong_length else train_keys.train_problems(experiment, scenario)
    found += search.search_stream_problems(experiment, scenario)
    for i, check in enumerate(getattr(reference, "check", None) for reference in references):
        if check is not None:
            _try(found, ("references", i), None, {}, partial(check, scenario))
    if experiment.protocol.evaluate_on == "validation":
        _try(found, ("protocol", "evaluate_on"), None, spec, scenario.on_validation)
    pretrain = experiment.pretrain
    tasks: tuple[Task, ...] | None = None
    if pretrain is not None:
        tasks = _try(found, ("pretrain",), None, pretrain, lambda: pretraining_tasks(pretrain, scenario, seed))
    x, model, reads = as_input(scenario.tasks[0].train.x[:2]), experiment.model, scenario.tokenizer
    backbone = _try(
        found, ("model",), "model", model, lambda: _model(model, x, reads), f"{model['name']} does not work: "
    )
    if pretrain is not None and tasks and backbone is not None:
        found += _pretraining_problems(experiment, backbone, as_input(tasks[0].train.x[:2]))
    if backbone is not None:
        found += batches_of_one.batch_of_one_problems(experiment, scenario, backbone, x)
    return backbone, x


def _budget_problems(experiment: Experiment, scenario: Scenario) -> Iterator[Problem]:
    """A list of another length than the stream."""
    budget, n_tasks = experiment.protocol.budget, len(scenario.tasks)
    if budget.listed is not None and len(budget.listed) != n_tasks:
        unit = "epochs" if budget.updates is None else "updates"
        told = f"a list of {len(budget.listed)}, and the stream has {n_tasks} tasks"
        yield ("protocol", "budget", unit), f"{told}: write a number for each, or one for all"


def _pretraining_problems(experiment: Experiment, backbone: nn.Module, x: Tensor) -> list[Problem]:
    """What speaks against the objective, tried on two samples of what is pretrained on."""
    pretrain, found = experiment.pretrain or {}, []
    train = pretraining.settings(pretrain, experiment.train.model_dump(mode="json"))
    if "augment" in pretrain:
        found += _augment_problems(train, ("pretrain",), x)
    _try(found, ("pretrain",), None, pretrain, lambda: pretraining.try_objective(pretrain, train, backbone, x))
    return found


def _model(spec: ResolvedSpec, x: Tensor, tokenizer: str | None) -> nn.Module:
    """A backbone that reads what the stream holds and gives what the heads stand on."""
    backbone: nn.Module = built("model", spec, input_shape=tuple(x.shape[1:])).eval()
    if (reads := getattr(backbone, "tokenizer", None)) != tokenizer:
        ids = "{} token ids of {!r}".format
        held = ids("the stream holds", tokenizer) if tokenizer else "the stream holds numbers, no token ids"
        raise OptionError(f"{held}, and {ids('this model reads', reads) if reads else 'this model reads numbers'}")
    given, wanted = tuple(backbone(x).shape), (len(x), getattr(backbone, "n_features", None))
    if given != wanted:
        raise OptionError(f"{spec['name']} makes {given} of 2 samples; with its n_features it should be {wanted}")
    return backbone


def _entry_problems(
    entry: Strategy, place: KeyPath, experiment: Experiment, backbone: nn.Module | None, x: Tensor
) -> list[Problem]:
    found: list[Problem] = []
    for kind, where, spec in _methods(entry):
        _try(found, (*place, *where), kind, spec, lambda kind=kind, spec=spec: built(kind, spec))
    if not found:
        unfit = combinations.combination_problems(entry, experiment, backbone, x)
        found += [((*place, *where), message) for where, message in unfit]
    if (isolation := entry.isolation) is not None and backbone is not None:
        what = f"{isolation['name']} does not fit a {type(backbone).__name__.lower()}: "
        _try(
            found,
            (*place, "isolation"),
            "isolation",
            isolation,
            lambda: _fits(isolation, entry, backbone, x),
            what,
        )
    return found


def _stock_problems(
    entry: Strategy, place: KeyPath, experiment: Experiment, backbone: nn.Module | None
) -> list[Problem]:
    """What speaks against Avalanche's plug-in or strategy; where nothing does, it is made."""
    if (spec := entry.avalanche) is None:
        return []
    refused = stock.stock_problems(spec, experiment.protocol)
    found = [((*place, "avalanche", *filter(None, [error.option])), str(error)) for error in refused]
    if not found:
        beside = [family for family in ("replay", "regularization") if getattr(entry, family) is not None]
        clashes = {family: stock.clash(spec, family) for family in beside}
        found += [((*place, family), why) for family, why in clashes.items() if why]
    if not found and backbone is not None:
        network, train = SharedNetwork(backbone), _train(experiment, entry)
        settings = {"model": network, "train": train, "budget": experiment.protocol.budget}
        loop = _try(found, (*place, "avalanche"), None, spec, partial(_stock_loop, spec, settings))
        if loop is not None and train.augment.named and loop.brings_batches:
            kind = next(key for key in stock.KINDS if key in spec)
            message = f"{OWN_BATCHES}; give this entry 'train: {{augment: {{}}}}', or use a memory under 'replay:'"
            found.append(((*place, "avalanche", kind), message))
        if loop is not None:
            found += _stock_steps(loop, train, place, next(key for key in stock.KINDS if key in spec))
    return found


def _stock_steps(loop: TensorPath, train: Train, place: KeyPath, kind: str) -> Iterator[Problem]:
    """What of `train` Avalanche's own steps and loaders pass by."""
    passed = [("drop_last", loop.brings_batches, "its batches come from a loader of its own")]
    passed += [(key, loop.steps_itself, "it takes its steps by itself") for key in ("schedule", "clip")]
    for key, past, why in passed:
        if past and getattr(train, key):
            message = f"'{key}' of 'train:' does not reach it: {why}; give this entry 'train: {{{key}: null}}'"
            yield (*place, "avalanche", kind), message


def _stock_loop(spec: ResolvedSpec, settings: dict[str, Any]) -> TensorPath:
    if "strategy" in spec:
        return stock_loop(spec, **settings)
    return Loop(plugins=[stock_plugin(spec, model=settings["model"])], **settings)


def _train(experiment: Experiment, entry: Strategy) -> Train:
    return experiment.run(entry, experiment.seeds[0]).train


def _augment_problems(train: Train, place: KeyPath, x: Tensor) -> list[Problem]:
    refused = augmentation.augmentation_problems(train.augment, x) if len(x) else []
    return [((*place, "augment", *filter(None, [error.option])), str(error)) for error in refused]


def _methods(entry: Strategy) -> Iterator[tuple[str, KeyPath, ResolvedSpec]]:
    """The plug-ins of an entry that can be built alone: kind, where they stand, spec."""
    for part in ("memory", "sampler", "rehearsal", "projection") if entry.replay is not None else ():
        if (spec := getattr(entry.replay, part)) is not None:
            yield part, ("replay", part), spec
    for i, spec in enumerate(entry.regularization or ()):
        yield registry.kind_of(spec["name"], REGULARIZATION), ("regularization", i), spec
    if entry.router is not None and entry.router["name"] != ORACLE:
        yield "router", ("router",), entry.router
    if entry.merge is not None:
        yield "merger", ("merge",), entry.merge
    if entry.classifier is not None:
        yield "classifier", ("classifier",), entry.classifier


def _fits(spec: ResolvedSpec, entry: Strategy, backbone: nn.Module, x: Tensor) -> None:
    """Attach a module and send samples through."""
    module: Isolation = built("isolation", spec)
    if entry.shared:
        refuse_unshareable(module)
    module.attach(backbone)
    module.query = backbone(x) if module.asks else None
    module.begin(
        [Batch(x, torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x), dtype=torch.int64))], [], {}, backbone
    )
    given = tuple(module.features(backbone, x).shape)
    if entry.merge is not None and not module.changes():
        raise OptionError(f"{spec['name']} is no change of the weights, so there is nothing to merge")
    if entry.merge is not None and module.owns_layers and any(site.buffers for site in module.sites):
        raise OptionError(f"{spec['name']} has statistics of batch normalisation for each task, which no merger merges")
    if given != (wanted := tuple(backbone(x).shape)):
        raise ValueError(f"features of {given} where the backbone alone gives {wanted}")


def _try(
    found: list[Problem], place: KeyPath, kind: str | None, spec: ResolvedSpec, action: Callable[[], T], what: str = ""
) -> T | None:
    """What the action returns, or None and one more problem."""
    try:
        return action()
    except OptionError as error:
        found.append(((*place, *error.keys), str(error)))
    except Exception as error:  # a plug-in's own mistake: its author needs the reason and the line
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        found.append((place, f"{what}{reason}{_line(error, kind, spec)}"))
    return None


def _line(error: Exception, kind: str | None, spec: ResolvedSpec) -> str:
    """Where in a plug-in's file an error arose."""
    if kind is None:
        return ""
    source = registry.find(kind, spec["name"]).source
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(source)]
    return f" ({source.name}, line {lines[-1]})" if lines else ""
