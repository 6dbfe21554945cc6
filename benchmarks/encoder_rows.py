"""Frozen work done once, and a LoRA step beside Hugging Face's, on the pretrained text encoder."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from benchmarks import ours
from benchmarks.measure import Aim, Comparison, Side, seconds
from forgetlab.data.datasets import Samples
from forgetlab.engine import reopened
from forgetlab.experiment import Budget, Protocol, Run, Strategy, Train
from forgetlab.isolation import frozen_features
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins import registry
from forgetlab.streams.scenario import Scenario
from forgetlab.training.loop import make_optimizer

RATE = 1e-3


@dataclass(frozen=True)
class TextWork:
    """Texts of two classes as token ids, and the encoder that reads them."""

    name: str
    scenario: Scenario
    epochs: int = 5
    batch_size: int = 32
    layers: int = 6
    steps: int = 6
    pairs: int = 5

    @property
    def sizes(self) -> str:
        n, tokens = self.scenario.tasks[0].train.x.shape
        return f"{self.name}, n = {n}, {tokens} tokens, batch {self.batch_size}; MiniLM, {self.layers} layers"

    @cached_property
    def backbone(self) -> nn.Module:
        return registry.build("model", "minilm", {"layers": self.layers}, input_shape=self.scenario.input_shape)

    def run(self, module: str, reuse: bool) -> Run:
        return Run(
            scenario={"name": self.name},
            model={"name": "minilm", "layers": self.layers},
            pretrain=None,
            protocol=Protocol(task_known_at_test=True, budget=Budget(epochs=self.epochs)),
            train=Train(optimizer="adamw", lr=RATE, batch_size=self.batch_size),
            strategy=Strategy(name=module, isolation={"name": module}, router={"name": "oracle"}),
            seed=0,
            device="cpu",
            threads=1,
            plugins=(),
            reuse_frozen=reuse,
        )


def newsgroups(n: int, tokens: int) -> Scenario:
    """One task of four newsgroups."""
    given = {"data": {"name": "newsgroups", "max_length": tokens}, "n_tasks": 5, "samples_per_task": n}
    stream: Scenario = registry.build("scenario", "stream", {**given, "test_samples_per_task": 20}, seed=0)
    return Scenario(stream.tasks[:1], stream.class_names, True, tokenizer=stream.tokenizer)


def comparisons(work: TextWork) -> list[Comparison]:
    kept = [once(work, "linear_probe", 4.0), once(work, "ladder", 2.5)]
    return [*kept, lora_and_peft(work), answering(work, merged=True), answering(work, merged=False)]


def once(work: TextWork, module: str, bound: float) -> Comparison:
    """Training with what lies below the module kept, and computed anew in every epoch."""
    size = _kept_bytes(work, module)
    text = f"{work.sizes}, {work.epochs} epochs, task 1; kept {size / 2**20:.1f} MiB; theirs: computed in every epoch"
    aim = Aim("theirs / ours", ">=", bound)
    kept, anew = _trained(work, module, True), _trained(work, module, False)
    return Comparison(f"{module}, frozen work kept", text, kept, anew, aim, work.pairs)


def _trained(work: TextWork, module: str, reuse: bool) -> Side:
    def side() -> float:
        frozen_features.forget()
        with ours.globals_of_the_engine():
            learner = ours.prepared(work.run(module, reuse), work.scenario)
            return seconds(lambda: learner.learn(0))

    return side


def _kept_bytes(work: TextWork, module: str) -> int:
    _trained(work, module, True)()
    return frozen_features.kept_bytes()


def lora_and_peft(work: TextWork) -> Comparison:
    """Training steps of LoRA, rank 8 at q and v, on copies of one encoder with the same head."""
    samples = work.scenario.tasks[0].train
    text = f"{work.sizes}, {work.steps} training steps, LoRA rank 8 at q and v, AdamW; theirs: HF peft, same encoder"
    parts = [slice(i * work.batch_size, (i + 1) * work.batch_size) for i in range(work.steps)]
    batches = [Samples(samples.x[part], samples.y[part]) for part in parts]
    aim = Aim("ours / theirs", "<=", 1.05)
    return Comparison("LoRA, HF peft", text, _ours(work, batches), _peft(work, batches), aim, 2 * work.pairs + 1)


def answering(work: TextWork, merged: bool) -> Comparison:
    """A forward pass with a task's LoRA, in the weights or beside them, and one of the bare encoder."""
    x = work.scenario.tasks[0].train.x[: 2 * work.batch_size]
    network = _isolated(work).eval()
    backbone, module = copy.deepcopy(work.backbone).eval(), network.module_of(0)
    if merged:
        parts = reopened.merged(network, 0).items()
        backbone.load_state_dict({k.removeprefix("backbone."): t for k, t in parts if k.startswith("backbone.")})

    def timed(answer: Any) -> Side:
        def side() -> float:
            with ours.globals_of_the_engine(), torch.no_grad():
                return seconds(lambda: answer(x))

        return side

    mine = timed(backbone) if merged else timed(lambda x: network.under(module, x))
    aim = Aim("ours / theirs", "<=", 1.05) if merged else Aim("ours / theirs")
    name = f"answering, LoRA {'merged' if merged else 'attached'}, bare encoder"
    return Comparison(
        name, f"{work.sizes}, {len(x)} texts; rank 8 at q and v", mine, timed(work.backbone), aim, 2 * work.pairs + 1
    )


def _isolated(work: TextWork) -> IsolatedNetwork:
    network = IsolatedNetwork(copy.deepcopy(work.backbone), lambda: registry.build("isolation", "lora"))
    network.open(0, list(work.scenario.tasks[0].classes))
    return network


def _ours(work: TextWork, batches: list[Samples]) -> Side:
    def side() -> float:
        with ours.globals_of_the_engine():
            network = _isolated(work)
            return _steps(network.train(), lambda x: network(x, torch.zeros(len(x), dtype=torch.int64)), batches)

    return side


def _peft(work: TextWork, batches: list[Samples]) -> Side:
    def side() -> float:
        from peft import LoraConfig, inject_adapter_in_model

        with ours.globals_of_the_engine():
            config = LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"])
            backbone: Any = inject_adapter_in_model(config, copy.deepcopy(work.backbone))
            head = nn.Linear(backbone.n_features, work.scenario.n_classes)
            model = nn.ModuleList([backbone, head]).train()
            return _steps(model, lambda x: head(backbone(x)), batches)

    return side


def _steps(model: nn.Module, answer: Any, batches: list[Samples]) -> float:
    train = Train(optimizer="adamw", lr=RATE)
    optimizer = make_optimizer(train, [p for p in model.parameters() if p.requires_grad])

    def work() -> None:
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(answer(x), y).backward()
            optimizer.step()

    return seconds(work)
