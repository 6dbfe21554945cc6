"""Whether two trees of ForgetLab compute the same numbers.

    python tests/prove/same_numbers.py OLD_TREE NEW_TREE [--out FOLDER] [--only NAME ...]

The scenario files in ``same_numbers/`` are carried out in both trees, side by side on this machine, from empty caches.
Then everything that the runs left is compared: ``result.json``, the tensors of modules to the bit, ``tuning.json``,
``config.yaml`` without its key, the tables of ``forgetlab compare``, and what MLflow holds. Keys, times and dates may
differ; what else may is listed in `EXPLAINED`, each with its reason.

The runs are only worth something if they use what there is. So the command also fails where a plug-in of one of the
families is in none of them, where a combination of `COMBINATIONS` is, where they are fewer than `LEAST_RUNS` of three
tasks, or where less than `LEAST_COVERAGE` of the lines of ``strategies/`` was passed in one of the trees.

It needs the data of ``make data`` and the package coverage; two cores make it twice as fast. It imports nothing of
ForgetLab itself, and asks the trees by their commands, the files that these leave, and the registry.

Exit status: 0 the same, 1 different or not enough, 2 a run failed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from differences import Difference, Found, compare_files, compare_tables, compare_tracked

HERE = Path(__file__).resolve().parent
FILES, COMMANDS = HERE / "same_numbers", HERE / "commands.py"
WORKERS = {"workers": 2}  # files that go through their runs in several processes
LEAST_RUNS, LEAST_TASKS = 60, 3
LEAST_COVERAGE = 95.0  # per cent of the lines of strategies/
SHOWN = 60  # differences that are printed
DIFFERENT, FAILED = 1, 2


@dataclass(frozen=True)
class Explained:
    """Differences that may be, and why."""

    where: str  # a pattern of `Difference.where`, with * for anything
    old: str  # likewise of what the old tree has
    new: str
    why: str


EXPLAINED = (
    Explained(
        "*/error.txt (last line)",
        "forgetlab.*Diverged: *",
        "forgetlab.*Diverged: *",
        "a traceback ends with the dotted name of its error's class, which moves with the file that holds it",
    ),
)

Entry = Mapping[str, Any]  # one run's config.yaml


def _replay(part: str) -> Callable[[Entry], bool]:
    return lambda run: part in run["strategy"].get("replay", {})


def _has(part: str) -> Callable[[Entry], bool]:
    return lambda run: part in run["strategy"]


def _protocol(key: str, value: Any) -> Callable[[Entry], bool]:
    return lambda run: run["protocol"][key] == value


def _stream(key: str, value: Any = None) -> Callable[[Entry], bool]:
    return lambda run: run["scenario"].get(key) == value if value is not None else bool(run["scenario"].get(key))


def _pretrained(objective: str) -> Callable[[Entry], bool]:
    return lambda run: run.get("pretrain", {}).get("objective") == objective


def _searched(search: str) -> Callable[[Entry], bool]:
    return lambda run: run.get("tuned", {}).get("search", {}).get("search") == search


def _reference(name: str) -> Callable[[Entry], bool]:
    return lambda run: run["strategy"].get("reference", {}).get("name") == name


def _trained_by(optimizer: str) -> Callable[[Entry], bool]:
    return lambda run: run["train"]["optimizer"] == optimizer


SETTINGS = tuple(f"{what}-incremental" for what in ("class", "task", "domain", "data"))
COMBINATIONS: Mapping[str, Callable[[Entry], bool]] = {
    "latent replay": _replay("depth"),
    "general data": _replay("general"),
    "a projection of replay": _replay("projection"),
    "shared: true": _has("shared"),
    "shared: true with replay": lambda run: "shared" in run["strategy"] and "replay" in run["strategy"],
    "shared: true with regularization": lambda run: "shared" in run["strategy"] and "regularization" in run["strategy"],
    "merge": _has("merge"),
    "router": lambda run: run["strategy"].get("router", {}).get("name", "oracle") != "oracle",
    "oracle": lambda run: run["strategy"].get("router", {}).get("name") == "oracle",
    "classifier": _has("classifier"),
    "classifier with a module": lambda run: {"classifier", "isolation"} <= run["strategy"].keys(),
    "replay with regularization": lambda run: {"replay", "regularization"} <= run["strategy"].keys(),
    "several under regularization": lambda run: len(run["strategy"].get("regularization", ())) > 1,
    "several under isolation": lambda run: run["strategy"].get("isolation", {}).get("name") == "combined",
    "search: grid": _searched("grid"),
    "search: optuna": _searched("optuna"),
    **{f"pretrain: {name}": _pretrained(name) for name in ("supervised", "masked", "causal", "contrastive")},
    "Avalanche's plug-in": lambda run: "plugin" in run["strategy"].get("avalanche", {}),
    "Avalanche's strategy": lambda run: "strategy" in run["strategy"].get("avalanche", {}),
    "Avalanche's beside ours": lambda run: {"avalanche", "replay"} <= run["strategy"].keys(),
    **{f"loss_classes: {name}": _protocol("loss_classes", name) for name in ("all", "seen", "current")},
    **{f"head: {name}": _protocol("head", name) for name in ("growing", "fixed", "per-task")},
    "one optimizer for all tasks": _protocol("reset_optimizer", False),
    "evaluate_on: validation": _protocol("evaluate_on", "validation"),
    "budget: epochs": lambda run: "epochs" in run["protocol"]["budget"],
    "budget: updates": lambda run: "updates" in run["protocol"]["budget"],
    **{f"setting: {name}": _stream("setting", name) for name in SETTINGS},
    "held back classes": _stream("held_back"),
    "online": _stream("online"),
    "blurry": _stream("blurry"),
    "task-free": _stream("boundaries", False),
    "few-shot": _stream("few_shot"),
    "repetition": _stream("repetition"),
    "label noise": _stream("label_noise"),
    "long tail": lambda run: run["scenario"].get("long_tail", 1) > 1,
    "validation kept apart": _stream("validation"),
    **{f"reference {name}": _reference(name) for name in ("naive", "joint", "separate", "ridge", "tfidf")},
    **{f"optimizer: {name}": _trained_by(name) for name in ("adam", "adamw", "sgd")},
    "augmented images": lambda run: bool(run["train"]["augment"]),
    "frozen work not kept": lambda run: not run["reuse_frozen"],
    "plug-in files": lambda run: bool(run["plugins"]),
}  # fmt: skip

PARTS = ("memory", "sampler", "rehearsal", "projection")  # of replay
PENALTIES = ("regularizer", "projection", "regime")  # the kinds under regularization
NESTED = {"parts": "isolation", "then": "merger"}  # options that name further plug-ins


class RunFailure(RuntimeError):
    """A command of one of the trees did not end well."""


@dataclass(frozen=True)
class Tree:
    """One tree, and where it works."""

    name: str  # old or new
    code: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        """What its commands run under: its own code, its own empty caches, one thread, wide tables."""
        foreign = ("FORGETLAB_", "MLFLOW_", "COVERAGE_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        data = {name: os.environ[name] for name in ("FORGETLAB_DATA",) if name in os.environ}
        return {
            **kept,
            **data,
            "PYTHONPATH": str(self.code),
            "PYTHONDONTWRITEBYTECODE": "1",
            "FORGETLAB_CACHE": str(self.work / "cache"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "COLUMNS": "1000",
        }

    def python(self, *arguments: str) -> str:
        """What a command of Python prints in this tree.

        Raises:
            RunFailure: with the end of what it says.
        """
        command = [sys.executable, *arguments]
        log = self.work / "log.txt"
        with log.open("ab") as told:
            told.write(f"\n$ {' '.join(command)}\n".encode())
            told.flush()
            done = subprocess.run(command, cwd=self.work, env=self.environment, stdout=subprocess.PIPE, stderr=told)
        if done.returncode:
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
            raise RunFailure(f"{self.name} tree: {' '.join(arguments)} ended with {done.returncode}\n" + "\n".join(end))
        return done.stdout.decode()

    def forgetlab(self, *commands: tuple[Sequence[str], str | None], measured: bool = False) -> None:
        """Call commands of ForgetLab, each with the file in the work folder that takes what it prints.

        ``measured``: the lines of strategies/ that they pass are noted.
        """
        listed = [{"arguments": list(arguments), "to": to and str(self.work / to)} for arguments, to in commands]
        before = ("-m", "coverage", "run", f"--rcfile={self.work / 'coverage.ini'}") if measured else ()
        self.python(*before, str(COMMANDS), "forgetlab", json.dumps(listed))


def main() -> int:
    """Carry out, compare, and print what was found."""
    arguments = _arguments()
    files = _chosen(arguments.only)
    out = arguments.out or Path(tempfile.mkdtemp(prefix="same-numbers-"))
    trees = [
        Tree(name, path.resolve(), out.resolve() / name)
        for name, path in (("old", arguments.old), ("new", arguments.new))
    ]
    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(1 if arguments.one_by_one else 2) as pool:
            list(
                pool.map(
                    lambda tree: carry_out(tree, files), [tree for tree in trees if tree.name not in arguments.keep]
                )
            )
        lines = [coverage(tree) for tree in trees]
        plugins = json.loads(trees[1].python("-c", REGISTRY))
    except RunFailure as error:
        print(error)
        return FAILED
    found = compare(trees[0], trees[1])
    unexplained = _print_differences(found.differences)
    runs = list(described(trees[1].work / "runs"))
    used = {one for run in runs for one in plugins_of(run, plugins)}
    known = {(kind, name) for kind, names in plugins.items() for name in names}
    own = {(kind, name) for kind, name in used if name.startswith("own_")}
    missing = list(_not_enough(runs, known - used, lines, trees)) if not arguments.only else []
    print("\n".join(missing))
    counted = ", ".join(f"{number:,} {what}" for what, number in found.counts.items())
    print(
        f"{len(files)} files, {len(runs)} runs, {len(used & known)} of {len(known)} plug-ins (and {len(own)} own ones)"
    )
    print(f"compared: {counted}")
    for tree, share in zip(trees, lines, strict=True):
        print(f"lines of strategies/ in the {tree.name} tree: {share[0]:.1f} %")
    if arguments.only:
        print("only some files: what the runs have to use was not looked at")
    explained = len(found.differences) - unexplained
    print(f"{unexplained} differences without a reason, {explained} with one; {time.monotonic() - begun:.0f} s; {out}")
    return DIFFERENT if unexplained or missing else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD_TREE")
    parser.add_argument("new", type=Path, metavar="NEW_TREE")
    parser.add_argument("--out", type=Path, help="a folder for all that the runs leave; by default a temporary one")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these scenario files alone")
    parser.add_argument("--one-by-one", action="store_true", help="one tree after the other, on one core")
    parser.add_argument(
        "--keep", nargs="+", default=[], choices=("old", "new"), help="trees whose runs are in --out from before"
    )
    arguments = parser.parse_args()
    for tree in (arguments.old, arguments.new):
        if not (tree / "forgetlab").is_dir():
            parser.error(f"{tree} holds no folder forgetlab")
    return arguments


def _chosen(only: Sequence[str]) -> list[Path]:
    files = sorted(FILES.glob("*.yaml"))
    unknown = set(only) - {file.stem for file in files}
    if unknown:
        sys.exit(f"no such file: {', '.join(sorted(unknown))}; there are: {', '.join(file.stem for file in files)}")
    return [file for file in files if not only or file.stem in only]


# Carrying out


def carry_out(tree: Tree, files: Sequence[Path]) -> None:
    """All runs of one tree, from nothing.

    Raises:
        RunFailure: a run failed, or another tree's code was found.
    """
    shutil.rmtree(tree.work, ignore_errors=True)
    tree.work.mkdir(parents=True)
    settings = f"[run]\nparallel = true\nsource = {tree.code / 'strategies'}\ndata_file = {tree.work / '.coverage'}\n"
    (tree.work / "coverage.ini").write_text(settings, encoding="utf-8")
    where = Path(tree.python("-c", "import forgetlab; print(forgetlab.__file__)").strip()).resolve()
    if not where.is_relative_to(tree.code):
        raise RunFailure(f"{tree.name} tree: forgetlab is imported from {where}")
    alone = [str(file) for file in files if file.stem not in WORKERS]
    side_by_side = [["run", str(file), "--workers", str(WORKERS[file.stem])] for file in files if file.stem in WORKERS]
    if alone:
        tree.forgetlab((["run", *alone], None), measured=True)
    shown = [(["compare"], "table.txt"), (["compare", "--markdown"], "markdown.txt")]
    tree.forgetlab(*((arguments, None) for arguments in side_by_side), *shown)


def coverage(tree: Tree) -> tuple[float, list[str]]:
    """The share of the lines of strategies/ that were passed, in per cent, and which were not."""
    rcfile = f"--rcfile={tree.work / 'coverage.ini'}"
    report = tree.work / "coverage.json"
    if list(tree.work.glob(".coverage.*")):
        tree.python("-m", "coverage", "combine", "-q", rcfile)
    if not (tree.work / ".coverage").is_file():
        return 0.0, []
    tree.python("-m", "coverage", "json", "-q", rcfile, "-o", str(report))
    measured = json.loads(report.read_text(encoding="utf-8"))
    missed = []
    for path, one in measured["files"].items():
        if one["missing_lines"]:
            name = Path(os.path.realpath(path)).relative_to(tree.code)
            missed.append(f"{name}: {', '.join(map(str, one['missing_lines']))}")
    return measured["totals"]["percent_covered"], missed


# What the runs use

REGISTRY = """
import json
from forgetlab import plugins
kinds = [kind for kind, about in plugins.KINDS.items() if about.family is not None]
print(json.dumps({kind: plugins.available(kind) for kind in kinds}))
"""


def described(runs: Path) -> Iterator[Entry]:
    """The config.yaml of every finished run that is shown, with how many tasks it has."""
    for path in sorted(runs.glob("*/*/seed-*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if len(result["accuracy"]) == len(result["task_names"]):
            text = path.with_name("config.yaml").read_text(encoding="utf-8")
            yield {"tasks": len(result["task_names"]), **yaml.safe_load(text)}


def plugins_of(run: Entry, known: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """The plug-ins of the families that a run uses: (kind, name)."""
    strategy = run["strategy"]
    named = [(part, strategy.get("replay", {}).get(part)) for part in PARTS]
    for spec in strategy.get("regularization", ()):
        named.append((next(kind for kind in PENALTIES if spec["name"] in known[kind]), spec))
    keys = {"isolation": "isolation", "router": "router", "merge": "merger", "classifier": "classifier"}
    named += [(kind, strategy.get(key)) for key, kind in keys.items()]
    for kind, spec in named:
        if spec is not None:
            yield from _with_nested(kind, spec)


def _with_nested(kind: str, spec: Any) -> Iterator[tuple[str, str]]:
    if isinstance(spec, str):
        yield kind, spec
        return
    yield kind, spec["name"]
    for option, inner in NESTED.items():
        chosen = spec.get(option)
        for one in chosen if isinstance(chosen, list) else [chosen]:
            if one is not None:
                yield from _with_nested(inner, one)


def _not_enough(
    runs: Sequence[Entry], unused: set[tuple[str, str]], lines: Sequence[tuple[float, list[str]]], trees: Sequence[Tree]
) -> Iterator[str]:
    """What the runs would have to use and do not."""
    long = sum(run["tasks"] >= LEAST_TASKS for run in runs)
    if long < LEAST_RUNS:
        yield f"NOT ENOUGH: {long} runs of {LEAST_TASKS} tasks or more; there should be {LEAST_RUNS}"
    for kind, name in sorted(unused):
        yield f"NOT ENOUGH: no run uses the {kind} {name}"
    for name, holds in COMBINATIONS.items():
        if not any(holds(run) for run in runs):
            yield f"NOT ENOUGH: no run has the combination {name!r}"
    for tree, (share, missed) in zip(trees, lines, strict=True):
        print("\n".join(f"not passed in the {tree.name} tree: {line}" for line in missed))
        if share < LEAST_COVERAGE:
            yield f"NOT ENOUGH: {share:.1f} % of the lines of strategies/ in the {tree.name} tree; {LEAST_COVERAGE} %"


# Comparing


def compare(old: Tree, new: Tree) -> Found:
    """All that the two left."""
    found = Found()
    compare_files(found, "runs", old.work / "runs", new.work / "runs")
    for form in ("table", "markdown"):
        texts = [(tree.work / f"{form}.txt").read_text(encoding="utf-8") for tree in (old, new)]
        compare_tables(found, f"forgetlab compare ({form})", *texts)
    compare_tracked(found, old.work, new.work)
    return found


def _print_differences(differences: Sequence[Difference]) -> int:
    """Print those that have no reason, and the reasons of the others; returns how many have none."""
    reasons: dict[str, int] = {}
    left = []
    for one in differences:
        why = _reason(one)
        if why is None:
            left.append(one)
        else:
            reasons[why] = reasons.get(why, 0) + 1
    for one in left[:SHOWN]:
        print(f"DIFFERENT: {one}")
    if len(left) > SHOWN:
        print(f"... and {len(left) - SHOWN} more")
    for why, number in reasons.items():
        print(f"{number} times with a reason: {why}")
    return len(left)


def _reason(one: Difference) -> str | None:
    for known in EXPLAINED:
        pairs = ((one.where, known.where), (one.old, known.old), (one.new, known.new))
        if all(fnmatch.fnmatchcase(text, pattern) for text, pattern in pairs):
            return known.why
    return None


if __name__ == "__main__":
    sys.exit(main())
