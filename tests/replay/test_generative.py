"""Generative replay: the autoencoder's bound, whose labels it draws, what it remembers, and what it refuses."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from forgetlab.avalanche.tensor_data import to_benchmark
from forgetlab.backbones.mlp import MLP
from forgetlab.batch import Batch
from forgetlab.config.yaml_reader import FileErrors
from forgetlab.data.datasets import Samples, dataset
from forgetlab.plugins import registry
from forgetlab.replay.memory import Memory
from forgetlab.report import tables
from forgetlab.report.summary import Finished, summarise
from forgetlab.results.store import Result
from forgetlab.seeding import generator
from forgetlab.streams.scenario import Scenario
from forgetlab.toolbox import vae
from forgetlab.toolbox.teacher import logits
from forgetlab.toolbox.vae import VAE
from forgetlab.training.competing_classes import MASK
from forgetlab.training.network import SharedNetwork
from helpers import runs
from helpers.runs import final
from helpers.streams import in_pairs
from helpers.training import learned

SMALL = {"latent": 8, "width": 64, "steps": 250}


def generative(**options: Any) -> Any:
    return registry.build("memory", "generative", {**SMALL, **options})


def images(n: int = 12) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=generator("images"))


def test_the_divergence_is_that_of_two_gaussians() -> None:
    draws = generator("divergence")
    mean, log_variance = (torch.randn(5, 3, generator=draws) for _ in range(2))
    exact = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.divergence(mean, log_variance), exact)


def test_avalanches_autoencoder_draws_codes_of_another_width() -> None:
    """Half the variance, where the standard deviation is its root: a code of width 1 is drawn with width 1/2."""
    from avalanche.models.generator import MlpVAE

    torch.manual_seed(0)
    mean, log_variance = torch.zeros(20000, 1), torch.zeros(20000, 1)
    assert MlpVAE((1, 4, 4), nhid=1).sampling(mean, log_variance).std().item() == pytest.approx(0.5, abs=0.02)
    made, seen = VAE((1, 1, 1), latent=1, width=4), []
    nn.init.zeros_(made.encoder[-1].weight), nn.init.zeros_(made.encoder[-1].bias)  # type: ignore[arg-type]
    made.decoder.register_forward_pre_hook(lambda _, entered: seen.append(entered[0]))
    made.loss(torch.zeros(20000, 1, 1, 1), generator("width"))
    assert seen[0].std().item() == pytest.approx(1.0, abs=0.02)


def evidence(made: VAE, x: Tensor) -> Tensor:
    """The mean of -log p(x), by quadrature over a code of one number."""
    z = torch.linspace(-6, 6, 4001).unsqueeze(1)
    with torch.no_grad():
        pixels = made.decoder(z).unsqueeze(1)  # (Z, 1, pixels)
        fit = -F.binary_cross_entropy_with_logits(
            pixels.expand(-1, len(x), -1), x.flatten(1).expand(len(z), -1, -1), reduction="none"
        ).sum(2)
    log_p = fit + Normal(0.0, 1.0).log_prob(z) + math.log(12 / 4000)
    return -log_p.logsumexp(0).mean()


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_the_loss_is_a_bound_on_the_evidence_and_gets_near_it(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    """The deliberate break: a divergence that is left out lets the loss fall below what no code can reach."""
    if broken:
        monkeypatch.setattr(vae, "divergence", lambda mean, log_variance: 0 * mean)
    made, x = VAE((1, 2, 2), latent=1, width=32), torch.eye(4).view(4, 1, 2, 2)
    vae.fit(made, x, 600, generator("bound"))
    with torch.no_grad():
        loss = torch.stack([made.loss(x, generator("bound", i)) for i in range(400)]).mean()
    gap = (loss - evidence(made, x)).item()
    print(f"loss - evidence: {gap:.3f}")
    assert (0 < gap < 0.5) != broken


def test_old_images_and_new_ones_have_their_shares() -> None:
    """The first step of gradient descent, by hand."""
    old, x, start = VAE((1, 4, 4), 3, 8, seed=1), images(), VAE((1, 4, 4), 3, 8)
    made, draws = copy.deepcopy(start), generator("shares")
    rows = torch.randint(len(x), (len(x),), generator=draws)
    new = start.loss(x[rows], draws)
    loss = 0.25 * new + 0.75 * start.loss(old.sample(len(x), draws), draws)
    expected = torch.autograd.grad(loss, [*start.parameters()])
    vae.fit(made, x, 1, generator("shares"), old, share=0.25)
    moved = [(b - a).detach() for a, b in zip(start.parameters(), made.parameters(), strict=True)]
    for step, gradient in zip(moved, expected, strict=True):  # Adam's first step is the rate times a sign
        torch.testing.assert_close(step, -vae.RATE * gradient / (gradient.abs() + 1e-8), atol=1e-6, rtol=1e-3)


def stream(told: bool = False) -> Scenario:
    """Digits 0 and 1, then 2 and 3, then 4 and 5."""
    x, y = dataset("digits").train
    return in_pairs([Samples(x[y // 2 == task].float(), y[y // 2 == task]) for task in range(3)], told=told)


def trained(memory: Memory, told: bool = False, **network: Any) -> SharedNetwork:
    model = SharedNetwork(MLP((1, 8, 8), (32,)), task_known=told, **network)
    how: Any = {"epochs": 6, "optimizer": "adam", "batch_size": 32, "lr": 5e-3}
    return learned(model, to_benchmark(stream(told)), memory, **how)


def test_each_new_task_has_one_share_of_all_tasks_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole loss, one half and one third: from the third task on a fixed half would forget the first."""
    memory, given = generative(steps=1), []

    def note(*args: Any, share: float, **options: Any) -> None:
        given.append(share)
        vae.fit(*args, share=share, **options)

    monkeypatch.setattr(sys.modules[type(memory).__module__], "fit", note)
    trained(memory)
    assert given == pytest.approx([1, 1 / 2, 1 / 3])


