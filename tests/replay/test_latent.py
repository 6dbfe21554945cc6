"""Latent replay: samples kept as what enters a block, and trained on as if their inputs had been kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.cnn import CNN
from forgetlab.backbones.sites import blocks
from forgetlab.backbones.transformer import Transformer
from forgetlab.batch import Batch
from forgetlab.checks.backbones import samples, tiny
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.data.datasets import Samples
from forgetlab.isolation.shared_module import Adapted
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.replay import latent
from forgetlab.replay.memory import Memory
from forgetlab.seeding import drawn_from, generator
from forgetlab.streams.scenario import Scenario
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.runs import final
from helpers.streams import in_pairs
from helpers.training import difference, learned

TOLERANCE = 2e-6  # in a weight, after all tasks
IMAGE, LENGTH, SIZE = (1, 8, 8), 8, 24


def cnn() -> nn.Module:
    with drawn_from("cnn"):
        return CNN(IMAGE, widths=(4, 8, 8))


def transformer() -> nn.Module:
    with drawn_from("transformer"):
        return Transformer((LENGTH,), width=16, depth=3, heads=2, vocabulary=200)


class Chancy(nn.Module):
    """A backbone whose stem and blocks drop out and keep statistics."""

    places: ClassVar = {"block": "layers.*"}
    n_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)) for _ in "abc")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return x


def ids(n: int, seed: int) -> Tensor:
    draws = generator("ids", seed)
    found = torch.randint(110, 200, (n, LENGTH), generator=draws)
    return found.masked_fill(torch.arange(LENGTH) >= torch.randint(3, LENGTH + 1, (n, 1), generator=draws), 0)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "cnn": cnn,
    "transformer": transformer,
    **{name: (lambda name=name: tiny(name)) for name in ("mlp", "vit", "bert", "gpt2", "hf_vit", "timm")},
}


def inputs(name: str, n: int, seed: int) -> Tensor:
    if name == "transformer":
        return ids(n, seed)
    return torch.rand(n, *IMAGE, generator=generator("x", seed)) if name == "cnn" else samples(tiny(name), seed, n)


def network(backbone: nn.Module, **options: Any) -> SharedNetwork:
    found = SharedNetwork(backbone, **options)
    found.open(0, range(4))
    return found


def batch(x: Tensor) -> Batch:
    y = torch.arange(len(x)) % 4
    return Batch(x, y, torch.zeros_like(y))


def shared(name: str) -> Callable[[], nn.Module]:
    """The tiny backbone, under a module of all tasks on its last block."""

    def made() -> nn.Module:
        with drawn_from("lora"):
            lora = registry.build("isolation", "lora", {"layers": [1], "rank": 2})
            adapted = Adapted(tiny(name), lora)
            for parameter in lora.parameters():
                nn.init.normal_(parameter)
            return adapted

    return made


ADAPTED = {name: shared(name) for name in ("vit", "bert", "gpt2", "hf_vit", "timm")}


@pytest.mark.parametrize("name", ADAPTED)
def test_kept_samples_enter_under_a_shared_module(name: str) -> None:
    logits_are_those_of_the_inputs(name, ADAPTED[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_samples_have_the_logits_of_their_inputs(name: str) -> None:
    logits_are_those_of_the_inputs(name, FAMILIES[name])


def logits_are_those_of_the_inputs(name: str, backbone: Callable[[], nn.Module]) -> None:
    """At every block; new samples beside them, some texts shorter, and as many in all as a text has tokens."""
    for depth in range(1, len(blocks(backbone()))):
        model = network(backbone())
        latent.freeze(model.backbone, depth)
        model.train()
        new, drawn = batch(inputs(name, 3, 0)), batch(inputs(name, LENGTH - 3, 1))
        kept = latent.encode(model.backbone, drawn, depth)
        stand_in = latent.enter(model.backbone, kept, depth, new.x)
        task = torch.cat([new.task, drawn.task])
        inside = model(torch.cat([new.x, stand_in]), task)
        torch.testing.assert_close(inside, model(torch.cat([new.x, drawn.x]), task), rtol=1e-5, atol=1e-6)
        other = model(torch.cat([new.x, drawn.x.flip(0)]), task)
        assert (other - inside).abs().max() > 1e-3, "the drawn samples have a part in it"


def test_the_blocks_below_see_the_new_samples_alone() -> None:
    model, seen = network(tiny("vit")), []
    latent.freeze(model.backbone, 1)
    kept = latent.encode(model.backbone, batch(inputs("vit", 5, 1)), 1)
    for layer in blocks(model.backbone):
        layer.register_forward_hook(lambda _, entered, left: seen.append((len(entered[0]), len(left))))
    x = inputs("vit", 3, 0)
    for _ in range(2):  # the second time as if nothing had been
        stand_in = latent.enter(model.backbone, kept, 1, x) if not seen else x[:0]
        model(torch.cat([x, stand_in]), torch.zeros(3 + len(stand_in), dtype=torch.int64))
    assert seen == [(3, 3), (8, 8), (3, 3), (3, 3)]


def stream(name: str) -> Scenario:
    parts = []
    for task in range(3):
        y = 2 * task + torch.arange(SIZE) % 2
        x = inputs(name, SIZE, 10 + task)
        first = 110 if name == "transformer" else 10
        words = first + y.unsqueeze(1).expand(-1, LENGTH)  # a text begins with two words of its class
        told = x + 0.3 * y.view(-1, 1, 1, 1) if x.is_floating_point() else x.where(torch.arange(LENGTH) > 1, words)
        parts.append(Samples(told, y))
    return in_pairs(parts)


def trained(name: str, inside: bool, rehearsal: str | None = None, depth: int = 1) -> tuple[dict[str, Tensor], Memory]:
    """With samples kept at a depth, or kept as they came by a network that is frozen below it."""
    model = SharedNetwork(FAMILIES[name]())
    memory: Memory = registry.build("memory", "reservoir", {"capacity": 20})
    memory.rehearsal = registry.build("rehearsal", rehearsal) if rehearsal else None
    if inside:
        memory.keep_inside(model, depth)
    else:
        latent.freeze(model.backbone, depth)
    learned(model, to_benchmark(stream(name)), memory, lr=0.05, weight_decay=0.1)
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}, memory


@pytest.mark.parametrize("rehearsal", [None, "der++"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_as_if_the_inputs_had_been_kept(name: str, rehearsal: str | None) -> None:
    """The oracle: to the last bits the weights and statistics of plain replay on a network that is frozen below."""
    (inside, memory), (plain, kept) = (trained(name, inside, rehearsal) for inside in (True, False))
    print(f"{name} {rehearsal}: {difference(inside, plain):.2g}")
    assert difference(inside, plain) < TOLERANCE
    assert torch.equal(memory.slots.tensors["y"], kept.slots.tensors["y"]) and len(memory.slots) == 20
    assert ("logits" in memory.slots.tensors) == (rehearsal is not None)


def test_samples_that_are_normalised_apart_from_the_new_ones_are_found() -> None:
    """A deliberate break: the drawn samples go up by themselves, in a second pass."""
    model = network(cnn())
    latent.freeze(model.backbone, 1)
    model.train()
    new, drawn = batch(inputs("cnn", 8, 0)), batch(inputs("cnn", 8, 1) * 3)
    together = model(torch.cat([new.x, drawn.x]), torch.cat([new.task, drawn.task]))
    apart = torch.cat([model(new.x, new.task), model(drawn.x, drawn.task)])
    kept = latent.encode(model.backbone, drawn, 1)
    stand_in = latent.enter(model.backbone, kept, 1, new.x)
    inside = model(torch.cat([new.x, stand_in]), torch.cat([new.task, drawn.task]))
    torch.testing.assert_close(inside, together, rtol=1e-5, atol=1e-6)
    assert (together - apart).abs().max() > 0.1


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_blocks_below_that_are_left_trainable_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberate break: what is kept ages, and training goes another way."""
    monkeypatch.setattr(latent, "freeze", lambda backbone, depth: None)
    inside, plain = (trained(name, inside)[0] for inside in (True, False))
    assert difference(inside, plain) > 100 * TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_frozen_does_not_move_and_all_else_does(name: str) -> None:
    """Under weight decay, and BatchNorm's statistics with it."""
    start = {key: tensor.clone() for key, tensor in SharedNetwork(FAMILIES[name]()).state_dict().items()}
    after, _ = trained(name, inside=True)
    model = SharedNetwork(FAMILIES[name]())
    latent.freeze(model.backbone, 1)
    open_ = {key for key, p in model.named_parameters() if p.requires_grad}
    below = [f"backbone.{key}" for key, module in model.backbone.named_modules() if module is blocks(model.backbone)[0]]
    moved = {key for key, tensor in start.items() if key in after and not torch.equal(tensor, after[key])}
    assert not {key for key in moved if key.startswith((f"{below[0]}.", "backbone.embed", "backbone.encoder.embed"))}
    assert {key for key in open_ if not key.startswith("head")} <= moved | unused(name)
    assert any("running_mean" in key for key in moved) == (name == "cnn")


