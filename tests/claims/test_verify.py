"""Our numbers beside others': the rows that are stored, how they are judged, and that planted bugs turn them red."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from forgetlab.batch import Batch
from forgetlab.cli import verify
from forgetlab.cli.published_targets import COLUMNS, Target, TargetsError, chosen_targets, read
from forgetlab.cli.verify import RowProtocol
from forgetlab.config.load import load
from forgetlab.engine import one_run
from forgetlab.experiment import Budget
from forgetlab.regularization.regularizer import Regularizer
from forgetlab.replay.slots import Slots
from forgetlab.results.store import Store
from helpers.commands import invoke
from helpers.paths import EXPERIMENTS, ROOT

PUBLISHED = EXPERIMENTS / "published"
TARGETS = PUBLISHED / "targets.csv"
TINY = """
name: tiny
scenario: split_digits
model: {name: mlp, hidden: [16]}
protocol: {budget: {updates: 10}}
references: [naive]
seeds: [0, 1, 2]
"""


def rows() -> dict[str, Target]:
    return {target.name: target for target in read(TARGETS)}


def judged(name: str) -> str:
    """The verdict on a row whose file is run anew."""
    target = rows()[name]
    one = verify.experiment(target.file)
    found = [one_run.run(one.run(one.entries[0], seed)).metrics[verify.METRIC] for seed in one.seeds]
    return verify.outcome(target, found).verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_er", "digits_ewc"])
def test_ours_agrees(name: str) -> None:
    assert judged(name) == "agrees"


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_strength_that_is_off_by_two_is_seen(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Regularizer.__init__
    monkeypatch.setattr(Regularizer, "__init__", lambda self, strength: start(self, factor * strength))
    assert judged("digits_ewc") == "differs"


@pytest.mark.slow
def test_a_buffer_that_drops_a_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[..., None] = Slots.write

    def dropping(self: Slots, places: object, batch: Batch) -> None:
        """Samples of class 0 are taken for others of their batch, where there are any."""
        kept = (batch.y != 0).nonzero().squeeze(1)
        if len(kept) and len(kept) < len(batch.y):
            batch = batch.rows(kept[[i % len(kept) for i in range(len(batch.y))]])
        write(self, places, batch)

    monkeypatch.setattr(Slots, "write", dropping)
    assert judged("digits_er") == "differs"


def test_the_stored_rows_are_enough() -> None:
    found = list(rows().values())
    judged = [row for row in found if row.judged]
    assert len(judged) >= 12 and all(row.seeds >= 5 and len(row.values) == row.seeds for row in judged)
    assert {row.method for row in judged} >= {"EWC", "online EWC", "LwF", "MAS", "DER", "DER++", "ER, reservoir"}
    assert any(not row.judged for row in found)
    assert {row.file for row in found} == set(PUBLISHED.glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_rows_file_is_one_strategy_on_five_seeds_or_more(path: Path) -> None:
    one = load(path)
    assert path.read_text(encoding="utf-8").startswith(f"# forgetlab verify {path.stem}\n#\n# ")
    assert one.name == f"published-{path.stem.replace('_', '-')}"
    assert len(one.entries) == 1 and len(one.seeds) >= 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (tmp_path / "other.yaml").write_text(TINY.replace("tiny", "other").replace("[16]", "[8]"), encoding="utf-8")
    return tmp_path


def line(**cells: str) -> str:
    plain = {
        "name": "tiny",
        "method": "fine-tuning",
        "scenario": "split digits",
        "setting": "class",
        "class_order": "drawn",
        "optimizer": "reset",
        "status": "judged",
        "value": "0.2",
        "spread": "0.01",
        "seeds": "3",
        "margin": "0.5",
        "source": "nobody",
        "origin": "made up",
        "file": "tiny.yaml",
        "values": "",
    }
    return ",".join({**plain, **cells}[column] for column in COLUMNS)


def table(folder: Path, *lines: str) -> Path:
    path = folder / "targets.csv"
    path.write_text("\n".join(["# remarks, with commas", ",".join(COLUMNS), "", *lines]) + "\n", encoding="utf-8")
    return path


def call(path: Path, *arguments: str) -> Result:
    return invoke("verify", "--targets", path, "--runs", path.parent / "runs", *arguments)


@pytest.mark.slow
def test_rows_are_run_and_judged(folder: Path) -> None:
    path = table(folder, line(), line(name="far", value="0.9", file="other.yaml"))
    done = call(path, "tiny")
    assert done.exit_code == 0, done.output
    assert re.search(r"tiny +class .*0\.200 ± 0\.010 \(3\) .* 0\.5 +agrees", done.stdout)
    assert "1 agrees" in done.stdout and "[3/3] naive, seed 2: accuracy" in done.stderr
    red = call(path)
    assert red.exit_code == 1
    assert re.search(r"far +class .* differs", red.stdout) and "1 agrees, 1 differs" in red.stdout
    assert red.stderr.count(", found\n") == 3  # tiny's runs


def test_runs_of_an_earlier_version_are_told(folder: Path) -> None:
    path = table(folder, line())
    assert "earlier version" not in call(path).stderr
    first, *_ = Store(folder / "runs").folders("tiny")
    first.adopt(first.key or "", first.description())
    assert "1 of 3 runs were made by an earlier version and adopted; 'forgetlab run --fresh'" in call(path).stderr


@pytest.mark.slow
def test_the_table_as_markdown_says_the_same(folder: Path) -> None:
    shown = call(table(folder, line()), "--markdown").stdout
    head, sides, row = (text for text in shown.splitlines() if text.startswith("|"))
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert (
        sides.count(":--") == 7 and re.fullmatch(r"0\.\d+ ± 0\.\d+ \(3\)", cells["ours"]) and row.endswith("| agrees |")
    )
    assert cells["class order"] == "drawn" and cells["training"] == "10 updates a task, optimizer reset"
    assert "1 agrees" in shown and "90 % interval" in shown


@pytest.mark.parametrize(
    ("file", "protocol"),
    [
        ("joint_class", RowProtocol("given", "-", "500 updates in all")),
        ("joint_split", RowProtocol("given", "-", "1 epoch in all")),
        ("none_domain", RowProtocol("given", "kept", "100 updates a task")),
        ("si_permuted", RowProtocol("-", "kept", "100 updates a task")),
        ("gem_pairs", RowProtocol("given", "kept", "5 epochs a task")),
    ],
)
def test_the_protocol_of_a_row_is_read_from_its_file(file: str, protocol: RowProtocol) -> None:
    assert verify.row_protocol(load(PUBLISHED / f"{file}.yaml")) == protocol


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"class_order": "given"}, "'class_order' given, and its file has it drawn"),
        ({"optimizer": "kept"}, "'optimizer' kept, and its file has it reset"),
    ],
)
def test_a_judged_row_has_its_files_protocol(folder: Path, cells: dict[str, str], told: str) -> None:
    done = call(table(folder, line(**cells)))
    assert done.exit_code == 2 and done.stderr.startswith(f"{folder / 'tiny.yaml'}: row 'tiny' was made with {told}; ")
    experiment = verify.experiment(folder / "tiny.yaml")
    target = read(table(folder, line(**cells, status="other data", margin="")))[0]
    shown = verify.as_markdown(
        [verify.outcome(target, [0.1, 0.2])], False, {target.file: verify.row_protocol(experiment)}
    )
    assert ("| drawn, theirs given |" in shown) == ("class_order" in cells)


@pytest.mark.slow
def test_two_rows_of_one_file_share_its_runs(folder: Path) -> None:
    done = call(table(folder, line(), line(name="mnist", value="0.9", status="other data", margin="")))
    assert done.exit_code == 0 and done.stderr.count("accuracy") == 3
    assert re.search(r"mnist +class .* 0\.900 ± 0\.010 \(3\) .* - +other data", done.stdout)
    assert "is not judged" in done.stdout


def test_a_shortened_schedule_is_not_comparable(folder: Path) -> None:
    path = table(folder, line(value="0.9"))
    done = call(path, "--quick")
    assert done.exit_code == 0, done.output
    assert re.search(r"tiny +class .*\(2\) .* not comparable", done.stdout)
    assert "not comparable: the schedule was shortened: 2 seeds, 1/5 of the updates or epochs" in done.stdout
    folders = list(Store(folder / "runs").folders())
    assert {one.path.parts[-3] for one in folders} == {"tiny-quick"} and len(folders) == 2
    assert all(one.description()["protocol"]["budget"]["updates"] == 2 for one in folders)


@pytest.mark.parametrize(
    ("budget", "short"),
    [
        (Budget(updates=(10, 3)), Budget(updates=(2, 1))),
        (Budget(epochs=20, first_task=50), Budget(epochs=4, first_task=10)),
    ],
)
def test_every_number_of_a_budget_is_shortened(folder: Path, budget: Budget, short: Budget) -> None:
    whole = verify.experiment(folder / "tiny.yaml")
    given = whole.model_copy(update={"protocol": whole.protocol.model_copy(update={"budget": budget})})
    assert verify.shortened(given).protocol.budget == short


def test_a_run_that_fails_is_red(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("planted")

    path = table(folder, line())
    monkeypatch.setattr(one_run, "run", fails)
    done = call(path)
    assert done.exit_code == 1 and re.search(r"tiny +class +- .* failed", done.stdout)
    assert "failed: planted" in done.stderr


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"value": "high"}, "value: 'high' is not a number"),
        ({"value": "nan"}, "value: 'nan' is not a number"),
        ({"margin": ""}, "margin is empty"),
        ({"margin": "0"}, "margin is 0; it is above 0"),
        ({"spread": "-1"}, "spread is -1, below 0"),
        ({"seeds": "1"}, "seeds is 1; a spread needs a whole number of at least 2"),
        ({"status": "juged"}, "status is 'juged'; did you mean 'judged'?; judged or other data"),
        ({"class_order": "draw"}, "class_order is 'draw'; did you mean 'drawn'?; given or drawn or -"),
        ({"optimizer": ""}, "optimizer is empty"),
        ({"source": ""}, "source is empty"),
        ({"file": "none.yaml"}, "file: there is no "),
        ({"values": "0.1;0.2"}, "2 values for 3 seeds"),
        ({"values": "0.1;0.2;0.4"}, "value is 0.2, but the values give 0.2333"),
        ({"values": "0.1;0.2;0.3"}, "spread is 0.01, but the values give 0.1000"),
        ({"name": "a,b"}, f"{len(COLUMNS) + 1} cells for {len(COLUMNS)} columns"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_table_with_a_mistake_is_refused_by_line(cells: dict[str, str], message: str, folder: Path) -> None:
    path = table(folder, line(name="first"), line(**cells))
    done = call(path)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith(f"{path}:5: {message}")


def test_other_tables_that_cannot_be_used(folder: Path) -> None:
    with pytest.raises(TargetsError, match=r":5: a second row 'tiny'"):
        read(table(folder, line(), line()))
    path = folder / "targets.csv"
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(TargetsError, match="the table is empty"):
        read(path)
    path.write_text("name,value\n", encoding="utf-8")
    with pytest.raises(TargetsError, match=r":1: the columns are name, value; they should be name, method"):
        read(path)
    missing = call(folder / "none.csv")
    assert missing.exit_code == 2 and "'--targets' names another" in missing.stderr


def test_an_unknown_row_names_the_nearest(folder: Path) -> None:
    done = call(table(folder, line()), "tinny")
    assert done.exit_code == 2
    assert done.stderr == "no row 'tinny' among the published numbers; did you mean 'tiny'?\n"
    row = read(folder / "targets.csv")[0]
    assert chosen_targets([row, replace(row, name="b")], ["b"]) == [replace(row, name="b")]


def test_a_rows_file_with_several_strategies_is_refused(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(TINY.replace("[naive]", "[naive, ridge]"), encoding="utf-8")
    done = call(table(folder, line()))
    assert done.exit_code == 2
    assert done.stderr.endswith("has one entry and two seeds or more, not 2 entries and 3 seeds\n")
    (folder / "tiny.yaml").write_text(TINY.replace("naive", "naif"), encoding="utf-8")
    broken = call(folder / "targets.csv")
    assert broken.exit_code == 2 and "tiny.yaml:6:" in broken.stderr


def test_the_published_table_tells_of_every_row() -> None:
    """What docs/published.md says of theirs is what the stored rows hold; a row without a line there is stale."""
    told = {}
    for text in (ROOT / "docs" / "published.md").read_text(encoding="utf-8").splitlines():
        if text.startswith("| ") and " ± " in text:
            cells = [cell.strip() for cell in text.strip("|").split(" | ")]
            told[cells[0]] = cells
    targets = read(TARGETS)
    assert told.keys() == {target.name for target in targets}
    for target in targets:
        assert str(target.theirs) in told[target.name], target.name
        assert ("other data" in told[target.name]) == (not target.judged), target.name
