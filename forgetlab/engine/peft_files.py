"""LoRA modules in the format of Hugging Face's peft, which its own library reads, and theirs as ours.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``; the paths in it are those of the transformers
model inside a backbone. Where q, k and v are one layer, that layer gets one A and one B of as many ranks as ours have
together: B is zero where a site's outputs are another's. peft itself is not needed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from forgetlab.backbones.sites import LINEAR, Site, find_sites, transformer, upright
from forgetlab.engine import reopened
from forgetlab.isolation.module import Isolation
from forgetlab.plugins.options import OptionError
from forgetlab.results import module_files
from forgetlab.results.module_files import ModulesError
from forgetlab.results.store import RunFolder, to_json, write_bytes, write_text

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
PREFIX = "base_model.model."
STARTS = (True, False, None, "gaussian", "eva")  # with these the base model's own weights stay as they are
MORE_THAN_LORA = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
)  # more than A and B
Factors = tuple[Tensor, Tensor]  # A (r, in), B (out, r)


def export(run: RunFolder, task: int, folder: Path) -> None:
    """Write one task's LoRA module as peft saves it, and its head, which peft does not know, beside it.

    Raises:
        ModulesError: there is no such task, or its module is no LoRA.
    """
    network = reopened.load(run.path)
    module = reopened.speaking(network, task)
    hub = module_files.description(run).model.get("hub")
    write(folder, network.backbone, module, hub)
    write_bytes(folder / HEAD, _bytes(network.heads[str(task)].state_dict()))


def write(folder: Path, backbone: nn.Module, module: Isolation, base: str | None = None) -> None:
    """A LoRA module as peft saves it; ``base`` is the backbone's name on the hub.

    Raises:
        ModulesError: the module is no change B A of linear layers.
    """
    inner, prefix = transformer(backbone)
    above = f"{prefix}." if prefix else ""
    found = module.layer_factors()
    if found is None:
        found = {path: whole_layer(backbone, path, sites) for path, sites in low_rank_factors(module).items()}
    layers = {path.removeprefix(above): factors for path, factors in found.items()}
    tensors: dict[str, Tensor] = {}
    for path, (a, b) in layers.items():
        tensors |= {f"{PREFIX}{path}.lora_A.weight": a, f"{PREFIX}{path}.lora_B.weight": b}
    turned = any(type(inner.get_submodule(path)).__name__ == "Conv1D" for path in layers)
    ranks = {path: len(a) for path, (a, _) in layers.items()}
    write_bytes(folder / WEIGHTS, _bytes(tensors))
    told = {"base_model_name_or_path": base, **configuration(ranks, float(module.scale), turned)}  # type: ignore[arg-type]
    write_text(folder / CONFIG, to_json(told))


def configuration(ranks: Mapping[str, int], scale: float, turned: bool) -> dict[str, Any]:
    """What peft is told; it divides alpha by the rank."""
    rank = max(ranks.values())
    others = {path: one for path, one in ranks.items() if one != rank}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": others,
        "alpha_pattern": {path: scale * one for path, one in others.items()},
        "target_modules": sorted(ranks),
        "fan_in_fan_out": turned,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def low_rank_factors(module: Isolation) -> dict[str, list[tuple[Site, Factors]]]:
    """A and B of each site, by the path of the layer that it lies in; a start that is taken off is two factors more.

    Raises:
        ModulesError: the module is something else.
    """
    found: dict[str, list[tuple[Site, Factors]]] = {}
    scale, other = getattr(module, "scale", None), f"peft's format of LoRA holds a change B A; {type(module).__name__}"
    parts = dict(module.parts.items())
    for site in module.sites:
        part: Any = parts.get(site.key)
        a, b = getattr(part, "A", None), getattr(part, "B", None)
        if not isinstance(scale, float | int) or a is None or b is None:
            raise ModulesError(f"{other} is none")
        a, b = a.detach(), b.detach()
        if hasattr(part, "A0"):
            a, b = torch.cat([a, part.A0]), torch.cat([b, -part.B0], dim=1)
        change = module.delta(part, site)
        if not isinstance(change, Tensor) or not torch.allclose(change.detach(), scale * (b @ a), atol=1e-6):
            raise ModulesError(f"{type(module).__name__} changes {site.role} by more than its own B A")
        found.setdefault(site.path, []).append((site, (a, b)))
    if not found:
        raise ModulesError(f"{other} attaches nowhere")
    return found


def whole_layer(backbone: nn.Module, path: str, found: Iterable[tuple[Site, Factors]]) -> Factors:
    """The sites of one layer as one A and one B: (sum of r, in), (out of the layer, sum of r)"""
    listed = list(found)
    if not listed[0][0].fused:
        return listed[0][1]
    out = len(upright(backbone.get_submodule(path)))
    rows = [b.new_zeros(out, b.shape[1]) for _, (_, b) in listed]
    for row, (site, (_, b)) in zip(rows, listed, strict=True):
        row[site.part] = b
    return torch.cat([a for _, (a, _) in listed]), torch.cat(rows, dim=1)


def read(folder: Path, backbone: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A LoRA adapter that peft saved, for a backbone: options of our LoRA, and the tensors of its state.

    Raises:
        ModulesError: it is something else than LoRA, or does not fit the backbone.
    """
    config = _config(folder)
    layers, places = _layers(folder), _sites_by_path(backbone)
    found: dict[str, tuple[Site, Factors, float]] = {}
    for path, (a, b) in layers.items():
        here = [sites for known, sites in places.items() if f".{path}".endswith(f".{known}")]
        if not here:
            raise ModulesError(f"the backbone has no layer {path} that a module may attach to")
        scale = _scale(config, path, len(a))
        for site in here[0]:
            found[site.key] = site, (a, b[site.part]), scale
    rank, scale = max(len(a) for _, (a, _), _ in found.values()), next(iter(found.values()))[2]
    roles = [role for role in LINEAR if any(site.role == role for site, _, _ in found.values())]
    at = sorted({site.layer for site, _, _ in found.values()})
    tensors: dict[str, Tensor] = {}
    for site in find_sites(backbone, roles, tuple(at)):
        _, (a, b), own = found.get(site.key, (site, _nothing(site), scale))
        missing = rank - len(a)
        tensors[f"parts.{site.key}.A"] = nn.functional.pad(a, (0, 0, 0, missing))
        tensors[f"parts.{site.key}.B"] = nn.functional.pad(b if own == scale else b * (own / scale), (0, missing))
    return {"rank": rank, "alpha": scale * rank, "sites": roles, "layers": at}, tensors


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModulesError(f"{folder} is no folder that peft wrote: it has no {CONFIG}") from error
    if config.get("peft_type") != "LORA":
        raise ModulesError(f"{folder.name} holds {config.get('peft_type')}, not LoRA")
    more = [name for name in MORE_THAN_LORA if config.get(name)] + (
        ["bias"] if config.get("bias", "none") != "none" else []
    )
    if more:
        raise ModulesError(f"{folder.name} is more than LoRA's A and B: {', '.join(more)}")
    if (start := config.get("init_lora_weights", True)) not in STARTS:
        raise ModulesError(f"{folder.name} started by {start!r}, which changes the base model's own weights too")
    return config


