"""What an isolation module promises, tried on a tiny backbone of each family that it fits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor, nn

from forgetlab.avalanche.tensor_data import Source
from forgetlab.backbones.encoders import TextEncoder
from forgetlab.batch import Batch
from forgetlab.checks.backbones import FAMILIES, samples, tiny
from forgetlab.checks.common import make, require
from forgetlab.isolation.frozen_features import FrozenWork
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork, Merged
from forgetlab.plugins.options import OptionError, OptionsError
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import drawn_from

RATE, STEPS, TASKS = 0.05, 6, 3
_only: ContextVar[str | None] = ContextVar("_only", default=None)  # the one family that is tried; None: all


def networks(plugin: Plugin, anew: bool = False) -> Iterator[IsolatedNetwork]:
    """A network of each family that the module fits, three tasks trained; ``anew``: by this call, else a copy."""
    found = fitting(plugin)
    require(found, f"{plugin.name} fits no backbone with any of the roles it takes")
    for name in found:
        yield trained.__wrapped__(plugin, name) if anew else copy.deepcopy(trained(plugin, name))


def fitting(plugin: Plugin) -> list[str]:
    """The families of backbone that have a place for the module."""
    return [name for name in FAMILIES if _only.get() in (None, name) and _fits(plugin, name)]


@contextmanager
def only_on(family: str) -> Iterator[None]:
    """Inside, the checks try one family alone."""
    token = _only.set(family)
    try:
        yield
    finally:
        _only.reset(token)


def untrained(plugin: Plugin, name: str) -> IsolatedNetwork:
    backbone = tiny(name)
    return IsolatedNetwork(backbone, lambda: _new(plugin, backbone), task_known=True)


@lru_cache(maxsize=8)
def trained(plugin: Plugin, name: str) -> IsolatedNetwork:
    model = untrained(plugin, name)
    for task in range(TASKS):
        train(model, task)
    return model


def train(model: IsolatedNetwork, task: int, steps: int = STEPS) -> None:
    """Open a task and train it a little, from its beginning to its end."""
    data = start(model, task)
    module, previous = model.module_of(task), [model.module_of(one) for one in range(task)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    with drawn_from("checks", task):
        for step in range(steps):
            model.train()
            module.step(step / steps)
            module.step_of_epoch(step, steps)
            optimizer.zero_grad()
            loss(model, data[0]).backward()
            optimizer.step()
    model.eval()
    module.end(data, previous, model.shared, model.backbone)
    module.materialise()


def start(model: IsolatedNetwork, task: int) -> list[Batch]:
    """Open a task and let its module begin."""
    model.open(task, [2 * task, 2 * task + 1])
    x = samples(model.backbone, seed=task)
    data = [Batch(x, torch.arange(len(x)) % 2 + 2 * task, torch.full((len(x),), task))]
    previous = [model.module_of(one) for one in range(task)]
    known = {id(parameter) for parameter in model.parameters()}  # what an optimizer was made for
    model.module_of(task).begin(data, previous, model.shared, model.backbone)
    new = [name for name, parameter in model.named_parameters() if id(parameter) not in known]
    require(not new, f"begin makes parameters that no optimizer hears of: {', '.join(new)}")
    return data


def loss(model: IsolatedNetwork, batch: Batch) -> Tensor:
    value = nn.functional.cross_entropy(model(batch.x, batch.task), batch.y)
    penalty = model.module_of(model.current).penalty()  # after the forward pass, as in training
    return value if penalty is None else value + penalty


def untrained_is_base(plugin: Plugin) -> None:
    """An untrained module leaves the features as they are, where the method says so; else it changes them."""
    for name in fitting(plugin):
        model = untrained(plugin, name)
        (batch,) = start(model, 0)
        model.eval()
        with torch.no_grad():
            inside, bare = model.under(model.module_of(0), batch.x), model.bare(batch.x)
        same = torch.equal(inside, bare)
        said, does = model.module_of(0).identity_at_birth, "leaves the features alone" if same else "changes features"
        told = f"identity_at_birth does not say what an untrained module does on a {name}: it is {said}, and it {does}"
        require(same == said, told)


def train_and_evaluation_agree(plugin: Plugin) -> None:
    """A module answers the same in training and in evaluation mode, unless its training draws."""
    for model in networks(plugin):
        (batch,) = start(model, TASKS)
        if model.module_of(TASKS).draws:
            continue
        model.eval()
        evaluated = model.answer(TASKS, batch.x)
        gap = _relative(model.train().answer(TASKS, batch.x), evaluated)
        require(gap < 1e-5, f"training and evaluation mode differ by {gap:.2g}")


@torch.no_grad()
def answered(model: IsolatedNetwork, task: int, x: Tensor) -> Tensor:
    """A task's logits as at test, where no gradient is recorded. (B, ...) -> (B, its classes)"""
    return model.answer(task, x)


