"""Avalanche's own plug-ins and strategies by name: those said to run do, the others are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from forgetlab.avalanche import api, stock
from forgetlab.avalanche.api import BaseLogger, EvaluationPlugin, SupervisedPlugin, held_bytes, stock_class, stock_names
from forgetlab.avalanche.tensor_data import TensorLoader, to_benchmark
from forgetlab.data.datasets import Dataset, Samples
from forgetlab.engine import one_run
from forgetlab.experiment import Budget, Protocol, ResolvedSpec, Strategy, Train
from forgetlab.plugins.options import OptionError
from forgetlab.results.store import Result
from forgetlab.seeding import generator, reseed
from forgetlab.streams.build import split
from forgetlab.streams.scenario import Scenario
from forgetlab.training.loop import Loop, TensorPath, make_optimizer, stock_loop
from forgetlab.training.network import SharedNetwork
from helpers import networks, runs
from helpers.commands import invoke

BEGIN = """
name: x
scenario: {name: split_digits, n_tasks: 3}
model: {name: mlp, hidden: [16]}
train: {batch_size: 32, lr: 1e-2}
references: [naive]
"""
ARGUMENTS: dict[str, ResolvedSpec] = {  # that are needed, or keep a run short
    "AGEM": {"patterns_per_exp": 50},
    "AGEMPlugin": {"patterns_per_experience": 50, "sample_size": 32},
    "EWC": {"ewc_lambda": 10.0, "mode": "separate"},
    "EWCPlugin": {"ewc_lambda": 10.0},
    "GEM": {"patterns_per_exp": 30, "memory_strength": 0.5},
    "GEMPlugin": {"patterns_per_experience": 30, "memory_strength": 0.5},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "MER": {"mem_size": 50, "batch_size_mem": 2, "n_inner_steps": 1, "beta": 1.0, "gamma": 1.0},
}
RUN = [(kind, name) for kind, table in stock.TABLES.items() for name, verdict in table.items() if not verdict.refused]
REFUSED = [(kind, name) for kind, table in stock.TABLES.items() for name, verdict in table.items() if verdict.refused]


def told(folder: Path, entry: str, protocol: str = "{}") -> list[tuple[str, str]]:
    """What is told of an entry that is refused, each with the text where it stands."""
    return runs.told(folder, f"{BEGIN}protocol: {protocol}\nstrategies:\n  - {entry}\n")


def results(folder: Path, *entries: str, protocol: str = "{budget: {epochs: 5}}") -> dict[str, Result]:
    """What an experiment file of these entries gives, by their names."""
    text = f"{BEGIN}protocol: {protocol}\nstrategies:\n" + "".join(f"  - {entry}\n" for entry in entries)
    return {result.strategy: result for result in runs.results(folder, text)}


def average(result: Result) -> float:
    final = result.metrics["average_accuracy"]
    assert final is not None
    return final


# What runs


@pytest.mark.slow
def test_er_ace_gem_and_mas_from_a_file(tmp_path: Path) -> None:
    er_ace = "avalanche: {strategy: ER_ACE, mem_size: 200, batch_size_mem: 10}"
    gem = "avalanche: {plugin: GEMPlugin, patterns_per_experience: 30, memory_strength: 0.5}"
    mas = "avalanche: {plugin: MASPlugin, lambda_reg: 1.0}"
    found = results(tmp_path, er_ace, gem, mas, "{avalanche: {strategy: ER_ACE}, regularization: ewc}")
    assert average(found["naive"]) < 0.4 < 0.7 < average(found["ER_ACE"])
    assert average(found["GEMPlugin"]) > 0.7
    assert found["MASPlugin"].accuracy[0] == found["naive"].accuracy[0]  # a penalty begins with the second task
    assert found["MASPlugin"].accuracy[1] != found["naive"].accuracy[1]
    assert found["ewc+ER_ACE"].accuracy[0] == found["ER_ACE"].accuracy[0]
    assert found["ewc+ER_ACE"].accuracy != found["ER_ACE"].accuracy
    assert found["ER_ACE"].counts["total"]["updates"] == found["naive"].counts["total"]["updates"]


@pytest.mark.slow
def test_der_from_a_file(tmp_path: Path) -> None:
    """Its loop is its own, it asks the model without tasks, and it holds logits against those of other tasks."""
    protocol = "{head: fixed, loss_classes: LOSS, budget: {epochs: 5}}"
    der = "avalanche: {strategy: DER, mem_size: 200, alpha: 0.5, beta: 0.5}"
    for loss in ("seen", "all"):
        found = results(tmp_path, der, protocol=protocol.replace("LOSS", loss))
        assert average(found["naive"]) < 0.4 < 0.7 < average(found["DER"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "setting"),
    [
        *((kind, name, "class-incremental") for kind, name in RUN),
        *((kind, name, "task-incremental") for kind, name in RUN if name != "MER"),  # a step for every sample: slow
        ("strategy", "ER_ACE", "domain-incremental"),
        ("plugin", "ReplayPlugin", "domain-incremental"),
    ],
)
def test_what_is_said_to_run_learns_and_does_it_again(kind: str, name: str, setting: str) -> None:
    head = stock.TABLES[kind][name].heads[-1 if setting == "task-incremental" else 0]
    spec = {kind: name, **ARGUMENTS.get(name, {})}
    first, second = (carried_out(spec, setting, head) for _ in range(2))
    assert first == second
    learned = [row[task] or 0.0 for task, row in enumerate(first.accuracy)]
    frozen = "CWR" in name  # it trains the head alone, from the second task on
    assert sum(learned) / len(learned) > (0.4 if frozen else 0.6), learned
    assert (first.counts["total"]["memory_bytes"] is None) == frozen


def carried_out(spec: ResolvedSpec, setting: str, head: Any) -> Result:
    n_tasks = 5 if setting == "domain-incremental" else 3
    assert stock.stock_problems(spec, Protocol(head=head)) == []
    told = setting == "task-incremental"
    run = runs.description(
        Strategy(name="stock", avalanche=spec),
        scenario={"name": "split_digits", "setting": setting, "n_tasks": n_tasks},
        protocol=Protocol(task_known_at_test=told, head=head, budget=Budget(epochs=2)),
    )
    return one_run.run(run)


# What the loop keeps of a strategy


def stream() -> Scenario:
    """Three tasks of two classes, 12 samples each."""
    y = torch.arange(6).repeat(6)
    x = torch.randn(36, 4, generator=generator("stock")) + 2 * torch.eye(6)[y][:, :4]
    samples = Samples(x, y)
    return split(Dataset(samples, samples, tuple("abcdef")), setting="class-incremental", n_tasks=3, seed=0)


def network(head: Any = "fixed") -> SharedNetwork:
    return networks.network(head=head, n_classes=6)


SGD = Train(optimizer="sgd", batch_size=5, lr=0.1)
QUIET = EvaluationPlugin(loggers=[BaseLogger()])


class SameBatches(SupervisedPlugin):
    """Gives Avalanche's own loop the batches of ours."""

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        task = strategy.clock.train_exp_counter
        columns = strategy.adapted_dataset.columns()
        strategy.dataloader = TensorLoader(columns, 5, lambda epoch: generator("order", 0, task, epoch))


