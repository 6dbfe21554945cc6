"""What an experiment is, once its file is read: plain, frozen, complete values.

An `Experiment` is a scenario file with every default filled in. It is cut into `Run` values, one per strategy and
seed: each is picklable and holds all that a worker needs to carry it out alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

ResolvedSpec = dict[str, Any]  # {"name": a plug-in's name, its options...}, all defaults filled in
KeyPath = tuple[str | int, ...]  # keys and indices from the top of a scenario file, or from an entry, to a value
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Problem = tuple[KeyPath, str]  # where something cannot be carried out, and why
Varied = Literal["class_order", "init", "data_order"]
Amount = PositiveInt | tuple[PositiveInt, ...]  # for every task, or one for each
SearchSeeds = Literal["each"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
ORACLE = "oracle"  # the router's name where the task is told
REGULARIZATION = ("regularizer", "projection", "regime")  # the kinds of plug-in that stand under that key


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(Frozen):
    """How long a task is trained: passes over its data, or optimizer steps (equal work where tasks differ in size).

    One number holds for every task; a list has one for each task of the stream. ``first_task`` is another number for
    the first task that a model goes through, in the stream that is scored and in that of a search.
    """

    epochs: Amount | None = None
    updates: Amount | None = None
    first_task: PositiveInt | None = None  # epochs or updates, as the number beside it

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, value: Any) -> Any:
        return {"epochs": 1} if value == {} else value

    @field_validator("epochs", "updates", mode="before")
    @classmethod
    def _whole_numbers(cls, amount: Any) -> Amount | None:
        several = isinstance(amount, list | tuple)
        numbers = list(amount) if several else [1 if amount is None else amount]
        if not numbers or any(type(number) is not int or number < 1 for number in numbers):
            raise PydanticCustomError("amount", "should be a whole number above 0, or a list of one for each task")
        return tuple(numbers) if several else amount

    @model_validator(mode="after")
    def _one_of_two(self) -> Budget:
        if (self.epochs is None) == (self.updates is None):
            raise ValueError("give either epochs or updates")
        if self.first_task is not None and self.listed is not None:
            raise ValueError("first_task stands beside one number; a list says already what the first task has")
        return self

    @property
    def listed(self) -> tuple[int, ...] | None:
        """The numbers of a list; None where one number holds for every task."""
        amount = self.updates or self.epochs
        return amount if isinstance(amount, tuple) else None

    def epochs_of(self, task: int) -> int | None:
        """The passes over a task's data; None where the budget is one of updates."""
        return self._of(self.epochs, task)

    def updates_of(self, task: int) -> int | None:
        """The optimizer's steps in a task; None where the budget is one of epochs."""
        return self._of(self.updates, task)

    def _of(self, amount: Amount | None, task: int) -> int | None:
        if isinstance(amount, tuple):
            return amount[task]
        if amount is not None and task == 0 and self.first_task is not None:
            return self.first_task
        return amount

    def from_task(self, first: int) -> Budget:
        """What the tasks of a stream have that begins at this task of the whole one."""
        if self.listed is None:
            return self
        later = self.listed[first:]
        return Budget(epochs=later) if self.updates is None else Budget(updates=later)

    def planned_updates(self, sizes: Sequence[int], train: Train) -> list[int]:
        """The optimizer's steps in each of the first tasks, which have so many training samples.

        What a method trains on beside a task's own samples is not in this plan.
        """
        steps = []
        for task, size in enumerate(sizes):
            epochs = self.epochs_of(task) or 0
            steps.append(self.updates_of(task) or epochs * train.updates_of_pass(size))
        return steps

    def of_tasks_together(self, sizes: Sequence[int], train: Train) -> Budget:
        """What one model has that learns the first tasks together: the work that they have one after another.

        That is as many updates as theirs are in sum, or as many epochs as each of them has. Where they have unlike
        numbers of epochs no number of passes over all samples is the same work, and the sum of their planned updates
        stands for it.
        """
        passes = {self.epochs_of(task) for task in range(len(sizes))}
        if self.updates is None and len(passes) == 1:
            return Budget(epochs=passes.pop())
        return Budget(updates=sum(self.planned_updates(sizes, train)))