def unused(name: str) -> set[str]:
    """Parameters above the block that no answer depends on."""
    model = network(FAMILIES[name]()).train()
    model(inputs(name, 8, 0), torch.zeros(8, dtype=torch.int64)).square().sum().backward()
    return {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6}


def test_chance_and_statistics_below_are_off_and_above_are_on() -> None:
    model = network(Chancy())
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    latent.freeze(model.backbone, 1)
    model.train()
    x = torch.rand(16, *IMAGE, generator=generator("chancy"))
    first, second = (latent.encode(model.backbone, batch(x), 1).x for _ in range(2))
    assert torch.equal(first, second)
    model(x, torch.zeros(16, dtype=torch.int64))
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, start[key])}
    assert {key.split(".")[1] for key in moved} == {"layers"} and not any(".layers.0." in key for key in moved)
    modes = [dropout.training for dropout in model.modules() if isinstance(dropout, nn.Dropout)]
    assert modes == [False, False, True, True]


def test_a_copy_of_the_network_is_frozen_in_its_own_right() -> None:
    model = network(Chancy())
    latent.freeze(model.backbone, 1)
    copied = copy.deepcopy(model).train()
    frozen: Any = copied.backbone.layers[0]  # type: ignore[index, union-attr]
    assert frozen.train() is frozen and not frozen.training and copied.training
    assert frozen is not model.backbone.layers[0]  # type: ignore[index, union-attr]
    assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]


