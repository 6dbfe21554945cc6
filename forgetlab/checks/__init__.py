"""What a plug-in of each kind promises, and how one begins: `forgetlab new` and `forgetlab check-module`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forgetlab.checks.check import Check

if TYPE_CHECKING:
    from forgetlab.plugins.registry import Plugin

__all__ = ["Check", "checks"]


def checks(plugin: Plugin) -> tuple[Check, ...]:
    """All checks of a plug-in: each is called with it, and raises `AssertionError` where a promise is broken."""
    from forgetlab.checks.promises import checks_of

    return checks_of(plugin)
