"""Augmentation: its closed forms, who draws what, and who sees it: the model in training, and nothing else."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import CLScenario, SupervisedPlugin, stock_plugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.batch import Batch
from forgetlab.config import load as config
from forgetlab.data.datasets import Samples
from forgetlab.engine import one_run
from forgetlab.experiment import Augment, Budget, Experiment, Train
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.regularization.regularizer import Regularizer
from forgetlab.replay.memory import Memory
from forgetlab.replay.rehearsal import Rehearsal
from forgetlab.results.store import Result
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.training import augmentation
from forgetlab.training.augmentation import OPERATIONS, Augmentation, augmented, cropped, drawn_numbers, flipped
from forgetlab.training.loop import Loop, stock_loop
from helpers import runs
from helpers.networks import network
from helpers.streams import in_pairs

EVERYTHING = Augment(crop=2, flip="both", rotation=20.0, brightness=0.3, contrast=0.4)
SIZES = (50, 23)  # samples of each task
BATCH = 8


def images(n: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, height, width, generator=generator("images", seed))


def drawn(*columns: Sequence[float]) -> Tensor:
    return torch.tensor(columns)


@pytest.mark.parametrize("axes", ["horizontal", "vertical", "both"])
def test_a_flip_mirrors_the_rows_that_drew_below_one_half(axes: str) -> None:
    x = images(4)
    out = flipped(x, axes, drawn([0.0, 0.49, 0.5, 0.9], [0.0, 0.9, 0.9, 0.49]))
    across, down = axes != "vertical", axes != "horizontal"
    for i, chosen in enumerate([(across, down), (across, False), (False, False), (False, down)]):
        dims = [dim for dim, mirrored in zip((2, 1), chosen, strict=True) if mirrored]
        assert torch.equal(out[i], torch.flip(x[i], dims))


@pytest.mark.parametrize(("padding", "height", "width"), [(1, 8, 8), (2, 5, 9), (4, 32, 32)])
def test_a_crop_is_a_slice_of_the_padded_image(padding: int, height: int, width: int) -> None:
    places = 2 * padding + 1
    down, right = torch.cartesian_prod(torch.arange(places), torch.arange(places)).T
    x = images(places**2, 3, height, width)
    inside = (torch.stack([down, right]) + 0.5) / places
    out, margin = cropped(x, padding, inside), F.pad(x, [padding] * 4)
    for i, (y0, x0) in enumerate(zip(down.tolist(), right.tolist(), strict=True)):
        assert torch.equal(out[i], margin[i, :, y0 : y0 + height, x0 : x0 + width])


@pytest.mark.parametrize("padding", range(1, 65))
def test_no_draw_leaves_the_padded_image(padding: int) -> None:
    x, largest = images(1, 1, 65, 65), 1 - 2**-24
    out = cropped(x, padding, drawn([largest], [largest]))
    assert torch.equal(out, F.pad(x, [0, padding, 0, padding])[..., padding:, padding:])


def test_a_quarter_turn_is_that_of_torch() -> None:
    x = images(3)
    draws = drawn([0.0, 0.5, 1.0])  # -90, 0 and 90 degrees
    out = augmentation.rotated(x, 90.0, draws)
    for i, quarters in enumerate((-1, 0, 1)):
        torch.testing.assert_close(out[i], torch.rot90(x[i], quarters, (1, 2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (9, 14)])
def test_a_rotation_is_that_of_scipy(height: int, width: int) -> None:
    x, draws = images(5, 2, height, width), torch.linspace(0, 1, 5)[None]
    out = augmentation.rotated(x, 30.0, draws)
    for image, turned, angle in zip(x.numpy(), out.numpy(), np.linspace(-30, 30, 5), strict=True):
        options: dict[str, Any] = {"reshape": False, "order": 1, "mode": "grid-constant", "cval": 0.0}
        expected = ndimage.rotate(image, angle, axes=(1, 2), **options)
        np.testing.assert_allclose(turned, expected, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_brightness_and_contrast_are_their_formulas(channels: int) -> None:
    x, draws = images(4, channels), drawn([0.0, 0.5, 0.9, 1.0])
    factor = torch.tensor([0.6, 1.0, 1.32, 1.4])[:, None, None, None]
    torch.testing.assert_close(augmentation.brightened(x, 0.4, draws), (x * factor).clamp(0, 1))
    weights = torch.tensor([0.299, 0.587, 0.114]) if channels == 3 else torch.full((channels,), 1 / channels)
    grey = (x * weights[:, None, None]).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    torch.testing.assert_close(augmentation.contrasted(x, 0.4, draws), (grey + factor * (x - grey)).clamp(0, 1))
    assert torch.equal(augmentation.brightened(x, 0.4, draws)[1], x[1])


def test_each_option_is_an_operation_and_one_more_leaves_the_draws_of_the_others_alone() -> None:
    assert set(Augment.model_fields) == set(OPERATIONS)
    x, draws = images(40), drawn_numbers(40, "t")
    alone = augmented(x, draws, Augment(brightness=0.3))
    both = augmented(x, draws, Augment(crop=2, brightness=0.3))
    assert torch.equal(both, augmented(augmented(x, draws, Augment(crop=2)), draws, Augment(brightness=0.3)))
    assert not torch.equal(alone, both)


def test_a_resized_crop_comes_before_the_others_and_its_draws_after_theirs() -> None:
    x, draws = images(6), drawn_numbers(6, "t")
    cut = augmented(x, draws, Augment(resized_crop=0.3))
    assert torch.equal(augmented(x, draws, Augment(resized_crop=0.3, crop=2)), augmented(cut, draws, Augment(crop=2)))
    without = torch.rand(7, 6, generator=generator("t"))  # what five operations drew before this one came
    assert torch.equal(draws[:7], without)


def as_torchvision_draws(height: int, width: int, least: float, draws: Tensor) -> list[tuple[int, int, int, int]]:
    """RandomResizedCrop.get_params of torchvision, sample by sample, with given numbers in place of its own."""
    boxes = []
    for sample in draws.T.tolist():
        shares, ratios, places = sample[:10], sample[10:20], sample[20:]
        for share, ratio in zip(shares, ratios, strict=True):
            area = height * width * (least + (1 - least) * share)
            aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((int(places[0] * (height - h + 1)), int(places[1] * (width - w + 1)), h, w))
                break
        else:
            w, h = width, height
            if width / height < 3 / 4:
                h = round(width / (3 / 4))
            elif width / height > 4 / 3:
                w = round(height * (4 / 3))
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return boxes


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (20, 50), (60, 9)])
@pytest.mark.parametrize("least", [0.08, 0.9])
def test_the_parts_are_those_of_torchvision(height: int, width: int, least: float) -> None:
    draws = drawn_numbers(2000, "boxes")[-22:]
    found = torch.stack(augmentation.crop_boxes(height, width, least, draws), 1).int().tolist()
    expected = as_torchvision_draws(height, width, least, draws)
    differing = [i for i, box in enumerate(expected) if list(box) != found[i]]
    assert len(differing) <= 2  # a rounding of a half in single precision


@pytest.mark.parametrize("value", ["224", "1"])
def test_a_resized_crop_in_pixels_is_told_where_the_size_stands(value: str, tmp_path: Path) -> None:
    text = f"name: it\nscenario: split_digits\nmodel: mlp\ntrain: {{augment: {{resized_crop: {value}}}}}\n"
    ((where, message),) = runs.told(tmp_path, text)
    assert where.startswith(value) and "such as 0.08" in message and "size: 224" in message


def test_a_part_by_hand() -> None:
    """A quarter of the area, as wide as high, in the middle: the first try does not fit, the second is taken."""
    draws = torch.zeros(22, 1)
    draws[0], draws[10] = 1 - 2**-24, 0.0  # all of the area at 3/4: higher than the image
    draws[1], draws[11] = (0.25 - 0.08) / 0.92, 0.5
    draws[20:] = 0.5
    boxes = [int(one) for one in augmentation.crop_boxes(8, 8, 0.08, draws)]
    assert boxes == [2, 2, 4, 4]
    x = torch.arange(64.0).view(1, 1, 8, 8)
    expected = F.interpolate(x[:, :, 2:6, 2:6], (8, 8), mode="bilinear")
    torch.testing.assert_close(augmentation.resized_crop(x, 0.08, draws), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (20, 50)])
def test_a_part_is_scaled_as_torch_scales_it(height: int, width: int) -> None:
    """Each sample alone, cut out and interpolated by torch; so what others draw does not matter."""
    x, draws = images(60, 3, height, width), drawn_numbers(60, "scaled")[-22:]
    found = augmentation.resized_crop(x, 0.08, draws)
    boxes = torch.stack(augmentation.crop_boxes(height, width, 0.08, draws), 1).int().tolist()
    for i, (top, left, high, wide) in enumerate(boxes):
        part = x[i : i + 1, :, top : top + high, left : left + wide]
        expected = F.interpolate(part, (height, width), mode="bilinear", antialias=True, align_corners=False)
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-4, atol=1e-5)
        alone = augmentation.resized_crop(x[i : i + 1], 0.08, draws[:, i : i + 1])
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("start", "length"), [(0, 8), (3, 4), (2, 8), (1, 12), (0, 1), (5, 11), (0, 16)])
def test_the_weights_of_scaling_are_those_of_torch(start: int, length: int) -> None:
    """A line of 16 pixels of which a part becomes 16."""
    line = torch.rand(1, 1, 1, 16, generator=generator("line"))
    weights = augmentation.scaling(torch.tensor([float(start)]), torch.tensor([float(length)]), 16)[0]
    part = line[..., start : start + length]
    expected = F.interpolate(part, (1, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(line @ weights.T, expected)


def test_draws_are_fair() -> None:
    """Every window and both sides of a mirror come about equally often."""
    n, padding = 9_000, 1
    draws = drawn_numbers(n, "fair")
    places = (draws[:2] * 3).long()
    counts = (places[0] * 3 + places[1]).bincount()
    assert len(counts) == (2 * padding + 1) ** 2 and (counts - n / 9).abs().max() < 5 * math.sqrt(n / 9)
    assert ((draws[2:4] < 0.5).float().mean(1) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(n)


def epoch_of(kind: type[Augmentation], batch_size: int, task: int = 1, epoch: int = 1, seed: int = 0) -> Tensor:
    """What an epoch makes of a task's samples, in their own order."""
    x, change = images(SIZES[0], 3, 16, 16), kind(EVERYTHING, seed)
    out = torch.empty_like(x)
    order = torch.randperm(len(x), generator=generator("order", seed, task, epoch))
    for step, rows in enumerate(order.split(batch_size)):
        out[rows] = change(x[rows], rows, len(x), task=task, epoch=epoch, step=step)
    return out


