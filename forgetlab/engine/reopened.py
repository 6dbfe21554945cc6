"""The network of a run, built again from the files that it keeps of each task.

``modules/task-N.safetensors`` holds what task N owns, its module and its head; ``shared.safetensors`` what belongs to
all tasks together, and ``router.safetensors`` what the router learned. Each file's metadata "about" says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forgetlab.experiment import ResolvedSpec, Run
from forgetlab.plugins import registry
from forgetlab.results.module_files import ModulesError, Stored, description, pack, path_of, read, task_files
from forgetlab.results.store import RunFolder, Store, write_bytes
from forgetlab.seeding import drawn_from

if TYPE_CHECKING:
    from forgetlab.isolation.module import Isolation
    from forgetlab.isolation.network import IsolatedNetwork
    from forgetlab.learners.sequential import Sequential


CLOSE = 1e-5  # how far answers with a merged change may lie from those with the module, against the largest logit


def load(folder: Path, device: str = "cpu") -> IsolatedNetwork:
    """The network of a run as it was when its last task had ended; runs the plug-in files that the run names.

    Raises:
        ModulesError: the run has no modules, or a classifier answers in the place of their heads.
        FileNotFoundError: its data or its backbone's weights are not on this machine.
    """
    from forgetlab.isolation.network import IsolatedNetwork

    network = reopened(folder, device).network
    assert isinstance(network, IsolatedNetwork)
    return network


def reopened(folder: Path, device: str = "cpu") -> Sequential:
    """What went through a run's stream, as it was at the end: it can evaluate each task again."""
    from forgetlab.avalanche.tensor_data import to_benchmark
    from forgetlab.engine import one_run
    from forgetlab.learners.context import Context
    from forgetlab.learners.sequential import Sequential

    place = RunFolder(folder.resolve())
    run = description(place)
    _refuse(place, run)
    one_run.set_process(run)
    scenario, at = one_run.load_scenario(run), torch.device(device)
    benchmark = to_benchmark(scenario, at, run.task_identity == "told")
    learner = Sequential()
    learner.prepare(Context(run, scenario, benchmark, at, starts=Store(place.path.parents[2]).starts))
    fill(learner.network, place, at)  # type: ignore[arg-type] - a run with modules has such a network
    return learner


def _refuse(folder: RunFolder, run: Run) -> None:
    if run.strategy.isolation is None:
        raise ModulesError(f"{run.strategy.name} has no modules: only a strategy with 'isolation' has one per task")
    if run.strategy.classifier is not None:
        raise ModulesError(f"in {run.strategy.name} a classifier answers for all tasks, and its sums are not stored")
    refuse_shared(run)
    if not task_files(folder):
        raise ModulesError(f"no task of {folder.path} has ended yet")


def refuse_shared(run: Run) -> None:
    """Say why nothing is stored task by task, where that is so by the file.

    Raises:
        ModulesError: all tasks train one module.
    """
    if run.strategy.shared:
        raise ModulesError(f"in {run.strategy.name} all tasks train one module, so there is none for each task")


def fill(network: IsolatedNetwork, folder: RunFolder, device: torch.device) -> None:
    """Give a new network what a run's files hold."""
    if (path := path_of(folder, "shared")).is_file():
        network.shared = {name: tensor.to(device) for name, tensor in read(path).tensors.items()}
    for task, file in task_files(folder).items():
        stored = read(file)
        network.load_task(task, _classes(file, stored), stored.tensors)
    if network.router is not None:
        router = read(path_of(folder, "router"))
        tensors = {name: tensor.to(device) for name, tensor in router.tensors.items()}
        network.router.restore(tensors, router.about["values"])
    network.merge()
    network.eval()


def _classes(path: Path, stored: Stored) -> list[int]:
    if "classes" not in stored.about:
        raise ModulesError(f"{path.name} does not tell its classes: an older version wrote it; run it again")
    return stored.about["classes"]


