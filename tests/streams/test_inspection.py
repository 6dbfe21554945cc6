"""Each defect is planted in a sound stream and found with its rows; nothing is found in the sound ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from forgetlab.data.datasets import Samples
from forgetlab.plugins import registry
from forgetlab.streams import soundness
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.streams.soundness import soundness_problems
from helpers.commands import invoke

ADVICE = "keep each on one side, or say 'rows_may_repeat: true' where different things look the same"
OWN = [
    {"name": "split_digits"},
    {"name": "split_digits", "setting": "task-incremental"},
    {"name": "split_digits", "setting": "domain-incremental"},
    {"name": "split_digits", "held_back": 2, "n_tasks": 4},
    {"name": "split_mnist_5k"},
    {"name": "split_fashion_mnist"},
    {"name": "permuted_fashion_mnist", "n_tasks": 2},
    {"name": "rotated_fashion_mnist", "n_tasks": 2},
]
STREAMS = [
    {"blurry": 0.4},
    {"repetition": 0.5},
    {"validation": 0.2, "label_noise": 0.1, "online": True},
    {"n_tasks": 10},
    {"setting": "data-incremental"},
    {"setting": "domain-incremental", "transform": "permutation"},
]


def samples(seed: int, y: list[int], shape: tuple[int, ...] = (1, 3, 3)) -> Samples:
    x = torch.rand(len(y), *shape, generator=torch.Generator().manual_seed(seed))
    return Samples(x, torch.tensor(y, dtype=torch.int64))


def sound(n_tasks: int = 3) -> Scenario:
    """Two new classes a task, 20 training rows, 6 of validation and 8 of test."""
    tasks = []
    for i in range(n_tasks):
        labels = [2 * i, 2 * i + 1]
        parts = [samples(10 * i + j, labels * n) for j, n in enumerate((10, 4, 3))]
        tasks.append(Task(f"t{i}", parts[0], parts[1], tuple(labels), parts[2]))
    return Scenario(tuple(tasks), tuple("abcdef"[: 2 * n_tasks]), task_known_at_test=False)


def with_task(stream: Scenario, i: int, **changes: Any) -> Scenario:
    return replace(stream, tasks=(*stream.tasks[:i], replace(stream.tasks[i], **changes), *stream.tasks[i + 1 :]))


def with_x(part: Samples, change: Callable[[Tensor], object]) -> Samples:
    x = part.x.clone()
    change(x)
    return Samples(x, part.y)


def with_rows(part: Samples, rows: list[int], source: Samples, source_rows: list[int]) -> Samples:
    """A part in which some rows are those of another."""
    return with_x(part, lambda x: x.index_copy_(0, torch.tensor(rows), source.x[torch.tensor(source_rows)]))


def test_nothing_is_found_in_a_sound_stream() -> None:
    assert soundness_problems(sound()) == []
    assert (
        soundness_problems(replace(sound(), held_back=Task("x", samples(90, [0, 1]), samples(91, [0, 1]), (0, 1))))
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", OWN, ids=lambda spec: "-".join(map(str, spec.values())))
def test_nothing_is_found_in_our_own_streams(spec: dict[str, Any]) -> None:
    options = {key: value for key, value in spec.items() if key != "name"}
    assert soundness_problems(registry.build("scenario", spec["name"], options, seed=0)) == []


@pytest.mark.parametrize("options", STREAMS, ids=lambda options: "-".join(options))
def test_nothing_is_found_in_what_is_done_to_a_stream(options: dict[str, Any]) -> None:
    assert soundness_problems(registry.build("scenario", "stream", {"data": "digits", **options}, seed=1)) == []


def test_no_tasks() -> None:
    assert soundness_problems(replace(sound(), tasks=())) == ["the stream has no tasks; give it at least one"]


@pytest.mark.parametrize("kind", ["training", "test"])
def test_an_empty_part(kind: str) -> None:
    field = soundness.KINDS[kind]
    empty = Samples(torch.empty(0, 1, 3, 3), torch.empty(0, dtype=torch.int64))
    assert soundness_problems(with_task(sound(), 1, **{field: empty})) == [
        f"task 1 ('t1') has no {kind} rows; give it some, or leave the task out"
    ]


def test_forms_that_differ() -> None:
    stream = sound()
    train, test = stream.tasks[1].train, stream.tasks[2].test
    stream = with_task(stream, 1, train=Samples(train.x.flatten(1), train.y))
    stream = with_task(stream, 2, test=Samples(test.x.double(), test.y))
    like = "but 1 x 3 x 3 (float32) in task 0 ('t0'), training; bring all rows to one form"
    assert soundness_problems(stream) == [
        f"task 1 ('t1'), training: a row is 9 (float32), {like}",
        f"task 2 ('t2'), test: a row is 1 x 3 x 3 (float64), {like}",
    ]


def test_inputs_and_labels_that_do_not_match() -> None:
    train, test = sound().tasks[0].train, sound().tasks[0].test
    stream = with_task(sound(), 0, train=Samples(train.x[:-1], train.y), test=Samples(test.x, test.y.int()))
    assert soundness_problems(stream) == [
        "task 0 ('t0'), training: 19 inputs but 20 labels; give every input one label",
        "task 0 ('t0'), test: labels are one number (int32); make them int64, one number for each row",
    ]


def test_labels_out_of_range_are_named_five_at_most() -> None:
    task = sound().tasks[2]
    y = task.train.y.clone()
    y[[1, 4]] = 6
    y[[6, 8, 10, 12, 14]] = -1
    (line,) = soundness_problems(with_task(sound(), 2, train=Samples(task.train.x, y)))
    where = "task 2 ('t2'), training: labels outside 0 to 5 in rows 1, 4, 6, 8, 10 and 2 more"
    assert line == f"{where}; number the classes from 0"


def test_labels_of_the_classes_held_back_count_for_themselves() -> None:
    apart = Task("x", samples(90, [0, 1]), samples(91, [0, 2]), (0, 1))
    found = soundness_problems(replace(sound(), held_back=apart))
    assert found == ["the classes held back, test: labels outside 0 to 1 in row 1; number the classes from 0"]


def test_classes_that_do_not_occur() -> None:
    (line,) = soundness_problems(with_task(sound(), 1, classes=(2, 4)))
    told = "task 1 ('t1'): its classes are given as 2, 4, but its rows have 2, 3"
    assert line == f"{told}; name those that occur"


def single(labels: list[int], known: bool) -> Scenario:
    tasks = [
        Task(f"t{i}", samples(2 * i, [label] * 4), samples(2 * i + 1, [label] * 4), (label,))
        for i, label in enumerate(labels)
    ]
    return Scenario(tuple(tasks), tuple("abc"[: max(labels) + 1]), known)


def test_one_class_in_a_task_is_sound_where_all_seen_classes_compete() -> None:
    assert soundness_problems(single([0, 1, 2], known=False)) == []
    told = soundness_problems(single([0, 1, 2], known=True))
    assert len(told) == 3 and told[2].startswith("task 2 ('t2') is told at test and has one class, so nothing is left")
    shared = soundness_problems(single([0, 0, 0], known=False))
    assert len(shared) == 1 and shared[0].startswith("all tasks have the same single class")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "CHUNK", 4 * 36)  # four rows at a time
    test = with_x(sound().tasks[1].test, lambda x: x[torch.tensor([2, 5, 7]), 0, 1, 1].fill_(0))
    assert soundness_problems(with_task(sound(), 1, test=test)) == []
    x = test.x.clone()
    x[torch.tensor([2, 5, 7]), 0, 1, 1] = value
    where = "task 1 ('t1'), test: NaN or infinity in rows 2, 5, 7"
    assert soundness_problems(with_task(sound(), 1, test=Samples(x, test.y))) == [
        f"{where}; replace these values, or leave the rows out"
    ]


def test_training_rows_that_are_test_rows_of_any_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "CHUNK", 4 * 36)
    stream = sound()
    train = with_rows(stream.tasks[2].train, [3, 9], stream.tasks[0].test, [1, 7])
    train = with_rows(train, [15], stream.tasks[2].test, [4])
    named = "row 3 is row 1 of task 0; row 9 is row 7 of task 0; row 15 is row 4 of task 2"
    assert soundness_problems(with_task(stream, 2, train=train)) == [
        f"task 2 ('t2'), training: 3 rows are also test data ({named}); {ADVICE}"
    ]


def test_the_first_and_the_last_row_of_a_task_are_told_as_its_own() -> None:
    stream = sound()
    train = stream.tasks[0].train
    for row, task, place in ((2, 0, 0), (4, 0, 5), (5, 1, 0), (7, 1, 5), (8, 2, 0)):
        train = with_rows(train, [row], stream.tasks[task].test, [place])
    (line,) = soundness_problems(with_task(stream, 0, train=train))
    named = "row 2 is row 0 of task 0; row 4 is row 5 of task 0; row 5 is row 0 of task 1; row 7 is row 5 of task 1"
    assert f"({named}; row 8 is row 0 of task 2)" in line


def test_validation_rows_that_are_elsewhere() -> None:
    stream = sound()
    validation = stream.tasks[1].validation
    assert validation is not None
    validation = with_rows(validation, [0], stream.tasks[0].test, [5])
    validation = with_rows(validation, [4], stream.tasks[0].train, [11])
    end = ADVICE
    assert soundness_problems(with_task(stream, 1, validation=validation)) == [
        f"task 1 ('t1'), validation: 1 row is also test data (row 0 is row 5 of task 0); {end}",
        f"task 0 ('t0'), training: 1 row is also validation data (row 11 is row 4 of task 1); {end}",
    ]


def test_rows_held_back_that_are_tested_on_in_the_stream() -> None:
    apart = samples(90, [0, 1] * 4)
    apart = Task("x", with_rows(apart, [6], sound().tasks[1].test, [2]), samples(91, [0, 1]), (0, 1))
    named = "(row 6 is row 2 of task 1)"
    (line,) = soundness_problems(replace(sound(), held_back=apart))
    assert line.startswith(f"the classes held back, training: 1 row is also test data {named}")


def test_many_rows_are_counted_and_five_are_named() -> None:
    stream = sound()
    rows = list(range(8))
    (line,) = soundness_problems(
        with_task(stream, 0, train=with_rows(stream.tasks[0].train, rows, stream.tasks[1].test, rows))
    )
    assert "8 rows are also test data (row 0 is row 0 of task 1; " in line
    assert line.count(" is row ") == 5 and " and 3 more)" in line


@pytest.mark.parametrize("bit", range(64))
def test_rows_that_differ_in_one_bit_are_not_the_same(bit: int) -> None:
    words = torch.arange(1, 21).reshape(-1, 1) * 1_000_003
    one, other = words.expand(20, 3).clone(), words.expand(20, 3).clone()
    other[:, 1] ^= -(2**63) if bit == 63 else 2**bit
    y = torch.tensor([0, 1] * 10)
    stream = Scenario((Task("t", Samples(one, y), Samples(other, y), (0, 1)),), ("a", "b"), False)
    assert soundness_problems(stream) == []
    assert len(soundness_problems(with_task(stream, 0, test=Samples(one.clone(), y)))) == 1


def test_equal_hashes_alone_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = soundness._hashed
    monkeypatch.setattr(soundness, "_hashed", lambda rows: hashed(rows) * 0)
    assert soundness_problems(sound()) == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int32, torch.bfloat16, torch.float64])
def test_rows_of_any_kind_and_length(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 2, (60, 37), generator=draw).to(dtype)
    y = torch.tensor([0, 1] * 15)
    stream = Scenario((Task("t", Samples(rows[:30], y), Samples(rows[30:], y), (0, 1)),), ("a", "b"), False)
    assert soundness_problems(stream) == []
    rows[5] = rows[42]
    (line,) = soundness_problems(stream)
    assert "(row 5 is row 12 of task 0)" in line


def coincidence(few: bool) -> Scenario:
    """A table of three yes/no columns (or thirty), divided at random."""
    x = torch.randint(0, 2, (90, 3 if few else 30), generator=torch.Generator().manual_seed(1)).float()
    y = torch.tensor([0, 1] * 45)
    return Scenario((Task("t", Samples(x[:60], y[:60]), Samples(x[60:], y[60:]), (0, 1)),), ("a", "b"), False)


def test_rows_of_few_values_are_equal_by_chance_where_the_data_say_so() -> None:
    assert soundness_problems(coincidence(few=False)) == [] != soundness_problems(coincidence(few=True))
    assert soundness_problems(replace(coincidence(few=True), rows_may_repeat=True)) == []


def test_the_same_training_rows_in_every_task_hide_nothing() -> None:
    first, test = samples(0, [0, 1] * 10), samples(1, [0, 1] * 4)
    leaking = with_rows(first, [3], test, [2])
    for train, n in ((first, 0), (leaking, 3)):
        tasks = tuple(Task(f"t{i}", train, test, (0, 1)) for i in range(3))
        assert len(soundness_problems(Scenario(tasks, ("a", "b"), False))) == n


class OnDisk:
    """Rows that are read when they are asked for, and nothing else of a tensor."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.most = x, 0
        self.shape, self.dtype = x.shape, x.dtype

    def __len__(self) -> int:
        return len(self.x)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        self.most = max(self.most, len(rows))
        return self.x.index_select(dim, rows)


