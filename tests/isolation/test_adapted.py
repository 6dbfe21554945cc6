"""One module that all tasks train: what is frozen stays, copies are whole, and every method acts on the module."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.checks.backbones import FAMILIES, samples, tiny
from forgetlab.checks.common import make
from forgetlab.checks.regime import stream
from forgetlab.costs.ledger import Ledger
from forgetlab.experiment import Budget, Train
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.shared_module import Adapted, refuse_unshareable
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError, OptionsError
from forgetlab.results.store import Result
from forgetlab.seeding import generator
from forgetlab.toolbox.fisher import fisher
from forgetlab.toolbox.teacher import frozen_copy
from forgetlab.training.loop import Loop
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.commands import invoke
from helpers.modules import moved
from helpers.training import learned

SHAREABLE = {
    *("adapter", "bitfit", "combined", "deep_prompt", "gradual", "ia3", "ladder", "linear_probe", "lora", "p_tuning"),
    *("peft", "pfeiffer", "prefix", "prompt", "selective", "unified"),
}
OF_WEIGHTS = ["bitfit", "gradual", "ia3", "lora", "selective"]
FILE = """
name: shared
scenario: {{name: split_digits, setting: {setting}, n_tasks: {n_tasks}}}
model: {{name: vit, width: 16, depth: 2, patch: 4, heads: 2}}
protocol: {{budget: {budget}}}
train: {{lr: 1e-2, batch_size: 32}}
references: []
strategies: [{entry}]
"""


def text(entry: str, **options: Any) -> str:
    given = {"setting": "task-incremental", "n_tasks": 5, "budget": "{epochs: 2}"} | options
    return FILE.format(entry=entry, **given)


def run(folder: Path, entry: str, **options: Any) -> Result:
    (result,) = runs.results(folder, text(entry, **options))
    return result


def shared(name: str) -> list[Adapted]:
    """The module on each family that it fits, moved from where it starts."""
    found = []
    for family in FAMILIES:
        try:
            adapted = Adapted(tiny(family), make(registry.find("isolation", name)))
        except (OptionError, OptionsError):
            continue
        moved(adapted.module)
        found.append(adapted.eval())
    return found


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", registry.available("isolation"))
def test_every_module_is_shared_or_refused_with_a_reason(name: str) -> None:
    module = make(registry.find("isolation", name))
    if name in SHAREABLE:
        refuse_unshareable(module)
        assert shared(name)
    else:
        with pytest.raises(OptionError, match="made for one task and cannot be shared"):
            refuse_unshareable(module)


class Prunes(Isolation):
    """Acts once, in the course of one task."""

    def make(self, site: Any) -> nn.Module:
        return nn.Identity()

    def step(self, done: float) -> None:
        self.pruned = done > 0.5

    def materialise(self) -> None:
        self.step(1.0)


def test_what_acts_once_is_refused_also_as_a_part_of_others() -> None:
    combined = registry.build("isolation", "combined", {"parts": ["lora", "hat"]})
    for module in (Prunes(("mlp.in",)), combined):
        with pytest.raises(OptionError, match="cannot be shared"):
            refuse_unshareable(module)
    refuse_unshareable(registry.build("isolation", "combined", {"parts": ["lora", "adapter"]}))


class WithBatchNorm(MLP):
    """Statistics and chance, which training must leave alone."""

    places: ClassVar[dict[str, str]] = {"block": "layers.*", "mlp.in": "layers.*.0"}

    def __init__(self) -> None:
        super().__init__((1, 8, 8), hidden=(16, 16))
        for layer in self.layers:
            assert isinstance(layer, nn.Sequential)
            layer.extend([nn.BatchNorm1d(16), nn.Dropout(0.5)])


def network(backbone: nn.Module, **options: Any) -> SharedNetwork:
    torch.manual_seed(0)
    module = registry.build("isolation", "lora", {"sites": ["mlp.in"], "rank": 2})
    return SharedNetwork(Adapted(backbone, module), **options)


def trained(model: SharedNetwork, *found: Any) -> SharedNetwork:
    return learned(model, stream(), *found, weight_decay=0.1)


def test_the_backbone_is_as_it_was_to_the_bit_and_the_module_and_head_are_trained() -> None:
    backbone = WithBatchNorm()
    before = copy.deepcopy(backbone.state_dict())
    model = network(backbone)
    start = {name: p.detach().clone() for name, p in model.backbone.module.named_parameters()}  # type: ignore[union-attr]
    trained(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(not torch.equal(p, start[name]) for name, p in model.backbone.module.named_parameters())  # type: ignore
    moving = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moving == {name for name, _ in model.named_parameters() if ".module." in name or name.startswith("head.")}


def test_a_backbone_in_training_mode_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail: BatchNorm's statistics move where the mode is not held."""
    monkeypatch.setattr(Adapted, "train", nn.Module.train)
    backbone = WithBatchNorm()
    before = copy.deepcopy(backbone.state_dict())
    trained(network(backbone))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_frozen_backbone_draws_nothing_in_training() -> None:
    model = network(WithBatchNorm())
    model.open(0, [0, 1])
    x, task = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(model.train()(x, task), model(x, task))
    assert torch.equal(model(x, task), model.eval()(x, task))