def alone(path: Path, backbone: nn.Module) -> IsolatedNetwork:
    """One task's module and head on a backbone, from its file and, where there is one, the shared file beside it.

    A module that builds on those of earlier tasks needs the whole run: `load`.
    """
    from forgetlab.isolation.network import IsolatedNetwork
    from forgetlab.plugins.registry import built

    stored = read(path)
    spec: ResolvedSpec = stored.about["isolation"]
    network = IsolatedNetwork(backbone, lambda: built("isolation", spec), seed=stored.about["init"])
    if (shared := path.with_name("shared.safetensors")).is_file():
        network.shared = read(shared).tensors
    network.load_task(stored.about["number"], _classes(path, stored), stored.tensors)
    return network.eval()


def merged(network: IsolatedNetwork, task: int) -> dict[str, Tensor]:
    """The backbone with one task's change made in its weights, and the task's head, by "backbone." and "head.".

    Raises:
        ModulesError: the module is no change of weights.
    """
    from forgetlab.isolation.attachment import standing_in
    from forgetlab.isolation.network import Merged

    module = speaking(network, task)
    changes = module.changes()
    if not changes:
        raise ModulesError(f"task {task} cannot be merged: {_beside(module)}")
    own = {name: t for name, t in standing_in(module, network.backbone).items() if module.owns_layers}  # buffers too
    weights = network.backbone.state_dict() | own | standing_in(Merged([module], changes), network.backbone)
    parts = {"backbone": weights, "head": network.heads[str(task)].state_dict()}
    return {f"{part}.{name}": tensor.detach() for part, named in parts.items() for name, tensor in named.items()}


def _beside(module: Isolation) -> str:
    roles = dict.fromkeys(site.role for site in module.sites)
    where = f" at {', '.join(roles)}" if roles else ""
    return f"{type(module).__name__} is no change of weights; what it does{where} is computed beside them"


def speaking(network: IsolatedNetwork, task: int) -> Isolation:
    """The module behind a task's head.

    Raises:
        ModulesError: there is no such task.
    """
    if task not in network.classes_of:
        raise ModulesError(f"there is no task {task}; the run has {', '.join(map(str, network.classes_of))}")
    return network.speaker(task)


def write_merged(folder: RunFolder, task: int, path: Path) -> float:
    """Write `merged` as one file, for `open_merged`; returns how far its answers to the task's test samples lie.

    Raises:
        ModulesError: the module is no change of weights, or its answers would be others.
    """
    from forgetlab.data.datasets import as_input

    learner = reopened(folder.path)
    network: Any = learner.network
    tensors = merged(network, task)
    about = {**read(task_files(folder)[task]).about, "merged": True}
    asked = as_input(learner.context.scenario.tasks[task].test.x[:64])
    with torch.no_grad():
        theirs, ours = _rebuilt(Stored(about, tensors))(asked), network.answer(task, asked)
    gap = (theirs - ours).abs().max().item()
    if gap > CLOSE * max(1.0, ours.abs().max().item()):
        raise ModulesError(f"task {task} cannot be merged: its answers would differ by {gap:.2g}")
    write_bytes(path, pack(tensors, about))
    return gap


def open_merged(path: Path) -> nn.Sequential:
    """The backbone with the change inside, and the head behind it: (B, ...) -> (B, the task's classes)."""
    stored = read(path)
    if not stored.about.get("merged"):
        raise ModulesError(f"{path.name} holds a module, not a whole model")
    return _rebuilt(stored)


def _rebuilt(stored: Stored) -> nn.Sequential:
    about, head = stored.about, stored.part("head")
    backbone = bare_backbone(about)
    backbone.load_state_dict(stored.part("backbone"))
    rows, width = head["weight"].shape
    linear = nn.Linear(width, rows)
    linear.load_state_dict(head)
    return nn.Sequential(backbone, linear).eval()


def bare_backbone(about: Mapping[str, Any]) -> nn.Module:
    """The starting backbone that a file tells of; one that the run pretrained has its weights in the run's start."""
    options = {key: value for key, value in about["model"].items() if key != "name"}
    with drawn_from("init", about["init"]):
        return registry.build("model", about["model"]["name"], options, input_shape=tuple(about["input_shape"])).eval()
