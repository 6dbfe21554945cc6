"""General data beside every batch: their weight in the loss, their head, and what they keep of the pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.data.datasets import Samples, as_input
from forgetlab.engine import one_run
from forgetlab.learners.context import Context
from forgetlab.learners.sequential import Sequential
from forgetlab.plugins import registry
from forgetlab.results.store import Result
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.training.general_data import General
from forgetlab.training.heads import Head
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.data import write_topics
from helpers.streams import in_pairs
from helpers.training import learned

pytestmark = pytest.mark.usefixtures("no_starts_in_memory")

SIZE, BATCH, OTHERS = 20, 8, 30


def stream() -> Scenario:
    draw, parts = generator("general stream"), []
    for task in range(3):
        parts.append(Samples(torch.rand(SIZE, 6, generator=draw), 2 * task + torch.arange(SIZE) % 2))
    return in_pairs(parts)


def others() -> Samples:
    return Samples(torch.rand(OTHERS, 6, generator=generator("others")), torch.arange(OTHERS) % 3)


class Watch(SupervisedPlugin):
    """Notes each step's loss beside the mean by hand over all samples that it is over."""

    def __init__(self, general: General, head: nn.Module, memory: Any = None) -> None:
        super().__init__()
        self.general, self.head, self.memory = general, head, memory
        self.losses: list[tuple[float, float]] = []
        self.samples: list[int] = []
        self.rows: list[Tensor] = []
        draw = torch.randint

        def noted(high: int, size: Any, **options: Any) -> Tensor:
            self.rows.append(draw(high, size, **options))
            return self.rows[-1]

        self.randint = noted

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        model, rows = strategy.model, self.rows[-1]
        output, y = strategy.mb_output, strategy.mb_y
        memory: Any = self.memory
        drawn = memory and memory._drawn
        if drawn and memory.apart:
            inside = memory.inside
            there = (
                memory.answers(model, drawn) if inside else model.answer(model.backbone.layers[1](drawn.x), drawn.task)
            )
            output, y = torch.cat([output, there]), torch.cat([y, drawn.y])
        x = as_input(self.general.data.x[rows])
        each = [F.cross_entropy(output, y, reduction="none"), self.each(model, x, self.general.data.y[rows])]
        self.losses.append((strategy.loss.item(), torch.cat(each).mean().item()))
        self.samples.append(len(rows))

    def each(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(model.backbone(x)), y, reduction="none")


def general_and_head(model: SharedNetwork, ratio: float) -> tuple[General, Head]:
    head = Head(model.n_features, 0)
    head.grow(range(3))
    model.general = head
    return General(others(), lambda backbone, x, y, _: F.cross_entropy(head(backbone(x)), y), ratio), head


def trained(
    monkeypatch: pytest.MonkeyPatch, ratio: float, memory: Any = None, depth: int | None = None
) -> tuple[Watch, SharedNetwork, General]:
    torch.manual_seed(0)
    model = SharedNetwork(MLP((6,), (7, 5)))
    general, head = general_and_head(model, ratio)
    if depth is not None:
        memory.keep_inside(model, depth)
    watch = Watch(general, head, memory)
    monkeypatch.setattr(torch, "randint", watch.randint)
    found = [*([memory] if memory else []), general, watch]
    learned(model, to_benchmark(stream()), *found, optimizer="adam", batch_size=BATCH, lr=0.01)
    return watch, model, general


def worst(watch: Watch) -> float:
    return max(abs(ours - by_hand) for ours, by_hand in watch.losses)


MEMORIES = {
    "alone": (None, {}, None),
    "replay": ("ring", {"capacity": 9, "ratio": 0.5}, None),
    "latent replay": ("ring", {"capacity": 9, "ratio": 0.5}, 1),
    "features": ("gaussian", {"ratio": 0.5}, None),
}


@pytest.mark.parametrize("beside", MEMORIES)
@pytest.mark.parametrize(
    ("ratio", "samples"), [(1.0, [8, 8, 4]), (0.25, [2, 2, 1]), (0.01, [1, 1, 1]), (2.0, [16, 16, 8])]
)
def test_the_loss_is_the_mean_over_all_samples(
    monkeypatch: pytest.MonkeyPatch, beside: str, ratio: float, samples: list[int]
) -> None:
    """New, replayed and general ones; the ratio is to the new ones, whatever is replayed."""
    name, options, depth = MEMORIES[beside]
    watch, _, general = trained(monkeypatch, ratio, name and registry.build("memory", name, options), depth)
    if name == "gaussian":  # it draws by the same function
        watch.samples = [n for n in watch.samples if n in samples]
    assert worst(watch) < 1e-5
    if name != "gaussian":
        assert watch.samples == 6 * samples and general.replayed == 2 * sum(samples)


