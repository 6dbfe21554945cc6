"""Attention with extra keys and values: against transformers' own, attention written out, and peft's prefixes."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from forgetlab import torchvision_ops
from forgetlab.backbones import attention
from forgetlab.backbones.attention import attend, causal_mask, extend, prepend_mask, use, widen
from forgetlab.backbones.encoders import TextEncoder
from forgetlab.checks.backbones import samples, tiny
from forgetlab.seeding import generator

BATCH, HEADS, LENGTH, WIDTH, ADDED = 2, 2, 5, 8, 3  # heads and their width as those of the tiny backbones
LOWEST = torch.finfo(torch.float64).min


def drawn(*shape: int, name: str = "drawn") -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(name))


def layer(causal: bool) -> Any:
    """What transformers hands to an attention function, as far as it is asked."""
    module: Any = nn.Module()
    module.is_causal, module.config = causal, SimpleNamespace(_attn_implementation=attention.NAME)
    return module


def put_in_front(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    more = [drawn(len(k), HEADS, ADDED, WIDTH, name=name).to(k.dtype) for name in ("k", "v")]
    return torch.cat([more[0], k], 2), torch.cat([more[1], v], 2)


def written_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention over the keys that are seen. (B, T, heads, d/heads)"""
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(WIDTH)
    weights = scores.exp() * seen
    return torch.einsum("bhij,bhjd->bihd", weights / weights.sum(-1, keepdim=True), v)


def masks(causal: bool) -> dict[str, tuple[Tensor | None, Tensor]]:
    """By form: the mask that a model gives, and which real keys each token sees."""
    real = torch.tensor([[True] * LENGTH, [True] * 3 + [False] * 2])[:, None, None]
    square = real & causal_mask(LENGTH) if causal else real.expand(-1, -1, LENGTH, -1)
    alone = causal_mask(LENGTH) if causal else torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    added = {
        name: torch.zeros(m.shape).double().masked_fill(~m, LOWEST) for name, m in [("row", real), ("all", square)]
    }
    forms: dict[str, tuple[Tensor | None, Tensor]] = {
        "none": (None, alone),
        "boolean": (square, square),
        "additive": (added["all"], square),
    }
    return forms if causal else forms | {"boolean row": (real, square), "additive row": (added["row"], square)}


@pytest.mark.parametrize("causal", [False, True])
def test_more_keys_are_seen_by_all_and_the_mask_holds_for_the_others(causal: bool) -> None:
    q, k, v = (drawn(BATCH, HEADS, LENGTH, WIDTH, name=name) for name in ("q", "real k", "real v"))
    module = layer(causal)
    for form, (mask, seen) in masks(causal).items():
        without, _ = attend(module, q, k, v, mask)
        assert (without - written_out(q, k, v, seen)).abs().max() < 1e-12, form
        with extend(module, put_in_front):
            given, _ = attend(module, q, k, v, mask)
        theirs = written_out(q, *put_in_front(k, v), widen(seen, ADDED))
        assert (given - theirs).abs().max() < 1e-12, form
        assert (given - without).abs().max() > 0.1, form


def test_a_mask_widened_at_the_wrong_end_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "widen", lambda mask, added: nn.functional.pad(mask, (0, added), value=1.0))
    with pytest.raises(AssertionError, match="boolean"):
        test_more_keys_are_seen_by_all_and_the_mask_holds_for_the_others(True)


def test_extensions_compose_in_order_and_go_one_by_one() -> None:
    q, k, v = (drawn(BATCH, HEADS, LENGTH, WIDTH, name=name) for name in ("q", "real k", "real v"))
    module = layer(False)
    bare, _ = attend(module, q, k, v, None)
    doubled = extend(module, lambda k, v: (k, 2 * v))
    longer = extend(module, put_in_front)
    both, _ = attend(module, q, k, v, None)
    assert torch.equal(both, attend(layer(False), q, *put_in_front(k, 2 * v), None)[0])  # the first one acts first
    assert not torch.equal(both, attend(layer(False), q, *(put_in_front(k, v)[0], 2 * put_in_front(k, v)[1]), None)[0])
    doubled.remove()
    doubled.remove()  # once more does nothing
    assert torch.equal(attend(module, q, k, v, None)[0], attend(layer(False), q, *put_in_front(k, v), None)[0])
    longer.remove()
    assert torch.equal(attend(module, q, k, v, None)[0], bare)


