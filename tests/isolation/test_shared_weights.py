"""Sparse changes, and one network's weights shared out among tasks: diff pruning, PackNet and HAT."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.cnn import CNN
from forgetlab.backbones.mlp import MLP
from forgetlab.checks import isolation, promises
from forgetlab.checks.backbones import samples
from forgetlab.checks.isolation import loss, start, train
from forgetlab.data.datasets import Samples
from forgetlab.experiment import Budget, Train
from forgetlab.isolation.attachment import standing_in
from forgetlab.isolation.network import IsolatedNetwork, IsolationPlugin
from forgetlab.metrics.accuracy_matrix import forgetting
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import drawn_from, generator
from forgetlab.strategies.isolation.modules.masks.diff_pruning import DiffPruning
from forgetlab.strategies.isolation.modules.masks.hat import HAT
from forgetlab.strategies.isolation.modules.masks.packnet import PackNet
from forgetlab.streams.scenario import Scenario, Task
from forgetlab.training.loop import Loop
from helpers import runs
from helpers.networks import isolated

OPTIMIZERS = ("sgd", "adam", "adamw")


def steps(
    model: IsolatedNetwork, task: int, n: int = 10, optimizer: str = "adamw", until: float = 1.0, decay: float = 0.1
) -> None:
    """Open a task and train it with momentum and weight decay, but do not end it."""
    (batch,) = start(model, task)
    parameters = [p for p in model.parameters() if p.requires_grad]
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    more = {"momentum": 0.9} if optimizer == "sgd" else {}
    walk = kinds[optimizer](parameters, lr=0.02, weight_decay=decay, **more)
    with drawn_from("steps", task):
        for step in range(n):
            if step / n >= until:
                return
            model.train()
            model.module_of(task).step(step / n)
            model.module_of(task).step_of_epoch(step, n)
            walk.zero_grad()
            loss(model, batch).backward()
            walk.step()


def end(model: IsolatedNetwork, task: int) -> None:
    model.eval()
    previous = [model.module_of(one) for one in range(task)]
    model.module_of(task).end([], previous, model.shared, model.backbone)


def row(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def one_diff(model: IsolatedNetwork, task: int = 0) -> DiffPruning:
    module = model.module_of(task)
    assert isinstance(module, DiffPruning)
    return module


# Diff pruning


def theta_0(model: IsolatedNetwork) -> Tensor:
    return torch.cat([p.flatten() for p in model.backbone.parameters()])


@pytest.mark.parametrize("family", ["vit", "mlp", "gpt2", "bert"])
@pytest.mark.parametrize("budget", [0.005, 0.1])
def test_it_changes_no_more_entries_than_its_budget_and_no_other(family: str, budget: float) -> None:
    model = isolated(lambda: DiffPruning(budget), family=family)
    steps(model, 0)
    end(model, 0)
    model.module_of(0).materialise()
    before, after = theta_0(model), row(standing_in(model.module_of(0), model.backbone))
    entries = int(budget * len(before)) or 1
    kept = torch.zeros(len(before), dtype=torch.bool)
    module = one_diff(model)
    assert module.kept is not None
    kept[module.kept] = True
    assert kept.sum() == entries
    assert torch.equal(after[~kept], before[~kept])  # to the bit
    assert 0 < (after != before).sum() <= entries
    stored = [t for name, t in model.task_tensors(0).items() if name.startswith("module.")]
    assert sum(t.numel() * t.element_size() for t in stored) == entries * (4 + 4)  # a value and an index each


def test_it_trains_twice_the_backbone() -> None:
    model = isolated(DiffPruning)
    start(model, 0)
    assert sum(p.numel() for p in model.module_of(0).parameters()) == 2 * len(theta_0(model))


def test_the_largest_of_all_entries_are_kept_and_go_on_training() -> None:
    """Chosen over all tensors together, by |z w|, at half of the steps; their w moves on from z w."""
    model = isolated(lambda: DiffPruning(budget=0.05))
    steps(model, 0, until=0.5)
    module = one_diff(model)
    assert module.kept is None
    sized = module.gated(draw=False).detach()
    expected = set(sized.abs().argsort(descending=True)[: int(0.05 * len(sized))].tolist())
    module.step(0.5)
    assert module.kept is not None and set(module.kept.tolist()) == expected
    found = row(standing_in(module.eval(), model.backbone)) - theta_0(model)
    torch.testing.assert_close(found[module.kept], sized[module.kept], rtol=0, atol=1e-6)
    assert sized[module.kept].all()
    module.w.grad = None
    model.train()
    x = samples(model.backbone, 0)
    model(x, torch.zeros(len(x), dtype=torch.long)).square().sum().backward()
    assert module.w.grad is not None and not module.w.grad[1].any()  # gates are no more; w of what is kept trains on
    reached = module.w.grad[0].nonzero().squeeze(1)
    assert len(reached) > 0.9 * len(module.kept) and set(reached.tolist()) <= expected


def test_what_is_stored_answers_as_what_was_trained_to_the_bit() -> None:
    model = isolated(lambda: DiffPruning(budget=0.05))
    steps(model, 0)
    end(model, 0)
    model.module_of(0).step(1.0)
    asked = samples(model.backbone, 5)
    before = model.answer(0, asked)
    model.module_of(0).materialise()
    assert torch.equal(model.answer(0, asked), before)


class PrunesEachHalf(DiffPruning):
    """The break: the budget is met tensor by tensor, in two halves of the row."""

    def step(self, done: float) -> None:
        if done >= self.prune_at and self.kept is None:
            halves = self.gated(draw=False).abs().detach().chunk(2)
            k, offset = int(self.budget * self.w.shape[1]) // 2, len(halves[0])
            self.kept = torch.cat([halves[0].topk(k).indices, halves[1].topk(k).indices + offset]).int()


def test_pruning_part_by_part_is_found() -> None:
    model = isolated(lambda: PrunesEachHalf(budget=0.05))
    steps(model, 0, until=0.5)
    module = one_diff(model)
    sized = module.gated(draw=False).abs().detach()
    module.step(0.5)
    assert module.kept is not None
    assert set(module.kept.tolist()) != set(sized.topk(len(module.kept)).indices.tolist())


def gates(alpha: float, n: int = 200_000) -> Tensor:
    """Draws of z at this alpha."""
    module = DiffPruning(gate_rate=1.0)
    module.w = nn.Parameter(torch.stack([torch.ones(n), torch.full((n,), alpha)]))
    with drawn_from("gates"):
        return module.gated(draw=True).detach()


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 1.5, 5.0])
def test_the_gates_are_hard_concrete(alpha: float) -> None:
    """P(z > 0) is what the penalty says, and P(z = 1) by the same formula from above (Louizos et al. 2018)."""
    drawn = gates(alpha)
    assert drawn.min() >= 0 and drawn.max() <= 1
    opened, whole = (drawn > 0).float().mean().item(), (drawn == 1).float().mean().item()
    assert opened == pytest.approx(1 / (1 + math.exp(-alpha)), abs=4e-3)  # u > 1/2 in s, as -l = r
    threshold = math.log((1 + 1.5) / 3 / (1 - (1 + 1.5) / 3))  # s (r - l) + l = 1
    assert whole == pytest.approx(1 / (1 + math.exp(threshold - alpha)), abs=4e-3)


def test_the_penalty_is_the_expected_number_of_open_gates_until_they_are_pruned() -> None:
    model = isolated(lambda: DiffPruning(sparsity=0.01))
    start(model, 0)
    module = one_diff(model)
    penalty = module.penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.01 * len(theta_0(model)) / (1 + math.exp(-5.0)), rel=1e-5)
    module.step(0.5)
    assert module.penalty() is None


@pytest.mark.slow
def test_a_strong_penalty_closes_gates() -> None:
    closed = {}
    for sparsity in (1e-7, 0.5):
        model = isolated(lambda sparsity=sparsity: DiffPruning(sparsity=sparsity, gate_rate=10.0))
        steps(model, 0, n=80, optimizer="adam", until=0.5, decay=0.0)
        module = one_diff(model)
        closed[sparsity] = (module.gated(draw=False) == 0).float().mean().item()
    assert closed[1e-7] < 0.5 < 0.9 < closed[0.5]


# PackNet


def owners(model: IsolatedNetwork) -> dict[str, Tensor]:
    return {name: t for name, t in model.shared.items() if name.endswith(".owner")}


@pytest.mark.parametrize("family", ["vit", "gpt2", "bert"])
def test_each_task_owns_its_share_of_what_was_free(family: str) -> None:
    model = isolated(lambda: PackNet(share=0.5), family=family)
    for task in range(3):
        train(model, task)
    for owner in owners(model).values():
        free = owner.numel()
        for task in (1, 2, 3):
            expected = round(0.5 * free)
            assert (owner == task).sum() == expected
            free -= expected


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_moves_what_others_own(optimizer: str) -> None:
    model = isolated(PackNet)
    asked, answers, kept = samples(model.backbone, 5), [], []
    for task in range(3):
        steps(model, task, optimizer=optimizer)
        end(model, task)
        model.module_of(task).materialise()
        kept.append({name: t.clone() for name, t in model.shared.items()})
        answers.append(model.answer(task, asked).detach())
    for task in range(3):
        assert torch.equal(model.answer(task, asked), answers[task])
        for name, owner in owners(model).items():
            mine, weight = owner == task + 1, name.replace(".owner", ".weight")
            assert torch.equal(model.shared[weight][mine], kept[task][weight][mine])


class LeavesItToGradients(PackNet):
    """The break: others' weights are protected by nothing, as where only gradients are zeroed and weights decay."""

    def step(self, done: float) -> None:
        super().step(done)
        self.mine = {key: torch.ones_like(mine) for key, mine in self.mine.items()}


