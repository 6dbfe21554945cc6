"""The README's matrix of settings and data sets: each cell runs, or is refused for the reason printed below it.

``make readme`` writes the matrix anew.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from forgetlab.config.load import load
from forgetlab.config.yaml_reader import FileErrors, to_text
from forgetlab.data.datasets import Dataset, dataset
from forgetlab.engine import one_run
from forgetlab.experiment import Experiment
from helpers.paths import README

MARK = "<!-- table: matrix -->\n"
RUNS = "✓"
UNTOLD = {"head": "fixed", "loss_classes": "all", "reset_optimizer": False}

DATA = ("digits", "fashion_mnist", "mnist_5k", "animals", "japanese_vowels", "flights")
TEXT = ("bbc_news", "reuters_r8", "election_tweets")
SETTINGS: dict[str, dict[str, Any]] = {
    "class-incremental": {},
    "task-incremental": {"setting": "task-incremental"},
    "domain-incremental": {"setting": "domain-incremental"},
    "data-incremental": {"setting": "data-incremental"},
    "permuted domains": {"setting": "domain-incremental", "transform": "permutation"},
    "rotated domains": {"setting": "domain-incremental", "transform": "rotation"},
    "online": {"setting": "data-incremental", "online": True},
    "blurry, task-free": {"blurry": 0.2},
    "repetition": {"repetition": 0.5},
    "long-tailed": {"long_tail": 10.0},
    "label noise": {"setting": "data-incremental", "label_noise": 0.2},
    "few-shot": {"few_shot": {"base_classes": 3, "shots": 5}},
}
CELLS = [(setting, data) for setting in SETTINGS for data in (*DATA, *TEXT)]


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "data"), CELLS)
def test_a_cell_runs_or_is_refused_for_the_reason_told(
    setting: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = carried_out(setting, data, tmp_path, monkeypatch)
    printed, reasons = matrix()
    cell = printed[setting][data]
    assert outcome == (RUNS if cell == RUNS else reasons[cell])


def test_the_matrix_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ.get("FORGETLAB_WRITE_README"):
        write({cell: carried_out(*cell, tmp_path, monkeypatch) for cell in CELLS})
    printed, reasons = matrix()
    assert list(printed) == list(SETTINGS) and all(list(row) == [*DATA, *TEXT] for row in printed.values())
    cells = [cell for row in printed.values() for cell in row.values()]
    assert cells.count(RUNS) >= 30 and set(reasons) == set(cells) - {RUNS}


def carried_out(setting: str, data: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """RUNS, or why not; a file of its own, 48 training samples a task, naive fine-tuning and replay."""
    monkeypatch.setattr("forgetlab.scenarios.stream.dataset", read)
    options = SETTINGS[setting]
    n_tasks = {} if "few_shot" in options else {"n_tasks": tasks(setting, data)}
    few = {"samples_per_task": 48, "test_samples_per_task": 12}
    document = {
        "name": "cell",
        "scenario": {"name": "stream", "data": spec(data), **few, **n_tasks, **options},
        "model": {"name": "minilm", "layers": 1} if data in TEXT else {"name": "mlp", "hidden": [16]},
        "protocol": UNTOLD if "blurry" in options else {},
        "train": {"batch_size": 24},
        "references": ["naive"],
        "strategies": [{"replay": {"memory": "reservoir", "capacity": 20}}],
        "device": "cpu",
    }
    if "few_shot" in options:
        document["scenario"]["n_tasks"] = 2
    path = folder / "cell.yaml"
    path.write_text(to_text(document))
    try:
        experiment = load(path)
    except FileErrors as error:
        return str(error).splitlines()[0].split(": ", 1)[1]
    learned(experiment)
    return RUNS


def tasks(setting: str, data: str) -> int:
    """As many as the classes, or the rows' origins, allow."""
    options, n_classes = SETTINGS[setting], len(read(data).class_names)
    if options.get("setting") == "data-incremental" or "transform" in options:
        return 3
    if setting == "domain-incremental":
        return 4 if read(data).domains is not None else 3 if n_classes % 3 == 0 else n_classes // 2
    return 3 if n_classes > 5 else 2


def learned(experiment: Experiment) -> None:
    for description in experiment.runs():
        result = one_run.run(description)
        assert result.finished and None not in result.accuracy[-1]


def spec(data: str) -> dict[str, Any]:
    return {"name": data, "max_length": 24} if data in TEXT else {"name": data}


@cache
def _read(name: str) -> Dataset:
    return dataset(spec(name))


def read(given: Any, option: str | None = None) -> Dataset:
    """A data set, read once."""
    return _read(given if isinstance(given, str) else given["name"])


def matrix() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """What the README prints: setting -> data set -> mark, and the reason behind each mark."""
    text = README.read_text(encoding="utf-8")
    section = text[text.index(MARK) + len(MARK) :].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    head, body = rows[0][1:], rows[2:]
    reasons = dict(re.findall(r"^- \((\w)\) (.*)$", section, re.MULTILINE))
    return {row[0]: dict(zip(head, (cell.strip("()") for cell in row[1:]), strict=True)) for row in body}, reasons


def write(outcomes: dict[tuple[str, str], str]) -> None:
    reasons = {why: chr(ord("a") + i) for i, why in enumerate(dict.fromkeys(o for o in outcomes.values() if o != RUNS))}
    names = [*DATA, *TEXT]
    lines = ["| | " + " | ".join(names) + " |", "| :-- |" + " :-: |" * len(names)]
    for setting in SETTINGS:
        marks = [outcomes[setting, name] for name in names]
        lines.append(f"| {setting} | " + " | ".join(m if m == RUNS else f"({reasons[m]})" for m in marks) + " |")
    lines += ["", *(f"- ({letter}) {why}" for why, letter in reasons.items()), ""]
    text = README.read_text(encoding="utf-8")
    start = text.index(MARK) + len(MARK)
    end = text.index("<!-- end -->", start)
    README.write_text(text[:start] + "\n" + "\n".join(lines) + "\n" + text[end:], encoding="utf-8")
