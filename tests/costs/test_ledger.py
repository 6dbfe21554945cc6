"""What a task costs, measured in a run and told in the tables."""

from __future__ import annotations

import json

import pytest

from forgetlab import definitions, engine, prices, report
from forgetlab.checks.backbones import tiny
from forgetlab.description import Budget, Protocol, Strategy
from forgetlab.isolated import IsolatedNetwork
from forgetlab.ledger import change, count
from forgetlab.plugins import build
from forgetlab.report import Finished
from forgetlab.store import Result
from helpers.runs import description

SIZE = 64 * 16 + 16 + 16 * 16 + 16  # of the mlp


def run(strategy: Strategy) -> Result:
    told = Protocol(task_known_at_test=True, budget=Budget(epochs=1))
    scenario = {"name": "split_digits", "setting": "task-incremental", "n_tasks": 5}
    model = {"name": "mlp", "hidden": [16, 16]}
    return engine.run(description(strategy, scenario=scenario, model=model, protocol=told))


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
    from forgetlab import learners

    monkeypatch.setattr(learners.Ledger, "before_training_exp", lambda self, strategy: self.steps.append({}))
    monkeypatch.setattr(learners.Ledger, "after_training_exp", lambda self, strategy: None)
    monkeypatch.setattr(learners, "STEP", ())
    spec = {"name": "lora", "rank": 2, "sites": ["mlp.in"]}
    assert run(Strategy(name="lora", isolation=spec, router={"name": "oracle"})).accuracy == lora.accuracy


@pytest.mark.slow
def test_what_only_adds_has_changed_nothing_and_has_no_rank() -> None:
    backbone = tiny("bert")
    model = IsolatedNetwork(backbone, lambda: build("isolation", "adapter"))
    model.open(0, [0, 1])
    paid = change(model.module_of(0), count(backbone))
    assert paid == {"changed": 0, "changed_share": 0.0, "rank": None, "rank_90": None}


def test_the_table_shows_what_was_measured(lora: Result) -> None:
    summaries = report.summarise([Finished(lora, {"seconds": 1.0, "latency": 1.25})])
    columns = prices.price_columns(summaries)
    assert columns["strategy"] == ["lora"]
    assert columns["latency"] == ["1.25"]
    assert columns["of the backbone"] == [prices.percent(lora.counts["per_task"]["task_bytes"][0] / (4 * SIZE))]
    assert report.PRICE in report.markdown(summaries, "title")
    bare = report.summarise([Finished(run(Strategy(name="naive", reference={"name": "naive"})), {})])
    assert prices.price_columns(bare) == {} and report.PRICE not in report.markdown(bare, "title")


@pytest.mark.parametrize("name", prices.PRICES)
def test_each_price_is_defined(name: str, lora: Result) -> None:
    assert definitions.describe_metric(name).startswith(f"{name}: a price")
    cells = report.summarise([Finished(lora, {"latency": 1.0})])[0].cells
    assert cells.get(name) is not None


@pytest.mark.slow
def test_equal_runs_tell_equal_prices(lora: Result) -> None:
    spec = {"name": "lora", "rank": 2, "sites": ["mlp.in"]}
    again = run(Strategy(name="lora", isolation=spec, router={"name": "oracle"}))
    assert json.dumps(again.counts, sort_keys=True) == json.dumps(lora.counts, sort_keys=True)
