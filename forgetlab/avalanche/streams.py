"""Avalanche's benchmarks and our streams, each as the other.

`to_avalanche` gives what a plain Avalanche script trains on, `from_avalanche` gives the stream that a benchmark holds.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from forgetlab.avalanche.api import (
    AvalancheDataset,
    CLExperience,
    CLScenario,
    EagerCLStream,
    OnlineCLExperience,
    benchmark_from_datasets,
    benchmarks,
    split_online_stream,
    with_classes_timeline,
    with_task_labels,
)
from forgetlab.avalanche.tensor_data import TensorTask, to_benchmark
from forgetlab.batch import UNKNOWN
from forgetlab.data.datasets import Samples
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import drawn_from, reseed
from forgetlab.streams.scenario import Scenario, Task

TrainTransforms = Literal["refuse", "drop"]

TRAIN, TEST = ("train", "train_online"), ("test", "original_test")  # as Avalanche's own functions name them
VALIDATION = "valid"
HELD_BACK = ("held_back", "held_back_test")
UNLIKE = "the samples differ in shape; a transform must make them alike"
KEPT = ("tokenizer", "scores")  # of the whole stream, as attributes of the benchmark


def to_avalanche(scenario: Scenario, device: torch.device | str = "cpu", batch_size: int | None = None) -> CLScenario:
    """The stream as an Avalanche benchmark, with its names as ``class_names`` and each experience's ``task_name``.

    The streams are "train" and "test", also "valid" where tasks have validation samples, and "held_back" and
    "held_back_test" where classes are held back. Test samples carry their task where it is told. In a stream of one
    pass each training experience holds ``batch_size`` samples, in their order; where the boundaries are not known, it
    masks them and its samples carry no task.

    Raises:
        OptionError: ``batch_size`` is missing or has no meaning, or Avalanche cannot hide what the learner may not see.
    """
    _refuse_to_show(scenario, batch_size)
    names = [task.name for task in scenario.tasks]
    parts = {name: list(stream) for name, stream in to_benchmark(scenario, device).streams.items()}
    if not scenario.boundaries_known:
        parts["train"] = _experiences([task.train for task in scenario.tasks], [UNKNOWN] * len(names), device)
    validation = [task.validation for task in scenario.tasks if task.validation is not None]
    if validation:
        told = range(len(names)) if scenario.task_known_at_test else [UNKNOWN] * len(names)
        parts[VALIDATION] = _experiences(validation, told, device)
    for experience, name in zip(parts["train"], names, strict=True):
        experience.task_name = name
    if batch_size is not None:
        parts["train"] = _online(parts["train"], batch_size, scenario.boundaries_known)
    if (held := scenario.held_back) is not None:
        for name, samples in zip(HELD_BACK, (held.train, held.test), strict=True):
            parts[name] = _experiences([samples], [UNKNOWN], device)
            parts[name][0].task_name = held.name
    benchmark = CLScenario([EagerCLStream(name, experiences) for name, experiences in parts.items()])
    vars(benchmark).update({name: getattr(scenario, name) for name in ("class_names", *KEPT)})
    return benchmark


def _refuse_to_show(scenario: Scenario, batch_size: int | None) -> None:
    if scenario.one_pass and batch_size is None:
        raise OptionError("a stream of one pass needs 'batch_size', the samples of one experience", "batch_size")
    if batch_size is not None and not scenario.one_pass:
        raise OptionError("the stream is not of one pass: its experiences are whole tasks, not batches", "batch_size")
    if not scenario.boundaries_known and not scenario.one_pass:
        raise OptionError("only experiences of one pass can hide the boundaries, others are whole tasks", "scenario")
    if len({task.validation is None for task in scenario.tasks}) > 1:
        raise OptionError("some tasks have validation samples and some have none", "scenario")


def _experiences(parts: Sequence[Samples], labels: Sequence[int], device: torch.device | str) -> list[Any]:
    datasets = [TensorTask.of(samples, label, device) for samples, label in zip(parts, labels, strict=True)]
    return list(with_classes_timeline(with_task_labels(benchmark_from_datasets(some=datasets))).streams["some"])


def _online(origins: list[Any], size: int, boundaries_known: bool) -> list[Any]:
    """Avalanche's online experiences, in the samples' own order."""
    told = {"access_task_boundaries": boundaries_known}
    experiences = list(split_online_stream(origins, size, shuffle=False, seed=0, **told))
    for this, following in zip(experiences, [*experiences[1:], None], strict=True):
        last = following is None or following.origin_experience is not this.origin_experience
        this.is_last_subexp = last  # Avalanche 0.6.0 says it of a batch that is not full alone
    return list(with_classes_timeline(with_task_labels(EagerCLStream("train", experiences))))


def from_avalanche(benchmark: CLScenario, train_transforms: TrainTransforms = "refuse") -> Scenario:
    """The stream that a classification benchmark of Avalanche holds, every sample as its eval transform gives it.

    Each training experience is a task, and the test experience of the same place is its test part; one test experience
    for several training ones is every task's. Online experiences are joined to tasks of one pass. Random transforms of
    the training data are lost: they are refused, or with ``train_transforms="drop"`` left out without a look. Labels
    stay as they are if they are 0, 1, ... in the order in which their classes arrive, else they are numbered so. The
    task is told at test if there is more than one task label in the test stream.

    Raises:
        OptionError: what the benchmark holds is no such stream, and why.
    """
    if not isinstance(benchmark, CLScenario):
        _refuse(f"a {type(benchmark).__name__} is no benchmark of Avalanche's")
    arrived, online = _grouped(_stream(benchmark, TRAIN))
    tests = _stream(benchmark, TEST)
    validation = _stream(benchmark, (VALIDATION,)) if VALIDATION in benchmark.streams else []
    _refuse_counts(len(arrived), len(tests), len(validation))
    tested, validated, tasks = _each(tests, "test"), _each(validation, "validation"), []
    for i, experiences in enumerate(arrived):
        train = _trained(experiences, f"training experience {i}", train_transforms)
        test, valid = tested[i % len(tested)], validated[i] if validated else None
        tasks.append(_task(getattr(_origin(experiences[0]), "task_name", f"experience {i}"), train, test, valid))
    _refuse_unlike(tasks, shared=len(tests) < len(tasks))
    tasks, names = _named(benchmark, tasks, ours=all(hasattr(_origin(some[0]), "task_name") for some in arrived))
    return Scenario(
        tuple(tasks),
        names,
        task_known_at_test=_is_told(tests, len(tasks)),
        held_back=_held_back(benchmark),
        boundaries_known=not online or all(e.access_task_boundaries for some in arrived for e in some),
        one_pass=online,
        **{name: vars(benchmark)[name] for name in KEPT if name in vars(benchmark)},
    )


def _refuse(why: str) -> NoReturn:
    raise OptionError(why, "benchmark")


def _stream(benchmark: CLScenario, names: Sequence[str]) -> list[Any]:
    """The experiences of the one stream that has one of these names."""
    found = [name for name in names if name in benchmark.streams]
    if len(found) != 1:
        _refuse(f"it must have one stream named {' or '.join(names)}; it has: {', '.join(benchmark.streams) or 'none'}")
    stream = benchmark.streams[found[0]]
    sized = hasattr(stream, "__len__") or hasattr(stream.exps_iter, "__len__")
    experiences = iter(stream)
    first = next(experiences, None)
    if first is None:
        _refuse(f"the stream {found[0]!r} is empty")
    if not sized and not isinstance(first, OnlineCLExperience):
        _refuse(f"the stream {found[0]!r} is made as it is asked for, so nobody knows where it ends; make it a list")
    return [first, *experiences]


def _origin(experience: Any) -> Any:
    return getattr(experience, "origin_experience", experience)


def _grouped(experiences: list[Any]) -> tuple[list[list[Any]], bool]:
    """The experiences of each task, and whether they are online ones."""
    if not any(isinstance(e, OnlineCLExperience) for e in experiences):
        return [[e] for e in experiences], False
    if any(not isinstance(_origin(e), CLExperience) for e in experiences):
        _refuse("an online experience does not tell which one it is cut from, so its samples belong to no one task")
    return [list(some) for _, some in groupby(experiences, key=lambda e: id(_origin(e)))], True


def _refuse_counts(trained: int, tested: int, validated: int) -> None:
    if tested not in (1, trained) or validated not in (0, trained):
        _refuse(f"{tested} test and {validated} validation experiences cannot be matched with {trained} tasks")


def _trained(experiences: list[Any], where: str, train_transforms: TrainTransforms) -> Samples:
    samples = _samples(experiences, where)
    if train_transforms == "refuse":
        again = _samples(experiences, where, group="train")
        if not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(samples, again, strict=True)):
            lost = "its training transforms give other samples than its eval transforms, and would be lost"
            raise OptionError(f"{where}: {lost}; 'train_transforms: drop' leaves them out", "train_transforms")
    return samples


def _each(experiences: list[Any], part: str) -> list[Samples]:
    return [_samples([experience], f"{part} experience {i}") for i, experience in enumerate(experiences)]


def _samples(experiences: list[Any], where: str, group: str = "eval") -> Samples:
    """The samples of a task in their order, by the transforms of one of Avalanche's groups."""
    with draws_of("avalanche", group, where):
        columns = [_columns(getattr(experience, "dataset", None), where, group) for experience in experiences]
    if len({x.shape[1:] for x, _ in columns}) > 1:
        _refuse(f"{where}: {UNLIKE}")
    x, y = (torch.cat(column) for column in zip(*columns, strict=True))
    return Samples(x.cpu(), y.cpu())


