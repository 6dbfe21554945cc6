"""How many samples are drawn for a step, and what they weigh: each step's loss by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.avalanche.api import SupervisedPlugin
from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.batch import Batch
from forgetlab.data.datasets import Samples
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.seeding import generator
from helpers import runs
from helpers.networks import bare, network
from helpers.streams import in_pairs, opposed, under_one_label
from helpers.training import SEED, difference, learned

PARTS = opposed("replayed batch", 40)  # three tasks
BATCH = 8


def memory(rehearsal: str | None = None, **options: Any) -> Memory:
    made: Memory = registry.build("memory", "reservoir", {"capacity": 60})
    made.rehearsal = registry.build("rehearsal", rehearsal) if rehearsal else None
    for name, value in options.items():
        setattr(made, name, value)
    return made


class Steps(SupervisedPlugin):
    """Notes the task, the new and the drawn samples of each step, and its loss."""

    def __init__(self, kept: Memory) -> None:
        super().__init__()
        self.kept = kept
        self.steps: list[tuple[int, Batch, Batch | None]] = []
        self.losses: list[tuple[Tensor, Tensor]] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        assert self.kept._incoming is not None
        self.steps.append((strategy.clock.train_exp_counter, self.kept._incoming, self.kept._drawn))
        self.losses.append((strategy.loss.detach(), strategy.mb_output.detach()))


def trained(kept: Memory, batch_size: int = BATCH) -> tuple[nn.Module, Steps]:
    watch = Steps(kept)
    return learned(bare(), under_one_label(PARTS), kept, watch, seed=SEED, batch_size=batch_size), watch


@pytest.mark.parametrize("batch_size", [5, 8])
def test_a_step_draws_as_many_as_its_batch_size_says_whatever_the_new_batch(batch_size: int) -> None:
    """Once there are as many: before, all there are."""
    _, watch = trained(memory(batch_size=13), batch_size)
    drawn = [0 if drawn is None else len(drawn.y) for _, _, drawn in watch.steps]
    full = next(i for i, n in enumerate(drawn) if n == 13)
    assert drawn[0] == 0 and set(drawn[full:]) == {13} and full <= 3


def test_a_weight_by_hand() -> None:
    """(1 - w) of the mean over new samples, w of that over drawn ones; where nothing is drawn all of the first."""
    _, watch = trained(memory(weight=0.3, ratio=2.0))
    for (_, new, drawn), (loss, output) in zip(watch.steps, watch.losses, strict=True):
        on_new = F.cross_entropy(output[: len(new.y)], new.y)
        if drawn is None:
            assert loss.item() == on_new.item()
        else:
            on_drawn = F.cross_entropy(output[len(new.y) :], drawn.y)
            torch.testing.assert_close(loss, 0.7 * on_new + 0.3 * on_drawn)


def in_contexts(model: nn.Module, steps: list[tuple[int, Batch, Batch | None]], later: int = 0) -> nn.Module:
    """Van de Ven's step on given batches: the current context counts one part of as many as there are so far."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for task, new, drawn in steps:
        share_of_new = 1.0 / (task + 1 + later)
        loss = F.cross_entropy(model(new.x), new.y)
        if drawn is not None:
            loss = share_of_new * loss + (1 - share_of_new) * F.cross_entropy(model(drawn.x), drawn.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def test_by_tasks_each_task_so_far_counts_alike() -> None:
    """All, a half and a third of the loss are on new samples; counted one too high it is another training."""
    model, watch = trained(memory(weight="by_tasks"))
    assert {task for task, _, _ in watch.steps} == {0, 1, 2}
    found = difference(in_contexts(bare(), watch.steps), model)
    print(f"by tasks: {found:.2g}")
    assert found < 1e-6
    assert difference(in_contexts(bare(), watch.steps, later=1), model) > 1e-3


def example() -> tuple[Batch, Batch, Tensor]:
    draw, y = generator("weights"), torch.tensor([0, 1, 2])
    new = Batch(torch.zeros(3, 1), y, torch.zeros_like(y))
    drawn = new._replace(extra={"logits": torch.randn(3, 4, generator=draw)})
    return new, drawn, torch.randn(6, 4, generator=draw)


@pytest.mark.parametrize(
    ("name", "together"), [("er_ace", lambda a, b: a + b), ("soft_targets", lambda a, b: (a + b) / 2)]
)
def test_the_parts_of_a_loss_make_the_loss(name: str, together: Any) -> None:
    """As many new samples as drawn ones: a sum in one, the mean in the other."""
    rehearsal, (new, drawn, output) = registry.build("rehearsal", name), example()
    parts = rehearsal.parts(nn.Identity(), new, drawn, output)
    torch.testing.assert_close(rehearsal.loss(nn.Identity(), new, drawn, output), together(*parts))


def test_soft_targets_have_their_weights_by_tasks_too() -> None:
    """Generative replay with distillation as van de Ven weighs it: T^2 CE on soft targets counts 1 - 1 / N."""
    kept = memory("soft_targets", weight="by_tasks")
    _, watch = trained(kept)
    late = [step for step in zip(watch.steps, watch.losses, strict=True) if step[0][0] == 2]
    for (_, new, drawn), (loss, output) in late:
        assert drawn is not None and kept.rehearsal is not None
        on_new = F.cross_entropy(output[: len(new.y)], new.y)
        soft = (drawn.extra["logits"] / 2).softmax(1)
        told = -(soft * (output[len(new.y) :] / 2).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(loss, on_new / 3 + 2 / 3 * 4 * told)


def test_a_weight_reaches_features_that_enter_the_head_alone() -> None:
    """Features drawn from Gaussians pass the head, and not the backbone."""
    kept: Memory = registry.build("memory", "gaussian", {"shrinkage": 0.5})
    kept.weight = "by_tasks"
    draw = generator("features")
    parts = [Samples(torch.randn(24, 6, generator=draw), 2 * task + torch.arange(24) % 2) for task in range(2)]
    watch = Steps(kept)
    model = learned(network((6,), (8,)), to_benchmark(in_pairs(parts)), kept, watch, seed=SEED)
    assert watch.steps[-1][2] is not None and len(list(model.parameters()))


FILE = """
name: replayed
scenario: {{name: split_digits, n_tasks: 5}}
model: {{name: mlp, hidden: [16]}}
{protocol}
train: {{lr: 1e-2, batch_size: {batch_size}}}
references: []
strategies: [{{replay: {{{replay}}}}}]
"""


def text(replay: str, batch_size: str = "16", protocol: str = "") -> str:
    return FILE.format(replay=replay, batch_size=batch_size, protocol=protocol)


def test_a_file_gives_both_and_the_ratio_is_gone_from_it(tmp_path: Path) -> None:
    given = "memory: reservoir, capacity: 100, batch_size: 24, weight: by_tasks"
    (entry,) = runs.loaded(tmp_path, text(given)).strategies
    assert entry.replay is not None
    assert entry.replay.memory == {"name": "reservoir", "capacity": 100}
    assert (entry.replay.batch_size, entry.replay.weight) == (24, "by_tasks")
    small, large = (runs.results(tmp_path, text(given, size))[0] for size in ("16", "48"))
    steps, drawn = (small.counts["per_task"][name][-1] for name in ("updates", "samples_replayed"))
    assert drawn == 24 * steps
    assert large.counts["per_task"]["samples_replayed"][-1] == 24 * large.counts["per_task"]["updates"][-1]


def test_the_resolved_file_reads_back_as_it_is(tmp_path: Path) -> None:
    from forgetlab.config import load

    experiment = runs.loaded(tmp_path, text("memory: ring, per_class: 9, batch_size: 24, weight: 0.5"))
    assert runs.loaded(tmp_path, load.resolved(experiment)) == experiment


def test_a_batch_and_a_weight_can_be_tuned(tmp_path: Path) -> None:
    """The new batch too, while the replayed one stays as it is."""
    replay = "memory: reservoir, capacity: 50, batch_size: 32, weight: {low: 0.1, high: 0.9}"
    tuning = "tuning: {tasks: 2, search: optuna, trials: 4}"
    experiment = runs.loaded(tmp_path, text(replay, protocol=tuning))
    assert experiment.tuning is not None
    (choice,) = experiment.tuning.choices
    assert choice.at == ("strategies", 0, "replay", "weight") and (choice.low, choice.high) == (0.1, 0.9)
    many = text("memory: reservoir, capacity: 50, batch_size: [16, 32], weight: 0.5", protocol="tuning: {tasks: 2}")
    (choice,) = (runs.loaded(tmp_path, many).tuning or experiment.tuning).choices
    assert choice.values == (16, 32)


UNTOLD = "protocol: {head: fixed, loss_classes: all, reset_optimizer: false}"


@pytest.mark.parametrize(
    ("replay", "place", "message"),
    [
        ("memory: reservoir, capacity: 9, ratio: 2, batch_size: 8", "batch_size", "'ratio' and 'batch_size' both say"),
        ("memory: {name: ring, capacity: 9, ratio: 2}, batch_size: 8", "batch_size", "'ratio' and 'batch_size' both"),
        ("memory: reservoir, capacity: 9, weight: 1.5", "1.5", "'weight': should be 'by_tasks' or a nu"),
        ("memory: reservoir, capacity: 9, weight: by_task", "by_task", "'weight': should be 'by_tasks' or"),
        ("memory: reservoir, capacity: 9, batch_size: 0", "0", "'batch_size': input should be greater than 0"),
        ("general: {ratio: 0.5, data: digits}, weight: 0.5", "weight", "'weight' has no meaning without a memory"),
        ("general: {ratio: 0.5, data: digits}, batch_size: 5", "batch_size", "'batch_size' has no meaning without a m"),
        ("memory: ring, capacity: 9, rehearsal: der++, weight: 0.5", "", "its own options are alpha, beta, draws"),
        ("memory: herding, capacity: 9, rehearsal: icarl, weight: 0.5", "", "its own options are distillation, over_c"),
        ("memory: greedy, capacity: 9, rehearsal: gdumb, weight: 0.5", "", "gdumb has no loss of new and of drawn"),
        ("memory: greedy, capacity: 9, rehearsal: gdumb, batch_size: 5", "", "gdumb learns what is kept, all of it"),
        ("memory: ring, capacity: 9, projection: agem, weight: 0.5", "", "looks at what is drawn and does not train"),
        ("memory: task_ring, capacity: 9, projection: gem, batch_size: 5", "", "looks at all that is kept, task by"),
    ],
)
def test_what_has_no_meaning_is_refused_where_it_stands(tmp_path: Path, replay: str, place: str, message: str) -> None:
    told = runs.told(tmp_path, text(replay))
    assert len(told) == 1 and message in told[0][1] and told[0][0].startswith(place)


@pytest.mark.parametrize("more", ["weight: by_tasks", "sampler: mir"])
def test_tasks_that_nobody_tells_have_no_weight_and_are_not_left_out(tmp_path: Path, more: str) -> None:
    stream = ("{name: split_digits, n_tasks: 5}", "{name: stream, data: digits, n_tasks: 5, boundaries: false}")
    untold = text(f"memory: reservoir, capacity: 9, {more}", protocol=UNTOLD).replace(*stream)
    assert any("has to be told when a task ends" in said for _, said in runs.told(tmp_path, untold))
    known = untold.replace("weight: by_tasks", "weight: 0.5").replace(
        "sampler: mir", "sampler: {name: mir, exclude: classes}"
    )
    assert runs.told(tmp_path, known) == []
