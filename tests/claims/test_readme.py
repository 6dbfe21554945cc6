"""What the README says is so: its own module runs, its files load, and its tables come out again.

``make readme`` writes the tables anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from forgetlab.checks import promises
from forgetlab.config.load import load
from forgetlab.engine import all_runs
from forgetlab.metrics.intervals import Interval
from forgetlab.plugins import registry
from forgetlab.report import summary as report
from forgetlab.report import tables
from forgetlab.report.summary import Finished, Summary
from forgetlab.results.store import Store
from helpers.commands import invoke
from helpers.paths import EXPERIMENTS, README

Printed = tuple[float, float, float]  # a mean and the ends of its interval
TABLES = ("split_digits", "split_digits_task")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def own_module(tmp_path: Path) -> Path:
    """The README's own module and its scenario file, saved as it says."""
    (module,) = (text for text in blocks("python") if text.startswith('"""SSF'))
    scenario = next(text for text in blocks("yaml") if text.startswith("name: mine"))
    assert len(module.splitlines()) <= 33
    (tmp_path / "ssf.py").write_text(module)
    (tmp_path / "mine.yaml").write_text(scenario)
    return tmp_path


@pytest.mark.slow
def test_an_own_module_runs_and_is_compared(own_module: Path) -> None:
    command = ["run", str(own_module / "mine.yaml"), "--runs", str(own_module / "runs"), "--no-tracking"]
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    rows = {folder.path.parts[-2]: folder.result() for folder in Store(own_module / "runs").folders("mine")}
    ssf = rows["ssf"]
    assert ssf is not None and ssf.metrics["forgetting"] == 0.0
    assert (ssf.metrics["average_accuracy"] or 0) > 0.9


@pytest.mark.slow
def test_an_own_module_passes_the_contract_checks(own_module: Path) -> None:
    registry.load_file(own_module / "ssf.py")
    plugin = registry.find("isolation", "ssf")
    for check in promises.checks_of(plugin):
        check(plugin)


def test_the_scenario_file_is_valid(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(blocks("yaml")[0])
    assert len(load(tmp_path / "scenario.yaml").strategies) == 5


def write_table(folder: Path) -> None:
    """Birds of three kinds, whose measures drift from year to year."""
    import numpy as np
    import pandas as pd

    draw = np.random.default_rng(0)
    kinds, years = np.arange(120) % 3, 2019 + np.arange(120) // 60
    measures = draw.normal(size=(120, 3)) + kinds[:, None] + 0.5 * (years[:, None] - 2019)
    species = np.array(["finch", "owl", "wren"])[kinds]
    columns = {
        "species": species,
        "year": years,
        "beak": measures[:, 0],
        "wing": measures[:, 1],
        "weight": measures[:, 2],
    }
    pd.DataFrame(columns).to_csv(folder / "birds.csv", index=False)


def write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for k, kind in enumerate(("ant", "bee", "cat", "dog")):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(15):
            pixels = draw.integers(0, 120, (20, 24, 3), dtype=np.uint8)
            pixels[5 * k : 5 * k + 5] += 100
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{i}.png")


def write_hub_set(folder: Path) -> None:
    import datasets

    words = {"sea": "wave boat salt", "sky": "cloud wing sun", "home": "door bed lamp", "work": "desk tool pay"}
    rows = [(f"{text} number {i}", list(words).index(topic)) for topic, text in words.items() for i in range(15)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(words))})
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    datasets.Dataset.from_dict(columns, features=features).train_test_split(0.2, seed=0).save_to_disk(folder / "saved")


