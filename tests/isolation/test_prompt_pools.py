"""L2P, DualPrompt and CODA-Prompt: selection and attention written out, what tasks share, and what stays as it was."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.backbones.vit import ViT
from forgetlab.checks import isolation
from forgetlab.checks.backbones import HEADS, LAYERS, WIDTH, samples, tiny
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.prompts.coda_prompt import CODAPrompt
from forgetlab.strategies.isolation.modules.prompts.dual_prompt import DualPrompt
from forgetlab.strategies.isolation.modules.prompts.l2p import L2P
from forgetlab.strategies.isolation.modules.prompts.prefix import Prefix
from forgetlab.strategies.isolation.modules.prompts.prompt import Prompt
from helpers import runs
from helpers.modules import attached
from helpers.networks import isolated


def asked(module: Any, backbone: nn.Module, x: Tensor) -> Tensor:
    """The features under a module that asks, which hears the query first."""
    module.query = backbone(x).detach()
    return module.features(backbone, x).detach()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def best(module: L2P, query: Tensor) -> list[int]:
    """The keys that lie nearest to a query, the nearest first."""
    similar = [cosine(query, key) for key in module.keys.detach()]
    return sorted(range(len(similar)), key=lambda i: -similar[i])[: module.top]


def test_each_sample_gets_the_prompts_of_its_nearest_keys() -> None:
    backbone = tiny("vit")
    images = samples(backbone, 1)
    module, queries = attached(L2P(6, 2, 3), backbone), backbone(images).detach()
    module.keys.data = queries[:6] - queries.mean(0)  # the queries of such images are much alike
    nn.init.normal_(module.prompts)
    found, alone = asked(module, backbone, images), attached(Prompt(6), backbone)
    chosen = [best(module, query) for query in module.query]
    assert len({tuple(sorted(keys)) for keys in chosen}) > 1
    for image, keys, features in zip(images, chosen, found, strict=True):
        alone.parts["tokens-0"]["prompts"].data = module.prompts[keys].detach().flatten(0, 1).unsqueeze(0)
        torch.testing.assert_close(alone.features(backbone, image[None])[0].detach(), features, rtol=0, atol=1e-5)


def test_the_pull_is_the_distance_to_the_selected_keys() -> None:
    backbone = tiny("vit")
    module = attached(L2P(6, 2, 3, pull=0.25), backbone)
    nn.init.normal_(module.keys)
    asked(module, backbone, samples(backbone, 1))
    distances = [1 - cosine(query, module.keys[i].detach()) for query in module.query for i in best(module, query)]
    assert module.penalty().item() == pytest.approx(0.25 * sum(distances) / len(module.query), rel=1e-5)
    module.penalty().backward()
    chosen = {i for query in module.query for i in best(module, query)}
    assert {i for i in range(6) if module.keys.grad[i].any()} == chosen


class Votes(L2P):
    """The break: the batch selects, as the authors' code has it at test."""

    def selected(self, query: Any) -> Any:
        each = super().selected(query)
        votes = each.indices.flatten().bincount(minlength=len(self.keys))
        return torch.return_types.topk((each.values, votes.topk(self.top).indices.expand(len(query), -1)))


@pytest.mark.slow
def test_a_batch_that_votes_is_found() -> None:
    def spread(kind: type[L2P]) -> Any:
        def make() -> L2P:
            return kind(pull=0.0)

        return Plugin("isolation", kind.__name__, make)

    isolation.each_sample_for_itself(spread(L2P))
    with pytest.raises(AssertionError, match="in another batch"):
        isolation.each_sample_for_itself(spread(Votes))


def test_one_pool_is_trained_on_and_stored_once() -> None:
    network = isolated(L2P, tasks=1, steps=2)
    images, first = samples(network.backbone, 3), copy.deepcopy(network.shared)
    before = network.answer(0, images).detach()
    assert {name: tuple(t.shape) for name, t in first.items()} == {"prompts": (10, 5, WIDTH), "keys": (10, WIDTH)}
    isolation.start(network, 1)
    assert all(torch.equal(getattr(network.module_of(1), name), tensor) for name, tensor in first.items())
    isolation.train(network, 2, steps=2)
    assert not torch.equal(network.shared["prompts"], first["prompts"])
    assert not torch.equal(network.answer(0, images), before)  # the newest pool answers for the first task
    assert all(name.startswith("head.") for task in (0, 2) for name in network.task_tensors(task))
    with pytest.raises(OptionError, match="cannot be selected") as refused:
        L2P(pool=4, top=5)
    assert refused.value.option == "top"


@pytest.mark.parametrize(
    ("depth", "layers", "lengths"),
    [
        (1, None, [20]),
        (2, None, [5, 20]),
        (3, None, [5, 5, 20]),
        (7, None, [5, 5, 20, 20, 20]),
        (4, (1, 3), [5, 20]),
        (4, (-1,), [20]),
    ],
)
def test_the_first_two_layers_have_the_general_prompt(depth: int, layers: Any, lengths: list[int]) -> None:
    module = attached(DualPrompt(layers=layers), ViT((1, 8, 8), width=WIDTH, depth=depth, heads=HEADS))
    assert [module.parts[site.key]["prefix"].shape[2] for site in module.sites] == lengths
    assert len(module.parts) == len(module.sites)


def test_its_prompts_are_prefixes() -> None:
    backbone = tiny("bert")
    ids = samples(backbone, 1)
    module, prefix = attached(DualPrompt(2, 3), backbone), attached(Prefix(1, "flat"), backbone)
    for site in module.sites:
        nn.init.normal_(module.parts[site.key]["prefix"])
        prefix.parts[site.key]["prefix"].data = module.parts[site.key]["prefix"].data
    assert torch.equal(module.features(backbone, ids), prefix.features(backbone, ids))


