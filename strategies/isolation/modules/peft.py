"""Hugging Face's methods: https://github.com/huggingface/peft (Apache-2.0), which comes with forgetlab[peft].

Their layers stand in the backbone only while the module acts; lists of modules in their keys may name our roles too.
Methods that learn prompts, and starts that change the backbone's own weights, are refused.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from forgetlab.isolation import Isolation, OptionError, Site, library, peft_layers, wrapped
from forgetlab.plugins import register

ROLES: Any = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out")


@register("isolation", "peft")
class PEFT(Isolation):
    """h = f(x; W0, theta), f a layer of their tuner `peft_type`; `config` takes that tuner's keys."""

    delta_learns = False  # what their layers merge into has no gradient

    def __init__(self, config: dict[str, Any]) -> None:
        named = [one for value in config.values() if isinstance(value, list) for one in value]
        at = config.get("layers_to_transform")  # which peft does not heed where a module is named by its whole path
        layers = (at,) if isinstance(at, int) else at and tuple(at)
        super().__init__((*(role for role in ROLES if role in named), "block"), layers)
        self.options, self.kinds = config, peft_layers.tuner_classes(library("peft"), config)
        self.identity_at_birth = peft_layers.identity_at_birth(config)  # type: ignore[misc]
        self.draws, self.paths = peft_layers.draws(config), dict[str, str]()
        self.bases: dict[str, nn.Module] = {}  # what each of their layers stands before
        self.scale: float | None = None  # of LoRA's B A

    def make(self, site: Site) -> nn.Module:
        return nn.Identity()

    def attach(self, backbone: nn.Module) -> None:
        super().attach(backbone)
        paths: dict[Any, list[str]] = {role: [s.path for s in self.sites if s.role == role] for role in self.roles}
        if any(site.fused for site in self.sites) and not {*ROLES[:3]} <= paths.keys():
            raise OptionError("q, k and v are one layer here, and peft takes it whole: name all three", "config")
        options = {key: value for key, value in self.options.items() if key != "peft_type"}
        for key, value in options.items():
            if isinstance(value, list):
                options[key] = list(dict.fromkeys(path for one in value for path in paths.get(one, [one])))
        found = peft_layers.tuner_layers(self.kinds, options, backbone)
        self.paths = {path.replace(".", "-"): path for path in found}
        if not all(any(peft_layers.holds(site, path) for site in self.sites) for path in found):
            self.roles = (*self.roles, "whole")  # it changes what lies outside of the blocks too
            super().attach(backbone)
        self.parts = nn.ModuleDict({key: found[path] for key, path in self.paths.items()})
        self.bases = {path: backbone.get_submodule(path) for path in found}
        self.scale = peft_layers.common_scale(found.values())

    @contextmanager
    def active(self, backbone: nn.Module, x: Tensor | None = None) -> Any:
        with wrapped(backbone, {path: self.parts[key] for key, path in self.paths.items()}):
            yield

    def lowest(self) -> int:
        of = {f"{site.path}.": site.layer for site in self.sites if site.role == "block"}
        return min(next((layer for at, layer in of.items() if path.startswith(at)), 0) for path in self.paths.values())

    def changes(self) -> dict[str, Tensor]:
        """What their own merging makes of the weights, by our sites; none where a layer of theirs cannot be merged."""
        found: dict[str, Tensor] = {}
        for key, path in self.paths.items():
            change = peft_layers.weight_change(self.parts[key], self.bases[path])
            if change is None:
                return {}
            found |= peft_layers.by_site(self.sites, path, self.bases[path], change)
        return found

    def changed_weights(self) -> dict[str, Tensor]:
        return self.changes()

    def layer_factors(self) -> dict[str, tuple[Tensor, Tensor]] | None:
        """A and B of their LoRA; None for what else they have."""
        if self.scale is None:
            return None
        return {path: peft_layers.lora_factors(self.parts[key], self.scale) for key, path in self.paths.items()}
