"""The pretraining stage: one start for all strategies, kept by its content, and what becomes of it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetlab.config.load import load, resolved
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.engine import all_runs, one_run
from forgetlab.experiment import Run
from forgetlab.learners.context import Context
from forgetlab.results.run_key import start_key
from forgetlab.results.store import Result, Store
from forgetlab.streams.scenario import pretraining_tasks
from forgetlab.training import pretraining
from forgetlab.training.pretraining import Start
from helpers.data import write_topics

pytestmark = pytest.mark.usefixtures("no_starts_in_memory")

FILE = """
name: pretrained
scenario: {name: split_digits, n_tasks: 2, held_back: 4}
model: {name: mlp, hidden: [24]}
pretrain: {epochs: 8}
protocol: {budget: {epochs: 3}}
train: {lr: 3e-3, batch_size: 32}
references: [naive, joint, separate, ridge]
strategies:
  - isolation: {name: lora, sites: [mlp.in]}
    train: {lr: 1e-2}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(FILE)
    return path


def results(file: Path, store: Store) -> dict[str, Result]:
    found = [folder.result() for folder in all_runs.carry_out(load(file), store)]
    return {result.strategy: result for result in found if result is not None}


@pytest.mark.slow
def test_all_strategies_start_from_the_same_pretrained_backbone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, torch.Tensor]] = []
    backbone = Context.backbone

    def noted(self: Context) -> Any:
        made = backbone(self)
        starts.append({name: tensor.clone() for name, tensor in made.state_dict().items()})
        return made

    monkeypatch.setattr(Context, "backbone", noted)
    found = results(file, Store(tmp_path / "runs"))
    assert len(starts) > len(found) == 5
    assert all(torch.equal(start[name], starts[0][name]) for start in starts for name in start)
    first = {tuple(result.pretrained_accuracy[:1]) for result in found.values()}
    assert len(first) == 1 and (first.pop()[0] or 0) > 0.9, "the start is a good one, and the same for all"


@pytest.mark.slow
def test_what_the_sequence_does_to_pretrained_knowledge(file: Path, tmp_path: Path) -> None:
    found = results(file, Store(tmp_path / "runs"))
    n_tasks = 2
    for name in ("lora+prototype", "ridge"):  # their backbone is frozen
        assert found[name].metrics["pretrained_forgetting"] == 0.0
    naive = found["naive"]
    assert len(naive.pretrained_accuracy) == n_tasks + 1
    assert (naive.metrics["pretrained_forgetting"] or 0) > 0.02, "fine-tuning moves the weights"
    assert found["separate"].pretrained_accuracy[1:] == [None] * n_tasks, "it has no single backbone"


def test_held_back_classes_are_not_in_the_stream(file: Path) -> None:
    experiment = load(file)
    run = experiment.run(experiment.entries[0], 0)
    scenario = one_run.load_scenario(run)
    assert run.pretrain is not None
    (task,) = pretraining_tasks(run.pretrain, scenario, 0)
    streamed = {name for one in scenario.tasks for name in one.name.split(",")}
    assert len(streamed) == 6 and not streamed & set(task.name.split(","))
    pixels = {tuple(x.flatten().tolist()) for one in scenario.tasks for x in one.test.x}
    assert not pixels & {tuple(x.flatten().tolist()) for x in task.train.x}