def shares(memory: Any, model: nn.Module, n: int = 600) -> Tensor:
    """Of each task's classes among what is drawn."""
    memory.model = model
    return (memory.sample(n, generator("shares")).y // 2).bincount(minlength=3) / n


@pytest.mark.slow
def test_it_draws_of_all_tasks() -> None:
    memory = generative()
    found = shares(memory, trained(memory))
    print(found)
    assert found.min() > 0.1


@pytest.mark.slow
def test_a_generator_that_does_not_replay_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deliberate break: it knows the last task alone, though the solver would still label the others."""
    fit = vae.fit
    broken = generative()
    module = __import__(type(broken).__module__, fromlist=["fit"])
    monkeypatch.setattr(module, "fit", lambda v, x, steps, draws, old, share: fit(v, x, steps, draws))
    found = shares(broken, trained(broken))
    print(found)
    assert found[:2].sum() < 0.05


def test_labels_are_those_of_the_model_before_the_task_among_its_classes() -> None:
    """Also where the model has grown since, by rows that the labeller does not have."""
    memory, model = generative(steps=20), SharedNetwork(MLP((1, 4, 4), (8,)))
    model.open(0, [0, 1])
    model.head.bias.data -= 5.0  # type: ignore[operator] - a class of no weights would win
    data = [Batch(images(), torch.arange(12) % 2, torch.zeros(12, dtype=torch.int64))]
    memory.end(model.eval(), data, generator("labels"))
    before = copy.deepcopy(model)
    model.open(1, [2, 3])
    for p in model.parameters():
        p.data += 1.0
    memory.model = model.train()
    drawn = memory.sample(40, generator("draw"))
    assert torch.equal(drawn.extra["logits"], logits(before, drawn).detach())
    assert torch.equal(drawn.y, drawn.extra["logits"].argmax(1)) and drawn.extra["logits"].shape == (40, 2)
    assert model.training and {*drawn.task.tolist()} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["growing", "per-task"])
def test_where_tasks_are_told_each_image_is_labelled_for_an_old_one(head: Any) -> None:
    memory = generative(steps=20)
    memory.model = trained(memory, told=True, head=head)
    drawn = memory.sample(200, generator("told"))
    assert {*drawn.task.tolist()} == {0, 1, 2} and torch.equal(drawn.y // 2, drawn.task)
    assert ((drawn.extra["logits"] > MASK).sum(1) == 2).all()


FILE = """
name: generative
scenario: {{name: split_digits, setting: {setting}, n_tasks: 5}}
model: {{name: mlp, hidden: [64]}}
protocol: {{head: {head}, budget: {{epochs: 8}}}}
train: {{lr: 3e-3, batch_size: 32}}
references: {references}
strategies: [{entry}]
seeds: {seeds}
"""
ENTRY = "{replay: {memory: generative, latent: 8, width: 64, steps: 300, MORE}}"


def results(
    folder: Path,
    more: str,
    setting: str = "class-incremental",
    head: str = "growing",
    references: str = "[]",
    seeds: str = "[0, 1, 2]",
) -> list[Result]:
    entry = ENTRY.replace(", MORE", more)
    text = FILE.format(setting=setting, head=head, entry=entry, references=references, seeds=seeds)
    return runs.results(folder, text)


@pytest.mark.slow
def test_it_beats_naive_training_clearly(tmp_path: Path) -> None:
    """On class-incremental digits, with no image kept; distillation does no worse."""
    found = results(tmp_path, "", references="[naive]")
    soft = [final(result) for result in results(tmp_path, ", rehearsal: soft_targets", seeds="[0]")]
    accuracies = [final(result) for result in found]
    naive, hard = accuracies[:3], accuracies[3:]
    print(f"naive {naive}, generative {hard}, with soft targets {soft}")
    assert min(hard) > max(naive) + 0.2 and min(soft) > max(naive) + 0.3
    assert not generative().state()[0]
    sizes = {result.counts["total"]["memory_bytes"] for result in found[3:]}
    made = VAE((1, 8, 8), 8, 64)
    solver = 64 * 64 + 64 + 10 * 64 + 10
    assert sizes == {4 * (sum(p.numel() for p in made.parameters()) + solver) + 3 * 8}


@pytest.mark.slow
def test_it_works_with_a_head_for_each_task(tmp_path: Path) -> None:
    (result,) = results(tmp_path, ", rehearsal: soft_targets", "task-incremental", "per-task", seeds="[0]")
    assert final(result) > 0.85 and result.counts["total"]["samples_replayed"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ("{name: newsgroups, form: ids, max_length: 16}", "{name: transformer, width: 8, heads: 2}", "are token ids"),
        ("japanese_vowels", "{name: mlp, hidden: [8]}", r"of shape \(\d+,"),
    ],
)
def test_other_than_images_is_refused(tmp_path: Path, data: str, model: str, message: str) -> None:
    text = (
        f"name: x\nscenario: {{name: stream, data: {data}, n_tasks: 2}}\nmodel: {model}\n"
        "references: []\nstrategies: [{replay: {memory: generative}}]\n"
    )
    with pytest.raises(FileErrors, match=message):
        runs.loaded(tmp_path, text)


def test_pixels_outside_of_0_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match="pixels from 0 to 1"):
        vae.refuse_other_than_images(images() - 0.5)
    vae.refuse_other_than_images(images())


@pytest.mark.parametrize("more", [", depth: 1", ", sampler: balanced", ", rehearsal: gdumb"])
def test_what_needs_kept_samples_is_refused_beside_it(tmp_path: Path, more: str) -> None:
    with pytest.raises(FileErrors, match=r"no samples|keeps it afterwards"):
        results(tmp_path, more)


def soft(temperature: float = 2.0) -> Any:
    return registry.build("rehearsal", "soft_targets", {"temperature": temperature})


def test_soft_targets_by_hand() -> None:
    draws, y = generator("soft"), torch.tensor([0, 1, 2])
    new, drawn = (Batch(torch.zeros(3, 1), y, torch.zeros_like(y)) for _ in range(2))
    stored, output = torch.randn(3, 2, generator=draws), torch.randn(6, 4, generator=draws)
    drawn = drawn._replace(extra={"logits": stored})
    p = F.pad((stored / 3).softmax(1), (0, 2))  # what is new has the target 0
    told = -(p * (output[3:] / 3).log_softmax(1)).sum(1)
    expected = (F.cross_entropy(output[:3], y, reduction="sum") + 9 * told.sum()) / 6
    torch.testing.assert_close(soft(3.0).loss(nn.Identity(), new, drawn, output), expected)


def test_soft_targets_pull_towards_the_stored_logits() -> None:
    """At the teacher's own logits nothing pulls; at a temperature that is high the pull is that of their distance."""
    y, stored = torch.tensor([0, 1]), torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -1.0]])
    new = Batch(torch.zeros(0, 1), y[:0], y[:0])
    drawn = Batch(torch.zeros(2, 1), y, y, {"logits": stored})
    for temperature, at in ((2.0, stored), (1000.0, stored + torch.tensor([[0.3, -0.3, 0.0]]))):
        output = at.double().clone().requires_grad_()
        soft(temperature).loss(nn.Identity(), new, drawn, output).backward()
        assert output.grad is not None
        centred = (at - stored) - (at - stored).mean(1, keepdim=True)
        torch.testing.assert_close(output.grad.float(), centred / 3 / 2, atol=1e-3, rtol=0.02)