def no_batch_matters(kind: type[Augmentation]) -> None:
    whole = epoch_of(kind, SIZES[0])
    for batch_size in (1, 2, 7, 16, 49):
        assert torch.equal(epoch_of(kind, batch_size), whole)


def test_no_sample_depends_on_its_batch_to_the_bit() -> None:
    no_batch_matters(Augmentation)


class PerBatch(Augmentation):
    """What it must not do: draw for each batch."""

    def __call__(self, x: Tensor, rows: Tensor, of: int, *, task: int, epoch: int, step: int) -> Tensor:
        return augmented(x, drawn_numbers(len(x), "augment", self.seed, task, epoch, step), self.options)


def test_a_planted_table_for_each_batch_is_found() -> None:
    with pytest.raises(AssertionError):
        no_batch_matters(PerBatch)


def test_seeds_tasks_epochs_and_samples_differ() -> None:
    same = images(1).expand(SIZES[0], -1, -1, -1)
    change = Augmentation(EVERYTHING, 0)
    out = change(same, torch.arange(SIZES[0]), SIZES[0], task=0, epoch=0, step=0)
    assert len(out.flatten(1).unique(dim=0)) == SIZES[0]
    for place in ({"task": 1, "epoch": 0}, {"task": 1, "epoch": 1}):
        before, out = out, change(same, torch.arange(SIZES[0]), SIZES[0], **place, step=0)
        assert (out != before).flatten(1).any(1).all()
    first = epoch_of(Augmentation, 16)
    for other in ({"epoch": 2}, {"task": 2}, {"seed": 1}):
        differ = (epoch_of(Augmentation, 16, **other) != first).flatten(1).any(1)
        assert differ.all()


