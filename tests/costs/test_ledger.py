"""What a task costs, measured in a run and told in the tables."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from forgetlab.checks.backbones import tiny
from forgetlab.costs.ledger import STEP, change, count
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Protocol, Strategy
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.metrics import definition_texts, price_definitions
from forgetlab.plugins.registry import build
from forgetlab.report import number_format, price_table, summary, tables
from forgetlab.report.summary import Finished
from forgetlab.results.store import Result
from forgetlab.strategies.isolation.modules.combined import Combined
from helpers.modules import attached
from helpers.runs import description

SIZE = 64 * 16 + 16 + 16 * 16 + 16  # of the mlp


def run(strategy: Strategy) -> Result:
    told = Protocol(task_known_at_test=True, budget=Budget(epochs=1))
    scenario = {"name": "split_digits", "setting": "task-incremental", "n_tasks": 5}
    model = {"name": "mlp", "hidden": [16, 16]}
    return one_run.run(description(strategy, scenario=scenario, model=model, protocol=told))


@pytest.fixture(scope="module")
def lora() -> Result:
    spec = {"name": "lora", "rank": 2, "sites": ["mlp.in"]}
    return run(Strategy(name="lora", isolation=spec, router={"name": "oracle"}))


def test_each_price_of_lora_is_what_its_definition_gives(lora: Result) -> None:
    paid, total = lora.counts["per_task"], lora.counts["total"]
    parts, head = 2 * (64 + 16) + 2 * (16 + 16), 2 * (16 + 1)
    assert total["backbone_parameters"] == SIZE
    assert paid["trainable"] == [parts + head] * 5
    assert paid["task_bytes"] == [4 * (parts + head)] * 5
    assert paid["shared_bytes"] == [0] * 5
    assert paid["rank"] == [2] * 5 and all(1 <= rank <= 2 for rank in paid["rank_90"])
    weights = 64 * 16 + 16 * 16
    assert all(0.3 * weights < moved <= weights for moved in paid["changed"])  # units that never fire stay
    forward = 2 * (64 * 16 + 16 * 16 + parts + 16 * 2)
    assert paid["flops_forward"] == [forward] * 5


def test_full_training_costs_twice_as_much_backward() -> None:
    paid = run(Strategy(name="naive", reference={"name": "naive"})).counts["per_task"]
    first_layer_needs_no_input_gradient = 2 * 64 * 16
    assert paid["flops_backward"] == [2 * f - first_layer_needs_no_input_gradient for f in paid["flops_forward"]]
    assert paid["task_bytes"] == [None] * 5  # one network for all


def test_measuring_changes_no_number(monkeypatch: pytest.MonkeyPatch, lora: Result) -> None:
    from forgetlab.costs import ledger
    from forgetlab.learners import counts

    monkeypatch.setattr(ledger.Ledger, "before_training_exp", lambda self, strategy: self.steps.append({}))
    monkeypatch.setattr(ledger.Ledger, "after_training_exp", lambda self, strategy: None)
    monkeypatch.setattr(counts, "STEP", ())
    spec = {"name": "lora", "rank": 2, "sites": ["mlp.in"]}
    assert run(Strategy(name="lora", isolation=spec, router={"name": "oracle"})).accuracy == lora.accuracy


@pytest.mark.slow
def test_what_only_adds_has_changed_nothing_and_has_no_rank() -> None:
    backbone = tiny("bert")
    model = IsolatedNetwork(backbone, lambda: build("isolation", "adapter"))
    model.open(0, [0, 1])
    paid = change(model.module_of(0), count(backbone))
    assert paid == {"changed": 0, "changed_share": 0.0, "rank": None, "rank_90": None}


def paid_on_vit(isolation: Any) -> dict[str, Any]:
    told = Protocol(task_known_at_test=True, budget=Budget(epochs=1))
    scenario = {"name": "split_digits", "setting": "task-incremental", "n_tasks": 2}
    model = {"name": "vit", "width": 16, "depth": 1, "patch": 4}
    strategy = Strategy(name="one", isolation=isolation, router={"name": "oracle"})
    return one_run.run(description(strategy, scenario=scenario, model=model, protocol=told)).counts["per_task"]


@pytest.mark.slow
def test_pefts_lora_has_the_prices_of_ours() -> None:
    sites = ["attn.q", "attn.v", "mlp.in"]
    ours = paid_on_vit({"name": "lora", "rank": 2, "alpha": 4.0, "sites": sites})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sites}
    theirs = paid_on_vit({"name": "peft", "config": config})
    prices = ("trainable", "task_bytes", "shared_bytes", "changed", "changed_share", "rank")
    assert {name: theirs[name] for name in prices} == {name: ours[name] for name in prices}
    assert {name: theirs[name] for name in STEP} == {name: ours[name] for name in STEP}
    matrices = 2 * 16 * 16 + 64 * 16
    assert ours["rank"] == [2, 2]
    assert all(0.9 * matrices < moved <= matrices for moved in ours["changed"])


def test_a_combination_has_changed_what_its_parts_change() -> None:
    backbone = tiny("vit")
    on = {"name": "lora", "rank": 2, "sites": ["attn.q"]}
    alone = change(attached(Combined((on,)), backbone, spread=0.3), 1000)
    assert alone == {"changed": 512, "changed_share": 0.512, "rank": 2, "rank_90": alone["rank_90"]}
    for beside in ("prefix", "adapter", "mad_x"):
        both = attached(Combined((beside, on)), backbone)
        for member in both.members[1:]:
            attached(member, backbone, spread=0.3)
        assert change(both, 1000) == alone, beside
    both = attached(Combined((on, {"name": "lora", "rank": 3, "sites": ["attn.v", "mlp.in"]})), backbone, spread=0.3)
    assert change(both, 1000) | {"rank_90": 0} == {
        "changed": 3072,
        "changed_share": 3.072,
        "rank": 3,
        "rank_90": 0,
    }


ON_KEYS = {"name": "lora", "sites": ["attn.k"]}
THEIRS = {"name": "peft", "config": {"peft_type": "LORA", "target_modules": ["attn.k"]}}


@pytest.mark.parametrize("parts", [(ON_KEYS, "ia3"), (ON_KEYS, THEIRS), ("ia3", "bitfit")], ids=["ia3", "peft", "bias"])
def test_what_two_make_of_one_weight_is_not_told(parts: Any) -> None:
    both = attached(Combined(parts), tiny("vit"), spread=0.3)
    assert change(both, 1000) == dict.fromkeys(("changed", "changed_share", "rank", "rank_90"))


def test_a_quantised_base_is_a_change_too() -> None:
    backbone = tiny("vit")
    module = attached(build("isolation", "qlora", {"rank": 2, "sites": ["attn.q"]}), backbone, spread=0.3)
    module.begin([], [], {}, backbone)
    paid = change(module, 1000)
    assert paid["changed"] == 2 * 16 * 16 and paid["rank"] == 16
    with torch.no_grad():
        x = torch.randn(4, 16)
        for site in module.sites:
            weight = site.weight + module.changed_weights()[f"{site.key}.weight"]
            found = module.after(module.parts[site.key], site, x, x)
            torch.testing.assert_close(found, torch.nn.functional.linear(x, weight, site.bias))
    assert module.changes() == {}, "mergers would add the base's rounding once for each task"


def test_the_table_shows_what_was_measured(lora: Result) -> None:
    summaries = summary.summarise([Finished(lora, {"seconds": 1.0, "latency": 1.25})])
    columns = price_table.price_columns(summaries)
    assert columns["strategy"] == ["lora"]
    assert columns["latency"] == ["1.25"]
    assert columns["of the backbone"] == [number_format.percent(lora.counts["per_task"]["task_bytes"][0] / (4 * SIZE))]
    assert tables.PRICE in tables.markdown(summaries, "title")
    bare = summary.summarise([Finished(run(Strategy(name="naive", reference={"name": "naive"})), {})])
    assert price_table.price_columns(bare) == {} and tables.PRICE not in tables.markdown(bare, "title")


@pytest.mark.parametrize("name", price_definitions.PRICES)
def test_each_price_is_defined(name: str, lora: Result) -> None:
    assert definition_texts.describe_metric(name).startswith(f"{name}: a price")
    cells = summary.summarise([Finished(lora, {"latency": 1.0})])[0].cells
    assert cells.get(name) is not None


@pytest.mark.slow
def test_equal_runs_tell_equal_prices(lora: Result) -> None:
    spec = {"name": "lora", "rank": 2, "sites": ["mlp.in"]}
    again = run(Strategy(name="lora", isolation=spec, router={"name": "oracle"}))
    assert json.dumps(again.counts, sort_keys=True) == json.dumps(lora.counts, sort_keys=True)