class Protocol(Frozen):
    """The choices that change every number of a comparison; the same for all strategies of a file."""

    task_known_at_test: bool | None = None  # None: as the scenario's setting says
    loss_classes: Literal["all", "seen", "current"] = "seen"  # the softmax's support while training
    head: Literal["growing", "fixed", "per-task"] = "growing"
    reset_optimizer: bool = True  # a fresh optimizer for each task
    budget: Budget = Budget(epochs=1)
    evaluate_on: Literal["test", "validation"] = "test"  # validation: what the stream keeps apart of training data
    seeds_vary: tuple[Varied, ...] = ("class_order", "init", "data_order")


class Augment(Frozen):
    """What is done to training images, in this order, each sample by draws of its own; nothing unless named."""

    resized_crop: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None  # the least share of the area that is cut out
    crop: PositiveInt | None = None  # pixels of zeros around the image, from which a window of its size is cut
    flip: Literal["horizontal", "vertical", "both"] | None = None  # with a chance of one half
    rotation: Annotated[float, Field(gt=0.0, le=180.0)] | None = None  # degrees, at most, to either side
    brightness: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # a factor from 1 - this to 1 + this
    contrast: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # likewise

    @field_validator("resized_crop", mode="before")
    @classmethod
    def _no_pixels(cls, share: Any) -> Any:
        if isinstance(share, int | float) and share >= 1:
            size = "the part is brought back to the images' own size, which their data say ('size: 224')"
            raise PydanticCustomError("share", f"should be the least share of the area, such as 0.08; {size}")
        return share

    @property
    def named(self) -> dict[str, Any]:
        """What is asked for."""
        return self.model_dump(mode="json", exclude_none=True)


class Schedule(Frozen):
    """How the learning rate moves within a task, anew in each.

    It moves once an epoch under ``budget: {epochs}``, once an optimizer step under ``{updates}``, and at every step
    where it has a warm-up.
    """

    name: Literal["constant", "steps", "cosine"]
    at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None  # steps: epochs, or updates
    factor: PositiveFloat | None = None  # steps: what the rate is multiplied by at each
    end: NonNegativeFloat | None = None  # cosine: the rate that it ends at
    warmup: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None  # the share of the task's steps in which it rises

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return value
        given = {key: tuple(one) if isinstance(one, list) else one for key, one in value.items() if one is not None}
        return {**SCHEDULE_DEFAULTS.get(value["name"], {}), **given}

    @model_validator(mode="after")
    def _of_its_name(self) -> Schedule:
        for key, name in SCHEDULE_KEYS.items():
            if getattr(self, key) is not None and self.name != name:
                raise ValueError(f"{key} is for 'name: {name}'; {self.name} has none to set")
        if self.name == "steps" and self.at is None:
            raise ValueError("steps needs 'at', after how many epochs (or updates) the rate falls: at: [49, 63]")
        if self.at is not None and list(self.at) != sorted(set(self.at)):
            raise ValueError("'at' must rise from one number to the next")
        if self.name == "constant" and self.warmup is None:
            raise ValueError("constant without a warm-up is no schedule: leave it out, or give 'warmup: 0.1'")
        return self

    @property
    def named(self) -> dict[str, Any]:
        """What is asked for."""
        return self.model_dump(mode="json", exclude_none=True)


SCHEDULE_KEYS = {"at": "steps", "factor": "steps", "end": "cosine"}  # that mean something to one alone
SCHEDULE_DEFAULTS: dict[str, dict[str, Any]] = {"steps": {"factor": 0.1}, "cosine": {"end": 0.0}}


class Train(Frozen):
    """How a task is trained; a strategy may override any of these for itself."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    batch_size: PositiveInt = 128
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    augment: Augment = Augment()
    schedule: Schedule | None = None  # by default the rate stays
    clip: PositiveFloat | None = None  # the longest gradient of a step, over all that is trained, after projections
    head_lr: PositiveFloat | None = None  # a rate of its own for the heads
    betas: tuple[Beta, Beta] | None = None  # of Adam's two running means; by default torch's .9 and .999
    drop_last: bool | None = None  # leave out an epoch's last batch where it is not full

    @model_validator(mode="after")
    def _betas_are_for_adam(self) -> Train:
        if self.betas is not None and self.optimizer == "sgd":
            raise ValueError("betas are for adam and adamw; sgd has 'momentum'")
        return self

    @model_validator(mode="after")
    def _momentum_is_for_sgd(self) -> Train:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for sgd; {self.optimizer} has none to set")
        return self

    def updates_of_pass(self, size: int) -> int:
        """The optimizer's steps in one pass over so many samples."""
        return size // self.batch_size if self.drop_last else math.ceil(size / self.batch_size)


