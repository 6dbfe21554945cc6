"""Several workers: the same numbers to the bit, whoever runs what; nothing is left behind by those that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from forgetlab.config.load import load
from forgetlab.engine.all_runs import carry_out
from forgetlab.engine.events import RunEnded, RunFailed, TrialEnded
from forgetlab.engine.workers import results
from forgetlab.experiment import Strategy
from forgetlab.results.store import RunFolder, Store
from helpers.commands import invoke
from helpers.processes import listening

PLUGIN = """
from torch import nn
from forgetlab.plugins import register

@register("model", "workers_model")
class WorkersModel(nn.Module):
    def __init__(self, input_shape, width: int = 8) -> None:
        super().__init__()
        self.layer, self.n_features = nn.Linear(64, width), width

    def forward(self, x):
        return self.layer(x.flatten(1)).relu()
"""
FILE = """
name: side
scenario: {name: split_digits, n_tasks: 4}
plugins: [plugin.py]
model: {name: workers_model, width: 12}
protocol: {budget: {epochs: 2}}
"""
SEEDS = (
    FILE
    + """
pretrain: {scenario: split_digits, epochs: 2}
references: [naive, ridge]
strategies:
  - {replay: {memory: reservoir, capacity: 50, rehearsal: der++}}
  - {name: wild, regularization: l2, train: {optimizer: sgd, lr: 1e30}}
seeds: [0, 1]
"""
)
SEARCH = (
    FILE
    + """
tuning: {tasks: 2, search: grid}
train: {lr: [1e-3, 1e-2]}
references: [naive]
strategies:
  - {name: reservoir, replay: {memory: reservoir, capacity: 50}}
seeds: [0, 1]
"""
)
SLOW = """
name: slow
scenario: split_digits
model: {name: mlp, hidden: [16]}
references: [naive]
protocol: {budget: {epochs: 100}}
train: {batch_size: 16}
seeds: [0, 1, 2, 3]
"""


def written(folder: Path, text: str) -> Path:
    (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def carried_out(folder: Path, name: str, workers: int) -> tuple[list[RunFolder], list[Any], list[str]]:
    """The folders, what was told, and the strategies in the order in which they were done."""
    told: list[Any] = []
    done: list[str] = []

    def after(strategy: Strategy, folders: list[RunFolder]) -> None:
        assert [one.path.name for one in folders] == ["seed-0", "seed-1"]
        done.append(strategy.name)

    store = Store(folder / name)
    folders = carry_out(load(folder / "file.yaml"), store, report=told.append, after_strategy=after, workers=workers)
    return folders, told, done


def compared(folder: Path) -> tuple[list[Any], list[str]]:
    """What two workers tell and finish, when all their files are those of one worker, byte by byte."""
    alone, _, in_order = carried_out(folder, "alone", 1)
    beside, told, done = carried_out(folder, "beside", 2)
    assert sorted(done) == sorted(in_order)
    for one, other in zip(alone, beside, strict=True):
        assert one.path.relative_to(folder / "alone") == other.path.relative_to(folder / "beside")
        for name in ("config.yaml", "result.json", "tuning.json"):
            assert (one.path / name).is_file() == (other.path / name).is_file()
            if (one.path / name).is_file():
                assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), other.path / name
    return told, done


@pytest.mark.slow
def test_workers_change_no_byte(tmp_path: Path) -> None:
    written(tmp_path, SEEDS)
    told, done = compared(tmp_path)
    assert len(done) == 4
    kinds = [type(event) for event in told]
    assert kinds.count(RunEnded) == 6 and kinds.count(RunFailed) == 2 and len(kinds) == 8
    errors = {str(event.error) for event in told if isinstance(event, RunFailed)}
    assert all("loss" in error for error in errors), errors
    assert len([*(tmp_path / "beside" / ".starts").glob("*.safetensors")]) == 2, "one start for each seed"


@pytest.mark.slow
def test_a_search_beside_another_chooses_alike(tmp_path: Path) -> None:
    written(tmp_path, SEARCH)
    told, _ = compared(tmp_path)
    kinds = [type(event) for event in told]
    assert kinds.count(TrialEnded) == 2 * 2 * 2 and kinds.count(RunEnded) == 4
    assert all((tmp_path / "beside" / "side" / "naive" / f"seed-{n}" / "tuning.json").is_file() for n in (0, 1))


def command(path: Path, *more: str) -> list[str]:
    return ["run", str(path), "--no-tracking", "--runs", str(path.parent / "runs"), *more]


def children(pid: int) -> list[int]:
    """All that this process started and that is alive, and what those started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().rpartition(")")
        except OSError:
            continue
        state, parent, *_ = rest.split()
        if int(parent) == pid and state != "Z":
            found.append(int(name.split(" ")[0]))
    return found + [inner for one in found for inner in children(one)]


def begun(path: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Two workers that have finished a task, and the processes that they are."""
    program = [sys.executable, "-m", "forgetlab", *command(path, "--workers", "2")]
    process = subprocess.Popen(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    started = waited(lambda: [*(path.parent / "runs" / "slow").glob("naive/*/result.json")])
    assert started, process.communicate()
    return process, children(process.pid)


def waited(ready: Any, seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ready()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def again(path: Path) -> Result:
    return invoke(*command(path))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes where Linux lists them")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_command_and_it_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    path = written(tmp_path, SLOW)
    process, workers = begun(path)
    assert len(workers) >= 2
    process.send_signal(how)
    process.communicate(timeout=30)
    assert waited(lambda: not any(map(alive, workers)), 20), "workers go on alone"
    assert again(path).exit_code == 0
    assert len([*(path.parent / "runs" / "slow").glob("naive/*/result.json")]) == 4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes where Linux lists them")
def test_a_worker_that_is_killed_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, SLOW)
    process, workers = begun(path)
    busiest = max(workers, key=seconds_of)
    os.kill(busiest, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "a worker was killed, perhaps for the memory it took" in errors
    assert again(path).exit_code == 0


def seconds_of(pid: int) -> float:
    """Of the processor, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float(fields[11])


def test_one_worker_tells_at_once_and_in_order() -> None:
    told: list[Any] = []

    def unit(tell: Any) -> int:
        tell("now")
        return len(told)

    assert [*results([unit, unit], told.append, str)] == [(0, 1), (1, 2)]
