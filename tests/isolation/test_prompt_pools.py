"""L2P, DualPrompt and CODA-Prompt: selection and attention written out, what tasks share, and what stays as it was."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.sites import blocks
from forgetlab.backbones.vit import ViT
from forgetlab.checks import isolation
from forgetlab.checks.backbones import FAMILIES, HEADS, LAYERS, WIDTH, samples, tiny
from forgetlab.plugins.options import OptionError
from forgetlab.plugins.registry import Plugin
from forgetlab.seeding import generator
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
    module, queries = attached(L2P(6, 2, 3, reads="tokens"), backbone), backbone(images).detach()
    module.keys.data = queries[:6] - queries.mean(0)  # the queries of such images are much alike
    nn.init.normal_(module.prompts)
    found, alone = asked(module, backbone, images), attached(Prompt(6), backbone)
    chosen = [best(module, query) for query in module.query]
    assert len({tuple(sorted(keys)) for keys in chosen}) > 1
    for image, keys, features in zip(images, chosen, found, strict=True):
        alone.parts["tokens-0"]["prompts"].data = module.prompts[0, keys].detach().flatten(0, 1).unsqueeze(0)
        torch.testing.assert_close(alone.features(backbone, image[None])[0].detach(), features, rtol=0, atol=1e-5)


def l2ps_code(
    vit: Any, prompts: Tensor, keys: Tensor, x: Tensor, query: Tensor, layers: tuple[int, ...], vote: bool, top: int = 3
) -> tuple[Tensor, Tensor]:
    """google-research/l2p on a ViT without class token: features by `classifier: prompt`, and their `reduce_sim`.

    prompts (layers, pool, length, d), keys (pool, d); prompts are put in front before their layer and stay.
    """
    normed, asking = (F.normalize(rows, dim=-1, eps=1e-6) for rows in (keys, query))
    index = (asking @ normed.T).topk(top).indices
    if vote:
        names, counts = np.unique(index.numpy(), return_counts=True)
        major = names[sorted(range(len(names)), key=lambda i: (-counts[i], i))[:top]]
        index = torch.as_tensor(major).expand(len(x), -1)
    batched = prompts[:, index].flatten(2, 3)  # (layers, B, top * length, d)
    reduced = (normed[index] * asking.unsqueeze(1)).sum() / len(x)
    h = vit.positions(vit.embed(F.unfold(x, vit.patch, stride=vit.patch).transpose(1, 2)))
    for layer, block in enumerate(vit.blocks):
        if layer in layers:
            h = torch.cat([batched[layers.index(layer)], h], dim=1)
        h = block(h)
    total = len(layers) * batched.shape[2]
    return vit.norm(h)[:, :total].mean(1), reduced


@pytest.mark.parametrize("batchwise", [False, True])
@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_it_learns_as_its_authors_code_does(layers: tuple[int, ...], batchwise: bool) -> None:
    backbone = tiny("vit")
    x, y, head = samples(backbone, 1), torch.arange(12) % 3, torch.randn(3, WIDTH, generator=generator("head"))
    module = attached(L2P(6, 2, 3, pull=0.25, batchwise=batchwise, layers=layers), backbone, spread=0.5).train()
    queries = backbone(x).detach()
    module.keys.data = queries[:6] - queries.mean(0)
    prompts, keys = (tensor.detach().clone().requires_grad_() for tensor in (module.prompts, module.keys))
    module.query = queries
    found = module.features(backbone, x)
    (F.cross_entropy(found @ head.T, y) + module.penalty()).backward()
    theirs, reduced = l2ps_code(backbone, prompts, keys, x, queries, layers, vote=batchwise)
    (F.cross_entropy(theirs @ head.T, y) - 0.25 * reduced).backward()
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.penalty(), 0.25 * (3 - reduced))
    torch.testing.assert_close(module.prompts.grad, prompts.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.keys.grad, keys.grad, rtol=1e-4, atol=1e-5)
    at_test, _ = l2ps_code(backbone, prompts, keys, x, queries, layers, vote=False)  # each sample for itself
    torch.testing.assert_close(module.eval().features(backbone, x), at_test, rtol=1e-5, atol=1e-5)
    assert torch.allclose(theirs, at_test, atol=1e-3) != batchwise


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("mlp", "gpt2")])
@pytest.mark.parametrize("pool", ["first", "mean", "first+mean"])
@torch.no_grad()
def test_the_head_reads_prompts_as_it_would_read_any_position(family: str, pool: str) -> None:
    """Of equal positions the mean is any of them, however the backbone pools: its own way and `averaged` agree."""
    backbone: Any = tiny(family)
    if family == "vit" or (family == "bert" and pool == "first+mean"):
        pool = "mean"
    elif pool != "mean":
        backbone.pool = pool
    x, last = samples(backbone, 1), blocks(backbone)[-1]
    row = torch.randn(12, 1, WIDTH, generator=generator("row"))

    def everywhere(_: Any, __: Any, left: Any) -> Any:
        states = row.expand_as(left[0] if isinstance(left, tuple) else left)
        return (states, *left[1:]) if isinstance(left, tuple) else states

    handle = last.register_forward_hook(everywhere)
    wanted = backbone(x)
    handle.remove()
    torch.testing.assert_close(backbone.averaged(row.expand(-1, 7, -1)), wanted)


def test_where_prompts_can_say_nothing_the_head_reads_tokens() -> None:
    class Plain(nn.Module):
        places: ClassVar = {"block": "blocks.*", "attn.kv": "blocks.*.attention.keys_values"}

        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.n_features = tiny("vit").get_submodule("blocks"), WIDTH

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).transpose(1, 2).expand(-1, -1, WIDTH)
            for block in self.blocks:  # type: ignore[union-attr]
                x = block(x)
            return x.mean(1)

    for backbone, told in ((tiny("gpt2"), "prompts see no later token"), (Plain().eval(), "no method 'averaged'")):
        with pytest.raises(OptionError, match=told) as refused:
            L2P().attach(backbone)
        assert refused.value.option == "reads"
        x = samples(backbone, 1)
        assert asked(attached(L2P(reads="tokens"), backbone), backbone, x).shape == (12, WIDTH)


def test_a_start_is_uniform_or_normal() -> None:
    for start, low, spread in (("uniform", 0.0, 0.01 / 12**0.5), ("normal", -1.0, 0.01)):
        module = attached(L2P(20, 20, 5, start=start, layers=(0, -1)), tiny("vit"))  # type: ignore[arg-type]
        assert module.prompts.shape == (2, 20, 20, WIDTH) and module.keys.shape == (20, WIDTH)
        for tensor in (module.prompts, module.keys):
            assert tensor.std().item() == pytest.approx(spread, rel=0.15) and tensor.min() >= low
            assert (tensor.min() < 0) == (start == "normal") and tensor.max() < (0.01 if start == "uniform" else 1)


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
    """The break: the batch selects at test too, as in the authors' code."""

    def selected(self) -> Any:
        self.training, was = True, self.training
        try:
            return super().selected()
        finally:
            self.training = was


@pytest.mark.slow
def test_a_batch_that_votes_is_found() -> None:
    def spread(kind: type[L2P]) -> Any:
        def make() -> L2P:
            return kind(pull=0.0, batchwise=True)

        return Plugin("isolation", kind.__name__, make)

    isolation.each_sample_for_itself(spread(L2P))
    with pytest.raises(AssertionError, match="in another batch"):
        isolation.each_sample_for_itself(spread(Votes))


def test_one_pool_is_trained_on_and_stored_once() -> None:
    network = isolated(L2P, tasks=1, steps=2)
    images, first = samples(network.backbone, 3), copy.deepcopy(network.shared)
    before = network.answer(0, images).detach()
    assert {name: tuple(t.shape) for name, t in first.items()} == {"prompts": (1, 10, 5, WIDTH), "keys": (10, WIDTH)}
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
        ("l2p, length: 2, top: 1", 0, 10 * 2 * 16 + 10 * 16),  # so that prompts see more than prompts
        ("l2p, length: 2, top: 1, batchwise: true", 0, 10 * 2 * 16 + 10 * 16),
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
