"""Data larger than memory: mapped inputs give what the same inputs in memory give, to the bit, and stay on disk."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.large import anonymous
from forgetlab.avalanche.tensor_data import TensorLoader, TensorTask, batches, to_benchmark, together
from forgetlab.data import digests, mapped_rows
from forgetlab.data.datasets import Dataset, Samples, as_input, dataset, held_out
from forgetlab.data.mapped_rows import FileChanged, Rows, keep, open_npy, write_npy
from forgetlab.engine import one_run
from forgetlab.experiment import Strategy
from forgetlab.learners.context import Context
from forgetlab.streams.build import split
from forgetlab.streams.scenario import Scenario

N = 60


@pytest.fixture(autouse=True)
def nothing_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every file stays on disk, and to read one whole is refused."""
    monkeypatch.setattr(mapped_rows, "BOUND", 0)
    monkeypatch.delenv("FORGETLAB_MEMORY", raising=False)
    monkeypatch.setenv("FORGETLAB_CACHE", str(tmp_path / "cache"))


def noise(n: int = N, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def on_disk(x: Tensor, path: Path) -> Rows:
    write_npy(path, x.split(7))
    opened = open_npy(path)
    assert isinstance(opened, Rows)
    return opened


def check_equal(rows: Tensor, x: Tensor) -> None:
    assert isinstance(rows, Rows) and torch.equal(rows.read(), x)


def stream(x: Tensor, n_tasks: int = 3) -> Scenario:
    """Six classes; the test data are in memory."""
    y, test = torch.arange(len(x)) % 6, noise(18, seed=1)
    data = Dataset(Samples(x, y), Samples(test, torch.arange(18) % 6), tuple("abcdef"))
    return split(data, setting="class-incremental", n_tasks=n_tasks, seed=0)


def train_sets(scenario: Scenario) -> list[TensorTask]:
    return [experience.dataset for experience in to_benchmark(scenario).streams["train"]]


# 1. Rows


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float64, torch.bool])
def test_rows_are_those_of_the_tensor_and_keep_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    x = noise().to(dtype)
    rows = on_disk(x, tmp_path / "x.npy")
    assert (rows.shape, rows.dtype, rows.device, len(rows), rows.dim()) == (x.shape, dtype, x.device, N, 4)
    order = torch.tensor([5, 5, 59, 0, 17])
    found = rows.index_select(0, order)
    assert type(found) is Tensor and found.dtype == dtype and torch.equal(found, x[order])
    assert torch.equal(rows.index_select(0, order[:0]), x[:0])


ITEMS: list[Any] = [
    slice(3, 40, 5),
    slice(None),
    slice(-3, None),
    [4, 1, -1],
    np.array([7, 7, 0]),
    torch.tensor([9, 2, 9]),
    torch.arange(N) % 7 == 1,
    torch.tensor([], dtype=torch.int64),
]


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_some_rows_are_still_on_disk_and_so_are_some_of_them(item: Any, tmp_path: Path) -> None:
    x = noise()
    rows = on_disk(x, tmp_path / "x.npy")
    some = rows[item]
    assert isinstance(some, Rows) and some.parts == rows.parts
    assert torch.equal(some.read(), x[item]) and some.shape == x[item].shape
    again = some[1:]
    assert isinstance(again, Rows) and torch.equal(again.read(), x[item][1:])
    assert all(torch.equal(some[i], x[item][i]) for i in range(len(some)))


def test_one_row_is_a_sample(tmp_path: Path) -> None:
    x = noise()
    rows = on_disk(x, tmp_path / "x.npy")[10:]
    for i in (0, 3, -1, torch.tensor(4)):
        assert type(rows[i]) is Tensor and torch.equal(rows[i], x[10:][i])
    with pytest.raises(IndexError):
        rows[50]