@pytest.mark.slow
def test_a_start_is_made_once_and_found_by_its_content(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[int] = []
    train = pretraining._train
    monkeypatch.setattr(pretraining, "_train", lambda *args: trainings.append(1) or train(*args))
    store = Store(tmp_path / "runs")
    first = results(file, store)
    assert len(trainings) == len(list(store.starts.glob("*.safetensors"))) == 1
    pretraining._made.clear()  # as in a new process
    again = [folder.result() for folder in all_runs.carry_out(load(file), store, fresh=True)]
    assert len(trainings) == 1
    assert {result.strategy: result.accuracy for result in again if result} == {
        name: result.accuracy for name, result in first.items()
    }
    file.write_text(FILE.replace("epochs: 8", "epochs: 9"))
    results(file, store)
    assert len(trainings) == 2, "other settings, another start"


def test_all_that_makes_a_start_is_in_its_key_and_what_does_not_is_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(file).runs()[0]
    assert run.pretrain is not None
    scenario = one_run.load_scenario(run)
    tasks = pretraining_tasks(run.pretrain, scenario, run.seed_of("class_order"))
    key = start_key(run, tasks)
    other_rows = tasks[0].train._replace(x=tasks[0].train.x.flip(0))
    changed = {
        "model": start_key(run.model_copy(update={"model": {**run.model, "hidden": [25]}}), tasks),
        "epochs": start_key(run.model_copy(update={"pretrain": {**run.pretrain, "epochs": 9}}), tasks),
        "device": start_key(run.model_copy(update={"device": "cuda"}), tasks),
        "threads": start_key(run.model_copy(update={"threads": 2}), tasks),
        "data": start_key(run, (replace(tasks[0], train=other_rows), *tasks[1:])),
    }
    for name in ("init", "data_order"):  # each alone, as `seeds_vary` allows
        protocol = run.protocol.model_copy(update={"seeds_vary": (name,)})
        alone = run.model_copy(update={"protocol": protocol})
        assert start_key(alone, tasks) == key  # seed 0 either way
        changed[name] = start_key(alone.model_copy(update={"seed": 1}), tasks)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[start_key.__module__], "versions", lambda: {"torch": "another"})
        changed["versions"] = start_key(run, tasks)
    assert len({key, *changed.values()}) == 1 + len(changed), changed
    naive, *_, module = load(file).runs()  # one start for all strategies
    assert naive.strategy.name != module.strategy.name and start_key(module, tasks) == key
    nothing = run.protocol.model_copy(update={"seeds_vary": ("class_order",)})
    assert start_key(run.model_copy(update={"protocol": nothing, "seed": 1}), tasks) == key


def test_where_the_order_alone_varies_each_seed_has_a_start_of_its_own(file: Path, tmp_path: Path) -> None:
    file.write_text(
        FILE.replace("protocol: {", "protocol: {seeds_vary: [data_order], ")
        .replace("epochs: 8", "epochs: 1")
        .replace("[naive, joint, separate, ridge]", "[naive]")
        + "seeds: [0, 1]\n"
    )
    first, second = (run for run in load(file).runs() if run.strategy.name == "naive")
    found = []
    for run in (first, second):
        scenario = one_run.load_scenario(run)
        start = Context(run, scenario, None, torch.device("cpu"), starts=tmp_path / "starts").start  # type: ignore[arg-type]
        assert start is not None
        found.append(start.tensors["head.weight"])
    assert not torch.equal(*found)


def test_a_strategys_override_does_not_reach_the_pretraining(file: Path) -> None:
    experiment = load(file)
    learning_rates = {run.pretrain["train"]["lr"] for run in experiment.runs() if run.pretrain is not None}
    assert learning_rates == {3e-3}


def test_other_data_can_be_pretrained_on(file: Path) -> None:
    file.write_text(FILE.replace("{epochs: 8}", "{scenario: split_digits, epochs: 8}"))
    experiment = load(file)
    run = experiment.run(experiment.entries[0], 0)
    assert run.pretrain is not None
    tasks: Sequence[Any] = pretraining_tasks(run.pretrain, one_run.load_scenario(run), 0)
    assert sum(len(task.classes) for task in tasks) == 10


