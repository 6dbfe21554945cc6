"""MLflow as a view of the run folders: filled from them, and can be filled again at any time.

One experiment per scenario file, one top-level run per strategy with the mean over seeds and its t-interval as step
metrics, the seeds as its children: so the chart view compares strategies with nothing clicked. A run is found again
by its key; a view that was cut short is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from forgetlab import __version__
from forgetlab.report import mlflow_view, pictures
from forgetlab.report import summary as report
from forgetlab.report.summary import Finished, Summary
from forgetlab.results.store import RunFolder, to_json
from forgetlab.results.timing import wall_seconds

KEY, PARENT_KEY, COMPLETE, STRATEGY, UPDATED, ADOPTED = (
    f"forgetlab.{name}" for name in ("key", "parent_key", "complete", "strategy", "projected", "adopted_from")
)  # `UPDATED` is when the view was brought up to date; its tag is in databases that there are
NOTE, PARENT, COLOUR = "mlflow.note.content", "mlflow.parentRunId", "mlflow.runColor"
ALL_DRAWN = "forgetlab"  # a view of the charts that draws every strategy
CHART_VIEW = f"mlflow.sharedViewState.{ALL_DRAWN}"
DRAWN = 10  # strategies that MLflow's charts draw without it
LONGEST_PARAMETER, LONGEST_NOTE = 6000, 5000  # letters: MLflow's limits
MOST_PARAMETERS, MOST_METRICS = 100, 1000  # in a call: MLflow's limits
COLOURS = (*pictures.COLOURS, "#332288", "#117733", "#999933", "#882255", "#44AA99", "#CC6677", "#DDCC77", "#AA4499")
ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # one line for each run
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # who names a folder as the store wants it; MLflow refuses it unasked
}

T = TypeVar("T")


@dataclass(frozen=True)
class MlflowView:
    """Where the comparison is to be seen, and how many runs were written this time."""

    experiment_id: str
    added: int


@dataclass(frozen=True)
class Tracked:
    """An experiment as MLflow knows it; ``crowded``: more strategies than its charts draw without a view."""

    experiment_id: str
    name: str
    crowded: bool


@dataclass(frozen=True)
class StoredRun:
    """One run folder, read."""

    key: str
    finished: Finished
    description: Mapping[str, Any]
    text: str
    adopted_from: tuple[str, ...] = ()


def update_view(name: str, folders: Sequence[RunFolder], uri: str, *, resolved_file: str) -> MlflowView:
    """Bring an MLflow experiment up to the finished runs of these folders.

    Strategies that are not among the folders stay as they are.

    Raises:
        ConnectionError: no server answers at the URI.
    """
    client = connect(uri)
    experiment_id = _experiment(client, name, uri)
    stored = [one for folder in folders if (one := _read(folder)) is not None]
    summaries = report.summarise([one.finished for one in stored])
    writer = _Writer(client, experiment_id, resolved_file)
    for summary in summaries:
        writer.strategy([one for one in stored if one.finished.result.strategy == summary.strategy], summary)
    tags = {NOTE: mlflow_view.note(name, summaries, LONGEST_NOTE), UPDATED: datetime.now(UTC).isoformat()}
    if len(summaries) > DRAWN:
        tags[CHART_VIEW] = json.dumps({"runsHiddenMode": "SHOW_ALL", "orderByAsc": True})
    for key, value in tags.items():
        client.set_experiment_tag(experiment_id, key, value)
    return MlflowView(experiment_id, writer.added)


def connect(uri: str) -> Any:
    """A client of a tracking store; a new database is made where there is none.

    Raises:
        ConnectionError: no server answers at the URI.
    """
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    file = database(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif uri.startswith(("http://", "https://")):
        _knock(uri)
    from mlflow import MlflowClient  # as it is imported, it sets the levels of its own loggers

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _knock(uri: str) -> None:
    """Fail at once where nothing listens: MLflow would try again for minutes."""
    try:
        urllib.request.urlopen(uri, timeout=20).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        raise ConnectionError(f"no tracking server answers at {uri}: {error}") from error


def experiments(uri: str) -> list[Tracked]:
    """The experiments that there are, the one that was brought up to date last first."""
    found = [e for e in connect(uri).search_experiments() if e.name != "Default"]
    found.sort(key=lambda e: (e.tags.get(UPDATED, ""), e.creation_time), reverse=True)
    return [Tracked(e.experiment_id, e.name, CHART_VIEW in e.tags) for e in found]


def database(uri: str) -> Path | None:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def store_path(uri: str) -> Path | None:
    """The file or folder of a store on this machine; None for a server's."""
    if "://" in uri and not uri.startswith("file://"):
        return database(uri)
    return Path(uri.removeprefix("file://"))


def artifacts(uri: str) -> Path | None:
    """Beside a SQLite database, wherever it is opened from; other stores know themselves where they keep artifacts."""
    file = database(uri)
    return file.parent / "mlartifacts" if file else None


