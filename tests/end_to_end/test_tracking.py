"""What MLflow is given, in a real SQLite store."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forgetlab.report import mlflow_store, pictures
from forgetlab.results.store import Result, RunFolder, Store

NAIVE = [[1.0, None], [0.2, 0.9]]
REPLAY = [[1.0, None], [0.8, 0.8]]


def result(strategy: str, seed: int, accuracy: Sequence[list[float | None]], final: float) -> Result:
    return Result(
        strategy=strategy,
        family="replay" if strategy == "reservoir" else "reference",
        task_identity="none",
        seed=seed,
        overrides={"lr": 0.01} if strategy == "reservoir" else {},
        protocol={"head": "growing"},
        task_names=["0,1", "2,3"],
        classes_per_task=[[0, 1], [2, 3]],
        test_sizes=[10, 10],
        accuracy=[accuracy[0], [accuracy[1][0], final]],
        accuracy_initial=[0.5, None],
        counts={"total": {"parameters": 10, "stored_bytes": 40, "memory_bytes": 0}},
    )


def folder(store: Store, name: str, one: Result, key: str | None = None) -> RunFolder:
    place = store.folder(name, one.strategy, one.seed)
    place.begin(
        key or f"key-{one.strategy}-{one.seed}",
        {"strategy": {"name": one.strategy}, "train": {"lr": 0.001}, "seed": one.seed},
    )
    timing = {
        "processor_seconds": 2.0,
        "wall_seconds": 2.0,
        "started": "2026-01-01T00:00:00+00:00",
        "packages": {"torch": "2.13.0"},
        "git": {"commit": "abc"},
    }
    place.save(one, timing)
    return place


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def drawn_where_looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a projection's time; one test looks at real pictures."""
    if "artifacts_are_there" not in request.node.name:
        for picture in ("accuracy_heat_map", "forgetting_curves"):
            monkeypatch.setattr(pictures, picture, lambda *_, **__: b"")


@pytest.fixture
def experiment(uri: str, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, list[RunFolder]]:
    """An experiment of its own for each test: two strategies, two seeds, projected."""
    name = request.node.name.replace("[", "-").rstrip("]")
    results = [result("naive", s, NAIVE, 0.9 + s / 100) for s in (0, 1)]
    results += [result("reservoir", s, REPLAY, 0.8 + s / 10) for s in (0, 1)]
    folders = [folder(Store(tmp_path / "runs"), name, one) for one in results]
    assert mlflow_store.update_view(name, folders, uri, resolved_file="name: x\n").added == 6
    return name, folders


def runs(uri: str, name: str) -> list[Any]:
    client = mlflow_store.connect(uri)
    return list(client.search_runs([client.get_experiment_by_name(name).experiment_id]))


def parents(uri: str, name: str) -> dict[str, Any]:
    return {run.info.run_name: run for run in runs(uri, name) if mlflow_store.PARENT not in run.data.tags}


def children(uri: str, name: str, parent: Any) -> dict[str, Any]:
    mine = [run for run in runs(uri, name) if run.data.tags.get(mlflow_store.PARENT) == parent.info.run_id]
    return {run.info.run_name: run for run in mine}


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in mlflow_store.connect(uri).get_metric_history(run.info.run_id, metric)]


def client_text(client: Any, run: Any, name: str, target: Path) -> str:
    return Path(client.download_artifacts(run.info.run_id, name, str(target))).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_for_each_strategy_holds_the_mean_and_its_seeds(
    uri: str, experiment: tuple[str, list[RunFolder]]
) -> None:
    name, _ = experiment
    tops = parents(uri, name)
    assert set(tops) == {"naive", "reservoir (lr=0.01)"}
    replay = tops["reservoir (lr=0.01)"]
    assert set(children(uri, name, replay)) == {"seed 0", "seed 1"}
    assert history(uri, replay, "accuracy/task_0") == [(0, 0.5), (1, 1.0), (2, 0.8)]
    assert history(uri, replay, "accuracy/average") == [(1, 1.0), (2, pytest.approx(0.825))]
    assert replay.data.metrics["forgetting/task_0"] == pytest.approx(0.2)
    ends = [replay.data.metrics[f"interval/accuracy_task_1_{end}"] for end in ("low", "high")]
    assert ends == [pytest.approx(0.85 - 12.706 * 0.1 / 2, rel=1e-3), 1.0], "no accuracy is above 1"
    assert replay.data.params["train.lr"] == "0.001" and "seed" not in replay.data.params
    assert history(uri, replay, "final/average_accuracy") == [(0, pytest.approx(0.825))]  # step 0 is drawn as a bar
    assert replay.data.metrics["price/parameters"] == 10
    assert tops["naive"].data.tags[mlflow_store.COLOUR] != replay.data.tags[mlflow_store.COLOUR]
    assert {replay.data.tags["family"], replay.data.tags["task_identity"]} == {"replay", "none"}
    one = children(uri, name, replay)["seed 1"]
    assert one.data.params["seed"] == "1"
    assert one.data.metrics["accuracy/task_1"] == pytest.approx(0.9)


