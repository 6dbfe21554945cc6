"""Prompts before the first block and before each: peft's, sequences put together by hand, what stays of an encoder."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forgetlab.checks import isolation
from forgetlab.checks.backbones import HEADS, LAYERS, WIDTH, samples, tiny
from forgetlab.isolation.module import Isolation
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins.options import OptionError
from forgetlab.strategies.isolation.modules.prompts.deep_prompt import DeepPrompt
from forgetlab.strategies.isolation.modules.prompts.p_tuning import PTuning
from forgetlab.strategies.isolation.modules.prompts.prefix import Prefix
from forgetlab.strategies.isolation.modules.prompts.prompt import Prompt
from helpers.modules import attached

LENGTH = 3


def own(module: Isolation) -> list[Tensor]:
    """Each layer's tokens."""
    return [tensor.detach() for tensor in module.parameters()]


@torch.no_grad()
def vit_by_hand(backbone: Any, images: Tensor, given: list[Tensor], stay: bool) -> Tensor:
    """The backbone with tokens before its first blocks, which go through all blocks or leave with each."""
    patches = nn.functional.unfold(images, backbone.patch, stride=backbone.patch).transpose(1, 2)
    x, added = backbone.positions(backbone.embed(patches)), 0
    for i, block in enumerate(backbone.blocks):
        if i < len(given):
            x, added = torch.cat([given[i].expand(len(x), -1, -1), x], dim=1), added + given[i].shape[-2]
        x = block(x)
        if not stay or block is backbone.blocks[-1]:
            x, added = x[:, added:], 0
    return backbone.norm(x).mean(1)


def test_prompts_are_tokens_in_front_that_leave_before_pooling() -> None:
    backbone = tiny("vit")
    images = samples(backbone, 1)
    for module, stay in ((Prompt(LENGTH), True), (PTuning(LENGTH), True), (DeepPrompt(LENGTH), False)):
        tokens = own(attached(module, backbone)) if not isinstance(module, PTuning) else []
        if isinstance(module, PTuning):
            tokens = [attached(module, backbone).encoded(module.parts["tokens-0"]).detach()]
        found = module.features(backbone, images).detach()
        torch.testing.assert_close(found, vit_by_hand(backbone, images, tokens, stay), rtol=0, atol=1e-5)
        other = vit_by_hand(backbone, images, tokens, not stay)  # the break: they leave too early, or too late
        assert (found - other).abs().max() > 1e-3


def peft_model(backbone: Any, config: Any, positions_shift: bool = True) -> Any:
    """peft's model on a copy of a text encoder, where real tokens are at their own positions again."""
    from peft import get_peft_model

    encoder = copy.deepcopy(backbone.encoder)
    encoder.set_attn_implementation("sdpa")
    if positions_shift:
        table = position_table(encoder)
        table.data = table.data.roll(config.num_virtual_tokens, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft, about a name in transformers
        return get_peft_model(encoder, config).eval()


def position_table(encoder: Any) -> Any:
    return encoder.wpe.weight if hasattr(encoder, "wpe") else encoder.embeddings.position_embeddings.weight


@torch.no_grad()
def pooled(backbone: Any, theirs: Any, ids: Tensor) -> Tensor:
    real = backbone.real(ids)
    hidden = theirs(ids, attention_mask=real.long()).last_hidden_state
    return backbone._pooled(hidden[:, -ids.shape[1] :], real)


def prompt_gap(name: str, length: int, positions_shift: bool = True) -> float:
    """How far features are from those under peft's prompt tuning with the same prompt."""
    from peft import PromptTuningConfig

    backbone = tiny(name)
    ids = samples(backbone, 1)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=length)
    theirs = peft_model(backbone, config, positions_shift)
    encoder = theirs.base_model
    entered, positions = theirs.prompt_encoder["default"].embedding.weight, position_table(encoder)[:length]
    if name == "bert":  # what enters the first block has been normalised
        first = entered + encoder.embeddings.token_type_embeddings.weight[0]
        entered = encoder.embeddings.LayerNorm(first + positions)
    else:
        entered = entered + positions
    ours = attached(Prompt(length), backbone)
    ours.parts["tokens-0"]["prompts"].data = entered.detach().unsqueeze(0)
    return (ours.features(backbone, ids) - pooled(backbone, theirs, ids)).abs().max().item()