@pytest.mark.parametrize("name", sorted(SHAREABLE))
def test_copies_are_whole_and_carry_no_hook(name: str) -> None:
    for adapted in shared(name):
        x = samples(adapted.backbone, 1)
        copied, before = copy.deepcopy(adapted), adapted(x)
        assert hooks(adapted) == hooks(copied) == 0
        moved(adapted.module)
        assert torch.equal(copied(x), before)
        after = adapted(x)
        assert name == "linear_probe" or not torch.equal(after, before)
        moved(copied.module)
        assert torch.equal(adapted(x), after)


def test_a_teacher_answers_as_the_model_did() -> None:
    model = trained(network(MLP((1, 8, 8), (16, 16))))
    x, task = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    before = model.eval()(x, task)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved(model)
    teacher = frozen_copy(model, tensors)
    assert torch.equal(teacher(x, task), before) and not torch.equal(model(x, task), before)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in model.backbone.module.parameters())  # type: ignore[union-attr]


def test_no_hook_stays_after_an_error() -> None:
    (adapted, *_) = shared("lora")
    adapted.module.scale = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        adapted(samples(adapted.backbone, 1))
    assert hooks(adapted) == 0


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_the_merged_backbone_answers_as_the_adapted_one(name: str) -> None:
    for adapted in shared(name):
        x, bare = samples(adapted.backbone, 1), copy.deepcopy(adapted.backbone.state_dict())
        merged = adapted.merged().eval()
        torch.testing.assert_close(merged(x), adapted(x), rtol=1e-4, atol=1e-4)
        assert all(torch.equal(tensor, bare[n]) for n, tensor in adapted.backbone.state_dict().items())
        changed = {n for n, tensor in merged.named_parameters() if not torch.equal(tensor, bare[n])}
        assert changed and changed <= {n for n, p in merged.named_parameters() if p.requires_grad} == {*adapted.dense()}


def test_gradients_reach_the_module_through_the_dense_weights() -> None:
    for adapted in shared("lora"):
        total = torch.stack([tensor.square().sum() for tensor in adapted.dense().values()]).sum()
        gradients = torch.autograd.grad(total, [*adapted.module.parameters()])
        assert all(bool(gradient.any()) for gradient in gradients)


def test_modules_that_act_together_give_the_weights_of_each() -> None:
    """LoRA changes queries and values, IA3 keys, values left out: no weight has two changes."""
    parts = [{"name": "lora", "rank": 2}, {"name": "ia3", "sites": ["attn.k", "mlp.out"]}]
    adapted = Adapted(tiny("vit"), registry.build("isolation", "combined", {"parts": parts}))
    moved(adapted.module)
    x = samples(adapted.backbone, 1)
    torch.testing.assert_close(adapted.merged().eval()(x), adapted.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHAREABLE))
