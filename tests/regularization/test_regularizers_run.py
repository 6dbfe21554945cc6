"""Penalties from a scenario file: in every setting, on every kind of model, beside what else an entry may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.batch import Batch
from forgetlab.checks.regularizer import trained
from forgetlab.plugins import registry
from forgetlab.results.store import Result
from forgetlab.toolbox.teacher import logits
from forgetlab.training.network import SharedNetwork
from helpers import runs

FILE = """
name: penalties
scenario: {scenario}
model: {model}
protocol: {{{protocol}, budget: {{{budget}}}}}
train: {{lr: 3e-3, batch_size: 32}}
references: {references}
strategies: [{entries}]
seeds: {seeds}
"""
DIGITS = "{{name: split_digits, setting: {}, n_tasks: 2}}"
PERMUTED = (
    "{name: stream, data: digits, by: transform, transform: permutation, setting: domain-incremental, n_tasks: 3}"
)
MLP = "{name: mlp, hidden: [32]}"
VIT = "{name: vit, width: 16, depth: 2, patch: 4, heads: 2}"
SHORT = {"model": VIT, "budget": "updates: 6"}
ENTRIES = {
    "mas": "{name: mas, strength: 0.1}",
    "rwalk": "{name: rwalk}",
    "l2": "{name: l2, strength: 0.1}",
    "l2_sp": "{name: l2_sp}",
    "merged": "{name: online_ewc, merge: mean, gamma: 0.5, strength: 100.0}",
    "features": "{name: feature_distillation, strength: 0.1}",
    "cosine": "{name: feature_distillation, distance: cosine}",
    "lfl": "{name: feature_distillation, freeze_head: true, strength: 0.01}",
}


def results(folder: Path, entries: list[str], **options: Any) -> list[Result]:
    given = {"scenario": DIGITS.format("class-incremental"), "model": MLP, "protocol": "head: growing"}
    text = {**given, "references": "[]", "seeds": [0], "budget": "epochs: 1", **options, "entries": ", ".join(entries)}
    return runs.results(folder, FILE.format(**text))


def entry(name: str, more: str = "") -> str:
    return f"{{regularization: {ENTRIES[name]}, name: {name}{more}}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "protocol"),
    [
        ("class-incremental", "head: growing"),
        ("class-incremental", "head: fixed, loss_classes: all"),
        ("class-incremental", "head: growing, loss_classes: current"),
        ("task-incremental", "head: per-task"),
        ("task-incremental", "head: growing"),
    ],
)
def test_each_runs_in_every_setting(tmp_path: Path, setting: str, protocol: str) -> None:
    found = results(tmp_path, [entry(name) for name in ENTRIES], scenario=DIGITS.format(setting), protocol=protocol)
    for result in found:
        assert (result.metrics["average_accuracy"] or 0) > 0.2 and (result.counts["total"]["memory_bytes"] or 0) > 0


@pytest.mark.slow
def test_each_runs_on_a_transformer_and_repeats_itself_to_the_bit(tmp_path: Path) -> None:
    first, second = (results(tmp_path, [entry(name) for name in ENTRIES], **SHORT) for _ in range(2))
    assert first == second
    ends = [str(result.accuracy) for result in first]
    assert len(set(ends)) > len(ends) / 2  # not all the same


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ", replay: {memory: reservoir, capacity: 40}",
        ", replay: {memory: reservoir, capacity: 40, rehearsal: der++}",
        ", replay: {memory: reservoir, capacity: 40, depth: 1}",
        ", isolation: adapter, shared: true",
        ", isolation: lora, shared: true, replay: {memory: reservoir, capacity: 40}",
    ],
    ids=["memory", "logits", "frozen blocks", "shared module", "shared module and memory"],
)
def test_each_works_beside_a_memory_and_on_a_shared_module(tmp_path: Path, more: str) -> None:
    names = ["mas", "rwalk", "lfl"] if "lora" in more else ENTRIES
    found = results(tmp_path, [entry(name, more) for name in names], **SHORT)
    replays = "replay" in more
    for result in found:
        assert (result.counts["total"]["samples_replayed"] > 0) == replays
        assert (result.counts["total"]["memory_bytes"] or 0) > 0
    if "shared" in more and not replays:  # what is kept is a few numbers per parameter that is trained
        for result in found:
            kept, own = result.counts["total"]["memory_bytes"] or 0, 4 * (result.counts["total"]["trainable"] or 0)
            assert kept <= 3 * own + 100


BETTER = ["mas", "rwalk", "l2", "merged", "lfl"]


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Average accuracies over three permutations of digits, by seed."""
    found = results(
        tmp_path_factory.mktemp("permuted"),
        [entry(name) for name in BETTER],
        scenario=PERMUTED,
        model="{name: mlp, hidden: [64, 64]}",
        budget="epochs: 3",
        references="[naive]",
        seeds=[0, 1, 2],
    )
    by_name: dict[str, list[float]] = {}
    for result in found:
        by_name.setdefault(result.strategy, []).append(result.metrics["average_accuracy"] or 0)
    return by_name


@pytest.mark.parametrize("name", BETTER)
def test_it_forgets_less_than_naive_training_on_permuted_digits(permuted: dict[str, list[float]], name: str) -> None:
    """In each of three seeds."""
    margin = 0.0 if name == "lfl" else 0.05
    assert all(mine > naive + margin for mine, naive in zip(permuted[name], permuted["naive"], strict=True))


class Reader(nn.Module):
    """A mean over the embeddings of token ids."""

    n_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(7, 8, padding_idx=0), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.tokens(x).mean(1)).tanh()


@pytest.mark.parametrize("name", registry.available("regularizer"))
def test_each_reads_token_ids(name: str) -> None:
    torch.manual_seed(0)
    method, model = registry.build("regularizer", name), SharedNetwork(Reader())
    model.open(0, [0, 1, 2])
    x = torch.tensor([[1, 2, 1, 0], [4, 4, 4, 0], [2, 1, 5, 6]])
    one = Batch(x, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    for _ in range(2):
        method.begin(model.train())
        method.batch = one
        loss = nn.functional.cross_entropy(logits(model, one), one.y)
        gradients = torch.autograd.grad(loss, trained(model))
        with torch.no_grad():
            for parameter, gradient in zip(trained(model), gradients, strict=True):
                parameter.grad = gradient
                parameter -= 0.1 * gradient
        method.observe(model, loss)
        method.consolidate(model.eval(), [one])
        method.tasks += 1
    method.begin(model.train())
    before = method.penalty(model, one, logits(model, one)).item()
    nn.init.normal_(model.get_parameter("backbone.tokens.weight"))
    assert method.penalty(model, one, logits(model, one)).item() > before
