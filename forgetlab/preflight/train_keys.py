"""Whether what `train` asks for has a meaning for these tasks, this budget and the methods beside it."""

from __future__ import annotations

from collections.abc import Iterator

from forgetlab.experiment import REGULARIZATION, Experiment, KeyPath, Problem, Strategy, Train
from forgetlab.plugins import registry
from forgetlab.streams.scenario import Scenario


def train_problems(experiment: Experiment, scenario: Scenario) -> Iterator[Problem]:
    """Of the file's section and of each entry's own."""
    yield from _unfit_to_tasks(experiment.train, set(Train.model_fields), ("train",), experiment, scenario)
    for i, entry in enumerate(experiment.strategies):
        train = experiment.run(entry, experiment.seeds[0]).train
        place: KeyPath = ("strategies", i)
        if entry.train:
            yield from _unfit_to_tasks(train, set(entry.train), (*place, "train"), experiment, scenario)
        yield from _unfit_to_methods(train, entry, place)


def _unfit_to_tasks(
    train: Train, told: set[str], place: KeyPath, experiment: Experiment, scenario: Scenario
) -> Iterator[Problem]:
    """``told``: the keys that are answered for at this place."""
    schedule, budget = train.schedule, experiment.protocol.budget
    tasks = range(len(scenario.tasks))
    length = min(budget.epochs_of(task) or budget.updates_of(task) or 1 for task in tasks)
    if schedule is not None and schedule.at is not None and "schedule" in told:
        unit = "epochs" if budget.epochs else "updates"
        late = [at for at in schedule.at if at >= length]
        if late:
            message = (
                f"a task ends after {length} {unit}, so no rate falls after {late[0]}: 'at' counts {unit} of a task"
            )
            yield (*place, "schedule", "at"), message
        early = [] if schedule.warmup is None else [at for at in schedule.at if at <= schedule.warmup * length]
        if early:
            message = (
                f"the rate still rises after {early[0]} {unit}, as 'warmup: {schedule.warmup:g}' has it, so it cannot "
                "fall there; let it fall later, or take a shorter warm-up"
            )
            yield (*place, "schedule", "at"), message
    rates = [rate for rate in (train.lr, train.head_lr) if rate is not None]
    answering = [("schedule", "end")] if "schedule" in told else [(key,) for key in ("lr", "head_lr") if key in told]
    if schedule is not None and schedule.end is not None and schedule.end >= min(rates) and answering:
        message = f"the schedule's 'end: {schedule.end:g}' must be below the rate that it starts from, {min(rates):g}"
        yield (*place, *answering[0]), message
    if train.drop_last and told & {"drop_last", "batch_size"}:
        sizes = [len(task.train.y) for task in scenario.tasks]
        if min(sizes) < train.batch_size:
            name = scenario.tasks[sizes.index(min(sizes))].name
            message = (
                f"{name} has {min(sizes)} training samples, fewer than 'batch_size: {train.batch_size}', so no batch "
                "of it would be left; leave this out, or take a smaller batch"
            )
            yield (*place, "drop_last" if "drop_last" in told else "batch_size"), message


def _unfit_to_methods(train: Train, entry: Strategy, place: KeyPath) -> Iterator[Problem]:
    kinds = [registry.kind_of(spec["name"], REGULARIZATION) for spec in entry.regularization or ()]
    if train.schedule is not None and train.schedule.end and "regime" in kinds:
        i = kinds.index("regime")
        message = (
            "a regime multiplies rates, and the schedule's 'end' is one rate for all of them, which may lie above; "
            "give this entry 'train: {schedule: {name: cosine, end: 0}}'"
        )
        yield (*place, "regularization", i), message
    if train.head_lr is not None and entry.replay is not None and entry.replay.sampler is not None:
        message = (
            "a sampler may look a step ahead with the one rate that it is told, and 'head_lr' makes two of it; "
            "give this entry 'train: {head_lr: null}'"
        )
        yield (*place, "replay", "sampler"), message
