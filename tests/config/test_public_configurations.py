"""Fourteen configurations of people who do this job, as scenario files: each loads whole, but for what it names.

A file's head says where it is from, what was replaced (data and backbones that are not here), and what is not here yet
and therefore left out of the body.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetlab.config import load
from forgetlab.config.yaml_reader import FileErrors
from helpers.paths import ROOT

FOLDER = Path(__file__).with_name("public_configurations")
FILES = sorted(FOLDER.glob("*.yaml"))
NOT_HERE_YET = {  # by the number of the file: networks, methods, searches and outputs that nothing here stands for
    "02": ["FOSTER"],
    "05": ["X-DER"],
    "06": ["search that trades stability for plasticity"],
    "07": ["VGG"],
    "08": ["head that grows without boundaries"],
    "09": ["text that is generated", "instructions and their template"],
    "10": ["text that is generated"],
    "13": ["ASHA"],
    "14": ["text that is generated", "bf16"],
}
VALUES = {  # of each original, as its file has to have them
    "01": ["depth: 32", "numpy_seed: 1993", "at: [49, 63], factor: 0.2", "over_classes: mean", "lr: 2.0"],
    "02": ["per_class: 20", "epochs: 170, first_task: 200", "depth: 32", "numpy_seed: 1993", "weight_decay: 5e-4"],
    "03": ["clip: 1.0", "batchwise: true", "start: uniform", "pool: 10, length: 10, top: 4", "lr: 0.03"],
    "04": ["at: [18], factor: 0.1", "numpy_seed: 1993", "slow: 0.01, epochs: 3", "batch_size: 64"],
    "05": ["at: [35, 45], factor: 0.2", "depth: 18, width: 64", "alpha: 0.3, beta: 0.5", "alpha: 0.3, beta: 0.8"],
    "06": [
        "per_class: 20",
        "patience: 10, factor: 0.333, lowest: 1e-4",
        "clip: 10000",
        "first_task: {lr: 0.5}",
        "distillation: 4",
        "weight_decay: 2e-4",
    ],
    "07": ["{each: [0.10, 0.12, 0.13, 0.15, 0.17, 0.20, 0.25, 0.34, 0.50, 1.00]}", "epochs: 45", "batch_size: 200"],
    "08": ["drop_last: true", "depth: 18, width: 20", "online: true, boundaries: false", "capacity: 1000"],
    "09": ["rank: 8, alpha: 32, weight: 0.5", "lr: 1e-3", "max_length: 512", "batch_size: 8"],
    "10": ["epochs: [5, 3, 7, 5, 3, 5, 5, 7]", "name: cosine", "share: 0.1", "accumulate: 8", "lr: 1e-5"],
    "11": ["name: cosine", "layers: [0, 1, 2, 3, 4]", "betas: [0.9, 0.999]", "resized_crop: 0.08", "components: 100"],
    "12": ["name: cosine, end: 0", "head_lr: 0.01", "numpy_seed: 1993", "projection: 10000", "batch_size: 48"],
    "13": ["batch_size: 32, weight: {low: 0.001, high: 0.999}", "batch_size: [32, 64, 128, 256]", "trials: 100"],
    "14": ["name: cosine, end: 0, warmup: 0.1", "accumulate: 8", "rank: 8", "batch_size: 1"],
}
AWAITED = {  # keys that are still to be built; strict, so that a file which loads must leave this list
    "06": "plateau; first_task",
    "07": "each",
    "10": "accumulate",
    "14": "accumulate",
}


def number(path: Path) -> str:
    return path.stem[:2]


def head(path: Path) -> dict[str, str]:
    """The lines ``# key: what it says`` in front of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    said = [line.removeprefix("# ").partition(": ") for line in lines if line.startswith("# ") and ": " in line]
    return {key: value for key, _, value in said}


def marked(path: Path) -> object:
    why = AWAITED.get(number(path))
    mark = pytest.mark.xfail(raises=FileErrors, reason=f"still to be built: {why}", strict=True)
    return pytest.param(path, id=path.stem, marks=[mark] if why else [])


def test_there_are_fourteen() -> None:
    assert [number(path) for path in FILES] == [f"{i:02}" for i in range(1, 15)]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_each_says_where_it_is_from_what_was_replaced_and_what_is_missing(path: Path) -> None:
    said = head(path)
    assert {"source", "replaced", "not here yet"} <= said.keys()
    assert said["not here yet"] == "; ".join(NOT_HERE_YET.get(number(path), ["nothing"]))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_each_has_the_values_of_its_original(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [value for value in VALUES[number(path)] if value not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [marked(path) for path in FILES])
def test_each_loads_whole(path: Path) -> None:
    experiment = load.load(path)
    assert experiment.name == path.stem
    assert experiment.strategies


def test_the_page_lists_each_with_what_is_missing() -> None:
    page = (ROOT / "docs" / "configurations.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    for path in FILES:
        row = rows[f"`{path.name}`"]
        assert head(path)["replaced"] in row
        missing = head(path)["not here yet"]
        assert row.split("|")[-2].strip() == ("" if missing == "nothing" else missing)