def test_a_shared_module_runs_beside_a_memory_and_beside_penalties(tmp_path: Path, name: str) -> None:
    spec = {
        "combined": "[lora, adapter]",
        "peft": "{name: peft, config: {peft_type: LORA, target_modules: [attn.q]}}",
        "prefix": "{name: prefix, hidden: 8}",
        "unified": "{name: unified, bottleneck: 8}",
    }.get(name, name)
    entry = f"{{isolation: {spec}, shared: true, replay: {{memory: ring, capacity: 20}}, regularization: [si, lwf]}}"
    result = run(tmp_path, entry, setting="class-incremental", n_tasks=2, budget="{updates: 3}")
    total = result.counts["total"]
    assert 0 < total["trainable"] < total["parameters"]
    assert (total["memory_bytes"] or 0) > 20 * 64 and total["samples_replayed"] > 0
    assert result.task_identity == "none" and result.family.endswith("isolation")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the module ends at with nothing beside it."""
    result = run(tmp_path_factory.mktemp("alone"), "{isolation: lora, shared: true}")
    return result.metrics["average_accuracy"] or 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        "replay: {memory: class_balanced, capacity: 100}",
        "regularization: {name: ewc, strength: 100}",
        "regularization: {name: lwf, strength: 3.0}",
        "regularization: {name: si, strength: 10.0}",
        "regularization: {name: weight_space_ewc, strength: 100}",
    ],
)
def test_methods_on_a_shared_module_forget_less_than_the_module_alone(tmp_path: Path, more: str, alone: float) -> None:
    method = run(tmp_path, f"{{isolation: lora, shared: true, {more}}}")
    assert (method.metrics["average_accuracy"] or 0) > alone + 0.03


def test_ledger_and_files_say_what_is_shared(tmp_path: Path) -> None:
    entry = "{isolation: {name: lora, rank: 2}, shared: true}"
    result = run(tmp_path, entry, setting="domain-incremental", n_tasks=2, budget="{updates: 1}")
    module = 2 * 2 * (2 * 16 + 2 * 16)  # layers, sites, A and B
    head = 5 * 16 + 5
    assert result.counts["per_task"]["trainable"] == [module + head] * 2
    assert result.counts["total"]["memory_bytes"] == 0
    backbone = sum(p.numel() for p in vit().parameters())
    assert result.counts["total"]["parameters"] == backbone + module + head
    paid = result.counts["per_task"]
    assert paid["task_bytes"] == [0, 0] and paid["shared_bytes"] == [4 * (module + head)] * 2
    assert paid["changed"] == [4 * 16 * 16] * 2 and paid["rank_90"][0] <= 2


@pytest.mark.slow
def test_the_ledger_measures_the_pass_through_the_shared_module() -> None:
    """Its penalty is a part of a training step, and its answers are compared with those of the bare backbone."""
    free, paying = (_priced(penalised) for penalised in (False, True))
    with_it, without = ((ledger.steps[0]["flops_backward"] or 0) for ledger in (paying, free))
    assert with_it > without > 0
    assert free.latency is not None and free.latency > 0


def _priced(penalised: bool) -> Ledger:
    (adapted, *_) = shared("lora")
    if penalised:
        adapted.module.penalty = lambda: sum((p @ p.T).sum() for p in adapted.module.parameters() if p.dim() == 2)  # type: ignore[method-assign]
    ledger, model = Ledger(), SharedNetwork(adapted)
    loop = Loop(model=model, train=Train(batch_size=8), budget=Budget(updates=1), plugins=[ledger])
    loop.train(stream()[0], [])
    return ledger


def test_a_teacher_keeps_nothing_of_what_is_frozen(tmp_path: Path) -> None:
    entry = "{isolation: {name: lora, rank: 2}, shared: true, regularization: lwf}"
    result = run(tmp_path, entry, setting="domain-incremental", n_tasks=2, budget="{updates: 1}")
    assert result.counts["total"]["memory_bytes"] == result.counts["per_task"]["shared_bytes"][-1]


def vit() -> nn.Module:
    return registry.build("model", "vit", {"width": 16, "depth": 2, "patch": 4, "heads": 2}, input_shape=(1, 8, 8))


@pytest.mark.slow
def test_the_commands_say_in_words_that_there_is_one_module(tmp_path: Path) -> None:
    entry = "{name: one, isolation: lora, shared: true}"
    path = runs.written(tmp_path, text(entry, n_tasks=2, budget="{updates: 1}"))
    where = ["--runs", str(tmp_path / "runs")]
    assert invoke("run", str(path), "--no-tracking", *where).exit_code == 0
    for more in ([], ["--merged", "0", str(tmp_path / "merged")], ["--peft", "0", str(tmp_path / "peft")]):
        told = invoke("modules", "shared/one", *more, *where)
        assert told.exit_code != 0 and not isinstance(told.exception, AssertionError)
        assert "all tasks train one module" in told.output


def test_a_module_on_a_text_backbone_answers_the_pretraining_too() -> None:
    """States go through the module; the embedding and what is a piece of text are the backbone's."""
    backbone = registry.build(
        "model", "transformer", {"width": 16, "depth": 2, "heads": 2, "vocabulary": 300}, input_shape=(8,)
    )
    adapted = Adapted(backbone, registry.build("isolation", "lora", {"rank": 2}))
    ids = torch.randint(104, 300, (3, 8), generator=generator("tests", "ids"))
    before = adapted.states(ids)
    assert torch.equal(before, backbone.states(ids))
    moved(adapted.module)
    assert not torch.equal(adapted.states(ids), before)
    assert hooks(adapted) == 0
    assert torch.equal(adapted.states(ids).mean(1), adapted(ids))
    assert adapted.embed is backbone.embed and hasattr(adapted, "pieces") and not hasattr(adapted, "nothing")


def test_an_image_backbone_has_no_pieces_of_text() -> None:
    assert not hasattr(Adapted(vit(), make(registry.find("isolation", "lora"))), "pieces")


@pytest.mark.slow
@pytest.mark.parametrize("n", [9, 10])
def test_the_fisher_of_a_module_is_exact_also_where_a_batch_is_as_long_as_its_prefix(n: int) -> None:
    torch.manual_seed(0)
    vit = registry.build("model", "vit", {"width": 16, "depth": 2, "patch": 4, "heads": 2}, input_shape=(1, 8, 8))
    prefix = registry.build("isolation", "prefix", {"length": 10, "hidden": 8, "layers": [0]})
    network = SharedNetwork(Adapted(vit, prefix)).eval()
    network.open(0, [0, 1, 2])
    batch = Batch(torch.rand(n, 1, 8, 8), torch.arange(n) % 3, torch.zeros(n, dtype=torch.int64))
    found = fisher(network, [batch])
    for name, value in found.items():
        apart = [fisher(network, [batch.rows(torch.tensor([i]))])[name] for i in range(n)]
        torch.testing.assert_close(value, torch.stack(apart).mean(0), rtol=1e-4, atol=1e-8)
