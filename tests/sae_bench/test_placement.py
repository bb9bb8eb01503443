from pathlib import Path

import numpy as np
import pytest
import torch

from sae_bench import placement
from sae_bench.contexts import Context
from sae_bench.errors import InputError
from sae_bench.placement import DeviceRows, DiskRows, HostRows, Placement, fitting, slices
from sae_bench.shards import Columns, Shard

CPU = torch.device("cpu")
EVERYWHERE = [DeviceRows, HostRows, DiskRows]


def shards(folder: Path, dtype: torch.dtype = torch.float32) -> list[Shard]:
    """Three shards of 10, 7 and 12 rows."""
    made = []
    for index, rows in enumerate((10, 7, 12)):
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(index)).to(dtype)
        numbers = np.arange(rows)
        columns = Columns(numbers.astype(np.int32), numbers.astype(np.int32), numbers, numbers)
        contexts = [Context(numbers, numbers)]
        made.append(Shard.write(folder / f"{index}.safetensors", index, x, columns, contexts))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", EVERYWHERE)
@pytest.mark.parametrize("source", EVERYWHERE)
def test_the_same_rows_everywhere(
    tmp_path: Path, dtype: torch.dtype, place: Placement, source: Placement
) -> None:
    files = shards(tmp_path, dtype)
    everything = torch.cat([shard.activations() for shard in files])
    rows = place.of(source.of(DiskRows(files, CPU), CPU), CPU)
    assert (len(rows), rows.d_in, rows.dtype, rows.device) == (29, 4, dtype, CPU)
    wanted = np.random.default_rng(0).permutation(np.tile(np.arange(29), 2))
    assert torch.equal(rows.gather(wanted), everything[torch.from_numpy(wanted)])
    assert rows.gather(wanted[:0]).shape == (0, 4)


def test_disk_rows_load_only_what_is_asked_for(tmp_path: Path) -> None:
    files = shards(tmp_path)
    rows = DiskRows(files, CPU)
    files[2].path.unlink()
    rows.gather(np.arange(17))
    with pytest.raises(InputError, match="missing"):
        rows.gather(np.arange(18))


def test_rows_in_memory_are_not_copied() -> None:
    x = torch.randn(5, 3)
    rows = HostRows.of(DeviceRows.of(DeviceRows(x), CPU), CPU)
    assert rows.tensor.data_ptr() == x.data_ptr()


def test_a_tensor_has_no_disk_place() -> None:
    with pytest.raises(InputError, match="no files on disk"):
        DiskRows.of(DeviceRows(torch.randn(5, 3)), CPU)


def test_the_fastest_place_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = DiskRows(shards(tmp_path), CPU)
    needed = 29 * 4 * 4
    gpu = torch.device("cuda")
    free: dict[str, int] = {}
    monkeypatch.setattr(placement, "free_memory", lambda device: free[device.type])

    free = {"cuda": 2 * needed, "cpu": 0}
    assert fitting(rows, gpu) is DeviceRows
    free = {"cuda": 2 * needed - 1, "cpu": 2 * needed}
    assert fitting(rows, gpu) is HostRows
    assert fitting(rows, CPU) is DeviceRows
    free = {"cuda": 0, "cpu": 2 * needed - 1}
    assert fitting(rows, gpu) is DiskRows
    assert fitting(rows, CPU) is DiskRows
    assert fitting(DeviceRows(torch.zeros(29, 4)), CPU) is HostRows


def test_slices() -> None:
    assert [part.tolist() for part in slices(5, 2)] == [[0, 1], [2, 3], [4]]
    assert list(slices(0, 2)) == []
