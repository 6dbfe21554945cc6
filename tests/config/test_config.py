"""A scenario file's shorthands and defaults, the places of refusals in them, and the resolved file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import NonNegativeFloat, PositiveInt

from forgetlab.config import load as config
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.experiment import Experiment, Strategy
from forgetlab.plugins import registry
from forgetlab.plugins.registry import register
from forgetlab.preflight import problems

Load = Callable[..., Experiment]
MADE_UP = """
name: made-up
scenario: {name: cards, n_tasks: 3, setting: SETTING}
model: tower
"""


def register_made_up_plugins() -> None:
    @register("scenario", "cards")
    def cards(seed: int, setting: str = "class-incremental", n_tasks: PositiveInt = 2) -> None: ...

    @register("scenario", "drift")
    def drift(seed: int, speed: float = 0.5) -> None: ...

    @register("model", "tower")
    def tower(input_shape: tuple[int, ...], hidden: tuple[PositiveInt, ...] = (8, 8)) -> None: ...

    @register("reference", "joint")
    def joint(prefixes: Literal["all", "final"] = "all") -> None: ...

    for name in ("separate", "naive", "oddity"):
        register("reference", name)(lambda: None)

    @register("memory", "box")
    def box(capacity: PositiveInt, margin: float = 0.5) -> None: ...

    @register("rehearsal", "echo")
    def echo(temperature: float = 2.0, margin: float = 0.1) -> None: ...

    @register("regularizer", "spring")
    def spring(strength: NonNegativeFloat = 1.0, kind: str | None = "soft") -> None: ...

    @register("projection", "cone")
    def cone(slack: float = 0.0) -> None: ...

    @register("isolation", "patch")
    def patch(rank: PositiveInt = 4, sites: tuple[Literal["in", "out"], ...] = ("in",)) -> None: ...

    @register("router", "prototype")
    def prototype(nearest: PositiveInt = 1) -> None: ...


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a file of these strategies, beside what a file needs at least."""
    registry.discover()  # once, before the registry is replaced
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(problems, "experiment_problems", lambda experiment: [])
    register_made_up_plugins()

    def load_text(text: str = "", *, setting: str = "class-incremental", head: str = MADE_UP) -> Experiment:
        path = tmp_path / "file.yaml"
        path.write_text(head.replace("SETTING", setting) + text, encoding="utf-8")
        return config.load(path)

    return load_text


def one(load: Load, entry: str, **how: str) -> Strategy:
    (strategy,) = load(f"strategies:\n  - {entry}\n", **how).strategies
    return strategy


def refused(load: Load, text: str, **how: str) -> list[str]:
    """What is told, from line 5 on, where the text begins: ``LINE:COLUMN: message``."""
    with pytest.raises(FileErrors) as caught:
        load(text, **how)
    return [f"{p.line}:{p.column}: {p.message}" for p in caught.value.problems]


def assert_refused_at_the_mark(load: Load, marked: str, told: str) -> None:
    """One problem is told, and it stands where the text has a ^."""
    before = marked.partition("^")[0].splitlines()
    (line,) = refused(load, marked.replace("^", ""))
    assert line.startswith(f"{4 + len(before)}:{len(before[-1]) + 1}: {told}")


def test_a_file_that_names_only_what_it_must(load: Load) -> None:
    experiment = load()
    assert experiment.scenario == {"name": "cards", "setting": "class-incremental", "n_tasks": 3}
    assert experiment.model == {"name": "tower", "hidden": [8, 8]}
    assert experiment.protocol.task_known_at_test is False
    assert experiment.protocol.budget.epochs == 1
    assert experiment.references == (
        {"name": "naive"},
        {"name": "joint", "prefixes": "all"},
        {"name": "separate"},
    )
    assert (experiment.strategies, experiment.seeds, experiment.threads) == ((), (0,), 1)
    assert experiment.device in ("cpu", "cuda")


def test_sections_left_empty_are_as_if_left_out(load: Load) -> None:
    assert load("protocol:\ntrain:\nstrategies:\nseeds:\nplugins:\n") == load()


@pytest.mark.parametrize(
    ("written", "whole"),
    [
        ("naive", {"name": "naive"}),
        ("{naive: }", {"name": "naive"}),
        ("joint", {"name": "joint", "prefixes": "all"}),
        ("{joint: {prefixes: final}}", {"name": "joint", "prefixes": "final"}),
        ("{name: joint, prefixes: final}", {"name": "joint", "prefixes": "final"}),
        ("{oddity: {}}", {"name": "oddity"}),
    ],
)
def test_ways_to_write_a_reference(load: Load, written: str, whole: dict[str, Any]) -> None:
    assert load(f"references: [{written}]\n").references == (whole,)


@pytest.mark.parametrize("none", ["[]", "null", ""])
def test_no_references(load: Load, none: str) -> None:
    assert load(f"references: {none}\n").references == ()


