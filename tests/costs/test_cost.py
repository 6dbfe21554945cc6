"""The measured price of a training step, against counts by hand, other kernels and an earlier measurement."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from forgetlab import torchvision_ops
from forgetlab.backbones.encoders import TextEncoder
from forgetlab.backbones.vit import ViT
from forgetlab.costs import training_step
from forgetlab.costs.training_step import Cost, latency, measure
from forgetlab.isolation.network import IsolatedNetwork
from forgetlab.plugins import registry
from forgetlab.seeding import generator


@pytest.fixture(autouse=True)
def _as_torch_starts() -> Iterator[None]:
    """A run in another test of this process may have set its globals."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.backends.mha.set_fastpath_enabled(was)


class Step(NamedTuple):
    """What `measure` takes."""

    forward: Callable[[], Tensor]
    parameters: list[Tensor]
    model: nn.Module


def bert(kind: str = "sdpa", labels: int = 4, **sizes: int) -> Any:
    """A BERT of MiniLM's size with random weights, or a smaller one."""
    torchvision_ops.ensure()  # transformers imports torchvision
    from transformers import BertConfig, BertForSequenceClassification

    size: dict[str, Any] = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    } | sizes
    size |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**size, **{"num_labels": labels, "attn_implementation": kind})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(config)


def step(model: nn.Module, batch: int = 8, length: int = 128, classes: int = 4) -> Step:
    """The loss of a classifier of token ids, and all its parameters that are trained."""
    draw = generator("cost", batch, length)
    ids = torch.randint(1000, (batch, length), generator=draw)
    labels = torch.randint(classes, (batch,), generator=draw)
    mask = torch.ones_like(ids)

    def forward() -> Tensor:
        return F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)

    return Step(forward, [p for p in model.parameters() if p.requires_grad], model)


def training(model: Any, *names: str) -> Any:
    """The same model, of which only parameters whose names hold one of these are trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in names))
    return model


def peft(kind: str, **options: Any) -> Step:
    model = bert()
    import peft  # which imports transformers

    config = getattr(peft, kind)(task_type="SEQ_CLS", **options)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft, beside transformers 5
        torch.manual_seed(0)
        return step(peft.get_peft_model(model, config))


# One step of a MiniLM-size BERT with random weights, 8 texts of 128 tokens, no dropout. A further row is its name here,
# what makes the step, and what it should cost, below.
ROWS: dict[str, Callable[[], Step]] = {
    "full": lambda: step(bert()),
    "ia3": lambda: peft("IA3Config"),
    "prompt 20": lambda: peft("PromptTuningConfig", num_virtual_tokens=20),
    "lora 8": lambda: peft("LoraConfig", r=8, target_modules=["query", "value"]),
    "prefix 20": lambda: peft("PrefixTuningConfig", num_virtual_tokens=20),
    "last 2 blocks": lambda: step(training(bert(), "layer.4.", "layer.5.", "pooler", "classifier")),
    "probe": lambda: step(training(bert(), "classifier")),
}


class Expected(NamedTuple):
    trained: int  # numbers
    ratio: float  # operations backward / forward, attention counted
    saved: float  # MiB, torch's fused attention


# Measured apart from this code, with torch 2.13.0, transformers 5.23.0 and peft 0.21.2. The ratios are those of eager
# attention, whose products every counter sees; those of the last two blocks and the probe leave attention out.
EXPECTED: dict[str, Expected] = {
    "full": Expected(22_714_756, 2.00, 147.4),
    "ia3": Expected(17_668, 1.01, 144.4),
    "prompt 20": Expected(9_220, 1.06, 106.3),
    "lora 8": Expected(75_268, 1.01, 99.8),
    "prefix 20": Expected(93_700, 1.02, 93.2),
    "last 2 blocks": Expected(3_698_308, 0.63, 49.6),
    "probe": Expected(1_540, 0.00, 0.0),
}


@pytest.fixture(scope="module")
def table() -> dict[str, tuple[int, Cost]]:
    def row(make: Callable[[], Step]) -> tuple[int, Cost]:
        made = make()
        return sum(p.numel() for p in made.parameters), measure(*made)

    return {name: row(make) for name, make in ROWS.items()}


@pytest.mark.parametrize("name", ROWS)
def test_the_price_is_what_was_measured_elsewhere(table: dict[str, tuple[int, Cost]], name: str) -> None:
    (trained, price), expected = table[name], EXPECTED[name]
    assert trained == expected.trained
    assert price.flops_backward / price.flops_forward == pytest.approx(expected.ratio, rel=0.05, abs=1e-5)
    assert price.saved_activation_bytes / 2**20 == pytest.approx(expected.saved, rel=0.005, abs=0.05)


def test_methods_keep_activations_in_the_measured_order(table: dict[str, tuple[int, Cost]]) -> None:
    saved = {name: price.saved_activation_bytes for name, (_, price) in table.items()}
    assert sorted(saved, key=saved.__getitem__) == sorted(EXPECTED, key=lambda name: EXPECTED[name].saved)


class Uncounted(NamedTuple):
    """Measured apart from this code, with torch's fused attention, whose products no counter saw then."""

    ratio: float  # operations backward / forward
    saved: float  # MiB