@pytest.mark.slow
def test_a_protection_that_leaks_is_found() -> None:
    with pytest.raises(AssertionError, match="changed an earlier one's answers"):
        isolation.old_answers_stay(Plugin("isolation", "broken", LeavesItToGradients))


def test_a_task_answers_with_what_it_and_earlier_ones_own_and_zeros() -> None:
    model = isolated(PackNet)
    for task in range(3):
        train(model, task)
    for task in range(3):
        module, found = model.module_of(task), standing_in(model.module_of(task), model.backbone)
        for site in module.sites:
            owner, values = (model.shared[f"{site.key}.{name}"] for name in ("owner", "weight"))
            weight = found[f"{site.path}.weight"]
            used = (owner > 0) & (owner <= task + 1)
            assert torch.equal(weight[used], values[used]) and not weight[~used].any()
            assert used.any() and not used.all()


def test_the_largest_of_a_tasks_weights_are_kept_at_two_thirds_of_its_steps() -> None:
    model = isolated(lambda: PackNet(share=0.25))
    train(model, 0)
    steps(model, 1, n=9, until=6 / 9)
    module = model.module_of(1)
    assert isinstance(module, PackNet)
    before = {site.key: module.parts[site.key].get_parameter("weight").detach().clone() for site in module.sites}
    module.step(6 / 9)
    for site in module.sites:
        free, mine = model.shared[f"{site.key}.owner"] == 0, module.mine[site.key]
        assert mine.sum() == round(0.25 * int(free.sum())) and not (mine & ~free).any()
        sizes = before[site.key].abs()
        assert sizes[mine].min() >= sizes[free & ~mine].max()
        module.step(8 / 9)  # once only
        assert torch.equal(module.mine[site.key], mine)


