"""A stream's preview: its table says what is in it, and its picture shows the shares that are known."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console
from torch import Tensor

from forgetlab.backbones import tokenizer
from forgetlab.data.datasets import Samples
from forgetlab.plugins import registry
from forgetlab.report import stream_preview, stream_samples
from forgetlab.report.pictures import COLOURS
from forgetlab.report.stream_samples import examples, feature_means, spread
from forgetlab.streams.scenario import Scenario, Task
from helpers.commands import invoke

FILE = "name: mine\nscenario: {name: split_digits, n_tasks: 2}\nmodel: {name: mlp, hidden: [8]}\nseeds: [3, 4]\n"


def stream(counts: list[list[int]], shape: tuple[int, ...] = (4,), **told: Any) -> Scenario:
    """For each task how many training rows it has of each class; the test rows are of the classes with the most."""
    tasks = []
    draw = torch.Generator().manual_seed(0)
    for i, row in enumerate(counts):
        y = torch.arange(len(row)).repeat_interleave(torch.tensor(row))
        tested = torch.tensor([label for label, n in enumerate(row) if n == max(row)])
        test = Samples(torch.rand(len(tested), *shape, generator=draw), tested)
        classes = tuple(label for label, n in enumerate(row) if n)
        tasks.append(Task(f"t{i}", Samples(torch.rand(len(y), *shape, generator=draw), y), test, classes))
    return Scenario(tuple(tasks), tuple(f"class {chr(97 + i)}" for i in range(len(counts[0]))), False, **told)


def pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")[..., :3]


def of_colour(image: np.ndarray, colour: str) -> np.ndarray:
    return np.all(np.abs(image - np.array(to_rgb(colour))) < 0.004, axis=-1)


def course(image: np.ndarray) -> list[list[int]]:
    """(columns, classes): pixels of each of the first colours in each column, left of the scale of colours."""
    masks = np.stack([of_colour(image, colour) for colour in COLOURS[:3]])
    used = masks.any(0).sum(0) > 100  # the bars are as high as the axes
    columns = used.nonzero()[0]
    bars = columns[: 1 + int(np.argmax(np.append(np.diff(columns) > 20, True)))]  # the scale stands apart
    return masks[:, :, bars].sum(1).T.tolist()


def shown(stream: Scenario, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(stream_preview.task_table(stream, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into the picture, beside ticks and titles."""
    written: list[str] = []
    write = Axes.text

    def kept(self: Axes, x: float, y: float, s: str, **rest: Any) -> Any:
        written.append(s)
        return write(self, x, y, s, **rest)

    monkeypatch.setattr(Axes, "text", kept)
    return written


def test_the_table_counts_rows_and_names_classes() -> None:
    lines = shown(stream([[3, 2000, 0], [0, 1, 5]]))
    assert [[cell.strip() for cell in line.split("│")] for line in lines[2:]] == [
        ["0", "t0", "2,003", "1", "1: class b (training: 1 more)"],
        ["1", "t1", "6", "1", "1: class c (training: 1 more)"],
    ]
    assert [cell.strip() for cell in lines[0].split("┃")] == ["", "task", "training", "test", "classes"]


def test_the_table_has_validation_rows_where_the_stream_has() -> None:
    one = stream([[3, 3]])
    task = replace(one.tasks[0], validation=Samples(torch.rand(1, 4), torch.tensor([0])))
    lines = shown(replace(one, tasks=(task,)))
    assert "validation" in lines[0] and [cell.strip() for cell in lines[2].split("│")][2:5] == ["6", "1", "2"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_keeps_to_the_width_whatever_the_names(width: int) -> None:
    many = stream([[1] * 26] * 100)
    tasks = tuple(replace(task, name=f"[red]{'long name ' * 5}") for task in many.tasks)
    lines = shown(replace(many, tasks=tasks, class_names=tuple(f"[b]{name}" for name in many.class_names)), width)
    assert len(lines) == 102 and max(map(len, lines)) == width
    assert all(" [red]long" in line and "26 │" in line and "26: [b]class a, " in line for line in lines[2:])


def test_what_is_told() -> None:
    blurry = stream([[6, 2], [2, 6]], (3, 8, 8), boundaries_known=False, one_pass=True)
    assert stream_preview.stream_facts(blurry) == [
        "Stream: class-incremental; classes: 2, tasks: 2",
        "Told in training: nothing about tasks",
        "Told at test: nothing about tasks",
        "Passes: one, every sample comes by once",
        "A row: 3 x 8 x 8 (float32), 768 bytes; 0.0 MiB in 18 rows",
    ]
    plain = replace(stream([[4, 4], [4, 4]]), task_known_at_test=True)
    assert stream_preview.stream_facts(plain, "task-incremental")[:4] == [
        "Stream: task-incremental; classes: 2, tasks: 2",
        "Told in training: where a task ends and which it is",
        "Told at test: the task of each sample",
        "Passes: as the budget says",
    ]
    assert stream_preview.stream_facts(replace(plain, task_known_at_test=False))[0].startswith(
        "Stream: the same labels in every task"
    )


@pytest.mark.slow
def test_the_picture_shows_what_comes_when() -> None:
    """Half a, half b; then three quarters c, a quarter b, for twice as long."""
    columns = course(pixels(stream_preview.picture(stream([[20, 20, 0], [0, 20, 60]]), "x")))
    height = max(map(sum, columns))
    shares = np.array(columns) / height
    places = np.linspace(0, 1, 13)[1:-1]
    for place in places:
        at = shares[int(place * len(columns))]
        expected = [0.5, 0.5, 0] if place < 1 / 3 else [0, 0.25, 0.75]
        if abs(place - 1 / 3) > 0.02:
            assert at == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_blurred_repeated_and_drifting_streams_look_different() -> None:
    streams = ([[20, 0], [0, 20]], [[16, 4], [4, 16]], [[20, 0], [10, 10]], [[18, 2], [10, 10]])
    pictures = [pixels(stream_preview.picture(stream(counts, (2, 2, 2)), "x")) for counts in streams]
    lower = [image[image.shape[0] // 2 :] for image in pictures]
    assert all((a.shape != b.shape or (a != b).any()) for i, a in enumerate(lower) for b in lower[:i])


@pytest.mark.slow
def test_borders_that_are_not_told_are_dotted() -> None:
    counts = [[20, 0], [0, 20]]
    dark = [
        int(
            (pixels(stream_preview.picture(stream(counts, boundaries_known=known), "x"))[-250:, 300:600] < 0.3)
            .all(-1)
            .sum()
        )
        for known in (True, False)
    ]
    assert dark[1] < 0.8 * dark[0]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 6, 9), (2, 6, 6), (6, 9), (5,), ()])