@pytest.mark.slow
def test_the_description_holds_the_table(uri: str, experiment: tuple[str, list[RunFolder]]) -> None:
    note = mlflow_store.connect(uri).get_experiment_by_name(experiment[0]).tags[mlflow_store.NOTE]
    assert note.splitlines()[0] == "Average accuracy at the end: naive 0.552, reservoir (lr=0.01) 0.825"
    assert "| reservoir (lr=0.01) | 0.825" in note


@pytest.mark.slow
def test_artifacts_are_there_and_readable(uri: str, experiment: tuple[str, list[RunFolder]], tmp_path: Path) -> None:
    name, _ = experiment
    top = parents(uri, name)["naive"]
    one = children(uri, name, top)["seed 0"]
    client = mlflow_store.connect(uri)
    shown = {"accuracy.json", "accuracy.png", "forgetting.png", "scenario.yaml"}
    provenance = {"config.yaml", "result.json", "packages.json", "git.json"}
    assert {f.path for f in client.list_artifacts(top.info.run_id)} == shown
    assert {f.path for f in client.list_artifacts(one.info.run_id)} == shown | provenance
    mean = json.loads(client_text(client, top, "accuracy.json", tmp_path))
    assert mean == {"accuracy": [[1.0, None], [0.2, pytest.approx(0.905)]], "accuracy_initial": [0.5, None],
                    "task_names": ["0,1", "2,3"]}  # fmt: skip
    path = Path(client.download_artifacts(one.info.run_id, "", str(tmp_path)))
    assert json.loads((path / "accuracy.json").read_text())["accuracy"] == [[1.0, None], [0.2, 0.9]]
    assert json.loads((path / "packages.json").read_text()) == {"torch": "2.13.0"}
    assert json.loads((path / "git.json").read_text()) == {"commit": "abc"}
    assert (path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (path / "scenario.yaml").read_text() == "name: x\n"


@pytest.mark.slow
def test_a_rerun_adds_no_run(uri: str, experiment: tuple[str, list[RunFolder]]) -> None:
    name, folders = experiment
    before = {run.info.run_id for run in runs(uri, name)}
    assert mlflow_store.update_view(name, folders, uri, resolved_file="name: x\n").added == 0
    assert {run.info.run_id for run in runs(uri, name)} == before


@pytest.mark.slow
def test_one_more_seed_keeps_the_others(uri: str, experiment: tuple[str, list[RunFolder]]) -> None:
    name, folders = experiment
    naive = parents(uri, name)["naive"]
    seeds = children(uri, name, naive)
    store = Store(folders[0].path.parents[2])
    more = [*folders[:2], folder(store, name, result("naive", 2, NAIVE, 0.95)), *folders[2:]]
    assert (
        mlflow_store.update_view(name, more, uri, resolved_file="name: x\n").added == 2
    )  # the seed, and the mean anew
    now = children(uri, name, parents(uri, name)["naive"])
    assert set(now) == {"seed 0", "seed 1", "seed 2"}
    assert {now[seed].info.run_id for seed in seeds} == {run.info.run_id for run in seeds.values()}
    assert len(runs(uri, name)) == 7


@pytest.mark.slow
def test_changed_settings_replace_the_strategys_runs_only(uri: str, experiment: tuple[str, list[RunFolder]]) -> None:
    name, folders = experiment
    kept = parents(uri, name)["reservoir (lr=0.01)"].info.run_id
    store = Store(folders[0].path.parents[2])
    changed = [folder(store, name, result("naive", s, NAIVE, 0.7), key=f"other-{s}") for s in (0, 1)]
    assert mlflow_store.update_view(name, [*changed, *folders[2:]], uri, resolved_file="name: x\n").added == 3
    assert parents(uri, name)["reservoir (lr=0.01)"].info.run_id == kept
    assert history(uri, parents(uri, name)["naive"], "accuracy/task_1") == [(2, 0.7)]
    assert len(runs(uri, name)) == 6


@pytest.mark.slow
def test_a_projection_that_was_cut_short_is_made_anew(
    uri: str, experiment: tuple[str, list[RunFolder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folders = experiment
    store = Store(folders[0].path.parents[2])
    changed = [folder(store, name, result("naive", s, NAIVE, 0.6), key=f"third-{s}") for s in (0, 1)]
    finish, calls = mlflow_store._Writer._finish, []

    def killed(self: Any, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        finish(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store._Writer, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            mlflow_store.update_view(name, [*changed, *folders[2:]], uri, resolved_file="name: x\n")
    assert any(run.data.tags.get(mlflow_store.COMPLETE) != "true" for run in runs(uri, name))
    mlflow_store.update_view(name, [*changed, *folders[2:]], uri, resolved_file="name: x\n")
    assert all(run.data.tags.get(mlflow_store.COMPLETE) == "true" for run in runs(uri, name))
    assert len(runs(uri, name)) == 6
    assert set(children(uri, name, parents(uri, name)["naive"])) == {"seed 0", "seed 1"}


@pytest.mark.slow
def test_an_unfinished_run_is_left_out(uri: str, tmp_path: Path) -> None:
    whole = result("naive", 0, NAIVE, 0.9)
    half = folder(Store(tmp_path), "unfinished", replace(whole, accuracy=whole.accuracy[:1]))
    assert mlflow_store.update_view("unfinished", [half], uri, resolved_file="").added == 0


@pytest.mark.slow
def test_a_deleted_experiment_comes_back(uri: str, experiment: tuple[str, list[RunFolder]]) -> None:
    name, folders = experiment
    client = mlflow_store.connect(uri)
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    mlflow_store.update_view(name, folders, uri, resolved_file="name: x\n")
    assert set(parents(uri, name)) == {"naive", "reservoir (lr=0.01)"}


def test_a_metric_that_needs_a_reference_comes_with_it(uri: str, tmp_path: Path) -> None:
    naive, joint = (result(name, 0, NAIVE, 0.8) for name in ("naive", "joint"))
    folders = [folder(Store(tmp_path), "later", one) for one in (naive, joint)]
    assert mlflow_store.update_view("later", folders[:1], uri, resolved_file="").added == 2
    assert "final/intransigence" not in parents(uri, "later")["naive"].data.metrics
    assert (
        mlflow_store.update_view("later", folders, uri, resolved_file="").added == 3
    )  # naive's mean anew, joint and its seed
    tops = parents(uri, "later")
    assert tops["naive"].data.metrics["final/intransigence"] == 0
    assert "forgetting/average" in tops["naive"].data.metrics
    assert not [name for name in tops["joint"].data.metrics if "forgetting" in name or "backward" in name]
    assert len(runs(uri, "later")) == 4


def test_many_strategies_get_a_view_that_draws_them_all(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_store, "DRAWN", 1)
    folders = [folder(Store(tmp_path), "crowded", result(name, 0, NAIVE, 0.8)) for name in ("naive", "ridge")]
    for many in (1, 2):
        mlflow_store.update_view("crowded", folders[:many], uri, resolved_file="")
        last = mlflow_store.experiments(uri)[0]
        assert (last.name, last.crowded) == ("crowded", many > 1)


def test_long_and_many_settings_are_kept_within_the_limits(uri: str, tmp_path: Path) -> None:
    place = folder(Store(tmp_path), "wide", result("naive", 0, NAIVE, 0.9))
    place.begin("wide", {"long": "x" * 9000, "options": {f"key_{number}": number for number in range(150)}})
    mlflow_store.update_view("wide", [place], uri, resolved_file="")
    seed = children(uri, "wide", parents(uri, "wide")["naive"])["seed 0"]
    assert len(seed.data.params) == 152 and seed.data.params["options.key_149"] == "149"
    assert set(seed.data.params["long"]) == {"x"}
    assert "x" * 9000 in client_text(mlflow_store.connect(uri), seed, "config.yaml", tmp_path)


def test_the_last_projected_experiment_comes_first(uri: str, tmp_path: Path) -> None:
    one = [folder(Store(tmp_path), "first", result("naive", 0, NAIVE, 0.9))]
    for name in ("first", "second", "first"):
        mlflow_store.update_view(name, one, uri, resolved_file="")
    assert [tracked.name for tracked in mlflow_store.experiments(uri)[:2]] == ["first", "second"]


def test_a_folder_is_a_store_too(tmp_path: Path) -> None:
    store = str(tmp_path / "mlruns")
    folders = [folder(Store(tmp_path / "runs"), "plain", result("naive", 0, NAIVE, 0.9))]
    assert [mlflow_store.update_view("plain", folders, store, resolved_file="").added for _ in range(2)] == [2, 0]
    assert list((tmp_path / "mlruns").rglob("accuracy.png"))


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"no tracking server answers at http://127\.0\.0\.1"):
            mlflow_store.connect(uri)


@pytest.mark.slow
def test_artifacts_lie_beside_the_database(uri: str, experiment: tuple[str, list[RunFolder]]) -> None:
    pngs = list(Path(uri.removeprefix("sqlite:///")).parent.glob(f"mlartifacts/{experiment[0]}/*/artifacts/*.png"))
    assert len(pngs) == 12


def test_an_adopted_run_bears_the_keys_that_it_had(uri: str, tmp_path: Path) -> None:
    one = folder(Store(tmp_path / "runs"), "adopted", result("naive", 0, NAIVE, 0.9), key="older")
    one.adopt("old", one.description())
    one.adopt("new", one.description())
    for added in (2, 0):
        assert mlflow_store.update_view("adopted", [one], uri, resolved_file="name: x\n").added == added
    (child,) = (run for run in runs(uri, "adopted") if run.data.tags.get("forgetlab.key") == "new")
    assert child.data.tags["forgetlab.adopted_from"] == "older, old"
    assert not any("adopted" in name for name in child.data.params)
    (experiment,) = (e for e in mlflow_store.connect(uri).search_experiments() if e.name == "adopted")
    assert "Adopted, made by an earlier version: naive (1 of 1)." in experiment.tags["mlflow.note.content"]
