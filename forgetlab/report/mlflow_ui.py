"""MLflow's UI, opened where the strategies are compared."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

from forgetlab.plugins.options import suggestion
from forgetlab.report.mlflow_store import ALL_DRAWN, ENVIRONMENT, Tracked, artifacts, database, experiments, store_path

HOST = "127.0.0.1"
PATIENCE = 120  # seconds until the server has to answer; 10 to 40 are usual
SERVER_ENVIRONMENT = {
    **ENVIRONMENT,
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight more processes, 2 GB, for what is not used here
    "PYTHONSAFEPATH": "1",  # a file of the user's folder may bear a module's name
}


def serve(
    uri: str,
    name: str | None,
    *,
    open_browser: bool = True,
    port: int = 0,
    announce: Callable[[str], None] = print,
) -> int:
    """Start a server for the store, announce the address of the charts, and stay until Ctrl-C.

    A store that is a server already is not started again: its address is announced.

    Raises:
        LookupError: there is no such experiment, or none at all.
        RuntimeError: the server did not start; the message holds its last lines.
    """
    if uri.startswith(("http://", "https://")):
        return _point(uri.rstrip("/"), _find(uri, name), open_browser, announce)
    store = store_path(uri)
    if store is not None and not store.exists():
        raise LookupError(f"no runs are tracked at {uri}; 'forgetlab run FILE' makes them")
    tracked = _find(uri, name)
    with (
        _interrupted_by_sigterm(),
        contextlib.suppress(KeyboardInterrupt),
        tempfile.NamedTemporaryFile("w+b", suffix=".log") as log,
    ):
        announce("starting MLflow's server; this takes 10 to 40 seconds")
        with _server(uri, port or _free_port(), Path(log.name)) as (base, server):
            _point(base, tracked, open_browser, announce)
            announce("Ctrl-C stops the server")
            server.wait()
            raise RuntimeError(f"MLflow's server ended:\n{_last_lines(Path(log.name))}")
    return 0


def chart_address(base: str, experiment_id: str, *, crowded: bool = False) -> str:
    """The page on which every metric of every strategy is drawn with nothing clicked, in the file's order."""
    order = "orderByKey=attributes.start_time&orderByAsc=true"
    view = f"viewStateShareKey={ALL_DRAWN}"  # sets the order too; MLflow heeds no view where the address orders
    return f"{base}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&{view if crowded else order}"


def _point(base: str, tracked: Tracked, open_browser: bool, announce: Callable[[str], None]) -> int:
    address = chart_address(base, tracked.experiment_id, crowded=tracked.crowded)
    announce(address)
    if open_browser:
        webbrowser.open(address)
    return 0


def _find(uri: str, name: str | None) -> Tracked:
    """The named experiment, or the one that was run last."""
    found = {tracked.name: tracked for tracked in experiments(uri)}
    if name in found:
        return found[name]
    if not found:
        raise LookupError(f"no experiment is tracked at {uri} yet; 'forgetlab run FILE' makes one")
    if name is None:
        return next(iter(found.values()))
    raise LookupError(f"no experiment {name!r} at {uri}{suggestion(name, found) or '; there are: ' + ', '.join(found)}")


@contextlib.contextmanager
def _server(uri: str, port: int, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server process of its own group, stopped by its pid in the end."""
    file = database(uri)
    store = f"sqlite:///{file}" if file else uri
    options = ["--backend-store-uri", store, "--host", HOST, "--port", str(port), "--workers", "1"]
    if (root := artifacts(uri)) is not None:  # else the server makes a folder where it is started
        options += ["--artifacts-destination", str(root)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**SERVER_ENVIRONMENT, **os.environ},
            start_new_session=True,
        )
    try:
        base = f"http://{HOST}:{port}"
        _wait(server, base, log)
        yield base, server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _wait(server: subprocess.Popen[bytes], base: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise RuntimeError(f"MLflow's server did not start:\n{_last_lines(log)}")


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the server as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
