"""The training loop: Avalanche's supervised template, or one of its strategies, fed with tensors.

Differences from the stock template, each for a reason that a test shows: whole batches are sliced from tensors; the
optimizer is built afresh from what is trainable (Avalanche's matching takes in frozen parameters and wipes restored
state); the order of the samples is that of (seed, task, epoch) whatever else draws; the empty evaluation plug-in,
which costs more than all other bookkeeping of a step, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import new_class
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from forgetlab.avalanche.api import (
    BaseLogger,
    EvaluationPlugin,
    PeriodicEval,
    SupervisedPlugin,
    SupervisedTemplate,
    constructed,
    given_to,
    stock_class,
)
from forgetlab.avalanche.tensor_data import Columns, Source, TensorLoader, TensorTask
from forgetlab.backbones.batch_norm import has_batch_norm
from forgetlab.experiment import Budget, Train
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import reseed
from forgetlab.training.augmentation import Augmentation
from forgetlab.training.data_order import data_order
from forgetlab.training.schedules import Rates, clipped_step

EVALUATION_BATCH = 512
AS_IS = {"pin_memory": False}  # what is on the device already cannot be pinned
REPLAY = "ReplayPlugin"  # Avalanche's, whose data loader joins old samples to new ones
OWN_BATCHES = "augmentation reaches what ForgetLab's loop brings, but here samples come another way"
HEAD = "head"  # the layer of a network that answers
ADAMS_BETAS = (0.9, 0.999)  # of the two running means, unless the file names its own
HEADS = (HEAD, "heads")  # of a network with one head, or with one for each task
Template: Any = object  # at runtime: the template or strategy that follows among the bases


def make_optimizer(train: Train, parameters: Sequence[nn.Parameter], heads: Sequence[nn.Parameter] = ()) -> Optimizer:
    """A fresh optimizer; the fused implementation, where there is one, does the same sums in one pass.

    Those of the ``heads`` among the parameters are a group of their own where they have a rate of their own.
    """
    groups: Any = parameters
    if train.head_lr is not None:
        of_heads = {id(p) for p in heads}
        others = [p for p in parameters if id(p) not in of_heads]
        both = [{"params": others}, {"params": list(heads), "lr": train.head_lr}]
        groups = [group for group in both if group["params"]]
    if train.optimizer == "sgd":
        return SGD(groups, train.lr, momentum=train.momentum, weight_decay=train.weight_decay, fused=True)
    kind = Adam if train.optimizer == "adam" else AdamW
    betas = ADAMS_BETAS if train.betas is None else train.betas
    return kind(groups, train.lr, betas=betas, weight_decay=train.weight_decay, fused=True)


class Diverged(RuntimeError):
    """Training left the finite numbers."""


@dataclass
class Epoch:
    """How far a task's training is."""

    epoch: int
    epochs: int


