"""What a plug-in of each kind promises, and how one begins: `forgetlab new` and `forgetlab check-module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forgetlab.plugins.registry import Plugin

Check = Callable[[Any], None]  # takes a plug-in; raises AssertionError where it breaks a promise


def checks(plugin: Plugin) -> tuple[Check, ...]:
    """All checks of a plug-in: each is called with it, and raises `AssertionError` where a promise is broken."""
    from forgetlab.checks.promises import checks_of

    return checks_of(plugin)