def test_the_general_prompt_learns_on_and_old_answers_stay() -> None:
    network = isolated(DualPrompt, tasks=1, steps=2)
    images, first = samples(network.backbone, 3), network.module_of(0)
    before = network.answer(0, images).detach()
    isolation.start(network, 1)
    general, expert = (network.module_of(1).parts.get_parameter(f"attn_kv-{i}.prefix") for i in range(LAYERS))
    assert torch.equal(general, first.parts.get_parameter("attn_kv-0.prefix"))
    assert not torch.equal(expert, first.parts.get_parameter("attn_kv-1.prefix"))
    isolation.train(network, 2)
    newest = network.module_of(2).parts.get_parameter("attn_kv-0.prefix")
    assert not torch.equal(newest, general)  # it was trained
    assert torch.equal(network.answer(0, images), before)


def test_each_task_goes_on_from_the_general_prompt_of_the_task_before() -> None:
    """Not from the first task's: the third of three tasks tells the two apart."""
    network = isolated(DualPrompt, tasks=2, steps=2)
    isolation.start(network, 2)
    first, second, third = (network.module_of(task).parts.get_parameter("attn_kv-0.prefix") for task in range(3))
    assert not torch.equal(first, second)
    assert torch.equal(third, second)


def by_hand(module: CODAPrompt, key: str, query: Tensor) -> Tensor:
    """The weighted sum of all tasks' components for one query. (2, heads, length, head_dim)"""
    total = torch.zeros(2, HEADS, module.length, WIDTH // HEADS)
    for one in (*module.earlier, module):
        part: Any = one.parts[key]
        for prompt, near, attention in zip(part["P"].detach(), part["K"].detach(), part["A"].detach(), strict=True):
            total += cosine(query * attention, near) * prompt
    return total


def test_a_prompt_is_the_attended_sum_of_all_tasks_components() -> None:
    network = isolated(lambda: CODAPrompt(components=4, length=2), tasks=2, steps=2)
    backbone, images, prefix = network.backbone, samples(network.backbone, 3), Prefix(2, "flat")
    module: Any = network.module_of(1)
    found = asked(module, backbone, images)
    attached(prefix, backbone)
    for image, query, features in zip(images, module.query, found, strict=True):
        for site in module.sites:
            prefix.parts[site.key].register_parameter("prefix", nn.Parameter(by_hand(module, site.key, query)))
        torch.testing.assert_close(prefix.features(backbone, image[None])[0].detach(), features, rtol=0, atol=1e-5)
    module.earlier = []  # the break: without the first task's
    assert (asked(module, backbone, images) - found).abs().max() > 1e-4


def test_earlier_components_are_frozen_and_stored_with_their_own_task() -> None:
    network = isolated(lambda: CODAPrompt(components=4), tasks=1, steps=2)
    first: Any = network.module_of(0)
    before = copy.deepcopy(first.state_dict())
    isolation.train(network, 1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.state_dict().items())
    assert all(p.grad is None or not p.requires_grad for p in first.parameters())
    numbers = 4 * (2 * WIDTH * 4 + 2 * WIDTH) * LAYERS
    for task in (0, 1):
        kept = [t.numel() for name, t in network.task_tensors(task).items() if name.startswith("module.")]
        assert sum(kept) == numbers


def test_the_penalty_is_0_for_orthonormal_components_alone() -> None:
    module = attached(CODAPrompt(components=4, penalty=0.5), tiny("vit"))
    assert module.penalty().item() < 1e-12
    keys = module.parts["attn_kv-0"]["K"]
    keys.data[1] = keys.data[0]  # two entries of the 16 are 1 that should be 0
    assert module.penalty().item() == pytest.approx(0.5 * 2 / 16)
    alike = [attached(CODAPrompt(components=4, penalty=0.5), tiny("vit")) for _ in range(2)]  # from the same draws
    alike[1].earlier = alike[:1]  # 8 of the 64 entries are 1 that should be 0, for P, K and A in each layer
    assert alike[1].penalty().item() == pytest.approx(0.5 * 3 * LAYERS * 8 / 64)


def test_components_stand_in_the_first_five_layers_or_where_they_are_wanted() -> None:
    backbone = ViT((1, 8, 8), width=WIDTH, depth=6, heads=HEADS)
    assert [site.layer for site in attached(CODAPrompt(), backbone).sites] == [0, 1, 2, 3, 4]
    assert [site.layer for site in attached(CODAPrompt(layers=(0, 5)), backbone).sites] == [0, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "own", "shared"),  # numbers, of width 16 and one layer
    [
        ("l2p", 0, 10 * 5 * 16 + 10 * 16),
        ("dual_prompt", 2 * 20 * 16, 0),
        ("coda_prompt", 10 * (2 * 4 * 16 + 2 * 16), 0),
    ],
)
def test_a_run_on_digits_whose_tasks_are_not_told(tmp_path: Path, method: str, own: int, shared: int) -> None:
    router = ", router: key_query" if method == "dual_prompt" else ""  # the others speak for all tasks
    entry = f"isolation: {{name: {method}}}{router}"
    _, result, _ = runs.isolated(tmp_path, entry, "class-incremental", n_tasks=2)
    assert (result.accuracy[0][0] or 0) > 0.3  # chance is 0.2
    counts, head = result.counts["per_task"], 5 * 16 + 5
    assert counts["trainable"] == [own + shared + head] * 2
    assert counts["task_bytes"] == [4 * (own + head)] * 2 and counts["shared_bytes"] == [4 * shared] * 2
