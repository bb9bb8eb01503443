import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_bench.contexts import Context
from sae_bench.errors import InputError
from sae_bench.files import write_atomically, write_record
from sae_bench.manifest import Manifest
from sae_bench.shards import Columns, Shard, sum_of_squares

ROWS = 50


def contexts() -> list[Context]:
    ids = np.arange(60, dtype=np.int64)
    return [Context(ids[:40], ids[:40] // 20), Context(ids[40:], ids[40:] // 20)]


def columns() -> Columns:
    numbers = np.arange(ROWS)
    small = numbers.astype(np.int32)
    return Columns(token=small, position=small + 1, document=numbers // 7, context=numbers // 25)


def activations(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(ROWS * 4, dtype=torch.float32).reshape(ROWS, 4).to(dtype)


def written(folder: Path, index: int = 0, dtype: torch.dtype = torch.float32) -> Shard:
    path = folder / f"{index}.safetensors"
    return Shard.write(path, index, activations(dtype), columns(), contexts())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_and_columns_are_shuffled_together(tmp_path: Path, dtype: torch.dtype) -> None:
    shard = written(tmp_path, dtype=dtype)
    stored, order = shard.activations(), torch.from_numpy(shard.columns().token).long()
    assert stored.dtype == dtype
    assert torch.equal(stored, activations(dtype)[order])
    assert sorted(order.tolist()) == list(range(ROWS)) != order.tolist()
    assert np.array_equal(shard.columns().position, order.numpy() + 1)
    assert np.array_equal(shard.columns().document, order.numpy() // 7)
    assert np.array_equal(shard.columns().context, order.numpy() // 25)
    assert shard.squares == sum_of_squares(activations(dtype))
    assert shard.rows == ROWS


def test_the_order_is_the_index_s(tmp_path: Path) -> None:
    first, again, other = written(tmp_path / "a"), written(tmp_path / "b"), written(tmp_path, 1)
    assert first.checksum == again.checksum
    assert not torch.equal(first.activations(), other.activations())


def test_contexts_come_back(tmp_path: Path) -> None:
    shard = written(tmp_path)
    assert shard.n_contexts() == 2
    for found, wanted in zip(shard.contexts(), contexts(), strict=True):
        assert np.array_equal(found.ids, wanted.ids)
        assert np.array_equal(found.documents, wanted.documents)


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap(path: Path) -> None:
    written(path.parent / "other", 1).path.replace(path)


@pytest.mark.parametrize("harm", [damage_byte, cut, empty, swap, Path.unlink])
def test_a_bad_shard_is_named(tmp_path: Path, harm) -> None:
    shard = written(tmp_path)
    harm(shard.path)
    with pytest.raises(InputError, match=r"0\.safetensors.*build the cache again"):
        shard.activations()


def test_a_change_after_the_first_use_is_seen(tmp_path: Path) -> None:
    shard = written(tmp_path)
    shard.activations()
    damage_byte(shard.path)
    os.utime(shard.path, ns=(0, 0))
    with pytest.raises(InputError, match="checksum"):
        shard.contexts()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_values_that_a_dtype_cannot_hold(tmp_path: Path, value: float) -> None:
    x = activations()
    x[3, 2] = value
    with pytest.raises(InputError, match="not finite in float16"):
        Shard.write(tmp_path / "a.safetensors", 0, x.half(), columns(), contexts())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        write_atomically(tmp_path / "new", lambda path: path.write_bytes(b"new"))
    with pytest.raises(InputError, match="disk is full"):
        write_atomically(tmp_path / "old", lambda path: path.write_bytes(b"new"))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    manifest = Manifest({"a": [1]}, {"b": None}).with_shard(0, written(tmp_path))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_what_a_manifest_lacks(tmp_path: Path) -> None:
    manifest = Manifest({}, {})
    for index in range(3):
        manifest = manifest.with_shard(index, written(tmp_path, index))
    manifest.shards[1].path.unlink()
    assert [index for index in range(5) if manifest.lacks(index)] == [1, 3, 4]
    manifest = manifest.with_shard(1, written(tmp_path, 1))
    ended = Manifest({}, {}, manifest.shards, end_of_text=True)
    assert not any(ended.lacks(index) for index in range(5))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1, "shards": [3]}'])
def test_a_damaged_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json: damaged"):
        Manifest.load(tmp_path)


def test_a_missing_or_newer_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no activation cache here"):
        Manifest.load(tmp_path)
    write_record(tmp_path / "manifest.json", {"format": 99})
    with pytest.raises(InputError, match="format 99"):
        Manifest.load(tmp_path)
