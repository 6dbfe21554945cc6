"""Whether the parts of an entry go together: what each kind of memory, sampler, loss and constraint stands beside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from torch import Tensor, nn

from forgetlab.data import datasets
from forgetlab.experiment import REGULARIZATION, Experiment, KeyPath, Problem, Replay, ResolvedSpec, Strategy
from forgetlab.isolation.shared_module import Adapted
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import built
from forgetlab.regularization.keeper import Keeper
from forgetlab.replay import latent
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.training.network import SharedNetwork


def combination_problems(
    entry: Strategy, experiment: Experiment, backbone: nn.Module | None, x: Tensor
) -> Iterator[Problem]:
    """What has no meaning, with where in the entry; each part alone is known to be sound."""
    functions = list(_functions(entry))
    if functions:
        yield from functions
        return
    for i, spec in enumerate(entry.regularization or ()):
        kind = registry.kind_of(spec["name"], REGULARIZATION)
        if kind == "projection" and _of(kind, spec).references != "none":
            yield ("regularization", i), f"{spec['name']} constrains steps by old samples: write it in 'replay:'"
    if backbone is not None:
        yield from _unfit(entry, experiment, backbone)
    if entry.replay is not None:
        yield from _replay(entry.replay, experiment)
        if entry.replay.memory is not None and len(x):
            yield from _tried(("replay", "memory"), partial(_of("memory", entry.replay.memory).check, x))
        if entry.replay.general is not None and entry.replay.general.data is not None and backbone is not None:
            data = entry.replay.general.data
            yield from _tried(("replay", "general", "data"), partial(_reads, backbone, x, data))
        if entry.replay.depth is not None and backbone is not None:
            yield from _tried(("replay", "depth"), partial(_keep_inside, entry, entry.replay.depth, backbone))


def _unfit(entry: Strategy, experiment: Experiment, backbone: nn.Module) -> Iterator[Problem]:
    """What regularization has against the model, where it says."""
    network: SharedNetwork | None = None
    for i, spec in enumerate(entry.regularization or ()):
        kind = registry.kind_of(spec["name"], REGULARIZATION)
        if _of(kind, spec).check is not Keeper.check:
            if network is None:
                with suppress(Exception):  # a module that does not fit is told of where it stands
                    network = SharedNetwork(_under(entry, backbone), head=experiment.protocol.head)
            if network is not None:
                yield from _tried(("regularization", i), partial(built(kind, spec).check, network))


def _under(entry: Strategy, backbone: nn.Module) -> nn.Module:
    """A copy of the backbone, under the module that all tasks train, where there is one."""
    copied = copy.deepcopy(backbone)
    return Adapted(copied, built("isolation", entry.isolation or {})) if entry.shared else copied


def _replay(replay: Replay, experiment: Experiment) -> Iterator[Problem]:
    memory = None if replay.memory is None else _of("memory", replay.memory)
    rehearsal = None if replay.rehearsal is None else _of("rehearsal", replay.rehearsal)
    sampler = None if replay.sampler is None else _of("sampler", replay.sampler)
    yield from _projected(replay)
    if memory is not None and not memory.has_slots:
        for part in ("sampler", "projection", "depth"):
            if getattr(replay, part) is not None:
                yield ("replay", part), f"{(replay.memory or {})['name']} keeps no samples that this could act on"
    if memory is not None:
        yield from _reading(replay, memory, {"memory": memory, "sampler": sampler, "rehearsal": rehearsal})
    if rehearsal is not None and rehearsal.from_scratch and replay.sampler is not None:
        yield ("replay", "sampler"), "nothing is drawn: the model learns what is kept, all of it"
    if rehearsal is not None:
        yield from _weighed(replay, rehearsal)
    if replay.general is not None and replay.general.data is None and experiment.pretrain is None:
        yield ("replay", "general"), "nothing was pretrained that could be general: name its 'data'"


def _projected(replay: Replay) -> Iterator[Problem]:
    """What stands beside a projection, which looks at old samples and does not train on them."""
    if replay.projection is None:
        return
    if _of("projection", replay.projection).references == "none":
        yield ("replay", "projection"), "this one needs no old samples: write it under 'regularization:'"
    if _of("projection", replay.projection).references == "tasks" and replay.batch_size is not None:
        yield ("replay", "batch_size"), "nothing is drawn: this one looks at all that is kept, task by task"
    for part in ("sampler", "rehearsal", "depth", "weight"):
        if getattr(replay, part) is not None:
            yield ("replay", part), "a projection looks at what is drawn and does not train on it: leave one out"


def _weighed(replay: Replay, rehearsal: type[Rehearsal]) -> Iterator[Problem]:
    """A batch or a weight of what is drawn, beside a loss that has no use for it."""
    name = (replay.rehearsal or {})["name"]
    if rehearsal.from_scratch and replay.batch_size is not None:
        yield ("replay", "batch_size"), f"nothing is drawn beside new samples: {name} learns what is kept, all of it"
    if replay.weight is not None and rehearsal.parts is Rehearsal.parts:
        own = [option.name for option in registry.parameters(registry.find("rehearsal", name))]
        instead = f"; its own options are {', '.join(own)}" if own else ""
        yield ("replay", "weight"), f"{name} has no loss of new and of drawn samples apart to be weighed{instead}"


def _keep_inside(entry: Strategy, depth: int, backbone: nn.Module) -> None:
    latent.freeze(_under(entry, backbone), depth)


def _reads(backbone: nn.Module, x: Tensor, spec: ResolvedSpec) -> None:
    """Refuse general data that the backbone does not read as it reads samples of the stream, x (B, ...)."""
    try:
        data = datasets.dataset(spec)
    except FileNotFoundError as error:
        raise OptionError(str(error)) from error
    if (given := tuple(data.train.x.shape[1:])) != tuple(x.shape[1:]):
        raise OptionError(
            f"the inputs have another shape: {given} in {spec['name']}, {tuple(x.shape[1:])} in the stream"
        )
    if data.tokenizer != getattr(backbone, "tokenizer", None):
        raise OptionError(f"the model reads other inputs than those of {spec['name']}")


def _tried(place: KeyPath, action: Callable[[], None]) -> Iterator[Problem]:
    try:
        action()
    except OptionError as error:
        yield place, str(error)


def _reading(replay: Replay, memory: type, parts: dict[str, type | None]) -> Iterator[Problem]:
    """What needs samples as they came, beside a memory that does not have them, or not in time."""
    inside = replay.depth is not None or memory.inside or not memory.has_slots
    for part in [part for part, kind in parts.items() if kind is not None and kind.reads_kept and inside]:
        yield ("replay", part), f"{getattr(replay, part)['name']} reads samples as they came, and none are kept so"
    if (rehearsal := parts["rehearsal"]) is not None and rehearsal.from_scratch and "passes" in memory.needs:
        yield ("replay", "rehearsal"), "it learns a task from what is kept of it, and this memory keeps it afterwards"
    if rehearsal is not None and rehearsal.from_scratch and replay.depth is not None:
        yield ("replay", "depth"), "a model that starts anew with each task has nothing inside that stays"
    if rehearsal is not None and rehearsal.keeps_logits and memory.inside:
        yield ("replay", "rehearsal"), "it needs the logits of kept samples, and here none are kept"


def _functions(entry: Strategy) -> Iterator[Problem]:
    """Parts that were registered as functions: how they go together is asked of their classes."""
    parts: list[tuple[KeyPath, str, ResolvedSpec]] = []
    for i, spec in enumerate(entry.regularization or ()):
        parts.append((("regularization", i), registry.kind_of(spec["name"], REGULARIZATION), spec))
    for part in ("memory", "sampler", "rehearsal", "projection"):
        spec = getattr(entry.replay, part, None)
        if spec is not None:
            parts.append((("replay", part), part, spec))
    for place, kind, spec in parts:
        if not isinstance(registry.find(kind, spec["name"]).factory, type):
            told = f"{spec['name']} is a function, and a {kind} is a class"
            yield place, f"{told}: 'forgetlab new {kind} NAME' writes one to start from"


def _of(kind: str, spec: dict[str, object]) -> type:
    factory = registry.find(kind, str(spec["name"])).factory
    assert isinstance(factory, type)
    return factory
