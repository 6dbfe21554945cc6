"""Hugging Face's PEFT from outside: what its options are, and its layers without the model that they were made in."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forgetlab.plugins.options import OptionError, suggestion

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
            kinds[1](shell, kinds[0](**options), "default")
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


@torch.no_grad()
def merged_changes(layer: nn.Module, base: nn.Module) -> dict[str, Tensor] | None:
    """What a tuner's layer makes of its base layer's tensors, as changes by name; None where it cannot be merged.

    The tuner merges itself into a copy, in double precision: in single precision the difference of two weights would
    have the weights' rounding in it, and full rank.
    """
    held = copy.deepcopy(base).double()
    whole: Any = _in_double(copy.deepcopy(layer)).eval()
    whole._modules["base_layer"] = held
    before = {name: tensor.clone() for name, tensor in held.named_parameters()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            whole.merge(safe_merge=True)
    except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError):
        return None
    after = dict(whole.get_base_layer().named_parameters())
    if after.keys() != before.keys():
        return None
    kinds = {name: tensor.dtype for name, tensor in base.named_parameters()}
    return {name: (after[name] - tensor).to(kinds[name]) for name, tensor in before.items()}


def _in_double(layer: nn.Module) -> nn.Module:
    """The layer in double precision, with what it shares with others: see `_once`."""
    for value in vars(layer).values():
        if isinstance(value, nn.Module):
            value.double()
    return layer.double()


def saved(
    kinds: tuple[type, type], options: Mapping[str, Any], inner: nn.Module, layers: Mapping[str, nn.Module]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What peft saves of these layers: its configuration, as JSON holds it, and its tensors by its own names.

    ``inner`` is the model that the layers' paths are in; it is not touched.
    """
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model: Any = peft.PeftModel(copy.deepcopy(inner), kinds[0](**options))  # type: ignore[arg-type]
        for path, layer in layers.items():
            model.get_base_model().get_submodule(path).load_state_dict(layer.state_dict(), strict=False)
        tensors = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    config = model.peft_config["default"]
    config.inference_mode = True
    return {name: _plain(value) for name, value in config.to_dict().items()}, dict(tensors)


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)  # of an enumeration
