"""Files that are refused. Each in ``broken_files`` ends with what it should be told, a line for each problem:
``# expect: LINE:COLUMN: words of the message``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forgetlab.config import load
from forgetlab.config.yaml_reader import FileErrors, FileProblem
from forgetlab.plugins import registry
from helpers.paths import BROKEN_FILES

FILES = sorted(BROKEN_FILES.glob("*.yaml"))
IMPORT = "from forgetlab.plugins import register\n\n"
WHOLE = "name: broken\nscenario: split_digits\nmodel: mlp\n"


def expected_problems(path: Path) -> list[FileProblem]:
    text = path.read_bytes().decode("latin-1")
    found = re.findall(r"^# expect: (\d+):(\d+): (.+)$", text, flags=re.MULTILINE)
    return [FileProblem(int(line), int(column), words) for line, column, words in found]


def refusal(path: Path) -> FileErrors:
    with pytest.raises(FileErrors) as caught:
        load.load(path)
    return caught.value


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_exactly_what_is_wrong_is_told_where_it_is(path: Path) -> None:
    told, expected = refusal(path).problems, expected_problems(path)
    assert expected
    assert sorted(p[:2] for p in told) == sorted(p[:2] for p in expected), told
    for line, column, words in expected:
        assert any(words in p.message for p in told if p[:2] == (line, column)), told


def test_each_problem_is_one_line_that_begins_with_its_place() -> None:
    error = refusal(BROKEN_FILES / "several_at_once.yaml")
    lines = str(error).splitlines()
    assert len(lines) == len(error.problems) == 6
    assert all(re.match(r".*several_at_once\.yaml:\d+:\d+: \S", line) for line in lines)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module_anywhere\n", "line 1: ModuleNotFoundError: No module named"),
        ("\n\nraise RuntimeError('one\\ntwo')\n", "line 3: RuntimeError: one two"),
        ("def broken(:\n", "SyntaxError"),
        (
            f"{IMPORT}@register('model', 'mlp')\ndef mlp(input_shape): ...\n",
            "line 3: PluginError: model 'mlp' exists already",
        ),
        (
            f"{IMPORT}@register('modle', 'mlp')\ndef mlp(input_shape): ...\n",
            "line 3: PluginError: no kind 'modle' of plug-in; did you mean 'model'?",
        ),
    ],
)
def test_a_plugin_file_that_does_not_load(tmp_path: Path, code: str, reason: str) -> None:
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    path = tmp_path / "file.yaml"
    path.write_text(f"{WHOLE}strategies:\n  - regularization: from_mine\nplugins: [mine.py]\n", encoding="utf-8")
    before = dict(registry._plugins)
    (problem,) = str(refusal(path)).splitlines()  # and not that its plug-ins are unknown
    assert problem.startswith(f"{path}:6:11: mine.py")
    assert reason in problem
    assert registry._plugins == before


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    assert str(refusal(tmp_path)) == f"{tmp_path}:1:1: this is a folder, not a file"
    missing = tmp_path / "none.yaml"
    assert str(refusal(missing)) == f"{missing}:1:1: no such file"


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.touch()
    assert str(refusal(path)) == f"{path}:1:1: the file is empty"


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(BROKEN_FILES / "several_at_once.yaml")
    assert list(tmp_path.iterdir()) == []