def test_a_prompt_is_pefts() -> None:
    assert prompt_gap("bert", LENGTH) == prompt_gap("bert", 1) == prompt_gap("gpt2", 1) == 0.0
    assert prompt_gap("bert", LENGTH, positions_shift=False) > 1e-2  # the break: positions count on from the prompt


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_flat_prefix_is_pefts(name: str) -> None:
    from peft import PrefixTuningConfig

    backbone = tiny(name)
    ids = samples(backbone, 1)
    for shift, gap in ((True, 0.0), (False, 1e-2)):  # the break: positions count on from the prefix
        config = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH)
        theirs = peft_model(backbone, config, shift)
        rows = theirs.prompt_encoder["default"].embedding.weight.detach()
        layers = rows.view(LENGTH, 2 * LAYERS, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3).split(2)
        ours = attached(Prefix(LENGTH, "flat"), backbone)
        for site, prefix in zip(ours.sites, layers, strict=True):
            ours.parts[site.key]["prefix"].data = prefix.contiguous()
        found = (ours.features(backbone, ids) - pooled(backbone, theirs, ids)).abs().max()
        assert found == 0.0 if shift else found > gap


def test_prefixes_and_deep_prompts_in_some_layers_alone() -> None:
    backbone = tiny("vit")
    images = samples(backbone, 1)
    for kind in (Prefix, DeepPrompt):
        module = attached(kind(LENGTH, layers=(-1,)), backbone)
        assert [site.layer for site in module.sites] == [LAYERS - 1]
        assert (module.features(backbone, images) - backbone(images)).abs().max() > 1e-3
    assert module.lowest() == LAYERS - 1
    with pytest.raises(OptionError, match="no layer 2"):
        attached(DeepPrompt(LENGTH, layers=(2,)), backbone)


@torch.no_grad()
@pytest.mark.parametrize("module", [Prompt(LENGTH), PTuning(LENGTH), DeepPrompt(LENGTH), Prefix(LENGTH)])
def test_where_attention_is_causal_no_token_sees_a_later_one(module: Isolation) -> None:
    backbone: Any = tiny("gpt2")
    attached(module, backbone)
    ids = torch.arange(1, 17).view(2, 8)
    changed = ids.clone()
    changed[:, 5] = 40
    real = backbone.real(ids)
    given = {"attention_mask": backbone._mask(real), "position_ids": backbone._positions(real), "use_cache": False}
    with module.active(backbone, ids):
        before, after = (backbone.encoder(one, **given).last_hidden_state for one in (ids, changed))
    assert torch.equal(before[:, :5], after[:, :5]) and (before[:, 5:] != after[:, 5:]).any()


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_its_members() -> None:
    backbone = tiny("bert")
    ids = samples(backbone, 1)
    ensemble, single = attached(Prompt(LENGTH, ensemble=3), backbone), attached(Prompt(LENGTH), backbone)
    features = []
    for prompt in own(ensemble)[0]:
        single.parts["tokens-0"]["prompts"].data = prompt.unsqueeze(0)
        features.append(single.features(backbone, ids))
    torch.testing.assert_close(ensemble.features(backbone, ids), torch.stack(features).mean(0))
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_a_prompt_may_start_as_rows_of_the_vocabulary() -> None:
    for name, table in (("bert", "encoder.embeddings.word_embeddings"), ("gpt2", "encoder.wte")):
        backbone = tiny(name)
        module = attached(Prompt(LENGTH, "vocabulary"), backbone)
        rows = backbone.get_submodule(table).get_parameter("weight")
        assert all((rows == token).all(1).any() for token in own(module)[0][0])
        module.parts["tokens-0"]["prompts"].data.zero_()
        assert rows.abs().min() > 0  # it is a copy
    with pytest.raises(OptionError, match="no vocabulary") as refused:
        attached(Prompt(LENGTH, "vocabulary"), tiny("vit"))
    assert refused.value.option == "start"


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", ["lstm", "mlp"])
def test_the_encoder_is_pefts(kind: Any) -> None:
    from peft import PromptEncoder, PromptEncoderConfig

    hidden = WIDTH // 2 if kind == "lstm" else WIDTH
    config = PromptEncoderConfig(
        num_virtual_tokens=LENGTH,
        token_dim=WIDTH,
        num_transformer_submodules=1,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=hidden,
        encoder_num_layers=2,
    )
    theirs, ours = PromptEncoder(config), attached(PTuning(LENGTH, kind), tiny("bert"))
    ours.mlp.load_state_dict(theirs.mlp_head.state_dict())
    if kind == "lstm":
        ours.lstm.load_state_dict(theirs.lstm_head.state_dict())
    part = ours.parts["tokens-0"]
    part["rows"].data = theirs.embedding.weight.data.clone()
    expected = theirs(torch.arange(LENGTH).unsqueeze(0))[0]
    assert torch.equal(ours.encoded(part), expected)
    assert not torch.equal(ours.encoded({"rows": part["rows"].flip(0)}), expected)


