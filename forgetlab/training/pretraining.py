"""The pretraining stage: the one start of all strategies of a file, and what becomes of the knowledge in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.tensor_data import TensorLoader, TensorTask, batches, together
from forgetlab.backbones.batch_norm import has_batch_norm
from forgetlab.batch import Batch
from forgetlab.data.datasets import as_input
from forgetlab.experiment import Budget, ResolvedSpec, Run, Train
from forgetlab.results.run_key import start_key
from forgetlab.results.store import LOCKS, write_bytes
from forgetlab.seeding import drawn_from, reseed
from forgetlab.streams.scenario import Scenario, Task, pretraining_tasks
from forgetlab.training.data_order import data_order
from forgetlab.training.loop import Diverged, Loop, make_optimizer
from forgetlab.training.network import SharedNetwork
from forgetlab.training.pretraining_objectives import DrawName, Objective, Pieces, made
from forgetlab.training.schedules import Rates, clipped_step

BATCH = 512
SUPERVISED = "supervised"  # the objective that needs labels; its head is that of a network
_made: dict[str, dict[str, Tensor]] = {}  # starts of this process, by key

Answers = Callable[[Batch, list[DrawName]], Tensor]


@dataclass(frozen=True)
class Start:
    """A pretrained backbone, the head it was trained with, and the data it was trained on."""

    tensors: dict[str, Tensor]  # of a network: backbone.* and head.*
    tasks: tuple[Task, ...]
    pretrain: ResolvedSpec  # as a run holds it

    def load_into(self, backbone: nn.Module) -> None:
        """Give a backbone the pretrained weights."""
        backbone.load_state_dict(self._part("backbone"))

    def accuracy(self, backbone: nn.Module, device: torch.device) -> float:
        """What this backbone, under the head of the pretraining, still gets right of the pretraining's test data.

        - supervised: the samples' classes;
        - masked, causal: the hidden, or the next, pieces of the texts, the same ones each time;
        - contrastive: of two views of each image, the same ones each time, that the second is the one most like the
          first among those of up to 512 images.
        """
        if self.pretrain["objective"] == SUPERVISED:
            weight, bias = (self.tensors[f"head.{name}"].to(device) for name in ("weight", "bias"))
            return self._mean(backbone, device, lambda b, _: (backbone(b.x) @ weight.T + bias).argmax(1) == b.y)
        objective = self._objective(backbone, device)
        return self._mean(backbone, device, lambda batch, names: objective.right(backbone, batch.x, names))

    def loss(self, device: torch.device) -> Callable[[nn.Module, Tensor, Tensor, int], Tensor]:
        """The pretraining's loss on its own samples, under the head as it was at its end, which stays so."""
        if self.pretrain["objective"] == SUPERVISED:
            weight, bias = (self.tensors[f"head.{name}"].to(device) for name in ("weight", "bias"))
            return lambda backbone, x, y, _: F.cross_entropy(backbone(x) @ weight.T + bias, y)
        made: list[Objective] = []  # of the first backbone that comes: the objective reads its shape alone

        def by_objective(backbone: nn.Module, x: Tensor, _: Tensor, step: int) -> Tensor:
            if not made:
                made.append(self._objective(backbone, device).requires_grad_(False))
            return made[0].loss(backbone, x, [("general", step, row) for row in range(len(x))])

        return by_objective

    def perplexity(self, backbone: nn.Module, device: torch.device) -> float | None:
        """e to the mean of -log p(piece), over what `accuracy` counts; None where no pieces of text are told."""
        objective = None if self.pretrain["objective"] == SUPERVISED else self._objective(backbone, device)
        if not isinstance(objective, Pieces):
            return None
        nats = self._mean(backbone, device, lambda batch, names: objective.nats(backbone, batch.x, names))
        return torch.tensor(nats).double().exp().item()

    @torch.no_grad()
    def _mean(self, backbone: nn.Module, device: torch.device, answers: Answers) -> float:
        """Over all answers to the test data."""
        was_training = backbone.training
        backbone.eval()
        found = [answers(batch, names) for batch, names in self._test(device)]
        backbone.train(was_training)
        return torch.cat(found).double().mean().item()

    def _test(self, device: torch.device) -> Iterator[tuple[Batch, list[DrawName]]]:
        for i, task in enumerate(self.tasks):
            first = 0
            for batch in batches(TensorTask.of(task.test, 0, device), BATCH, device):
                yield batch, [("test", i, row) for row in range(first, first + len(batch.y))]
                first += len(batch.y)

    def _objective(self, backbone: nn.Module, device: torch.device) -> Objective:
        x = as_input(self.tasks[0].test.x[:1])
        objective = made(self.pretrain, settings(self.pretrain).augment, backbone, x)
        objective.load_state_dict(self._part("head"))
        objective.to(device).freeze(self._part("backbone"))
        return objective

    def _part(self, name: str) -> dict[str, Tensor]:
        prefix = f"{name}."
        return {k.removeprefix(prefix): tensor for k, tensor in self.tensors.items() if k.startswith(prefix)}