def test_the_first_task_starts_from_the_pretrained_weights_and_later_ones_from_zeros() -> None:
    model = isolated(PackNet)
    start(model, 0)
    for site in model.module_of(0).sites:
        assert torch.equal(standing_in(model.module_of(0), model.backbone)[f"{site.path}.weight"], site.weight)
    train(model, 0)
    start(model, 1)
    for site in model.module_of(1).sites:
        owner = model.shared[f"{site.key}.owner"]
        weight = standing_in(model.module_of(1), model.backbone)[f"{site.path}.weight"]
        assert not weight[owner == 0].any() and torch.equal(
            weight[owner == 1], model.shared[f"{site.key}.weight"][owner == 1]
        )


def kernels() -> IsolatedNetwork:
    backbone = CNN((1, 8, 8), widths=(4, 8))
    return IsolatedNetwork(backbone.eval(), lambda: PackNet(share=0.5, sites=("block",)))


def test_tasks_share_out_kernels_of_convolutions_and_batchnorm_stays() -> None:
    model = kernels()
    bare = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    asked = samples(model.backbone, 5)
    answers: list[Tensor] = []
    for task in range(3):
        train(model, task)
        answers.append(model.answer(task, asked).detach())
    assert {name: tuple(t.shape) for name, t in model.shared.items() if name.endswith("owner")} == {
        "block-0.0.owner": (4, 1, 3, 3),
        "block-1.0.owner": (8, 4, 3, 3),
    }
    for owner in owners(model).values():
        free = owner.numel()
        for task in range(3):
            assert int((owner == task + 1).sum()) == round(free / 2)
            free -= round(free / 2)
    assert all(torch.equal(model.answer(task, asked), answers[task]) for task in range(3))
    assert all(torch.equal(tensor, bare[name]) for name, tensor in model.backbone.state_dict().items())
    found = standing_in(model.module_of(0), model.backbone)
    assert found.keys() == {"layers.0.0.weight", "layers.1.0.weight"}
    for name, weight in found.items():
        mine = owners(model)[f"block-{name.split('.')[1]}.0.owner"] == 1
        assert weight[mine].all() and not weight[~mine].any()


