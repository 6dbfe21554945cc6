"""torchvision's operators: defined exactly where its own library cannot load; each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.paths import ROOT


def printed(code: str) -> str:
    program = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def torchvision_imports_unaided() -> bool:
    code = "import torchvision"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_stand_ins_are_defined_exactly_where_torchvision_fails_without_them() -> None:
    defined = printed("from forgetlab.torchvision_ops import ensure; print(ensure())")
    assert defined == str(not torchvision_imports_unaided())


@pytest.mark.slow
def test_afterwards_torchvision_and_avalanche_import_and_a_second_call_changes_nothing() -> None:
    code = "from forgetlab.torchvision_ops import ensure; first = ensure(); print(ensure() == first)"
    assert printed(f"{code}; import torchvision, avalanche") == "True"


@pytest.mark.slow
def test_nothing_is_defined_where_the_library_loads() -> None:
    code = """
import torch
torch.ops.load_library = lambda path: None
from forgetlab.torchvision_ops import ensure
print(ensure(), hasattr(torch.ops.torchvision, "nms"))
"""
    assert printed(code) == "False False"


@pytest.mark.slow
def test_nothing_is_defined_where_torchvision_is_not_installed() -> None:
    code = """
import importlib.util, torch
importlib.util.find_spec = lambda name: None
from forgetlab.torchvision_ops import ensure
print(ensure(), hasattr(torch.ops.torchvision, "nms"))
"""
    assert printed(code) == "False False"


@pytest.mark.slow
def test_operators_that_exist_are_left_alone() -> None:
    code = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets) -> Tensor")
from forgetlab.torchvision_ops import ensure
print(ensure(), torch.ops.torchvision.nms.default._schema)
"""
    assert printed(code) == "False torchvision::nms(Tensor dets) -> Tensor"