@pytest.mark.parametrize(
    "replay",
    [
        "{memory: box, rehearsal: echo, capacity: 5, temperature: 3.0}",
        "{memory: {name: box, capacity: 5}, rehearsal: echo, temperature: 3}",
        "{memory: {name: box, capacity: 5}, rehearsal: {name: echo, temperature: 3}, projection: }",
    ],
)
def test_options_of_replay_beside_the_names_or_inside(load: Load, replay: str) -> None:
    strategy = one(load, f"replay: {replay}")
    assert strategy.replay is not None
    assert strategy.replay.memory == {"name": "box", "capacity": 5, "margin": 0.5}
    assert strategy.replay.rehearsal == {"name": "echo", "temperature": 3.0, "margin": 0.1}
    assert strategy.replay.projection is None
    assert (strategy.name, strategy.family) == ("box+echo", "replay")


@pytest.mark.parametrize(
    ("replay", "told"),
    [
        (
            "{memory: box, rehearsal: echo, capacity: 5, ^margin: 1.0}",
            "'margin' is an option of both memory and rehearsal; "
            "write it inside of one: 'memory: {name: box, margin: ...}'",
        ),
        ("{memory: {name: box, capacity: 5}, ^capacity: 6}", "'capacity' is given here and in 'memory'"),
        ("{memory: box, capacity: 5, ^strength: 1}", "unknown key 'strength' in replay; valid keys: memory"),
        ("{memory: box, capacity: 5, ^margn: 1}", "unknown key 'margn' in replay; did you mean 'margin'?"),
        ("{memory: box, capacity: ^0}", "'capacity': input should be greater than 0, not 0"),
        ("{memory: {name: box, capacity: ^0}}", "'capacity': input should be greater than 0, not 0"),
        ("{memory: {name: box, capacity: 5, ^margn: 1}}", "unknown key 'margn' in memory; did you mean"),
        ("{memory: ^box}", "'capacity' is missing"),
        ("^{rehearsal: echo}", "'memory' is missing"),
        ("{memory: ^boxx, capacity: 5}", "no memory 'boxx'; did you mean 'box'?"),
        ("^box", "'replay' must be a mapping, such as {memory: reservoir}"),
        ("{memory: ^[box]}", "'memory' must be a plug-in's name, or a mapping"),
    ],
)
def test_where_replay_is_refused(load: Load, replay: str, told: str) -> None:
    assert_refused_at_the_mark(load, f"strategies:\n  - replay: {replay}\n", told)


def test_regularization_is_a_regularizer_or_a_projection(load: Load) -> None:
    whole = {"name": "spring", "strength": 1.0, "kind": "soft"}
    assert one(load, "regularization: spring").regularization == (whole,)
    assert one(load, "regularization: cone").regularization == ({"name": "cone", "slack": 0.0},)
    both = one(load, "regularization: [spring, {name: cone, slack: 0.5}]")
    assert (both.regularization, both.name) == ((whole, {"name": "cone", "slack": 0.5}), "spring+cone")
    assert refused(load, "strategies: [{regularization: con}]\n") == [
        "5:31: no regularizer or projection or regime 'con'; did you mean 'cone'?"
    ]
    (neither,) = refused(load, "strategies: [{regularization: xyz}]\n")
    assert "there are: spring" in neither and "there are: cone" in neither


@pytest.mark.parametrize(
    ("setting", "written", "router", "name"),
    [
        ("class-incremental", "", {"name": "prototype", "nearest": 1}, "patch+prototype"),
        ("class-incremental", "oracle", {"name": "oracle"}, "patch+oracle"),
        (
            "domain-incremental",
            "{name: prototype, nearest: 3}",
            {"name": "prototype", "nearest": 3},
            "patch+prototype",
        ),
        ("task-incremental", "", {"name": "oracle"}, "patch"),
        ("task-incremental", "prototype", {"name": "prototype", "nearest": 1}, "patch+prototype"),
    ],
)
def test_the_router_follows_from_what_is_known_at_test(
    load: Load, setting: str, written: str, router: dict[str, Any], name: str
) -> None:
    strategy = one(load, f"{{isolation: patch, router: {written}}}", setting=setting)
    assert (strategy.router, strategy.name) == (router, name)


@pytest.mark.parametrize(
    ("router", "told"),
    [
        ("^oracel", "no router 'oracel'; did you mean 'oracle'?"),
        ("{name: oracle, ^nearest: 1}", "unknown key 'nearest' in router; valid keys: none"),
        ("^3", "'router' must be a plug-in's name"),
    ],
)
def test_where_a_router_is_refused(load: Load, router: str, told: str) -> None:
    assert_refused_at_the_mark(load, f"strategies: [{{isolation: patch, router: {router}}}]\n", told)


