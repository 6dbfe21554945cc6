"""What a backbone can be pretrained for without labels, each with a head that lives in the pretraining alone.

- ``masked``: which pieces of a text are hidden (BERT: Devlin et al. 2019, https://arxiv.org/abs/1810.04805);
- ``causal``: which piece comes next (Radford et al. 2018, Improving Language Understanding by Generative Pre-Training);
- ``contrastive``: which two views show the same image (SimCLR: Chen et al. 2020, https://arxiv.org/abs/2002.05709).

What a sample draws comes from a generator of its own, named by seed, epoch and the sample's number: another batch size
leaves it alone. Test samples draw the same in every run, so that what is lost can be compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from forgetlab.experiment import Augment
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.training import augmentation

DrawName = tuple[str | int, ...]  # of one sample's generator
ROWS = 1024  # places whose probabilities of all pieces are held at once
MASKED, RANDOM = 0.8, 0.1  # of the places that are to be told: shown as [MASK], shown as another piece; else as is


class Objective(nn.Module, ABC):
    """A task that the inputs alone pose; its parameters are the head."""

    @abstractmethod
    def loss(self, backbone: nn.Module, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        """The mean over what a batch is asked; ``names`` are those of its samples' generators."""

    @abstractmethod
    def right(self, backbone: nn.Module, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        """Which answers are right, (answers,) of bool."""

    def freeze(self, backbone: Mapping[str, Tensor]) -> None:
        """Keep what the head shares with the backbone as it is in these tensors."""


class Pieces(Objective):
    """Tells pieces of text apart by the backbone's own embeddings of them: the output layer is tied to the input's."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(backbone.vocabulary))
        self.embedding: Tensor | None = None  # the pretraining's, once that is over

    @abstractmethod
    def asked(self, backbone: Any, ids: Tensor, names: Sequence[DrawName]) -> tuple[Tensor, Tensor]:
        """The states that answer, (M, d), and the right pieces, (M,)."""

    def freeze(self, backbone: Mapping[str, Tensor]) -> None:
        self.embedding = backbone["embed.weight"].to(self.bias.device)

    def loss(self, backbone: Any, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        states, pieces = self.asked(backbone, x, names)
        sums = [some.sum() for some in self._answers(backbone, states, pieces, _nats)]
        return torch.stack(sums).sum() / max(len(pieces), 1)

    def right(self, backbone: Any, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        return self._told(backbone, x, names, lambda logits, pieces: logits.argmax(1) == pieces)

    def nats(self, backbone: Any, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        """(answers,): -log p(right piece); perplexity is e to the power of the mean."""
        return self._told(backbone, x, names, _nats)

    def _told(self, backbone: Any, x: Tensor, names: Sequence[DrawName], what: Callable[..., Tensor]) -> Tensor:
        return torch.cat(list(self._answers(backbone, *self.asked(backbone, x, names), what)))

    def _answers(self, backbone: Any, states: Tensor, pieces: Tensor, what: Callable[..., Tensor]) -> Iterator[Tensor]:
        """Some places at a time: the logits of all at once are the largest tensor by far, so they are made again."""
        weight = backbone.embed.weight if self.embedding is None else self.embedding

        def answer(states: Tensor, pieces: Tensor) -> Tensor:
            return what(F.linear(states, weight, self.bias), pieces)

        for some, right in zip(states.split(ROWS), pieces.split(ROWS), strict=True):
            if len(states) > ROWS and torch.is_grad_enabled():
                yield checkpoint(answer, some, right, use_reentrant=False, preserve_rng_state=False)
            else:
                yield answer(some, right)


class Masked(Pieces):
    """BERT's: a share of a text's pieces is to be told; most of them are shown as [MASK]."""

    def __init__(self, backbone: Any, share: float = 0.15) -> None:
        super().__init__(backbone)
        if backbone.causal:
            raise OptionError("a causal model sees nothing after a hidden piece: use 'objective: causal'", "objective")
        self.share = share

    def asked(self, backbone: Any, ids: Tensor, names: Sequence[DrawName]) -> tuple[Tensor, Tensor]:
        shown, asked = masked(ids, backbone, self.share, names)
        return backbone.states(shown)[asked], ids[asked].long()


class Causal(Pieces):
    """Each piece of a text is to be told from what comes before it."""

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        if not backbone.causal:
            why = "a model that sees the next piece need not learn to tell it"
            raise OptionError(f"{why}: give the model 'causal: true', or use 'objective: masked'", "objective")

    def asked(self, backbone: Any, ids: Tensor, names: Sequence[DrawName]) -> tuple[Tensor, Tensor]:
        asked = backbone.pieces(ids)[:, 1:]
        return backbone.states(ids)[:, :-1][asked], ids[:, 1:][asked].long()


class Contrastive(Objective):
    """SimCLR's: NT-Xent between the projections of two views of each image in a batch."""

    def __init__(self, backbone: Any, augment: Augment, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.augment = temperature, augment
        if not self.augment.named:
            why = "two views of an image differ by augmentation: name some, such as 'augment: {crop: 2}'"
            raise OptionError(why, "augment")
        d = backbone.n_features
        self.projection = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))

    def loss(self, backbone: nn.Module, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        return nt_xent(self._projected(backbone, x, names), self.temperature)

    def right(self, backbone: nn.Module, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        """Whether of all second views in the batch an image's own is the one most like its first."""
        first, second = self._projected(backbone, x, names).chunk(2)
        return (first @ second.T).argmax(1) == torch.arange(len(x), device=x.device)

    def _projected(self, backbone: nn.Module, x: Tensor, names: Sequence[DrawName]) -> Tensor:
        """(B, ...) -> (2B, d) of length 1: the first views, then the second"""
        draws = torch.stack([augmentation.drawn_numbers(2, "views", *name) for name in names]).to(
            x.device
        )  # (B, draws, 2)
        views = [augmentation.augmented(x, draws[..., view].T, self.augment) for view in range(2)]
        return F.normalize(self.projection(backbone(torch.cat(views))), dim=1)


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {"masked": Masked, "causal": Causal, "contrastive": Contrastive}


def masked(ids: Tensor, backbone: Any, share: float, names: Sequence[DrawName]) -> tuple[Tensor, Tensor]:
    """What is shown in place of the ids, (B, L), and which places are to be told, (B, L) of bool."""
    draws = torch.stack([torch.rand(3, ids.shape[1], generator=generator("mask", *name)) for name in names], 1)
    chosen, kind, other = draws.to(ids.device)  # (B, L) each
    asked = (chosen < share) & backbone.pieces(ids)
    first = backbone.mask + 1
    random = (other * (backbone.vocabulary - first)).long() + first
    shown = ids.where(~asked | (kind >= MASKED), backbone.mask)
    return torch.where(asked & (kind >= MASKED) & (kind < MASKED + RANDOM), random.to(ids.dtype), shown), asked


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """The mean over 2B views of -log softmax of the similarity to the other view of the same image (eq. 1).

    z (2B, d) of length 1: the first views of B images, then the second ones.
    """
    n = len(z)
    itself = torch.eye(n, dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(itself, float("-inf"))
    return F.cross_entropy(similarity, torch.arange(n, device=z.device).roll(n // 2))


def made(pretrain: Mapping[str, Any], augment: Augment, backbone: nn.Module, x: Tensor) -> Objective:
    """The objective that a file's ``pretrain:`` names, for inputs such as x (B, ...) that are augmented so.

    Raises:
        OptionError: this backbone or these inputs do not pose it.
    """
    name = pretrain["objective"]
    if name == "contrastive" and not (x.is_floating_point() and x.dim() == 4):
        why = "it needs two views of an image; two views of a text come from dropout, which no model here has"
        raise OptionError(f"'contrastive' is for images: {why}", "objective")
    if name != "contrastive" and (x.is_floating_point() or not hasattr(backbone, "pieces")):
        kind = type(backbone).__name__.lower()
        raise OptionError(f"{name!r} is for token ids read by the model transformer, not for a {kind}", "objective")
    options = {key: pretrain[key] for key in ("share", "temperature") if key in pretrain}
    return OBJECTIVES[name](backbone, **options, **({"augment": augment} if name == "contrastive" else {}))


def _nats(logits: Tensor, pieces: Tensor) -> Tensor:
    return F.cross_entropy(logits, pieces, reduction="none")
