"""Which change of the code moves which key: what computes does, what shows or manages files does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forgetlab.results import computing_code
from helpers.paths import ROOT
from helpers.processes import environment_with

FILE = """
name: keys
scenario: {name: split_digits, n_tasks: 2}
model: {name: mlp, hidden: [8]}
references: [naive]
strategies:
  - replay: {memory: reservoir, capacity: 20}
  - regularization: {name: ewc, strength: 1}
  - {isolation: {name: lora, rank: 2, sites: [mlp.in]}, name: lora}
  - {isolation: {name: lora, rank: 2, sites: [mlp.in]}, merge: {name: dare, then: ties}, name: dare}
"""
KEYS = """
import json, sys
from pathlib import Path
from forgetlab.config.load import load
from forgetlab.engine.one_run import load_scenario, set_process
from forgetlab.results.run_key import run_key

root, file, *changed = map(Path, sys.argv[1:])
runs = load(file).runs()

def keys():
    found = {}
    for run in runs:
        set_process(run)
        found[run.strategy.name] = run_key(run, load_scenario(run))
    return found

told = {"": keys()}
for path in changed:
    source = root / path
    before = source.read_text()
    source.write_text(before.replace('\\"\\"\\"', '\\"\\"\\"Otherwise said. ', 1))
    assert source.read_text() != before
    told[str(path)] = keys()
    source.write_text(before)
print(json.dumps(told))
"""
ALL = {"naive", "reservoir", "ewc", "lora", "dare"}
MOVES = {  # a file in whose docstring a word changes, and whose keys move
    "forgetlab/cli/main.py": set(),
    "forgetlab/report/tables.py": set(),
    "forgetlab/config/load.py": set(),
    "forgetlab/engine/all_runs.py": set(),
    "forgetlab/preflight/problems.py": set(),
    "forgetlab/metrics/definition_texts.py": set(),
    "forgetlab/backbones/vit.py": set(),
    "forgetlab/toolbox/vae.py": set(),
    "forgetlab/training/loop.py": ALL,
    "forgetlab/training/competing_classes.py": ALL,
    "forgetlab/engine/one_run.py": ALL,
    "forgetlab/metrics/accuracy_matrix.py": ALL,
    "forgetlab/backbones/mlp.py": ALL,
    "forgetlab/toolbox/fisher.py": {"ewc"},
    "strategies/isolation/modules/low_rank/lora.py": {"lora", "dare"},
    "strategies/isolation/mergers/dare.py": {"dare"},
    "strategies/isolation/mergers/ties.py": {"dare"},
    "strategies/replay/memories/reservoir.py": {"reservoir"},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The keys of each entry, before and after each change in a copy of the code."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("forgetlab", "strategies", "scenarios"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "keys.yaml").write_text(FILE, encoding="utf-8")
    command = [sys.executable, "-c", KEYS, str(copy), str(copy / "keys.yaml"), *MOVES]
    return json.loads(subprocess.check_output(command, cwd=copy, env=environment_with(copy), text=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", MOVES)
def test_a_changed_docstring_moves_the_keys_of_what_computes_with_it(
    keys: dict[str, dict[str, str]], path: str
) -> None:
    assert {*keys[""]} == ALL
    moved = {name for name, key in keys[path].items() if key != keys[""][name]}
    assert moved == MOVES[path]


def rooms_of(files: set[Path]) -> set[str]:
    return {computing_code.name_in_digest(file).split("/")[0] for file in files}


def test_the_code_of_a_run_is_what_it_imports_and_nothing_that_shows() -> None:
    files = computing_code.computing([computing_code.PACKAGE / computing_code.RUN])
    assert not rooms_of(files) & {"cli", "report", "config", "preflight", "checks"}
    training = {*(computing_code.PACKAGE / "training").glob("*.py")} - {computing_code.PACKAGE / "training/__init__.py"}
    assert {path.resolve() for path in training} <= files
    engine = {computing_code.name_in_digest(file) for file in files if "engine" in computing_code.name_in_digest(file)}
    assert engine == {"engine/one_run.py", "engine/events.py"}


def test_what_is_exempt_exists_and_is_imported_by_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    exempt = {*computing_code.EXEMPT}
    monkeypatch.setattr(computing_code, "EXEMPT", {})
    files = computing_code.computing([computing_code.PACKAGE / computing_code.RUN])
    assert exempt <= {computing_code.name_in_digest(file) for file in files}


def test_a_name_that_a_room_hands_on_stands_for_the_file_that_defines_it(tmp_path: Path) -> None:
    """Else a module of one's own would hang on every file of the room of isolation."""
    mine = tmp_path / "mine.py"
    mine.write_text("def later():\n    from forgetlab.isolation import Merger\n", encoding="utf-8")
    found = {computing_code.name_in_digest(file) for file in computing_code.computing([mine])}
    assert "isolation/merger.py" in found and "mine.py" in found
    assert not {"isolation/__init__.py", "isolation/classifier.py"} & found


def test_what_types_alone_need_does_not_count(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("if TYPE_CHECKING:\n    from forgetlab.toolbox import vae\n", encoding="utf-8")
    assert {computing_code.name_in_digest(file) for file in computing_code.computing([mine])} == {"mine.py"}