def test_another_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deliberate break: the general data count as one half whatever the ratio is."""
    right = General.before_backward

    def half(self: General, strategy: Any, **kwargs: Any) -> None:
        before = strategy.loss
        right(self, strategy, **kwargs)
        n, beside = max(1, round(self.ratio * len(strategy.dataloader.rows))), len(strategy.mb_y)
        strategy.loss = (before + (strategy.loss * (beside + n) - beside * before) / n) / 2

    monkeypatch.setattr(General, "before_backward", half)
    assert worst(trained(monkeypatch, 0.25)[0]) > 0.01


def test_its_head_is_trained_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Head(5, 0)
    start.grow(range(3))
    _, model, _ = trained(monkeypatch, 0.5)
    assert model.general is not None
    moved = (model.general.weight - start.weight).abs().max()
    assert moved > 0.01 and not any(name.startswith("general") for name in model.stored())
    x, task = torch.rand(4, 6, generator=generator("x")), torch.zeros(4, dtype=torch.int64)
    before = model.eval()(x, task)
    model.general.weight.data.fill_(9.0)
    assert torch.equal(model(x, task), before) and before.shape == (4, 6)


DIGITS = """
name: general
scenario: {name: split_digits, n_tasks: 3, held_back: 4}
model: {name: mlp, hidden: [24]}
pretrain: {epochs: 8}
protocol: {budget: {epochs: 4}}
train: {lr: 3e-3, batch_size: 32}
references: [naive]
strategies:
  - {replay: {general: {ratio: 0.5}}}
  - {replay: {memory: ring, capacity: 60, general: {ratio: 0.5}}}
  - {replay: {general: {ratio: 0.5, data: digits}}, name: other-data}
seeds: [0, 1, 2]
"""


def results(folder: Path, text: str) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in runs.results(folder, text, starts=folder / "starts"):
        found.setdefault(result.strategy, []).append(result)
    return found


def metric(results: list[Result], name: str) -> list[float]:
    return [result.metrics[name] or 0.0 for result in results]


@pytest.mark.slow
def test_what_was_pretrained_is_kept_and_a_memory_stands_beside(tmp_path: Path) -> None:
    found = results(tmp_path, DIGITS)
    lost = {name: metric(its, "pretrained_forgetting") for name, its in found.items()}
    final = {name: metric(its, "average_accuracy") for name, its in found.items()}
    print(lost, final)
    for name in ("general", "ring+general"):
        assert sum(lost[name]) < sum(lost["naive"]) - 3 * 0.05, name
    assert all(a > b + 0.15 for a, b in zip(final["ring+general"], final["general"], strict=True))
    total = found["general"][0].counts["total"]
    assert total["stored_bytes"] == found["naive"][0].counts["total"]["stored_bytes"]
    assert total["stored_bytes"] == found["other-data"][0].counts["total"]["stored_bytes"]
    assert found["other-data"][0].counts["total"]["trainable"] == total["trainable"] + 24 * 10 + 10
    assert total["samples_replayed"] > 0 and total["memory_bytes"] > 0


@pytest.mark.slow
def test_a_run_repeats_itself_to_the_bit(tmp_path: Path) -> None:
    text = DIGITS.replace("[0, 1, 2]", "[1]").replace("references: [naive]", "references: []")
    assert results(tmp_path, text) == results(tmp_path, text)


TEXTS = """
name: texts
scenario: {name: stream, data: &texts {name: text_files, path: texts, max_length: 10, test_share: 0.25}, n_tasks: 2}
model: {name: transformer, width: 16, depth: 1, heads: 2, vocabulary: 8000}
pretrain: {scenario: {name: stream, data: *texts, n_tasks: 2}, objective: masked, share: 0.3, epochs: 60}
protocol: {budget: {epochs: 12}}
train: {lr: 1e-2, batch_size: 8}
references: [naive]
strategies: [{replay: {general: {ratio: 1.0}}}]
"""
IMAGES = """
name: images
scenario: {name: stream, data: digits, held_back: 4, n_tasks: 2, samples_per_task: 200}
model: {name: cnn, widths: [8, 16]}
pretrain: {objective: contrastive, epochs: 12, augment: {crop: 1, rotation: 20}}
protocol: {budget: {epochs: 6}}
train: {lr: 1e-2, batch_size: 64}
references: [naive]
strategies: [{replay: {general: {ratio: 1.0}}}]
"""
CAUSAL = TEXTS.replace("8000}", "8000, causal: true}").replace("masked, share: 0.3", "causal")
OBJECTIVES = {"masked": TEXTS, "causal": CAUSAL, "contrastive": IMAGES}
TOPICS = {
    "sea": "ship sail wave wind sea shore",
    "law": "court judge case law crime trial",
    "food": "bread meat salt fish soup wine",
    "game": "team goal match ball win score",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four topics of 16 texts, in each of which a topic's words follow one another in its order."""
    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path / "cache"))
    write_topics(tmp_path / "texts", TOPICS)
    return tmp_path


