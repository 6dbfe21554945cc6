"""A researcher's own plug-in: what is written to start from works, what is broken is found, and the guide runs."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from forgetlab import torchvision_ops
from forgetlab.checks import promises, scaffold
from forgetlab.checks.backbones import FAMILIES
from forgetlab.cli.main import main
from forgetlab.plugins import registry
from forgetlab.results.store import Store
from helpers.commands import invoke
from helpers.paths import ROOT

GUIDE = ROOT / "docs" / "your_own_module.md"
BLOCK = re.compile(r"^```(\w+) ?([\w.]*)( \+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAD = '''"""Broken."""
from __future__ import annotations
from typing import Any
import torch
from torch import Tensor, nn
from forgetlab.isolation import Isolation, Site
from forgetlab.plugins import register

@register("isolation", "scaffold_broken")
class Broken(Isolation):
    """Broken."""
    def __init__(self) -> None:
        super().__init__(("block",))
    def make(self, site: Site) -> nn.Module:
        part = nn.Module()
        part.scale = nn.Parameter(torch.ones(site.out_dim))
        return part
    def after(self, part: Any, site: Site, x: Tensor, y: Tensor) -> Tensor:
'''


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test writes in a folder of its own, and what it registers is forgotten after it."""
    torchvision_ops.ensure()
    registry.discover()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    monkeypatch.setattr(registry, "_files", dict(registry._files))


EACH = """
name: each
scenario: {{name: split_digits, n_tasks: 2}}
model: {{name: {model}}}
protocol: {{budget: {{updates: 5}}}}
references: []
plugins: [{file}]
strategies: [{entry}]
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_what_is_written_runs_as_it_is_advised(kind: str) -> None:
    name = f"advised_{kind}"
    told = invoke("new", kind, name).stdout
    entry = told.partition("strategies: [")[2].strip().removesuffix("]")
    model = "vit, width: 16, depth: 2, patch: 4" if "isolation" in entry else "mlp"
    Path("each.yaml").write_text(EACH.format(model=model, file=f"{name}.py", entry=entry), encoding="utf-8")
    done = invoke("run", "each.yaml", "--no-tracking")
    assert done.exit_code == 0, done.output
    (result,) = (folder.result() for folder in Store(Path("runs")).folders("each"))
    assert result is not None and result.metrics["average_accuracy"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_what_is_written_keeps_every_promise(kind: str) -> None:
    name = f"my_new_{kind}"
    made = invoke("new", kind, name)
    assert made.exit_code == 0, made.output
    assert f"forgetlab check-module {name}.py" in made.stdout and f"python -m pytest test_{name}.py" in made.stdout
    checked = invoke("check-module", f"{name}.py")
    assert checked.exit_code == 0, checked.output
    assert "Every promise is kept." in checked.stdout and "failed" not in checked.stdout
    assert checked.stdout.count("  ok  ") == len(promises.checks_of(registry.find(kind, name)))
    assert len(Path(f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 45


def test_the_written_test_holds_the_plugin_to_its_promises() -> None:
    invoke("new", "router", "tested_router")
    written = runpy.run_path("test_tested_router.py")
    assert written["PLUGIN"].name == "tested_router"
    for check in promises.checks_of(written["PLUGIN"]):
        written["test_it_keeps_its_promises"](check)
    text = Path("tested_router.py").read_text(encoding="utf-8").replace("argmin", "argmax")
    Path("tested_router.py").write_text(text, encoding="utf-8")
    written = runpy.run_path("test_tested_router.py")
    with pytest.raises(AssertionError, match="well separated tasks are mixed up"):
        written["test_it_keeps_its_promises"](promises.router.finds_separated_tasks)


def test_nothing_is_overwritten() -> None:
    Path("test_mine.py").write_text("mine", encoding="utf-8")
    told = invoke("new", "isolation", "mine")
    assert told.exit_code == 2 and told.stderr == "test_mine.py is there already; nothing was written\n"
    assert [path.name for path in Path().iterdir()] == ["test_mine.py"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("isolation", "lora"),
            "isolation 'lora' exists already, in forgetlab.strategies.isolation.modules.low_rank.lora",
        ),
        (("isolation", "My-Lora"), "'My-Lora' is no name: small letters, digits and _, a letter first"),
        (("isolatoin", "mine"), "'isolatoin' is not one of 'isolation', 'router', 'merger', 'classifier'"),
    ],
)
def test_what_cannot_be_new_is_refused(arguments: tuple[str, str], words: str) -> None:
    told = invoke("new", *arguments)
    assert told.exit_code == 2 and words in told.stderr and not [*Path().iterdir()]


def checked(body: str, *options: str) -> Result:
    Path("broken.py").write_text(HEAD + body, encoding="utf-8")
    return invoke("check-module", "broken.py", *options)


def words(text: str) -> str:
    """What was printed, wherever its lines end."""
    return " ".join(text.split())


@pytest.mark.slow
def test_a_broken_promise_names_the_backbones_and_the_line() -> None:
    done = checked("        return y * part.scale + (y.mean(0) if y.dim() == 3 else 0)\n")
    assert done.exit_code == 1
    told = words(done.stdout)
    assert "failed A sample's answer does not depend on what else is in the batch" in told
    for family in FAMILIES:
        named = f"on {family}: the same sample in another batch is answered otherwise" in told
        assert named == (family != "mlp"), told
    assert "(broken.py, line 9: Broken)" in told and re.search(r"\d promises are broken\.", told)
    assert re.search(r"ok +After the context", told), "others are kept"


@pytest.mark.slow
def test_an_error_names_its_line_once() -> None:
    done = checked("        return y[..., :5] * part.scale[:7]\n")
    told = words(done.stdout)
    assert done.exit_code == 1
    assert told.count("(broken.py, line 19: return y[..., :5] * part.scale[:7])") == 2  # sequences, and the mlp's rows
    assert "RuntimeError: The size of tensor a (5) must match" in told
    assert "on vit, bert, gpt2, hf_vit, timm: the same as above" in told


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("import os\n", (), "registers nothing: write @register("),
        ("raise KeyError('x')\n", (), "x.py, line 1: KeyError: 'x'"),
        ("import nowhere_to_be_found\n", (), "x.py, line 1: ModuleNotFoundError"),
        (None, (), "no such plug-in file: x.py"),
        (HEAD + "        return y\n", ("--name", "scaffold_brokn"), "did you mean 'scaffold_broken'?"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(text: str | None, options: tuple[str, ...], told: str) -> None:
    if text is not None:
        Path("x.py").write_text(text, encoding="utf-8")
    done = invoke("check-module", "x.py", *options)
    assert done.exit_code == 2 and told in done.stderr and done.stdout == ""


def test_the_help_says_that_code_is_run() -> None:
    assert "This runs the code in FILE." in words(invoke("check-module", "--help").stdout)


RUN = """
name: own
scenario: {{name: split_digits, n_tasks: 3}}
model: {{name: vit, width: 16, depth: 2, patch: 4}}
protocol: {{budget: {{epochs: 3}}}}
train: {{lr: 3e-2}}
references: []
{plugins}
strategies:
  - {{name: routed, isolation: {module}, router: prototype}}
  - {{name: told, isolation: {module}, router: oracle}}
