"""Any stream from any data set: what a task is made of, what the learner is told, and what makes it hard."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from forgetlab.data import dataset
from forgetlab.plugins import Named, Spec, register
from forgetlab.streams import By, FewShot, Order, Scenario, Setting, assemble, cut, modified, refuse_beside_told_tasks

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


@register("scenario", "stream")
def stream(
    seed: int,
    data: Annotated[Spec, Named("data")],
    setting: Setting = "class-incremental",
    by: By | None = None,  # by default what data and setting suggest
    n_tasks: PositiveInt | None = None,  # by default 5, or one for each domain
    transform: Annotated[Spec | None, Named("transform")] = None,
    class_order: Order = "drawn",  # or as given, listed, or {numpy_seed: 1993} as PyCIL, FACIL and LAMDA draw it
    task_order: Order = "given",
    classes_per_task: tuple[PositiveInt, ...] | None = None,
    samples_per_task: PositiveInt | tuple[PositiveInt, ...] | None = None,
    test_samples_per_task: PositiveInt | None = None,
    held_back: NonNegativeInt = 0,  # classes that stay out of the stream, for pretraining
    few_shot: FewShot | None = None,
    long_tail: Annotated[float, Field(ge=1.0)] = 1.0,  # samples of the most frequent class for one of the rarest
    repetition: Share = 0.0,
    blurry: Share = 0.0,
    label_noise: Share = 0.0,
    validation: Share = 0.0,
    rows_may_repeat: bool = False,  # in training and test data, where different things may look the same
    online: bool = False,  # every sample passes by once
    boundaries: bool | None = None,  # whether the learner is told where a task ends; by default where none is blurred
) -> Scenario:
    """Tasks cut from a data set by class, domain, chunk or transform, with any of the settings on top."""
    source = dataset(data, "data")
    refuse_beside_told_tasks(setting, blurry=blurry, repetition=repetition, boundaries=boundaries is False)
    base = few_shot and few_shot.base_classes
    orders = {"class_order": class_order, "task_order": task_order}
    sizes = {"n_tasks": n_tasks, "classes_per_task": classes_per_task, "held_back": held_back, "base_classes": base}
    tasks = modified(
        cut(source, seed, setting, by, transform=transform, **orders, **sizes),
        seed,
        shots=few_shot and few_shot.shots,
        long_tail=long_tail,
        samples_per_task=samples_per_task,
        test_samples_per_task=test_samples_per_task,
        repetition=repetition,
        blurry=blurry,
        label_noise=label_noise,
        validation=validation,
    )
    told = {"boundaries_known": not blurry if boundaries is None else boundaries, "one_pass": online}
    return assemble(source, tasks, setting, rows_may_repeat=rows_may_repeat, **told)
