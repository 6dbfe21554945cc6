"""Finished runs of an earlier version are taken over where nothing that can be compared differs, and marked."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from forgetlab.cli import tables
from forgetlab.cli.main import main
from forgetlab.config import load
from forgetlab.engine import adoption, one_run, settings_then
from forgetlab.engine.all_runs import carry_out
from forgetlab.engine.events import RunEnded, RunFound, TrialEnded
from forgetlab.experiment import Experiment, Run
from forgetlab.plugins import registry
from forgetlab.results import run_key as fingerprint
from forgetlab.results import store
from forgetlab.results.run_key import run_key
from forgetlab.results.store import RunFolder, Store

OLD = Path(__file__).with_name("old_store")
FILE = """
name: first
scenario: {name: split_digits, n_tasks: 2}
model: {name: mlp, hidden: [8]}
protocol: {budget: {updates: 3}}
references: [naive]
strategies:
  - {name: lora, isolation: {name: lora, rank: 1, sites: [mlp.in]}, router: prototype}
"""
TUNED = """
name: searched
scenario: {name: split_digits, n_tasks: 5}
model: {name: mlp, hidden: [4]}
protocol: {budget: {updates: 3}}
references: []
strategies:
  - {name: ewc, regularization: {name: ewc, strength: [1, 100]}}
tuning: {tasks: 2}
"""
EARLIER = "0" * 63 + "1"  # a key of a version before this one
PLUGIN = '''
"""A regularizer of one's own."""

from collections.abc import Iterable

from torch import Tensor, nn

from forgetlab.plugins import register
from forgetlab.regularization import Batch, Regularizer


@register("regularizer", "adopted_penalty")
class Nothing(Regularizer):
    """0"""

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        return 0 * output.sum()

    def consolidate(self, model: nn.Module, data: Iterable[Batch]) -> None:
        pass
