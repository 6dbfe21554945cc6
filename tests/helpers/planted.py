"""Plug-ins that are known for the length of one test."""

from __future__ import annotations

from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin


def planted(kind: str, factory: type) -> Plugin:
    """The class under a name of its own, until ``forget``."""
    name = f"planted-{factory.__name__}"
    registry.discover()
    plugin = registry._plugins[kind, name] = Plugin(kind, name, factory)
    return plugin


def forget() -> None:
    """All that was planted."""
    for key in [key for key in registry._plugins if key[1].startswith("planted-")]:
        del registry._plugins[key]