class GeneralSet(Frozen):
    """A fixed set from elsewhere that is trained on beside every batch."""

    ratio: PositiveFloat = 0.25  # of its samples for each new one
    data: ResolvedSpec | None = None  # by default what the backbone was pretrained on


def _replay_weight(value: Any) -> float | str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value == "by_tasks" or (number and 0 < value < 1):
        return value
    raise PydanticCustomError("replay_weight", "should be 'by_tasks' or a number above 0 and below 1")


ReplayWeight = Annotated[float | Literal["by_tasks"], PlainValidator(_replay_weight)]  # 1 - 1 / (tasks so far), or w


class Replay(Frozen):
    """What old or other samples a step has beside the new ones, and what is done with them."""

    memory: ResolvedSpec | None = None
    sampler: ResolvedSpec | None = None  # by default each kept sample is equally likely
    rehearsal: ResolvedSpec | None = None  # by default the cross-entropy over new and drawn samples
    projection: ResolvedSpec | None = None  # in the rehearsal's place: the drawn samples constrain the step
    depth: PositiveInt | None = None  # the block that kept samples enter; by default they are kept as they came
    batch_size: PositiveInt | None = None  # samples drawn for a step; by default the memory's ratio to the new ones
    weight: ReplayWeight | None = None  # w in (1 - w) L(new) + w L(drawn); by default one mean over all samples
    general: GeneralSet | None = None


class Strategy(Frozen):
    """One entry of the comparison: a reference, or plug-ins of one or several families."""

    name: str
    reference: ResolvedSpec | None = None
    replay: Replay | None = None
    regularization: tuple[ResolvedSpec, ...] | None = None  # penalties, projections and regimes that act together
    isolation: ResolvedSpec | None = None
    shared: Literal[True] | None = None  # all tasks train one module, as they would the network
    router: ResolvedSpec | None = None
    merge: ResolvedSpec | None = None  # in the router's place: one change, made of the tasks', answers for all
    classifier: ResolvedSpec | None = (
        None  # in the heads' place, on the features of the bare backbone or of ``isolation``
    )
    avalanche: ResolvedSpec | None = None  # {"plugin" or "strategy": Avalanche's name, its arguments...}
    train: dict[str, Any] = Field(default_factory=dict)

    @field_validator("train")
    @classmethod
    def _plain(cls, train: dict[str, Any]) -> dict[str, Any]:
        return {key: value.named if isinstance(value, Augment | Schedule) else value for key, value in train.items()}

    @property
    def family(self) -> str:
        if self.classifier is not None:
            return "isolation"
        families = ("reference", "replay", "regularization", "isolation", "avalanche")
        return "+".join(family for family in families if getattr(self, family) is not None)


class Tracking(Frozen):
    """Where MLflow keeps what it shows."""

    uri: str = "sqlite:///mlflow.db"


class StreamPart(Frozen):
    """Some tasks of a stream, as a stream of their own."""

    first: NonNegativeInt = 0
    last: PositiveInt | None = None  # the task before which it ends
    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # of the training samples, where none are kept apart


