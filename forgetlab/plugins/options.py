"""A signature as a schema: a class or function's parameters are the keys that a file may give it."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from forgetlab.experiment import KeyPath, Problem


class OptionError(ValueError):
    """An option's value cannot work; a plug-in may raise it with the option's name to say where.

    A dot leads into an option that names another plug-in: ``data.label``, ``parts.0``.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option

    @property
    def keys(self) -> KeyPath:
        """The way to the place, from the plug-in's own options on."""
        return tuple(int(key) if key.isdigit() else key for key in self.option.split(".")) if self.option else ()


class OptionsError(ValueError):
    """Options that do not fit a plug-in's signature: (path of keys, message) for each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in problems))
        self.problems = problems


@dataclass(frozen=True)
class Named:
    """Marks an option that names plug-ins of a kind, each alone or with options of its own.

    ``data: Annotated[Spec, Named("data")]`` takes one, ``parts: Annotated[tuple[Spec, ...], Named("data")]`` several.
    """

    kind: str


Spec = str | dict[str, Any]  # a plug-in's name, or {"name": its name, option: value, ...}


@dataclass(frozen=True)
class Parameter:
    """One key that a plug-in takes."""

    name: str
    type: str
    default: Any
    required: bool


def parameters_of(factory: Callable[..., Any], given: Collection[str] = ()) -> list[Parameter]:
    """The keys that a factory takes, without those that are given by other means."""
    hints = _hints(factory)
    return [
        Parameter(p.name, type_name(hints.get(p.name, Any)), p.default, p.default is p.empty)
        for p in _parameters(factory, given)
    ]


def naming_options(factory: Callable[..., Any]) -> dict[str, str]:
    """The options that name other plug-ins, and the kind of each."""
    marks = {name: get_args(hint)[1:] for name, hint in _hints(factory).items() if get_origin(hint) is Annotated}
    return {name: mark.kind for name, found in marks.items() for mark in found if isinstance(mark, Named)}


def path_options(factory: Callable[..., Any]) -> set[str]:
    """The options that are paths, which a file gives from where it lies."""
    return {name for name, hint in _hints(factory).items() if hint is Path or Path in get_args(hint)}


def schema(factory: Callable[..., Any], given: Collection[str] = ()) -> type[BaseModel]:
    """The signature as a pydantic model that refuses unknown keys."""
    hints, accepted = _hints(factory), _parameters(factory, given)
    keys: dict[str, Any] = {
        p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in accepted
    }
    return create_model("Options", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **keys)


def checked(factory: Callable[..., Any], given: Collection[str], options: Mapping[str, Any]) -> BaseModel:
    """The options, checked against the signature, with all defaults filled in.

    Raises:
        OptionsError: an unknown, ill-typed, missing or out-of-range option.
    """
    model = schema(factory, given)
    try:
        return model.model_validate_json(json.dumps(dict(options)), strict=True)
    except ValidationError as error:
        raise OptionsError(option_problems(error, list(model.model_fields))) from error


def suggestion(name: str, valid: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing where nothing is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_key(key: str, valid: Iterable[str] | None = None, within: str = "", *, said: str | None = None) -> str:
    """What is said of a key that nothing takes, with the nearest valid one, or with all where none is near.

    ``valid``: None where it is not known what stands beside it; ``within``: the key that it stands under;
    ``said``: how what it means is said here, where that is known.

    >>> unknown_key("stren", ["strength"]), unknown_key("x", ["strength", "name"], within="train")
    ("unknown key 'stren'; did you mean 'strength'?", "unknown key 'x' in train; valid keys: strength, name")
    """
    place = f" in {within}" if within else ""
    if said is not None:
        return f"unknown key {key!r}{place}; {said}"
    if valid is None:
        return f"unknown key {key!r}{place}"
    known = list(valid)
    hint = suggestion(key, known) or f"; valid keys: {', '.join(known) or 'none'}"
    return f"unknown key {key!r}{place}{hint}"


def type_name(annotation: Any) -> str:
    """An annotation in the words of somebody who writes a value.

    >>> from pydantic import PositiveInt
    >>> type_name(tuple[PositiveInt, ...]), type_name(PositiveInt | None), type_name(Literal["a", "b"])
    ('tuple[int > 0, ...]', 'int > 0 | None', "'a' | 'b'")
    """
    origin, inside = get_origin(annotation), get_args(annotation)
    if marks := [mark.kind for mark in inside if isinstance(mark, Named)]:
        return f"{marks[0]} by name, or {{name: ..., its options}}" + (
            ", or a list of them" if _several(annotation) else ""
        )
    if origin is Annotated:
        return type_name(inside[0]) + _limits(inside[1:])
    if origin is Literal:
        return " | ".join(map(repr, inside))
    if origin in (Union, UnionType):
        return " | ".join(map(type_name, inside))
    if isinstance(annotation, type) and origin is None and issubclass(annotation, BaseModel):
        keys = annotation.model_fields.items()
        return "{" + ", ".join(f"{key}: {type_name(f.annotation)}{_limits(f.metadata)}" for key, f in keys) + "}"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_name, inside))}]"
    names = {type(None): "None", ...: "..."}
    return names.get(annotation) or getattr(annotation, "__name__", str(annotation))


def _several(annotation: Any) -> bool:
    return any(get_origin(part) in (tuple, list) for part in get_args(annotation))


def _limits(metadata: Iterable[Any]) -> str:
    """
    >>> from pydantic import Field
    >>> _limits([Field(ge=0.0, lt=1.0)])
    ' >= 0.0 and < 1.0'
    """
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    single = [part for item in metadata for part in getattr(item, "metadata", [item])]
    limits = [(sign, getattr(part, key, None)) for part in single for key, sign in signs.items()]
    told = " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
    return f" {told}" if told else ""


def option_problems(error: ValidationError, keys: Collection[str]) -> list[Problem]:
    """pydantic's errors in our words: an unknown key comes with the nearest valid one."""
    found: list[Problem] = []
    for item in error.errors(include_url=False):
        path = tuple(key for key in item["loc"] if "[" not in str(key))  # such a key names a branch of a union
        name = next((key for key in reversed(path) if isinstance(key, str)), "")  # of a list's item: the list's
        if item["type"] == "extra_forbidden":
            found.append((path, unknown_key(name, keys if len(path) == 1 else None)))
        elif item["type"] == "missing":
            found.append((path, f"{name!r} is missing"))
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            found.append((path, f"{name!r}: {message}, not {item['input']!r}" if name else message))
    return found


def _parameters(factory: Callable[..., Any], given: Collection[str]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(factory).parameters.values() if p.name not in given]


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
