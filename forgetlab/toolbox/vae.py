"""A variational autoencoder for images.

Kingma & Welling 2014, Auto-Encoding Variational Bayes, https://arxiv.org/abs/1312.6114.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from forgetlab.plugins.options import OptionError
from forgetlab.seeding import drawn_from

BATCH, RATE = 128, 1e-3  # as in van de Ven & Tolias 2018, https://arxiv.org/abs/1809.10635


class VAE(nn.Module):
    """Two hidden layers to each side of a Gaussian code; pixels are probabilities."""

    shape: Tensor  # channels, height and width, a part of the state

    def __init__(self, shape: Sequence[int], latent: int, width: int, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("shape", torch.tensor(shape))
        pixels = math.prod(shape)
        with drawn_from("vae", seed):
            self.encoder = nn.Sequential(nn.Flatten(), *_two(pixels, width), nn.Linear(width, 2 * latent))
            self.decoder = nn.Sequential(*_two(latent, width), nn.Linear(width, pixels))

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> VAE:
        """The one whose state this is."""
        width, latent = state["decoder.0.weight"].shape
        vae = cls(state["shape"].tolist(), latent, width).to(state["shape"].device)
        vae.load_state_dict(state)
        return vae

    def loss(self, x: Tensor, draws: Generator) -> Tensor:
        """The mean over images (B, C, H, W) of -log p(x|z) + KL(q(z|x) || N(0, I)), one z each (equation 10)."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        noise = torch.randn(mean.shape, generator=draws).to(mean)
        logits = self.decoder(mean + noise * (log_variance / 2).exp())
        nats = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
        return (nats + divergence(mean, log_variance).sum()) / len(x)

    @torch.no_grad()
    def sample(self, n: int, draws: Generator) -> Tensor:
        """n images: the means of their pixels. (n, C, H, W)"""
        first: Any = self.decoder[0]
        z = torch.randn(n, first.in_features, generator=draws).to(first.weight)
        return self.decoder(z).sigmoid().view(n, *self.shape.tolist())


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, e^log_variance) || N(0, I)) of each sample (appendix B). (B, d), (B, d) -> (B,)"""
    return 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1)


def fit(vae: VAE, x: Tensor, updates: int, draws: Generator, old: VAE | None = None, share: float = 1.0) -> None:
    """Train on images (N, C, H, W), with this ``share`` in the loss, and on as many that an ``old`` one makes."""
    optimizer, n = torch.optim.Adam(vae.parameters(), RATE, fused=True), min(BATCH, len(x))
    for _ in range(updates):
        rows = torch.randint(len(x), (n,), generator=draws).to(x.device)
        loss = vae.loss(x[rows], draws)
        if old is not None:
            loss = share * loss + (1 - share) * vae.loss(old.sample(n, draws), draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def refuse_other_than_images(x: Tensor) -> None:
    """Refuse inputs (B, ...) that are no images.

    Raises:
        OptionError: with the reason.
    """
    if not x.is_floating_point() or x.dim() != 4:
        held = f"of shape {tuple(x.shape[1:])}" if x.is_floating_point() else "token ids"
        raise OptionError(f"it generates images (channels, height, width), and the inputs here are {held}")
    if x.min() < 0 or x.max() > 1:
        raise OptionError("it generates pixels from 0 to 1, and the inputs here are not between them")


def _two(entering: int, width: int) -> list[nn.Module]:
    return [nn.Linear(entering, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
