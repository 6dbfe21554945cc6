"""The text and the table experiment end to end, with the same entries on fewer samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forgetlab.config.load import load
from forgetlab.config.yaml_reader import parse, to_text
from forgetlab.engine import all_runs
from forgetlab.results.store import Result, Store
from helpers.paths import EXPERIMENTS


def results(name: str, folder: Path, **scenario: Any) -> dict[str, Result]:
    """One seed of an experiment, its scenario's options changed."""
    document = parse(EXPERIMENTS / f"{name}.yaml").data
    document["scenario"] |= scenario
    path = folder / f"{name}.yaml"
    path.write_text(to_text(document | {"seeds": [0], "device": "cpu"}))
    found = [run.result() for run in all_runs.carry_out(load(path), Store(folder / "runs"))]
    return {result.strategy: result for result in found if result is not None}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    few = {"samples_per_task": 32, "test_samples_per_task": 24, "n_tasks": 2}
    return results("text_reuters", tmp_path_factory.mktemp("text"), **few)


@pytest.mark.slow
def test_the_pretrained_encoder_is_fine_tuned_by_every_entry(text: dict[str, Result]) -> None:
    assert text.keys() == {"naive", "joint", "ridge", "reservoir", "lwf"}
    for result in text.values():
        assert result.finished and None not in result.accuracy[-1]
    for name in ("naive", "joint", "reservoir", "lwf"):
        assert text[name].counts["total"]["trainable"] > 22_000_000
    assert text["reservoir"].counts["total"]["samples_replayed"] > 0


@pytest.mark.slow
def test_pretrained_features_know_the_topics(text: dict[str, Result]) -> None:
    """Eight topics, 32 stories of each task: what a ridge on the frozen encoder makes of them."""
    assert (text["ridge"].metrics["average_accuracy"] or 0) > 0.6
    assert (text["naive"].accuracy[0][0] or 0) > 0.5


@pytest.mark.slow
def test_tables_run_with_all_three_families(tmp_path: Path) -> None:
    found = results("flights", tmp_path, samples_per_task=400, test_samples_per_task=300, n_tasks=3)
    assert {result.family for result in found.values()} >= {"reference", "replay", "regularization", "isolation"}
    for name, result in found.items():
        assert result.finished and result.task_names[0] == "2013-01,2013-02,2013-03,2013-04"
        for row in result.scores["auroc"]:
            assert all(value is None or 0.3 < value < 0.9 for value in row)
        online = name not in ("joint", "separate", "ridge", "lora+entropy")
        assert (result.metrics.get("prequential_accuracy") is not None) == online
        assert ("log_loss" in result.scores) == (name != "ridge")
