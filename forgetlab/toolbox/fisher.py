"""How much each weight matters: means over samples of per-sample gradients, squared or without their sign.

The diagonal of the Fisher information, exact per sample, in one backward pass per label:

F_i = E_x E_y [(d log p(y|x) / d theta_i)^2], with the expectation over y

- ``exact``: over all labels, weighted by the model's p(y|x);
- ``sampled``: one label drawn from p(y|x);
- ``predicted``: the most probable label;
- ``empirical``: the true label (no Fisher information in the strict sense: Kunstner et al. 2019,
  https://arxiv.org/abs/1905.12558).

And the sensitivity of the logits, E_x |d ||f(x)||^2 / d theta_i|, in one backward pass.

Per-sample gradients of a layer follow from what enters it and the gradient at what leaves it (Goodfellow 2015,
https://arxiv.org/abs/1510.01799). Squaring the gradient of a batch's mean instead, as Avalanche's EWC does, gives a
number that depends on the batch size; so does the absolute value of that gradient, which its MAS takes. For the
variants: van de Ven 2025, https://arxiv.org/abs/2502.11756.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from forgetlab.avalanche.api import MultiTaskModule, avalanche_forward
from forgetlab.backbones.layers import Positions
from forgetlab.batch import Batch
from forgetlab.isolation.shared_module import Adapted
from forgetlab.seeding import generator
from forgetlab.training.heads import Head

Variant = Literal["exact", "sampled", "predicted", "empirical"]
Measure = Variant | Literal["norm"]  # the last for the sensitivity
Size = Callable[[Tensor], Tensor]  # of a gradient: its square or absolute value; of a product, the product of sizes
Rule = Callable[[Any, Tensor, Tensor, Size], dict[str, Tensor]]
OUTPUT = "output"  # in place of parameters: the sizes (B, out) of what flows back into a linear layer's output
TOKENS = "tokens"  # likewise the sizes (U, d) for the U different pairs of a sample and a token in it


def fisher(model: nn.Module, data: Iterable[Batch], variant: Variant = "exact", seed: int = 0) -> dict[str, Tensor]:
    """F for every trainable parameter by name, averaged over the samples; models without rules go through vmap.

    The model answers in evaluation mode.
    """
    return _averaged(model, data, variant, generator("fisher", seed))


def sensitivity(model: nn.Module, data: Iterable[Batch]) -> dict[str, Tensor]:
    """E_x |d ||f(x)||^2 / d theta| by name, f the logits of the classes that are not masked."""
    return _averaged(model, data, "norm", generator("fisher", 0))


def _averaged(model: nn.Module, data: Iterable[Batch], measure: Measure, draw: torch.Generator) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(p) for name, p in trainable(model)}
    sums = layer_wise if covered(model) else per_sample
    samples, was_training = 0, model.training
    model.eval()
    for batch in data:
        samples += len(batch.y)
        for name, one in sums(model, batch, measure, draw).items():
            total[name] += one
    model.train(was_training)
    return {name: value / max(samples, 1) for name, value in total.items()}


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def targets(output: Tensor, y: Tensor, variant: Variant, draw: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """The labels to differentiate for, and their weights: pairs of (B,), (B,)."""
    p = output.detach().softmax(1)
    if variant == "exact":
        return [(torch.full_like(y, c), p[:, c]) for c in range(p.shape[1]) if bool((p[:, c] > 0).any())]
    if variant == "sampled":
        return [(torch.multinomial(p.cpu(), 1, generator=draw).squeeze(1).to(y.device), torch.ones_like(p[:, 0]))]
    return [(p.argmax(1) if variant == "predicted" else y, torch.ones_like(p[:, 0]))]


def answer_of(output: Tensor, measure: Measure) -> Tensor:
    """What is differentiated, (B, C): log p of every label, or the logits, of which a masked one is a constant."""
    return output if measure == "norm" else output.log_softmax(1)


def flows(output: Tensor, y: Tensor, measure: Measure, draw: torch.Generator) -> Iterator[Tensor]:
    """What flows back into that, (B, C) each: 1 at each label in turn, with the root of its weight; or 2 f(x)."""
    output = output.detach()
    if measure == "norm":
        yield 2 * output
        return
    for label, weight in targets(output, y, measure, draw):
        yield torch.zeros_like(output).scatter_(1, label.unsqueeze(1), weight.sqrt().unsqueeze(1))


def size_of(measure: Measure) -> Size:
    return torch.abs if measure == "norm" else torch.square


def layer_wise(model: nn.Module, batch: Batch, measure: Measure, draw: torch.Generator) -> dict[str, Tensor]:
    """Sums over the batch of the sizes of per-sample gradients, from each layer's input and output gradient."""
    size = size_of(measure)
    with recorded(model) as calls, torch.enable_grad():
        output = avalanche_forward(model, batch.x, batch.task)
        if not _once_per_sample(calls, len(batch.y)):
            return per_sample(model, batch, measure, draw)
        answer, outputs = answer_of(output, measure), [left for _, _, _, left in calls]
        summed: list[dict[str, Tensor]] = [{} for _ in calls]  # over the labels
        for flow in flows(output, batch.y, measure, draw):
            gradients = torch.autograd.grad(answer, outputs, flow, retain_graph=True)
            for sums, (_, layer, entered, _), gradient in zip(summed, calls, gradients, strict=True):
                for own, one in RULES[type(layer)](layer, entered, gradient, size).items():
                    sums[own] = sums[own] + one if own in sums else one
    wanted = {name for name, _ in trainable(model)}
    by_parameter = {
        f"{name}.{own}".removeprefix("."): value  # the model itself may be a layer
        for sums, (name, layer, entered, _) in zip(summed, calls, strict=True)
        for own, value in _by_parameter(layer, sums, entered, size).items()
    }
    return {name: value for name, value in by_parameter.items() if name in wanted}