def test_whether_the_task_is_known_follows_from_the_setting(load: Load) -> None:
    known = {
        setting: load("", setting=setting).protocol.task_known_at_test
        for setting in ("class-incremental", "task-incremental", "domain-incremental")
    }
    assert known == {"class-incremental": False, "task-incremental": True, "domain-incremental": False}
    repeated = load("protocol: {task_known_at_test: true}\n", setting="task-incremental")
    assert repeated.protocol.task_known_at_test is True
    (line,) = refused(load, "protocol: {task_known_at_test: false}\n", setting="task-incremental")
    assert line.startswith("5:32: 'setting: task-incremental' means that the task is known at test")


def test_a_scenario_without_a_setting_leaves_the_choice(load: Load) -> None:
    drift = "name: d\nscenario: drift\nmodel: tower\n"
    assert load("", head=drift).protocol.task_known_at_test is False
    assert load("protocol: {task_known_at_test: true}\n", head=drift).protocol.task_known_at_test is True


def test_a_head_per_task_needs_the_task_or_modules_of_their_own(load: Load) -> None:
    per_task = "protocol: {head: per-task}\n"
    assert load(per_task, setting="task-incremental").protocol.head == "per-task"
    assert load(f"{per_task}references: [separate]\nstrategies: [isolation: patch]\n").protocol.head == "per-task"
    (line,) = refused(load, f"{per_task}references: [separate]\nstrategies: [regularization: spring]\n")
    assert line.startswith("5:18: 'per-task' cannot work") and line.endswith("answers in spring")


def test_the_loss_on_all_classes_needs_a_head_that_has_them(load: Load) -> None:
    assert load("protocol: {loss_classes: all, head: fixed}\n").protocol.loss_classes == "all"
    (line,) = refused(load, "protocol: {loss_classes: all}\n")
    assert line.startswith("5:26: 'all' needs 'head: fixed': a growing head has no outputs")


def test_avalanche_arguments_pass_through(load: Load) -> None:
    plugin = one(load, "avalanche: {plugin: MASPlugin, lambda_reg: 1.0, anything: [1]}")
    assert plugin.avalanche == {"plugin": "MASPlugin", "lambda_reg": 1.0, "anything": [1]}
    assert (plugin.name, plugin.family) == ("MASPlugin", "avalanche")
    assert one(load, "avalanche: {strategy: AR1}").name == "AR1"
    for wrong in ("{}", "{plugin: A, strategy: B}", "{plugin: 3}", "MASPlugin"):
        (line,) = refused(load, f"strategies: [{{avalanche: {wrong}}}]\n")
        assert line.startswith("5:26: 'avalanche' needs either 'plugin' or 'strategy'")


def test_an_override_is_checked_like_the_section_and_keeps_only_what_is_given(load: Load) -> None:
    assert one(load, "{regularization: spring, train: {lr: 1}}").train == {"lr": 1.0}
    assert refused(load, "strategies:\n  - regularization: spring\n    train: {lr: fast, momentum: 1.0}\n") == [
        "7:17: 'lr': input should be a valid number, not 'fast'",
        "7:33: 'momentum': input should be less than 1, not 1.0",
    ]


def test_names_that_are_taken(load: Load) -> None:
    twice = "strategies:\n  - {regularization: spring}\n  - {regularization: spring, name: Spring}\n"
    hint = "give this one another 'name'"
    assert refused(load, twice) == [f"7:36: two entries are called 'Spring'; {hint}"]
    reference = "references: [naive]\nstrategies: [{regularization: spring, name: naive}]\n"
    assert refused(load, reference) == [f"6:45: two entries are called 'naive'; {hint}"]
    assert load(reference.replace("[naive]", "[]")).strategies[0].name == "naive"


@pytest.mark.parametrize("name", [".hidden", "a/b", "..", "a b", "ü", '""', '"x\\n"', "a" * 101])
def test_names_that_are_no_safe_folders(load: Load, name: str) -> None:
    (line,) = refused(load, f"strategies: [{{regularization: spring, name: {name}}}]\n")
    assert line.startswith("5:45: 'name': should be 1 to 100 letters, digits or . _ - +")