class TensorPath(Template):
    """What is ours of a loop; stands before the template, or any of Avalanche's strategies, among a class's bases."""

    def __init__(
        self,
        *,
        model: nn.Module,
        train: Train,
        budget: Budget,
        plugins: Sequence[SupervisedPlugin] = (),
        device: torch.device | str = "cpu",
        seed: int = 0,
        first_task: int = 0,
        reset_optimizer: bool = True,
        one_pass: bool = False,
        on_epoch: Callable[[Epoch], None] = lambda _: None,
        of_strategy: Mapping[str, Any] | None = None,
    ) -> None:
        given = {
            "model": model,
            "optimizer": SGD([nn.Parameter(torch.zeros(1))], lr=0.0),  # replaced before the first task
            "criterion": nn.CrossEntropyLoss(),
            "train_mb_size": train.batch_size,
            "eval_mb_size": EVALUATION_BATCH,
            "device": device,
            "plugins": list(plugins),
            "evaluator": EvaluationPlugin(loggers=[BaseLogger()]),
            "cwr_layer_name": HEAD,
        }
        super().__init__(**given_to(self._stock(), given), **(of_strategy or {}))
        self.plugins = [p for p in self.plugins if not isinstance(p, (EvaluationPlugin, PeriodicEval))]
        self.hyper, self.budget, self.seed, self.on_epoch = train, budget, seed, on_epoch
        self.task_updates: int | None = None  # that the task in training has, where the budget counts them
        self.reset_optimizer, self.fresh, self.first_task = reset_optimizer, True, first_task
        self.seen = self.steps = 0  # of this task so far: new samples trained on, steps of the optimizer
        self.augmentation = Augmentation(train.augment, seed) if train.augment.named else None
        self.schedule_stretch = 1.0  # see `Rates`
        self.rates: Rates | None = None  # of the task in training, where they have a schedule
        self.one_pass = one_pass
        self.answered: int = 0  # of this task's new samples, before they were learned
        self.answered_right: int | Tensor = 0
        self.keeps_outputs = False
        self.outputs: list[tuple[Tensor, Tensor]] = []  # logits and labels of the task evaluated last, where kept
        self.correct: Tensor | None = None  # (N,) of the task evaluated last
        self.right_route: Tensor | None = None  # (N,) where a router chose

    @classmethod
    def _stock(cls) -> type:
        """The template or strategy that this stands before."""
        return cls.__mro__[cls.__mro__.index(TensorPath) + 1]

    @property
    def task(self) -> int:
        """The task in training: its name for every generator."""
        return self.first_task + self.clock.train_exp_counter

    @property
    def brings_batches(self) -> bool:
        """Whether stock code joins old samples to the batches, or takes its steps, past this loop."""
        return self.steps_itself or any(type(plugin).__name__ == REPLAY for plugin in self.plugins)

    @property
    def steps_itself(self) -> bool:
        """Whether a stock strategy goes through an epoch in its own way."""
        return self._stock().training_epoch is not SupervisedTemplate.training_epoch

    @property
    def prequential(self) -> float | None:
        """The share of this task's samples that were answered rightly before they were learned."""
        return float(self.answered_right) / self.answered if self.answered else None

    def check_model_and_optimizer(self, **kwargs: Any) -> None:
        """Open the task in the model, then build the optimizer for what is trainable."""
        self.model = self.model_adaptation()
        self.model.train()
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        parameters = [p for _, p in trained]
        heads = [p for name, p in trained if name.partition(".")[0] in HEADS]
        old, names = self.optimizer, {id(p): n for n, p in self.model.named_parameters()}
        self.optimizer = make_optimizer(self.hyper, parameters, heads)
        if not self.reset_optimizer and not self.fresh:
            carry_over(old, self.optimizer, self.names, names)
        self.optimizer.register_step_post_hook(self._count)
        self.names, self.fresh = names, False

    def _count(self, *_: Any) -> None:
        self.steps += 1

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Slices of tensors where the data set is ours and the strategy has no loader of its own."""
        columns = self._columns("make_train_dataloader")
        if columns is None:
            super().make_train_dataloader(**{**AS_IS, **kwargs})
        else:
            self.dataloader = TensorLoader(
                columns,
                self.train_mb_size,
                data_order(self.seed, self.task),
                no_single=has_batch_norm(self.model),
                drop_last=bool(self.hyper.drop_last),
            )

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Slices of tensors where the data set is ours and the strategy has no loader of its own."""
        columns = self._columns("make_eval_dataloader")
        if columns is None:
            super().make_eval_dataloader(**{**AS_IS, **kwargs})
        else:
            self.dataloader = TensorLoader(columns, self.eval_mb_size)

    def _columns(self, loader: str) -> Columns | None:
        stocks_own = getattr(self._stock(), loader) is not getattr(SupervisedTemplate, loader)
        ours = isinstance(self.adapted_dataset, TensorTask) and not stocks_own
        return self.adapted_dataset.columns() if ours else None

    def _before_training_exp(self, **kwargs: Any) -> None:
        reseed("task", self.seed, self.task)
        self.seen = self.steps = self.answered = self.answered_right = 0
        super()._before_training_exp(**kwargs)  # here a plug-in may bring a data loader of another length
        if self.augmentation is not None and not isinstance(self.dataloader, TensorLoader):
            raise OptionError(OWN_BATCHES, "augment")
        self.task_updates = self.budget.updates_of(self.task)
        epochs = self.budget.epochs_of(self.task)
        self.train_epochs = epochs or math.ceil((self.task_updates or 1) / len(self.dataloader))
        if self.hyper.schedule is not None:
            steps = self.task_updates or self.train_epochs * len(self.dataloader)
            stretch = self.schedule_stretch
            self.rates = Rates(self.hyper.schedule, self.optimizer, steps=steps, epochs=epochs, stretch=stretch)

    def optimizer_step(self, **kwargs: Any) -> None:
        """Step along what penalties and projections made of the gradient, clipped where that is asked for."""
        if self.hyper.clip is None:
            super().optimizer_step(**kwargs)
        else:
            clipped_step(self.optimizer, self.hyper.clip)
        if self.rates is not None:
            self.rates.after_step()

    def _before_training_iteration(self, **kwargs: Any) -> None:
        self.seen += len(self.mb_y)
        super()._before_training_iteration(**kwargs)
        self._look()

    def _look(self) -> None:
        """Tell a model that wants to know where the batch at hand lies, if its samples come as they are."""
        if (look := getattr(self.model, "look", None)) is not None:
            as_they_are = isinstance(self.dataloader, TensorLoader) and not (self.is_training and self.augmentation)
            look(Source(self.dataloader.columns[0], self.dataloader.rows) if as_they_are else None)

    def _before_eval_iteration(self, **kwargs: Any) -> None:
        super()._before_eval_iteration(**kwargs)
        self._look()

    def _before_forward(self, **kwargs: Any) -> None:
        """Augment the batch once memories have joined what they drew; they keep samples as they came."""
        super()._before_forward(**kwargs)
        if self.augmentation is not None:
            clock, rows, n = self.clock, self.dataloader.rows, len(self.dataloader.columns[1])
            place = {"task": self.task, "epoch": clock.train_exp_epochs, "step": clock.train_exp_iterations}
            self.mbatch[0] = self.augmentation(self.mb_x, rows, n, **place)

    def _after_forward(self, **kwargs: Any) -> None:
        """Note whether the new samples are answered rightly, before they are learned."""
        super()._after_forward(**kwargs)
        if self.one_pass:
            new = self.seen - self.answered
            self.answered_right += (self.mb_output[:new].argmax(1) == self.mb_y[:new]).sum()
            self.answered = self.seen

    def _after_training_iteration(self, **kwargs: Any) -> None:
        super()._after_training_iteration(**kwargs)
        if self.clock.train_exp_iterations == self.task_updates:
            self.stop_training()

    def _after_training_epoch(self, **kwargs: Any) -> None:
        super()._after_training_epoch(**kwargs)
        if not bool(torch.isfinite(self.loss).all()):
            raise Diverged(f"the loss is {self.loss.item():g} in task {self.task}, epoch {self.clock.train_exp_epochs}")
        if self.rates is not None:
            self.rates.after_epoch()
        self.on_epoch(Epoch(self.clock.train_exp_epochs, self.train_epochs))

    def _eval_exp(self, **kwargs: Any) -> None:
        """Evaluate one task, noting which answers are right."""
        self.answers: list[tuple[Tensor, Tensor | None]] = []
        self.outputs = []
        super()._eval_exp(**kwargs)
        correct, routes = zip(*self.answers, strict=True)
        self.correct = torch.cat(correct)
        here = self.experience.current_experience if self.experience else None
        self.right_route = None if None in routes else torch.cat(routes) == here

    def _after_eval_iteration(self, **kwargs: Any) -> None:
        super()._after_eval_iteration(**kwargs)
        self.answers.append((self.mb_output.argmax(1) == self.mb_y, getattr(self.model, "routes", None)))
        if self.keeps_outputs:
            self.outputs.append((self.mb_output, self.mb_y))