OWN_DATA = {"my-table": write_table, "my-images": write_images, "my-texts": write_hub_set}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_DATA)
def test_own_data_become_a_stream(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (document,) = (text for text in blocks("yaml") if text.startswith(f"name: {name}\n"))
    assert len(document.splitlines()) <= 10
    OWN_DATA[name](tmp_path)
    (tmp_path / "mine.yaml").write_text(document)
    monkeypatch.chdir(tmp_path)
    for command in (["preview", "mine.yaml"], ["run", "mine.yaml", "--no-tracking"]):
        result = invoke(*command)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "previews" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = {folder.path.parts[-2]: folder.result() for folder in Store(tmp_path / "runs").folders(name)}
    assert rows.keys() == {"naive", "joint", "separate", "ridge", "reservoir"}
    assert all(row is not None and row.finished and len(row.task_names) == 2 for row in rows.values())


def test_the_avalanche_script_runs() -> None:
    (script,) = (text for text in blocks("python") if "from_avalanche" in text)
    names: dict[str, object] = {}
    exec(script, names)
    assert names["scenario"].checksum() == names["again"].checksum()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_the_table_comes_out_again(name: str, tmp_path: Path) -> None:
    summaries = _run(name, tmp_path)
    if os.environ.get("FORGETLAB_WRITE_README"):
        _write(name, summaries)
    assert left_their_interval(summaries, _printed(name)) == []


def test_a_mean_that_leaves_its_interval_is_seen() -> None:
    printed = _printed("split_digits")
    kept = {"average_accuracy": Interval(0.2, 0.0, 3), "learning_accuracy": Interval(0.985, 0.01, 3)}
    summary = Summary("naive", "naive", "reference", "none", (0, 1, 2), {**kept, "forgetting": Interval(0.9, 0.0, 3)})
    assert left_their_interval([summary], {"naive": printed["naive"]}) == ["naive: forgetting"]


def left_their_interval(summaries: Sequence[Summary], printed: Mapping[str, Mapping[str, Printed]]) -> list[str]:
    """The means that are not within what the README prints for them, rounded as it is."""
    assert printed.keys() == {summary.label for summary in summaries}
    return [
        f"{summary.label}: {column}"
        for summary in summaries
        for column, (_, low, high) in printed[summary.label].items()
        if (cell := summary.cells[column]) is None or not low - 0.0005 <= cell.mean <= high + 0.0005
    ]


def _run(name: str, folder: Path) -> list[Summary]:
    folders = all_runs.carry_out(load(EXPERIMENTS / f"{name}.yaml"), Store(folder))
    stored = [(folder.result(), folder.timing()) for folder in folders]
    return report.summarise([Finished(result, timing) for result, timing in stored if result is not None])


def _section(name: str) -> tuple[int, int]:
    text = README.read_text(encoding="utf-8")
    start = text.index(f"<!-- table: {name} -->\n") + len(f"<!-- table: {name} -->\n")
    return start, text.index("<!-- end -->", start)


def _printed(name: str) -> dict[str, dict[str, Printed]]:
    """Strategy -> column -> mean and interval, as the README prints them."""
    start, end = _section(name)
    found: dict[str, dict[str, Printed]] = {}
    for line in README.read_text(encoding="utf-8")[start:end].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        numbers = [_interval(cell) for cell in cells[1:4]]
        columns = ("average_accuracy", "forgetting", "learning_accuracy")
        if any(numbers):
            pairs = zip(columns, numbers, strict=True)
            found[cells[0]] = {column: interval for column, interval in pairs if interval}
    return found


def _interval(cell: str) -> Printed | None:
    """
    >>> _interval("0.25 ± 0.125"), _interval("0.95 [0.88, 1.00] (n = 2)"), _interval("none")
    ((0.25, 0.125, 0.375), (0.95, 0.88, 1.0), None)
    """
    if symmetric := re.match(r"([\d.]+) ± ([\d.]+)", cell):
        mean, half = map(float, symmetric.groups())
        return mean, mean - half, mean + half
    cut = re.match(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", cell)
    return None if cut is None else (float(cut[1]), float(cut[2]), float(cut[3]))


def _write(name: str, summaries: list[Summary]) -> None:
    text, (start, end) = README.read_text(encoding="utf-8"), _section(name)
    table = tables.markdown(summaries, name).split("\n", 2)[2]  # without the title
    table = re.sub(r"^### (.*)$", r"*\1*", table.replace(tables.NOTE, "").strip(), flags=re.MULTILINE)
    README.write_text(f"{text[:start]}\n{table}\n\n{text[end:]}", encoding="utf-8")