@pytest.mark.parametrize(
    "spec",
    [
        {"strategy": "ER_ACE", "mem_size": 12, "batch_size_mem": 3},
        {"strategy": "DER", "mem_size": 12, "batch_size_mem": 3},
        {"strategy": "Cumulative"},
        {"strategy": "AGEM", "patterns_per_exp": 4, "sample_size": 4},
        {"strategy": "GEM", "patterns_per_exp": 4, "memory_strength": 0.5},
        {"strategy": "EWC", "ewc_lambda": 1.0, "mode": "separate"},
        {"strategy": "MAS"},
        {"strategy": "MER", "batch_size_mem": 2, "n_inner_steps": 2, "beta": 0.5, "gamma": 0.5},
    ],
    ids=lambda spec: spec["strategy"],
)
def test_a_strategy_in_our_loop_is_to_the_last_bit_what_it_is_in_avalanches(spec: ResolvedSpec) -> None:
    ours: Any = stock_loop(spec, model=network(), train=SGD, budget=Budget(epochs=2))
    model = network()
    theirs: Any = stock_class("strategy", spec["strategy"])(
        model=model,
        optimizer=make_optimizer(SGD, list(model.parameters())),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=5,
        train_epochs=2,
        plugins=[SameBatches()],
        evaluator=QUIET,
        **{key: value for key, value in spec.items() if key != "strategy"},
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for task, experience in enumerate(to_benchmark(stream()).streams["train"]):
        ours.train(experience, [])
        reseed("task", 0, task)
        theirs.train(experience, [])
        for name, tensor in model.state_dict().items():
            assert torch.equal(ours.model.state_dict()[name], tensor), f"{name} differs after task {task}"
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["ER_ACE", "DER", "MER", "Replay"])
def test_the_fast_path_stays_where_a_strategy_leaves_the_data_alone(name: str) -> None:
    training = stock_loop({"strategy": name}, model=network(), train=SGD, budget=Budget(epochs=1))
    kinds: list[type] = []
    training.on_epoch = lambda _: kinds.append(type(training.dataloader))
    for experience in to_benchmark(stream()).streams["train"]:
        training.train(experience, [])
    assert kinds[0] is TensorLoader and len(kinds) == 3
    assert (set(kinds) == {TensorLoader}) == (name != "Replay")