OURS: dict[str, tuple[str, dict[str, Any], Uncounted]] = {  # our modules on the same encoder
    "ia3": ("ia3", {}, Uncounted(0.96, 144.4)),
    "prompt 20": ("prompt", {"length": 20}, Uncounted(1.00, 106.3)),
    "houlsby 24": ("adapter", {"bottleneck": 24}, Uncounted(0.97, 104.6)),
    "lora 8": ("lora", {"rank": 8}, Uncounted(0.96, 99.8)),
    "prefix 20": ("prefix", {"length": 20, "reparameterization": "flat"}, Uncounted(0.96, 93.2)),
    "bitfit": ("bitfit", {}, Uncounted(1.00, 91.9)),
    "ladder 8": ("ladder", {"reduction": 8}, Uncounted(1.02 / 22.39, 32.6)),
    "lora 8, last layer": ("lora", {"rank": 8, "layers": [-1]}, Uncounted(0.13, 16.6)),
    "linear probe": ("linear_probe", {}, Uncounted(0.00, 0.0)),
}


def ours(module: str, options: dict[str, Any]) -> Step:
    network = IsolatedNetwork(
        TextEncoder(bert().bert, None, pool="first"), lambda: registry.build("isolation", module, options)
    )
    network.open(0, range(4))
    ids = torch.randint(1000, (8, 128), generator=generator("cost", 8, 128)) + 1
    labels = torch.arange(8) % 4
    network.train()
    return Step(
        lambda: F.cross_entropy(network(ids, torch.zeros_like(labels)), labels),
        [p for p in network.parameters() if p.requires_grad],
        network,
    )


@pytest.fixture(scope="module")
def our_table() -> dict[str, Cost]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "_formulas", dict)
        return {name: measure(*ours(module, options)) for name, (module, options, _) in OURS.items()}


@pytest.mark.parametrize("name", OURS)
def test_our_modules_cost_what_was_measured_elsewhere(our_table: dict[str, Cost], name: str) -> None:
    price, expected = our_table[name], OURS[name][2]
    assert price.flops_backward / price.flops_forward == pytest.approx(expected.ratio, rel=0.05, abs=1e-3)


def test_our_modules_keep_activations_in_the_measured_order(our_table: dict[str, Cost]) -> None:
    """Rows 2 % apart may change places: our prompt enters behind the embedding's norm and keeps less."""
    for less, (_, _, expected) in OURS.items():
        for more, (_, _, larger) in OURS.items():
            if larger.saved > 1.02 * expected.saved:
                assert our_table[more].saved_activation_bytes > our_table[less].saved_activation_bytes, (less, more)


def test_bert_is_counted_exactly_by_either_attention() -> None:
    d, inner, layers, batch, length, classes = 64, 256, 2, 2, 32, 3
    tokens = batch * length
    products = layers * tokens * (4 * d * d + 2 * d * inner) + batch * (d * d + d * classes)
    attention = layers * 2 * tokens * length * d
    sizes = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": inner}
    for kind in ("sdpa", "eager"):
        price = measure(*step(bert(kind, classes, vocab_size=1000, **sizes), batch, length, classes))
        assert price.flops_forward == 2 * (products + attention) == 13_648_640
        assert price.flops_backward == 2 * price.flops_forward


