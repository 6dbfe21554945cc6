"""How the checks build a plug-in, and the inputs they give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from forgetlab.plugins import registry
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import generator

CAPACITY = 20
REQUIRED: Mapping[str, Any] = {  # what has no default and no small value of its type
    "parts": ("lora", "adapter"),
    "config": {"peft_type": "LORA", "target_modules": ["attn.q", "attn.k", "attn.v", "mlp.in"]},
}


def require(holds: object, otherwise: str) -> None:
    """Go on where a promise is kept. An ``assert`` would not do: it is gone where Python runs with -O.

    Raises:
        AssertionError: it is broken; ``otherwise`` tells its author what came instead.
    """
    if not holds:
        raise AssertionError(otherwise)


def make(plugin: Plugin, **options: Any) -> Any:
    """Build a plug-in from its defaults; what has none gets a small value of its type."""
    taken = registry.parameters(plugin)
    required = {p.name: p.type for p in taken if p.required or p.name == "capacity"}  # or another size in its place
    small = {name: CAPACITY if "int" in kind.lower() else 1.0 for name, kind in required.items()}
    values = {name: REQUIRED.get(name, value) for name, value in small.items()}
    return plugin.factory(**registry.arguments(plugin, {**values, **options}))


def names_no_strange_callback(plugin: Plugin) -> None:
    """Nothing of it is called before_ or after_ something that Avalanche does not know: its loop would warn."""
    from forgetlab.avalanche.api import SupervisedPlugin

    strange = {name for name in dir(make(plugin)) if name.startswith(("before", "after"))} - {*dir(SupervisedPlugin)}
    require(not strange, f"Avalanche takes these for callbacks, by their names: {', '.join(sorted(strange))}")


def inputs(seed: int = 0, n: int = 12) -> Tensor:
    """Images (n, 1, 8, 8)."""
    return torch.rand(n, 1, 8, 8, generator=generator("checks", seed))