@pytest.mark.slow
def test_a_digit_is_a_digit() -> None:
    """What the generator makes of digits is told apart by nearest class mean as it is by its labels."""
    x = dataset("digits").train.x[:600].float()
    made = VAE(x.shape[1:], 8, 64)
    vae.fit(made, x, 400, generator("digits"))
    drawn = made.sample(200, generator("digits", 1))
    nearest = torch.cdist(drawn.flatten(1), x.flatten(1)).amin(1)
    noise = torch.cdist(torch.rand(200, 64, generator=generator("noise")), x.flatten(1)).amin(1)
    assert drawn.min() >= 0 and drawn.max() <= 1 and nearest.mean() < 0.7 * noise.mean()


@pytest.mark.parametrize("steps", [3, 7])
def test_the_generators_own_steps_are_counted_beside_those_of_the_model(tmp_path: Path, steps: int) -> None:
    """Each task's end takes as many; a memory that trains nothing takes none."""
    entry = f"{{replay: {{memory: generative, latent: 4, width: 8, steps: {steps}}}}}"
    text = FILE.format(setting="class-incremental", head="growing", entry=entry, references="[naive]", seeds="[0]")
    naive, found = runs.results(tmp_path, text.replace("epochs: 8", "epochs: 1"))
    assert found.counts["per_task"]["extra_updates"] == [steps] * 5
    assert found.counts["total"]["extra_updates"] == 5 * steps
    assert found.counts["per_task"]["updates"] == naive.counts["per_task"]["updates"]
    assert naive.counts["total"]["extra_updates"] == 0
    shown = tables.markdown(summarise([Finished(result, {}) for result in (naive, found)]), "x")
    assert "extra updates" in shown and f"| {5 * steps} " in shown
    assert "extra updates" not in tables.markdown(summarise([Finished(naive, {})]), "x")
