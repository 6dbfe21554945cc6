"""Objectives without labels: what they ask, against sums written out, and whether a backbone learns from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.backbones.cnn import CNN
from forgetlab.backbones.mlp import MLP
from forgetlab.backbones.transformer import MASK_ID, VOCABULARY, Transformer
from forgetlab.backbones.vit import ViT
from forgetlab.data.datasets import as_input, dataset
from forgetlab.experiment import Augment
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.training import pretraining_objectives
from forgetlab.training.pretraining_objectives import (
    Causal,
    Contrastive,
    DrawName,
    Masked,
    Objective,
    Pieces,
    made,
    masked,
    nt_xent,
)

LENGTH, SMALL = 12, 600
TEXTS = [
    "the ship sailed over the sea and the sea was calm",
    "the team won the game and the fans sang in the rain",
    "the court heard the case and the judge read the law",
    "the sun set over the sea and the sky was red",
]


def names(n: int, epoch: int = 0) -> list[DrawName]:
    return [("train", 0, epoch, row) for row in range(n)]


def transformer(causal: bool = False, vocabulary: int = SMALL) -> Transformer:
    torch.manual_seed(0)
    return Transformer((LENGTH,), width=16, depth=2, heads=2, vocabulary=vocabulary, causal=causal)


def ids(n: int, vocabulary: int = SMALL) -> Tensor:
    """[CLS], pieces, [SEP], and in every second text four places of padding."""
    x = torch.randint(MASK_ID + 1, vocabulary, (n, LENGTH), generator=generator("ids"), dtype=torch.int32)
    x[:, 0], x[:, -1], x[1::2, -5] = 101, 102, 102
    x[1::2, -4:] = 0
    return x


def head_for(backbone: nn.Module, objective: str, x: Tensor, **options: Any) -> Objective:
    torch.manual_seed(0)
    return made({"objective": objective, **options}, Augment(crop=1, brightness=0.2), backbone, x)


def losses(backbone: nn.Module, objective: Objective, x: Tensor, steps: int, lr: float = 3e-3) -> list[float]:
    optimizer = torch.optim.Adam([*backbone.parameters(), *objective.parameters()], lr=lr)
    found = []
    for epoch in range(steps):
        loss = objective.loss(backbone, x, names(len(x), epoch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_nt_xent_is_the_double_sum_of_its_paper() -> None:
    z = F.normalize(torch.randn(10, 4, generator=generator("z"), dtype=torch.float64), dim=1)
    total = 0.0
    for i in range(10):
        others = [math.exp(float(z[i] @ z[k]) / 0.3) for k in range(10) if k != i]
        total -= math.log(math.exp(float(z[i] @ z[(i + 5) % 10]) / 0.3) / sum(others))
    assert nt_xent(z, 0.3).item() == pytest.approx(total / 10, rel=1e-12)


def test_nt_xent_is_least_where_views_agree_and_images_differ() -> None:
    apart = torch.eye(4).repeat(2, 1)
    assert nt_xent(apart, 0.01).item() < 1e-6 < nt_xent(apart.roll(1, 0)[:8], 0.5).item()
    assert nt_xent(torch.ones(8, 1), 0.5).item() == pytest.approx(math.log(7)), "all alike: one of seven"


def test_masking_asks_what_bert_asks() -> None:
    """15 % of the pieces; of these 80 % are hidden, 10 % shown as any other piece, 10 % as they are."""
    backbone, x = transformer(vocabulary=VOCABULARY), ids(4000, VOCABULARY)
    shown, asked = masked(x, backbone, 0.15, names(len(x)))
    may = backbone.pieces(x)
    assert not asked[~may].any() and torch.equal(shown[~asked], x[~asked])
    n, k = int(may.sum()), int(asked.sum())
    assert stats.chisquare([k, n - k], [0.15 * n, 0.85 * n]).pvalue > 0.01
    hidden, same = (shown == MASK_ID)[asked].sum().item(), (shown == x)[asked].sum().item()
    kinds = [hidden, k - hidden - same, same]
    assert stats.chisquare(kinds, [0.8 * k, 0.1 * k, 0.1 * k]).pvalue > 0.01
    others = shown[asked & (shown != MASK_ID) & (shown != x)]
    assert others.min() > MASK_ID and others.max() < VOCABULARY
    spread = torch.histc(others.float(), 10, MASK_ID + 1, VOCABULARY)
    assert stats.chisquare(spread.numpy()).pvalue > 0.01
    places = asked[::2, 1:-1].sum(0)
    assert stats.chisquare(places.numpy()).pvalue > 0.01, "no place is asked more often"


def test_what_a_sample_draws_depends_on_its_name_alone() -> None:
    backbone, x = transformer(), ids(6)
    whole = masked(x, backbone, 0.5, names(6))
    part = masked(x[[4, 1]], backbone, 0.5, [names(6)[4], names(6)[1]])
    assert all(torch.equal(one[[4, 1]], other) for one, other in zip(whole, part, strict=True))
    assert not torch.equal(whole[1], masked(x, backbone, 0.5, names(6, epoch=1))[1])
    images, cnn = torch.rand(6, 1, 8, 8, generator=generator("images")), CNN((1, 8, 8), (4,)).eval()
    head = Contrastive(cnn, Augment(rotation=90.0))
    views = head._projected(cnn, images, names(6)).unflatten(0, (2, 6))
    alone = head._projected(cnn, images[[4, 1]], [names(6)[4], names(6)[1]]).unflatten(0, (2, 2))
    torch.testing.assert_close(views[:, [4, 1]], alone, rtol=0, atol=1e-6)
    assert not torch.allclose(views[0], views[1]), "the two views are two"


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_losses_over_pieces_are_written_out_ones(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, x = transformer(objective == "causal"), ids(5)
    head = head_for(backbone, objective, x)
    assert isinstance(head, Pieces)
    nn.init.normal_(head.bias)
    shown, asked = masked(x, backbone, 0.15, names(5)) if objective == "masked" else (x, backbone.pieces(x))
    states = backbone.states(shown)
    total, right = [], []
    for row, place in asked.nonzero().tolist():
        answering = states[row, place if objective == "masked" else place - 1]
        logits = backbone.embed.weight @ answering + head.bias
        total.append(-logits.log_softmax(0)[int(x[row, place])])
        right.append(int(logits.argmax()) == int(x[row, place]))
    loss = head.loss(backbone, x, names(5))
    torch.testing.assert_close(loss, torch.stack(total).mean())
    torch.testing.assert_close(head.nats(backbone, x, names(5)), torch.stack(total))
    assert head.right(backbone, x, names(5)).tolist() == right
    expected = torch.autograd.grad(loss, [*backbone.parameters(), head.bias])
    monkeypatch.setattr(pretraining_objectives, "ROWS", 3)  # some places at a time
    loss = head.loss(backbone, x, names(5))
    for one, other in zip(expected, torch.autograd.grad(loss, [*backbone.parameters(), head.bias]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_batch_in_which_nothing_is_asked_has_loss_zero() -> None:
    backbone = transformer()
    head = Masked(backbone)
    x = torch.zeros(2, LENGTH, dtype=torch.int32)
    loss = head.loss(backbone, x, names(2))
    loss.backward()
    assert loss.item() == 0 and len(head.right(backbone, x, names(2))) == 0


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_the_output_layer_is_the_embedding_until_it_is_frozen(objective: str) -> None:
    backbone, x = transformer(objective == "causal"), ids(4)
    head = head_for(backbone, objective, x)
    assert isinstance(head, Pieces) and [name for name, _ in head.named_parameters()] == ["bias"]
    with torch.no_grad():
        before = head.nats(backbone, x, names(4))
        output, states = backbone.embed.weight.clone(), backbone.states
        backbone.embed.weight.zero_()
        assert not torch.allclose(head.nats(backbone, x, names(4)), before)
        head.freeze({"embed.weight": output})
        frozen = head.nats(backbone, x, names(4))
        shown, asked = masked(x, backbone, 0.15, names(4)) if objective == "masked" else (x, backbone.pieces(x))
        answering = states(shown)[asked] if objective == "masked" else states(x)[:, :-1][asked[:, 1:]]
        torch.testing.assert_close(frozen, F.cross_entropy(answering @ output.T, x[asked].long(), reduction="none"))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_a_transformer_learns_four_sentences_by_heart(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forgetlab.data.text import token_ids

    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path))
    x = token_ids(TEXTS, LENGTH)
    backbone = transformer(objective == "causal", vocabulary=8000)
    head = head_for(backbone, objective, x, **({"share": 0.3} if objective == "masked" else {}))
    assert isinstance(head, Pieces)
    found = losses(backbone, head, x, 60, lr=1e-2)
    assert found[0] == pytest.approx(math.log(8000), rel=0.05), "at first it knows nothing"
    assert sum(found[-5:]) / 5 < 0.5 * found[0]


@pytest.mark.slow
def test_text_is_learned_from_newsgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgetlab.data.text import token_ids

    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path))
    from forgetlab.scenarios.data import newsgroups

    texts = [text for _, text in newsgroups._rows("train")[:160]]
    x = token_ids(texts, LENGTH)
    backbone = transformer(causal=True, vocabulary=4000)
    head = Causal(backbone)
    with torch.no_grad():
        before = head.nats(backbone, x[128:], names(32)).mean()
    losses(backbone, head, x[:128], 40, lr=1e-2)
    with torch.no_grad():
        after = head.nats(backbone, x[128:], names(32)).mean()
    assert after < before - 1.0, "on texts that it has not seen"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "cnn"])
def test_views_of_digits_find_each_other_once_learned(kind: str) -> None:
    torch.manual_seed(0)
    x = as_input(dataset("digits").train.x[:96])
    shape = tuple(x.shape[1:])
    backbone = ViT(shape, width=16, depth=1, heads=2) if kind == "vit" else CNN(shape, (8, 16))
    head = head_for(backbone, "contrastive", x)
    found = losses(backbone, head, x[:64], 30, lr=1e-2)
    assert found[-1] < found[0] - 0.3
    with torch.no_grad():
        assert head.right(backbone.eval(), x[64:], names(32)).float().mean() > 5 / 32


@pytest.mark.parametrize(
    ("objective", "backbone", "x", "message", "option"),
    [
        ("masked", ViT((1, 8, 8)), torch.rand(2, 1, 8, 8), "not for a vit", "objective"),
        ("causal", MLP((4,)), torch.zeros(2, 4, dtype=torch.int64), "not for a mlp", "objective"),
        ("masked", transformer(causal=True), ids(2), "use 'objective: causal'", "objective"),
        ("causal", transformer(), ids(2), "give the model 'causal: true'", "objective"),
        ("contrastive", transformer(), ids(2), "come from dropout", "objective"),
        ("contrastive", MLP((4,)), torch.rand(2, 4), "is for images", "objective"),
        ("contrastive", ViT((1, 8, 8)), torch.rand(2, 1, 8, 8), "name some", "augment"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(
    objective: str, backbone: nn.Module, x: Tensor, message: str, option: str
) -> None:
    with pytest.raises(OptionError, match=message) as refused:
        made({"objective": objective}, Augment(), backbone, x)
    assert refused.value.option == option
