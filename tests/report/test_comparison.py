"""Paired differences and ranks as they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from scipy import stats

from forgetlab.report import comparison, tables
from forgetlab.report.comparison import Question
from forgetlab.report.summary import Finished
from forgetlab.results.store import Result
from helpers.commands import invoke

FINALS = {
    "naive": (0.20, 0.22, 0.21),
    "joint": (0.80, 0.80, 0.81),
    "er": (0.60, 0.63, 0.61),
    "ewc": (0.20, 0.25, 0.19),
    "lwf": (0.201, 0.2205, 0.2105),
    "lora": (0.9, 0.9, 0.9),
}


def run(name: str, final: float, seed: int) -> Finished:
    reference = name in ("naive", "joint")
    result = Result(
        strategy=name,
        family="reference" if reference else "replay",
        task_identity="told" if name == "lora" else "none",
        seed=seed,
        overrides={},
        protocol={},
        task_names=["a"],
        classes_per_task=[[0, 1]],
        test_sizes=[100],
        accuracy=[[final]],
        accuracy_initial=[None],
    )
    return Finished(result, {})


@pytest.fixture
def finished() -> list[Finished]:
    return [run(name, final, seed) for name, finals in FINALS.items() for seed, final in enumerate(finals)]


def test_strategies_are_held_against_one_and_corrected_for_their_number(finished: list[Finished]) -> None:
    (part,) = comparison.differences(finished, Question("naive", margin=0.05))
    gaps = [ours - naive for ours, naive in zip(FINALS["er"], FINALS["naive"], strict=True)]
    alone, together = (stats.ttest_1samp(gaps, 0).confidence_interval(level) for level in (0.95, 1 - 0.05 / 3))
    assert part.columns["strategy"] == ["er", "ewc", "lwf"], "joint is a reference, lora is told the task"
    assert part.columns["difference (95 %, alone)"][0] == f"+0.403 [{alone.low:+.3f}, {alone.high:+.3f}]"
    assert part.columns["95 % together"][0] == f"[{together.low:+.3f}, {together.high:+.3f}]"
    assert part.columns["is"] == ["above", "open", "open"]
    assert part.columns["within ±0.05"] == ["not shown", "not shown", "shown"]
    assert "a family of 3 comparisons" in part.foot and "98.33 %" in part.foot and "Bonferroni" in part.foot
    assert "TOST" in part.foot and "Not compared (the task known otherwise, or no value): lora" in part.foot
    assert "p =" not in part.foot and "p <" not in part.foot, "three seeds carry no p"


def test_without_a_margin_nothing_is_called_equal(finished: list[Finished]) -> None:
    (part,) = comparison.differences(finished, Question("naive"))
    assert not [header for header in part.columns if "within" in header]
    assert "open is not equal" in part.foot


def test_a_reference_may_be_held_against_and_a_seed_may_lack(finished: list[Finished]) -> None:
    without = [one for one in finished if (one.result.strategy, one.result.seed) != ("er", 2)]
    (part,) = comparison.differences(without, Question("joint"))
    assert part.columns["difference (95 %, alone)"][0].endswith("(n = 2)")


def test_ranks_are_told_for_each_section_apart(finished: list[Finished]) -> None:
    first, told = comparison.ranks(finished, "average_accuracy")
    assert first.columns["strategy"] == ["naive", "joint", "er", "ewc", "lwf"]
    assert first.columns["rank [95 %]"] == ["5 [3, 5]", "1 [1, 1]", "2 [2, 2]", "3 [3, 5]", "4 [3, 5]"]
    assert told.columns["rank [95 %]"] == ["1 [1, 1]"]
    assert "10 pairs" in first.foot and "Mogstad" in first.foot


@pytest.mark.parametrize(
    ("question", "told"),
    [
        (Question("nave"), "no strategy 'nave'; did you mean 'naive'?"),
        (Question("naive", "forgeting"), "no metric 'forgeting'; did you mean 'forgetting'?"),
        (Question("naive", "router_accuracy"), "'naive' does not define this metric"),
        (Question("lora"), "no strategy is there to hold against 'lora' by 'average_accuracy'"),
    ],
)
def test_what_cannot_be_answered_is_told(finished: list[Finished], question: Question, told: str) -> None:
    with pytest.raises(LookupError) as error:
        comparison.differences(finished, question)
    assert error.value.args[0] == told


def test_markdown_and_screen_take_the_same_parts(finished: list[Finished]) -> None:
    text = tables.in_markdown(comparison.differences(finished, Question("naive")), "x")
    assert text.startswith("## x\n\n### Average accuracy (final) minus naive. No task identity used\n\n| strategy |")


FILE = """
name: small
scenario: {name: split_digits, setting: class-incremental, n_tasks: 2}
model: {name: mlp, hidden: [8]}
protocol: {budget: {updates: 3}}
references: [naive]
strategies:
  - replay: {memory: reservoir, capacity: 20}
  - regularization: lwf
seeds: [0, 1]
"""


@pytest.mark.slow
def test_the_command_compares_what_was_run(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(FILE, encoding="utf-8")
    runs = ["--runs", str(tmp_path / "runs")]
    assert invoke("run", str(tmp_path / "file.yaml"), "--no-tracking", *runs).exit_code == 0
    asked = invoke("compare", "small", "--against", "naive", "--margin", "0.02", "--ranks", "--markdown", *runs)
    assert asked.exit_code == 0, asked.output
    assert "minus naive" in asked.output and "within ±0.02" in asked.output and "rank [95 %]" in asked.output
    assert "| reservoir |" in asked.output and "| lwf |" in asked.output
    assert "family of 2 comparisons" in asked.output
    on_screen = invoke("compare", "small", "--against", "naive", *runs)
    assert on_screen.exit_code == 0 and "family of 2" in on_screen.output
    assert yaml.safe_load(FILE)["seeds"] == [0, 1] and "n = 2 seeds, paired" in asked.output
    for wrong, told in (
        (["--margin", "0.1"], "'--margin' goes with '--against STRATEGY'"),
        (["--metric", "forgetting"], "'--metric' goes with"),
        (["--against", "naive", "--margin", "0"], "'--margin' is above 0"),
        (["--against", "nave"], "did you mean 'naive'?"),
    ):
        refused = invoke("compare", "small", *wrong, *runs)
        assert refused.exit_code != 0 and told in refused.output
