"""A task's own copy of all that a site has, for modules that train whole layers: parameters and buffers alike.

BatchNorm's statistics are state of a layer as its weights are: where a task has weights of its own and shares the
statistics, its network is none that was ever trained.
"""

from __future__ import annotations

from torch import Tensor, nn

from forgetlab.backbones.sites import Site


def own_layers(site: Site) -> nn.Module:
    """The site's parameters, to be trained, and its buffers, under their names (a slash for each dot)."""
    own = own_buffers(site)
    for name, tensor in site.tensors.items():
        own[_key(name)] = tensor.clone()
    return own


def own_buffers(site: Site) -> nn.ParameterDict:
    """The site's buffers alone, under their names (a slash for each dot)."""
    own = nn.ParameterDict()
    for name, buffer in site.buffers.items():
        own.register_buffer(_key(name), buffer.clone())
    return own


def own_tensors(own: nn.Module) -> dict[str, Tensor]:
    """What `own_layers` made, by the site's names."""
    return {key.replace("/", "."): tensor for key, tensor in (*own.named_parameters(), *own.named_buffers())}


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's names hold no dots