@pytest.mark.parametrize("wrong", [-1, N])
@pytest.mark.parametrize("some", [slice(None), slice(0, N)])
def test_rows_that_are_not_there_are_refused(wrong: int, some: slice, tmp_path: Path) -> None:
    rows = on_disk(noise(), tmp_path / "x.npy")
    for one in (rows, rows[some]):
        with pytest.raises((IndexError, RuntimeError)):
            one.index_select(0, torch.tensor([0, wrong]))


def test_joined_rows_of_one_file_are_rows_of_that_file(tmp_path: Path) -> None:
    x, other = noise(), noise(9, seed=3)
    rows, second = on_disk(x, tmp_path / "x.npy"), on_disk(other, tmp_path / "other.npy")
    joined = torch.cat([rows[40:], rows[[3, 1]], rows])
    assert isinstance(joined, Rows) and len(joined.parts) == 1
    assert torch.equal(joined.read(), torch.cat([x[40:], x[[3, 1]], x]))
    mixed = torch.cat([second[2:], joined, other, second, joined[::2]])
    assert isinstance(mixed, Rows) and len(mixed.parts) == 3
    expected = torch.cat([other[2:], joined.read(), other, other, joined.read()[::2]])
    assert torch.equal(mixed.read(), expected)
    draw = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))
    assert torch.equal(mixed.index_select(0, draw), expected[draw])


def test_what_needs_them_whole_is_refused_past_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise()
    rows = on_disk(x, tmp_path / "x.npy")
    uses: list[Callable[[Tensor], Any]] = [
        lambda x: x.float(),
        lambda x: x[:, 0],
        lambda x: x.flatten(1),
        lambda x: x.numpy().sum(),
        lambda x: x.tolist(),
        lambda x: x.index_select(1, torch.tensor([0])),
        lambda x: torch.cat([x, x], 1),
        lambda x: x.to(torch.float64),
        lambda x: torch.equal(x, noise()),
    ]
    for use in uses:
        with pytest.raises(MemoryError, match="FORGETLAB_MEMORY"):
            use(rows)
    monkeypatch.setattr(mapped_rows, "BOUND", x.nbytes)
    for use in uses:
        ours, theirs = use(rows), use(x)
        assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs
    for write in (lambda: rows.zero_(), lambda: rows.add_(1), lambda: rows.copy_(x)):
        with pytest.raises(TypeError, match="cannot be written"):
            write()
    assert torch.equal(rows.read(), x)


def test_batches_come_to_the_device_and_files_stay(tmp_path: Path) -> None:
    rows = on_disk(noise(), tmp_path / "x.npy")
    moved = rows.to("meta")
    assert isinstance(moved, Rows) and moved.device.type == moved[3:].device.type == "meta"
    assert moved.index_select(0, torch.tensor([2, 1])).device.type == "meta"
    task = TensorTask.of(Samples(rows, torch.arange(N)), 0, "meta")
    x, y = task[0][:2]
    assert x.device.type == y.device.type == "meta"


def test_copies_hold_the_same_file_and_not_its_bytes(tmp_path: Path) -> None:
    x = noise(4096)
    rows = on_disk(x, tmp_path / "x.npy")[torch.arange(100, 200)]
    sent = pickle.dumps(rows)
    assert len(sent) < 4096 < x.nbytes
    for other in (pickle.loads(sent), copy.deepcopy(rows), rows.detach()):
        assert isinstance(other, Rows) and torch.equal(other.read(), x[100:200])
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes() + b"more")
    with pytest.raises(FileChanged):
        pickle.loads(sent)


# 2. Files


def test_the_bound_decides_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = noise(), tmp_path / "x.npy"
    on_disk(x, path)
    monkeypatch.setattr(mapped_rows, "BOUND", x.nbytes)
    held = open_npy(path)
    assert type(held) is Tensor and torch.equal(held, x)
    held.zero_()
    assert torch.equal(open_npy(path), x)
    monkeypatch.setenv("FORGETLAB_MEMORY", str((x.nbytes - 1) / 2**30))
    assert isinstance(open_npy(path), Rows)
    monkeypatch.setenv("FORGETLAB_MEMORY", "much")
    with pytest.raises(ValueError, match="GiB, not 'much'"):
        open_npy(path)


