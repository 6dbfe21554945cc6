"""Where a module may attach: sites, found by their roles, which mean the same on every backbone.

A module asks for ``attn.q``, not for a module path. What it gets is alike where a backbone keeps q, k and v in one
fused layer, or stores a weight transposed: ``weight`` is (out_dim, in_dim), and its own slice alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from forgetlab.backbones.role_paths import RolePath, role_paths_of
from forgetlab.plugins.options import OptionError

LinearRole = Literal["attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out"]  # one linear layer
Role = LinearRole | Literal["attn.kv", "block", "tokens", "embed", "side", "whole"]
Layers = tuple[int, ...] | None  # those that a module is for, -1 the last; None: all
LINEAR: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out")
ROLES: tuple[str, ...] = ("whole", "embed", "tokens", *LINEAR[:3], "attn.kv", *LINEAR[3:], "block", "side")


@dataclass(frozen=True, eq=False)
class Site:
    """One place in a backbone, and the frozen weights that it has there."""

    role: str
    layer: int
    layers: int  # of the backbone
    path: str
    in_dim: int
    out_dim: int
    heads: int
    tensors: Mapping[str, Tensor]  # of a linear site weight (out_dim, in_dim) and bias (out_dim,); else all, by path
    span: tuple[int, int] | None = None  # of a fused layer's outputs, those that are this site's
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # of a block or the whole, by path

    @property
    def weight(self) -> Tensor:
        return self.tensors["weight"]

    @property
    def bias(self) -> Tensor | None:
        return self.tensors.get("bias")

    @property
    def head_dim(self) -> int:
        return self.out_dim // self.heads

    @property
    def fused(self) -> bool:
        return self.span is not None

    @property
    def part(self) -> slice:
        return slice(None) if self.span is None else slice(*self.span)

    @property
    def key(self) -> str:
        """The site's name among a module's parts."""
        return f"{self.role.replace('.', '_')}-{self.layer}"


def transformer(backbone: nn.Module) -> tuple[nn.Module, str]:
    """The part of a backbone whose places are known, and its path: the backbone itself, or the first one inside.

    Raises:
        OptionError: there is none.
    """
    inside = [("", backbone)]
    for path, module in inside:  # level by level: the list grows
        if role_paths_of(module) is not None:
            return module, path
        inside += [(_joined(path, name), child) for name, child in module.named_children()]
    raise OptionError(f"a {type(backbone).__name__.lower()} has no known sites to attach to", "sites")


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The layers, first to last."""
    inner, _ = transformer(backbone)
    return [inner.get_submodule(path) for path in _paths(inner, (role_paths_of(inner) or {})["block"].path)]


def find_sites(backbone: nn.Module, roles: Iterable[str], layers: Layers = None) -> list[Site]:
    """The places of these roles, layer by layer.

    Raises:
        OptionError: the backbone has no such place.
    """
    inner, prefix = transformer(backbone)
    places = {**(role_paths_of(inner) or {})}
    places["whole"] = RolePath("")
    if "attn.kv" in places:  # a sequence goes through the layers, and may be longer
        places |= {"tokens": places["block"], "side": places["block"]}
    n_layers, found = len(blocks(backbone)), []
    wanted = _wanted(layers, n_layers)
    for role in roles:
        if role not in places:
            kind = type(inner).__name__.lower()
            raise OptionError(f"a {kind} has no {role!r} to attach to; it has: {_told(places)}", "sites")
        for layer, path in enumerate(_paths(inner, places[role].path)):
            if layer in wanted or role in ("embed", "whole"):
                found.append(_site(backbone, role, layer, n_layers, _joined(prefix, path), places[role]))
        if role == "side":
            found = [site for site in found if site.role != "side" or site.layer == n_layers - 1]
    return sorted(found, key=lambda site: (site.layer, ROLES.index(site.role)))


def _told(places: Mapping[str, RolePath]) -> str:
    return ", ".join(role for role in ROLES if role in places)


def _wanted(layers: Layers, n: int) -> set[int]:
    if layers is None:
        return set(range(n))
    beyond = [layer for layer in layers if not -n <= layer < n]
    if beyond or not layers:
        told = f"there is no layer {beyond[0]}" if beyond else "no layer is named"
        raise OptionError(f"{told}; the backbone has {n}, 0 to {n - 1}, or -1 for the last", "layers")
    return {layer % n for layer in layers}


def _paths(backbone: nn.Module, pattern: str) -> list[str]:
    if "*" not in pattern:
        return [pattern]
    layers = backbone.get_submodule(pattern.split(".*")[0])
    return [pattern.replace("*", str(layer)) for layer in range(len(list(layers.children())))]


def _joined(prefix: str, path: str) -> str:
    return ".".join(filter(None, (prefix, path)))


def _site(backbone: nn.Module, role: str, layer: int, layers: int, path: str, place: RolePath) -> Site:
    module = backbone.get_submodule(path)
    if role in LINEAR:
        tensors, span = linear_tensors(module, place)
        out_dim, in_dim = tensors["weight"].shape
        return Site(role, layer, layers, path, in_dim, out_dim, 1, tensors, span)
    entering, leaving = _widths(backbone, layer)
    if role in ("attn.kv", "tokens", "side"):
        return Site(role, layer, layers, path, entering, leaving, _heads(backbone), {})
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = {name: tensor for name, tensor in module.state_dict().items() if name not in tensors}
    return Site(role, layer, layers, path, entering, leaving, _heads(backbone), tensors, buffers=buffers)


def linear_tensors(module: nn.Module, place: RolePath) -> tuple[dict[str, Tensor], tuple[int, int] | None]:
    """The frozen weight (out, in) and bias of one linear role, and its slice of the layer's outputs."""
    weight, bias = upright(module), getattr(module, "bias", None)
    n = weight.shape[0] // place.of
    span = None if place.of == 1 else (place.part * n, (place.part + 1) * n)
    part = slice(None) if span is None else slice(*span)
    tensors = {"weight": weight[part]}
    return tensors | ({} if bias is None else {"bias": bias.detach()[part]}), span


def upright(module: nn.Module) -> Tensor:
    """A layer's weight as (out, in); transformers' Conv1D holds it as (in, out)."""
    weight: Tensor = module.weight.detach()  # type: ignore[union-attr, assignment, operator]
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _widths(backbone: nn.Module, layer: int) -> tuple[int, int]:
    """The widths of what enters a block and of what leaves it: features, or channels."""
    block = blocks(backbone)[layer]
    shapes = [upright(m).shape for m in block.modules() if getattr(m, "weight", None) is not None]
    wide = [shape for shape in shapes if len(shape) > 1]
    return wide[0][1], wide[-1][0]


def _heads(backbone: nn.Module) -> int:
    for module in _configured(backbone):
        for name in ("heads", "num_heads", "num_attention_heads", "n_head"):
            if isinstance(value := getattr(module, name, None), int):
                return value
    return 1


def _configured(backbone: nn.Module) -> Iterator[object]:
    """Whatever may say how many heads there are: a configuration, or the attention."""
    inner, _ = transformer(backbone)
    yield from filter(None, [getattr(inner, "config", None)])
    yield from inner.modules()
