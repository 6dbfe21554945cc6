"""What a run stores of each task is enough: the network built again from files answers as it did, alone and merged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from forgetlab.checks import isolation
from forgetlab.checks.backbones import samples
from forgetlab.config import load
from forgetlab.engine import reopened
from forgetlab.engine.all_runs import carry_out
from forgetlab.plugins import registry
from forgetlab.results import module_files
from forgetlab.results.module_files import ModulesError
from forgetlab.results.store import RunFolder, Store
from helpers.commands import invoke

FILE = """
name: tiny
scenario: {name: split_digits, n_tasks: 3}
model: {name: vit, width: 16, depth: 2, patch: 4}
references: [naive]
train: {lr: 1e-2}
strategies:
  - {name: prototype, isolation: {name: lora, rank: 2}, router: prototype}
  - {name: kmeans, isolation: prefix, router: kmeans}
  - {name: surest, isolation: {name: lora, rank: 2}, router: max_probability}
  - {name: pool, isolation: {name: l2p, pool: 4, top: 2, length: 2}}
  - {name: orthogonal, isolation: {name: o_lora, rank: 2}}
  - {name: one, isolation: {name: lora, rank: 2}, merge: ties}
"""
PRETRAINED = """
name: pretrained
scenario: {name: split_digits, n_tasks: 2, held_back: 2, setting: task-incremental}
model: {name: mlp, hidden: [16]}
pretrain: {epochs: 1}
references: []
strategies: [{name: told, isolation: {name: lora, rank: 2, sites: [mlp.in]}}]
"""
RUNS = [("tiny", name) for name in ("prototype", "kmeans", "surest", "pool", "orthogonal", "one")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs."""
    root = tmp_path_factory.mktemp("modules")
    for text in (FILE, PRETRAINED):
        (root / "file.yaml").write_text(text, encoding="utf-8")
        carry_out(load.load(root / "file.yaml"), Store(root / "runs"))
    return root / "runs"


def folder_of(runs: Path, name: str, experiment: str = "tiny") -> RunFolder:
    return Store(runs).folder(experiment, name, 0)


def last_row(folder: RunFolder) -> tuple[list[float | None], list[float | None]]:
    """A run's last accuracies as they were stored, and as the network from its files finds them."""
    learner, result = reopened.reopened(folder.path), folder.result()
    assert result is not None and result.finished
    found = [learner.evaluate(task) for task in range(len(result.task_names))]
    return result.accuracy[-1], [None if one is None else one["accuracy"] for one in found]


@pytest.mark.parametrize(("experiment", "name"), [*RUNS, ("pretrained", "told")])
def test_a_run_from_files_answers_as_it_did(runs: Path, experiment: str, name: str) -> None:
    stored, found = last_row(folder_of(runs, name, experiment))
    assert found == stored
    assert len({*stored}) > 1, "all tasks alike would show nothing"


def test_files_are_those_of_tasks_and_of_what_they_share(runs: Path) -> None:
    tasks = {f"task-{task}.safetensors" for task in range(3)}
    for name, more in (("prototype", {"router"}), ("surest", {"router"}), ("pool", {"shared"}), ("one", set())):
        found = {path.name for path in (folder_of(runs, name).path / "modules").iterdir()}
        assert found == tasks | {f"{one}.safetensors" for one in more}
    assert not (folder_of(runs, "naive").path / "modules").exists()


@pytest.mark.parametrize(("name", "file"), [("prototype", "router"), ("pool", "shared"), ("kmeans", "task-1")])
def test_each_file_counts(runs: Path, tmp_path: Path, name: str, file: str) -> None:
    """With another content the answers are others, so the test above compares something."""
    place = tmp_path / "runs" / "tiny" / name / "seed-0"
    folder = RunFolder(place)
    copy_tree(folder_of(runs, name).path, place)
    path = module_files.path_of(folder, file)
    stored = module_files.read(path)
    changed = {key: -t if t.is_floating_point() else t for key, t in stored.tensors.items()}
    path.write_bytes(module_files.pack(changed, stored.about))
    before, after = last_row(folder)
    assert before != after


def copy_tree(source: Path, target: Path) -> None:
    for path in (path for path in source.rglob("*") if path.is_file()):
        where = target / path.relative_to(source)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(path.read_bytes())


@torch.no_grad()
def test_one_file_is_enough_for_one_task(runs: Path) -> None:
    folder = folder_of(runs, "kmeans")
    whole, asked = reopened.load(folder.path), torch.rand(5, 1, 8, 8)
    for task, path in module_files.task_files(folder).items():
        backbone = reopened.bare_backbone(module_files.read(path).about)
        network = reopened.alone(path, backbone)
        assert [*network.classes_of] == [task] and network.classes_of[task] == whole.classes_of[task]
        assert torch.equal(network.answer(task, asked), whole.answer(task, asked))