def test_pretraining(load: Load) -> None:
    cards = {"name": "cards", "setting": "class-incremental", "n_tasks": 2}
    assert load("pretrain: {scenario: cards}\n").pretrain == {
        "scenario": cards,
        "objective": "supervised",
        "epochs": 5,
    }
    nested = load("pretrain: {scenario: {name: cards, n_tasks: 1}, objective: masked, epochs: 2}\n").pretrain
    assert nested == {"scenario": {**cards, "n_tasks": 1}, "objective": "masked", "epochs": 2, "share": 0.15}
    assert refused(load, "pretrain: {epochs: 0, scenarios: cards}\n") == [
        "5:20: 'epochs': input should be greater than 0, not 0",
        "5:23: unknown key 'scenarios' in pretrain; did you mean 'scenario'?",
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps"])
def test_a_device_is_kept_as_it_is_named(load: Load, device: str) -> None:
    assert load(f"device: {device}\n").device == device


def test_plugin_files_are_found_beside_the_scenario_file(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_files", {})
    (tmp_path / "parts").mkdir()
    model = "@register('model', 'mine')\ndef mine(input_shape, depth: int = 2): ...\n"
    code = f"from forgetlab.plugins import register\n\n{model}"
    (tmp_path / "parts" / "mine.py").write_text(code, encoding="utf-8")
    experiment = load("plugins: [./parts/mine.py]\n", head=MADE_UP.replace("tower", "mine"))
    assert experiment.model == {"name": "mine", "depth": 2}
    assert experiment.plugins == (str(tmp_path / "parts" / "mine.py"),)
    monkeypatch.chdir(tmp_path)
    assert config.load(Path("file.yaml")).plugins == (str(Path("parts/mine.py")),)


def test_problems_of_text_and_meaning_are_told_together_and_in_order(load: Load) -> None:
    told = refused(load, "seeds: [0]\nseeds: [1]\nthreads: 0\nstrategies: [{regularization: !odd spring}, {x: 1}]\n")
    assert [line.split(": ")[0] for line in told] == ["6:1", "7:10", "8:31", "8:46"]


def test_what_follows_from_a_tag_is_not_told(load: Load) -> None:
    assert refused(load, "threads: !odd many\n") == ["5:10: tags such as !odd are not allowed"]


def test_what_cannot_be_carried_out_is_placed_in_the_written_file(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [
        ("scenario", "n_tasks"),
        ("references", 0, "prefixes"),
        ("strategies", 0, "replay", "memory", "capacity"),
        ("strategies", 0, "replay", "memory", "margin"),
        ("strategies", 0, "name"),
        ("device",),
    ]
    monkeypatch.setattr(problems, "experiment_problems", lambda experiment: [(place, "too much") for place in places])
    text = "references: [{joint: {prefixes: final}}]\nstrategies:\n  - replay: {memory: box, capacity: 5}\n"
    assert [line.split(": ")[0] for line in refused(load, text)] == [
        "1:1",
        "3:34",
        "5:33",
        "7:5",
        "7:22",
        "7:37",
    ]


WHOLE = """
pretrain: {scenario: drift, epochs: 2}
protocol: {budget: {updates: 50}, seeds_vary: [init], reset_optimizer: false}
train: {optimizer: sgd, lr: 1e-3, momentum: 0.9}
references: [{joint: {prefixes: final}}, oddity]
strategies:
  - {replay: {memory: box, rehearsal: echo, capacity: 5}, regularization: {name: spring, kind: null}}
  - {replay: {memory: {name: box, capacity: 5}, projection: cone}, train: {lr: 1e-2}}
  - {isolation: {name: patch, sites: [in, out]}, router: prototype, name: "1e3"}
  - {isolation: patch, router: oracle, name: "yes"}
  - {avalanche: {plugin: MASPlugin, alpha: "1e-1", nothing: null}}
seeds: [3, 1]
device: cuda:0
threads: 2
tracking: {uri: sqlite:///elsewhere.db}
"""


@pytest.mark.parametrize("text", [WHOLE, "references: []\n", ""])
def test_the_resolved_file_describes_the_same_experiment(load: Load, text: str) -> None:
    experiment = load(text)
    again = load(config.resolved(experiment), head="")
    assert again == experiment
    assert config.resolved(again) == config.resolved(experiment)


def test_the_resolved_file_has_no_absent_parts(load: Load) -> None:
    text = config.resolved(load("strategies: [regularization: {name: spring}]\n"))
    assert "null" not in text and "{}" not in text
    assert "task_known_at_test: false" in text


def test_the_real_plugins_and_the_real_check(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(
        """
name: split-digits
scenario: {name: split_digits, setting: class-incremental, n_tasks: 5}
model: {name: vit, width: 16, depth: 1, patch: 4}
references: [naive, {joint: {prefixes: final}}, separate, {name: ridge, strength: 0.1}]
strategies:
  - replay: {memory: reservoir, capacity: 50}
  - regularization: {name: ewc, strength: 1e3, fisher: exact}
  - isolation: {name: lora, rank: 2, sites: [attn.q, attn.v]}
  - {replay: {memory: reservoir, capacity: 50}, regularization: ewc}
""",
        encoding="utf-8",
    )
    experiment = config.load(path)
    names = ["naive", "joint", "separate", "ridge", "reservoir", "ewc", "lora+prototype", "reservoir+ewc"]
    assert [entry.name for entry in experiment.entries] == names
    path.write_text(config.resolved(experiment), encoding="utf-8")
    assert config.load(path) == experiment