def test_the_state_holds_what_is_kept() -> None:
    _, old = trained("transformer", inside=True, rehearsal="der++")
    tensors, values = old.state()
    new: Memory = registry.build("memory", "reservoir", {"capacity": 20})
    new.restore({name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(values))
    a, b = (memory.sample(5, generator("state")) for memory in (old, new))
    assert a.x.shape == (5, LENGTH, 16) and torch.equal(a.x, b.x)
    assert {*a.extra} == {"ids", "logits"} and all(torch.equal(a.extra[name], b.extra[name]) for name in a.extra)


FILE = """
name: latent
scenario: {{name: split_digits, n_tasks: 5}}
model: {model}
pretrain: {{scenario: split_digits, epochs: 3}}
protocol: {{budget: {{epochs: 2}}}}
train: {{optimizer: adamw, weight_decay: 0.1, lr: 1e-2, batch_size: 32}}
references: []
strategies: [{entry}]
"""
VIT = "{name: vit, width: 16, depth: 3, patch: 4, heads: 2}"


def results(folder: Path, entry: str, model: str = "{name: mlp, hidden: [48, 24]}") -> Any:
    (result,) = runs.results(folder, FILE.format(entry=entry, model=model))
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more", "floats"),
    [
        ("{name: mlp, hidden: [48, 24]}", "", 48),
        ("{name: mlp, hidden: [48, 24]}", ", rehearsal: der++", 48 + 10),
        ("{name: cnn, widths: [4, 8]}", "", 4 * 8 * 8),
        (VIT, "", 4 * 16),
    ],
)
def test_memory_bytes_are_those_of_what_enters_the_block(tmp_path: Path, model: str, more: str, floats: int) -> None:
    total = results(tmp_path, f"{{replay: {{memory: ring, capacity: 40, depth: 1{more}}}}}", model).counts["total"]
    assert total["memory_bytes"] == 40 * (4 * floats + 8 + 8 + 8)  # label, task, and the ring's key
    assert total["samples_replayed"] > 0