def old_answers_stay(plugin: Plugin) -> None:
    """Earlier tasks' logits on one batch are equal to the bit after another task; the backbone is as it was.

    Where the newest module answers for all, it is the earlier modules' tensors that stay.
    """
    for model in networks(plugin, anew=True):
        before, asked = {k: v.clone() for k, v in model.backbone.state_dict().items()}, samples(model.backbone, 7)
        modules = [copy.deepcopy(model.modules_of[str(task)].state_dict()) for task in range(TASKS)]
        answers = [answered(model, task, asked) for task in range(TASKS)]
        train(model, TASKS)
        for task in range(TASKS):
            for name, tensor in model.modules_of[str(task)].state_dict().items():
                require(torch.equal(tensor, modules[task][name]), f"a later task moved an earlier one's {name}")
            stays = torch.equal(answered(model, task, asked), answers[task])
            require(stays or model.module_of(task).speaks_for_all, "a later task changed an earlier one's answers")
        for name, value in model.backbone.state_dict().items():
            require(torch.equal(value, before[name]), f"training moved the backbone's {name}")


def gradients_reach_the_open_module_only(plugin: Plugin) -> None:
    """Every tensor of the open task gets a gradient; the backbone's and closed tasks' get none."""
    for model in networks(plugin, anew=True):
        (batch,) = start(model, TASKS)
        model.train()
        for parameter in model.parameters():
            parameter.grad = None
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
        reached: set[str] = set()
        for done in (0.0, 0.5, 0.99):  # what is unfrozen late, and what another tensor at 0 hides at first
            model.module_of(TASKS).step(done)
            model.module_of(TASKS).step_of_epoch(int(done * 100), 100)
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            module = model.module_of(TASKS).named_parameters()
            reached |= {name for name, p in module if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        missed = {name for name, _ in model.module_of(TASKS).named_parameters()} - reached
        require(not missed, f"no gradient reaches {', '.join(sorted(missed))}")
        own = {id(p) for p in (*model.module_of(TASKS).parameters(), *model.heads[str(TASKS)].parameters())}
        others = [name for name, p in model.named_parameters() if id(p) not in own and p.grad is not None]
        require(not others, f"gradients reach what is closed: {', '.join(others)}")


def leaves_no_trace(plugin: Plugin) -> None:
    """After the context, also after an error in it, the backbone is bare."""
    for model in networks(plugin):
        asked = samples(model.backbone, 5)
        bare = model.bare(asked)
        try:
            with model.module_of(0).active(model.backbone, asked):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        require(torch.equal(model.bare(asked), bare), "a module outlives its context")
        model.answer(0, asked)
        require(torch.equal(model.bare(asked), bare), "a module outlives its context")


def each_sample_for_itself(plugin: Plugin) -> None:
    """A sample's answer does not depend on what else is in the batch, nor on its place in it."""
    for model in networks(plugin):
        asked = samples(model.backbone, 9)
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0))
        together = model.answer(1, asked)
        for one in (
            model.answer(1, asked[order])[order.argsort()],
            torch.cat([model.answer(1, x[None]) for x in asked]),
        ):
            gap = _relative(one, together)
            require(gap < 1e-4, f"the same sample in another batch is answered otherwise, by {gap:.2g}")