def _layers(folder: Path) -> dict[str, Factors]:
    """A and B by the layer's path."""
    tensors = load_file(folder / WEIGHTS)
    ends = (".lora_A.weight", ".lora_B.weight")
    if strange := [name for name in tensors if not name.endswith(ends)]:
        raise ModulesError(f"{folder.name} holds {strange[0]!r}, which is neither A nor B of a linear layer")
    paths = [name.removeprefix(PREFIX).removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]
    given = {path: (tensors[f"{PREFIX}{path}{ends[0]}"], tensors[f"{PREFIX}{path}{ends[1]}"]) for path in paths}
    if not given:
        raise ModulesError(f"{folder.name} holds no LoRA layer")
    return given


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    """What peft multiplies B A by in a layer; its patterns are expressions for the end of a path."""
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = own
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _sites_by_path(backbone: nn.Module) -> dict[str, list[Site]]:
    """The linear sites by the paths of their layers, as the model inside names them."""
    _, prefix = transformer(backbone)
    found: dict[str, list[Site]] = {}
    for site in _linear(backbone):
        found.setdefault(site.path.removeprefix(f"{prefix}." if prefix else ""), []).append(site)
    return found


def _linear(backbone: nn.Module) -> Iterator[Site]:
    for role in LINEAR:
        try:
            yield from find_sites(backbone, (role,))
        except OptionError:
            continue  # this backbone has no such layer


def _nothing(site: Site) -> Factors:
    return torch.zeros(0, site.in_dim), torch.zeros(site.out_dim, 0)


def _bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, {"format": "pt"})