@pytest.mark.slow
def test_it_forgets_less_and_a_penalty_stands_beside_it(tmp_path: Path) -> None:
    replay = "replay: {memory: class_balanced, capacity: 100, depth: 1"
    entries = [f"{{{replay}}}}}", f"{{{replay}, rehearsal: der++}}, regularization: [ewc, {{name: lwf}}]}}"]
    plain, beside = (final(results(tmp_path, entry)) for entry in entries)
    naive = final(results(tmp_path, "{avalanche: {strategy: Naive}}"))
    print(f"latent replay {plain:.3f}, with DER++, EWC and LwF {beside:.3f}, naive {naive:.3f}")
    assert plain > naive + 0.3 and beside > naive + 0.3


def test_a_penalty_sees_the_new_samples_alone() -> None:
    seen: list[tuple[int, int]] = []

    class Looks(registry.find("regularizer", "lwf").factory):  # type: ignore[misc]
        def penalty(self, model: nn.Module, batch: Batch, output: Tensor) -> Tensor:
            seen.append((len(batch.x), len(output)))
            return output.sum() * 0

    model, memory = SharedNetwork(tiny("mlp")), registry.build("memory", "ring", {"capacity": 20})
    memory.keep_inside(model, 1)
    tasks = to_benchmark(stream("mlp")).streams["train"][:2]
    learned(model, list(tasks), memory, Looks(), epochs=1, optimizer="adam", lr=1e-3)
    assert set(seen) == {(8, 8)} and memory.replayed == SIZE


@pytest.mark.parametrize(
    ("entry", "model", "message"),
    [
        ("{replay: {memory: ring, capacity: 9, depth: 3}}", VIT, "can enter block 1 to 2"),
        ("{replay: {memory: ring, capacity: 9, depth: 1}}", "{name: mlp, hidden: [9]}", "can enter no block"),
        ("{isolation: lora, shared: true, replay: {memory: ring, capacity: 9, depth: 1}}", VIT, "'layers' from 1 on"),
        ("{isolation: ladder, shared: true, replay: {memory: ring, capacity: 9, depth: 1}}", VIT, "'layers' from 1 on"),
    ],
)
def test_what_cannot_be_kept_inside_is_refused(tmp_path: Path, entry: str, model: str, message: str) -> None:
    with pytest.raises(FileErrors, match=message):
        results(tmp_path, entry, model)


@pytest.mark.slow
def test_a_shared_module_above_the_block_learns_from_what_is_kept(tmp_path: Path) -> None:
    lora = "isolation: {name: lora, layers: [1, 2]}, shared: true, train: {lr: 3e-2}"
    kept = results(tmp_path, f"{{{lora}, replay: {{memory: ring, capacity: 100, depth: 1}}}}", VIT)
    alone = results(tmp_path, f"{{{lora}, regularization: {{name: lwf, strength: 0.0}}}}", VIT)
    assert final(kept) > final(alone) + 0.15


def test_a_depth_that_is_not_there_is_refused_in_a_script() -> None:
    with pytest.raises(OptionError, match="block 1 to 1"):
        registry.build("memory", "ring", {"capacity": 9}).keep_inside(network(tiny("bert")), 2)
