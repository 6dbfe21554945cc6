"""Five tasks with five kinds of module on the pretrained text encoder: what a task answers is never touched again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.checks.backbones import samples, tiny
from forgetlab.checks.isolation import loss, start
from forgetlab.isolation import attachment
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins import registry

KINDS = ("lora", "adapter", "prefix", "bitfit", "deep_prompt")


@pytest.fixture(scope="module")
def texts() -> Tensor:
    """(16, 24) token ids of real articles"""
    given = {"data": {"name": "bbc_news", "max_length": 24}, "n_tasks": 5, "samples_per_task": 16}
    return registry.build("scenario", "stream", given, seed=0).tasks[0].train.x


def network(backbone: nn.Module) -> IsolatedNetwork:
    kinds: Iterator[str] = iter(KINDS)
    return IsolatedNetwork(backbone, lambda: registry.build("isolation", next(kinds)))


def nothing(_: int) -> None: ...


Told = Callable[[int], None]


def trained(model: IsolatedNetwork, x: Tensor, after_task: Told = nothing, before_steps: Told = nothing) -> None:
    """All five tasks, two steps of AdamW with weight decay each."""
    for task in range(len(KINDS)):
        (batch,) = start(model, task)
        model.eval()
        before_steps(task)
        batch = batch._replace(x=x, y=torch.arange(len(x)) % 2 + 2 * task, task=torch.full((len(x),), task))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
        for _ in range(2):
            model.train()
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        model.eval()
        model.module_of(task).materialise()
        after_task(task)


def answers_stay(backbone: nn.Module, x: Tensor) -> None:
    model, first = network(backbone), {}
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}

    @torch.no_grad()
    def look(task: int) -> None:
        first[task] = model.answer(task, x)
        for old, answer in first.items():
            assert torch.equal(model.answer(old, x), answer), f"task {task} changed task {old}'s answers"

    trained(model, x, look)
    assert [type(model.module_of(task)).__name__ for task in first] == [
        type(registry.build("isolation", kind)).__name__ for kind in KINDS
    ]
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), f"training moved the backbone's {name}"


def copies_stand_alone(backbone: nn.Module, x: Tensor) -> None:
    """A copy made when a task begins, as distillation makes one, goes on answering as it did then."""
    model, copies = network(backbone), {}

    def look(task: int) -> None:
        if task == 1:
            model.answer(1, x)
            copies["model"] = copy.deepcopy(model)
            copies["answers"] = [copies["model"].answer(old, x) for old in (0, 1)]

    trained(model, x, before_steps=look)
    for old, answer in enumerate(copies["answers"]):
        assert torch.equal(copies["model"].answer(old, x), answer), "the copy moved with the live model"


@pytest.fixture(scope="module")
def encoder(texts: Tensor) -> nn.Module:
    return registry.build("model", "minilm", {}, input_shape=tuple(texts.shape[1:]))


@pytest.mark.slow
def test_every_earlier_answer_stays_to_the_bit(encoder: nn.Module, texts: Tensor) -> None:
    answers_stay(encoder, texts)


@pytest.mark.slow
def test_a_copy_is_free_of_the_live_model(encoder: nn.Module, texts: Tensor) -> None:
    copies_stand_alone(encoder, texts)


class Normed(nn.Module):
    """A tiny text encoder with batch normalisation in front of its features."""

    def __init__(self) -> None:
        super().__init__()
        self.bert: Any = tiny("bert").encoder
        self.norm, self.n_features = nn.BatchNorm1d(16), 16

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, 16)"""
        return self.norm(self.bert(ids).last_hidden_state.mean(1))


def test_a_batch_norm_left_in_training_mode_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = samples(tiny("bert"), 0)
    monkeypatch.setattr("forgetlab.checks.promises.isolation.samples", lambda backbone, seed: x)
    answers_stay(Normed(), x)
    monkeypatch.setattr(IsolatedNetwork, "train", nn.Module.train)
    with pytest.raises(AssertionError, match="changed task"):
        answers_stay(Normed(), x)


def test_a_hook_that_stays_on_a_copy_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x, honest, hooked = samples(tiny("bert"), 0), attachment.attached, set[int]()

    @contextmanager
    def for_good(module: Isolation, backbone: nn.Module, x: Tensor | None) -> Iterator[None]:
        """As honest, but the hooks stay as well: a copy takes them along, and with them the live module."""
        for site in module.sites if id(module) not in hooked else ():
            attachment._hooks(module, backbone, site, x)
        hooked.add(id(module))
        with honest(module, backbone, x):
            yield

    copies_stand_alone(tiny("bert"), x)
    monkeypatch.setattr(attachment, "attached", for_good)
    monkeypatch.setattr(f"{__name__}.KINDS", ("lora", "adapter", "lora"))  # a prefix drops what such a hook holds
    with pytest.raises(AssertionError, match="the copy moved"):
        copies_stand_alone(tiny("bert"), x)