def prepared(folder: Path, text: str, strategy: str = "general") -> Sequential:
    run = next(run for run in runs.loaded(folder, text).runs() if run.strategy.name == strategy)
    one_run.set_process(run)
    scenario = one_run.load_scenario(run)
    learner = Sequential()
    learner.prepare(Context(run, scenario, to_benchmark(scenario, "cpu", False), torch.device("cpu")))
    return learner


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_the_pretraining_goes_on_beside_the_stream(objective: str, folder: Path) -> None:
    """Its loss, on test data, after the stream."""
    losses: dict[str, float] = {}
    for strategy in ("naive", "general"):
        learner = prepared(folder, OBJECTIVES[objective], strategy)
        start = learner.context.start
        assert start is not None
        for task in range(2):
            learner.learn(task)
        x, y = (torch.cat([getattr(task.test, part) for task in start.tasks]) for part in ("x", "y"))
        with torch.no_grad():
            losses[strategy] = start.loss(torch.device("cpu"))(
                learner.network.backbone.eval(), as_input(x), y, 0
            ).item()
    print(objective, losses)
    assert losses["general"] < losses["naive"] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_head_of_the_pretraining_stays_as_it_was(objective: str, folder: Path) -> None:
    learner = prepared(folder, OBJECTIVES[objective])
    (general,) = [plugin for plugin in learner.plugins if isinstance(plugin, General)]
    x, y = (column[:8] for column in general.data)
    fixed = general.loss(learner.network.backbone, as_input(x), y, 0)
    learner.learn(0)
    backbone = learner.context.backbone()  # as it was at the start
    assert torch.allclose(general.loss(backbone, as_input(x), y, 0), fixed, rtol=1e-5)
    assert not any(isinstance(layer, Head) for layer in [learner.network.general])


@pytest.mark.slow
def test_the_set_is_kept_as_it_came_and_counted(tmp_path: Path) -> None:
    """Bytes stay bytes."""
    text = DIGITS.replace(
        "{name: split_digits, n_tasks: 3, held_back: 4}", "{name: stream, data: mnist_5k, n_tasks: 5}"
    )
    text = text.replace("{epochs: 8}", "{scenario: split_mnist_5k, epochs: 1}").replace(
        "data: digits", "data: mnist_5k"
    )
    learner = prepared(tmp_path, text)
    (general,) = [plugin for plugin in learner.plugins if isinstance(plugin, General)]
    x = general.state()[0]["x"]
    assert x.dtype == torch.uint8 and x.shape == (4000, 1, 28, 28)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("{ratio: 0.5}", "nothing was pretrained that could be general: name its 'data'"),
        ("{ratio: 0.0}", "ratio"),
        ("{rato: 0.5}", "did you mean 'ratio'"),
        ("{data: digts}", "did you mean 'digits'"),
        ("{data: mnist_5k}", "another shape"),
    ],
)
def test_what_cannot_be_general_is_refused(tmp_path: Path, more: str, message: str) -> None:
    text = (
        f"name: x\nscenario: split_digits\nmodel: mlp\nreferences: []\nstrategies: [{{replay: {{general: {more}}}}}]\n"
    )
    with pytest.raises(FileErrors, match=message):
        runs.loaded(tmp_path, text)