# In the loop


def stream() -> Scenario:
    train, test = [], []
    for task, size in enumerate(SIZES):
        y = 2 * task + torch.arange(size) % 2
        for part, seed in ((train, 2 * task), (test, 2 * task + 1)):
            part.append(Samples((images(size, 1, seed=seed) * 255).byte(), y))
    return in_pairs(train, test)


@pytest.fixture
def benchmark() -> CLScenario:
    return to_benchmark(stream())


def raw(task: int) -> Tensor:
    return stream().tasks[task].train.x.float() / 255


class Recorder(SupervisedPlugin):
    """Keeps what the model was given: in training by task, epoch and step, with the rows; in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self.evaluated: list[Tensor] = []

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        place = strategy.task, strategy.clock.train_exp_epochs, strategy.clock.train_exp_iterations
        self.given[place] = strategy.dataloader.rows, strategy.mb_x.clone()

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluated.append(strategy.mb_x.clone())

    def samples(self, task: int, epoch: int) -> Tensor:
        """What became of a task's new samples in an epoch, in their own order."""
        found = [given for place, given in self.given.items() if place[:2] == (task, epoch)]
        rows = torch.cat([rows for rows, _ in found])
        return torch.cat([x[: len(rows)] for rows, x in found])[rows.argsort()]