"""


@pytest.mark.slow
def test_a_module_outside_the_repository_trains_and_is_routed() -> None:
    """SSF, in the 30 lines that `forgetlab new` writes, named in a scenario file by its path."""
    (file, _) = scaffold.new("isolation", "outside", Path("mine"))
    assert len(file.read_text(encoding="utf-8").splitlines()) == 30
    Path("own.yaml").write_text(RUN.format(plugins="plugins: [mine/outside.py]", module="outside"), encoding="utf-8")
    done = invoke("run", "own.yaml", "--no-tracking")
    assert done.exit_code == 0, done.output
    routed, told = (Store(Path("runs")).folder("own", name, 0).result() for name in ("routed", "told"))
    assert routed is not None and told is not None
    assert routed.metrics["average_accuracy"] > 0.3 and told.metrics["forgetting"] == 0  # type: ignore[operator]
    assert routed.scores["router_accuracy"][-1] != [1.0] * 3, "it was routed"
    assert routed.counts["per_task"]["trainable"][1] == 2 * 2 * 16 + 3 * 17


def blocks() -> Iterator[tuple[str, str, bool, str]]:
    """Of the guide: language, file name, whether it goes on in that file, text."""
    for language, name, more, text in BLOCK.findall(GUIDE.read_text(encoding="utf-8")):
        yield language, name, bool(more), text


@pytest.mark.slow
def test_the_guide_runs(tmp_path: Path) -> None:
    """Its files are written, its commands run and print what it says, its Python runs: block by block."""
    package = tmp_path / "installed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(package)]), "COLUMNS": "200"}
    for language, name, more, text in blocks():
        if name:
            with (tmp_path / name).open("a" if more else "w", encoding="utf-8") as file:
                file.write("\n" * more + text)
        if language == "console":
            for line, expected in commands(text):
                shown = run(line, package, environment)
                assert all(part in shown for part in expected), f"{line}\n{shown}"
        elif language == "python" and not name:
            exec(compile(text, GUIDE.name, "exec"), {})
    lora = (tmp_path / "my_lora.py").read_text(encoding="utf-8").splitlines()
    assert len(lora) <= 35 and not any(len(line) > 120 for line in lora)
    written = runpy.run_path("test_my_lora.py")
    for check in promises.checks_of(written["PLUGIN"]):
        written["test_it_keeps_its_promises"](check)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command, and the lines that are in what it prints."""
    for command in text.split("$ ")[1:]:
        line, *expected = command.strip().splitlines()
        yield line, expected


def run(line: str, package: Path, environment: dict[str, str]) -> str:
    """One command of the guide; installing goes to a folder of its own, from this machine alone."""
    program, *arguments = shlex.split(line)
    if program == "forgetlab" and arguments[0] != "show":  # here and now; what is installed needs a new process
        done = CliRunner(env={"COLUMNS": "200"}).invoke(main, arguments)
        assert done.exit_code == 0, done.output
        return done.output
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(package)]
    more = offline if program == "pip" else []
    given = [sys.executable, "-m", program, *arguments, *more]
    finished = subprocess.run(given, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_a_block_that_tells_something_else_is_found(tmp_path: Path) -> None:
    ((line, expected),) = commands("$ forgetlab list isolation\nlora\nno such module\n")
    shown = run(line, tmp_path, {})
    assert "lora" in shown and not all(part in shown for part in expected)
