"""Writing to a disk that is full, with every library that writes here."""

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from architectures import ReLUSAE, TopKSAE
from sae_bench import plots
from sae_bench.arm import Arm
from sae_bench.checkpoints import Checkpoints, State
from sae_bench.contexts import Context
from sae_bench.errors import InputError
from sae_bench.files import write_atomically, write_record, write_table
from sae_bench.loading import save_sae
from sae_bench.recipe import Recipe
from sae_bench.shards import Columns, Shard

N = 2**16
"""Numbers that are written: more bytes than the disk has."""


def table() -> pd.DataFrame:
    return pd.DataFrame({"x": np.random.default_rng(0).standard_normal(N)})


def figure() -> Figure:
    drawn = Figure()
    drawn.subplots().plot(table()["x"][:5000])
    return drawn


def shard(folder: Path) -> None:
    numbers = np.arange(N)
    columns = Columns(numbers.astype(np.int32), numbers.astype(np.int32), numbers, numbers)
    Shard.write(folder / "0.safetensors", 0, torch.ones(N, 1), columns, [Context(numbers, numbers)])


def checkpoint(folder: Path) -> None:
    arm = Arm(ReLUSAE, 4, Recipe(tokens=64, batch_size=32))
    state = State(1, {"x": torch.ones(N)}, [], 0.0)
    Checkpoints(folder, {}).save([(arm, state)])


WRITES: dict[str, Callable[[Path], object]] = {
    "record": lambda folder: write_record(folder / "x.json", {"x": list(range(N))}),
    "parquet": lambda folder: write_table(folder / "x.parquet", table()),
    "csv": lambda folder: write_table(folder / "x.csv", table()),
    "figure": lambda folder: plots.save(figure(), folder, "x"),
    "shard": shard,
    "checkpoint": checkpoint,
    "own SAE": lambda folder: ReLUSAE(64, N // 64).save(folder),
    "saelens": lambda folder: save_sae(ReLUSAE(64, N // 64), folder, "saelens"),
    "gemma-scope": lambda folder: save_sae(ReLUSAE(64, N // 64), folder, "gemma-scope"),
    "dictionary-learning": lambda folder: save_sae(
        ReLUSAE(64, N // 64), folder, "dictionary-learning"
    ),
    "sparsify": lambda folder: save_sae(TopKSAE(64, N // 64), folder, "sparsify"),
}
"""Everything that is written, each into a folder of its own."""


def fails(name: str, folder: Path) -> str:
    """The line that a write ends with on a full disk, and how many half files are left."""
    try:
        WRITES[name](folder)
    except (InputError, UserWarning) as error:
        return f"{name}: {error}; left: {len(list(folder.rglob('*.partial*')))}"
    return f"{name}: nothing was wrong"


def fill(folder: Path) -> None:
    """Prints how every kind of write fails in a small file system at `folder`."""
    warnings.simplefilter("error", UserWarning)  # what training says, which goes on
    for name in WRITES:
        place = folder / name
        place.mkdir()
        print(fails(name, place))
        shutil.rmtree(place)


def test_every_write_says_that_the_disk_is_full(tmp_path: Path) -> None:
    """In a file system of 128 kB, which a user namespace may mount where the kernel allows it."""
    mount = f"mount -t tmpfs -o size=128k none {tmp_path}"
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*within, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file systems can be mounted here")
    code = f"from pathlib import Path; from {__name__} import fill; fill(Path({str(tmp_path)!r}))"
    ran = subprocess.run(
        [*within, f'{mount} && exec "$0" -c "$1"', sys.executable, code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(WRITES)
    for line in lines:
        assert "the disk is full; free some space and run again" in line
        assert line.endswith("; left: 0")


def unseen(path: Path) -> None:
    """A library that says nothing of the reason."""
    with path.open("wb", buffering=0) as file:
        try:
            file.write(b"x")
        except OSError:
            raise RuntimeError("unexpected pos 576 vs 534") from None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(N)),
        lambda path: table().to_parquet(path),
        lambda path: table().to_csv(path),
        lambda path: torch.save({"x": torch.ones(N)}, path),
        lambda path: figure().savefig(path, format="png"),
        unseen,
    ],
)
def test_a_device_that_is_full(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    (tmp_path / "x.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match="x: the disk is full") as caught:
        write_atomically(tmp_path / "x", write)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_atomically(tmp_path / "x", broken)
    assert not list(tmp_path.iterdir())
