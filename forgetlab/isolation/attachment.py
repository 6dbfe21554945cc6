"""How a module acts on a backbone for one forward pass: hooks, wider attention, and weights that stand in.

All of it lives in a context manager. The backbone object, its names and its state_dict are as they were afterwards,
also after an error, and a deep copy of a model carries no hook (a copied one would still point at the live module).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones import attention
from forgetlab.backbones.sites import LINEAR, Site, blocks, upright

ACTS = ("before", "after", "keys_values", "tokens", "side", "weights")  # what a module may define
DROPPING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
MASK_ARGUMENTS = ("attention_mask", "mask")  # what blocks call the mask over positions


@contextmanager
def attached(module: Any, backbone: nn.Module, x: Tensor | None) -> Iterator[None]:
    """Inside, the module's sites act; ``x`` is what the backbone is about to read."""
    handles: list[Any] = []
    tensors = standing_in(module, backbone) if "weights" in module.acts else {}
    with swapped(backbone, tensors), training_layers(module, backbone):
        try:
            for site in module.sites:
                handles += _hooks(module, backbone, site, x)
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def swapped(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, these tensors are the backbone's parameters and buffers of these names.

    Where no gradient is recorded they ask for none, as the frozen ones do. For an input that is not contiguous a
    linear layer computes ``mm`` with a weight that asks for a gradient and ``bmm`` with another, and on some processors
    the two differ in the last bit: a task's answers would move when its module is closed.
    """
    kept: list[tuple[dict[str, Any], str, Tensor | None]] = []
    try:
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = backbone.get_submodule(path)
            table: dict[str, Any] = owner._buffers if leaf in owner._buffers else owner._parameters
            kept.append((table, leaf, table[leaf]))
            asks = tensor.requires_grad and not torch.is_grad_enabled()
            table[leaf] = tensor.detach() if asks else tensor  # as torch.func.functional_call does
        yield
    finally:
        for table, leaf, tensor in reversed(kept):
            table[leaf] = tensor


@contextmanager
def training_layers(module: Any, backbone: nn.Module) -> Iterator[None]:
    """Inside, the layers that a module owns are in training mode where it is: they go by the batch's statistics and
    move their own, and drop at random."""
    owned = [backbone.get_submodule(site.path) for site in module.sites] if module.owns_layers else []
    resting = [layer for top in owned for layer in top.modules() if not layer.training] if module.training else []
    try:
        for layer in resting:
            layer.training = True
        yield
    finally:
        for layer in resting:
            layer.training = False


def answers_otherwise_in_training(layers: nn.Module) -> bool:
    """Whether something in there keeps statistics of what passes, or drops at random."""
    normalising = any(hasattr(layer, "running_mean") for layer in layers.modules())
    dropping = any(getattr(layer, "p", 0) for layer in layers.modules() if isinstance(layer, DROPPING))
    return normalising or dropping


@contextmanager
def wrapped(backbone: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, these modules stand at these paths, each with what stood there before as its ``base_layer``."""
    kept: list[tuple[nn.Module, str, Any, nn.Module]] = []
    try:
        for path, layer in layers.items():
            parent, _, leaf = path.rpartition(".")
            owner = backbone.get_submodule(parent)
            base = owner._modules[leaf]
            kept.append((owner, leaf, base, layer))
            layer._modules["base_layer"], owner._modules[leaf] = base, layer
        yield
    finally:
        for owner, leaf, base, layer in reversed(kept):
            owner._modules[leaf] = base
            layer._modules.pop("base_layer", None)


def standing_in(module: Any, backbone: nn.Module) -> dict[str, Tensor]:
    """The tensors that a module puts in the place of the backbone's, by the backbone's names."""
    pairs = [(site, module.weights(module.parts[site.key], site)) for site in module.sites]
    return placed(backbone, pairs)


def placed(backbone: nn.Module, pairs: Iterable[tuple[Site, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Sites' tensors by the backbone's own names: slices of a fused layer come together, transposed ones are turned."""
    whole: dict[str, Tensor] = {}
    for site, tensors in pairs:
        layer, prefix = backbone.get_submodule(site.path), f"{site.path}." if site.path else ""
        for name, tensor in tensors.items():
            if site.role in LINEAR and (site.fused or name == "weight"):
                tensor = _full(layer, name, site.part, tensor, whole.get(prefix + name))
            whole[prefix + name] = tensor
    return whole


def _full(layer: nn.Module, name: str, part: slice, tensor: Tensor, known: Tensor | None) -> Tensor:
    """A whole layer's tensor with one slice of its outputs replaced, as the layer stores it."""
    turned = name == "weight" and type(layer).__name__ == "Conv1D"
    if part != slice(None):
        stored = upright(layer) if name == "weight" else getattr(layer, name).detach()
        stored = stored if known is None else known.T if turned else known
        tensor = torch.cat([stored[: part.start], tensor, stored[part.stop :]])
    return tensor.T if turned else tensor


def _hooks(module: Any, backbone: nn.Module, site: Site, x: Tensor | None) -> list[Any]:
    target, part = backbone.get_submodule(site.path), module.parts[site.key]
    if site.role == "attn.kv":
        return [_extended(module, target, site)]
    if site.role == "tokens":
        return _prepended(module, backbone, site)
    if site.role == "side":
        return _aside(module, backbone, x)
    if site.role in LINEAR and site.fused:
        return [target.register_forward_hook(_sliced(module, part, site))] if _acts(module) else []
    hooks: list[Any] = []
    if "before" in module.acts:
        hooks.append(target.register_forward_pre_hook(_entering(lambda x: module.before(part, site, x))))
    if "after" in module.acts:
        hooks.append(target.register_forward_hook(_leaving(lambda x, y: module.after(part, site, x, y))))
    return hooks


def _acts(module: Any) -> bool:
    return bool({"before", "after"} & module.acts)


def _entering(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda _, entered: (change(entered[0]), *entered[1:])


def _leaving(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """A forward hook; transformers' blocks may give a tuple, of which the first is the sequence."""

    def leaving(_: nn.Module, entered: tuple[Any, ...], left: Any) -> Any:
        if isinstance(left, tuple):
            return (change(entered[0], left[0]), *left[1:])
        return change(entered[0], left)

    return leaving


def _sliced(module: Any, part: Any, site: Site) -> Callable[..., Any]:
    """A forward hook on a fused layer that changes one slice of its outputs."""

    def leaving(_: nn.Module, entered: tuple[Any, ...], left: Tensor) -> Tensor:
        x, y = entered[0], left[..., site.part]
        if "before" in module.acts:
            x = module.before(part, site, x)
            y = F.linear(x, site.weight, site.bias)
        if "after" in module.acts:
            y = module.after(part, site, x, y)
        return torch.cat([left[..., : site.part.start], y, left[..., site.part.stop :]], dim=-1)

    return leaving


def _extended(module: Any, target: nn.Module, site: Site) -> Any:
    part = module.parts[site.key]
    if type(target).__name__ == "KeysValues":  # of our own attention
        return target.register_forward_hook(lambda _, __, pair: module.keys_values(part, site, *pair))
    return attention.extend(target, lambda k, v: module.keys_values(part, site, k, v))


def _prepended(module: Any, backbone: nn.Module, site: Site) -> list[Any]:
    """Tokens in front of what enters a block, and gone after it, or after the last block where they stay."""
    layers, part, added = blocks(backbone), module.parts[site.key], 0
    last = len(layers) - 1 if module.tokens_stay else site.layer

    def entering(block: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal added
        given = inspect.signature(block.forward).bind(*args, **named)
        if block is layers[site.layer]:
            name = next(iter(given.arguments))
            h = given.arguments[name]
            extra = module.tokens(part, site, h)
            extra = extra.expand(len(h), -1, -1) if extra.dim() == 2 else extra
            added = extra.shape[1]
            given.arguments[name] = torch.cat([extra.to(h.dtype), h], dim=1)
        for name in MASK_ARGUMENTS:
            if given.arguments.get(name) is not None:
                given.arguments[name] = attention.prepend_mask(given.arguments[name], added)
        return given.args, given.kwargs

    hooks = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers[site.layer : last + 1]]
    return [*hooks, layers[last].register_forward_hook(_leaving(lambda _, y: y[:, added:]))]


def _aside(module: Any, backbone: nn.Module, x: Tensor | None) -> list[Any]:
    """A network beside the backbone: it reads what passes between blocks, and answers in the last one's place."""
    taps: list[Tensor] = []

    def leaving(_: Tensor, left: Tensor) -> Tensor:
        return module.side([*taps, left.detach()], positions(backbone, x))

    return [*_taps(backbone, taps), blocks(backbone)[-1].register_forward_hook(_leaving(leaving))]


def _taps(backbone: nn.Module, taps: list[Tensor]) -> list[Any]:
    """Hooks that fill the list with what enters each block."""
    layers = blocks(backbone)

    def entering(block: nn.Module, entered: tuple[Any, ...]) -> None:
        if block is layers[0]:
            taps.clear()
        taps.append(entered[0].detach())

    return [layer.register_forward_pre_hook(entering) for layer in layers]


@contextmanager
def tapped(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the list holds what entered each block in the last forward pass, then what left the last one."""
    taps: list[Tensor] = []
    handles = _taps(backbone, taps)

    def leaving(_: nn.Module, __: Any, left: Any) -> None:
        taps.append((left[0] if isinstance(left, tuple) else left).detach())

    handles.append(blocks(backbone)[-1].register_forward_hook(leaving))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def leaving_last(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the list takes in what leaves the last block, with tokens that stay still in front. (B, n + T, d)"""
    left: list[Tensor] = []

    def take(_: nn.Module, __: Any, given: Any) -> None:
        left.append(given[0] if isinstance(given, tuple) else given)

    handle = blocks(backbone)[-1].register_forward_hook(take)
    try:
        yield left
    finally:
        handle.remove()


def positions(backbone: nn.Module, x: Tensor | None) -> Tensor | None:
    """Which positions of the input are no padding, (B, T), where a backbone tells them apart."""
    real = getattr(backbone, "real", None)
    return None if real is None or x is None else real(x)


@contextmanager
def skipped(backbone: nn.Module, depth: int, h: Tensor) -> Iterator[None]:
    """Inside, ``h`` enters block ``depth`` (or leaves the last one), and the blocks below are not computed."""
    layers, handles = blocks(backbone), []
    try:
        for layer in layers[:depth]:
            layer.forward = _through  # an attribute of the object, in front of its class'
        if depth < len(layers):
            handles.append(layers[depth].register_forward_pre_hook(_entering(lambda _: h)))
        else:
            layers[-1].forward = lambda *_, **__: h
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers[:depth]:
            vars(layer).pop("forward", None)


def _through(h: Tensor, *_: Any, **__: Any) -> Tensor:
    return h


@contextmanager
def watched(backbone: nn.Module, sites: Iterable[Site], tell: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, ``tell`` hears of what enters each site."""

    def heard(key: str) -> Callable[..., None]:
        return lambda _, entered: tell(key, entered[0].detach())

    handles = [backbone.get_submodule(s.path).register_forward_pre_hook(heard(s.key)) for s in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
