"""The package as a user gets it: one import name, a wheel that runs anywhere, a command that answers fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from helpers.paths import ROOT

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def call(*program: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a second environment: the wheel, and beside it the packages of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, env=ENVIRONMENT)
    packages = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", env=ENVIRONMENT)
    (Path(packages) / "other_packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


def test_the_wheel_holds_one_package_with_its_plugins_and_an_example(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"forgetlab"}
    assert {Path(name).parts[0] for name in names if ".dist-info" not in name} == {"forgetlab"}
    plugins = [
        path.relative_to(ROOT) for folder in ("strategies", "scenarios") for path in (ROOT / folder).rglob("*.py")
    ]
    assert {f"forgetlab/{path.as_posix()}" for path in plugins} <= set(names)
    assert {"forgetlab/py.typed", "forgetlab/config/examples/split_digits.yaml"} <= set(names)


@pytest.mark.slow
def test_the_installed_wheel_is_what_gets_imported(programs: Path, tmp_path: Path) -> None:
    code = "import forgetlab.strategies, torch; print(forgetlab.__file__)"
    place = Path(call(programs / "python", "-c", code, cwd=tmp_path, env=ENVIRONMENT))
    assert place.is_relative_to(programs.parent)


@pytest.mark.slow
def test_the_installed_command_runs_an_example_from_any_folder(programs: Path, tmp_path: Path) -> None:
    code = "import forgetlab; print(forgetlab.__path__[0])"
    package = Path(call(programs / "python", "-c", code, cwd=tmp_path, env=ENVIRONMENT))
    example = yaml.safe_load((package / "config" / "examples" / "split_digits.yaml").read_text(encoding="utf-8"))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shortened(example)), encoding="utf-8")

    command = programs / "forgetlab"
    assert "run" in call(command, "--help", cwd=tmp_path, env=ENVIRONMENT)
    call(command, "run", "small.yaml", "--runs", tmp_path / "runs", cwd=tmp_path, env=ENVIRONMENT)
    assert list((tmp_path / "runs" / "small").glob("*/seed-0/result.json"))


def shortened(example: dict[str, Any]) -> dict[str, Any]:
    """The example with one seed, one epoch, its first strategy and no reference but fine-tuning."""
    protocol = example.get("protocol", {}) | {"budget": {"epochs": 1}}
    few = {"name": "small", "protocol": protocol, "references": ["naive"], "seeds": [0]}
    return example | few | {"strategies": example["strategies"][:1]}


@pytest.mark.parametrize("name", ["strategies", "scenarios"])
def test_the_short_import_name_is_refused(name: str) -> None:
    program = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ModuleNotFoundError: import forgetlab.{name}" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from forgetlab.cli.main import main
try:
    main(["--help"])
except SystemExit:
    print("imported:", *sorted({"torch", "mlflow", "avalanche", "matplotlib"} & sys.modules.keys()))
"""
    assert call(sys.executable, "-c", code).endswith("imported:")


@pytest.mark.slow
def test_a_skipped_test_fails_where_everything_is_required(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skip.py").write_text(
        "import pytest\n\n@pytest.mark.skip(reason='no browser')\ndef test(): pass\n\n"
        "@pytest.mark.xfail(reason='known')\ndef test_known(): assert False\n",
        encoding="utf-8",
    )
    (tmp_path / "test_whole_file.py").write_text(
        "import pytest\n\npytest.skip('no data', allow_module_level=True)\n", encoding="utf-8"
    )
    strict = ENVIRONMENT | {"FORGETLAB_REQUIRE_ALL": "1"}
    lenient = {key: value for key, value in ENVIRONMENT.items() if key != "FORGETLAB_REQUIRE_ALL"}
    program = [sys.executable, "-m", "pytest", "--continue-on-collection-errors", "-q", "."]
    done = [
        subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        for env in (strict, lenient)
    ]
    assert [run.returncode for run in done] == [1, 0], done[0].stdout + done[1].stdout
    assert "no browser" in done[0].stdout and "no data" in done[0].stdout
