"""The contract of memories: which old samples are kept, drawn, and joined to each new batch.

A method of replay is a composition of final classes: a `Memory` (what is kept), a `Sampler` (what of it is drawn), a
`Rehearsal` (the loss on new and drawn samples, where that is not the plain cross-entropy), and in the place of the last
a `forgetlab.regularization.Projection` (a constraint on the step). The contracts own Avalanche's hooks, so a memory
also runs in an Avalanche script.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import TensorLoader, batches
from forgetlab.backbones.batch_norm import has_batch_norm
from forgetlab.batch import Batch
from forgetlab.plugins.options import OptionError
from forgetlab.replay import latent
from forgetlab.replay.joining import in_a_row, joined
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.replay.sampler import Sampler
from forgetlab.replay.slots import Slots
from forgetlab.seeding import generator
from forgetlab.toolbox.teacher import changing
from forgetlab.training.data_order import data_order

SIZES = ("capacity", "per_class", "per_task", "share")  # how the size of a memory is told, by one of them
BY_TASKS = "by_tasks"  # the weight of replayed samples that the number of tasks gives


class Passes(Iterable[Batch]):
    """The data of the task in training, as often as they are gone over."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    def __iter__(self) -> Iterator[Batch]:
        strategy = self.strategy
        return batches(strategy.experience.dataset, strategy.train_mb_size, strategy.device)