def per_sample(model: nn.Module, batch: Batch, measure: Measure, draw: torch.Generator) -> dict[str, Tensor]:
    """The same sums by differentiating every sample on its own: slow, for any model; the oracle of `layer_wise`."""
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    values = {name: p.detach() for name, p in trainable(model)}
    buffers, size = dict(model.named_buffers()), size_of(measure)

    def pulled(values: dict[str, Tensor], x: Tensor, task: Tensor, flow: Tensor) -> Tensor:
        everything = {**values, **fixed, **buffers}
        arguments = (x.unsqueeze(0), task.unsqueeze(0)) if isinstance(model, MultiTaskModule) else (x.unsqueeze(0),)
        return (answer_of(functional_call(model, everything, arguments), measure)[0] * flow).sum()

    with torch.no_grad():
        output = avalanche_forward(model, batch.x, batch.task)
    sums = {name: torch.zeros_like(p) for name, p in values.items()}
    for flow in flows(output, batch.y, measure, draw):
        with sdpa_kernel(SDPBackend.MATH):  # the attention that vmap knows
            gradients = vmap(grad(pulled), in_dims=(None, 0, 0, 0))(values, batch.x, batch.task, flow)
        for name, gradient in gradients.items():
            sums[name] += size(gradient).sum(0)
    return sums