@pytest.mark.parametrize("name", ["bert", "gpt2", "hf_vit"])
def test_without_an_extension_it_is_transformers_own_to_the_bit(name: str) -> None:
    backbone = tiny(name)
    encoder, x = cast(Any, backbone.encoder), samples(backbone, 0)
    wrapped = backbone(x)
    given: dict[str, Any] = {"attention_mask": cast(TextEncoder, backbone).real(x)} if name != "hf_vit" else {}
    x = backbone.scaled(x) if name == "hf_vit" else x  # type: ignore[operator]

    def run(implementation: str) -> tuple[Tensor, ...]:
        encoder.set_attn_implementation(implementation)
        hidden = encoder(x, **given).last_hidden_state
        return hidden, *torch.autograd.grad(hidden.square().sum(), list(encoder.parameters()), allow_unused=True)

    pairs = list(zip(run("sdpa"), run(attention.NAME), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs if one is not None)
    encoder.set_attn_implementation("sdpa")
    again = samples(backbone, 0)
    assert torch.equal(backbone(again), wrapped)


def attentions(backbone: nn.Module) -> list[nn.Module]:
    """The modules that transformers hands to its attention functions."""
    names = ("BertSelfAttention", "GPT2Attention", "ViTAttention")
    return [module for module in backbone.modules() if type(module).__name__ in names]


@pytest.mark.parametrize("name", ["bert", "gpt2", "hf_vit"])
def test_a_deep_copy_carries_no_extension_and_a_dead_module_none_either(name: str) -> None:
    backbone = tiny(name)
    x, bare = samples(backbone, 0), tiny(name)(samples(backbone, 0))
    handles = [extend(module, put_in_front) for module in attentions(backbone)]
    changed, twin = backbone(x), copy.deepcopy(backbone)
    assert (changed - bare).abs().max() > 1e-3 and torch.equal(twin(x), bare)
    assert torch.equal(backbone(x), changed)
    watched = weakref.ref(attentions(backbone)[0])
    for handle in handles:
        handle.remove()
    assert torch.equal(backbone(x), bare)
    extend(attentions(backbone)[0], put_in_front)
    del backbone, twin
    gc.collect()
    assert watched() is None


@torch.no_grad()
def test_a_causal_token_sees_no_later_one_behind_a_prefix() -> None:
    backbone = tiny("gpt2")
    encoder = cast(Any, backbone.encoder)
    ids = samples(backbone, 1).clamp(min=1)
    other = ids.clone()
    other[:, 5:] = ids[:, 5:] % 40 + 5
    for module in attentions(backbone):
        extend(module, put_in_front)
    for mask in (None, torch.ones_like(ids)):
        one, two = (encoder(x, attention_mask=mask).last_hidden_state for x in (ids, other))
        assert torch.equal(one[:, :5], two[:, :5]) and (one[:, 5:] - two[:, 5:]).abs().max() > 1e-2


def test_a_module_that_would_ignore_an_extension_is_refused() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4)
    model = BertModel(config)
    for module in (attentions(model)[0], nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"does not attend by forgetlab\.backbones\.attention; call `use` first"):
            extend(module, put_in_front)
    use(model)
    extend(attentions(model)[0], put_in_front).remove()


def test_masks_of_longer_sequences() -> None:
    """Each form is checked by what attention over the longer sequence sees."""
    for causal in (False, True):
        for form, (mask, seen) in masks(causal).items():
            wide = prepend_mask(mask, ADDED)
            if mask is None or wide is None:
                assert mask is None and wide is None
                continue
            visible = wide if wide.dtype == torch.bool else wide > LOWEST / 2
            real, extra = visible[..., -LENGTH:], visible[..., :ADDED]
            assert extra[..., -LENGTH:, :].all() and wide.dtype == mask.dtype, form
            assert wide.shape[-2:] == (1 if "row" in form else ADDED + LENGTH, ADDED + LENGTH), form
            if "row" in form:
                assert torch.equal(real.expand(-1, -1, LENGTH, -1), seen), form
            else:
                assert torch.equal(real[..., ADDED:, :], seen) and not real[..., :ADDED, :].any(), form
                assert torch.equal(extra[:1, :1, :ADDED], causal_mask(ADDED)), form


@torch.no_grad()
def test_more_tokens_before_a_block_equal_attention_written_out() -> None:
    """A block's attention over three more tokens, masked by `prepend_mask`, seen from the real tokens."""
    q, k, v = (drawn(BATCH, HEADS, ADDED + LENGTH, WIDTH, name=name) for name in ("q", "longer k", "longer v"))
    for causal in (False, True):
        for form, (mask, seen) in masks(causal).items():
            wide = prepend_mask(mask, ADDED)
            given, _ = attend(layer(causal), q, k, v, wide)
            theirs = written_out(q[:, :, ADDED:], k, v, widen(seen, ADDED))
            assert (given[:, ADDED:] - theirs).abs().max() < 1e-12, form


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_prefix_is_that_of_peft(name: str) -> None:
    """peft counts the real tokens' positions from behind the prefix, so they are handed over."""
    torchvision_ops.ensure()
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    backbone = tiny(name)
    encoder, ids = cast(Any, backbone.encoder), samples(backbone, 2).clamp(min=1)
    positions = torch.arange(ADDED, ADDED + ids.shape[1]).expand_as(ids)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    theirs = copy.deepcopy(encoder)
    theirs.set_attn_implementation("sdpa")
    config = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=ADDED)
    model: Any = get_peft_model(theirs, config).eval()
    table = model.prompt_encoder["default"].embedding.weight  # (ADDED, layers * 2 * d)
    pairs = table.view(ADDED, 2, 2, 2, -1).permute(1, 2, 3, 0, 4)  # (layer, k or v, head, ADDED, d/heads)
    for module, (more_k, more_v) in zip(attentions(encoder), pairs, strict=True):
        extend(module, lambda k, v, a=more_k, b=more_v: (front(a, k), front(b, v)))
    ours = encoder(ids, attention_mask=mask, position_ids=positions).last_hidden_state
    assert torch.equal(ours, model(input_ids=ids, attention_mask=mask).last_hidden_state)
    unshifted = encoder(ids, attention_mask=mask).last_hidden_state
    assert (ours - unshifted).abs().max() > 1e-2


def front(more: Tensor, others: Tensor) -> Tensor:
    return torch.cat([more.expand(len(others), -1, -1, -1), others], 2)
