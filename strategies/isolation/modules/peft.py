"""Hugging Face's methods: https://github.com/huggingface/peft (Apache-2.0), which comes with forgetlab[peft].

Their layers stand in the backbone only while the module acts; lists of modules in their keys may name our roles too.
Methods that learn prompts, and starts that change the backbone's own weights, are refused. What a tuner changes in the
weights is what it merges into them, so it has a price, merges and is exported as our own modules are.
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

    delta_learns = False  # what its layers merge into has no gradient

    def __init__(self, config: dict[str, Any]) -> None:
        named = [one for value in config.values() if isinstance(value, list) for one in value]
        at = config.get("layers_to_transform")  # which peft does not heed where a module is named by its whole path
        layers = (at,) if isinstance(at, int) else at and tuple(at)
        super().__init__((*(role for role in ROLES if role in named), "block"), layers)
        self.options, self.kinds = config, peft_layers.tuner_classes(library("peft"), config)
        self.identity_at_birth = peft_layers.identity_at_birth(config)  # type: ignore[misc]
        self.draws, self.paths = peft_layers.draws(config), dict[str, str]()

    def make(self, site: Site) -> nn.Module:
        return nn.Identity()

    def attach(self, backbone: nn.Module) -> None:
        super().attach(backbone)
        paths: dict[Any, list[str]] = {role: [s.path for s in self.sites if s.role == role] for role in self.roles}
        if any(site.fused for site in self.sites) and not {*ROLES[:3]} <= paths.keys():
            raise OptionError("q, k and v are one layer here, and peft takes it whole: name all three", "config")
        self.resolved = {key: value for key, value in self.options.items() if key != "peft_type"}
        for key, value in self.resolved.items():
            if isinstance(value, list):
                self.resolved[key] = list(dict.fromkeys(path for one in value for path in paths.get(one, [one])))
        found = peft_layers.tuner_layers(self.kinds, self.resolved, backbone)
        self.paths = {path.replace(".", "-"): path for path in found}
        if any(self.site_of(path) is None for path in found):  # embeddings, or what comes after the blocks
            self.roles = (*self.roles, "whole")
            super().attach(backbone)
        self.parts = nn.ModuleDict({key: found[path] for key, path in self.paths.items()})
        self.bases = {path: backbone.get_submodule(path) for path in found}  # in a dict: not registered

    def site_of(self, path: str) -> Site | None:
        """The block that a layer lies in, or the whole where it lies in none and that is among the sites."""
        places = [site for site in self.sites if site.role == "block" and path.startswith(inside(site))]
        places += [site for site in self.sites if site.role == "whole"]
        return places[0] if places else None

    @contextmanager
    def active(self, backbone: nn.Module, x: Tensor | None = None) -> Any:
        with wrapped(backbone, {path: self.parts[key] for key, path in self.paths.items()}):
            yield

    def lowest(self) -> int:
        sites = [self.site_of(path) for path in self.paths.values()]
        return min(site.layer if site is not None and site.role == "block" else 0 for site in sites)

    def changes(self) -> dict[str, Tensor]:
        return self.changed_weights() or {}

    def changed_weights(self) -> dict[str, Tensor] | None:
        found: dict[str, Tensor] = {}
        for key, path in self.paths.items():
            site: Any = self.site_of(path)
            changed = peft_layers.merged_changes(self.parts[key], self.bases[path])
            if changed is None:
                return None
            below = path.removeprefix(inside(site))
            found |= {f"{site.key}.{below}.{name}": change for name, change in changed.items()}
        return found

    def in_peft_format(self, inner: nn.Module, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        outside = [path for path in self.paths.values() if not path.startswith(prefix)]
        if outside:
            raise OptionError(f"{outside[0]} is no layer of the model that peft would be given")
        options = {
            key: [one.removeprefix(prefix) for one in value] if isinstance(value, list) else value
            for key, value in self.resolved.items()
        }
        layers = {path.removeprefix(prefix): self.parts[key] for key, path in self.paths.items()}
        return peft_layers.saved(self.kinds, options, inner, layers)


def inside(site: Site) -> str:
    """What the paths of all in a site begin with."""
    return f"{site.path}." if site.path else ""