def test_a_file_says_what_it_is(runs: Path) -> None:
    with safe_open(module_files.path_of(folder_of(runs, "prototype"), "task-1"), framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about.keys() == {
        *("task", "number", "classes", "isolation", "model", "init", "input_shape", "pretrained", "sites")
    }
    assert (about["number"], about["input_shape"], about["isolation"]["rank"]) == (1, [1, 8, 8], 2)
    assert about["sites"][0] == {"role": "attn.q", "layer": 0, "path": "blocks.0.attention.q"}


@torch.no_grad()
def test_a_merged_file_is_a_whole_model(runs: Path, tmp_path: Path) -> None:
    folder, path = folder_of(runs, "prototype"), tmp_path / "merged.safetensors"
    done = call(runs, "tiny/prototype", "--merged", 1, path)
    assert done.exit_code == 0, done.output
    network, asked = reopened.load(folder.path), torch.rand(20, 1, 8, 8)
    model, wanted = reopened.open_merged(path), network.answer(1, asked)
    assert (model(asked) - wanted).abs().max() < 1e-5
    assert (model(asked) - network.answer(0, asked)[:, :3]).abs().max() > 1e-2
    assert (network.heads["1"](network.backbone(asked)) - wanted).abs().max() > 1e-2, "nothing was merged"


@pytest.mark.parametrize("name", ["bert", "gpt2", "timm", "vit"])
def test_a_change_of_one_part_of_a_fused_layer_is_merged(name: str) -> None:
    network = copy.deepcopy(isolation.trained(registry.find("isolation", "lora"), name))
    tensors, asked = reopened.merged(network, 1), samples(network.backbone, 3)
    backbone = copy.deepcopy(network.backbone)
    backbone.load_state_dict({k.removeprefix("backbone."): t for k, t in tensors.items() if k.startswith("backbone.")})
    with torch.no_grad():
        logits = nn.functional.linear(backbone(asked), tensors["head.weight"], tensors["head.bias"])
        wanted = network.answer(1, asked)
        assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp(min=1)
        assert not torch.equal(backbone(asked), network.backbone(asked))


def test_what_is_no_change_of_weights_is_not_merged(runs: Path, tmp_path: Path) -> None:
    told = call(runs, "tiny/kmeans", "--merged", 0, tmp_path / "x")
    assert told.exit_code == 2 and list(tmp_path.iterdir()) == []
    assert "Prefix is no change of weights; what it does at attn.kv is computed beside them" in told.stderr
    assert "there is no task 7; the run has 0, 1, 2" in call(runs, "tiny/one", "--merged", 7, tmp_path / "x").stderr


def test_a_merge_that_answers_otherwise_is_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., dict[str, Tensor]] = reopened.merged
    monkeypatch.setattr(reopened, "merged", lambda *given: {k: t * 1.01 for k, t in right(*given).items()})
    told = call(runs, "tiny/prototype", "--merged", 1, tmp_path / "x")
    assert told.exit_code == 2 and "its answers would differ by" in told.stderr


def call(runs: Path, *arguments: object) -> Result:
    return invoke("modules", *arguments, "--runs", runs)


def test_the_list(runs: Path) -> None:
    shown = call(runs, "tiny/prototype")
    assert shown.exit_code == 0, shown.output
    head, *rows = shown.stdout.splitlines()
    assert head.split() == ["task", "name", "classes", "attached", "at", "trained", "stored", "bytes"]
    result = folder_of(runs, "prototype").result()
    assert result is not None
    for task, row in enumerate(rows[:3]):
        stored = module_files.read(module_files.path_of(folder_of(runs, "prototype"), f"task-{task}")).tensors
        n = sum(t.numel() for t in stored.values())
        trained = result.counts["per_task"]["trainable"][task]
        assert row.split()[:2] == [str(task), result.task_names[task]]
        assert row.split()[-3:] == [f"{trained:,}", f"{n:,}", f"{4 * n:,}"]
        assert "attn.q 0-1, attn.v 0-1" in row
    assert rows[3].startswith("router: ")
    assert call(runs, folder_of(runs, "prototype").path).stdout == shown.stdout
    assert call(runs, "tiny/prototype/seed-0").stdout == shown.stdout


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("tiny/prototpe", "did you mean 'tiny/prototype/seed-0'?"),
        ("tiny/naive", "keeps no modules; a strategy with 'isolation' keeps one per task"),
    ],
)
def test_what_cannot_be_listed_is_told(runs: Path, run: str, words: str) -> None:
    done = call(runs, run)
    assert done.exit_code == 2 and words in done.stderr and done.stdout == ""


def test_one_of_several_seeds_has_to_be_named(runs: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        copy_tree(folder_of(runs, "one").path, tmp_path / "tiny" / "one" / f"seed-{seed}")
    assert "name one: seed-0, seed-1" in call(tmp_path, "tiny/one").stderr


def test_what_is_no_module_is_told(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ModulesError, match="no such file"):
        module_files.read(tmp_path / "x.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModulesError, match="holds no module"):
        module_files.read(tmp_path / "x.safetensors")
    with pytest.raises(ModulesError, match="not a whole model"):
        reopened.open_merged(module_files.path_of(folder_of(runs, "one"), "task-0"))
    with pytest.raises(ModulesError, match="naive has no modules"):
        reopened.load(folder_of(runs, "naive").path)
    about = {"task": "0", "isolation": {"name": "lora"}, "init": 0, "number": 0}
    (tmp_path / "old.safetensors").write_bytes(module_files.pack({"head.bias": torch.ones(1)}, about))
    with pytest.raises(ModulesError, match="an older version wrote it"):
        reopened.alone(tmp_path / "old.safetensors", registry.build("model", "mlp", {}, input_shape=(1, 8, 8)))
