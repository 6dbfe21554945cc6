"""What is seen while an experiment runs."""

from __future__ import annotations

import re
import threading
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from forgetlab.cli.progress import Progress, say
from forgetlab.engine.events import EpochEnded, RunEnded, RunFound, TaskEnded, TaskStarted
from forgetlab.experiment import Experiment, Strategy
from forgetlab.results.store import Result, RunFolder
from forgetlab.training.loop import Epoch

NAIVE = {"name": "naive"}
EXPERIMENT = Experiment(
    name="small",
    scenario={"name": "split_digits"},
    model={"name": "mlp"},
    references=(NAIVE,),
    strategies=(Strategy(name="other+[bold]"),),
)
RESULT = Result(
    strategy="naive",
    family="reference",
    task_identity="none",
    seed=0,
    overrides={},
    protocol={},
    task_names=["0", "1"],
    classes_per_task=[[0], [1]],
    test_sizes=[1, 1],
    accuracy=[[1.0, None], [0.5, 1.0]],
    accuracy_initial=[None, None],
    metrics={"average_accuracy": 0.75},
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.save(RESULT, {"wall_seconds": 1.26})
    return folder


def go_through(progress: Progress, folder: RunFolder) -> None:
    """One run that is carried out, and one that is found."""
    first, second = EXPERIMENT.runs()
    for task in (0, 1):
        progress(TaskStarted(first, task, 2))
        progress(EpochEnded(first, task, Epoch(1, 1)))
        progress(TaskEnded(first, task, 2, lambda: RESULT, {}, {}))
    progress(RunEnded(first, folder))
    progress(RunFound(second, folder))


def test_without_a_terminal_each_run_is_one_plain_line(folder: RunFolder) -> None:
    file = StringIO()
    with Progress(EXPERIMENT, Console(file=file)) as progress:
        go_through(progress, folder)
    assert file.getvalue() == (
        "[1/2] naive, seed 0: accuracy 0.750, 1.3 s\n[2/2] other+[bold], seed 0: accuracy 0.750, found\n"
    )


def test_a_dumb_terminal_gets_plain_lines_too(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = StringIO()
    with Progress(EXPERIMENT, Console(file=file, force_terminal=True)) as progress:
        go_through(progress, folder)
    assert len(file.getvalue().splitlines()) == 2


def test_a_run_without_an_average_still_gets_its_line(tmp_path: Path) -> None:
    file = StringIO()
    with Progress(EXPERIMENT, Console(file=file)) as progress:
        progress(RunEnded(EXPERIMENT.runs()[0], RunFolder(tmp_path)))
    assert file.getvalue() == "[1/2] naive, seed 0: accuracy none, 0.0 s\n"


@pytest.mark.parametrize("stopped", [False, True])
def test_on_a_terminal_bars_move_and_are_gone_at_the_end(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    file, threads = StringIO(), set(threading.enumerate())
    try:
        with Progress(EXPERIMENT, Console(file=file, force_terminal=True, width=100)) as progress:
            go_through(progress, folder)
            if stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert stopped
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert all(words in plain for words in ("small", "naive, seed 0, task 2/2", "2/2"))
    assert "accuracy" not in plain
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1  # the cursor comes back
    assert file.getvalue().endswith("\x1b[1A\x1b[2K")  # the last thing done is to wipe a line
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_what_is_said_goes_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")
