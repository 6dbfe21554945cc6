"""Hugging Face's PEFT as a backend: equal to our own where we have the method, isolated, and refused in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples, tiny
from forgetlab.config.load import load
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.costs.rank_of_change import numerical_rank
from forgetlab.isolation import module as contract
from forgetlab.isolation.network import Merged
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.low_rank.lora import LoRA
from forgetlab.strategies.isolation.modules.peft import PEFT
from helpers.modules import attached

ATTENTION = ["attn.q", "attn.k", "attn.v"]


def lora(**options: Any) -> PEFT:
    return PEFT({"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["attn.q", "attn.v"], **options})


@pytest.mark.parametrize("name", ["vit", "bert", "hf_vit"])
def test_their_lora_is_ours_with_the_same_weights_and_so_are_the_gradients(name: str) -> None:
    backbone, x = tiny(name), samples(tiny(name), 0)
    theirs, ours = attached(lora(), backbone, spread=0.3), attached(LoRA(rank=3, alpha=6.0), backbone)
    layers = {path: theirs.parts[key] for key, path in theirs.paths.items()}
    assert {site.path for site in ours.sites} == layers.keys()
    for site in ours.sites:
        part, layer = ours.parts[site.key], layers[site.path]
        part.A.data, part.B.data = (
            layer.lora_A["default"].weight.data.clone(),
            layer.lora_B["default"].weight.data.clone(),
        )
    answers = [module.features(backbone, x) for module in (theirs, ours)]
    assert torch.equal(*answers)
    assert (answers[0] - backbone(x)).abs().max() > 1e-2
    for answer in answers:
        answer.square().sum().backward()
    for site in ours.sites:
        part, layer = ours.parts[site.key], layers[site.path]
        assert torch.equal(part.A.grad, layer.lora_A["default"].weight.grad)
        assert torch.equal(part.B.grad, layer.lora_B["default"].weight.grad)


class ByHand(contract.Isolation):
    """(IA)^3: k and v are scaled as they leave, the second layer of the feed-forward part as it is entered."""

    def __init__(self, scales: dict[str, Tensor]) -> None:
        super().__init__(("attn.k", "attn.v", "mlp.out"))
        self.scales = scales

    def make(self, site: Any) -> nn.Module:
        return nn.Identity()

    def before(self, part: Any, site: Any, x: Tensor) -> Tensor:
        return x * self.scales[site.path].flatten() if site.role == "mlp.out" else x

    def after(self, part: Any, site: Any, x: Tensor, y: Tensor) -> Tensor:
        return y if site.role == "mlp.out" else y * self.scales[site.path].flatten()


@torch.no_grad()
def test_their_ia3_is_the_formula() -> None:
    backbone, x = tiny("vit"), samples(tiny("vit"), 0)
    config = {"target_modules": ["attn.k", "attn.v", "mlp.out"], "feedforward_modules": ["mlp.out"]}
    theirs = attached(PEFT({"peft_type": "IA3", **config}), backbone, spread=0.3)
    scales = {path: theirs.parts[key].ia3_l["default"] for key, path in theirs.paths.items()}
    ours = attached(ByHand(scales), backbone)
    assert torch.equal(theirs.features(backbone, x), ours.features(backbone, x))


CONFIGS: dict[str, dict[str, Any]] = {
    "dora": {"peft_type": "LORA", "use_dora": True},
    "vera": {"peft_type": "VERA", "r": 4},
    "oft": {"peft_type": "OFT", "oft_block_size": 4},
    "fourierft": {"peft_type": "FOURIERFT", "n_frequency": 10},
    "vblora": {"peft_type": "VBLORA", "vector_length": 4, "num_vectors": 8, "topk": 2},
}


def plugin(options: dict[str, Any]) -> Plugin:
    return Plugin("isolation", "peft", lambda: PEFT({"target_modules": ATTENTION, **options}))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "check",
    [
        isolation.untrained_is_base,
        isolation.old_answers_stay,
        isolation.gradients_reach_the_open_module_only,
        isolation.leaves_no_trace,
        isolation.survives_a_file,
        isolation.frozen_work_answers_alike,
    ],
)
def test_others_train_are_isolated_and_survive_a_file(name: str, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "FAMILIES", dict.fromkeys(("vit", "gpt2")))
    check(plugin(CONFIGS[name]))


MERGEABLE: dict[str, dict[str, Any]] = CONFIGS | {
    "lora": {"peft_type": "LORA", "r": 3},
    "ia3": {"peft_type": "IA3", "feedforward_modules": []},
    "loha": {"peft_type": "LOHA", "r": 2},
    "lokr": {"peft_type": "LOKR", "r": 2},
    "boft": {"peft_type": "BOFT", "boft_block_size": 4},
    "hra": {"peft_type": "HRA", "r": 2},
    "ln_tuning": {"peft_type": "LN_TUNING", "target_modules": ["norm_attention"]},
    "beft": {"peft_type": "BEFT"},
}


@pytest.mark.parametrize("name", MERGEABLE)
@torch.no_grad()
def test_what_a_tuner_merges_into_the_weights_is_its_change(name: str) -> None:
    backbone, x = tiny("vit"), samples(tiny("vit"), 0)
    module = attached(PEFT({"target_modules": ATTENTION, **MERGEABLE[name]}), backbone, spread=0.3).eval()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    changes, answers = module.changes(), module.features(backbone, x)
    assert (answers - backbone(x)).abs().max() > 1e-3
    merged = Merged([module], changes).eval().features(backbone, x)
    torch.testing.assert_close(merged, answers, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert torch.equal(module.features(backbone, x), answers)


def test_their_loras_change_is_b_a_without_the_weights_rounding() -> None:
    backbone = tiny("vit")
    module = attached(lora(r=2), backbone, spread=1e-4)
    for name, change in module.changes().items():
        if name.endswith("weight"):
            layer = module.parts[
                f"blocks-{name[len('block-')]}-{name.split('.', 1)[1].removesuffix('.weight')}".replace(".", "-")
            ]
            b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            torch.testing.assert_close(change, 3 * (b @ a).detach())
            assert numerical_rank(change) == 2
        else:
            assert not change.any()


def test_layers_outside_of_the_blocks_are_changes_of_the_whole() -> None:
    backbone, x = tiny("vit"), samples(tiny("vit"), 0)
    module = attached(lora(target_modules=["attn.q", "embed"]), backbone, spread=0.3).eval()
    assert "whole-0.embed.weight" in module.changes() and module.lowest() == 0
    with torch.no_grad():
        merged = Merged([module], module.changes()).eval().features(backbone, x)
        torch.testing.assert_close(merged, module.features(backbone, x), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_merged_has_no_price_of_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise NotImplementedError("merging is not supported")

    backbone = tiny("vit")
    module = attached(lora(), backbone)
    for part in module.parts.values():
        monkeypatch.setattr(type(part), "merge", refuses)
    assert module.changed_weights() is None and module.changes() == {}


def test_what_layers_share_is_stored_once() -> None:
    module = attached(PEFT({"peft_type": "VERA", "r": 4, "target_modules": ATTENTION}), tiny("vit"))
    projections = [name for name in module.state_dict() if "vera_A" in name or "vera_B" in name]
    assert len(projections) == 2 and len(module.parts) == 6
    (first, *_, last) = module.parts.values()
    assert last.vera_A is first.vera_A


def test_the_backbone_keeps_its_objects_names_and_switches() -> None:
    backbone, x = tiny("vit").requires_grad_(True), samples(tiny("vit"), 0)
    before = {name: (id(p), p.requires_grad) for name, p in backbone.named_parameters()}
    kinds = [type(module) for module in backbone.modules()]
    module = attached(lora(), backbone, spread=0.3)
    module.train()
    module.features(backbone, x)
    assert {name: (id(p), p.requires_grad) for name, p in backbone.named_parameters()} == before
    assert [type(part) for part in backbone.modules()] == kinds
    assert not backbone.training
    assert all("base_layer" not in name for name in module.state_dict())
    assert {id(p) for p in module.parameters()}.isdisjoint(id(p) for p in backbone.parameters())


def test_what_lies_below_its_lowest_layer_need_not_be_computed_again() -> None:
    backbone = tiny("bert")
    assert attached(lora(), backbone).lowest() == 0
    assert attached(lora(layers_to_transform=[1], layers_pattern="layer"), backbone).lowest() == 1
    norm = PEFT({"peft_type": "LN_TUNING", "target_modules": ["norm"]})  # after the last block
    assert attached(norm, tiny("vit")).lowest() == 0


def test_module_names_go_beside_roles() -> None:
    backbone = tiny("vit")
    module = attached(lora(target_modules=["attn.q", "embed"]), backbone)
    assert set(module.paths.values()) == {"blocks.0.attention.q", "blocks.1.attention.q", "embed"}
    assert module.lowest() == 0
    assert torch.equal(module.features(backbone, samples(backbone, 0)), backbone(samples(backbone, 0)))


@pytest.mark.parametrize(
    ("config", "told", "option"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "take 'prefix' of ours", "config.peft_type"),
        ({"peft_type": "PROMPT_TUNING"}, "take 'prompt' of ours", "config.peft_type"),
        ({"peft_type": "P_TUNING"}, "take 'p_tuning' of ours", "config.peft_type"),
        ({"peft_type": "LORRA"}, "did you mean 'LORA'", "config.peft_type"),
        ({}, "'peft_type' is 'missing'", "config"),
        ({"peft_type": "ADALORA"}, "calls of its own", "config.peft_type"),
        ({"peft_type": "LILY"}, "what else is in its batch", "config.peft_type"),
        ({"peft_type": "LORA", "lora_alfa": 3}, "did you mean 'lora_alpha'", "config.lora_alfa"),
        ({"peft_type": "LORA", "bias": "all"}, "the backbone's own biases", "config.bias"),
        ({"peft_type": "LORA", "modules_to_save": ["norm"]}, "each task has one here", "config.modules_to_save"),
    ],
)
def test_what_cannot_work_is_refused_in_words(config: dict[str, Any], told: str, option: str) -> None:
    with pytest.raises(OptionError, match=told) as refused:
        PEFT(config)
    assert refused.value.option == option


@pytest.mark.parametrize(
    ("backbone", "config", "told"),
    [
        ("vit", {"peft_type": "LORA", "target_modules": ["attn.q"], "init_lora_weights": "pissa"}, "own weights"),
        ("vit", {"peft_type": "LORA", "target_modules": ["atn.q"]}, "not found"),
        ("vit", {"peft_type": "LORA"}, "target_modules"),
        ("vit", {"peft_type": "LORA", "target_modules": ["attn.q"], "r": 0}, "positive"),
        ("gpt2", {"peft_type": "LORA", "target_modules": ["attn.q", "attn.v"]}, "name all three"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(backbone: str, config: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        PEFT(config).attach(tiny(backbone))


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(contract.importlib, "import_module", absent)
    with pytest.raises(OptionError, match=r"peft is not installed: install forgetlab\[peft\]"):
        lora()


SCENARIO = (
    "name: tiny\n"
    "scenario: {name: split_digits, setting: task-incremental, n_tasks: 5}\n"
    "model: {name: vit, width: 16, depth: 1, patch: 4}\n"
    "strategies: [isolation: {name: peft, config: {peft_type: %s, target_modules: [attn.q]}}]\n"
)


def test_a_scenario_file_holds_its_keys_and_points_at_a_wrong_one(tmp_path: Path) -> None:
    file = tmp_path / "peft.yaml"
    file.write_text(SCENARIO % "IA3, feedforward_modules: []")
    (entry,) = load(file).strategies
    assert entry.isolation == {
        "name": "peft",
        "config": {"peft_type": "IA3", "feedforward_modules": [], "target_modules": ["attn.q"]},
    }
    file.write_text(SCENARIO % "LORA, rank: 4")
    with pytest.raises(FileErrors, match=r"LORA has no key 'rank'"):
        load(file)
