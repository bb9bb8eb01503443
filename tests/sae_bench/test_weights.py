"""Reading files of numbers, whoever wrote them."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_bench.errors import InputError
from sae_bench.weights import (
    check,
    floats,
    matrix,
    portable,
    read_npz,
    read_safetensors,
    read_state_dict,
)

PATH = Path("folder/weights")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save({**tensors, "more": [1, "x"]}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", a=tensors["a"].numpy(), c=np.arange(3))
    for found in (read_safetensors(tmp_path / "a.safetensors"), read_state_dict(tmp_path / "a.pt")):
        assert torch.equal(found["a"], tensors["a"])
        assert torch.equal(found["b"], tensors["b"])
    arrays = read_npz(tmp_path / "a.npz")
    assert torch.equal(arrays["a"], tensors["a"])
    assert arrays["c"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("read", [read_safetensors, read_npz, read_state_dict])
def test_no_file(read: object, tmp_path: Path) -> None:
    assert callable(read)
    with pytest.raises(InputError, match=r"nothing: no such file$"):
        read(tmp_path / "nothing")
    with pytest.raises(InputError, match=r": a folder, not a file$"):
        read(tmp_path)


@pytest.mark.parametrize("code", ["F8_E4M3", "F4", "F6_E2M3", "X"])
def test_types_that_nobody_computes_in(code: str, tmp_path: Path) -> None:
    size = {"F4": 2, "F6_E2M3": 3}.get(code, 4)
    header = json.dumps({"a": {"dtype": code, "shape": [4], "data_offsets": [0, size]}}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * size)
    with pytest.raises(InputError):
        floats(read_safetensors(tmp_path / "a"), {"a": (4,)}, tmp_path / "a", "kind")


def test_an_archive_that_claims_more_than_there_is(tmp_path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**15},)}}"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("W_enc.npy", array)
    with pytest.raises(InputError, match=r"not a readable .npz archive of plain arrays"):
        read_npz(tmp_path / "a.npz")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    """Two of the kinds are zip archives. (torch.load takes safetensors files as well.)"""
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    for read, others in (
        (read_safetensors, ("pt", "npz")),
        (read_npz, ("safetensors", "pt")),
        (read_state_dict, ("npz",)),
    ):
        for other in others:
            with pytest.raises(InputError, match=rf"a\.{other}: (not a|'.*' is no array)"):
                read(tmp_path / f"a.{other}")


def test_unknown_and_missing_tensors() -> None:
    with pytest.raises(InputError, match=r"^folder/weights: missing tensor 'a' for a kind$"):
        check({}, {"a": (2,)}, PATH, "kind")
    with pytest.raises(InputError, match=r"^folder/weights: unknown tensor 'b' for a kind$"):
        check({"b": torch.ones(2)}, {}, PATH, "kind")


def test_integers_where_they_belong() -> None:
    counts = {"n": torch.ones(2, dtype=torch.int64)}
    check(counts, {"n": (2,)}, PATH, "kind", integers=["n"])
    with pytest.raises(InputError, match=r"'n' is torch.int64, expected floating point"):
        check(counts, {"n": (2,)}, PATH, "kind")
    with pytest.raises(InputError, match=r"'n' is torch.float32, expected integers"):
        check({"n": torch.ones(2)}, {"n": (2,)}, PATH, "kind", integers=["n"])
    with pytest.raises(InputError, match=r"'n' is torch.complex64, expected integers"):
        check({"n": torch.ones(2) * 1j}, {"n": (2,)}, PATH, "kind", integers=["n"])


def test_float32_of_every_float() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        found = floats({"a": torch.tensor([1.5], dtype=dtype)}, {"a": (1,)}, PATH, "kind")
        assert found["a"].dtype == torch.float32
        assert found["a"].item() == 1.5
    with pytest.raises(InputError, match=r"'a' has values that are too large for float32"):
        floats({"a": torch.tensor([1e39], dtype=torch.float64)}, {"a": (1,)}, PATH, "kind")


def test_matrices() -> None:
    assert matrix({"a": torch.ones(2, 3)}, "a", PATH) == (2, 3)
    for wrong in (torch.ones(2), torch.ones(0, 3), torch.ones(1, 2, 3), [[1.0]]):
        with pytest.raises(InputError, match=r"^folder/weights: 'a' is no matrix$"):
            matrix({"a": wrong}, "a", PATH)


def test_portable_tensors() -> None:
    found = portable({"a": torch.ones(2, 3, dtype=torch.float64, requires_grad=True).T})["a"]
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert not found.requires_grad


def test_what_overflows_is_not_written() -> None:
    wide = {"a": torch.tensor([1.0, 1e39], dtype=torch.float64)}
    with pytest.raises(InputError, match=r"^1 of 2 values of 'a' are too large for float32"):
        portable(wide)
