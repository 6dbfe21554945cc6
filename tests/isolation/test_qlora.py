"""QLoRA: codes and values are bitsandbytes', and what the base takes is what is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.checks import promises
from forgetlab.checks.backbones import samples, tiny
from forgetlab.checks.check import Check
from forgetlab.isolation import quantisation
from forgetlab.isolation.quantisation import DYNAMIC, LINEAR8, NF4, dequantised, quantised, quantised_linear
from forgetlab.plugins.registry import Plugin
from forgetlab.strategies.isolation.modules.low_rank.qlora import QLoRA


def weight(rows: int = 40, columns: int = 192) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def theirs(values: Tensor, twice: bool) -> tuple[Tensor, Any]:
    from bitsandbytes import functional

    return functional.quantize_4bit(values, blocksize=64, quant_type="nf4", compress_statistics=twice)


def test_the_tables_are_bitsandbytes() -> None:
    from bitsandbytes import functional

    torch.testing.assert_close(NF4, functional.get_4bit_type("nf4", device="cpu"), rtol=0, atol=1e-7)
    torch.testing.assert_close(DYNAMIC, functional.create_dynamic_map(), rtol=0, atol=1e-7)
    assert len(LINEAR8) == 255 and len(DYNAMIC.unique()) == 256


@pytest.mark.parametrize("shape", [(40, 192), (7, 30), (16, 16)])
def test_the_codes_are_bitsandbytes(shape: tuple[int, int]) -> None:
    values = weight(*shape)
    ours, (codes, state) = quantised(values, 4), theirs(values, twice=True)
    packed = ours["codes"].flatten()[: len(codes)]
    assert torch.equal(packed, codes.flatten())
    assert torch.equal(ours["scales"], state.absmax)
    torch.testing.assert_close(ours["sizes"], state.state2.absmax, rtol=0, atol=0)
    torch.testing.assert_close(ours["mean"], state.offset, rtol=0, atol=1e-6)


def values_are_bitsandbytes() -> float:
    from bitsandbytes import functional

    values = weight()
    return (
        (dequantised(quantised(values, 4), (40, 192)) - functional.dequantize_4bit(*theirs(values, True)))
        .abs()
        .max()
        .item()
    )


def test_the_values_are_bitsandbytes() -> None:
    assert values_are_bitsandbytes() < 1e-6


def test_another_table_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The break: 16 even steps in the place of the normal's quantiles."""
    monkeypatch.setattr(quantisation, "NF4", torch.linspace(-1, 1, 16))
    assert values_are_bitsandbytes() > 1e-2


def test_rows_in_8_bits_are_bitsandbytes() -> None:
    from bitsandbytes import functional

    values = weight()
    codes, scales, _ = functional.int8_vectorwise_quant(values)
    ours = quantised(values, 8)
    assert torch.equal(ours["codes"].int() - 127, codes.int())
    torch.testing.assert_close(ours["scales"], scales, rtol=0, atol=0)
    torch.testing.assert_close(dequantised(ours, (40, 192)), codes * scales[:, None] / 127)


def test_what_is_on_the_table_stays_and_blocks_of_zeros_too() -> None:
    values = torch.zeros(3, 64)
    values[0, :16] = values[2, -16:] = 2 * NF4
    codes = quantised(values, 4)
    torch.testing.assert_close(codes["codes"][1], torch.full((32,), 0x77, dtype=torch.uint8))  # 7 is 0
    torch.testing.assert_close(dequantised(codes, (3, 64)), values, rtol=0, atol=0.02)  # the scales have 8 bits
    torch.testing.assert_close(dequantised(quantised(values, 8), (3, 64)), values, rtol=0, atol=1 / 127)
    assert not dequantised(quantised(torch.zeros(2, 64), 8), (2, 64)).any()


def test_finer_is_nearer() -> None:
    values = weight()
    error = {bits: (dequantised(quantised(values, bits), (40, 192)) - values).square().mean() for bits in (4, 8)}
    assert 20 * error[8] < error[4] < 0.02


