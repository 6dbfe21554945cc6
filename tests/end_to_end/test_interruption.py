"""Stopped at any moment: what is finished is kept, no file is half written, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgetlab.results import store
from forgetlab.results.store import Store, write_text
from helpers.commands import invoke
from helpers.processes import listening

SLOW = """
name: slow
scenario: split_digits
model: {name: mlp, hidden: [16]}
references: [naive]
protocol: {budget: {epochs: 160}}
train: {batch_size: 16}
seeds: [0, 1]
"""
WRITER = """
import json, sys
from pathlib import Path
from forgetlab.results.store import write_text
print("ready", flush=True)
for i in range(10**9):
    write_text(Path(sys.argv[1]), json.dumps([i] * 20_000))
"""


def waited_for(ready: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return True
        time.sleep(0.01)
    return False


def rows(path: Path) -> list[Any]:
    """The finished tasks of a run; raises where its file is not whole."""
    return json.loads(path.read_text(encoding="utf-8"))["accuracy"] if path.exists() else []


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW, encoding="utf-8")
    arguments = ["run", str(tmp_path / "slow.yaml"), "--no-tracking", "--runs", str(tmp_path / "runs")]
    first, second = (tmp_path / "runs" / "slow" / "naive" / f"seed-{seed}" / "result.json" for seed in (0, 1))
    program = [sys.executable, "-m", "forgetlab", *arguments]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    assert waited_for(lambda: len(rows(second)) > 0, process), process.communicate()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert output == ""
    progress, *rest = errors.splitlines()
    assert progress.startswith("[1/2] naive, seed 0: ")
    assert rest == ["", "Stopped. What is finished is kept; the same command goes on from there."]
    kept, partial = first.read_bytes(), rows(second)
    assert len(rows(first)) == 5 and 1 <= len(partial) < 5
    assert not [path for path in (tmp_path / "runs").rglob(".*") if path.is_file()]

    again = invoke(*arguments)
    assert again.exit_code == 0, again.output
    assert "[1/2] naive, seed 0: accuracy" in again.stderr and again.stderr.count(", found") == 1
    assert first.read_bytes() == kept
    assert len(rows(second)) == 5 and rows(second)[: len(partial)] == partial
    assert all(folder.result() for folder in Store(tmp_path / "runs").folders())


@pytest.mark.slow
def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    path, moment = tmp_path / "result.json", random.Random(0)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert waited_for(path.exists, process)
        time.sleep(moment.uniform(0, 0.03))
        process.kill()
        process.communicate()
        assert len(json.loads(path.read_text(encoding="utf-8"))) == 20_000


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "result.json"
    write_text(path, "old")
    monkeypatch.setattr(store.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.slow
def test_two_processes_do_not_write_one_experiment(tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW, encoding="utf-8")
    arguments = ["run", str(tmp_path / "slow.yaml"), "--no-tracking", "--runs", str(tmp_path / "runs")]
    result = tmp_path / "runs" / "slow" / "naive" / "seed-0" / "result.json"
    program = [sys.executable, "-m", "forgetlab", *arguments]
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        assert waited_for(result.exists, process)
        second = invoke(*arguments)
        assert process.poll() is None, "the first one was over"
        told = "slow: another process is at work on it; wait for it, or name another folder with '--runs'"
        assert second.exit_code == 2 and told in second.stderr
        elsewhere = invoke(*arguments[:-1], str(tmp_path / "others"))
        assert elsewhere.exit_code == 0, elsewhere.output
    finally:
        process.kill()
        process.wait()
    again = invoke(*arguments)
    assert again.exit_code == 0, again.output
