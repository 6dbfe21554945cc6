"""EWC on the weights that a shared module amounts to: the same as EWC on the merged network, whatever A and B are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from forgetlab.batch import Batch
from forgetlab.checks.backbones import samples, tiny
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.isolation.shared_module import Adapted
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.regularization.regularizer import Regularizer
from forgetlab.seeding import generator
from forgetlab.toolbox.fisher import fisher, per_sample
from forgetlab.training.network import SharedNetwork
from helpers.modules import moved
from helpers.runs import finals, loaded

TOLERANCE = 1e-5
FAMILIES = ["vit", "bert", "gpt2", "hf_vit", "timm"]  # gpt2 and timm hold q, k and v in one layer, gpt2 turned


def build(name: str, **options: Any) -> Any:
    return registry.build("regularizer", name, options)


def network(family: str, module: str = "lora", **options: Any) -> SharedNetwork:
    """A shared module away from its start, and three classes."""
    model = SharedNetwork(Adapted(tiny(family), registry.build("isolation", module, options)))
    model.open(0, [0, 1, 2])
    moved(model)
    return model.double().eval()


def data(model: Any, n: int = 5) -> list[Batch]:
    x = samples(model.backbone.backbone, 3, n)
    x = x.double() if x.is_floating_point() else x
    return [Batch(x, torch.arange(n) % 3, torch.zeros(n, dtype=torch.int64))]


def dense(model: Any) -> SharedNetwork:
    """The same network with the change in the weights, made by hand: W0 + s B A of q and v."""
    whole = SharedNetwork(copy.deepcopy(model.backbone.backbone))
    whole.open(0, [0, 1, 2])
    whole.double().eval()
    whole.head.load_state_dict(model.head.state_dict())
    module = model.backbone.module
    for site in module.sites:
        part, weight = module.parts[site.key], whole.backbone.get_submodule(site.path).get_parameter("weight")
        change = module.scale * part.B @ part.A
        turned = type(whole.backbone.get_submodule(site.path)).__name__ == "Conv1D"
        with torch.no_grad():
            (weight.T if turned else weight)[site.part] += change
        weight.requires_grad_()
    return whole


def exact_fisher(model: SharedNetwork, batch: Batch) -> dict[str, Tensor]:
    """E_y (d log p(y | x) / d theta)^2, sample by sample and label by label."""
    theta = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}

    def log_p(theta: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        task = torch.zeros(1, dtype=torch.int64)
        everything = {**theta, **fixed, **dict(model.named_buffers())}
        return functional_call(model, everything, (x.unsqueeze(0), task)).log_softmax(1)[0].gather(0, label)

    with sdpa_kernel(SDPBackend.MATH):
        p = model(batch.x, batch.task).softmax(1).detach()
        found = {name: torch.zeros_like(t) for name, t in theta.items()}
        for label in range(3):
            one = lambda t, x, label=label: log_p(t, x, torch.tensor([label])).squeeze(0)  # noqa: E731
            for name, g in vmap(grad(one), in_dims=(None, 0))(theta, batch.x).items():
                found[name] += torch.einsum("b,b...->...", p[:, label], g**2) / len(p)
    return found


def penalties(method: Regularizer, model: Any) -> tuple[float, float]:
    """After a task and a way from its end: the method's penalty, and EWC's on the merged network."""
    (batch,) = data(model)
    whole = dense(model)
    weight, anchor = exact_fisher(whole, batch), {name: p.detach().clone() for name, p in whole.named_parameters()}
    method.consolidate(model, [batch])
    moved(model, 0.05, "away")
    theta = dict(dense(model).named_parameters())
    expected = sum((f * (theta[name] - anchor[name]) ** 2).sum().item() for name, f in weight.items()) / 2
    return method.penalty(model, batch, batch.x).item(), expected


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_ewc_on_the_merged_network(family: str) -> None:
    found, expected = penalties(build("weight_space_ewc"), network(family, rank=2))
    assert expected > 1e-4 and found == pytest.approx(expected, rel=TOLERANCE)


def at_the_bare_weights() -> Regularizer:
    """Its Fisher is that of the backbone without the module."""
    method = build("weight_space_ewc")
    consolidate = method.consolidate

    def bare(model: Any, batches: Any) -> None:
        without = copy.deepcopy(model)
        for parameter in without.backbone.module.parameters():
            parameter.data.zero_()
        consolidate(without, batches)
        method.anchor = {name: dense(model).get_parameter(name).detach() for name in method.fisher}

    method.consolidate = bare
    return method


@pytest.mark.parametrize("broken", [at_the_bare_weights, lambda: build("ewc")])
def test_another_fisher_is_found(broken: Any) -> None:
    """That of the bare backbone, or of A and B themselves."""
    found, expected = penalties(broken(), network("vit", rank=2))
    assert abs(found / expected - 1) > 100 * TOLERANCE


def test_its_gradient_reaches_a_and_b_by_the_chain_rule() -> None:
    """dP/dB = s G A^T, dP/dA = s B^T G with G = F (W - W*)."""
    model, method = network("vit", rank=2), build("weight_space_ewc")
    (batch,) = data(model)
    method.consolidate(model, [batch])
    anchor = dict(dense(model).named_parameters())
    moved(model, 0.05, "away")
    method.penalty(model, batch, batch.x).backward()
    module: Any = model.backbone.module
    for site in module.sites:
        name, part = f"backbone.{site.path}.weight", module.parts[site.key]
        g = method.fisher[name] * (dense(model).get_parameter(name) - anchor[name]).detach()
        torch.testing.assert_close(part.B.grad, module.scale * g @ part.A.detach().T)
        torch.testing.assert_close(part.A.grad, module.scale * part.B.detach().T @ g)


def test_a_turn_of_a_against_b_costs_nothing() -> None:
    """B R R^-1 A = B A: no answer changes. EWC on A and B punishes it."""
    model = network("vit", rank=2)
    (batch,) = data(model)
    ours, theirs = build("weight_space_ewc"), build("ewc")
    for method in (ours, theirs):
        method.consolidate(model, [batch])
    before, module = model(batch.x, batch.task), model.get_submodule("backbone.module.parts")
    turn = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        for part in module.children():
            a, b = part.get_parameter("A"), part.get_parameter("B")
            b.copy_(b @ turn)
            a.copy_(torch.linalg.inv(turn) @ a)
    torch.testing.assert_close(model(batch.x, batch.task), before)
    assert ours.penalty(model, batch, batch.x).item() < 1e-20
    assert theirs.penalty(model, batch, batch.x).item() > 1e-4


def test_fishers_add_up_fading_and_the_anchor_is_the_last() -> None:
    model, method = network("vit", rank=2), build("weight_space_ewc", gamma=0.5)
    (batch,) = data(model)
    found = []
    for i in range(3):
        moved(model, 0.05, f"task {i}")
        found.append(exact_fisher(dense(model), batch))
        method.consolidate(model, [batch])
    for name, fading in method.fisher.items():
        torch.testing.assert_close(fading, found[0][name] / 4 + found[1][name] / 2 + found[2][name])
        torch.testing.assert_close(method.anchor[name], dense(model).get_parameter(name).detach())


def test_on_a_whole_network_it_is_online_ewc() -> None:
    torch.manual_seed(0)
    model = SharedNetwork(tiny("mlp")).double()
    model.open(0, [0, 1, 2])
    x = samples(model.backbone, 3).double()
    batch = Batch(x, torch.arange(12) % 3, torch.zeros(12, dtype=torch.int64))
    ours, theirs = build("weight_space_ewc"), build("online_ewc")
    for method in (ours, theirs):
        method.consolidate(model, [batch])
    moved(model)
    expected = theirs.penalty(model, batch, x)
    torch.testing.assert_close(ours.penalty(model, batch, x), expected)
    assert expected > 1e-3


def test_a_whole_block_that_is_shared_is_held_as_ewc_holds_it() -> None:
    """`selective` puts weights in the place of the backbone's: both penalties are of the same numbers."""
    model = network("vit", "selective")
    (batch,) = data(model)
    ours, theirs = build("weight_space_ewc"), build("online_ewc")
    for method in (ours, theirs):
        method.consolidate(model, [batch])
    moved(model, 0.05, "away")
    expected = theirs.penalty(model, batch, batch.x).item()
    assert ours.penalty(model, batch, batch.x).item() == pytest.approx(expected, rel=1e-6)