def test_rows_on_disk_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundness, "CHUNK", 4 * 36)
    stream = sound()
    train = with_rows(stream.tasks[2].train, [3], stream.tasks[0].test, [1])
    train = with_x(train, lambda x: x[7].fill_(float("nan")))
    mapped = OnDisk(train.x)
    found = soundness_problems(with_task(stream, 2, train=Samples(cast(Tensor, mapped), train.y)))
    assert found == soundness_problems(with_task(stream, 2, train=train)) and len(found) == 2
    assert mapped.most == 4


LEAK = """
import torch
from forgetlab.plugins import register
from forgetlab.streams.scenario import Samples, Scenario, Task

@register("scenario", "leaking")
def leaking(seed: int, rows: int = 2) -> Scenario:
    draw = torch.Generator().manual_seed(seed)
    train, test = torch.rand(20, 4, generator=draw), torch.rand(10, 4, generator=draw)
    train[:rows] = test[:rows]
    y = torch.tensor([0, 1] * 10)
    return Scenario((Task("one", Samples(train, y), Samples(test, y[:10]), (0, 1)),), ("a", "b"), False)
"""
FILE = """name: leak
scenario: {name: leaking, rows: 2}
model: {name: mlp, hidden: [8]}
plugins: [./leak.py]
"""


