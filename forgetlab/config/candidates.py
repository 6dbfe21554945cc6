"""Candidates in a scenario file: a list, or a range, where an option expects one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

from pydantic import model_validator
from pydantic.fields import FieldInfo

from forgetlab.experiment import Choice, Frozen, KeyPath
from forgetlab.plugins.options import OptionsError

SEARCHED = (("train",), ("references",), ("strategies",))  # sections in which an option may have candidates
FIXED = ("augment", "schedule")  # what has none within them
NO_SEARCH = (
    "in the place of one number this is a choice for a search, and the file has none: "
    "add 'tuning: {tasks: 2, search: grid}', or write one number"
)


class Range(Frozen):
    """Any number between two, for a search that draws."""

    low: int | float
    high: int | float
    log: bool = False  # whether orders of magnitude are equally likely, not numbers

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"'low' must be below 'high', and {self.low:g} is not below {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError("'log: true' needs a 'low' above 0")
        return self


class FileWithChoices(Protocol):
    """What the file under check has to offer for candidates to be read in it."""

    choices: list[Choice]
    problems: list[Any]

    @property
    def searches(self) -> bool:
        """Whether the file has a section that says how to choose."""
        ...

    def refuse(self, place: KeyPath, message: str) -> None:
        """Note what is wrong at a place."""
        ...

    def section(self, model: Any, given: Any, place: KeyPath) -> Any:
        """The model, with what does not fit noted."""
        ...


def first_of(
    file: FileWithChoices,
    given: Mapping[str, Any],
    fields: Mapping[str, FieldInfo],
    place: KeyPath,
    check: Callable[[dict[str, Any]], Mapping[str, Any]],
) -> tuple[dict[str, Any], set[str]]:
    """The options with the first of its candidates for each choice, which the file notes; and which were refused.

    ``check`` resolves options, or raises what is wrong with them.
    """
    if place[:1] not in SEARCHED or place[-1] in FIXED:
        return dict(given), set()
    written = candidates(given, fields)
    values = {key: _values(file, some, (*place, key)) for key, some in written.items()}
    refused = {key for key, some in values.items() if not some}
    one = {**given, **{key: next(iter(some.values())) for key, some in values.items() if some}}
    for key in [key for key in written if key not in refused]:
        fit = [_fit(file, check, {**one, key: value}, key, (*place, key, at)) for at, value in values[key].items()]
        if None in fit:
            refused.add(key)
        elif isinstance(written[key], dict):
            choice = Choice(at=(*place, key), low=fit[0], high=fit[1], log=bool(written[key].get("log")))
            file.choices.append(choice)
        else:
            file.choices.append(Choice(at=(*place, key), values=tuple(fit)))
    return one, refused


def _values(file: FileWithChoices, written: Any, place: KeyPath) -> dict[str | int, Any]:
    """The candidates, or both ends of a range, by where they stand; none where they were refused."""
    before = len(file.problems)
    if not file.searches:
        file.refuse(place, NO_SEARCH)
    elif isinstance(written, dict):
        file.section(Range, written, place)
    elif why := unsound(written):
        file.refuse(place, why)
    if len(file.problems) > before:
        return {}
    return dict(enumerate(written)) if isinstance(written, list) else {end: written[end] for end in ("low", "high")}


def _fit(file: FileWithChoices, check: Any, options: dict[str, Any], key: str, place: KeyPath) -> Any:
    """The value of an option as it is resolved; None where it was refused."""
    try:
        return check(options)[key]
    except OptionsError as error:
        told = [message for where, message in error.problems if where[:1] in ((), (key,))]
    for message in told[:1]:
        file.refuse(place, message)
    return None if told else options[key]


def candidates(given: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The lists and mappings that stand in the place of one number."""
    several = {key: value for key, value in given.items() if isinstance(value, list | dict)}
    return {key: value for key, value in several.items() if key in fields and one_number(fields[key].annotation)}


def one_number(annotation: Any) -> bool:
    """Whether an option takes a number, and neither a list nor a mapping.

    >>> [one_number(hint) for hint in (float, int | None, Literal["auto"] | float, int | tuple[int, ...], str)]
    [True, True, True, False, False]
    """
    kinds = _kinds(annotation)
    return not kinds.isdisjoint({int, float}) and kinds <= {int, float, str, bool, NoneType, Literal}


def _kinds(annotation: Any) -> set[Any]:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(inside[0])
    if origin in (Union, UnionType):
        return set().union(*map(_kinds, inside))
    return {origin or annotation}


def unsound(values: list[Any]) -> str | None:
    """What is wrong with a list of candidates, whatever they are."""
    if len(values) < 2:
        return "a choice needs two values or more; of one, write the number alone"
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    return f"{twice[0]!r} stands in this list twice" if twice else None