def _columns(dataset: Any, where: str, group: str) -> tuple[Tensor, Tensor]:
    if not isinstance(dataset, AvalancheDataset) or not len(dataset):
        _refuse(f"{where} holds no samples of an Avalanche data set")
    dataset = dataset.with_transforms(group)
    ours = dataset.columns() if isinstance(dataset, TensorTask) else None
    if ours is not None:
        return ours[0], ours[1]
    rows = [dataset[i] for i in range(len(dataset))]
    if any(not isinstance(row, (list, tuple)) or len(row) < 2 for row in rows):
        _refuse(f"{where}: a sample is not an input and its class")
    inputs, labels = [_input(row[0], where) for row in rows], [_label(row[1], where) for row in rows]
    if len({x.shape for x in inputs}) > 1:
        _refuse(f"{where}: {UNLIKE}")
    return torch.stack(inputs), torch.tensor(labels)


def _input(x: Any, where: str) -> Tensor:
    """A tensor as it is, an image as bytes (C, H, W)."""
    if isinstance(x, (Tensor, np.ndarray, np.generic, int, float)):
        return torch.as_tensor(x)
    if getattr(x, "mode", None) in ("L", "RGB", "RGBA"):
        pixels = torch.from_numpy(np.array(x))
        return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
    _refuse(f"{where}: an input is a {type(x).__name__}; an eval transform must make it a tensor")