def test_an_array_as_numpy_writes_it_is_read(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, 3, 2), dtype=np.float32)
    for name, array in {"c": x, "fortran": np.asfortranarray(x)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        check_equal(open_npy(tmp_path / f"{name}.npy")[[5, 1]], torch.from_numpy(x[[5, 1]]))
    on_disk(noise(), tmp_path / "ours.npy")
    assert np.array_equal(np.load(tmp_path / "ours.npy"), noise().numpy())


@pytest.mark.parametrize("damage", ["short", "empty", "text", "objects", "words"])
def test_a_file_that_holds_no_whole_array_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    on_disk(noise(), path)
    whole = path.read_bytes()
    if damage in ("objects", "words"):
        np.save(path, np.array(["a", None]) if damage == "objects" else np.array(["a", "b"]), allow_pickle=True)
    else:
        path.write_bytes({"short": whole[:-1], "empty": b"", "text": b"1, 2, 3\n" * 50}[damage])
    with pytest.raises(ValueError, match=r"."):
        open_npy(path)


def changes(path: Path) -> dict[str, Callable[[], Any]]:
    whole = path.read_bytes()
    return {
        "cut short": lambda: os.truncate(path, len(whole) - 64),
        "longer": lambda: path.write_bytes(whole + b"x"),
        "other bytes": lambda: path.write_bytes(whole[:-1] + b"x"),
        "replaced": lambda: write_npy(path, [noise(seed=9)]),
        "gone": lambda: path.unlink(),
    }


@pytest.mark.parametrize("change", ["cut short", "longer", "other bytes", "replaced", "gone"])
def test_a_file_that_changes_in_use_is_noticed(change: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    rows = on_disk(noise(), path)
    old = path.stat().st_mtime_ns - 10**9
    os.utime(path, ns=(old, old))  # so that a clock of coarse steps tells the change
    rows = open_npy(path)[3:9]
    assert isinstance(rows, Rows) and rows.read().shape[0] == 6
    changes(path)[change]()
    with pytest.raises(FileChanged, match="changed, or is gone"):
        rows.read()


def test_without_the_look_at_the_file_a_change_would_go_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_rows, "_state", lambda path: (1, 1))
    rows = on_disk(noise(), tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-16] + bytes(16))
    assert not torch.equal(rows.read(), noise())


def test_what_is_kept_is_made_once(tmp_path: Path) -> None:
    made = []

    def parts() -> Iterator[Tensor]:
        made.append(1)
        yield from noise().split(13)

    for _ in range(2):
        check_equal(keep("images", {"size": 4}, parts()), noise())
    assert made == [1]
    (path,) = (tmp_path / "cache" / "images").iterdir()
    keep("images", {"size": 5}, parts())
    assert len(made) == 2
    os.truncate(path, 300)
    check_equal(keep("images", {"size": 4}, parts()), noise())
    assert len(made) == 3


def half(x: Tensor) -> Tensor:
    return x.float().flatten(1) / 2


def test_what_is_read_can_be_changed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = noise(), tmp_path / "x.npy"
    on_disk(x, path)
    rows = open_npy(path, half)
    check_equal(rows, half(x))
    assert rows.dtype == torch.float32 and rows.shape == (N, 16)
    assert stream(rows).checksum() == stream(half(x)).checksum() != stream(open_npy(path)).checksum()
    check_equal(pickle.loads(pickle.dumps(rows)), half(x))
    with pytest.raises(TypeError, match="a module's function"):
        open_npy(path, lambda x: x)
    monkeypatch.setattr(mapped_rows, "BOUND", 4 * x.nbytes - 1)
    assert isinstance(open_npy(path, half), Rows)  # it is past the bound when it is changed
    monkeypatch.setattr(mapped_rows, "BOUND", 4 * x.nbytes)
    assert torch.equal(open_npy(path, half), half(x))


