"""A task's own copy of a place in the backbone: its parameters, to be trained, and its buffers beside them."""

from __future__ import annotations

from torch import Tensor, nn

from forgetlab.backbones.sites import Site


def own_copy(site: Site) -> nn.ParameterDict:
    """A part that begins as the backbone's place does."""
    part = nn.ParameterDict({_key(name): tensor.clone() for name, tensor in site.tensors.items()})
    return with_statistics(part, site)


def with_statistics(part: nn.ParameterDict, site: Site) -> nn.ParameterDict:
    """The part with the place's buffers as they are in the backbone."""
    for name, tensor in site.statistics.items():
        part.register_buffer(_key(name), tensor.clone())
    return part


def own_weights(part: nn.ParameterDict) -> dict[str, Tensor]:
    """A part's parameters by their names in ``site.tensors``."""
    return {_name(key): tensor for key, tensor in part.items()}


def own_statistics(part: nn.ParameterDict) -> dict[str, Tensor]:
    """A part's buffers by their names in ``site.statistics``."""
    return {_name(key): tensor for key, tensor in part.named_buffers()}


def _key(name: str) -> str:
    """A path as a part's tensor may be called: torch wants no dots there."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")
