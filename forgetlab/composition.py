"""Whether the parts of an entry go together: what each kind of memory, sampler, loss and constraint stands beside."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import nn

from forgetlab import latent, plugins
from forgetlab.description import REGULARIZATION, Experiment, Replay, Strategy
from forgetlab.plugins import OptionError

Place = tuple[str | int, ...]
Problem = tuple[Place, str]


def problems(entry: Strategy, experiment: Experiment, backbone: nn.Module | None) -> Iterator[Problem]:
    """What has no meaning, with where in the entry; each part alone is known to be sound."""
    for i, spec in enumerate(entry.regularization or ()):
        kind = plugins.kind_of(spec["name"], REGULARIZATION)
        if kind == "projection" and _of(kind, spec).references != "none":
            yield ("regularization", i), f"{spec['name']} constrains steps by old samples: write it in 'replay:'"
    if entry.replay is not None:
        yield from _replay(entry.replay, experiment, backbone)


def _replay(replay: Replay, experiment: Experiment, backbone: nn.Module | None) -> Iterator[Problem]:
    memory = None if replay.memory is None else _of("memory", replay.memory)
    rehearsal = None if replay.rehearsal is None else _of("rehearsal", replay.rehearsal)
    if replay.projection is not None:
        if _of("projection", replay.projection).references == "none":
            yield ("replay", "projection"), "this one needs no old samples: write it under 'regularization:'"
        for part in ("sampler", "rehearsal", "depth"):
            if getattr(replay, part) is not None:
                yield ("replay", part), "a projection looks at what is drawn and does not train on it: leave one out"
    if memory is not None and not memory.has_slots:
        for part in ("sampler", "projection", "depth"):
            if getattr(replay, part) is not None:
                yield ("replay", part), f"{(replay.memory or {})['name']} keeps no samples that this could act on"
    if rehearsal is not None and rehearsal.from_scratch and replay.sampler is not None:
        yield ("replay", "sampler"), "nothing is drawn: the model learns what is kept, all of it"
    if replay.depth is not None and backbone is not None:
        try:
            latent.freeze(copy.deepcopy(backbone), replay.depth)
        except OptionError as error:
            yield ("replay", "depth"), str(error)
    if replay.general is not None and replay.general.data is None and experiment.pretrain is None:
        yield ("replay", "general"), "nothing was pretrained that could be general: name its 'data'"


def _of(kind: str, spec: dict[str, object]) -> type:
    factory = plugins.find(kind, str(spec["name"])).factory
    assert isinstance(factory, type)
    return factory