@pytest.mark.parametrize("parts", [[noise(), noise().float()], [noise(), noise()[:, :, :2]], []])
def test_what_is_not_one_array_leaves_no_file(parts: list[Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r" after |nothing"):
        write_npy(tmp_path / "x.npy", parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (1, 4, 5), (7,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_own_arrays_stay_on_disk_and_are_the_same_inputs(shape: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 200, (24, *shape)).astype(dtype)
    arrays = {"x": x, "y": np.arange(24) % 3}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "whole.npz", **arrays)
    (there, here) = (dataset({"name": "arrays", "path": str(path)}) for path in (tmp_path, tmp_path / "whole.npz"))
    for part, expected in ((there.train, here.train), (there.test, here.test)):
        check_equal(part.x, expected.x)
        assert part.x.dtype == expected.x.dtype and torch.equal(part.y, expected.y)
    one, other = (split(data, setting="class-incremental", n_tasks=3, seed=0) for data in (there, here))
    assert one.checksum() == other.checksum()


# 3. Streams


def test_a_stream_has_one_checksum_wherever_its_inputs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "CHUNK", 50)
    here, there = stream(noise()), stream(on_disk(noise(), tmp_path / "x.npy"))
    assert here.checksum() == there.checksum()
    other = noise()
    other[-1, 0, 0, 0] += 1
    assert stream(on_disk(other, tmp_path / "other.npy")).checksum() == stream(other).checksum() != here.checksum()
    assert stream(there.tasks[0].train.x).checksum() != here.checksum()


def test_files_are_read_for_a_checksum_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path, reads = noise(), tmp_path / "x.npy", []
    on_disk(x, path)
    read = mapped_rows.File.index_select
    monkeypatch.setattr(mapped_rows.File, "index_select", lambda *asked: reads.append(1) or read(*asked))
    first = stream(open_npy(path)).checksum()
    assert reads
    reads.clear()
    assert stream(open_npy(path)).checksum() == first and not reads
    assert stream(open_npy(path), n_tasks=2).checksum() != first and reads
    x[0] = 0
    write_npy(path, [x])
    os.utime(path, ns=(1, 1))
    assert stream(open_npy(path)).checksum() == stream(x).checksum() != first


def test_tasks_share_the_file_and_hold_row_numbers(tmp_path: Path) -> None:
    scenario = stream(on_disk(noise(), tmp_path / "x.npy"))
    xs = [task.train.x for task in scenario.tasks]
    assert all(isinstance(x, Rows) for x in xs)
    assert len({id(part) for x in xs if isinstance(x, Rows) for part in x.parts}) == 1
    assert scenario.input_shape == (1, 4, 4)
    assert torch.equal(as_input(xs[0][:2]), as_input(stream(noise()).tasks[0].train.x[:2]))


def test_data_without_a_test_set_are_divided_on_disk(tmp_path: Path) -> None:
    y = torch.arange(N) % 3
    here, there = (held_out(x, y, "abc", 0.2, 0) for x in (noise(), on_disk(noise(), tmp_path / "x.npy")))
    assert isinstance(there.test.x, Rows) and isinstance(there.train.x, Rows)
    assert torch.equal(there.test.x.read(), here.test.x) and torch.equal(there.train.x.read(), here.train.x)


def versions(sets: list[TensorTask]) -> dict[str, TensorTask]:
    """What Avalanche makes of data sets."""
    whole = sets[0].concat(sets[1]).concat(sets[2])
    return {
        "one": sets[1],
        "eval": sets[1].eval(),
        "subset": sets[0].subset([5, 3, 3, 0]),
        "whole": whole,
        "cut": whole.subset([50, 0, 21, 20, 59]).train(),
        "twice": sets[0].concat(sets[0]),
        "joint": together(sets).dataset,
    }


def check_equal_batches(here: Scenario, there: Scenario) -> None:
    pairs = zip(versions(train_sets(here)).items(), versions(train_sets(there)).values(), strict=True)
    for (name, mine), theirs in pairs:
        one, other = mine.columns(), theirs.columns()
        assert one is not None and other is not None and isinstance(other[0], Rows) and len(other[0].parts) == 1, name
        loaders = [TensorLoader(c, 7, lambda epoch: torch.Generator().manual_seed(epoch)) for c in (one, other)]
        for _ in range(2):
            for a, b in zip(*loaders, strict=True):
                assert all(type(f) is Tensor and torch.equal(e, f) for e, f in zip(a, b, strict=True)), name
        for a, b in zip(batches(mine, 7, "cpu"), batches(theirs, 7, "cpu"), strict=True):
            assert all(torch.equal(e, f) for e, f in zip(a[:3], b[:3], strict=True)), name
        assert all(torch.equal(mine[i][0], theirs[i][0]) for i in range(len(mine))), name


def test_batches_are_equal_to_the_bit(tmp_path: Path) -> None:
    check_equal_batches(stream(noise()), stream(on_disk(noise(), tmp_path / "x.npy")))


def test_rows_that_are_not_put_back_in_order_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mapped_rows.Rows.index_select
    monkeypatch.setattr(mapped_rows.Rows, "index_select", lambda self, dim, rows: right(self, dim, rows.sort().values))
    with pytest.raises(AssertionError):
        check_equal_batches(stream(noise()), stream(on_disk(noise(), tmp_path / "x.npy")))


STRATEGIES = {
    "naive": {},
    "replay": {"replay": {"memory": {"name": "reservoir", "capacity": 9}}},
    "ewc": {"regularization": ({"name": "ewc", "strength": 10.0},)},
    "isolation": {"isolation": {"name": "lora", "sites": ["mlp.in"]}, "router": {"name": "prototype"}},
    "stock": {"avalanche": {"plugin": "ReplayPlugin", "mem_size": 9}},
    "joint": {"reference": {"name": "joint"}},
    "separate": {"reference": {"name": "separate"}},
    "ridge": {"reference": {"name": "ridge"}},
}


def trained(scenario: Scenario, strategy: dict[str, Any]) -> tuple[list[Any], dict[str, Any], list[Tensor]]:
    """What a run reports, and its weights."""
    with ours.globals_of_the_engine():
        description = ours.run(hidden=8, batch_size=7, strategy=Strategy(name="one", **strategy))
        learner = one_run.make_learner(description)
        learner.prepare(Context(description, scenario, to_benchmark(scenario), torch.device("cpu")))
        rows = []
        for task in range(len(scenario.tasks)):
            learner.learn(task)
            rows.append(learner.evaluate_all())
        network = getattr(learner, "network", None)
        weights = [] if network is None else [parameter.detach().clone() for parameter in network.parameters()]
        return rows, learner.counts.as_plain(), weights


@pytest.mark.parametrize("name", STRATEGIES)
def test_training_on_mapped_inputs_ends_in_the_same_numbers(name: str, tmp_path: Path) -> None:
    here = trained(stream(noise()), STRATEGIES[name])
    there = trained(stream(on_disk(noise(), tmp_path / "x.npy")), STRATEGIES[name])
    assert here[:2] == there[:2]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(here[2], there[2], strict=True))


# 4. Memory

MIB = 2**20


def growth(make: Callable[[], Tensor]) -> int:
    """How far anonymous memory grows, at its peak, over a stream's making, its checksum and a pass over all batches."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed goes back, or it would be taken again unseen
    before = peak = anonymous()
    sets = train_sets(stream(make()))
    for one in [*sets, together(sets).dataset]:
        columns = one.columns()
        assert columns is not None
        for _ in TensorLoader(columns, 128, lambda epoch: torch.Generator().manual_seed(epoch)):
            peak = max(peak, anonymous())
    return peak - before


@pytest.mark.slow
def test_inputs_on_disk_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npy"
    write_npy(path, (torch.full((1024, 1024), i, dtype=torch.uint8) for i in range(64)))
    assert path.stat().st_size > 64 * MIB
    assert growth(lambda: open_npy(path)) < 32 * MIB
    monkeypatch.setattr(mapped_rows, "BOUND", 65 * MIB)
    assert growth(lambda: open_npy(path)) > 64 * MIB
