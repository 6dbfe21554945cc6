"""Deep generative replay: Shin et al. 2017, https://arxiv.org/abs/1705.08690.

With a VAE, not a WGAN, as in van de Ven & Tolias 2018, https://arxiv.org/abs/1809.10635 (defaults:
theirs). At a task's end it learns, in steps that are counted as ``extra_updates``, the task's images
and its own of before, weighted by tasks. `rehearsal: soft_targets` makes it DGR with distillation,
and `replay: {weight: by_tasks}` gives the classifier the weights that theirs has. Told tasks: each
image is labelled for an old one drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn

from forgetlab.plugins import register
from forgetlab.replay import Batch, Memory
from forgetlab.toolbox.teacher import frozen_copy, logits
from forgetlab.toolbox.vae import VAE, fit, refuse_other_than_images


@register("memory", "generative")
class Generative(Memory):
    """Drawn are x = G(z), z ~ N(0, I), with the label, and the logits, that the last task's final model gives x."""

    needs, has_slots, check = frozenset({"boundaries", "passes"}), False, staticmethod(refuse_other_than_images)
    kept = ("ended", "classes", "tasks", "generator", "solver")

    def __init__(
        self, ratio: PositiveFloat = 1.0, latent: PositiveInt = 100, width: PositiveInt = 400, steps: PositiveInt = 2000
    ) -> None:
        super().__init__(1, ratio)
        self.sizes, self.steps = (latent, width), steps
        self.ended, self.classes, self.tasks = 0, 0, list[int]()
        self.generator, self.solver = dict[str, Tensor](), dict[str, Tensor]()
        self.built: tuple[VAE, nn.Module] | None = None  # of these two, for the task in training

    def __len__(self) -> int:
        return self.ended

    def store(self, batch: Batch, output: Tensor, generator: Generator) -> None:
        """Nothing: the generator learns at the task's end."""

    def end(self, model: nn.Module, data: Iterable[Batch], generator: Generator) -> None:
        x, y, task = (torch.cat(column) for column in list(zip(*data, strict=True))[:3])
        self.ended, self.classes = self.ended + 1, max(self.classes, int(y.max()) + 1)
        self.tasks = sorted({*self.tasks, *task.unique().tolist()})
        old = VAE.of(self.generator) if self.generator else None
        vae = deepcopy(old) or VAE(x.shape[1:], *self.sizes, self.seed).to(x.device)
        fit(vae, x, self.steps, generator, old, share=1 / self.ended)
        self.extra_updates += self.steps
        self.generator, self.solver, self.built = deepcopy(vae.state_dict()), deepcopy(model.state_dict()), None

    @torch.no_grad()
    def sample(self, n: int, generator: Generator) -> Batch:
        assert self.model is not None
        vae, solver = self.built = self.built or (VAE.of(self.generator), frozen_copy(self.model, self.solver))
        x, i = vae.sample(n, generator), torch.randint(len(self.tasks), (n,), generator=generator)
        z = logits(solver, Batch(x, i, task := torch.tensor(self.tasks)[i].to(x.device)))[:, : self.classes]
        return Batch(x, z.argmax(1), task, {"logits": z})
