"""Modules in a list: they act in their order, each with its own tensors, and MAM is two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples, tiny
from forgetlab.config.load import load
from forgetlab.engine import one_run
from forgetlab.isolation.network import IsolatedNetwork, Merged
from forgetlab.metrics.accuracy_matrix import forgetting, learning_accuracy
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.combined import Combined
from forgetlab.strategies.isolation.modules.prompts.prefix import Prefix
from helpers.modules import attached, features

ON_VALUES: dict[str, Any] = {"name": "lora", "rank": 2, "sites": ["attn.v"]}
ON_QUERIES: dict[str, Any] = {"name": "lora", "rank": 2, "sites": ["attn.q"]}
MAM = (
    "name: tiny\n"
    "scenario: {name: split_digits, setting: task-incremental, n_tasks: 5}\n"
    "model: {name: vit, width: 16, depth: 1, patch: 4}\n"
    "protocol: {budget: {epochs: 2}}\n"
    "train: {lr: 1e-2, batch_size: 32}\n"
    "strategies:\n"
    "  - name: mam\n"
    "    isolation: [{name: prefix, length: 30}, {name: unified, bottleneck: 8, scale: %s}]\n"
)


def mam(tmp_path: Path, scale: float) -> Any:
    file = tmp_path / "mam.yaml"
    file.write_text(MAM % scale)
    return load(file)


@pytest.mark.slow
def test_mam_is_a_list_of_two_in_a_scenario_file(tmp_path: Path) -> None:
    experiment = mam(tmp_path, 4.0)
    result = one_run.run(experiment.run(experiment.strategies[0], 0), lambda event: None)
    assert forgetting(result.accuracy) == 0.0
    assert (learning_accuracy(result.accuracy) or 0) > 0.8  # chance is 0.5
    prefix = 30 * 16 + 16 * 512 + 512 + 512 * 2 * 16 + 2 * 16
    assert result.counts["per_task"]["trainable"] == [prefix + 2 * 8 * 16 + 8 + 16 + 2 * 16 + 2] * 5


def test_mam_without_scale_is_its_prefix_to_the_bit(tmp_path: Path) -> None:
    for scale in (0.0, 4.0):
        spec = dict(mam(tmp_path, scale).strategies[0].isolation)
        backbone = tiny("vit")
        both = attached(registry.build("isolation", spec.pop("name"), spec), backbone, spread=0.3)
        alone = attached(Prefix(length=30), backbone, spread=0.3)
        alone.load_state_dict(both.members[0].state_dict())
        same = torch.equal(features(both, backbone), features(alone, backbone))
        assert same == (scale == 0.0)


def test_what_one_leaves_at_a_site_the_next_one_finds_there() -> None:
    adapters: Any = [{"name": "adapter", "bottleneck": 3, "sites": ["mlp.in"]} for _ in range(2)]
    backbone = tiny("mlp")
    module = attached(Combined(tuple(adapters)), backbone, spread=0.3)
    h = samples(backbone, 0).flatten(1)
    for i, layer in enumerate(backbone.get_submodule("layers").children()):
        h = layer.get_submodule("0")(h)
        for member in module.members:
            h = h + member.parts[f"mlp_in-{i}"](h)
        h = h.relu()
    torch.testing.assert_close(features(module, backbone), h)
    swapped = Combined(tuple(adapters))
    swapped.attach(backbone)
    swapped.load_state_dict({f"members.{1 - int(n[8])}{n[9:]}": t for n, t in module.state_dict().items()})
    assert (features(swapped, backbone) - h).abs().max() > 1e-2  # the order counts


def test_its_flags_are_what_its_members_flags_make() -> None:
    def flags(*parts: Any) -> list[bool]:
        module = Combined(parts)
        return [module.identity_at_birth, module.draws, module.asks, module.speaks_for_all, module.siteless]

    assert flags("lora", "lora") == [True, False, False, False, False]
    assert flags("lora", "adapter") == [False, False, False, False, False]
    assert flags({"name": "lora", "dropout": 0.1}, "lora") == [True, True, False, False, False]
    assert flags("lora", "l2p") == [False, False, True, True, False]
    assert flags("linear_probe") == [True, False, False, False, True]


def test_a_query_is_handed_on_and_penalties_are_summed() -> None:
    backbone = tiny("vit")
    module = attached(Combined(("lora", "coda_prompt", "l2p")), backbone, spread=0.3)
    module.query = backbone(samples(backbone, 0))
    features(module, backbone)
    first, second = (member.penalty() for member in module.members[1:])
    assert torch.equal(module.penalty(), first + second) and first != second
    assert Combined(("lora", "lora")).penalty() is None


def test_each_member_keeps_its_own_of_what_belongs_to_all() -> None:
    parts: Any = [{"name": "mad_x", "invertible": False}, {"name": "mad_x", "invertible": False, "reduction": 4}]
    model = IsolatedNetwork(tiny("vit"), lambda: Combined(tuple(parts)), task_known=True)
    for task in range(2):
        isolation.train(model, task)
    names = {name.partition(".")[2] for name in model.shared}
    assert names and model.shared.keys() == {f"{i}.{name}" for i in range(2) for name in names}
    assert any(not torch.equal(model.shared[f"0.{name}"], model.shared[f"1.{name}"]) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("check", isolation.CHECKS)
@pytest.mark.parametrize("parts", [("mad_x", "lora"), ("o_lora", "unified"), ("ladder",)])
def test_other_pairs_keep_the_promises_too(parts: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "FAMILIES", ("bert",))
    check(Plugin("isolation", "combined", lambda: Combined(parts)))


def test_changes_of_different_weights_merge_and_those_of_the_same_do_not() -> None:
    backbone = tiny("vit")
    apart = attached(Combined((ON_QUERIES, ON_VALUES)), backbone, spread=0.3)
    changes = apart.changes()
    assert changes.keys() == {f"attn_{part}-{layer}.weight" for part in "qv" for layer in range(2)}
    merged = features(Merged([apart], changes), backbone)
    torch.testing.assert_close(merged, features(apart, backbone), rtol=0, atol=1e-4)
    assert attached(Combined((ON_QUERIES, ON_QUERIES)), backbone, spread=0.3).changes() == {}
    assert attached(Combined((ON_QUERIES, "adapter")), backbone, spread=0.3).changes() == {}


@pytest.mark.parametrize(
    ("parts", "told", "option"),
    [
        ((), "at least one", "parts"),
        (("lora", {"name": "lora", "layers": [7]}), "no layer 7", "parts.1.layers"),
        (("lora", "ladder"), "stands alone", "parts"),
        (("full", "selective"), "in the place of the same ones", "parts"),
    ],
)
def test_what_does_not_combine_is_refused(parts: Any, told: str, option: str) -> None:
    with pytest.raises(OptionError, match=told) as refused:
        Combined(parts).attach(tiny("vit"))
    assert refused.value.option == option


class Forgetful(Combined):
    """The break: what a member keeps for all tasks is thrown away."""

    def end(self, data: Any, previous: Any, shared: Any, backbone: nn.Module) -> None:
        for member, earlier, _ in self._each(previous, {}):
            member.end(data, earlier, {}, backbone)


@pytest.mark.slow
def test_a_member_whose_share_is_lost_is_found() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        isolation.survives_a_file(Plugin("isolation", "broken", lambda: Forgetful(("mad_x", "lora"))))


@pytest.mark.slow
def test_the_peft_backend_stands_beside_our_own() -> None:
    backbone = tiny("vit")
    config = {"peft_type": "LORA", "target_modules": ["attn.q"]}
    module = attached(Combined(({"name": "peft", "config": config}, ON_QUERIES)), backbone, spread=0.3)
    other = attached(Combined((ON_QUERIES, {"name": "peft", "config": config})), backbone, spread=0.3)
    theirs, ours = module.members
    other.members[0].load_state_dict(ours.state_dict())
    other.members[1].load_state_dict(theirs.state_dict())
    torch.testing.assert_close(features(module, backbone), features(other, backbone))  # both add to the same output
    assert (features(module, backbone) - features(theirs, backbone)).abs().max() > 1e-2
    assert (features(module, backbone) - features(ours, backbone)).abs().max() > 1e-2
