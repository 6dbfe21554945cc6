"""The command as somebody uses it: what it prints, what it leaves, and how it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import Result
from safetensors import safe_open

from forgetlab.config import load
from forgetlab.engine import one_run
from forgetlab.results.store import Store
from helpers.commands import invoke
from helpers.paths import BROKEN_FILES

TINY = """
name: tiny
scenario: split_digits
model: {name: mlp, hidden: [16]}
references: [naive, ridge]
strategies:
  - replay: {memory: reservoir, capacity: 50}
  - isolation: {name: lora, rank: 2, sites: [mlp.in]}
seeds: [0, 1]
"""
STRATEGIES = ("naive", "ridge", "reservoir", "lora+prototype")
BROKEN = sorted(BROKEN_FILES.glob("*.yaml"))


def refused(*arguments: str | Path) -> str:
    """What is said of a command that is refused."""
    done = invoke(*arguments)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    assert done.stdout == ""
    return done.stderr


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def first(folder: Path) -> Result:
    """The first run of the tiny file."""
    return run(folder)


def run(folder: Path, *options: str) -> Result:
    return invoke("run", folder / "tiny.yaml", "--no-tracking", "--runs", folder / "runs", *options)


def test_a_run_prints_its_table_on_stdout_and_what_happens_beside_it(first: Result, folder: Path) -> None:
    assert first.exit_code == 0, first.output
    assert all(name in first.stdout for name in (*STRATEGIES, "n = 2 seeds", "Task inferred by a router"))
    *lines, last = first.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"[{i}/8] {name}, seed {seed}"
        for i, (name, seed) in enumerate(((name, seed) for name in STRATEGIES for seed in (0, 1)), 1)
    ]
    assert last == f"Run folders: {folder / 'runs' / 'tiny'}"


def test_every_run_leaves_its_folder(first: Result, folder: Path) -> None:
    usual = {"config.yaml", "result.json", "timing.json"}
    modules = {"modules/router.safetensors", *(f"modules/task-{task}.safetensors" for task in range(5))}
    for name in STRATEGIES:
        for seed in (0, 1):
            one = Store(folder / "runs").folder("tiny", name, seed)
            assert files(one.path) == usual | (modules if name.startswith("lora") else set())
            result = one.result()
            assert result is not None and result.finished and (result.strategy, result.seed) == (name, seed)
            assert re.fullmatch("[0-9a-f]{64}", one.key or "")
            assert one.description()["scenario"] == {
                "name": "split_digits",
                "setting": "class-incremental",
                "n_tasks": 5,
                "held_back": 0,
            }
            assert (
                one.timing()["processor_seconds"] > 0
                and one.timing()["wall_seconds"] > 0
                and one.timing()["packages"]["torch"]
            )
            assert len(one.timing()["tasks"]) == 5


def test_a_module_file_holds_the_tensors_of_its_task_alone(first: Result, folder: Path) -> None:
    for task in range(5):
        path = folder / "runs" / "tiny" / "lora+prototype" / "seed-0" / "modules" / f"task-{task}.safetensors"
        with safe_open(path, framework="pt") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
            label: Mapping[str, str] = stored.metadata()
        assert shapes == {
            "head.bias": [2],
            "head.weight": [2, 16],
            "module.parts.mlp_in-0.A": [2, 64],
            "module.parts.mlp_in-0.B": [16, 2],
        }
        about = json.loads(label["about"])
        assert re.fullmatch(r"\d,\d", about["task"]) and about["isolation"]["name"] == "lora"


def test_a_second_run_trains_nothing(first: Result, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise AssertionError("trained again")

    before = contents(folder / "runs")
    monkeypatch.setattr(one_run, "run", train)
    again = run(folder)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert again.stderr.count(", found\n") == 8
    assert contents(folder / "runs") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


@pytest.mark.slow
def test_fresh_trains_again_and_finds_the_same_numbers(tmp_path: Path) -> None:
    text = TINY.replace("seeds: [0, 1]", "seeds: [0]").replace("[naive, ridge]", "[naive]")
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    run(tmp_path)
    before = contents(tmp_path / "runs")
    again = run(tmp_path, "--fresh")
    assert again.stderr.count("accuracy") == 3 and ", found" not in again.stderr
    after = contents(tmp_path / "runs")
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert changed == {f"tiny/{name}/seed-0/timing.json" for name in ("naive", "reservoir", "lora+prototype")}


def test_compare_prints_the_same_table(first: Result, folder: Path) -> None:
    for names in ((), ("tiny",)):
        again = invoke("compare", *names, "--runs", folder / "runs")
        assert again.exit_code == 0 and again.stdout == first.stdout and again.stderr == ""


@pytest.mark.slow
def test_compare_leaves_out_what_had_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    run(tmp_path)
    path.write_text(TINY.replace("ridge", "ridge: {strength: 0.1}"), encoding="utf-8")
    experiment = load.load(path)
    Store(tmp_path / "runs").begin("tiny", one_run.plain(experiment))  # as if it were stopped at once
    told = invoke("compare", "--runs", tmp_path / "runs")
    assert "naive" in told.stdout and "ridge" not in told.stdout
    assert told.stderr == "tiny: 6 of 8 runs are finished; 'forgetlab run' of its file goes on\n"


def test_compare_says_what_to_do_where_there_is_nothing(first: Result, folder: Path, tmp_path: Path) -> None:
    assert "'forgetlab run FILE' does" in refused("compare", "--runs", tmp_path)
    unknown = refused("compare", "tinny", "--runs", folder / "runs")
    assert unknown == f"no experiment 'tinny' under {folder / 'runs'}; did you mean 'tiny'?\n"


def test_ui_says_what_to_do_where_nothing_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'forgetlab run FILE'" in refused("ui", "tiny")
    assert list(tmp_path.iterdir()) == []


def test_check_prints_a_file_that_is_the_same_experiment(folder: Path, tmp_path: Path) -> None:
    printed = invoke("check", folder / "tiny.yaml")
    assert printed.exit_code == 0
    (tmp_path / "resolved.yaml").write_text(printed.stdout, encoding="utf-8")
    assert load.load(tmp_path / "resolved.yaml") == load.load(folder / "tiny.yaml")
    assert invoke("check", tmp_path / "resolved.yaml").stdout == printed.stdout


def test_list() -> None:
    everything = invoke("list")
    assert everything.exit_code == 0
    assert re.search(r"^isolation: .*\blora\b", everything.stdout, re.MULTILINE)
    assert re.search(r"^metric: average_accuracy, ", everything.stdout, re.MULTILINE)
    assert re.fullmatch(r"reference: .*\bnaive\b.*\n", invoke("list", "reference").stdout)
    assert "did you mean 'memory'?" in refused("list", "memry")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("isolation", "lora", ["arxiv.org/abs/2106.09685", "rank: int > 0 (default 8)", "alpha: float > 0 | None"]),
        ("isolation", "lora", ["sites: tuple['attn.q' | ", ", ...] (default ('attn.q', 'attn.v'))"]),
        ("memory", "reservoir", ["doi.org/10.1145/3147.3165", "capacity: int > 0 (required)"]),
        ("model", "mlp", ["hidden: tuple[int > 0, ...] (default (400, 400))"]),
        ("router", "prototype", ["No parameters."]),
        ("metric", "forgetting", ["Chaudhry", "max_", "best minus last"]),
    ],
)
def test_show(kind: str, name: str, words: list[str]) -> None:
    shown = invoke("show", kind, name)
    assert shown.exit_code == 0
    assert all(word in shown.stdout for word in words), shown.stdout
    assert not re.search(r"Annotated|typing\.|Gt\(|FieldInfo|<class", shown.stdout)


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("isolation", "lroa", "did you mean 'lora'?"),
        ("metric", "forgeting", "did you mean 'forgetting'?"),
        ("isolatoin", "lora", "did you mean 'isolation'?"),
    ],
)
def test_show_suggests_the_nearest_name(kind: str, name: str, hint: str) -> None:
    assert hint in refused("show", kind, name)


@pytest.mark.parametrize("path", BROKEN, ids=[path.stem for path in BROKEN])
def test_a_broken_file_is_refused_and_nothing_is_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for told in (refused("check", path), refused("run", path)):
        assert told
        assert all(re.match(rf"{re.escape(str(path))}:\d+:\d+: \S", line) for line in told.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_there_are_broken_files() -> None:
    assert len(BROKEN) > 20


def test_all_files_are_read_before_anything_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = refused("run", folder / "tiny.yaml", "missing.yaml", tmp_path)
    assert told == f"missing.yaml:1:1: no such file\n{tmp_path}:1:1: this is a folder, not a file\n"
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_as_markdown(first: Result, folder: Path) -> None:
    shown = invoke("compare", "tiny", "--markdown", "--runs", str(folder / "runs"))
    assert shown.exit_code == 0
    assert shown.stdout.startswith("## tiny\n") and "| naive |" in shown.stdout