class Memory(SupervisedPlugin, ABC):
    """Joins drawn samples to each incoming batch, and keeps some of the incoming ones.

    The incoming batch alone is stored, never what was drawn; a task's samples pass by once, in its first epoch, however
    long it is trained; but again in every epoch where their logits are kept, which are to be those of the whole way.
    ``ratio`` is how many old samples a step has for each new one; ``batch_size`` is how many it has whatever the new
    batch. ``weight`` is w in the loss (1 - w) L(new) + w L(drawn), each a mean over its samples; where none is given,
    the loss is one mean over both.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # "boundaries", "passes": what `end` has to be told or allowed
    inside: ClassVar[bool] = False  # whether features are drawn, which enter the head alone, by `answers`
    has_slots: ClassVar[bool] = True  # whether samples are kept in ``slots``, so that a sampler can choose
    reads_kept: ClassVar[bool] = False  # whether it puts kept samples through the network: they must be as they came
    kept: ClassVar[tuple[str, ...]] = ()  # attributes that are kept beside: tensors by name, or plain values

    def __init__(self, capacity: PositiveInt, ratio: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.slots, self.ratio = Slots(capacity), ratio
        self.batch_size: int | None = None  # in the place of the ratio
        self.weight: float | Literal["by_tasks"] | None = None
        self.sampler: Sampler | None = None
        self.rehearsal: Rehearsal | None = None
        self.depth: int | None = None  # the block that kept samples enter; those below it are frozen
        self.joins = True  # whether steps are trained on what is drawn; a projection only looks at it
        self.seed = 0
        self.replayed = 0  # samples drawn in this task
        self.extra_updates = 0  # optimizer steps of networks of its own, at this task's end
        self.model: nn.Module | None = None  # as it is in training
        self._generator = generator("memory", self.seed, 0)
        self._incoming: Batch | None = None
        self._drawn: Batch | None = None
        self._start: dict[str, Tensor] = {}

    def take_size(
        self,
        capacity: int | None = None,
        *,
        per_class: int | None = None,
        per_task: int | None = None,
        share: float | None = None,
    ) -> None:
        """Take the size as one of four: places in all, of each class, of each task, or a share of what comes.

        For a constructor that offers several, after the contract's own.

        Raises:
            OptionError: none of them is given, or several are.
        """
        given = {"capacity": capacity, "per_class": per_class, "per_task": per_task, "share": share}
        refuse_other_than_one_size(type(self), [name for name, value in given.items() if value is not None])
        self.slots = Slots(capacity, each=per_class or per_task, share=share)

    @staticmethod
    def check(x: Tensor) -> None:
        """Refuse inputs (B, ...) that this memory has no use for; called before anything is trained.

        Raises:
            OptionError: with the reason.
        """

    @abstractmethod
    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        """Keep some of the incoming samples, with what is in ``batch.extra``; ``output`` are their logits."""

    def end(self, model: nn.Module, data: Iterable[Batch], generator: Generator) -> None:
        """Called at a task's end with its training data; the model is in evaluation mode."""

    def __len__(self) -> int:
        """How many samples can be drawn."""
        return len(self.slots)

    def sample(self, n: int, generator: Generator) -> Batch:
        """Draw n different samples, each set equally likely, or all where there are fewer."""
        places = torch.randperm(len(self.slots), generator=generator)[:n]
        return self.slots.read(places.to(self.slots.tensors["y"].device))

    def recalled(self, generator: Generator) -> list[Batch]:
        """One batch of the tasks that ended, of ``ratio`` samples for each new one, every set equally likely."""
        assert self._incoming is not None
        old = self._old()
        n = self._wanted(self._incoming)
        chosen = old[torch.randperm(len(old), generator=generator)[:n].to(old.device)]
        self.replayed += len(chosen)
        return [self.slots.read(chosen)] if len(chosen) else []

    def by_task(self) -> list[Batch]:
        """All that is kept of the tasks that ended, task by task."""
        old = self._old()
        tasks = self.slots.tensors["experience"][old] if len(old) else old
        self.replayed += len(old)
        return [self.slots.read(old[tasks == task]) for task in tasks.unique().tolist()]

    def _old(self) -> Tensor:
        """The places of tasks that ended."""
        if not len(self.slots):
            return torch.empty(0, dtype=torch.int64)
        came_in = self.slots.tensors["experience"][: len(self.slots)]
        return (came_in != self.slots.experience).nonzero().squeeze(1)

    def keep_inside(self, network: Any, depth: int) -> None:
        """Keep samples as what enters a block (latent replay: Pellegrini et al. 2020, https://arxiv.org/abs/1912.01100).

        The blocks below are frozen, so that what is kept does not age.
        """
        self.depth = depth
        latent.freeze(network.backbone, depth)

    def encode(self, model: Any, batch: Batch) -> Batch:
        """A batch as it is kept."""
        return batch if self.depth is None else latent.encode(model.backbone, batch, self.depth)

    def answers(self, model: Any, drawn: Batch) -> Tensor:
        """The logits of drawn features. -> (B, C)"""
        return model.answer(drawn.x, drawn.task)

    @property
    def apart(self) -> int:
        """Samples that the loss at hand is over beside those of the strategy's batch."""
        return len(self._drawn.y) if self._drawn is not None and (self.inside or self.depth is not None) else 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is kept, with what the rehearsal keeps: tensors and plain values."""
        tensors, values = self.rehearsal.state() if self.rehearsal else ({}, {})
        kept = {name: getattr(self, name) for name in self.kept}
        parts = {"rehearsal": tensors, "start": self._start} | {k: v for k, v in kept.items() if isinstance(v, dict)}
        beside = {f"{part}/{name}": tensor for part, found in parts.items() for name, tensor in found.items()}
        plain = {name: value for name, value in kept.items() if name not in parts}
        rehearsal = {"rehearsal": values} if values else {}
        came = {"came": [list(pair) for pair in self.slots.came.items()]} if self.slots.came else {}
        return {**self.slots.kept(), **beside}, {"filled": self.slots.filled, **came, **plain, **rehearsal}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        parts: dict[str, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            part, _, name = path.partition("/") if "/" in path else ("", "", path)
            parts.setdefault(part, {})[name] = tensor
        if self.rehearsal:
            self.rehearsal.restore(parts.get("rehearsal", {}), values.get("rehearsal", {}))
        for name in self.kept:
            setattr(self, name, values[name] if name in values else parts.get(name, {}))
        self.slots.tensors, self.slots.filled = parts.get("", {}), values["filled"]
        self.slots.came = {label: count for label, count in values.get("came", ())}
        self._start = parts.get("start", {})

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._generator = generator("memory", self.seed, strategy.clock.train_exp_counter)
        self.model, self.replayed, self.extra_updates = strategy.model, 0, 0
        if not self.joins or (self.sampler is not None and self.sampler.tells_tasks):
            # what is looked at task by task is told by when it came: tasks may all carry one label
            self.slots.experience = strategy.clock.train_exp_counter
        if self.rehearsal is not None:
            self.rehearsal.begin(strategy.model)
            if self.rehearsal.from_scratch:
                self._start_anew(strategy)

    def _start_anew(self, strategy: Any) -> None:
        """Keep of the task what is to be kept, and train a new model on all that is kept."""
        for batch in Passes(strategy):
            self.store(batch, batch.y.new_zeros(len(batch.y), 0, dtype=torch.float32), self._generator)
        for name, tensor in changing(strategy.model).items():
            first = self._start.get(name)
            if first is None:
                first = tensor.clone()
            elif tensor.dim():  # rows that have come since are as nothing has trained them yet
                first = torch.cat([first, tensor[len(first) :]])
            self._start[name] = first
            tensor.copy_(first)
        strategy.optimizer.state.clear()  # of one that is kept from task to task
        kept, n = self.slots.tensors, len(self.slots)
        columns = (kept["x"][:n], kept["y"][:n], kept["task"][:n])
        order = data_order(self.seed, strategy.clock.train_exp_counter)
        normalised = has_batch_norm(strategy.model)
        strategy.dataloader = TensorLoader(columns, strategy.train_mb_size, order, no_single=normalised)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        fields = strategy.mbatch
        x, y, task = fields[0], fields[1], fields[-1] if len(fields) > 2 else torch.zeros_like(fields[1])
        self._incoming, self._drawn = Batch(x, y, task), None
        alone = self.rehearsal is not None and self.rehearsal.from_scratch
        if alone:  # all that is learned is kept already, nothing of it comes by
            self.replayed, strategy.seen = self.replayed + len(y), 0
        if len(self) and self.joins and not alone:
            times = 1 if self.rehearsal is None else self.rehearsal.draws
            drawn = in_a_row([self._draw(strategy, self._incoming) for _ in range(times)])
            self._drawn = drawn if len(drawn.y) else None
            self.replayed += len(drawn.y)
            if not self.inside and self._drawn is not None:
                inputs = drawn.x if self.depth is None else latent.enter(strategy.model.backbone, drawn, self.depth, x)
                strategy.mbatch = joined(self._incoming, drawn, inputs)[: len(fields)]

    def _wanted(self, new: Batch) -> int:
        """How many samples are drawn for a step on the new ones."""
        return self.batch_size or max(1, round(self.ratio * len(new.y)))

    def _draw(self, strategy: Any, new: Batch) -> Batch:
        n = self._wanted(new)
        if self.sampler is None:
            return self.sample(n, self._generator)
        rate = strategy.optimizer.param_groups[0]["lr"]
        return self.slots.read(self.sampler.choose(self.slots, n, new, strategy.model, rate, self._generator))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self._incoming is None or (self._drawn is None and not (self.rehearsal and self.rehearsal.always)):
            return
        x, n, output = strategy.mbatch[0], len(self._incoming.y), strategy.mb_output
        new = self._incoming._replace(x=x[:n])  # what the model saw: augmented, where that is asked for
        drawn = new.rows(torch.arange(0)) if self._drawn is None else self._drawn
        if self.inside:
            output = torch.cat([output, self.answers(strategy.model, drawn)]) if len(drawn.y) else output
        elif self.depth is None:
            drawn = drawn._replace(x=x[n:])
        if self.weight is not None and len(drawn.y):
            strategy.loss = self._weighted(strategy, new, drawn, output)
        elif self.rehearsal is not None:
            strategy.loss = self.rehearsal.loss(strategy.model, new, drawn, output)
        elif self.inside:
            strategy.loss = F.cross_entropy(output, torch.cat([new.y, drawn.y]))
        if self.apart:  # a penalty has no use for what stands for them among the inputs
            strategy.mbatch, strategy.mb_output = [field[:n] for field in strategy.mbatch], strategy.mb_output[:n]

    def _weighted(self, strategy: Any, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        """(1 - w) L(new) + w L(drawn); by tasks w = 1 - 1 / N in the N-th task, so that each task counts alike."""
        n_tasks = strategy.clock.train_exp_counter + 1
        w = 1 - 1 / n_tasks if self.weight == BY_TASKS else float(self.weight or 0.0)
        if self.rehearsal is not None:
            on_new, on_drawn = self.rehearsal.parts(strategy.model, new, drawn, output)
        else:
            on_new = F.cross_entropy(output[: len(new.y)], new.y)
            on_drawn = F.cross_entropy(output[len(new.y) :], drawn.y)
        return (1 - w) * on_new + w * on_drawn

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        rehearsal = self.rehearsal
        keeps_logits = rehearsal is not None and rehearsal.keeps_logits
        if self._incoming is None or (rehearsal is not None and rehearsal.from_scratch):
            return
        if keeps_logits or strategy.clock.train_exp_epochs == 0:
            output = strategy.mb_output[: len(self._incoming.y)].detach()
            beside = {"logits": output} if keeps_logits else {}
            self.store(self.encode(strategy.model, self._incoming._replace(extra=beside)), output, self._generator)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        was_training = strategy.model.training
        strategy.model.eval()
        self.end(strategy.model, Passes(strategy), self._generator)
        if self.rehearsal is not None:
            self.rehearsal.end(strategy.model, self.slots)
        strategy.model.train(was_training)

    @property
    def answers_tests(self) -> bool:
        """Whether the rehearsal has a word in what is answered at test."""
        return self.rehearsal is not None and type(self.rehearsal).answer is not Rehearsal.answer

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self.rehearsal is not None:
            strategy.mb_output = self.rehearsal.answer(strategy.model, strategy.mbatch[0], strategy.mb_output)


def sizes_of(kind: type) -> list[str]:
    """The options by which a memory of this kind is told its size."""
    taken = inspect.signature(kind).parameters
    return [name for name in SIZES if name in taken]


def refuse_other_than_one_size(kind: type, given: list[str]) -> None:
    """Refuse a size that is not told, or told twice.

    Raises:
        OptionError: with the options among which to choose.
    """
    told = " or ".join(f"'{name}'" for name in sizes_of(kind)) or "'capacity'"
    if not given:
        raise OptionError(f"how much is kept is missing: give {told}")
    if len(given) > 1:
        raise OptionError(f"{' and '.join(map(repr, given))} both say how much is kept: give one of them", given[-1])