def start(run: Run, scenario: Scenario, backbone: nn.Module, device: torch.device, cache: Path | None) -> Start | None:
    """The run's start, trained once and then found by its content; None where the file asks for none."""
    if run.pretrain is None:
        return None
    tasks = pretraining_tasks(run.pretrain, scenario, run.seed_of("class_order"))
    key = start_key(run, tasks)
    if key not in _made:
        train = partial(_train, run, tasks, backbone, device)
        _made[key] = train() if cache is None else _kept(cache / f"{key}.safetensors", train)
    return Start(_made[key], tasks, run.pretrain)


def _kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What lies there, made where it does not: of several workers by one, for which the others wait."""
    lock = path.parent.with_name(LOCKS) / path.stem
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if not path.is_file():
            write_bytes(path, save(make()))
    return load(path.read_bytes())


def settings(pretrain: ResolvedSpec, train: Mapping[str, Any] | None = None) -> Train:
    """How the backbone is trained: as the file says under ``train:``, but for an augmentation of the stage's own."""
    given = pretrain["train"] if train is None else train
    return Train(**{**given, **({"augment": pretrain["augment"]} if "augment" in pretrain else {})})


def try_objective(pretrain: ResolvedSpec, train: Train, backbone: nn.Module, x: Tensor) -> None:
    """Let a backbone answer two samples x (2, ...) as its pretraining will ask it.

    Raises:
        OptionError: it cannot be trained so.
    """
    if pretrain["objective"] != SUPERVISED:
        made(pretrain, train.augment, backbone, x).loss(backbone, x, [("tried", row) for row in range(len(x))])


def _train(run: Run, tasks: tuple[Task, ...], backbone: nn.Module, device: torch.device) -> dict[str, Tensor]:
    assert run.pretrain is not None
    whole = together([TensorTask.of(task.train, i, device) for i, task in enumerate(tasks)])
    train, seed = settings(run.pretrain), run.seed_of("data_order")
    if run.pretrain["objective"] == SUPERVISED:
        network: nn.Module = SharedNetwork(backbone, seed=run.seed_of("init")).to(device)
        budget = Budget(epochs=run.pretrain["epochs"])
        Loop(model=network, train=train, budget=budget, device=device, seed=seed).train(whole, [])
    else:
        with drawn_from("objective", run.seed_of("init")):
            head = made(run.pretrain, train.augment, backbone, as_input(tasks[0].train.x[:1]))
        network = nn.ModuleDict({"backbone": backbone, "head": head}).to(device)
        _by_objective(head, backbone, whole.dataset, train, run.pretrain["epochs"], seed)
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _by_objective(
    objective: Objective, backbone: nn.Module, data: TensorTask, train: Train, epochs: int, seed: int
) -> None:
    columns = data.columns()
    assert columns is not None  # tensors of ours alone
    heads = list(objective.parameters())
    optimizer = make_optimizer(train, [*backbone.parameters(), *heads], heads)
    loader = TensorLoader(
        columns,
        train.batch_size,
        data_order(seed, task=0),
        no_single=has_batch_norm(backbone),
        drop_last=bool(train.drop_last),
    )
    rates: Rates | None = None
    if train.schedule is not None:
        rates = Rates(train.schedule, optimizer, steps=epochs * len(loader), epochs=epochs)
    reseed("pretrain", seed)  # for a model with dropout
    backbone.train()
    for epoch in range(epochs):
        losses = []
        for x, *_ in loader:
            loss = objective.loss(backbone, x, [("train", seed, epoch, row) for row in loader.rows.tolist()])
            optimizer.zero_grad()
            loss.backward()
            if train.clip is None:
                optimizer.step()
            else:
                clipped_step(optimizer, train.clip)
            if rates is not None:
                rates.after_step()
            losses.append(loss.detach())
        if rates is not None:
            rates.after_epoch()
        if not bool((mean := torch.stack(losses).mean()).isfinite()):
            raise Diverged(f"the loss of the pretraining is {mean.item():g} in epoch {epoch + 1}")
