"""Extraction: activations that are wanted and not there yet are computed and stored as shards.

A shard holds whole contexts, closed as soon as they have `shard_tokens` ordinary tokens, and is
computed by itself. Its content follows from the text alone, never from when it was made: a cache
of n tokens is its first ceil(n / shard_tokens) shards whatever was made before or later, and an
extraction killed at any moment goes on with the first shard that is lacking.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from torch import Tensor

from sae_bench.background import overlapped
from sae_bench.components import digest
from sae_bench.contexts import Context
from sae_bench.errors import InputError
from sae_bench.folders import made
from sae_bench.manifest import Manifest
from sae_bench.models import DTYPES
from sae_bench.progress import Progress
from sae_bench.reading import Reading
from sae_bench.shards import Columns, Shard
from sae_bench.sites import Site

TRAINING, HELD_OUT = "train", "held_out"  # subfolders of a cache's folder


def extract(
    reading: Reading,
    sites: Sequence[Site],
    *,
    held_out: bool,
    shards: int,
    shard_tokens: int,
    dtype: str,
    root: Path,
) -> dict[str, Path]:
    """Make the first shards of every site exist, as far as the text reaches.

    Args:
        reading: what the shards are read from.
        sites: places in the model, read in one pass.
        held_out: which side of the split.
        shards: number of shards wanted.
        shard_tokens: rows of a shard, at least (the last context is not cut).
        dtype: of the stored activations.
        root: folder of caches.

    Returns:
        site name -> folder of the shards and their manifest: under `root`, the site's folder, named
        by a hash of all that determines its content, and in it the side's.

    Raises:
        InputError: another process extracts into one of the folders, or the disk is too small.
    """
    side = HELD_OUT if held_out else TRAINING
    folders, fresh = {}, {}
    for site in sites:
        inputs = {
            **reading.identity,
            "site": site.name,
            "dtype": dtype,
            "shard_tokens": shard_tokens,
        }
        readable = re.sub(r"[^\w.]+", "-", f"{Path(reading.model.name).name}-{site.name}")
        folders[site.name] = root / f"{readable}-{digest(inputs)}" / side
        fresh[site.name] = Manifest({**inputs, "side": side}, reading.provenance())

    def begun() -> dict[str, Manifest]:
        return {name: _begun(folder, fresh[name]) for name, folder in folders.items()}

    manifests = begun()
    if not any(manifest.lacking(shards) for manifest in manifests.values()):
        return folders
    _check_space(manifests, sites, folders, shards, shard_tokens * DTYPES[dtype].itemsize)
    with ExitStack() as locks:
        for folder in folders.values():
            locks.enter_context(_locked(folder))
        manifests = begun()
        progress = locks.enter_context(
            Progress(f"{reading.model.name}, {side} side", shards * shard_tokens, "tokens")
        )
        ended = False

        def computed() -> Iterator[tuple[int, list[Context], dict[str, Tensor], Columns]]:
            nonlocal ended
            plan = reading.shards(held_out, shard_tokens)
            for index in range(shards):
                if (contexts := next(plan, None)) is None:
                    ended = True
                    return
                if missing := _lacking(manifests, sites, index):
                    yield (
                        index,
                        contexts,
                        *reading.shard_rows(contexts, missing, DTYPES[dtype], progress),
                    )
                else:
                    progress.update(shard_tokens)

        def write(item: tuple[int, list[Context], dict[str, Tensor], Columns]) -> None:
            index, contexts, activations, columns = item
            for name, rows in activations.items():
                path = folders[name] / f"{index:06d}.safetensors"
                shard = Shard.write(path, index, rows, columns, contexts)
                manifests[name] = manifests[name].with_shard(index, shard)
                manifests[name].save(folders[name])

        for _ in overlapped(write, computed()):
            pass
        if ended:
            for name, folder in folders.items():
                manifests[name] = replace(manifests[name], end_of_text=True)
                manifests[name].save(folder)
    return folders


def _begun(folder: Path, fresh: Manifest) -> Manifest:
    if not (folder / "manifest.json").exists():
        return fresh
    manifest = Manifest.load(folder)
    if manifest.inputs != fresh.inputs:
        raise InputError(f"{folder}: holds a cache of other inputs; move it away and build again")
    return manifest


def _lacking(manifests: Mapping[str, Manifest], sites: Sequence[Site], index: int) -> list[Site]:
    return [site for site in sites if manifests[site.name].lacks(index)]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    made(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for leftover in folder.glob("*.partial"):  # of a process that was killed
                leftover.unlink()
            yield
    except Timeout:
        raise InputError(
            f"{folder}: another process is extracting into this folder; wait until it has "
            "finished and run again (or stop it: this run then goes on where it stopped)"
        ) from None


def _check_space(
    manifests: Mapping[str, Manifest],
    sites: Sequence[Site],
    folders: Mapping[str, Path],
    shards: int,
    bytes_per_feature: int,
) -> None:
    """One shard takes d_in * `bytes_per_feature` bytes; columns and contexts count as 5% more."""
    features = sum(site.d_in * manifests[site.name].lacking(shards) for site in sites)
    needed = int(1.05 * features * bytes_per_feature)
    folder = next(iter(folders.values()))
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{folder}: about {needed / 1e9:.2f} GB of activations are wanted and {free / 1e9:.2f} "
            "GB are free on that disk; ask for fewer tokens, store bfloat16, or choose another "
            "root (SAE_BENCH_CACHE)"
        )
