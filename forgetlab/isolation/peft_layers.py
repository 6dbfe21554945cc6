"""Hugging Face's PEFT from outside: what its options are, and its layers without the model that they were made in."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.backbones.sites import LINEAR, Site
from forgetlab.plugins.options import OptionError, suggestion

ADAPTER = "default"  # what peft calls the one adapter of a layer
OURS = {"PREFIX_TUNING": "prefix", "P_TUNING": "p_tuning"}  # of those that learn prompts; else `prompt`
UNFIT = {
    "ADALORA": "wants calls of its own while it trains",
    "ADAMSS": "wants calls of its own while it trains",
    "LILY": "answers for a sample by what else is in its batch",
}
SHARING = {  # keys that would train what all tasks share
    "bias": "it would train the backbone's own biases; take 'bitfit' beside it",
    "modules_to_save": "heads are not its own: each task has one here",
    "trainable_token_indices": "it would train the backbone's own embeddings",
}
EXACT = (  # an untrained one is the backbone, to the bit
    *("LORA", "IA3", "VERA", "LOHA", "LOKR", "LN_TUNING", "BEFT"),
    *("OFT", "BOFT", "RANDLORA", "TINYLORA", "SHIRA", "DELORA", "PSOFT", "WAVEFT", "HIRA"),
    *("GRALORA", "PEANUT", "GLORA", "SUPERTUNING", "PVERA"),
)


def tuner_classes(peft: Any, config: Mapping[str, Any]) -> tuple[type, type]:
    """The classes of a tuner's configuration and of the tuner.

    Raises:
        OptionError: there is none, it cannot work here, or it has no such key.
    """
    types = {key.value: kind for key, kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    tuners = {key.value: kind for key, kind in peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.items()}
    name = str(config.get("peft_type", "missing"))
    where = "config.peft_type" if "peft_type" in config else "config"
    if name not in types:
        raise OptionError(f"'peft_type' is {name!r}{suggestion(name, types)}", where)
    if issubclass(types[name], peft.PromptLearningConfig):
        ours = OURS.get(name, "prompt")
        raise OptionError(f"peft learns prompts on language models of its own alone; take {ours!r} of ours", where)
    if name not in tuners or name in UNFIT:
        raise OptionError(f"peft's {name} {UNFIT.get(name, 'is more than layers')}, so it cannot work here", where)
    known = [field.name for field in dataclasses.fields(types[name])]
    for key, value in config.items():
        if key not in known:
            raise OptionError(f"{name} has no key {key!r}{suggestion(key, known)}", f"config.{key}")
        if key in SHARING and value not in (None, "none", False):
            raise OptionError(SHARING[key], f"config.{key}")
    return types[name], tuners[name]


def identity_at_birth(config: Mapping[str, Any]) -> bool:
    """Whether an untrained tuner of these options leaves everything as it is, to the bit."""
    starts = [value for key, value in config.items() if key.startswith("init_")]
    return config["peft_type"] in EXACT and all(value in (True, "gaussian") for value in starts)


def draws(config: Mapping[str, Any]) -> bool:
    return any("dropout" in key and value for key, value in config.items()) or config["peft_type"] == "PVERA"


def tuner_layers(kinds: tuple[type, type], options: Mapping[str, Any], backbone: nn.Module) -> dict[str, nn.Module]:
    """The tuner's layers by path, each without its base layer; the backbone is not touched.

    Raises:
        OptionError: the tuner cannot be made, or it changes the backbone's own weights.
    """
    shell = copy.deepcopy(backbone)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of layers that it has not met
            kinds[1](shell, kinds[0](**options), ADAPTER)
    except (ValueError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise OptionError(f"peft: {str(error).strip().splitlines()[0]}", "config") from error
    found = {path: module for path, module in shell.named_modules() if _is_layer(module) and ".base_layer" not in path}
    if not found:
        raise OptionError("it changes none of this backbone's modules", "config.target_modules")
    for path, layer in found.items():
        held, own = layer.get_submodule("base_layer").state_dict(), backbone.get_submodule(path).state_dict()
        if held.keys() != own.keys() or not all(torch.equal(held[name], own[name]) for name in own):
            raise OptionError("this start changes the backbone's own weights, which all tasks share", "config")
        layer._modules.pop("base_layer")
    _once(found.values())
    return found


def _is_layer(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _once(found: Iterable[nn.Module]) -> None:
    """What several layers share is a part of the first one alone, so that it is stored once."""
    seen: set[int] = set()
    for layer in found:
        for name, child in list(layer.named_children()):
            if id(child) in seen:
                del layer._modules[name]
                vars(layer)[name] = child
            seen.add(id(child))


def weight_change(layer: nn.Module, base: nn.Module) -> dict[str, Tensor] | None:
    """By how much a tuner's layer changes the tensors of its base layer, as that stores them, by their names.

    It is what peft's merging does to a copy; where a layer tells its change itself and that is the same, it is taken
    from there, free of the rounding of a sum. None where peft cannot merge.
    """
    whole: Any = copy.deepcopy(layer)
    whole._modules["base_layer"] = copy.deepcopy(base)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    told = _told_change(whole)
    try:
        with torch.no_grad():
            whole.merge(adapter_names=[ADAPTER])
    except (NotImplementedError, AttributeError, ValueError, RuntimeError):
        return None
    merged = whole.get_base_layer()  # a norm that is trained takes the base layer's place
    changes = {name: tensor - before[name] for name, tensor in merged.state_dict().items()}
    if (
        told is not None
        and told.shape == changes["weight"].shape
        and torch.allclose(told, changes["weight"], atol=1e-6)
    ):
        changes["weight"] = told
    return {name: change for name, change in changes.items() if change.any()} or {"weight": changes["weight"]}


def _told_change(layer: Any) -> Tensor | None:
    try:
        with torch.no_grad():
            told = layer.get_delta_weight(ADAPTER)
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError):
        return None
    return told.detach() if isinstance(told, Tensor) else None


def by_site(sites: Iterable[Site], path: str, base: nn.Module, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer's changes by the sites that it holds, as our modules name and shape theirs.

    Of a linear role each site has its own slice, upright; else the layer is one of a block's, or of the whole.
    """
    found: dict[str, Tensor] = {}
    here = list(sites)
    linear = [site for site in here if site.role in LINEAR and site.path == path]
    for site in linear:
        for name, change in changes.items():
            turned = name == "weight" and type(base).__name__ == "Conv1D"
            found[f"{site.key}.{name}"] = (change.T if turned else change)[site.part]
    if not linear:
        around = [site for site in here if holds(site, path)]
        (place, *_) = sorted(around, key=lambda site: site.role != "block")
        inside = path.removeprefix(f"{place.path}.")
        found |= {f"{place.key}.{inside}.{name}": change for name, change in changes.items()}
    return found


def holds(site: Site, path: str) -> bool:
    """Whether a layer lies in a block, or the site is the whole backbone."""
    return site.role == "whole" or (site.role == "block" and path.startswith(f"{site.path}."))


def common_scale(layers: Iterable[nn.Module]) -> float | None:
    """What LoRA's B A is multiplied with in the first of these layers; None where one of them is no plain LoRA."""
    scales = [_scale(layer) for layer in layers]
    return None if None in scales else scales[0]


def lora_factors(layer: Any, scale: float) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of a layer of LoRA whose change is ``scale`` B A."""
    a, b = layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach()
    own = layer.scaling[ADAPTER]
    return a, b if own == scale else b * (own / scale)


def _scale(layer: Any) -> float | None:
    linear = isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) and ADAPTER in layer.lora_A
    if not linear or getattr(layer, "lora_variant", None) or layer.lora_A[ADAPTER].weight.dim() != 2:
        return None  # a variant such as DoRA changes weights by more than B A
    return float(layer.scaling[ADAPTER])