def test_a_last_task_may_keep_all_that_is_left_and_a_block_stands_alone() -> None:
    model = isolated(lambda: PackNet(share=1.0), tasks=1)
    assert all((owner == 1).all() for owner in owners(model).values())
    with pytest.raises(OptionError, match="name it alone") as refused:
        PackNet(sites=("block", "mlp.in"))
    assert refused.value.option == "sites"


@pytest.mark.slow
def test_a_run_on_a_cnn_that_was_pretrained(tmp_path: Any) -> None:
    text = """
name: packed
scenario: {name: split_digits, setting: task-incremental, n_tasks: 4, held_back: 2}
model: {name: cnn, widths: [8, 16]}
pretrain: {epochs: 5}
protocol: {budget: {epochs: 6}}
train: {lr: 1e-2, batch_size: 32}
references: []
strategies:
  - isolation: {name: packnet, sites: [block]}
"""
    (result,) = runs.results(tmp_path, text)
    assert forgetting(result.accuracy) == 0.0
    learned = [result.accuracy[task][task] or 0.0 for task in range(4)]
    assert sum(learned) / 4 > 0.8


def test_packnet_stores_no_weights_with_a_task() -> None:
    model = isolated(PackNet)
    train(model, 0)
    assert all(name.startswith("head.") for name in model.task_tensors(0))


# HAT


def hat(model: IsolatedNetwork, task: int = 0) -> HAT:
    module = model.module_of(task)
    assert isinstance(module, HAT)
    return module


@pytest.mark.parametrize("s", [1 / 400, 0.1, 1.0, 5.0])
def test_the_gradient_is_the_authors_compensated_one(s: float) -> None:
    """q' = smax / s * (cosh(s e) + 1) / (cosh(e) + 1) * q, in closed form."""
    module = HAT()
    module.s = s
    e = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    part = nn.Module()
    part.e = nn.Parameter(e.detach().clone())
    gate, plain = module.gate(part), torch.sigmoid(s * e)
    assert torch.equal(gate, plain)
    gate.sum().backward()
    plain.sum().backward()
    assert e.grad is not None and part.e.grad is not None
    theirs = e.grad * 400 / s * ((s * e).cosh() + 1) / (e.cosh() + 1)
    torch.testing.assert_close(part.e.grad, theirs.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("budget", "batches"),
    [({"epochs": 2}, [0, 1, 2, 0, 1, 2]), ({"updates": 5}, [0, 1, 2, 0, 2]), ({"updates": 1}, [2])],
)
def test_s_rises_from_its_inverse_to_smax_in_each_epoch(budget: Any, batches: list[int]) -> None:
    """Over three batches: 1/400, halfway, 400; an epoch that the updates cut short ends at 400 too."""
    seen: list[float] = []

    class Watched(HAT):
        def step_of_epoch(self, behind: int, batches: int) -> None:
            super().step_of_epoch(behind, batches)
            seen.append(self.s)

    x, y = torch.rand(24, 4), torch.arange(24) % 2
    task = Task("a", Samples(x, y), Samples(x, y), (0, 1))
    scenario = Scenario((task,), ("a", "b"), task_known_at_test=True)
    network = IsolatedNetwork(MLP((4,), (5,)), Watched)
    loop = Loop(model=network, train=Train(batch_size=8), budget=Budget(**budget), plugins=[IsolationPlugin()])
    loop.train(to_benchmark(scenario).streams["train"][0], [])
    rising = [1 / 400, (400 + 1 / 400) / 2, 400.0]
    assert seen == pytest.approx([rising[batch] for batch in batches])


