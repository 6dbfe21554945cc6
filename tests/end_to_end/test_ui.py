"""The address that ``forgetlab ui`` prints, in a real browser at a real server."""

from __future__ import annotations

import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forgetlab.report import mlflow_store, mlflow_ui

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCENARIO = """
name: browsed
scenario: {name: split_digits, n_tasks: 2}
model: {name: mlp, hidden: [16]}
references: [naive, ridge]
strategies: [{replay: {memory: reservoir, capacity: 50}}]
seeds: [0, 1]
"""
STRATEGIES = ("naive", "ridge", "reservoir")
PATIENCE = 60_000  # milliseconds for a page to show something

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian's package: chromium)")


@pytest.mark.slow
def test_an_unknown_experiment_is_named_with_the_nearest(folder: Path) -> None:
    with pytest.raises(LookupError, match=r"no experiment 'browsd'.*did you mean 'browsed'"):
        mlflow_ui.serve(f"sqlite:///{folder}/mlflow.db", "browsd", open_browser=False)


@pytest.mark.slow
def test_a_missing_store_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no runs are tracked"):
        mlflow_ui.serve(f"sqlite:///{tmp_path}/none.db", None, open_browser=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_server_that_dies_says_why(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=r"(?s)did not start:.*address already in use"):
            mlflow_ui.serve(
                f"sqlite:///{folder}/mlflow.db", None, open_browser=False, port=port, announce=lambda _: None
            )


@pytest.mark.slow
@needs_chromium
def test_the_address_shows_the_comparison_with_nothing_clicked(page: Any, address: str) -> None:
    page.goto(address)
    for strategy in STRATEGIES:
        page.get_by_role("link", name=strategy, exact=True).first.wait_for(timeout=PATIENCE)
    body = page.locator("body")
    body.get_by_text("accuracy/average").first.wait_for(timeout=PATIENCE)
    for strategy in STRATEGIES:  # a chart's legend names every curve
        body.get_by_text(f"{strategy} (accuracy/average)").first.wait_for(timeout=PATIENCE)
    body.get_by_text("final/average_accuracy").first.wait_for(timeout=PATIENCE)
    assert "Average accuracy at the end: naive" in body.inner_text()
    rows = [link.inner_text() for link in page.locator("[role=gridcell]").get_by_role("link").all()]
    assert tuple(rows) == STRATEGIES, "one row per strategy, in the file's order"
    assert not page.get_by_role("link", name="seed 0", exact=True).count(), "seeds are folded away at first"


@pytest.mark.slow
@needs_chromium
def test_expanding_a_strategy_shows_its_seeds(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name="reservoir", exact=True).first.wait_for(timeout=PATIENCE)
    name = page.locator("[role=gridcell]", has=page.get_by_role("link", name="reservoir", exact=True)).first
    name.locator("button").first.click()
    for seed in ("seed 0", "seed 1"):
        page.get_by_role("link", name=seed, exact=True).first.wait_for(timeout=PATIENCE)


@pytest.mark.slow
@needs_chromium
def test_the_heat_map_is_among_a_seeds_artifacts(page: Any, address: str, folder: Path) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow_store.connect(uri)
    experiment = client.get_experiment_by_name("browsed").experiment_id
    seed = next(run for run in client.search_runs([experiment]) if mlflow_store.PARENT in run.data.tags)
    page.goto(f"{address.split('#')[0]}#/experiments/{experiment}/runs/{seed.info.run_id}/artifacts")
    page.get_by_text("accuracy.png").first.click(timeout=PATIENCE)
    picture = page.locator("img[src*='accuracy.png'], img[src^='blob:'], img[alt*='accuracy.png']").first
    picture.wait_for(timeout=PATIENCE)
    assert page.evaluate("image => image.naturalWidth", picture.element_handle()) > 100


@pytest.mark.slow
@needs_chromium
def test_a_rerun_adds_no_run(folder: Path, address: str) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    before = _run_ids(uri)
    subprocess.run(_command("run", "scenario.yaml"), cwd=folder, check=True, capture_output=True, timeout=300)
    assert _run_ids(uri) == before and len(before) == 9


def _run_ids(uri: str) -> set[str]:
    client = mlflow_store.connect(uri)
    experiment = client.get_experiment_by_name("browsed").experiment_id
    return {run.info.run_id for run in client.search_runs([experiment])}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "forgetlab", *arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small experiment, run by the command."""
    folder = tmp_path_factory.mktemp("browsed")
    (folder / "scenario.yaml").write_text(SCENARIO)
    subprocess.run(_command("run", "scenario.yaml"), cwd=folder, check=True, capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """What ``forgetlab ui`` prints; the server is stopped by the pid of the command in any case."""
    command = _command("ui", "browsed", "--no-browser")
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda out: [lines.put(line) for line in out], args=(process.stdout,), daemon=True).start()
    try:
        line = lines.get(timeout=60)
        while not line.startswith("http://127.0.0.1:"):
            line = lines.get(timeout=mlflow_ui.PATIENCE)
        yield line.strip()
    finally:
        servers = _descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        process.stdout.close()
        assert not [pid for pid in servers if _parent(pid) is not None], "the server outlives the command"


def _descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    everyone = {int(entry.name): _parent(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for one in found:  # grows while it is walked
        found += [child for child, parent in everyone.items() if parent == one]
    return found[1:]


def _parent(pid: int) -> int | None:
    """The parent of a living process."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1100})
        yield page
        browser.close()
