"""The bench: its rows on a tiny work, and that the bare loop it compares with does the same work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import bare, encoder_rows, long, ours
from benchmarks.encoder_rows import TextWork
from benchmarks.measure import Aim, Comparison
from benchmarks.rows import Work, comparisons
from forgetlab.config.load import load
from forgetlab.data.datasets import Samples
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.training.heads import Head
from forgetlab.training.network import SharedNetwork

KEYS = {"name", "work", "pairs", "ours", "theirs", "ratio", "aim", "holds", "difference"}


@pytest.fixture(scope="module")
def work() -> Work:
    """Three tasks of two classes each; the pixels are noise."""
    draw = torch.Generator().manual_seed(0)

    def task(i: int, n: int) -> Samples:
        return Samples(
            torch.randint(0, 256, (n, 1, 4, 4), generator=draw, dtype=torch.uint8), 2 * i + torch.arange(n) % 2
        )

    tasks = tuple(Task(str(i), task(i, 20), task(i, 10), (2 * i, 2 * i + 1)) for i in range(3))
    scenario = Scenario(tasks, tuple("abcdef"), task_known_at_test=False)
    return Work(
        "noise", scenario, hidden=6, batch_size=8, memory=8, fisher_samples=16, looped_samples=(4, 4), pairs=(1, 1)
    )


@pytest.mark.slow
def test_every_row_is_measured(work: Work) -> None:
    rows = [comparison.row() for comparison in comparisons(work)]
    assert len(rows) == len({row["name"] for row in rows}) == 12
    for row in rows:
        assert row.keys() == KEYS and row["ratio"] > 0 and row["work"].startswith("noise, ")
    differences = [row["difference"] for row in rows if row["difference"] is not None]
    assert len(differences) == 2 and max(differences) < 1e-5  # of the exact and the predicted Fisher information


def test_the_bare_loop_ends_in_the_same_weights_to_the_bit(work: Work) -> None:
    with ours.globals_of_the_engine():
        learner = work.learner()
        network = bare_twin(learner.network, work)
        for task in (0, 1):
            learner.learn(task)
    orders = [torch.randperm(20, generator=generator("order", 0, task, 0)) for task in (0, 1)]
    bare.train(network, work.tensors, orders, work.batch_size)
    twins = [*network.layers.parameters(), network.weight, network.bias]
    for trained, twin in zip(learner.network.parameters(), twins, strict=True):
        assert torch.equal(trained, twin)


def bare_twin(network: object, work: Work) -> bare.Bare:
    """The bare loop's network with the start of ours."""
    assert isinstance(network, SharedNetwork)
    twin = bare.mlp(work.n_inputs, work.scenario.n_classes, work.hidden)
    for own, start in zip(twin.layers.parameters(), network.backbone.parameters(), strict=True):
        own.data.copy_(start.data)
    rows = Head(work.hidden, seed=0)
    rows.grow(range(work.scenario.n_classes))
    twin.start = rows.weight.detach(), rows.bias.detach()
    return twin


def test_a_ratio_is_the_median_of_the_pairs_and_the_warm_up_is_not_counted() -> None:
    mine, others = iter([100.0, 1.0, 2.0, 3.0]), iter([1.0, 4.0, 4.0, 18.0])
    row = Comparison("a", "b", lambda: next(mine), lambda: next(others), Aim("theirs / ours", ">=", 4), pairs=3).row()
    assert (row["ours"], row["theirs"], row["ratio"], row["holds"]) == (2, 4, 4, True)
    assert row["aim"] == "theirs / ours >= 4"


@pytest.mark.parametrize(
    ("aim", "ratio", "holds"),
    [
        (Aim("ours / theirs", "<=", 1.1), 1.1, True),
        (Aim("ours / theirs", "<", 1), 1.0, False),
        (Aim("theirs / ours", ">=", 4), 3.9, False),
        (Aim("theirs / ours"), 0.1, None),
    ],
)
def test_an_aim_says_what_has_to_hold(aim: Aim, ratio: float, holds: bool | None) -> None:
    assert aim.holds(ratio) is holds


@pytest.mark.slow
def test_the_encoders_rows_are_measured() -> None:
    """Two layers, few texts of noise: that each row does its work; what it takes is not looked at."""
    ids = torch.randint(1000, 2000, (16, 8), generator=torch.Generator().manual_seed(0))
    samples = Samples(ids.int(), torch.arange(16) % 2)
    scenario = Scenario((Task("0", samples, samples, (0, 1)),), ("a", "b"), True, tokenizer="minilm")
    work = TextWork("noise", scenario, epochs=2, batch_size=4, layers=1, steps=2, pairs=1)
    rows = [comparison.row() for comparison in encoder_rows.comparisons(work)]
    assert len(rows) == len({row["name"] for row in rows}) == 5
    assert all(row["ratio"] > 0 and "n = 16, 8 tokens, batch 4" in row["work"] for row in rows)
    assert "kept 0.0 MiB" in rows[0]["work"]  # 16 x 384 numbers


@pytest.mark.slow
def test_a_long_stream_is_measured_task_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(
        "name: long\nscenario: {name: split_digits, n_tasks: 5}\nmodel: {name: mlp, hidden: [8]}\n"
        "references: [naive, ridge]\nstrategies: [replay: {memory: reservoir, capacity: 50}]\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(long, "EARLY", slice(1, 3))
    monkeypatch.setattr(long, "LATE", slice(-2, None))
    experiment = load(file)
    rows = [long.measured(experiment.run(entry, 0)) for entry in experiment.entries if long.trains(entry)]
    assert [row["name"] for row in rows] == ["naive", "reservoir"], "a closed form takes no steps"
    kept = 50 * (64 * 4 + 2 * 8)
    for row, expected in zip(rows, (0, kept), strict=True):
        assert row["tasks"] == 5 and row["ratio"] > 0 and row["early"] > 0
        assert row["kept_early"] == row["kept_late"] == expected