def settings(**options: Any) -> dict[str, Any]:
    train = Train(**{"batch_size": BATCH, "lr": 0.01, "augment": EVERYTHING, **options})
    return {"model": network((1, 8, 8)), "train": train, "budget": Budget(epochs=2)}


def trained(benchmark: CLScenario, *methods: SupervisedPlugin, tasks: Sequence[int] = (0, 1), **options: Any) -> Loop:
    training = Loop(plugins=methods, first_task=tasks[0], **settings(**options))
    for task in tasks:
        training.train(benchmark.streams["train"][task], [])
    return training


def expected(task: int, epoch: int, seed: int = 0) -> Tensor:
    return augmented(raw(task), drawn_numbers(SIZES[task], "augment", seed, task, epoch), EVERYTHING)


@pytest.mark.parametrize("batch_size", [BATCH, 5, 100])
def test_the_model_is_given_each_sample_as_its_row_says(benchmark: CLScenario, batch_size: int) -> None:
    recorder = Recorder()
    trained(benchmark, recorder, batch_size=batch_size)
    for task in (0, 1):
        for epoch in (0, 1):
            assert torch.equal(recorder.samples(task, epoch), expected(task, epoch))


def test_a_task_alone_and_an_epoch_alone_are_as_in_the_whole_run(benchmark: CLScenario) -> None:
    recorder = Recorder()
    trained(benchmark, recorder, tasks=(1,))
    assert torch.equal(recorder.samples(1, 1), expected(1, 1))
    rows = torch.tensor([3, 1])
    alone = Augmentation(EVERYTHING, 0)(raw(1)[rows], rows, SIZES[1], task=1, epoch=1, step=4)
    assert torch.equal(alone, expected(1, 1)[rows])


