"""Python leaves every ``assert`` out with -O or PYTHONOPTIMIZE=1: promises and refusals hold without them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.processes import environment_with

PRODUCT = sorted(path for folder in ("forgetlab", "strategies", "scenarios") for path in (ROOT / folder).rglob("*.py"))
BROKEN = '''
"""Plug-ins of several kinds, each of which breaks a promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forgetlab.isolation.classifier import FromSums, means
from forgetlab.isolation import Isolation, Router, Site
from forgetlab.isolation.merger import Merger
from forgetlab.plugins import register
from forgetlab.regularization import Regularizer
from forgetlab.replay import Memory, Rehearsal, Sampler


@register("isolation", "optimised_module")
class Doubles(Isolation):
    """Changes the features before it has learned anything, and does not say so."""

    def __init__(self) -> None:
        super().__init__(("mlp.in",))

    def make(self, site: Site) -> nn.Module:
        part = nn.Module()
        part.scale = nn.Parameter(torch.full((site.out_dim,), 2.0))
        return part

    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y * part.scale


@register("router", "optimised_router")
class AlwaysFirst(Router):
    """Routes everything to the first task."""

    def fit(self, task: int, features: Tensor, labels: Tensor) -> None:
        pass

    def route(self, features: Tensor, answers: Any) -> Tensor:
        return torch.zeros(len(features), dtype=torch.int64)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def restore(self, tensors: Any, values: Any) -> None:
        pass


@register("merger", "optimised_merger")
class OfTheFirstTask(Merger):
    """Gives the first task's own tensors away."""

    def merge(self, changes: Any) -> dict[str, Tensor]:
        return {**changes[0]}


@register("regularizer", "optimised_regularizer")
class PullsToZero(Regularizer):
    """Pulls all weights to 0 and says that it holds them where they are."""

    def penalty(self, model: nn.Module, batch: Any, output: Tensor) -> Tensor:
        return torch.stack([p.square().sum() for p in model.parameters()]).sum()

    def consolidate(self, model: nn.Module, data: Any) -> None:
        pass


@register("rehearsal", "optimised_rehearsal")
class NewAlone(Rehearsal):
    """Leaves the drawn samples out."""

    def loss(self, model: nn.Module, new: Any, drawn: Any, output: Tensor) -> Tensor:
        return F.cross_entropy(output[: len(new.y)], new.y)


@register("sampler", "optimised_sampler")
class SamePlace(Sampler):
    """Draws the first place again and again."""

    def choose(self, slots: Any, n: int, new: Any, model: nn.Module, rate: float, generator: Any) -> Tensor:
        return torch.zeros(n, dtype=torch.int64)


@register("memory", "optimised_memory")
class TurnsLabels(Memory):
    """Keeps every sample under the next label."""

    def store(self, batch: Any, output: Tensor, generator: torch.Generator) -> None:
        rows = torch.arange(min(len(batch.y), self.slots.capacity))
        self.slots.write(rows, batch.rows(rows)._replace(y=batch.y[rows] + 1))


@register("classifier", "optimised_classifier")
class Furthest(FromSums):
    """Answers with the class that is furthest away."""

    def solve(self) -> dict[str, Tensor]:
        return {"means": means(self.sums)}

    def score(self, features: Tensor, solved: Any) -> Tensor:
        return torch.cdist(self.see(features), solved["means"].T)
'''
TOLD = {
    "isolation": "identity_at_birth does not say what an untrained module does on a vit",
    "router": "well separated tasks are mixed up",
    "merger": "merging changes what the tasks own",
    "regularizer": "the penalty at its anchor is ",
    "rehearsal": "drawn samples have no part in the loss",
    "sampler": "a sample is drawn twice while others lie idle",
    "memory": "labels and inputs were mixed up",
    "classifier": "well separated classes are mixed up",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What `check-module` makes of the broken plug-ins where every assert is left out."""
    folder = tmp_path_factory.mktemp("optimised")
    (folder / "broken.py").write_text(BROKEN.lstrip(), encoding="utf-8")
    environment = {**environment_with(ROOT), "PYTHONOPTIMIZE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "forgetlab", "check-module", "broken.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_broken_file_ends_with_1_without_asserts(told: subprocess.CompletedProcess[str]) -> None:
    assert told.returncode == 1, told.stdout + told.stderr
    assert "promises are broken." in told.stdout and "Every promise is kept." not in told.stdout


@pytest.mark.parametrize("kind", TOLD)
def test_each_kind_is_told_what_it_breaks_without_asserts(told: subprocess.CompletedProcess[str], kind: str) -> None:
    words = " ".join(told.stdout.split())  # wherever its lines end
    assert f"{kind} optimised_" in words and TOLD[kind] in words, told.stdout + told.stderr


def asserts(source: str) -> Iterator[ast.Assert]:
    yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert))


def only_narrows(test: ast.expr) -> bool:
    """Whether an assert's condition does no more than tell a type checker that something is there, or is a kind."""
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(only_narrows(value) for value in values)
        case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
        case ast.Call(func=ast.Name(id="isinstance")):
            return True
    return False


@pytest.mark.parametrize("path", PRODUCT, ids=[str(path.relative_to(ROOT)) for path in PRODUCT])
def test_nothing_depends_on_an_assert(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    found = list(asserts(source))
    if "checks" in path.relative_to(ROOT).parts:
        assert not found, f"line {found[0].lineno}: a promise is checked with `require`"
    for node in found:
        assert only_narrows(node.test), f"line {node.lineno}: raise an error, an assert is left out with -O"


@pytest.mark.parametrize("name", sorted(one.name for one in files("forgetlab.checks").joinpath("templates").iterdir()))
def test_nothing_that_is_scaffolded_depends_on_an_assert(name: str) -> None:
    text = files("forgetlab.checks").joinpath("templates", name).read_text(encoding="utf-8")
    assert "assert" not in text.split()


@pytest.mark.parametrize(
    ("source", "narrows"),
    [
        ("assert run.pretrain is not None", True),
        ("assert a is not None and isinstance(b, int)", True),
        ("assert len(x) == 3", False),
        ("assert a is not None and a > 0", False),
        ("assert a is not b", False),
        ("assert given", False),
    ],
)
def test_what_only_narrows_is_told_from_what_refuses(source: str, narrows: bool) -> None:
    (found,) = asserts(source)
    assert only_narrows(found.test) == narrows