def test_equal_streams_give_equal_bytes(shape: tuple[int, ...]) -> None:
    one = stream([[9, 9, 1]] * 2, shape)
    first = stream_preview.picture(one, "x")
    assert first.startswith(b"\x89PNG") and stream_preview.picture(one, "x") == first


@pytest.mark.slow
def test_bytes_and_numbers_give_the_same_images() -> None:
    whole = stream([[8, 8]], (3, 6, 6))
    task = whole.tasks[0]
    x = (task.train.x * 255).byte()
    both = [replace(whole, tasks=(replace(task, train=Samples(one, task.train.y)),)) for one in (x, x.float() / 255)]
    assert stream_preview.picture(both[0], "x") == stream_preview.picture(both[1], "x")


@pytest.mark.slow
def test_the_images_are_those_of_the_stream() -> None:
    """One class is red, the other grey: there are as many red fields as samples of the first."""
    y = torch.tensor([0] * 8 + [1] * 8)
    x = torch.full((16, 3, 4, 4), 128, dtype=torch.uint8)
    x[:8, 0], x[:8, 1:] = 255, 0
    one = Scenario((Task("t", Samples(x, y), Samples(x[:0], y[:0]), (0, 1)),), ("red", "grey"), False)
    image = pixels(stream_preview.picture(one, "x"))
    red, grey = of_colour(image, "#ff0000"), of_colour(image, "#808080")
    assert red.sum() == pytest.approx(grey.sum(), rel=0.05) and red.sum() > 4 * 50 * 50
    of_red, of_grey = (np.flatnonzero(mask.sum(0) > 30) for mask in (red, grey))  # without the letters' edges
    assert of_red.max() < of_grey.min()


@pytest.mark.slow
def test_a_picture_of_many_tasks_and_classes_can_be_looked_at(texts: list[str]) -> None:
    counts = torch.eye(100, dtype=torch.int64).mul(12).tolist()
    image = pixels(stream_preview.picture(stream(counts, (1, 4, 4)), "x"))
    assert image.shape[0] < 1400 and image.shape[1] < 1000
    named = [one for one in texts if one.startswith("class")]
    assert len(named) == stream_preview.MOST_SHOWN * stream_samples.IN_A_ROW


@pytest.mark.slow
def test_the_base_rate_is_written_where_there_are_two_classes(texts: list[str]) -> None:
    stream_preview.picture(stream([[9, 1], [3, 1], [1, 1]]), "x")
    assert texts == ["10%", "25%", "50%"]


@pytest.mark.slow
def test_names_are_not_read_as_formulas(texts: list[str]) -> None:
    odd = replace(stream([[4, 4]], (1, 4, 4)), class_names=("$50", "$\\frac"))
    assert stream_preview.picture(replace(odd, tasks=(replace(odd.tasks[0], name="$x$ $"),)), "$ $")
    assert "$50" in texts


@pytest.mark.slow
def test_the_largest_drift_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(stream_samples, "head", lambda _, title: titles.append(title))
    drifting = stream([[50, 50]] * 3, (6,))
    for i, task in enumerate(drifting.tasks):
        task.train.x[:, 4] += i
        task.train.x[:, 1] = 1e9
    means = feature_means(drifting.tasks)
    assert means[:, 1].abs().max() == 0
    x = torch.cat([task.train.x for task in drifting.tasks]).double()
    expected = [
        (task.train.x[:, 4].double().mean() - x[:, 4].mean()) / x[:, 4].std(correction=0) for task in drifting.tasks
    ]
    assert torch.allclose(means[:, 4], torch.stack(expected), atol=1e-6)
    stream_preview.picture(drifting, "x")
    assert titles[0].endswith(f"feature 4, from {means[0, 4]:.2f} (t0) to {means[2, 4]:.2f} (t2)")