def _experiment(client: Any, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        root = artifacts(uri)
        return client.create_experiment(name, artifact_location=(root / name).as_uri() if root else None)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _read(folder: RunFolder) -> StoredRun | None:
    key, result = folder.key, folder.result()
    if key is None or result is None or not result.finished:
        return None
    text = (folder.path / "config.yaml").read_text(encoding="utf-8")
    finished = Finished(result, folder.timing(), adopted=bool(folder.adopted_from))
    return StoredRun(key, finished, folder.description(), text, tuple(folder.adopted_from))


class _Writer:
    """Writes what an experiment lacks."""

    def __init__(self, client: Any, experiment_id: str, resolved_file: str) -> None:
        self.client, self.experiment_id, self.resolved_file = client, experiment_id, resolved_file
        self.added = 0
        self.existing = list(self._runs())
        tags = [run.data.tags for run in self.existing]
        self.colours = {mine[STRATEGY]: mine[COLOUR] for mine in tags if COLOUR in mine and STRATEGY in mine}

    def strategy(self, seeds: Sequence[StoredRun], summary: Summary) -> None:
        """Bring one strategy's parent and children up to date."""
        cells = {name: str(cell) for name, cell in summary.cells.items() if name != "seconds"}
        content = to_json([summary.label, [one.key for one in seeds], cells])
        digest = hashlib.sha256(content.encode()).hexdigest()
        mine = [run for run in self.existing if run.data.tags.get(STRATEGY) == summary.strategy]
        complete = [run for run in mine if run.data.tags.get(COMPLETE) == "true"]
        if len(mine) == len(complete) == len(seeds) + 1 and digest in {r.data.tags.get(PARENT_KEY) for r in complete}:
            return
        children = {run.data.tags[KEY]: run.info.run_id for run in complete if KEY in run.data.tags}
        kept = {one.key: children[one.key] for one in seeds if one.key in children}
        for run in mine:
            if run.info.run_id not in kept.values():
                self.client.delete_run(run.info.run_id)
        self._parent(seeds, summary, digest, kept)

    def _parent(self, seeds: Sequence[StoredRun], summary: Summary, digest: str, kept: Mapping[str, str]) -> None:
        parent = self._start(summary.label, seeds[0], {PARENT_KEY: digest, COLOUR: self._colour(summary.strategy)})
        for one in seeds:
            if one.key in kept:
                self.client.set_tag(kept[one.key], PARENT, parent)
            else:
                self._child(one, parent)
        shared = mlflow_view.same_for_all_seeds([mlflow_view.flatten(one.description) for one in seeds])
        self._finish(parent, seeds, summary, {**shared, "seeds": summary.seeds})

    def _child(self, one: StoredRun, parent: str) -> None:
        result, timing = one.finished.result, one.finished.timing
        tags = {PARENT: parent, KEY: one.key, "seed": str(result.seed)}
        if one.adopted_from:
            tags[ADOPTED] = ", ".join(one.adopted_from)
        run_id = self._start(f"seed {result.seed}", one, tags)
        files = {
            "config.yaml": one.text.encode(),
            "result.json": to_json(asdict(result)).encode(),
            "packages.json": to_json(timing.get("packages")).encode(),
            "git.json": to_json(timing.get("git")).encode(),
        }
        (summary,) = report.summarise([one.finished])
        self._finish(run_id, [one], summary, mlflow_view.flatten(one.description), files)

    def _colour(self, strategy: str) -> str:
        """The strategy's own, where it can: MLflow's are drawn by chance, so that two look the same."""
        free = [colour for colour in COLOURS if colour not in self.colours.values()]
        return self.colours.setdefault(strategy, free[0] if free else COLOURS[len(self.colours) % len(COLOURS)])

    def _start(self, name: str, one: StoredRun, tags: Mapping[str, str]) -> str:
        result = one.finished.result
        common = {
            STRATEGY: result.strategy,
            "family": result.family,
            "task_identity": result.task_identity,
            "forgetlab.version": __version__,
        }
        start = _milliseconds(one.finished.timing)
        run = self.client.create_run(self.experiment_id, start_time=start, run_name=name, tags={**common, **tags})
        self.added += 1
        return run.info.run_id

    def _finish(
        self,
        run_id: str,
        seeds: Sequence[StoredRun],
        summary: Summary,
        parameters: Mapping[str, Any],
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Fill a run; the tag that calls it complete comes last."""
        from mlflow.entities import Metric, Param

        results, timings = [one.finished.result for one in seeds], [one.finished.timing for one in seeds]
        start = _milliseconds(timings[0])
        curves = mlflow_view.thinned_curves(results)
        for some in _parts(parameters.items(), MOST_PARAMETERS):
            self.client.log_batch(run_id, params=[Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in some])
        for points in _parts(mlflow_view.points(curves, summary), MOST_METRICS):
            self.client.log_batch(run_id, metrics=[Metric(name, value, start, step) for name, value, step in points])
        with tempfile.TemporaryDirectory() as folder:
            shown = mlflow_view.files(results, curves, summary.label) | {"scenario.yaml": self.resolved_file.encode()}
            for name, content in {**shown, **(files or {})}.items():
                (Path(folder) / name).write_bytes(content)
            self.client.log_artifacts(run_id, folder)
        seconds = sum(map(wall_seconds, timings))
        self.client.set_terminated(run_id, "FINISHED", end_time=start + int(1000 * seconds))
        self.client.set_tag(run_id, COMPLETE, "true")

    def _runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment_id], max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    listed = list(items)
    yield from (listed[start : start + size] for start in range(0, len(listed), size))


def _milliseconds(timing: Mapping[str, Any]) -> int:
    started = timing.get("started")
    return int(1000 * (datetime.fromisoformat(started) if started else datetime.now(UTC)).timestamp())