def with_strategy(monkeypatch: pytest.MonkeyPatch, **members: Any) -> None:
    """A strategy of a newer Avalanche, called Newer."""
    from avalanche.training import supervised

    newer = type("Newer", (api.SupervisedTemplate,), {"__module__": supervised.__name__, **members})
    monkeypatch.setattr(supervised, "Newer", newer, raising=False)


def test_the_fast_path_steps_aside_for_a_loader_of_the_strategys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_train_dataloader(self: Any, **kwargs: Any) -> None:
        x, y, task = self.adapted_dataset.columns()
        self.dataloader = [[x[:2] + 100, y[:2], task[:2]]]

    class Sees(SupervisedPlugin):
        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            seen.append(float(strategy.mb_x.min()))

    with_strategy(monkeypatch, make_train_dataloader=make_train_dataloader)
    seen: list[float] = []
    settings: Any = {"model": network(), "train": SGD, "plugins": [Sees()]}
    training = stock_loop({"strategy": "Newer"}, **settings, budget=Budget(updates=3))
    training.train(to_benchmark(stream()).streams["train"][0], [])
    assert len(seen) == 3 and min(seen) > 90
    assert (training.steps, training.seen) == (3, 6)


def test_mer_counts_the_steps_that_it_takes() -> None:
    spec = {"strategy": "MER", "n_inner_steps": 2}
    training = stock_loop(spec, model=network(), train=SGD, budget=Budget(epochs=1))
    training.train(to_benchmark(stream()).streams["train"][0], [])
    assert (training.steps, training.seen, training.clock.train_exp_iterations) == (2 * 12, 12, 3)


def test_a_network_asked_without_tasks_gives_all_its_logits() -> None:
    model = network()
    model.open(0, [0, 1])
    x = torch.rand(3, 4)
    assert torch.equal(model(x), model.head(model.backbone(x)))
    assert torch.equal(model.eval()(x)[:, :2], model(x, torch.full((3,), -1))[:, :2])
    with pytest.raises(TypeError, match="every sample needs its task"):
        network(head="per-task")(x)