class Loop(TensorPath, SupervisedTemplate):
    """Trains one task after another, and answers test samples."""


def stock_loop(spec: Mapping[str, Any], **settings: Any) -> TensorPath:
    """The same with one of Avalanche's strategies: {"strategy": its class, argument: value, ...}.

    Raises:
        OptionError: Avalanche has no such strategy, or it does not take these arguments.
    """
    name = str(spec.get("strategy"))
    strategy = stock_class("strategy", name)
    arguments = {key: value for key, value in spec.items() if key != "strategy"}
    with constructed("strategy", name):
        return new_class(name, (TensorPath, strategy))(**settings, of_strategy=arguments)


def progress(strategy: Any) -> float:
    """The share of a task's steps that are behind, below 1."""
    updates = strategy.task_updates if isinstance(strategy, TensorPath) else None
    return strategy.clock.train_exp_iterations / (updates or strategy.train_epochs * len(strategy.dataloader))


def progress_of_epoch(strategy: Any) -> tuple[int, int]:
    """The batches of this epoch that are behind, and how many it has: fewer where the task's updates end in it."""
    behind, whole = strategy.clock.train_exp_iterations, len(strategy.dataloader)
    updates = strategy.task_updates if isinstance(strategy, TensorPath) else None
    started = behind - behind % whole
    left = whole if updates is None else updates - started
    return behind - started, min(whole, left)


def carry_over(old: Optimizer, new: Optimizer, old_names: dict[int, str], new_names: dict[int, str]) -> None:
    """Give a new optimizer the old one's state by parameter name; rows that a parameter has grown by start at zero."""
    states = {old_names[id(p)]: state for p, state in old.state.items()}
    for group in new.param_groups:
        for parameter in group["params"]:
            for key, value in states.get(new_names[id(parameter)], {}).items():
                grown = torch.is_tensor(value) and value.dim() > 0 and value.shape != parameter.shape
                if grown:
                    value = torch.cat([value, value.new_zeros(parameter.shape[0] - len(value), *value.shape[1:])])
                new.state[parameter][key] = value.clone() if torch.is_tensor(value) else value
