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
from forgetlab.costs import ledger
from forgetlab.isolation import module as contract
from forgetlab.isolation.network import Merged
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.combined import Combined
from forgetlab.strategies.isolation.modules.low_rank.lora import LoRA
from forgetlab.strategies.isolation.modules.low_rank.qlora import QLoRA
from forgetlab.strategies.isolation.modules.peft import PEFT
from helpers.modules import attached, features

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
    "options",
    [
        {"peft_type": "LORA", "target_modules": ["attn.q", "embed"]},  # one of them outside of the blocks
        {"peft_type": "LN_TUNING", "target_modules": ["norm_attention", "norm"]},  # they take the base layer's place
    ],
    ids=["outside", "norms"],
)
@torch.no_grad()
def test_what_else_they_change_is_merged_too(options: dict[str, Any]) -> None:
    backbone, x = tiny("vit"), samples(tiny("vit"), 0)
    module = attached(PEFT(options), backbone, spread=0.3).eval()
    answers, changes = module.features(backbone, x), module.changes()
    assert (answers - backbone(x)).abs().max() > 0.1 and any(name.startswith("whole-0.") for name in changes)
    torch.testing.assert_close(Merged([module], changes).eval().features(backbone, x), answers, rtol=1e-5, atol=1e-5)
    assert sum(int((change != 0).sum()) for change in changes.values()) > 0


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


def prices(module: Any, backbone: nn.Module) -> dict[str, float | None]:
    return ledger.change(module, ledger.count(backbone))


def same_weights(theirs: PEFT, ours: LoRA, name: str) -> None:
    """Give ours the factors of theirs, slice by slice where a layer is fused."""
    layers: dict[str, Any] = {path: theirs.parts[key] for key, path in theirs.paths.items()}
    for site in ours.sites:
        part: Any = ours.parts[site.key]
        layer = layers[site.path]
        part.A.data = layer.lora_A["default"].weight.data.clone()
        part.B.data = layer.lora_B["default"].weight.data[site.part].clone()


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "timm"])
def test_their_lora_changes_what_ours_does_and_costs_the_same(name: str) -> None:
    at: tuple[Any, ...] = ("attn.q", "attn.k", "attn.v")
    backbone = tiny(name)
    theirs, ours = (
        attached(lora(target_modules=[*at]), backbone, spread=0.3),
        attached(LoRA(rank=3, alpha=6.0, sites=at), backbone),
    )
    same_weights(theirs, ours, name)
    found, wanted = theirs.changes(), ours.changes()
    assert found.keys() == wanted.keys()
    for key, change in wanted.items():
        torch.testing.assert_close(found[key], change, atol=1e-6, rtol=1e-5)
    paid = prices(theirs, backbone)
    assert paid == prices(ours, backbone)
    assert (paid["changed_share"] or 0) > 0 and paid["rank"] == 3
    merged = features(Merged([theirs], found), backbone)
    torch.testing.assert_close(merged, features(theirs, backbone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_else_they_have_is_merged_as_they_do_or_not_at_all(name: str) -> None:
    backbone = tiny("vit")
    module = attached(PEFT({"target_modules": ATTENTION, **CONFIGS[name]}), backbone, spread=0.1)
    changes = module.changes()
    assert changes, "peft can merge it"
    gap = (features(Merged([module], changes), backbone) - features(module, backbone)).abs().max()
    assert gap < 1e-4 and (features(module, backbone) - backbone(samples(backbone, 0))).abs().max() > 1e-4


def test_a_combination_has_changed_what_its_lora_has() -> None:
    backbone = tiny("vit")
    alone = attached(LoRA(rank=2), backbone, spread=0.3)
    beside = attached(Combined(("prefix", {"name": "lora", "rank": 2})), backbone, spread=0.3)
    assert beside.changes() == {}, "a prefix is no change of weights"
    paid, wanted = prices(beside, backbone), prices(alone, backbone)
    assert (paid["changed_share"], paid["rank"]) == (wanted["changed_share"], 2)
    twice = attached(Combined(({"name": "lora", "rank": 2}, {"name": "lora", "rank": 1})), backbone, spread=0.3)
    assert prices(twice, backbone)["rank"] == 3, "two changes of one weight add up"


def test_what_quantising_took_is_a_change_too() -> None:
    backbone = tiny("vit")
    module = attached(QLoRA(rank=2), backbone)
    assert module.changed_weights() == {}, "before its first task"
    module.begin([], [], {}, backbone)
    paid = prices(module, backbone)
    linear = sum(site.weight.numel() for site in module.sites) / ledger.count(backbone)
    assert 0.9 * linear < (paid["changed_share"] or 0) <= linear
    site = module.sites[0]
    x = torch.randn(5, site.in_dim)
    attached_answer = module.after(module.parts[site.key], site, x, x.new_zeros(5, site.out_dim))
    changed = nn.functional.linear(x, site.weight + module.changed_weights()[f"{site.key}.weight"], site.bias)
    torch.testing.assert_close(changed, attached_answer, atol=1e-5, rtol=1e-5)
