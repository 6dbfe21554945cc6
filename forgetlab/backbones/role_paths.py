"""Where each transformer keeps its parts, by roles that mean the same on all of them.

A backbone is one of these classes itself, or wraps one as a direct child. One of your own says it itself, in a class
attribute: ``places = {"block": "layers.*", "mlp.in": "layers.*.0"}``, ``*`` for the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RolePath:
    """A module path, ``*`` for the layer; where one layer holds several, part ``part`` of ``of`` of its outputs."""

    path: str
    part: int = 0
    of: int = 1


def _role_paths(**paths: str | RolePath) -> dict[str, RolePath]:
    """Roles with a dot are written with two underscores."""
    return {role.replace("__", "."): RolePath(path) if isinstance(path, str) else path for role, path in paths.items()}


_OWN = _role_paths(
    attn__q="blocks.*.attention.q",
    attn__k="blocks.*.attention.k",
    attn__v="blocks.*.attention.v",
    attn__kv="blocks.*.attention.keys_values",
    attn__out="blocks.*.attention.out",
    mlp__in="blocks.*.feed_forward.inner",
    mlp__out="blocks.*.feed_forward.outer",
    block="blocks.*",
    embed="positions",
)
_BERT = _role_paths(
    attn__q="encoder.layer.*.attention.self.query",
    attn__k="encoder.layer.*.attention.self.key",
    attn__v="encoder.layer.*.attention.self.value",
    attn__kv="encoder.layer.*.attention.self",
    attn__out="encoder.layer.*.attention.output.dense",
    mlp__in="encoder.layer.*.intermediate.dense",
    mlp__out="encoder.layer.*.output.dense",
    block="encoder.layer.*",
    embed="embeddings.dropout",
)
_VIT = _role_paths(
    attn__q="layers.*.attention.q_proj",
    attn__k="layers.*.attention.k_proj",
    attn__v="layers.*.attention.v_proj",
    attn__kv="layers.*.attention",
    attn__out="layers.*.attention.o_proj",
    mlp__in="layers.*.mlp.fc1",
    mlp__out="layers.*.mlp.fc2",
    block="layers.*",
    embed="embeddings.dropout",
)
ROLE_PATHS: Mapping[str, Mapping[str, RolePath]] = {  # class -> role -> place
    "ViT": _OWN,
    "Transformer": _OWN,
    "MLP": _role_paths(mlp__in="layers.*.0", block="layers.*"),
    "CNN": _role_paths(block="layers.*"),
    "BertModel": _BERT,
    "RobertaModel": _BERT,
    "GPT2Model": _role_paths(
        attn__q=RolePath("h.*.attn.c_attn", 0, 3),
        attn__k=RolePath("h.*.attn.c_attn", 1, 3),
        attn__v=RolePath("h.*.attn.c_attn", 2, 3),
        attn__kv="h.*.attn",
        attn__out="h.*.attn.c_proj",
        mlp__in="h.*.mlp.c_fc",
        mlp__out="h.*.mlp.c_proj",
        block="h.*",
        embed="drop",
    ),
    "DistilBertModel": _role_paths(
        attn__q="transformer.layer.*.attention.q_lin",
        attn__k="transformer.layer.*.attention.k_lin",
        attn__v="transformer.layer.*.attention.v_lin",
        attn__kv="transformer.layer.*.attention",
        attn__out="transformer.layer.*.attention.out_lin",
        mlp__in="transformer.layer.*.ffn.lin1",
        mlp__out="transformer.layer.*.ffn.lin2",
        block="transformer.layer.*",
        embed="embeddings.dropout",
    ),
    "ViTModel": _VIT,
    "DeiTModel": _VIT,
    "Dinov2Model": {role: RolePath(place.path.replace("layers.*", "encoder.layer.*")) for role, place in _VIT.items()},
    "VisionTransformer": _role_paths(  # timm's
        attn__q=RolePath("blocks.*.attn.qkv", 0, 3),
        attn__k=RolePath("blocks.*.attn.qkv", 1, 3),
        attn__v=RolePath("blocks.*.attn.qkv", 2, 3),
        attn__kv="blocks.*.attn.keys_values",
        attn__out="blocks.*.attn.proj",
        mlp__in="blocks.*.mlp.fc1",
        mlp__out="blocks.*.mlp.fc2",
        block="blocks.*",
        embed="norm_pre",
    ),
}


def role_paths_of(module: object) -> Mapping[str, RolePath] | None:
    """A module's roles and where they are, by its own word or by its class; None where nothing is known."""
    own: Mapping[str, str | RolePath] | None = getattr(type(module), "places", None)
    if own is None:
        return ROLE_PATHS.get(type(module).__name__)
    return {role: place if isinstance(place, RolePath) else RolePath(place) for role, place in own.items()}
