"""What a task costs, measured in a run and told in the tables."""

from __future__ import annotations

import json

import pytest

from forgetlab.checks.backbones import tiny
from forgetlab.costs.ledger import change, count
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Protocol, Strategy
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.metrics import definition_texts, price_definitions
from forgetlab.plugins.registry import build
from forgetlab.report import number_format, price_table, summary, tables
from forgetlab.report.summary import Finished
from forgetlab.results.store import Result
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


def test_the_table_shows_what_was_measured(lora: Result) -> None:
    summaries = summary.summarise([Finished(lora, {"processor_seconds": 1.0, "latency": 1.25})])
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
    cells = summary.summarise([Finished(lora, {"latency": 1.0, "processor_seconds": 1.0})])[0].cells
    assert cells.get(name) is not None


@pytest.mark.slow
def test_equal_runs_tell_equal_prices(lora: Result) -> None:
    spec = {"name": "lora", "rank": 2, "sites": ["mlp.in"]}
    again = run(Strategy(name="lora", isolation=spec, router={"name": "oracle"}))
    assert json.dumps(again.counts, sort_keys=True) == json.dumps(lora.counts, sort_keys=True)