@pytest.mark.parametrize("bits", [4, 8])
def test_the_product_and_its_gradient_are_those_of_the_dense_weight(bits: int) -> None:
    kept, bias = quantised(weight(), bits), torch.randn(40)
    x = torch.randn(5, 2, 192, requires_grad=True)
    ours = quantised_linear(x, kept, (40, 192), bias)
    (gradient,) = torch.autograd.grad(ours.square().sum(), x)
    dense = F.linear(x, dequantised(kept, (40, 192)), bias)
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(gradient, torch.autograd.grad(dense.square().sum(), x)[0])


def test_no_dense_copy_waits_for_the_backward_pass() -> None:
    saved: list[Tensor] = []
    x = torch.randn(2, 192, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        quantised_linear(x, quantised(weight(), 4), (40, 192), None).sum()
    assert all(t.numel() < 40 * 192 for t in saved)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        F.linear(x, weight()).sum()  # the same measure sees it where there is one
    assert any(t.numel() == 40 * 192 for t in saved)


def begun(backbone: nn.Module, bits: Any = 4) -> tuple[QLoRA, dict[str, Tensor]]:
    torch.manual_seed(1)
    shared: dict[str, Tensor] = {}
    module = QLoRA(bits, rank=4)
    module.attach(backbone)
    module.begin([], [], shared, backbone)
    return module, shared


@pytest.mark.parametrize("family", ["vit", "gpt2"])
@torch.no_grad()
def test_it_is_lora_on_a_backbone_with_the_dequantised_weights(family: str) -> None:
    backbone = tiny(family)
    module, _ = begun(backbone)
    by_hand = copy.deepcopy(backbone)
    for site in module.sites:
        part = module.parts[site.key]
        nn.init.normal_(part.get_parameter("B"), std=0.1)
        dense = dequantised(quantised(site.weight, 4), (site.out_dim, site.in_dim))
        dense += 16 / 4 * part.get_parameter("B") @ part.get_parameter("A")
        stored = by_hand.get_submodule(site.path).get_parameter("weight")
        turned = stored.T if family == "gpt2" else stored
        turned[site.part].copy_(dense)
    x = samples(backbone, seed=3)
    torch.testing.assert_close(module.features(backbone, x), by_hand(x), rtol=0, atol=2e-5)


def test_the_base_takes_what_the_paper_says() -> None:
    """4 bits and 0.127 for the constants: 8 / 64 + 32 / (64 * 256)."""
    kept = quantised(torch.randn(128, 1024), 4)
    bits = 8 * sum(t.nbytes for t in kept.values() if t.dim()) / (128 * 1024)
    assert bits == 4 + 8 / 64 + 32 / (64 * 256)
    assert sum(t.nbytes for t in quantised(torch.randn(128, 1024), 8).values()) == 128 * 1024 + 4 * 128


def test_the_base_is_kept_once_and_counted() -> None:
    backbone = tiny("vit")
    module, shared = begun(backbone)
    dense = sum(site.weight.nbytes for site in module.sites)
    assert module.base_bytes() == sum(t.nbytes for t in shared.values()) < dense / 6
    later = QLoRA(rank=4)
    later.attach(backbone)
    later.begin([], [module], shared, backbone)
    assert later.base_bytes() == module.base_bytes() == sum(t.nbytes for t in shared.values())
    assert {name.rsplit(".", 1)[1] for name in later.state_dict()} == {"A", "B"}
    coarse, _ = begun(backbone, 8)
    assert module.base_bytes() < coarse.base_bytes() < dense / 2


def eight(rank: int = 4, sites: tuple[Any, ...] = ("attn.q", "mlp.in")) -> QLoRA:
    return QLoRA(8, rank, sites=sites)


@pytest.mark.slow
@pytest.mark.parametrize("check", promises.CHECKS["isolation"])
def test_8_bits_keep_the_promises_too(check: Check) -> None:
    check(Plugin("isolation", "eight", eight))
