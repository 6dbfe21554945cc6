"""Feature distillation: which features are compared, from whom, and at what price."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from forgetlab.seeding import drawn_from, generator
from forgetlab.toolbox.teacher import logits
from forgetlab.training.network import SharedNetwork
from helpers.data import two_classes
from helpers.networks import opened


def data(task: int, n: int = 6) -> Batch:
    return two_classes("features", task, n)


def network(tasks: int = 1, **options: Any) -> SharedNetwork:
    with drawn_from("features"):
        backbone = MLP((4,), (5, 12))
        backbone.layers[0].extend([nn.BatchNorm1d(5), nn.Dropout(0.5)])  # type: ignore[operator]
        model = SharedNetwork(backbone, **options)
    return opened(model, tasks)


def built(**options: Any) -> Any:
    return registry.build("regularizer", "feature_distillation", options)


def in_the_second_task(**options: Any) -> tuple[Any, SharedNetwork, SharedNetwork]:
    """A regularizer, the first task's model, and the model in training since."""
    method, model = built(**options), network()
    method.consolidate(model.eval(), [])
    old = copy.deepcopy(model)
    model.open(1, [2, 3])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator("features", "disturb"))
    return method, old, model.train()


def penalty(method: Any, model: SharedNetwork, batch: Batch) -> Tensor:
    return method.penalty(model, batch, torch.empty(0))


def both(old: SharedNetwork, model: SharedNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(copy.deepcopy(one.backbone).eval()(x) for one in (model, old))  # type: ignore[return-value]


def test_the_distance_is_that_of_the_features_in_evaluation_mode() -> None:
    method, old, model = in_the_second_task()
    learned, taught = both(old, model, data(1).x)
    torch.testing.assert_close(penalty(method, model, data(1)), ((learned - taught) ** 2).sum(1).mean() / 2)
    assert model.training and model.backbone.training  # what comes next is trained with dropout


def test_the_cosine_is_one_minus_the_similarity() -> None:
    method, old, model = in_the_second_task(distance="cosine")
    learned, taught = both(old, model, data(1).x)
    cosine = (learned * taught).sum(1) / learned.norm(dim=1) / taught.norm(dim=1)
    torch.testing.assert_close(penalty(method, model, data(1)), (1 - cosine).mean())


def test_equal_weights_have_no_distance_though_training_drops_out() -> None:
    """Comparing what each mode makes would be seen here; and BatchNorm learns nothing from being asked."""
    method, model = built(), network()
    method.consolidate(model.eval(), [])
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert penalty(method, model, data(1)) == 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not torch.equal(model.backbone(data(1).x), method.teacher(data(1).x))


def test_the_teacher_answers_once_and_the_student_once_more_per_step() -> None:
    method, _, model = in_the_second_task()
    penalty(method, model, data(1))
    calls = {"teacher": 0, "student": 0}
    for name, one in (("teacher", method.teacher), ("student", model.backbone)):
        one.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    penalty(method, model, data(1)).backward()
    assert calls == {"teacher": 1, "student": 1}
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in model.backbone.layers[1].parameters())  # type: ignore[index]


def steps(method: Any, model: SharedNetwork, n: int = 3, **options: Any) -> None:
    """Of the loop, on the second task."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(n):
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(model, data(1)), data(1).y)
        loss.backward()
        optimizer.step()
        method.observe(model, loss)


@pytest.mark.parametrize(
    "options", [{}, {"head": "fixed", "n_classes": 4}, {"task_known": True, "head": "per-task"}], ids=str
)
def test_a_frozen_head_keeps_its_old_rows_and_learns_new_ones(options: dict[str, Any]) -> None:
    """Whatever the optimizer does beside the gradient: weight decay and momentum here."""
    method, model = built(freeze_head=True), network(**options)
    method.consolidate(model.eval(), [])
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.open(1, [2, 3])
    steps(method, model.train())
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name][: len(rows)], rows) for name, rows in old.items() if name.startswith("head."))
    assert not torch.equal(now["backbone.layers.1.0.weight"], old["backbone.layers.1.0.weight"])
    if options.get("head") != "fixed":  # there all rows are the last task's
        new = now["head.weight"][2:] if "head.weight" in now else now["head.1.weight"]
        born = network(tasks=2, **options).state_dict()
        start = born["head.weight"][2:] if "head.weight" in born else born["head.1.weight"]
        assert not torch.equal(new, start)


def test_a_head_that_is_not_frozen_would_be_found() -> None:
    method, model = built(freeze_head=False), network()
    method.consolidate(model.eval(), [])
    old = model.head.weight.detach().clone()  # type: ignore[union-attr]
    model.open(1, [2, 3])
    steps(method, model.train())
    assert not torch.equal(model.head.weight[:2], old)  # type: ignore[union-attr]


def test_what_is_kept_is_what_can_change() -> None:
    """A frozen part is no price; a restored teacher is the old one."""
    method, model = built(freeze_head=True), network()
    model.get_submodule("backbone.layers.0.0").requires_grad_(False)
    method.consolidate(model.eval(), [])
    kept = set(method.state()[0])
    assert not any("layers.0.0." in name for name in kept)
    assert {"backbone/layers.1.0.weight", "backbone/layers.0.2.running_mean", "head/head.weight"} <= kept
    new = built(freeze_head=True)
    new.restore(*copy.deepcopy(method.state()))
    model.open(1, [2, 3])
    steps(method, model.train())
    assert (
        torch.equal(penalty(new, model, data(1)), penalty(method, model, data(1))) and penalty(new, model, data(1)) > 0
    )