def _label(y: Any, where: str) -> int:
    one = torch.as_tensor(y) if isinstance(y, (int, np.generic, np.ndarray, Tensor)) else torch.empty(0)
    if one.numel() != 1 or one.is_floating_point() or one.dtype == torch.bool:
        _refuse(f"{where}: a target is no class but {y!r:.60}; only classification has a stream here")
    return int(one)


def _task(name: str, train: Samples, test: Samples, validation: Samples | None = None) -> Task:
    return Task(name, train, test, tuple(torch.cat([train.y, test.y]).unique().tolist()), validation)


def _refuse_unlike(tasks: list[Task], shared: bool) -> None:
    parts = [part for task in tasks for part in (task.train, task.test, task.validation) if part is not None]
    if len({part.x.shape[1:] for part in parts}) > 1:
        _refuse(f"of its experiences, {UNLIKE}")
    for i, task in enumerate(tasks if shared else []):
        if lacking := sorted({*task.test.y.tolist()} - {*task.train.y.tolist()}):
            _refuse(f"the one test experience cannot be every task's: training experience {i} lacks classes {lacking}")


def _named(benchmark: Any, tasks: list[Task], ours: bool) -> tuple[list[Task], tuple[str, ...]]:
    """The labels in the order in which they arrive, and the names of the classes."""
    names = getattr(benchmark, "class_names", None)
    if ours and names is not None:
        return tasks, tuple(names)
    beside = [label for task in tasks if task.validation is not None for label in task.validation.y.tolist()]
    order = list(dict.fromkeys([label for task in tasks for label in task.classes] + beside))
    new = {old: i for i, old in enumerate(order)}

    def numbered(samples: Samples) -> Samples:
        return Samples(samples.x, torch.tensor([new[old] for old in samples.y.tolist()]))

    parts = [(t.name, numbered(t.train), numbered(t.test), t.validation and numbered(t.validation)) for t in tasks]
    return [_task(*part) for part in parts], tuple(str(old) if names is None else names[old] for old in order)


def _is_told(tests: list[Any], n_tasks: int) -> bool:
    attributes = [getattr(test.dataset, "targets_task_labels", None) for test in tests]
    labels = [sorted(attribute.uniques) for attribute in attributes if attribute is not None]
    known = {label for some in labels for label in some}
    if len(known) < 2:
        return False
    if len(known) != n_tasks or any(len(some) != 1 for some in labels):
        _refuse(f"the task labels of its test experiences are {labels}, which do not name one task each")
    return True


def _held_back(benchmark: CLScenario) -> Task | None:
    if not set(HELD_BACK) <= set(benchmark.streams):
        return None
    train, test = (_stream(benchmark, (name,))[:1] for name in HELD_BACK)
    name = getattr(train[0], "task_name", HELD_BACK[0])
    return _task(name, _samples(train, HELD_BACK[0]), _samples(test, HELD_BACK[1]))


def makers() -> dict[str, Callable[..., Any]]:
    """What avalanche.benchmarks makes benchmarks with, by name."""
    own = {k: v for k, v in vars(benchmarks).items() if str(getattr(v, "__module__", "")).startswith("avalanche.")}
    return {k: v for k, v in own.items() if inspect.isfunction(v) or (inspect.isclass(v) and issubclass(v, CLScenario))}


@contextmanager
def draws_of(*name: str | int) -> Iterator[None]:
    """Inside, the global generators are those of the name, for transforms and Avalanche's own draws."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with drawn_from(*name):
            reseed(*name)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