def test_the_quick_rule_is_used_for_the_merged_network_and_is_right() -> None:
    model = network("vit", rank=2)
    (batch,) = data(model)
    whole = dense(model)
    ours = fisher(whole, [batch])
    slow = per_sample(whole, batch, "exact", generator("tests", "slow"))
    for name, value in ours.items():
        torch.testing.assert_close(value, slow[name] / len(batch.y))


def test_what_is_kept_does_not_grow_with_tasks() -> None:
    sizes = []
    for tasks in (1, 4):
        model, method = network("vit", rank=2), build("weight_space_ewc")
        for _ in range(tasks):
            method.consolidate(model, data(model))
        sizes.append(sum(t.numel() for t in method.state()[0].values()))
    site, head = 16 * 16, 3 * 16 + 3
    assert sizes == [2 * (2 * 2 * site + head)] * 2


FILE = """
name: weights
scenario: {{name: split_digits, setting: task-incremental, n_tasks: 5}}
model: {{name: vit, width: 16, depth: 2, patch: 4, heads: 2}}
protocol: {{budget: {{epochs: 2}}}}
train: {{lr: 1e-2, batch_size: 32}}
references: []
strategies: {strategies}
seeds: {seeds}
"""


THEIRS = "{name: peft, config: {peft_type: LORA, target_modules: [attn.q]}}"  # what it merges into has no gradient


@pytest.mark.parametrize("module", ["adapter", "prefix", "[lora, adapter]", "linear_probe", THEIRS])
def test_a_module_that_changes_no_weights_is_refused(tmp_path: Path, module: str) -> None:
    entries = f"[{{isolation: {module}, shared: true, regularization: weight_space_ewc}}]"
    with pytest.raises(FileErrors, match=r"what the module does is no change of weights.* use 'ewc'"):
        loaded(tmp_path, FILE.format(strategies=entries, seeds="[0]"))
    with pytest.raises(OptionError, match="no change of weights"):
        build("weight_space_ewc").check(network("vit", "adapter"))


@pytest.mark.parametrize(
    "module", ["lora", "ia3", "bitfit", "selective", "gradual", "[lora, {name: ia3, sites: [attn.k]}]"]
)
def test_a_module_that_changes_weights_is_let_through(tmp_path: Path, module: str) -> None:
    entries = f"[{{isolation: {module}, shared: true, regularization: weight_space_ewc}}]"
    loaded(tmp_path, FILE.format(strategies=entries, seeds="[0]"))


@pytest.mark.slow
def test_old_tasks_are_forgotten_less_than_by_the_module_alone(tmp_path: Path) -> None:
    entries = "[{isolation: lora, shared: true}, {isolation: lora, shared: true, regularization: weight_space_ewc}]"
    final = finals(tmp_path, FILE.format(strategies=entries, seeds="[0, 1, 2]"))
    gained = [ours - alone for alone, ours in zip(*final.values(), strict=True)]
    assert min(gained) > 0.05, gained