class Choice(Frozen):
    """An option whose value a search chooses: one of some, or any between two."""

    at: KeyPath  # where it stands in the resolved file
    values: tuple[int | float, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False


class Tuning(Frozen):
    """How options given as lists are chosen: on validation data of tasks that are not scored."""

    tasks: int | None = None  # the stream's first ones, which then leave it; of another scenario: by default all
    scenario: ResolvedSpec | None = None  # another stream to search on
    search: Literal["grid", "optuna"] = "grid"
    trials: PositiveInt | None = None  # of each strategy; by default all combinations, which must then be equally many
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2  # of the training samples, where none are kept apart
    seeds: SearchSeeds | None = None  # each: every run by a search of its own, with its seed
    seed: NonNegativeInt = 0  # of what a search draws
    choices: tuple[Choice, ...] = ()  # the lists of the file

    @field_validator("tasks")
    @classmethod
    def _two_or_more(cls, tasks: int | None) -> int | None:
        if tasks is not None and tasks < 2:
            raise PydanticCustomError("tasks", "should be 2 or more (of one task nothing can be forgotten)")
        return tasks

    @model_validator(mode="after")
    def _trials_to_draw(self) -> Tuning:
        if self.search == "optuna" and self.trials is None:
            raise ValueError("'search: optuna' needs 'trials', how many each strategy gets")
        return self


class Tuned(Frozen):
    """What a search chose for a run, on what, and what that took."""

    values: dict[str, int | float]
    score: float  # the mean of the objective over the search's seeds
    trials: int
    of: int  # the most that any strategy of the file gets
    samples_seen: int
    samples_replayed: int
    updates: int
    search: dict[str, Any]


class Run(Frozen):
    """One strategy, one seed, and all that determines its numbers."""

    scenario: ResolvedSpec
    model: ResolvedSpec
    pretrain: ResolvedSpec | None
    protocol: Protocol
    train: Train
    strategy: Strategy
    seed: int
    device: str
    threads: int
    plugins: tuple[str, ...]
    reuse_frozen: bool = True
    part: StreamPart | None = None  # of the stream; None: all of it
    tuned: Tuned | None = None

    def seed_of(self, varied: Varied) -> int:
        """The seed of one source of variation: this run's, or 0 where the file holds it fixed."""
        return self.seed if varied in self.protocol.seeds_vary else 0

    @property
    def budget(self) -> Budget:
        """What the tasks have that this run goes through."""
        return self.protocol.budget.from_task(0 if self.part is None else self.part.first)

    @property
    def task_identity(self) -> str:
        """How a test sample's task is known: none (not used), routed (inferred) or told."""
        reference = self.strategy.reference
        if self.protocol.task_known_at_test or (reference and reference["name"] == "separate"):
            return "told"
        if self.strategy.router is None:
            return "none"
        return "told" if self.strategy.router == {"name": ORACLE} else "routed"


class Experiment(Frozen):
    """A scenario file, whole and resolved."""

    name: str
    scenario: ResolvedSpec
    model: ResolvedSpec
    pretrain: ResolvedSpec | None = None
    protocol: Protocol = Protocol()
    train: Train = Train()
    references: tuple[ResolvedSpec, ...]
    strategies: tuple[Strategy, ...] = ()
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    threads: PositiveInt = 1
    reuse_frozen: bool = True  # keep what a frozen backbone computes; part of the file: it can change the last bit
    tracking: Tracking = Tracking()
    plugins: tuple[str, ...] = ()
    tuning: Tuning | None = None

    @property
    def entries(self) -> list[Strategy]:
        """The references, then the strategies."""
        return [Strategy(name=spec["name"], reference=spec) for spec in self.references] + list(self.strategies)

    @property
    def part(self) -> StreamPart | None:
        """The tasks that are scored: not those that a search takes."""
        if self.tuning is None or self.tuning.scenario is not None:
            return None
        return StreamPart(first=self.tuning.tasks or 0)

    def runs(self) -> list[Run]:
        """Every strategy with every seed, a strategy's seeds together; what is to be chosen has its first value."""
        return [self.run(entry, seed) for entry in self.entries for seed in self.seeds]

    def run(self, entry: Strategy, seed: int) -> Run:
        return Run(
            scenario=self.scenario,
            model=self.model,
            pretrain=self.pretrain
            and {**self.pretrain, "train": self.train.model_dump(mode="json", exclude_none=True)},
            protocol=self.protocol,
            train=Train(**{**self.train.model_dump(), **entry.train}),
            strategy=entry,
            seed=seed,
            device=self.device,
            threads=self.threads,
            reuse_frozen=self.reuse_frozen,
            plugins=self.plugins,
            part=self.part,
        )