def padding_changes_nothing(plugin: Plugin) -> None:
    """More padding behind a text changes no answer."""
    for model in networks(plugin):
        if isinstance(model.backbone, TextEncoder):
            asked = samples(model.backbone, 9)
            longer = nn.functional.pad(asked, (0, 3), value=model.backbone.padding)
            gap = _relative(model.answer(1, longer), model.answer(1, asked))
            require(gap < 1e-4, f"padding changes the answers by {gap:.2g}")


def materialised_answers_alike(plugin: Plugin) -> None:
    """What is left of a trained module gives the same logits to the bit when it is left again."""
    for model in networks(plugin):
        asked = samples(model.backbone, 5)
        before = model.answer(TASKS - 1, asked)
        model.module_of(TASKS - 1).materialise()
        require(torch.equal(model.answer(TASKS - 1, asked), before), "a materialised module answers otherwise")


def survives_a_file(plugin: Plugin) -> None:
    """The tasks' tensors, saved and loaded into a new network, give the same logits to the bit."""
    from safetensors.torch import load, save

    for model in networks(plugin):
        again = IsolatedNetwork(copy.deepcopy(model.backbone), model.make, task_known=True)
        again.shared = load(save({name: t.contiguous() for name, t in model.shared.items()}))
        for task in range(TASKS):
            stored = load(save({name: t.contiguous() for name, t in model.task_tensors(task).items()}))
            again.load_task(task, model.classes_of[task], stored)
        again.eval()
        asked = samples(model.backbone, 5)
        for task in range(TASKS):
            require(
                torch.equal(again.answer(task, asked), model.answer(task, asked)), "a loaded module answers otherwise"
            )


def merged_equals_attached(plugin: Plugin) -> None:
    """Where a module gives its changes of the weights, making them does what attaching the module does."""
    for model in networks(plugin):
        module, asked = model.module_of(TASKS - 1), samples(model.backbone, 5)
        if changes := module.changes():
            gap = _relative(model.under(Merged([module], changes), asked), model.under(module, asked))
            require(gap < 1e-4, f"merged and attached differ by {gap:.2g}")


def frozen_work_answers_alike(plugin: Plugin) -> None:
    """What lies below the module may be computed once and kept."""
    for model in networks(plugin):
        asked = samples(model.backbone, 5)
        live = model.answer(TASKS - 1, asked)
        model.work = FrozenWork(model.backbone)
        for _ in range(2):
            gap = _relative(model.answer(TASKS - 1, asked, Source.all(asked)), live)
            require(gap < 1e-5, f"with what the frozen part gives kept, answers differ by {gap:.2g}")


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


def _new(plugin: Plugin, backbone: nn.Module) -> Isolation:
    """A module with its default sites where the backbone has them, else with those of its roles that there are."""
    module: Isolation = make(plugin)
    try:
        copy.copy(module).attach(backbone)
    except OptionError:
        module = make(plugin, sites=["mlp.in"])
    return module


def _fits(plugin: Plugin, name: str) -> bool:
    try:
        with drawn_from("checks"):
            backbone = tiny(name)
            _new(plugin, backbone).attach(backbone)
    except (OptionError, OptionsError):
        return False
    return True


CHECKS = (
    untrained_is_base,
    train_and_evaluation_agree,
    old_answers_stay,
    gradients_reach_the_open_module_only,
    leaves_no_trace,
    each_sample_for_itself,
    padding_changes_nothing,
    materialised_answers_alike,
    survives_a_file,
    merged_equals_attached,
    frozen_work_answers_alike,
)