Call = tuple[str, nn.Module, Tensor, Tensor]  # a layer's name, itself, what entered, what left


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """Inside, each layer with a rule notes when it is called."""
    calls: list[Call] = []
    names = {layer: name for name, layer in model.named_modules()}

    def note(layer: nn.Module, entered: tuple[Tensor, ...], left: Tensor) -> Tensor:
        calls.append((names[layer], layer, entered[0].detach(), left))
        return left.clone()  # an activation that works in place must not change what was noted

    layers = [layer for layer in model.modules() if type(layer) in RULES and _own_trainable(layer)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def covered(model: nn.Module) -> bool:
    """Whether every trainable parameter belongs to one layer, that layer has a rule, and reads the samples.

    A module beside the backbone may have layers that read its own tensors, as a prefix has: no rule is for these.
    """
    if any(isinstance(part, Adapted) for part in model.modules()):
        return False
    layers = [layer for layer in model.modules() if _own_trainable(layer)]
    owned = [p for layer in layers for p in layer.parameters(recurse=False)]
    return all(map(_has_rule, layers)) and len(set(owned)) == len(owned)


def _has_rule(layer: Any) -> bool:
    """Gradients that are divided by how often a token occurs in the batch are no sums over samples."""
    return type(layer) in RULES and not getattr(layer, "scale_grad_by_freq", False)


def _once_per_sample(calls: Sequence[Call], samples: int) -> bool:
    """Whether each layer was called once, with a row per sample; a task's head sees that task's samples alone."""
    layers = [layer for _, layer, _, _ in calls]
    rows = all(len(entered) == samples for _, layer, entered, _ in calls if type(layer) is not Head)
    return rows and len(set(layers)) == len(layers)


def _own_trainable(layer: nn.Module) -> bool:
    return any(p.requires_grad for p in layer.parameters(recurse=False))


def _linear(layer: nn.Module, a: Tensor, g: Tensor, size: Size) -> dict[str, Tensor]:
    """a (B, ..., in), g (B, ..., out): one position per sample needs no per-sample matrix, see `_by_parameter`."""
    if a.dim() == 2:
        return {OUTPUT: size(g)}
    a, g = a.flatten(1, -2), g.flatten(1, -2)
    return {"weight": size(torch.einsum("bto,bti->boi", g, a)).sum(0), "bias": size(g.sum(1)).sum(0)}


def _by_parameter(layer: Any, sums: dict[str, Tensor], a: Tensor, size: Size) -> dict[str, Tensor]:
    """What a rule's sums say of each parameter: (g^2)^T (a^2) is one product for all labels, as a is that of each."""
    if OUTPUT in sums:
        return {"weight": sums[OUTPUT].T @ size(a), "bias": sums[OUTPUT].sum(0)}
    if TOKENS in sums:
        tokens = _pairs(layer, a)[0] % layer.num_embeddings
        of_tokens = sums[TOKENS].new_zeros(layer.weight.shape).index_add_(0, tokens, sums[TOKENS])
        if layer.padding_idx is not None:
            of_tokens[layer.padding_idx] = 0  # autograd leaves it out as well
        return {"weight": of_tokens}
    return sums


def _layer_norm(layer: Any, a: Tensor, g: Tensor, size: Size) -> dict[str, Tensor]:
    normal = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    between = list(range(1, a.dim() - len(layer.normalized_shape)))

    def sizes(gradient: Tensor) -> Tensor:
        return size(gradient.sum(between) if between else gradient).sum(0)

    return {"weight": sizes(g * normal), "bias": sizes(g)}


def _embedding(layer: Any, a: Tensor, g: Tensor, size: Size) -> dict[str, Tensor]:
    """a (B, ...) tokens, g (B, ..., d): what a sample's equal tokens receive is one gradient, added before its size."""
    pairs, which = _pairs(layer, a)
    gradients = g.new_zeros(len(pairs), g.shape[-1]).index_add_(0, which.flatten(), g.reshape(-1, g.shape[-1]))
    return {TOKENS: size(gradients)}


def _pairs(layer: Any, a: Tensor) -> tuple[Tensor, Tensor]:
    """The different pairs of a sample and a token in it, as sample * V + token, and which pair each position is."""
    first = torch.arange(len(a), device=a.device) * layer.num_embeddings
    return torch.unique(first.view(-1, *[1] * (a.dim() - 1)) + a, return_inverse=True)


def _positions(layer: nn.Module, a: Tensor, g: Tensor, size: Size) -> dict[str, Tensor]:
    return {"weight": size(g).sum(0)}


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    Head: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    Positions: _positions,
}