def test_torchs_own_counter_misses_the_fused_attention() -> None:
    q = torch.randn(2, 4, 8, 16)
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 0  # once it does not, `cost` needs no formula for it


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_a_gpus_attention_counts_as_the_cpus(kernel: str) -> None:
    shapes = ((2, 4, 8, 16), (2, 4, 12, 16), (2, 4, 12, 16))
    operator = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention_backward")
    assert [a.name for a in operator.default._schema.arguments[1:4]] == ["query", "key", "value"]
    formula = training_step._formulas()[operator]
    q, k, v = (torch.randn(*shape, requires_grad=True) for shape in shapes)
    price = measure(lambda: F.scaled_dot_product_attention(q, k, v).sum(), [q, k, v], nn.Module())
    assert price.flops_forward == 2 * 2 * 4 * 8 * 12 * (16 + 16)
    assert price.flops_backward == formula(shapes[0], *shapes, out_shape=shapes) == 2 * price.flops_forward


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_is_counted_as_its_products(directions: int) -> None:
    model = nn.LSTM(6, 5, num_layers=2, bidirectional=directions == 2, batch_first=True)
    x = torch.randn(3, 7, 6, requires_grad=True)
    fused = measure(lambda: model(x)[0].sum(), [*model.parameters(), x], model)
    model, z = model.double(), x.detach().double()  # which the fused kernel does not take
    plain = measure(lambda: model(z)[0].sum(), list(model.parameters()), model)
    by_hand = 2 * 3 * 7 * 4 * 5 * directions * ((6 + 5) + (5 * directions + 5))
    assert fused.flops_forward == plain.flops_forward == by_hand
    assert fused.flops_backward == 2 * by_hand


def test_a_fused_encoder_layer_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(2, 5, 16)
    price = measure(lambda: layer(x).sum(), [], layer)
    assert price == Cost(2 * 10 * (4 * 16 * 16 + 2 * 16 * 32 + 2 * 5 * 16), 0, 0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_convolution_is_counted_by_hand() -> None:
    model = nn.Conv2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 6, 6)
    price = measure(lambda: model(x).square().sum(), list(model.parameters()), model)
    forward = 2 * 2 * 36 * 8 * 27
    assert price == Cost(forward, forward, x.nbytes + 2 * 8 * 36 * 4)  # no gradient of the input


def two_layers() -> tuple[nn.Sequential, Tensor]:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(3, 6)


@pytest.mark.parametrize(
    ("trained", "backward", "saved"),
    [
        (("0", "2"), 3 * 5 * 6 + 2 * 3 * 4 * 5, 3 * 6 + 3 * 5 + 3 * 4),
        (("2",), 3 * 4 * 5, 3 * 5 + 3 * 4),
        (("0",), 3 * 5 * 6 + 3 * 4 * 5, 3 * 6 + 3 * 5 + 3 * 4),
        ((), 0, 0),
    ],
)
def test_two_layers_are_counted_by_hand(trained: tuple[str, ...], backward: int, saved: int) -> None:
    model, x = two_layers()
    parameters = training(model, *trained).parameters()
    price = measure(lambda: model(x).square().sum(), list(parameters), model)
    assert price == Cost(2 * 3 * (6 * 5 + 5 * 4), 2 * backward, 4 * saved)


def test_a_storage_is_counted_once_and_the_models_own_never() -> None:
    model, x = nn.Module(), torch.randn(3, 6, requires_grad=True)
    scale = torch.ones(6)
    model.register_buffer("scale", scale)

    def forward() -> Tensor:
        y = x * 2
        return (y.square() + y[:, :3].square().repeat(1, 2) + y * scale + y * model.get_buffer("scale")).sum()

    assert measure(forward, [x], model).saved_activation_bytes == 3 * 6 * 4
    planted = measure(forward, [x], nn.Module())  # without the model its buffer is taken for an activation
    assert planted.saved_activation_bytes == 3 * 6 * 4 + 6 * 4