def trained(backbone: nn.Module, factory: type[PTuning], encoder: Any) -> IsolatedNetwork:
    network = IsolatedNetwork(backbone, lambda: factory(LENGTH, encoder, (7, 9)), task_known=True)
    data = isolation.start(network, 0)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    network.train()
    isolation.loss(network, data[0]).backward()
    optimizer.step()
    return network.eval()


def stores_the_tokens_alone(network: IsolatedNetwork, ids: Tensor) -> None:
    before = network.answer(0, ids)
    network.module_of(0).materialise()
    assert torch.equal(network.answer(0, ids), before)
    kept = {name: t for name, t in network.task_tensors(0).items() if name.startswith("module.")}
    assert [tuple(tensor.shape) for tensor in kept.values()] == [(LENGTH, WIDTH)]


class KeepsTheEncoder(PTuning):
    """The break: what only training needs is stored with the task."""

    def materialise(self) -> None:
        pass


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_the_tokens_left_after_training_answer_as_the_encoder_did_to_the_bit(encoder: str) -> None:
    backbone = tiny("bert")
    ids = samples(backbone, 2)
    stores_the_tokens_alone(trained(backbone, PTuning, encoder), ids)
    with pytest.raises(AssertionError):
        stores_the_tokens_alone(trained(backbone, KeepsTheEncoder, encoder), ids)


@pytest.mark.slow
def test_anchors_stand_between_the_tokens_and_stay_as_they_are() -> None:
    backbone: Any = tiny("bert")
    module = attached(PTuning(5, anchors=(7, 9)), backbone)
    table = backbone.encoder.embeddings.word_embeddings.weight
    part = module.parts["tokens-0"]
    found, tokens = module.tokens(part, module.sites[0], torch.zeros(1)), module.encoded(part)
    assert torch.equal(found, torch.cat([tokens[:2], table[7:8], tokens[2:4], table[9:10], tokens[4:]]))
    assert "anchored" not in module.state_dict()
    for name, anchors in (("bert", (50,)), ("bert", (-1,)), ("vit", (0,))):
        with pytest.raises(OptionError) as refused:
            attached(PTuning(5, anchors=anchors), tiny(name))
        assert refused.value.option == "anchors"


def test_deep_prompts_start_as_vpts_do() -> None:
    """Uniform within sqrt(6 / (3 * 16 * 16 + 768)) for ViT-B/16, whose width is 768."""
    site = next(iter(attached(DeepPrompt(), tiny("vit")).sites))
    torch.manual_seed(0)
    wide: Any = DeepPrompt(200).make(type("Wide", (), {"in_dim": 768})())  # type: ignore[arg-type]
    bound = math.sqrt(6 / (3 * 16 * 16 + 768))
    assert 0.999 * bound < wide["prompt"].abs().max() <= bound and site.in_dim == WIDTH
