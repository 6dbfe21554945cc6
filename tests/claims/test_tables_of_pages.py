"""The tables of the README and of `docs/` are written from finished runs, by their marks (`make tables`)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from forgetlab.config.load import load
from forgetlab.engine.all_runs import carry_out
from forgetlab.results.store import Store
from helpers.paths import EXPERIMENTS, README

PAGES = README.parent
FILE = """
name: tiny
scenario: {name: split_digits, n_tasks: 2}
model: {name: mlp, hidden: [8]}
protocol: {budget: {updates: 3}}
references: [naive, separate]
strategies:
  - {isolation: {name: lora, rank: 1, sites: [mlp.in]}, router: oracle}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_tables", PAGES / "docs" / "write_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one experiment, which is finished."""
    root = tmp_path_factory.mktemp("project")
    (root / "experiments").mkdir()
    (root / "experiments" / "tiny.yaml").write_text(FILE, encoding="utf-8")
    carry_out(load(root / "experiments" / "tiny.yaml"), Store(root / "runs"))
    return root


def rewritten(writer: ModuleType, project: Path, mark: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    monkeypatch.setattr(writer, "ROOT", project)
    told: list[str] = []
    page = f"before\n<!-- table: {mark} -->\nas it was before\n<!-- end -->\nafter\n"
    return writer.rewritten(page, project / "runs", told), told


def test_a_table_has_the_columns_that_its_mark_asks_for(
    writer: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = "tiny | prices: no | hide: seconds, parameters | add: minus separate = relative_learning_accuracy"
    page, told = rewritten(writer, project, mark, monkeypatch)
    assert told == [] and "as it was before" not in page
    assert page.startswith(f"before\n<!-- table: {mark} -->\n") and page.endswith("<!-- end -->\nafter\n")
    headers = [line for line in page.splitlines() if line.startswith("| strategy")]
    assert len(headers) == 2 and all(line.endswith("| bytes kept | minus separate |") for line in headers)
    assert not any("seconds" in line or "parameters" in line for line in headers)
    lora = next(line for line in page.splitlines() if line.startswith("| lora+oracle"))
    assert lora.count(" | ") == headers[1].count(" | ") and "±" in lora.split(" | ")[-1]
    assert "What a task costs" not in page and "*Task told at test (oracle)*" in page


def test_prices_stand_below_unless_they_are_not_wanted(
    writer: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, _ = rewritten(writer, project, "tiny", monkeypatch)
    assert "*What a task costs*" in page and "kept per task" in page


def test_a_table_whose_runs_are_missing_is_left_and_told(
    writer: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FILE.replace("name: tiny", "name: other").replace("updates: 3", "updates: 4")
    (project / "experiments" / "other.yaml").write_text(other, encoding="utf-8")
    page, told = rewritten(writer, project, "other", monkeypatch)
    assert "\nas it was before\n" in page and told == ["other: 0 of 6 runs are finished; its table is as it was"]


def test_a_mark_with_an_unknown_word_is_refused(writer: ModuleType) -> None:
    with pytest.raises(ValueError, match="takes hide, add and prices, not show"):
        writer.Wanted.read(" | show: seconds")


def test_every_mark_on_the_pages_is_read_and_names_an_experiment(writer: ModuleType) -> None:
    marks = [
        match.groups()[1:3]
        for page in writer.PAGES
        for match in writer.TABLE.finditer((PAGES / page).read_text(encoding="utf-8"))
    ]
    assert len(marks) > 10
    for name, options in marks:
        writer.Wanted.read(options)
        assert name == "matrix" or (EXPERIMENTS / f"{name}.yaml").is_file()
