"""What one training step costs: arithmetic, activations kept for the backward pass, and time beside a bare model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]
FEWEST, MOST, ENOUGH = 5, 50, 0.1  # pairs of calls that are timed, and seconds after which there is no other


@dataclass(frozen=True)
class Cost:
    """What one loss and its gradient took; a multiplication and the addition after it are two operations."""

    flops_forward: int
    flops_backward: int
    saved_activation_bytes: int


def measure(forward: Callable[[], Tensor], parameters: Sequence[Tensor], model: nn.Module) -> Cost:
    """The cost of a scalar loss and of its gradient by ``parameters``; model and random state are left as they were.

    Counted are the operations of matrix products, convolutions, attention and LSTMs. Fused attention is counted as the
    products it stands for, without what its backward pass computes again, so that all kernels count the same.
    Activations are the storages kept for the backward pass, each once, without the model's parameters and buffers;
    the batch is among them where it is kept.
    """
    originals = list(model.buffers())
    with _no_trace(model):
        saved = _Saved(chain(originals, parameters, model.parameters(), model.buffers()))
        with _counter() as ahead, saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            loss = forward()
        with _counter() as back:
            _differentiate(loss, parameters)
    return Cost(ahead.get_total_flops(), back.get_total_flops(), saved.bytes())


def latency(call: Callable[[], Any], bare: Callable[[], Any], clock: Callable[[], float] | None = None) -> float:
    """How many times as long as ``bare`` ``call`` takes: the shortest of many calls of each, made in turn.

    What disturbs a call only makes it longer, so the shortest call is the one least disturbed (Chen & Revels 2016,
    https://arxiv.org/abs/1608.04295); both are called in turn, so that neither has the machine's quieter half alone.
    ``clock`` is the processor's, which stands still while other programs run, or one on the wall where a GPU works.
    At least `FEWEST` pairs are timed, at most `MOST`, and none more once all took `ENOUGH` seconds.
    """
    clock = clock or _usual_clock()
    for warm_up in (bare, call):
        warm_up()
    ours, theirs = [], []
    while len(ours) < FEWEST or (len(ours) < MOST and sum(ours) + sum(theirs) < ENOUGH):
        if len(ours) % 2:  # so that neither always runs in the other's wake
            ours.append(_seconds(call, clock))
            theirs.append(_seconds(bare, clock))
        else:
            theirs.append(_seconds(bare, clock))
            ours.append(_seconds(call, clock))
    return min(ours) / min(theirs)


class _Saved:
    """Collects what autograd keeps, but for the tensors that are there anyway."""

    def __init__(self, own: Iterator[Tensor]) -> None:
        self.own = {_address(tensor) for tensor in own}
        self.kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in self.own:
            self.kept.setdefault(address, tensor.detach())
        return tensor

    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if trainable and loss.requires_grad:
        torch.autograd.grad(loss, trainable, allow_unused=True)


@contextmanager
def _no_trace(model: nn.Module) -> Iterator[None]:
    """Inside, copies stand in for the buffers; afterwards random state and torch's switches are as before."""
    devices = {t.device.index for t in chain(model.parameters(), model.buffers()) if t.is_cuda}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # such a layer is one operation that no counter knows
    copies = {id(buffer): buffer.clone() for buffer in model.buffers()}  # one for each, also where modules share it
    buffers = [(module, *named) for module in model.modules() for named in module.named_buffers("", False, False)]
    try:
        for module, name, buffer in buffers:
            setattr(module, name, copies[id(buffer)])
        with torch.random.fork_rng(sorted(devices)), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_formulas())


def _formulas() -> dict[Any, Callable[..., int]]:
    """What torch's counter lacks, and its formula of attention's backward pass, which counts five products."""
    aten = torch.ops.aten
    kernels = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    backward = {getattr(aten, f"_scaled_dot_product_{kernel}_backward"): _attention_backward for kernel in kernels}
    recurrent = {aten.mkldnn_rnn_layer: _recurrent, aten.mkldnn_rnn_layer_backward: _recurrent_backward}
    return {aten._scaled_dot_product_flash_attention_for_cpu: _attention, **backward, **recurrent}


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Scores and weighted sum. (B, heads, T, d), (B, heads, S, d), (B, heads, S, d')"""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(_: Shape, *entered: Any, **__: Any) -> int:
    """Two products for each one of the forward pass."""
    return 2 * _attention(*entered)


def _recurrent(x: Shape, from_below: Shape, from_before: Shape, *_: Any, **__: Any) -> int:
    """A CPU's LSTM, one layer and direction. (T, B, in), (4 H, in), (4 H, H)"""
    return 2 * prod(x[:-1]) * (prod(from_below) + prod(from_before))


def _recurrent_backward(*entered: Any, **__: Any) -> int:
    return 2 * _recurrent(*entered)


def _usual_clock() -> Callable[[], float]:
    """A processor that only waits for a GPU tells little of the GPU's work."""
    return perf_counter if torch.cuda.is_initialized() else process_time


def _seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    _wait()
    start = clock()
    call()
    _wait()
    return clock() - start


def _wait() -> None:
    if torch.cuda.is_initialized():  # its work is queued
        torch.cuda.synchronize()