def ids(vocabulary: list[str], sentences: list[str]) -> Tensor:
    return torch.tensor([[vocabulary.index(word) for word in sentence.split()] for sentence in sentences])


@pytest.mark.slow
def test_the_first_words_of_texts(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models

    words = ["[UNK]", "cats", "dogs", "sleep", "bark", "日本"]
    Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]")).save(str(tmp_path / "t.json"))
    monkeypatch.setattr(tokenizer, "packaged", lambda *_: tmp_path / "t.json")
    x = ids(words, ["cats sleep", "cats bark", "dogs bark", "日本 bark"])
    task = Task("t", Samples(x.int(), torch.tensor([0, 0, 1, 1])), Samples(x[:0], torch.tensor([])), (0, 1))
    told = Scenario((task,), ("cat", "dog"), False, tokenizer=tokenizer.TOKENIZER)
    stream_preview.picture(told, "x")
    assert texts[:4] == ["cat", "cats sleep", "dog", "dogs bark"]
    texts.clear()
    swapped = replace(task, train=Samples(x.flip(0), torch.tensor([0, 0, 1, 1])))
    stream_preview.picture(replace(told, tasks=(swapped,)), "x")  # letters that the font has not are no warning
    assert texts[:2] == ["cat", "日本 bark"]
    texts.clear()
    stream_preview.picture(replace(told, tokenizer="another"), "x")
    assert texts == ["50%"]


def test_examples_are_of_as_many_classes_as_there_is_room_for() -> None:
    y = torch.tensor([2, 0, 1, 0, 0, 2, 1, 0])
    assert y[examples(y, 3)].tolist() == [0, 1, 2]
    assert y[examples(y, 6)].tolist() == [0, 0, 1, 1, 2, 2]
    assert examples(y, 20).sort().values.tolist() == list(range(8))
    assert y[examples(y, 2)].tolist() == [0, 2]


@pytest.mark.parametrize(("n", "most"), [(0, 3), (1, 8), (8, 8), (9, 8), (1000, 10)])
def test_spread_keeps_both_ends(n: int, most: int) -> None:
    found = spread(n, most)
    assert len(found) == min(n, most) == len(set(found)) and found == sorted(found)
    assert not found or (found[0], found[-1]) == (0, n - 1)


class OnDisk:
    """Rows that are read when they are asked for, and nothing else of a tensor."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.shape, self.dtype = x, x.shape, x.dtype

    def __len__(self) -> int:
        return len(self.x)

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        return self.x.index_select(dim, rows)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 6, 6), (5,)])
def test_rows_on_disk_are_shown_as_those_in_memory(shape: tuple[int, ...]) -> None:
    held = stream([[9, 9]] * 2, shape)
    tasks: list[Any] = [replace(t, train=Samples(OnDisk(t.train.x), t.train.y)) for t in held.tasks]  # type: ignore
    mapped = replace(held, tasks=tuple(tasks))
    assert stream_preview.picture(mapped, "x") == stream_preview.picture(held, "x")
    assert stream_preview.stream_facts(mapped) == stream_preview.stream_facts(held)


def call(folder: Path, *options: str, text: str = FILE) -> Result:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return invoke("preview", "mine.yaml", *options)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_command_prints_a_table_and_leaves_a_picture(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stderr == "Picture: previews/mine.png\n"
    first = registry.build("scenario", "split_digits", {"n_tasks": 2}, seed=3)
    assert all(task.name in done.stdout for task in first.tasks)
    assert "Stream: class-incremental; classes: 10, tasks: 2\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    png = (tmp_path / "previews" / "mine.png").read_bytes()
    assert png == stream_preview.picture(first, "mine")
    assert call(tmp_path, "--out", "elsewhere/p.png").stderr == "Picture: elsewhere/p.png\n"
    assert (tmp_path / "elsewhere" / "p.png").read_bytes() == png


@pytest.mark.slow
def test_the_stream_is_that_of_the_first_run(tmp_path: Path) -> None:
    """Where the seeds leave the order of the classes alone, all runs have that of seed 0."""
    done = call(tmp_path, text=FILE + "protocol: {seeds_vary: [init]}\n")
    assert registry.build("scenario", "split_digits", {"n_tasks": 2}, seed=0).tasks[0].name in done.stdout


@pytest.mark.slow
def test_a_file_that_is_wrong_is_refused_as_elsewhere(tmp_path: Path) -> None:
    done = call(tmp_path, text=FILE.replace("n_tasks: 2", "n_tasks: 11"))
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.startswith("mine.yaml:2:41: 11 tasks cannot be cut from 10 classes")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    done = call(tmp_path, "--out", ".")
    assert (done.exit_code, done.stderr) == (2, ".: Is a directory\n")