@pytest.mark.slow
def test_the_bytes_that_stock_code_holds() -> None:
    sample = 4 * 4 + 8 + 8  # x, y, task
    weights = sum(p.numel() * 4 for p in network().parameters())

    def held(spec: ResolvedSpec, *plugins: Any) -> int | None:
        settings: Any = {
            "model": network(),
            "train": SGD,
            "budget": Budget(epochs=1),
            "plugins": plugins,
        }
        training: TensorPath = stock_loop(spec, **settings) if spec else Loop(**settings)
        for experience in to_benchmark(stream()).streams["train"][:2]:
            training.train(experience, [])
        return held_bytes(plugins[0] if plugins else training, training.model)

    assert held({"strategy": "ER_ACE", "mem_size": 10}) == 10 * sample
    assert held({"strategy": "DER", "mem_size": 10}) == 10 * (sample + 6 * 4)
    assert held({"strategy": "MER", "mem_size": 10}) == 10 * sample
    assert held({"strategy": "Cumulative"}) == 24 * sample
    stock_plugin = api.stock_plugin
    assert held({}, stock_plugin({"plugin": "ReplayPlugin", "mem_size": 10})) == 10 * sample
    assert held({}, stock_plugin({"plugin": "EWCPlugin", "ewc_lambda": 1.0})) == 2 * 2 * weights
    assert held({}, stock_plugin({"plugin": "LwFPlugin"})) == weights

    class Secretive(SupervisedPlugin):
        def __init__(self) -> None:
            super().__init__()
            self.kept = object()

    assert held({}, Secretive()) is None


# What is refused


@pytest.mark.parametrize(("kind", "name"), REFUSED)
def test_what_is_refused_is_told_with_its_reason(kind: str, name: str) -> None:
    (error,) = stock.stock_problems({kind: name}, Protocol())
    assert str(error) == f"Avalanche's {name} cannot be used here: {stock.TABLES[kind][name].refused}"
    assert error.option == kind


@pytest.mark.parametrize(
    ("entry", "place", "message"),
    [
        ("{strategy: ER_ACE, mem_sise: 9}", "9}", "ER_ACE: unknown key 'mem_sise'; did you mean 'mem_size'?"),
        ("{strategy: Cumulative, x: 1}", "1}", "Cumulative: unknown key 'x'; valid keys: none"),
        ("{plugin: MASPlugin, lamda_reg: 1}", "1}", "MASPlugin: unknown key 'lamda_reg'; did you mean 'lambda_reg'?"),
        ("{plugin: MASPlugin, lambda_reg: x}", "x}", "MASPlugin: 'lambda_reg' should be a number, not 'x'"),
        ("{strategy: DER, batch_size_mem: 1.5}", "1.5}", "DER: 'batch_size_mem' should be a whole number, not 1.5"),
        ("{plugin: MASPlugin, verbose: 1}", "1}", "MASPlugin: 'verbose' should be true or false, not 1"),
        ("{plugin: EWCPlugin}", "{plugin", "EWCPlugin needs 'ewc_lambda'"),
        ("{strategy: AGEM, sample_size: 9}", "{strategy", "AGEM needs 'patterns_per_exp'"),
        ("{strategy: EWC, ewc_lambda: 1, mode: x}", "EWC,", "EWC: Mode must be separate or online."),
        ("{strategy: ER_ACE, train_mb_size: 9}", "9}", "ER_ACE: the run gives 'train_mb_size': it comes from 'train"),
        ("{plugin: CWRStarPlugin, model: x}", "x}", "CWRStarPlugin: the run gives 'model': it is the network of"),
        ("{strategy: Cumulative, plugins: [x]}", "[x]}", "Cumulative: the run gives 'plugins': an entry is combined"),
        ("{plugin: ER_ACE}", "ER_ACE}", "ER_ACE is a strategy of Avalanche: write 'strategy: ER_ACE'"),
        ("{strategy: ER_ACEE}", "ER_ACEE}", "Avalanche has no strategy 'ER_ACEE'; did you mean 'ER_ACE'?"),
    ],
)
def test_a_mistake_is_told_where_it_stands(tmp_path: Path, entry: str, place: str, message: str) -> None:
    ((there, said),) = told(tmp_path, f"avalanche: {entry}", "{head: fixed}")
    assert there.startswith(place)
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("entry", "protocol", "place", "message"),
    [
        ("avalanche: {strategy: DER}", "{}", "DER}", "DER cannot work with 'head: growing': it holds logits"),
        (
            "avalanche: {plugin: RWalkPlugin}",
            "{loss_classes: current}",
            "RWalkPlugin}",
            "RWalkPlugin cannot work with 'loss_classes: current': it knows no weights that a task brings",
        ),
        (
            "{avalanche: {strategy: Cumulative}, replay: {memory: reservoir, capacity: 9}}",
            "{}",
            "{memory: reservoir",
            "replay has no meaning with Cumulative, which draws old samples itself",
        ),
        (
            "{avalanche: {plugin: ReplayPlugin}, replay: {memory: reservoir, capacity: 9}}",
            "{}",
            "{memory: reservoir",
            "replay has no meaning with ReplayPlugin",
        ),
        (
            "{avalanche: {strategy: MER}, regularization: ewc}",
            "{}",
            "ewc}",
            "regularization has no meaning with MER, which takes its steps itself",
        ),
    ],
)
def test_a_combination_without_meaning_is_refused(
    tmp_path: Path, entry: str, protocol: str, place: str, message: str
) -> None:
    ((there, said),) = told(tmp_path, entry, protocol)
    assert there.startswith(place)
    assert said.startswith(message)