@pytest.mark.parametrize(
    ("pretrain", "message"),
    [
        ("{epochs: 2}", r":\d+:\d+: name a scenario to pretrain on"),
        ("{scenario: split_mnist_5k}", "another shape"),
        ("{scenario: split_digits, objective: masked}", r":\d+:\d+: 'masked' is for token ids"),
        ("{scenario: split_digits, objective: contrastive}", "two views of an image"),
        ("{scenario: split_digits, augment: {crop: 9}}", "leave the window"),
        ("{scenario: split_digits, share: 0.2}", "share is for 'objective: masked'"),
        ("{scenario: split_digits, objective: contrastve}", "contrastive"),
        ("{scenario: split_digits, objective: masked, share: 1.5}", "share"),
        ("{scenario: split_digit}", "did you mean 'split_digits'"),
        ("{epoch: 2}", "did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_pretrained_is_refused(file: Path, pretrain: str, message: str) -> None:
    file.write_text(FILE.replace(", held_back: 4", "").replace("{epochs: 8}", pretrain))
    with pytest.raises(FileErrors, match=message):
        load(file)


TEXTS = """
name: text
scenario: {name: stream, data: &texts {name: text_files, path: texts, max_length: 10, test_share: 0.25}, n_tasks: 2}
model: {name: transformer, width: 16, depth: 1, heads: 2, vocabulary: 8000}
pretrain: {scenario: {name: stream, data: *texts, n_tasks: 2}, objective: masked, share: 0.3, epochs: 40}
protocol: {budget: {epochs: 4}}
train: {lr: 1e-2, batch_size: 8}
references: [naive, ridge]
"""
IMAGES = """
name: images
scenario: {name: stream, data: digits, held_back: 4, n_tasks: 2, samples_per_task: 200}
model: {name: cnn, widths: [8, 16]}
pretrain: {objective: contrastive, epochs: 12, augment: {crop: 1, rotation: 20}}
protocol: {budget: {epochs: 1}}
train: {lr: 1e-2, batch_size: 64}
references: [naive, ridge]
"""
CAUSAL = TEXTS.replace("8000}", "8000, causal: true}").replace("masked, share: 0.3", "causal")
GAIN = {"masked": 0.1, "causal": 0.4, "contrastive": 0.08}  # of accuracy, at the least
FILES = {"masked": TEXTS, "causal": CAUSAL, "contrastive": IMAGES}
TOPICS = {
    "sea": "ship sail wave wind sea shore",
    "law": "court judge case law crime trial",
    "food": "bread meat salt fish soup wine",
    "game": "team goal match ball win score",
    "sky": "sun moon star cloud rain snow",
    "farm": "cow field grain horse farm barn",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six topics of 16 texts, in each of which a topic's words follow one another in its order."""
    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path / "cache"))
    write_topics(tmp_path / "texts", TOPICS)
    return tmp_path


def run_of(file: Path) -> Run:
    experiment = load(file)
    return experiment.run(experiment.entries[0], 0)


def context_of(file: Path, starts: Path | None = None) -> Context:
    run = run_of(file)
    one_run.set_process(run)
    scenario = one_run.load_scenario(run)
    return Context(run, scenario, None, torch.device("cpu"), starts=starts)  # type: ignore[arg-type] - no benchmark


@pytest.mark.slow
@pytest.mark.parametrize("objective", FILES)
def test_a_run_starts_from_what_it_learned_without_labels(objective: str, folder: Path) -> None:
    file = folder / "scenario.yaml"
    file.write_text(FILES[objective])
    found = results(file, Store(folder / "runs"))
    start = context_of(file, Store(folder / "runs").starts).start
    assert isinstance(start, Start)
    untrained = context_of(file)._untrained()
    at_start = found["ridge"].pretrained_accuracy
    assert (at_start[0] or 0) > start.accuracy(untrained, torch.device("cpu")) + GAIN[objective]
    assert len(set(at_start)) == 1 and found["ridge"].metrics["pretrained_forgetting"] == 0.0
    naive = found["naive"].pretrained_accuracy
    assert naive[0] == at_start[0] and len(set(naive)) > 1, "fine-tuning moves the weights"


@pytest.mark.slow
@pytest.mark.parametrize("objective", FILES)
def test_what_is_asked_of_test_samples_is_the_same_each_time(objective: str, folder: Path) -> None:
    file, cpu = folder / "scenario.yaml", torch.device("cpu")
    file.write_text(FILES[objective])
    context = context_of(file)
    start, backbone = context.start, context.backbone()
    assert start is not None
    torch.manual_seed(1)
    before = start.accuracy(backbone.train(), cpu), start.perplexity(backbone, cpu)
    torch.rand(5)
    again = Start(start.tensors, start.tasks, run_of(file).pretrain or {})
    assert (again.accuracy(backbone, cpu), again.perplexity(backbone, cpu)) == before
    assert backbone.training, "it is left as it was"
    assert all(torch.equal(t, start.tensors[f"backbone.{name}"]) for name, t in backbone.state_dict().items())
    if objective == "contrastive":
        assert before[1] is None
    else:
        assert 1 < 4 * (before[1] or 0) < (start.perplexity(context._untrained(), cpu) or 0)


@pytest.mark.slow
def test_perplexity_and_accuracy_are_those_of_a_sum_written_out(folder: Path) -> None:
    file, cpu = folder / "scenario.yaml", torch.device("cpu")
    file.write_text(CAUSAL)
    context = context_of(file)
    start, backbone = context.start, context.backbone().eval()
    assert start is not None
    nats, right = [], []
    with torch.no_grad():
        for ids in torch.cat([task.test.x for task in start.tasks]).long():
            states: torch.Tensor = backbone.states(ids.unsqueeze(0))[0]  # type: ignore[operator]
            for place in range(1, len(ids)):
                if 103 < ids[place] < 8000:  # others are [UNK], and not asked
                    output = start.tensors["backbone.embed.weight"], start.tensors["head.bias"]
                    p = (output[0] @ states[place - 1] + output[1]).log_softmax(0)
                    nats.append(-p[ids[place]].item())
                    right.append(p.argmax() == ids[place])
        backbone.embed.weight.mul_(-1)  # type: ignore[union-attr, operator] - the head's own is frozen
    told = start.perplexity(context.backbone(), cpu)
    assert told == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    assert start.accuracy(context.backbone(), cpu) == pytest.approx(sum(right) / len(right))
    assert start.perplexity(backbone, cpu) != told


def test_supervised_starts_have_no_perplexity(file: Path) -> None:
    context = context_of(file)
    assert context.start is not None and context.start.perplexity(context.backbone(), context.device) is None


PROCESS = """
import sys, torch
from pathlib import Path
from forgetlab.config.load import load
from forgetlab.engine import one_run
from forgetlab.learners.context import Context
for name in sys.argv[2:]:
    experiment = load(Path(name))
    run = experiment.run(experiment.entries[0], 0)
    one_run.set_process(run)
    torch.rand(7)
    Context(run, one_run.load_scenario(run), None, torch.device("cpu"), starts=Path(sys.argv[1])).start
"""


@pytest.mark.slow
def test_another_process_makes_the_same_starts_to_the_bit(folder: Path) -> None:
    ours, theirs = folder / "ours", folder / "theirs"
    for name, content in FILES.items():
        (folder / f"{name}.yaml").write_text(
            content.replace("epochs: 40", "epochs: 2").replace("epochs: 12", "epochs: 2")
        )
        context_of(folder / f"{name}.yaml", ours).start  # noqa: B018 - a cached property
    files = [str(folder / f"{name}.yaml") for name in FILES]
    environment = {**os.environ, "FORGETLAB_CACHE": str(folder / "other cache")}
    subprocess.run([sys.executable, "-c", PROCESS, str(theirs), *files], check=True, env=environment)
    contents = [{path.name: path.read_bytes() for path in made.iterdir()} for made in (ours, theirs)]
    assert contents[0] == contents[1] and len(contents[0]) == len(FILES)


@pytest.mark.slow
def test_each_setting_of_an_objective_makes_another_start(folder: Path) -> None:
    file, made = folder / "scenario.yaml", []
    content = IMAGES.replace("epochs: 12,", "epochs: 1,")
    for changed in (content, content.replace("contrastive,", "contrastive, temperature: 0.1,"), content + "seeds: [1]"):
        file.write_text(changed)
        start = context_of(file, folder / "starts").start
        assert start is not None
        made.append(start.tensors["head.projection.0.weight"])
    assert not torch.equal(made[0], made[1]) and len(list((folder / "starts").iterdir())) == 2


def test_the_augmentation_of_the_stage_is_its_own(folder: Path) -> None:
    file = folder / "scenario.yaml"
    file.write_text(IMAGES)
    run = run_of(file)
    assert run.pretrain is not None and not run.train.augment.named
    assert pretraining.settings(run.pretrain).augment.named == {"crop": 1, "rotation": 20.0}
    file.write_text(IMAGES.replace(", augment: {crop: 1, rotation: 20}", "").replace("64}", "64, augment: {crop: 2}}"))
    run = run_of(file)
    assert run.pretrain is not None and pretraining.settings(run.pretrain).augment.named == {"crop": 2}
    assert "augment" not in run.pretrain and run.pretrain["temperature"] == 0.5 and "share" not in run.pretrain


@pytest.mark.slow
def test_a_resolved_file_is_the_same_experiment(folder: Path) -> None:
    for content in FILES.values():
        (folder / "scenario.yaml").write_text(content)
        experiment = load(folder / "scenario.yaml")
        (folder / "resolved.yaml").write_text(resolved(experiment))
        assert load(folder / "resolved.yaml") == experiment