def test_training_equals_bare_pytorch_on_augmented_samples_to_the_bit(benchmark: CLScenario) -> None:
    training = trained(benchmark, tasks=(0,), optimizer="sgd")
    model = network((1, 8, 8))
    model.open(0, [0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    for epoch in (0, 1):
        for rows in torch.randperm(SIZES[0], generator=generator("order", 0, 0, epoch)).split(BATCH):
            optimizer.zero_grad()
            output = model(expected(0, epoch)[rows], torch.zeros_like(rows))
            F.cross_entropy(output, stream().tasks[0].train.y[rows]).backward()
            optimizer.step()
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_sees_the_samples_as_they_are(benchmark: CLScenario) -> None:
    recorder = Recorder()
    training = trained(benchmark, recorder)
    training.eval(benchmark.streams["test"][0])
    assert torch.equal(torch.cat(recorder.evaluated), stream().tasks[0].test.x.float() / 255)


class Spy(Rehearsal):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[Batch, Batch]] = []

    def loss(self, model: nn.Module, new: Batch, drawn: Batch, output: Tensor) -> Tensor:
        self.given.append((new, drawn))
        torch.testing.assert_close(model(torch.cat([new.x, drawn.x]), torch.cat([new.task, drawn.task])), output)
        return F.cross_entropy(output, torch.cat([new.y, drawn.y]))


def filled(*, capacity: int = 12) -> Memory:
    memory: Memory = registry.build("memory", "reservoir", {"capacity": capacity})
    memory.rehearsal = Spy()
    return memory


def among(samples: Tensor, known: Tensor) -> bool:
    return all((known == sample).flatten(1).all(1).any() for sample in samples)


def test_a_memory_keeps_samples_as_they_came_and_changes_them_each_time(benchmark: CLScenario) -> None:
    memory, recorder = filled(), Recorder()
    trained(benchmark, memory, recorder)
    assert among(memory.slots.read(torch.arange(len(memory.slots))).x, torch.cat([raw(0), raw(1)]))
    assert torch.equal(recorder.samples(1, 1), expected(1, 1))  # new samples are as without a memory
    replayed = torch.cat([x[len(rows) :] for rows, x in recorder.given.values()])
    assert len(replayed) > 5 * len(memory.slots)
    assert len(replayed.flatten(1).unique(dim=0)) == len(replayed)


def test_what_is_drawn_again_is_changed_by_the_table_of_its_step(benchmark: CLScenario) -> None:
    memory, recorder, before = filled(), Recorder(), Drawn()
    trained(benchmark, memory, before, recorder)
    for (task, epoch, step), (rows, x) in recorder.given.items():
        kept = before.given[task, epoch, step][len(rows) :]
        draws = drawn_numbers(len(kept), "augment_replay", 0, task, step)
        assert torch.equal(x[len(rows) :], augmented(kept, draws, EVERYTHING))


class Drawn(SupervisedPlugin):
    """After a memory, keeps the batch that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[tuple[int, int, int], Tensor] = {}

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        place = strategy.task, strategy.clock.train_exp_epochs, strategy.clock.train_exp_iterations
        self.given[place] = strategy.mb_x.clone()


def test_a_rehearsal_is_given_what_the_model_saw(benchmark: CLScenario) -> None:
    memory, recorder = filled(), Recorder()
    trained(benchmark, memory, recorder)
    assert isinstance(memory.rehearsal, Spy)
    seen = [x for rows, x in recorder.given.values() if len(x) > len(rows)]
    assert len(seen) == len(memory.rehearsal.given) > 5
    for (new, replayed), x in zip(memory.rehearsal.given, seen, strict=True):
        assert torch.equal(torch.cat([new.x, replayed.x]), x)


class Penalty(Regularizer):
    """Asks the model again about the batch, as a teacher would, and keeps what it is told at a task's end."""

    def __init__(self) -> None:
        super().__init__(1.0)
        self.consolidated: list[Tensor] = []
        self.asked = 0

    def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
        self.asked += 1
        torch.testing.assert_close(model(batch.x, batch.task), output)
        return output.sum() * 0

    def consolidate(self, model: nn.Module, data: Any) -> None:
        self.consolidated.append(torch.cat([batch.x for batch in data]))


def test_a_penalty_asks_about_what_the_model_saw_and_a_task_is_consolidated_as_it_is(benchmark: CLScenario) -> None:
    penalty = Penalty()
    trained(benchmark, penalty)
    assert penalty.asked == 2 * math.ceil(SIZES[1] / BATCH)
    for task, x in enumerate(penalty.consolidated):
        assert torch.equal(x, raw(task))


@pytest.mark.parametrize("spec", [{"strategy": "Cumulative"}, {"strategy": "LwF", "alpha": 1.0, "temperature": 2.0}])
def test_avalanches_strategies_that_use_our_batches_are_given_the_same(
    benchmark: CLScenario, spec: dict[str, Any]
) -> None:
    recorder = Recorder()
    training = stock_loop(spec, plugins=[recorder], **settings())
    assert not training.brings_batches
    training.train(benchmark.streams["train"][0], [])
    assert torch.equal(recorder.samples(0, 1), expected(0, 1))


def test_avalanches_replay_is_stopped_before_its_first_step(benchmark: CLScenario) -> None:
    replay = stock_plugin({"plugin": "ReplayPlugin", "mem_size": 10})
    training = Loop(plugins=[replay], **settings())
    training.train(benchmark.streams["train"][0], [])  # it has nothing to bring yet
    with pytest.raises(OptionError, match="augmentation reaches"):
        training.train(benchmark.streams["train"][1], [])


def test_without_augmentation_the_loop_holds_none(benchmark: CLScenario) -> None:
    training = trained(benchmark, augment=Augment())
    assert training.augmentation is None


@pytest.mark.slow
def test_kornia_is_imported_only_where_it_is_used() -> None:
    code = "import sys, forgetlab.training.augmentation as a, forgetlab.experiment as d\n"
    code += (
        "import torch\nassert a.augmented(torch.ones(1, 1, 4, 4), a.drawn_numbers(1, 't'), d.Augment(crop=1)).any()\n"
    )
    code += "assert 'kornia' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# In a scenario file

BEGIN = """name: x
scenario: split_digits
model: {name: mlp, hidden: [8]}
references: [naive]
"""
SEVERAL = """train: {augment: {crop: 1, rotation: 10, brightness: 0.2}}
strategies:
  - {replay: {memory: reservoir, capacity: 50}, train: {augment: {}}}
  - {regularization: lwf, train: {augment: {flip: horizontal}}}
"""

Load = Callable[[str], Experiment]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Experiment:
        path = tmp_path / "file.yaml"
        path.write_text(BEGIN + text, encoding="utf-8")
        return config.load(path)

    return load


@pytest.fixture
def told(tmp_path: Path) -> Callable[[str], list[tuple[str, str]]]:
    """For each problem the text where it is found, up to the line's end, and the message."""
    return lambda text: runs.told(tmp_path, BEGIN + text)


def test_a_file_says_it_for_all_and_an_entry_for_itself(load: Load) -> None:
    experiment = load(SEVERAL)
    naive, reservoir, lwf = (run.train.augment.named for run in experiment.runs())
    assert naive == {"crop": 1, "rotation": 10.0, "brightness": 0.2}
    assert reservoir == {} and lwf == {"flip": "horizontal"}
    assert [entry.train for entry in experiment.strategies] == [{"augment": {}}, {"augment": {"flip": "horizontal"}}]
    json.dumps([entry.train for entry in experiment.strategies])


def test_the_resolved_file_describes_the_same(load: Load, tmp_path: Path) -> None:
    experiment = load(SEVERAL)
    (tmp_path / "again.yaml").write_text(config.resolved(experiment), encoding="utf-8")
    assert config.load(tmp_path / "again.yaml") == experiment


CANNOT = "augmentation reaches what ForgetLab's loop brings, but here samples come another way"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("train: {augment: {crp: 1}}", "crp: 1}}", "unknown key 'crp' in augment; did you mean 'crop'?"),
        ("train: {augment: [crop]}", "[crop]}", "'augment' must be a mapping of keys to values"),
        ("train: {augment: {crop: 0}}", "0}}", "'crop': input should be greater than 0, not 0"),
        ("train: {augment: {crop: 1.5}}", "1.5}}", "'crop': input should be a valid integer"),
        ("train: {augment: {flip: true}}", "true}}", "'flip': input should be 'horizontal', 'vertical' or 'both'"),
        ("train: {augment: {rotation: 200}}", "200}}", "'rotation': input should be less than or equal to 180"),
        ("train: {augment: {crop: 8}}", "8}}", "a margin of 8 lets images of 8 x 8 leave the window"),
        (
            "strategies: [{regularization: ewc, train: {augment: {crop: 9}}}]",
            "9}}}]",
            "a margin of 9 lets images of 8 x 8 leave the window",
        ),
        (
            "train: {augment: {crop: 1}}\nstrategies: [{avalanche: {plugin: ReplayPlugin}}]",
            "ReplayPlugin}}]",
            CANNOT + "; give this entry 'train: {augment: {}}', or use a memory under 'replay:'",
        ),
        ("strategies: [{avalanche: {strategy: Replay}, train: {augment: {crop: 1}}}]", "Replay}, ", CANNOT),
        ("strategies: [{avalanche: {strategy: ER_ACE}, train: {augment: {crop: 1}}}]", "ER_ACE}, ", CANNOT),
        ("strategies: [{avalanche: {strategy: MER}, train: {augment: {crop: 1}}}]", "MER}, ", CANNOT),
    ],
)
def test_what_cannot_work_is_refused_where_it_stands(told: Any, text: str, place: str, message: str) -> None:
    ((there, why),) = told(text)
    assert there.startswith(place) and why.startswith(message)