def test_all_mistakes_of_an_entry_are_told_at_once(tmp_path: Path) -> None:
    found = told(tmp_path, "avalanche: {strategy: DER, mem_sise: 9, alpha: x, device: cpu}")
    assert [message.split(":")[0] for _, message in found] == ["DER cannot work with 'head", "DER", "DER", "DER"]


def test_values_that_fit_are_let_through(tmp_path: Path) -> None:
    for arguments in ("LwFPlugin, alpha: [0, 1, 2]", "LwFPlugin, alpha: 0.5", "ReplayPlugin, batch_size_mem: null"):
        assert told(tmp_path, f"avalanche: {{plugin: {arguments}}}") == []


@pytest.mark.parametrize("error", [AssertionError(), ValueError("no such thing")])
def test_the_constructor_of_a_newer_strategy_fails_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def __init__(self: Any, *, model: Any, optimizer: Any, strength: float = 1.0, **kwargs: Any) -> None:
        raise error

    with_strategy(monkeypatch, __init__=__init__)
    assert told(tmp_path, "avalanche: {strategy: Newer}") == [("Newer}", f"Newer: {error or 'AssertionError'}")]
    ((_, message),) = told(tmp_path, "avalanche: {strategy: Newer, strenght: 2}")
    assert message == "Newer: unknown key 'strenght'; did you mean 'strength'?"


def test_a_newer_strategy_with_a_model_of_its_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def __init__(self: Any, *, model_name: str = "vit", **kwargs: Any) -> None:
        raise NotImplementedError

    with_strategy(monkeypatch, __init__=__init__)
    ((_, message),) = told(tmp_path, "avalanche: {strategy: Newer}")
    assert message.startswith("Newer makes a model or an optimizer of its own")


@pytest.mark.slow
def test_a_newer_strategy_runs_where_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_strategy(monkeypatch)
    found = results(tmp_path, "avalanche: {strategy: Newer}")
    assert found["Newer"].accuracy == found["naive"].accuracy
    assert "of a newer Avalanche, which are tried: Newer" in call("list", "avalanche")


# Why some are refused, as they are in Avalanche 0.6.0