def authors_code(e: Tensor, w: Tensor, b: Tensor, head: Any, data: Any, used: Tensor | None, smax: float) -> None:
    """One epoch of HAT on one layer of units, as joansj/hat trains it; their loss, their four steps after backward().

    s of the last batch is smax, as in the paper. ``used`` are the units that earlier tasks use.
    """
    rate, sparsity, n = 0.1, 0.75, len(data)
    for i, (x, y) in enumerate(data):
        s = 1 / smax + (smax - 1 / smax) * i / (n - 1)
        tensors = [tensor.requires_grad_() for tensor in (e, w, b, *head)]
        mask = torch.sigmoid(s * e)
        hidden = torch.relu(x @ w.T + b) * mask
        free = torch.ones_like(mask) if used is None else 1 - used
        loss = (
            nn.functional.cross_entropy(hidden @ head[0].T + head[1], y) + sparsity * (mask * free).sum() / free.sum()
        )
        gradients = [gradient.clone() for gradient in torch.autograd.grad(loss, tensors)]
        if used is not None:
            gradients[1] *= free[:, None]
            gradients[2] *= free
        gradients[0] *= smax / s * (torch.cosh((s * e.detach()).clamp(-50, 50)) + 1) / (torch.cosh(e.detach()) + 1)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.requires_grad_(False)
            tensor -= rate * gradient
        e.clamp_(-6, 6)


def test_hat_learns_two_tasks_as_its_authors_code_does() -> None:
    """At an smax where no gate is so full that their compensation is lost to rounding: in floats from s e = 17 on."""
    torch.manual_seed(0)
    smax, backbone = 2.0, MLP((6,), (8,)).double()
    network = IsolatedNetwork(backbone, lambda: HAT(smax=smax).double())
    w, b = (tensor.detach().clone() for tensor in backbone.layers[0][0].parameters())  # type: ignore[index, union-attr]
    used: Tensor | None = None
    for task in range(2):
        data = [(torch.randn(5, 6, dtype=torch.float64), torch.randint(2, (5,)) + 2 * task) for _ in range(4)]
        network.open(task, [2 * task, 2 * task + 1])
        module: Any = network.double().module_of(task)
        key = module.sites[0].key
        with torch.no_grad():  # two at the edge: the penalty pushes one out
            module.parts[key]["e"].copy_(torch.tensor([6.0, -6.0, 2, -2, 1, -1, 0.5, -0.5])[:, None].roll(3 * task, 0))
        e = module.parts[key]["e"].detach().flatten().clone()
        head = [tensor.detach().clone() for tensor in network.heads[str(task)].parameters()]
        previous = [network.module_of(one) for one in range(task)]
        module.begin([], previous, network.shared, backbone)
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
        for behind, (x, y) in enumerate(data):
            network.train()
            module.step_of_epoch(behind, len(data))
            optimizer.zero_grad()
            at = torch.full((len(x),), task)
            loss = nn.functional.cross_entropy(network(x, at), y)
            (loss + module.penalty()).backward()
            optimizer.step()
        network.eval()
        module.end([], previous, network.shared, backbone)
        authors_code(e, w, b, head, [(x, y - 2 * task) for x, y in data], used, smax)
        torch.testing.assert_close(module.parts[key]["e"].detach().flatten(), e)
        torch.testing.assert_close(network.shared[key], torch.cat([w, b[:, None]], dim=1))
        for tensor, theirs in zip(network.heads[str(task)].parameters(), head, strict=True):
            torch.testing.assert_close(tensor.detach(), theirs)
        module.materialise()
        mine = (e > 0).double()
        used = mine if used is None else torch.maximum(used, mine)
        assert 0 < mine.sum() < 8 and e.abs().max() == 6