def test_stock_code_that_brings_samples_may_stand_beside_augmented_entries(load: Load) -> None:
    entries = "[{avalanche: {plugin: ReplayPlugin}, train: {augment: {}}}, {avalanche: {strategy: GDumb}}]"
    assert load(f"train: {{augment: {{crop: 1}}}}\nstrategies: {entries}")


VECTORS = """
import torch
from forgetlab.plugins import register
from forgetlab.streams.scenario import Samples, Scenario, Task

@register("scenario", "vectors")
def vectors(*, seed):
    train, test = (Samples(torch.rand(4, 7) + i, torch.tensor([0, 1, 0, 1])) for i in (0, 1))
    return Scenario((Task("t", train, test, (0, 1)),), ("a", "b"), False)
"""


def test_what_is_no_image_is_refused(tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.discover()
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.setitem(globals(), "BEGIN", BEGIN.replace("split_digits", "vectors"))
    (tmp_path / "mine.py").write_text(VECTORS, encoding="utf-8")
    message = "only images can be augmented, (channels, height, width); a sample here is (7,) of float32"
    assert told("plugins: [mine.py]\ntrain: {augment: {crop: 1}}") == [("{crop: 1}}", message)]


def refused(x: Tensor, **options: Any) -> list[tuple[str | None, str]]:
    return sorted((error.option, str(error)) for error in augmentation.augmentation_problems(Augment(**options), x))


def test_token_ids_and_values_past_the_range_are_refused() -> None:
    ids = torch.ones(2, 12, dtype=torch.int64)
    message = "only images can be augmented, (channels, height, width); a sample here is (12,) of int64"
    assert refused(ids, crop=1) == [(None, message)] and refused(ids) == []
    scaled = images(2) * 2 - 1
    assert [option for option, _ in refused(scaled, crop=1, brightness=0.1, contrast=0.1)] == ["brightness", "contrast"]
    assert refused(images(2), crop=1, brightness=0.1) == []


def test_a_missing_library_is_told(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "find_spec", lambda name: None)
    message = "augmentation needs the package kornia: pip install 'forgetlab[augment]'"
    assert told("train: {augment: {crop: 1}}") == [("{crop: 1}}", message)]


@pytest.mark.slow
def test_a_run_is_deterministic_and_another_than_without(load: Load) -> None:
    text = "protocol: {budget: {epochs: 2}}\n"
    text += "strategies: [{replay: {memory: reservoir, capacity: 50, rehearsal: der++}}]\n"

    def results(lines: str) -> Iterator[Result]:
        experiment = load(lines + text)
        return (one_run.run(run) for run in experiment.runs())

    bare = list(results(""))
    first, again = (list(results(f"train: {{augment: {EVERYTHING.named}}}\n")) for _ in range(2))
    assert first == again
    assert all(one.accuracy != other.accuracy for one, other in zip(first, bare, strict=True))