@pytest.fixture
def leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose stream tests on what it trains on; what it registers is forgotten after the test."""
    registry.discover()
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leak.py").write_text(LEAK, encoding="utf-8")
    (tmp_path / "leak.yaml").write_text(FILE, encoding="utf-8")
    return Path("leak.yaml")


@pytest.mark.parametrize("command", ["check", "run", "preview"])
def test_a_stream_with_an_overlap_is_refused_and_nothing_is_written(leak: Path, command: str) -> None:
    done = invoke(command, str(leak))
    assert done.exit_code == 2 and done.stdout == ""
    named = re.escape("(row 0 is row 0 of task 0; row 1 is row 1 of task 0)")
    place = re.escape("leak.yaml:2:11: task 0 ('one'), training: 2 rows are also test data")
    assert re.fullmatch(rf"{place} {named}; {ADVICE}\n", done.stderr)
    assert {path.suffix for path in Path().iterdir()} <= {".yaml", ".py"}


def test_the_same_file_without_the_overlap_is_let_through(leak: Path) -> None:
    leak.write_text(FILE.replace("rows: 2", "rows: 0"), encoding="utf-8")
    assert invoke("check", str(leak)).exit_code == 0


def test_a_class_that_is_tested_before_it_was_trained_on_is_found() -> None:
    stream = sound()
    late = with_task(stream, 1, train=samples(5, [2] * 8), classes=(2, 3))
    (line,) = soundness_problems(late)
    assert line == "task 1 ('t1') tests labels 3, of which no row was trained on by then; give it some"
