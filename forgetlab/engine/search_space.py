"""Tuning without peeking: what a search may choose, on which tasks, and how often it may try.

It looks at the validation data of the stream's first k tasks, which are no part of the scored stream then, or of
another stream. Every strategy gets the same number of trials, references included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from forgetlab.experiment import Choice, Experiment, KeyPath, ResolvedSpec, Run, Strategy, Train, Tuned, Tuning
from forgetlab.plugins import registry

OBJECTIVE = "average_accuracy"  # after the last of the search's tasks, on their validation data
Number = int | float
Space = tuple[Choice, ...]  # of one entry; places count from the entry


def space(experiment: Experiment, entry: Strategy) -> Space:
    """What is chosen for an entry: its own lists, and those under ``train:`` that it does not override."""
    tuning = experiment.tuning
    if tuning is None:
        return ()
    for_all = [c for c in tuning.choices if c.at[0] == "train" and c.at[1] not in entry.train] if trains(entry) else []
    place = entry_path(experiment, entry)
    own = [choice for choice in tuning.choices if choice.at[:2] == place]
    inside = ("reference",) if entry.reference is not None else ()
    return (*for_all, *(choice.model_copy(update={"at": (*inside, *choice.at[2:])}) for choice in own))


def entry_path(experiment: Experiment, entry: Strategy) -> KeyPath:
    """Where the file has an entry."""
    if entry.reference is not None:
        return "references", [spec["name"] for spec in experiment.references].index(entry.name)
    return "strategies", [strategy.name for strategy in experiment.strategies].index(entry.name)


def trains(entry: Strategy) -> bool:
    """Whether ``train:`` means anything to an entry."""
    if entry.reference is None:
        return entry.classifier is None or entry.isolation is not None
    options = {key: value for key, value in entry.reference.items() if key != "name"}
    return getattr(registry.build("reference", entry.reference["name"], options), "trains", True)


def choice_names(entry: Strategy, chosen: Space) -> list[str]:
    """What choices are called: ``lr``, ``strength``; with what stands around it where that alone would not do."""
    plain = entry.model_dump(mode="json")
    places = [_words(plain, choice.at) for choice in chosen]
    if len({*places}) < len(places):  # the same plug-in twice
        places = [tuple(map(str, choice.at)) for choice in chosen]
    taken = {("train", key) for key in Train.model_fields}
    return [place[1] if place in taken else _name(place, taken | {*places} - {place}) for place in places]


def _words(plain: Any, place: KeyPath) -> tuple[str, ...]:
    """The steps to an option, plug-ins in a list by their names."""
    words: list[str] = []
    for step in place:
        plain = plain[step] if isinstance(step, int) else plain.get(step)
        words.append(plain["name"] if isinstance(step, int) else step)
    return tuple(words)


def _name(place: Sequence[str], others: set[Any]) -> str:
    lengths = range(1, len(place) + 1)
    n = next(n for n in lengths if n == len(place) or all(other[-n:] != place[-n:] for other in others))
    return ".".join(place[-n:])


def with_values(entry: Strategy, chosen: Space, values: Sequence[Number]) -> Strategy:
    """The entry with these values."""
    plain = entry.model_dump(mode="json")
    for choice, value in zip(chosen, values, strict=True):
        *way, option = choice.at
        here: Any = plain
        for step in way:
            here = here[step]
        here[option] = value
    return Strategy.model_validate(plain)


def variants(experiment: Experiment, entry: Strategy) -> Iterator[Strategy]:
    """The entry with each value, or end, that one of its plug-ins' choices may have beside the first."""
    for choice in [choice for choice in space(experiment, entry) if choice.at[0] != "train"]:
        for value in choice.values[1:] or (choice.high,):
            assert value is not None
            yield with_values(entry, (choice,), (value,))


def reference_variants(experiment: Experiment) -> Iterator[tuple[KeyPath, ResolvedSpec]]:
    """The same of each reference, with its place in the file."""
    for i, entry in enumerate(experiment.entries[: len(experiment.references)]):
        yield from ((("references", i), one.reference) for one in variants(experiment, entry) if one.reference)


def n_trials(experiment: Experiment, entry: Strategy) -> int:
    """How many trials an entry gets: no more than it has combinations, in a grid."""
    assert experiment.tuning is not None
    chosen, most = space(experiment, entry), experiment.tuning.trials
    if not chosen:
        return 0
    if experiment.tuning.search == "optuna":
        return most or 0
    size = math.prod(len(choice.values) for choice in chosen)
    return min(size, most or size)


def planned(experiment: Experiment) -> int:
    """How many runs all searches together have."""
    if (tuning := experiment.tuning) is None:
        return 0
    seeds = experiment.seeds if tuning.seeds == "each" else tuning.seeds or ()
    return len(seeds) * sum(n_trials(experiment, entry) for entry in experiment.entries)


def search_seeds(tuning: Tuning, seed: int) -> tuple[int, ...]:
    """With which seeds each trial for a run of this seed is carried out."""
    return tuning.seeds if isinstance(tuning.seeds, tuple) else (seed,)


def about(experiment: Experiment, entry: Strategy, seeds: Sequence[int]) -> dict[str, Any]:
    """What is searched for an entry and how, as plain values."""
    tuning, chosen = experiment.tuning, space(experiment, entry)
    assert tuning is not None
    how = tuning.model_dump(mode="json", exclude_none=True, exclude={"choices", "seeds"})
    plain = [choice.model_dump(mode="json", exclude_none=True, exclude={"at"}) for choice in chosen]
    candidates = [one["values"] or {end: one[end] for end in ("low", "high", "log")} for one in plain]
    choices = dict(zip(choice_names(entry, chosen), candidates, strict=True))
    return {**how, "seeds": list(seeds), "objective": OBJECTIVE, "choices": choices}


def decided(experiment: Experiment, entry: Strategy, seed: int, tuned: Tuned) -> Run:
    """The run that is scored when a search has chosen."""
    chosen = space(experiment, entry)
    values = [tuned.values[name] for name in choice_names(entry, chosen)]
    return experiment.run(with_values(entry, chosen, values), seed).model_copy(update={"tuned": tuned})


def settled(experiment: Experiment, entry: Strategy, seed: int, stored: dict[str, Any]) -> Run | None:
    """The run that a stored description may be of; None where it is yet to be chosen, or another search chose it."""
    if not space(experiment, entry):
        return experiment.run(entry, seed)
    if experiment.tuning is None or not stored.get("tuned"):
        return None
    tuned = Tuned.model_validate(stored["tuned"])
    same = tuned.search == about(experiment, entry, search_seeds(experiment.tuning, seed))
    return decided(experiment, entry, seed, tuned) if same else None
