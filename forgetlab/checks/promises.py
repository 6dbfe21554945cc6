"""What every plug-in of a kind promises, as checks: the tests run them on all that is registered.

A check takes a plug-in, builds it from its own signature, and raises `AssertionError` in words where a promise is
broken. A new plug-in gets its checks with no line written.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from forgetlab.checks import (
    classifier,
    isolation,
    memory,
    merger,
    projection,
    regime,
    regularizer,
    rehearsal,
    router,
    sampler,
    scenario,
)
from forgetlab.checks.check import Check
from forgetlab.checks.common import require
from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin


def documented(plugin: Plugin) -> None:
    """The class says what it does, its module names the source, and every parameter has a type."""
    require(
        inspect.getdoc(plugin.factory), f"{plugin.factory.__name__} has no docstring: say in a sentence what it does"
    )
    module = inspect.getmodule(plugin.factory)
    require(
        module is not None and inspect.getdoc(module),
        "the file has no docstring: name the method, its authors, year and link",
    )
    untyped = [p.name for p in registry.parameters(plugin) if p.type == "Any"]
    require(not untyped, f"parameters without a type: {', '.join(untyped)}")


CHECKS: Mapping[str, tuple[Check, ...]] = {
    "isolation": isolation.CHECKS,
    "regularizer": regularizer.CHECKS,
    "memory": memory.CHECKS,
    "sampler": sampler.CHECKS,
    "rehearsal": rehearsal.CHECKS,
    "projection": projection.CHECKS,
    "regime": regime.CHECKS,
    "router": router.CHECKS,
    "merger": merger.CHECKS,
    "classifier": classifier.CHECKS,
    "scenario": scenario.CHECKS,
}


def checks_of(plugin: Plugin) -> tuple[Check, ...]:
    """All checks of a plug-in."""
    return (documented, *CHECKS.get(plugin.kind, ()))
