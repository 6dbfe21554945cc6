"""Benchmarks of Avalanche by their names, such as SplitMNIST.

Carta et al. 2023, https://www.jmlr.org/papers/v24/23-0130.html (MIT licence); the data have licences of their own.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

from forgetlab.plugins import OptionError, register, suggestion
from forgetlab.streams import Scenario


@register("scenario", "avalanche")
def avalanche(
    seed: int,
    benchmark: str,
    arguments: dict[str, Any] | None = None,
    dataset_root: Path | None = None,  # where the data lie, or come to; else Avalanche's own folder
    train_transforms: Literal["refuse", "drop"] = "refuse",  # random ones, of which a stream holds nothing
) -> Scenario:
    """A function of avalanche.benchmarks and its arguments; it is given the seed where it takes one."""
    from forgetlab.avalanche.streams import draws_of, from_avalanche, makers

    named = makers()
    if benchmark not in named:
        near = [name for name in named if name.casefold() == benchmark.casefold()] or named
        raise OptionError(f"Avalanche has no benchmark {benchmark!r}{suggestion(benchmark, near)}", "benchmark")
    taken = inspect.signature(named[benchmark]).parameters
    given: dict[str, Any] = {"seed": seed} if "seed" in taken else {}
    given |= {**(arguments or {}), **({} if dataset_root is None else {"dataset_root": dataset_root})}
    if unknown := [key for key in given if key not in taken]:
        hint = suggestion(unknown[0], taken) or f"; it takes {', '.join(taken)}"
        raise OptionError(f"{benchmark} takes no {unknown[0]!r}{hint}", "arguments")
    if missing := [key for key, p in taken.items() if p.default is p.empty and key not in given]:
        raise OptionError(f"{benchmark} needs {' and '.join(map(repr, missing))}", "arguments")
    try:
        with draws_of("benchmark", benchmark, seed):
            made = named[benchmark](**given)
    except (OSError, RuntimeError) as error:
        where = "put them where 'dataset_root' says, or let Avalanche fetch them"
        raise FileNotFoundError(f"Avalanche found no data for {benchmark}: {where} ({error})") from error
    except Exception as error:  # Avalanche checks by assertions, or not at all
        raise OptionError(f"{benchmark}: {error or type(error).__name__}", "arguments") from error
    return from_avalanche(made, train_transforms)