def theirs(name: str, model: nn.Module, **arguments: Any) -> Any:
    return stock_class("strategy", name)(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=12,
        evaluator=QUIET,
        **arguments,
    )


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_avalanches_synaptic_intelligence_finds_nothing_important_on_a_cpu() -> None:
    strategy = theirs("SynapticIntelligence", network(), si_lambda=1.0)
    strategy.train(to_benchmark(stream()).streams["train"][0], [])
    importances = strategy.plugins[0].ewc_data[1]
    assert importances and not any(importance.data.any() for importance in importances.values())


def test_avalanches_gss_leaves_its_gradients_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, left = network(), []
    strategy = theirs("GSS_greedy", model, mem_size=24, input_size=[4])
    after_forward = strategy.plugins[0].after_forward

    def noted(*args: Any, **kwargs: Any) -> None:
        after_forward(*args, **kwargs)
        left.append(sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None))

    monkeypatch.setattr(strategy.plugins[0], "after_forward", noted)
    strategy.train_mb_size = 4
    strategy.train(to_benchmark(stream()).streams["train"][0], [])
    assert left[0] == 0 and min(left[1:]) > 0


def test_avalanches_mir_never_replays_the_task_before() -> None:
    strategy = theirs("MIR", network(), mem_size=12, subsample=12, batch_size_mem=1)
    replayed = []
    for experience in to_benchmark(stream()).streams["train"]:
        strategy.train(experience, [])
        loader = strategy.plugins[0].replay_loader
        replayed.append(set(next(loader)[1].tolist()) if loader is not None else set())
    assert replayed == [set(), {0, 1}, {0, 1, 2, 3}]


# The command line


def call(*arguments: str) -> str:
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("kind", stock.TABLES)
def test_every_name_of_the_installed_avalanche_is_in_the_list(kind: str) -> None:
    import avalanche.training.plugins
    import avalanche.training.supervised

    module = {"plugin": avalanche.training.plugins, "strategy": avalanche.training.supervised}[kind]
    public = {n for n, o in vars(module).items() if not n.startswith("_") and type(o) is not type(avalanche)}
    assert public == set(stock_names(kind)) == set(stock.TABLES[kind])
    lines = [line.split(":")[0].split()[0] for line in call("list", "avalanche").splitlines() if line[:1] == " "]
    assert len(lines) == len(set(lines)) and public <= set(lines)


def test_the_list_tells_what_runs_and_why_others_do_not() -> None:
    text = call("list", "avalanche")
    runs, refused = text.split("Strategies that run", 1)[1].split("Strategies that are refused:", 1)
    assert "\n  ER_ACE\n" in runs and "\n  DER (needs head: fixed)\n" in runs
    assert "\n  JointTraining: it is trained once" in refused
    assert "ER_ACE" in call("list") and "JointTraining" not in call("list")


def test_show() -> None:
    text = call("show", "avalanche", "ER_ACE")
    assert "Reducing Abrupt Representation" in text and "model" not in text.split("Arguments:")[1]
    assert "  mem_size: (int, default 200) int : Fixed memory size\n" in text
    assert "hyperparameter to weigh the penalty inside the total loss" in call("show", "avalanche", "EWCPlugin")
    assert call("show", "avalanche", "Naive").endswith("No arguments.\n")
    assert "it needs its own kind of model" in call("show", "avalanche", "SCR")
    for kind, name in RUN:
        assert stock.KINDS[kind] in call("show", "avalanche", name)
    refused = invoke("show", "avalanche", "ER_AEC")
    assert refused.exit_code == 2 and "did you mean 'ER_ACE'?" in refused.stderr


def test_an_argument_that_the_run_gives_is_never_listed_as_one_for_the_file() -> None:
    for kind, name in RUN:
        assert not stock.own_arguments(stock_class(kind, name)).keys() & stock.GIVEN.keys()
    with pytest.raises(OptionError, match="no strategy 'OnlineNaive'"):
        stock_class("strategy", "OnlineNaive")  # a function, whatever its name says