'''


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def experiment(folder: Path, *changes: tuple[str, str], text: str = FILE) -> Experiment:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return load.load(path)


def carried_out(given: Experiment, root: Path) -> tuple[list[RunFolder], list[str]]:
    """The folders, and for each run and each trial whether it was found or trained."""
    events: list[str] = []

    def note(event: object) -> None:
        one = event.last if isinstance(event, TrialEnded) else event
        if isinstance(one, RunFound | RunEnded):
            events.append("found" if isinstance(one, RunFound) else "trained")

    return carry_out(given, Store(root), report=note), events


def key_of(run: Run) -> str:
    one_run.set_process(run)
    return run_key(run, one_run.load_scenario(run))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_configs(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if Path(name).name != "config.yaml"}


def moved(root: Path, key: str = EARLIER) -> None:
    """Give each run below a folder the key of another version, as a move of the code would have."""
    for number, path in enumerate(sorted(root.rglob("config.yaml"))):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"\Akey: \w+", f"key: {number}{key[1:]}", text), encoding="utf-8")


def verdicts(outcomes: list[adoption.Adoption]) -> list[str]:
    return [("trial " if outcome.trial else "") + outcome.verdict for outcome in outcomes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs of the file, and the searched one with its trials."""
    folder = tmp_path_factory.mktemp("made")
    for text in (FILE, TUNED):
        carry_out(experiment(folder, text=text), Store(folder / "runs"))
    shutil.rmtree(folder / "runs" / store.LOCKS)
    return folder / "runs"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A store of its own for each test; an earlier version made it."""
    shutil.copytree(made, tmp_path / "runs")
    moved(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    registry.discover()
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(registry, "_files", dict(registry._files))


# A store that an earlier version left


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the store that the tree of an earlier commit left, as if it had had this machine's packages."""
    shutil.copytree(OLD, tmp_path / "old")
    for path in (tmp_path / "old").rglob("timing.json"):
        timing = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**timing, "packages": fingerprint.versions()}), encoding="utf-8")
    return tmp_path / "old"


def test_a_store_of_an_earlier_tree_is_taken_over_and_all_of_it_is_found(old: Path) -> None:
    files, root = [old / "old.yaml", old / "old_tuned.yaml"], old / "store"
    before, had = contents(root), {str(path): RunFolder(path.parent).key for path in root.rglob("config.yaml")}
    done = call("runs", "adopt", *files, "--runs", root)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "  naive, seed 0: adopted\n"
        "  lora, seed 0: adopted\n"
        "old: of 2 runs 2 adopted\n"
        "  ewc, seed 0: adopted\n"
        "old_tuned: of 1 runs 1 adopted; of 2 trials 2 adopted\n"
    )
    for path, key in had.items():
        folder = RunFolder(Path(path).parent)
        assert folder.adopted_from == [key] and folder.key != key
    after = {name: content for name, content in contents(root).items() if not name.startswith(store.LOCKS)}
    assert without_configs(after) == without_configs(before)
    for name, content in before.items():
        if name.endswith("config.yaml"):
            assert after[name].split(b"\n")[2:] == content.split(b"\n")[1:]
    for path, how in zip(files, (["found"] * 2, ["found"] * 3), strict=True):
        assert carried_out(load.load(path), root)[1] == how
    for name, content in contents(OLD / "store").items():
        if name.endswith(("result.json", ".safetensors")):
            assert contents(root)[name] == content


def test_the_store_is_of_another_tree_and_tells_nothing_of_a_machine(old: Path) -> None:
    """The first half: without adoption all would run again."""
    given = load.load(old / "old.yaml")
    for run in given.runs():
        folder = Store(old / "store").folder("old", run.strategy.name, 0)
        assert folder.key != key_of(run) and Store(old / "store").find(key_of(run), folder) is None
    for path in (OLD / "store").rglob("timing.json"):
        assert not {"host", "system", "processors"} & json.loads(path.read_text(encoding="utf-8")).keys()


def test_the_modules_of_an_adopted_run_are_used_as_before(old: Path) -> None:
    assert call("runs", "adopt", old / "old.yaml", "--runs", old / "store").exit_code == 0
    shown = call("modules", "old/lora", "--runs", old / "store")
    assert shown.exit_code == 0 and "mlp.in" in shown.stdout, shown.output


def test_the_table_tells_whose_runs_were_adopted(old: Path) -> None:
    call("runs", "adopt", old / "old.yaml", "--runs", old / "store")
    for options in ([], ["--markdown"]):
        told = " ".join(call("compare", "old", "--runs", old / "store", *options).stdout.split())
        assert "Adopted, made by an earlier version: naive (1 of 1)." in told
        assert "Adopted, made by an earlier version: lora (1 of 1)." in told


# A store whose keys are moved


def test_what_is_adopted_has_todays_key_and_nothing_else_is_written(root: Path, tmp_path: Path, made: Path) -> None:
    given = experiment(tmp_path)
    outcomes = adoption.adopt(given, Store(root))
    assert verdicts(outcomes) == ["adopted", "adopted"]
    for run in given.runs():
        folder = Store(root).folder("first", run.strategy.name, 0)
        assert folder.key == key_of(run) and folder.adopted_from[0].endswith(EARLIER[1:])
        assert folder.holds(one_run.plain(run))
    assert without_configs(contents(root / "first")) == without_configs(contents(made / "first"))
    assert carried_out(given, root)[1] == ["found", "found"]


@pytest.mark.parametrize("gone", ["reuse_frozen: true\n", "  weight_decay: 0.0\n", "    dropout: 0.0\n"])
def test_an_option_that_has_come_since_counts_as_its_default(root: Path, tmp_path: Path, gone: str) -> None:
    """Of the run, of a section, of a plug-in; then the folder tells it, as if it had been there."""
    given = experiment(tmp_path)
    lora = Store(root).folder("first", "lora", 0)
    change_text("config.yaml", gone, "")(lora.path)
    assert verdicts(adoption.adopt(given, Store(root))) == ["adopted", "adopted"]
    assert gone.strip() in (lora.path / "config.yaml").read_text(encoding="utf-8")
    assert carried_out(given, root)[1] == ["found", "found"]


def test_options_of_plugins_that_are_named_by_others_count_as_their_defaults() -> None:
    spec = {"name": "stream", "data": {"name": "joined", "parts": [{"name": "digits"}, "mnist_5k"]}}
    now = registry.resolve("scenario", "stream", {key: value for key, value in spec.items() if key != "name"})
    filled = settings_then._with_default_options("scenario", spec)
    assert filled["n_tasks"] == now["n_tasks"] and filled["data"]["parts"][1] == "mnist_5k"
    assert filled["data"] == {
        "name": "joined",
        **registry.resolve("data", "joined", {"parts": spec["data"]["parts"]}),
        "parts": filled["data"]["parts"],
    }


def test_what_computes_other_numbers_since_is_not_taken_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in whose numbers changed on a day later than the run."""
    given = experiment(tmp_path)
    before = replace(registry.find("isolation", "lora"), renewed="2026-11-30")
    later = replace(before, renewed="2999-01-01")
    for plugin, verdict in ((later, "refused"), (before, "adopted")):
        monkeypatch.setitem(registry._plugins, ("isolation", "lora"), plugin)
        outcomes = adoption.adopt(given, Store(root), dry_run=True)
        assert verdicts(outcomes) == ["adopted", verdict]
        if verdict == "refused":
            assert outcomes[1].reasons == ("isolation lora computes other numbers since 2999-01-01",)


@pytest.mark.parametrize("day", ["2026-13-01", "today", "20261201"])
def test_a_day_that_is_none_is_refused(day: str) -> None:
    with pytest.raises(registry.PluginError, match="'renewed' of memory 'no_day' should be a day"):
        registry.register("memory", "no_day", renewed=day)


def test_the_mark_goes_with_a_copy_and_is_gone_when_a_run_is_made_anew(root: Path, tmp_path: Path) -> None:
    adoption.adopt(experiment(tmp_path), Store(root))
    folders, how = carried_out(experiment(tmp_path, ("name: first", "name: second")), root)
    assert how == ["found", "found"] and all(run.adopted for run in tables.finished(folders))
    again = carry_out(experiment(tmp_path), Store(root), fresh=True)
    assert not any(folder.adopted_from for folder in again)
    assert not any(run.adopted for run in tables.finished(again))


def test_a_run_is_adopted_once_and_again_when_its_key_moves_again(root: Path, tmp_path: Path) -> None:
    given = experiment(tmp_path)
    adoption.adopt(given, Store(root))
    before = contents(root)
    assert verdicts(adoption.adopt(given, Store(root))) == ["current", "current"]
    assert contents(root) == before
    naive = Store(root).folder("first", "naive", 0)
    first, second = naive.adopted_from[0], "2" + EARLIER[1:]
    path = naive.path / "config.yaml"
    path.write_text(re.sub(r"\Akey: \w+", f"key: {second}", path.read_text(encoding="utf-8")), encoding="utf-8")
    assert verdicts(adoption.adopt(given, Store(root))) == ["adopted", "current"]
    assert naive.adopted_from == [first, second] and naive.key == key_of(given.runs()[0])
    stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(stored)[:3] == ["key", "adopted_from", "scenario"]


def test_a_dry_run_tells_and_writes_nothing(root: Path, tmp_path: Path) -> None:
    experiment(tmp_path)
    before = contents(root)
    done = call("runs", "adopt", tmp_path / "file.yaml", "--runs", root, "--dry-run")
    assert done.exit_code == 0 and contents(root) == before
    assert done.stdout == (
        "  naive, seed 0: would be adopted\n  lora, seed 0: would be adopted\nfirst: of 2 runs 2 would be adopted\n"
    )


def test_a_full_disk_is_told_in_a_line_and_nothing_is_half_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run's file finds no room: the first stays adopted, the second as it was."""
    experiment(tmp_path)
    before = contents(root)
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "lora" in path.parts:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    done = call("runs", "adopt", tmp_path / "file.yaml", "--runs", root)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert "No space left on device; what was adopted before stays so" in done.stderr
    after = contents(root)
    changed = {name for name in before if before[name] != after[name]}
    assert changed and all("naive" in str(name) for name in changed)
    assert {str(name) for name in after.keys() - before.keys()} <= {".locks/first"}  # no part of a file is left


def change_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
        change(value)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    return changed


def change_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return changed


def write(name: str, text: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / name).write_text(text, encoding="latin-1")

    return changed


REFUSED = {
    "another option": (change_text("config.yaml", "lr: 0.001", "lr: 0.01"), "train.lr: 0.01 then, 0.001 now"),
    "an option of its plug-in": (change_text("config.yaml", "rank: 1", "rank: 2"), "strategy.isolation.rank: 2 then"),
    "an option that is gone": (
        change_text("config.yaml", "threads: 1", "threads: 1\nwarp: 9"),
        "warp: 9 then, nothing now",
    ),
    "an option that is new, and not at its default": (
        change_text("config.yaml", "    rank: 1\n", ""),
        "strategy.isolation.rank: 8 then, 1 now",
    ),
    "a file of today that asks for more than the default of an option that is new": (
        change_text("config.yaml", "  budget:\n    updates: 3\n", ""),
        "protocol.budget.updates: nothing then, 3 now",
    ),
    "a part of the stream": (change_text("config.yaml", "threads: 1", "threads: 1\npart: {first: 2}"), "part.first: 2"),
    "another package": (
        change_json("timing.json", lambda timing: timing["packages"].update(torch="1.13.0")),
        "torch 1.13.0 then, ",
    ),
    "a package that was not there": (
        change_json("timing.json", lambda timing: timing["packages"].pop("numpy")),
        "numpy not installed then, ",
    ),
    "no packages": (change_json("timing.json", lambda timing: timing.pop("packages")), "does not tell which packages"),
    "no timing": (write("timing.json", "["), "does not tell which packages"),
    "other classes": (
        change_json("result.json", lambda result: result["classes_per_task"][0].reverse()),
        "classes of the tasks: ",
    ),
    "other tasks": (
        change_json("result.json", lambda result: result["task_names"].reverse()),
        "tasks: ",
    ),
    "other test data": (
        change_json("result.json", lambda result: result["test_sizes"].__setitem__(0, 7)),
        "test samples of the tasks: [7, ",
    ),
    "a description that is none": (write("config.yaml", "key: 1\n- a\n- b\n"), "its config.yaml cannot be read"),
    "a description that is no YAML": (write("config.yaml", "key: 1\n{:"), "its config.yaml cannot be read"),
    "a description that is no text": (write("config.yaml", "key: 1\nx: \xff"), "its config.yaml cannot be read"),
    "a result of another version": (
        change_json("result.json", lambda result: result.update(version=99)),
        "its result.json is none that this version reads",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_the_run_of_today_is_left_and_told(root: Path, tmp_path: Path, what: str) -> None:
    change, told = REFUSED[what]
    lora = root / "first" / "lora" / "seed-0"
    change(lora)
    before = contents(lora)
    experiment(tmp_path)
    done = call("runs", "adopt", tmp_path / "file.yaml", "--runs", root)
    assert done.exit_code == 1, done.output
    assert "  naive, seed 0: adopted\n" in done.stdout
    assert "  lora, seed 0: not adopted: " in done.stdout and told in done.stdout
    assert done.stdout.endswith("first: of 2 runs 1 adopted, 1 not adopted\n")
    assert contents(lora) == before


@pytest.mark.parametrize(
    "change",
    [
        change_json("result.json", lambda result: result["accuracy"].pop()),
        lambda folder: (folder / "result.json").unlink(),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_what_is_not_finished_is_left_for_the_next_run(
    root: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    lora = root / "first" / "lora" / "seed-0"
    change(lora)
    before = contents(lora)
    experiment(tmp_path)
    done = call("runs", "adopt", tmp_path / "file.yaml", "--runs", root)
    assert done.exit_code == 0, done.output
    assert done.stdout == "  naive, seed 0: adopted\nfirst: of 2 runs 1 adopted, 1 not finished\n"
    assert contents(lora) == before


def test_a_command_that_is_stopped_leaves_every_run_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, before, calls = experiment(tmp_path), contents(root), []

    def stopped(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, target)  # type: ignore[arg-type]

    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            adoption.adopt(given, Store(root))
    after = {name: content for name, content in contents(root).items() if not name.startswith(store.LOCKS)}
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == ["first/naive/seed-0/config.yaml"]
    assert verdicts(adoption.adopt(given, Store(root))) == ["current", "adopted"]


def test_a_run_elsewhere_in_the_store_is_adopted_where_it_lies(root: Path, tmp_path: Path) -> None:
    """Under another name, and set aside: `forgetlab run` looks there too."""
    other = experiment(tmp_path, ("name: first", "name: second"), ("{name: lora, isolation", "{name: mine, isolation"))
    (root / store.SET_ASIDE).mkdir()
    shutil.move(root / "first" / "naive" / "seed-0", root / store.SET_ASIDE / EARLIER)
    assert verdicts(adoption.adopt(other, Store(root))) == ["adopted", "adopted"]
    assert RunFolder(root / "first" / "lora" / "seed-0").adopted_from
    assert RunFolder(root / store.SET_ASIDE / EARLIER).adopted_from
    folders, how = carried_out(other, root)
    assert how == ["found", "found"] and all(folder.adopted_from for folder in folders)


def test_what_this_version_made_is_not_replaced_by_what_an_earlier_one_did(
    root: Path, tmp_path: Path, made: Path
) -> None:
    shutil.copytree(made / "first", root / "as-it-is")
    before = contents(root / "first")
    assert verdicts(adoption.adopt(experiment(tmp_path), Store(root))) == ["current", "current"]
    assert contents(root / "first") == before


def test_a_run_of_a_busy_experiment_is_left_and_told(root: Path, tmp_path: Path) -> None:
    other = experiment(tmp_path, ("name: first", "name: second"))
    before = contents(root / "first")
    with Store(root).alone("first"):
        outcomes = adoption.adopt(other, Store(root))
        assert verdicts(outcomes) == ["refused", "refused"]
        assert "another process is at work on it" in outcomes[0].reasons[0]
    with Store(root).alone("second"):
        done = call("runs", "adopt", tmp_path / "file.yaml", "--runs", root)
    assert done.exit_code == 2 and "another process is at work on it" in done.stderr
    assert contents(root / "first") == before


def test_a_folder_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    experiment(tmp_path)
    done = call("runs", "adopt", tmp_path / "file.yaml", "--runs", tmp_path / "nowhere")
    assert done.exit_code == 2 and "nowhere" in done.stderr and not (tmp_path / "nowhere").exists()


# Searches


def test_a_searched_run_and_its_trials_are_adopted(root: Path, tmp_path: Path) -> None:
    given = experiment(tmp_path, text=TUNED)
    outcomes = adoption.adopt(given, Store(root))
    assert verdicts(outcomes) == ["adopted", "trial adopted", "trial adopted"]
    assert carried_out(given, root)[1] == ["found"] * 3
    assert verdicts(adoption.adopt(given, Store(root))) == ["current", "trial current", "trial current"]


def test_a_trial_that_is_no_longer_asked_for_is_passed_over(root: Path, tmp_path: Path) -> None:
    given = experiment(tmp_path, ("[1, 100]", "[1, 10]"), text=TUNED)
    outcomes = adoption.adopt(given, Store(root))
    assert verdicts(outcomes) == ["refused", "trial adopted"]
    assert outcomes[0].reasons == ("its options were chosen by another search",)


def test_a_trial_with_other_settings_is_left_and_told(root: Path, tmp_path: Path) -> None:
    given = experiment(tmp_path, ("updates: 3", "updates: 4"), text=TUNED)
    before = contents(root / store.TRIALS)
    outcomes = adoption.adopt(given, Store(root))
    assert verdicts(outcomes) == ["refused", "trial refused", "trial refused"]
    assert outcomes[1].run == "trial ewc.strength=1.0, seed 0"
    assert all(outcome.reasons == ("protocol.budget.updates: 3 then, 4 now",) for outcome in outcomes)
    assert contents(root / store.TRIALS) == before


def test_a_searched_run_whose_rivals_have_other_trials_today_is_left(root: Path, tmp_path: Path) -> None:
    """How many trials the others get stands in a run's description, and so in its key."""
    change = change_text("config.yaml", "  of: 2\n", "  of: 3\n")
    change(root / "searched" / "ewc" / "seed-0")
    outcomes = adoption.adopt(experiment(tmp_path, text=TUNED), Store(root))
    assert verdicts(outcomes) == ["refused", "trial adopted", "trial adopted"]


# What its owner should know


@pytest.mark.usefixtures("own_registry")
def test_an_own_plugin_file_that_was_changed_since_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    text = FILE[: FILE.index("references")] + "references: []\nplugins: [./mine.py]\nstrategies: [PENALTY]\n"
    entry = ("PENALTY", "{name: mine, regularization: {name: adopted_penalty, strength: 1}}")
    given = experiment(tmp_path, entry, text=text)
    carry_out(given, Store(tmp_path / "runs"))
    os.utime(tmp_path / "mine.py", (0, 0))
    moved(tmp_path / "runs")
    (outcome,) = adoption.adopt(given, Store(tmp_path / "runs"), dry_run=True)
    assert (outcome.verdict, outcome.note) == ("adopted", "")
    with (tmp_path / "mine.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    os.utime(tmp_path / "mine.py", (2**33, 2**33))
    done = call("runs", "adopt", tmp_path / "file.yaml", "--runs", tmp_path / "runs")
    assert done.exit_code == 0
    told = "mine.py was changed after it; its numbers are of the file as it was"
    assert f"  mine, seed 0: adopted ({told})\n" in done.stdout