def test_only_what_the_gradient_needs_is_counted_backward() -> None:
    model, x = two_layers()
    whole = measure(lambda: model(x).sum(), list(model.parameters()), model)
    last = measure(lambda: model(x).sum(), list(model[2].parameters()), model)
    unused = measure(lambda: model(x).sum(), [*model.parameters(), nn.Parameter(torch.ones(2))], model)
    assert last.flops_backward < whole.flops_backward
    assert unused == whole
    assert measure(lambda: torch.zeros(()), list(model.parameters()), model) == Cost(0, 0, 0)


class Noisy(nn.Module):
    """Draws from the global generator, moves its statistics in place, under two names too, and replaces a buffer."""

    calls: Tensor
    again: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 1))
        self.register_buffer("calls", torch.zeros(()))
        for name in ("same", "again"):
            self.register_buffer(name, self.layers.get_buffer("1.running_mean"))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.again.add_(1)
        return self.layers(x)


def picture(model: nn.Module) -> dict[str, Tensor]:
    gradients = {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return state | gradients | {"random state": torch.get_rng_state()}


def hooks(model: nn.Module) -> int:
    every = [m for module in model.modules() for m in (module._forward_hooks, module._forward_pre_hooks)]
    everywhere = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
    return sum(map(len, (*every, *everywhere)))


@pytest.mark.parametrize("fails", [False, True])
def test_measuring_leaves_no_trace(fails: bool) -> None:
    model, x = Noisy(), torch.randn(4, 6)
    model(x).sum().backward()
    graph_of_another = model(x).sum()
    before = picture(model)

    def forward() -> Tensor:
        loss = model(x).sum()
        if fails:
            raise ZeroDivisionError
        return loss

    buffers = [id(b) for b in model.buffers()]
    with torch.no_grad():
        if fails:
            with pytest.raises(ZeroDivisionError):
                measure(forward, list(model.parameters()), model)
        else:
            assert measure(forward, list(model.parameters()), model).flops_backward > 0
        assert not torch.is_grad_enabled()
    after = picture(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert buffers == [id(b) for b in model.buffers()]
    assert hooks(model) == 0
    assert torch.backends.mha.get_fastpath_enabled()
    graph_of_another.backward()


def test_a_plain_forward_pass_would_leave_a_trace() -> None:
    model = Noisy()
    before = picture(model)
    model(torch.randn(4, 6)).sum().backward()
    after = picture(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"calls", "layers.1.running_mean", "layers.1.num_batches_tracked", "random state"} <= moved


def test_two_measurements_are_equal() -> None:
    model = ViT((1, 8, 8), width=16, depth=2, heads=2, patch=4)
    x = torch.randn(3, 1, 8, 8)
    first, second = (measure(lambda: model(x).sum(), list(model.parameters()), model) for _ in range(2))
    assert first == second
    assert min(first.flops_forward, first.flops_backward, first.saved_activation_bytes) > 0


class Clock:
    """Time that passes only in what is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, *seconds: float) -> Callable[[], None]:
        """Something that takes so long, one after another, and in the end always the last."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.called.append(name)

        return call


def test_latency_is_the_ratio_of_the_shortest_calls_made_in_turn() -> None:
    """A warm-up each counts nothing; what another program adds to some calls, however much, changes nothing."""
    clock = Clock()
    call, bare = clock.takes("call", 60.0, 0.75, 3.0, 90.0, 4.0), clock.takes("bare", 50.0, 2.0, 0.5, 80.0, 2.0, 7.0)
    assert latency(call, bare, clock) == 0.75 / 0.5
    assert clock.called == ["bare", "call", *["bare", "call", "call", "bare"] * 2, "bare", "call"]


@pytest.mark.parametrize(("seconds", "pairs"), [(1.0, 5), (0.005, 10), (0.0001, 50)])
def test_measuring_latency_ends_soon(seconds: float, pairs: int) -> None:
    """Of what takes a second five pairs are timed, of what takes a ten-thousandth fifty."""
    clock = Clock()
    assert latency(clock.takes("call", seconds), clock.takes("bare", seconds), clock) == 1.0
    assert clock.called.count("call") - 1 == clock.called.count("bare") - 1 == pairs


def test_latency_is_told_by_the_processors_clock_where_no_gpu_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for works, clock in ((False, time.process_time), (True, time.perf_counter)):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda works=works: works)
        assert training_step._usual_clock() is clock