def test_gates_end_hard() -> None:
    model = isolated(HAT)
    train(model, 0)
    module = hat(model)
    for site in module.sites:
        gate = module.gate(module.parts[site.key])
        assert set(gate.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(gate > 0, module.parts[site.key].get_parameter("e") > 0)


def test_each_task_goes_on_from_the_weights_that_the_last_one_left() -> None:
    model = isolated(HAT)
    for task in range(2):
        start(model, task)
        for site in model.module_of(task).sites:
            rows = hat(model, task).parts[site.key].get_parameter("rows")
            pretrained = torch.cat([site.weight, site.tensors["bias"][:, None]], dim=1)
            assert torch.equal(rows, model.shared[site.key])
            assert torch.equal(rows, pretrained) == (task == 0)
        train(model, task)


@pytest.mark.parametrize("family", ["vit", "mlp", "gpt2", "bert"])
def test_a_closed_unit_gives_nothing_and_an_open_one_what_it_did(family: str) -> None:
    model = isolated(HAT, family=family)
    train(model, 0)
    module = hat(model)
    for site in module.sites:
        open_ = module.parts[site.key].get_parameter("e").squeeze(1) > 0
        weight, bias = (module.weights(module.parts[site.key], site)[name] for name in ("weight", "bias"))  # type: ignore[arg-type]
        known = model.shared[site.key]
        assert not weight[~open_].any() and not bias[~open_].any()
        assert torch.equal(weight[open_], known[open_, :-1]) and torch.equal(bias[open_], known[open_, -1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", ["vit", "mlp"])
def test_no_optimizer_moves_a_used_unit(family: str, optimizer: str) -> None:
    model = isolated(HAT, family=family)
    asked, answers = samples(model.backbone, 5), []
    for task in range(3):
        before = {name: t.clone() for name, t in model.shared.items()}
        used = {
            key: sum((hat(model, one).parts[key].get_parameter("e") > 0).int() for one in range(task)) for key in before
        }
        steps(model, task, optimizer=optimizer)
        end(model, task)
        model.module_of(task).materialise()
        answers.append(model.answer(task, asked).detach())
        for key, rows in before.items():
            was = torch.as_tensor(used[key]).squeeze(1) > 0
            assert torch.equal(model.shared[key][was], rows[was])
            assert not torch.equal(model.shared[key][~was], rows[~was])
    assert all(torch.equal(model.answer(task, asked), answers[task]) for task in range(3))


class ProtectsTheLastTaskOnly(HAT):
    """The break: units of tasks before the last one are trained on."""

    def begin(self, data: Any, previous: Any, shared: Any, backbone: nn.Module) -> None:
        super().begin(data, previous[-1:], shared, backbone)


class SoftInTheEnd(HAT):
    """The break: gates are left as they are at the last step, a little open."""

    def end(self, data: Any, previous: Any, shared: Any, backbone: nn.Module) -> None:
        super().end(data, previous, shared, backbone)
        self.s = 1.0


@pytest.mark.slow
@pytest.mark.parametrize("broken", [ProtectsTheLastTaskOnly, SoftInTheEnd])
def test_units_that_are_not_protected_are_found(broken: type[HAT]) -> None:
    with pytest.raises(AssertionError, match="changed an earlier one's answers"):
        isolation.old_answers_stay(Plugin("isolation", "broken", broken))


def test_the_penalty_is_the_share_of_free_units_that_are_open() -> None:
    """R = sum of a (1 - used) / sum of (1 - used), over all layers together, times 0.75."""
    model = isolated(HAT, family="mlp")
    train(model, 0)
    start(model, 1)
    module = hat(model, 1)
    module.step_of_epoch(3, 11)
    opened = count = 0.0
    for site in module.sites:
        e = module.parts[site.key].get_parameter("e").detach()
        free = hat(model, 0).parts[site.key].get_parameter("e") <= 0
        opened, count = opened + torch.sigmoid(module.s * e)[free].sum().item(), count + int(free.sum())
    penalty = module.penalty()
    assert penalty is not None and penalty.item() == pytest.approx(0.75 * opened / count, rel=1e-5)
    for key in module.free:
        module.free[key] = torch.zeros_like(module.free[key])
    nothing = module.penalty()
    assert nothing is not None and nothing.item() == 0.0  # all are used: not 0 / 0


@pytest.mark.slow
def test_a_stronger_penalty_opens_fewer_units() -> None:
    opened = {}
    for sparsity in (0.0, 5.0):
        model = isolated(lambda sparsity=sparsity: HAT(sparsity=sparsity))
        steps(model, 0, n=30, optimizer="adam")
        opened[sparsity] = sum(int((part.get_parameter("e") > 0).sum()) for part in hat(model).parts.values())
    assert opened[5.0] < opened[0.0]


# In a run


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "linear_probe",
        "{name: full, start: previous}",
        "selective",
        "gradual",
        "bitfit",
        "ia3",
        "{name: diff_pruning, budget: 0.05}",
        "packnet",
        "hat",
    ],
)
def test_a_run_on_digits_forgets_nothing(tmp_path: Any, method: str) -> None:
    _, result, _ = runs.isolated(tmp_path, f"isolation: {method}", epochs=1)
    assert forgetting(result.accuracy) == 0.0


@pytest.mark.parametrize("check", promises.CHECKS["isolation"])
def test_a_sequence_of_whole_models_keeps_the_promises_too(check: Any) -> None:
    from forgetlab.strategies.isolation.modules.whole.full import Full

    with isolation.only_on("vit"):
        check(Plugin("isolation", "sequence", lambda: Full("previous")))


def test_draws_are_the_same_with_the_same_state() -> None:
    """The gates come from torch's global generator, which the loop seeds anew for each task."""
    first, second = gates(0.0, 50), gates(0.0, 50)
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(50, generator=generator("other")))
