"""Running an ablation: its parts one after the other, and what else it measures."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd

from sae_bench.ablation import Ablation, Finished, Origin, Preset
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import EVERY
from sae_bench.components import digest
from sae_bench.errors import InputError
from sae_bench.files import read_record, write_record, write_table
from sae_bench.released import Released, by_part
from sae_bench.results import FURTHER, Results
from sae_bench.run import run
from sae_bench.store import RunFolder


def chosen_parts(preset: Preset, names: Iterable[str] = ()) -> dict[str, Preset]:
    """Parts of a preset by name; all, if none are named.

    Raises:
        InputError: it has no such part.
    """
    parts = dict(preset.parts())
    for name in names:
        if name not in parts:
            raise InputError(f"unknown part {name!r}; it has {', '.join(map(repr, parts))}")
    return {name: parts[name] for name in names or parts}


def chosen_arms(
    parts: Mapping[str, Iterable[Arm]], keys: Iterable[str] = ()
) -> dict[str, list[Arm]]:
    """Those arms of each part that have these keys; all, if none are named.

    Raises:
        InputError: no part has such an arm, or a part has none of them.
    """
    known = {name: {arm.key: arm for arm in arms} for name, arms in parts.items()}
    keys = list(keys)
    for key in keys:
        if not any(key in arms for arms in known.values()):
            raise InputError(f"unknown arm {key!r}; --dry-run lists the keys of a part's arms")
    found = {
        name: [arm for key, arm in arms.items() if not keys or key in keys]
        for name, arms in known.items()
    }
    for name, arms in found.items():
        if keys and not arms:
            raise InputError(f"part {name!r} has none of these arms; leave it out of --parts")
    return found


def study(
    chosen: Ablation,
    parts: Mapping[str, Preset],
    out: Path,
    *,
    device: str | None = None,
    released: Iterable[Released] = (),
    keys: Iterable[str] = (),
    checkpoint_every: float = EVERY,
) -> Results:
    """Trains and measures what is missing of every part, and returns the tables of all. Released
    SAEs are measured in the parts of their site (`by_part`).

    A part's run folder is `out`/NAME, or `out` itself if it has no name. All folders are checked
    before any activation is computed.

    Args:
        chosen: the ablation.
        parts: of a preset of it.
        out: folder of the runs.
        device: where to train; None: the accelerator if there is one.
        released: finished SAEs to measure beside the trained ones.
        keys: of the arms that are wanted, the others stay as they are; none: all.
        checkpoint_every: seconds of training between two checkpoints.

    Raises:
        InputError: as `run` and `by_part`; a part has none of the arms that are wanted.
    """
    keys, released = list(keys), list(released)
    folders = {name: out / name for name in parts}
    grids = grids_of(chosen, parts, released, keys)
    for name, part in parts.items():
        RunFolder(folders[name]).specification.check(grids[name], {"data": part.data})
        RunFolder(folders[name]).checkpoints({}, checkpoint_every)
    caches = _caches([data for part in parts.values() for data in _data(part)], device)
    for name, part in parts.items():
        cache = caches[part.data].scaled(caches[part.scaled_by()].scale)
        sets = {key: _held_out(caches[data]) for key, data in part.evaluation().items()}
        table = run(
            grids[name],
            part.data.source(cache),
            sets or None,
            out=folders[name],
            device=device,
            lm_tokens=part.data.lm_tokens,
            data=part.data,
            checkpoint_every=checkpoint_every,
        )
        finished = Finished(part, table, folders[name], cache, sets)
        for key, measure in chosen.further.items():
            _keep(key, measure, finished)
    return Results.read(out)


def grids_of(
    chosen: Ablation,
    parts: Mapping[str, Preset],
    released: Iterable[Released] = (),
    keys: Iterable[str] = (),
) -> dict[str, list[Arm | Released]]:
    """The arms of each part that are wanted (`chosen_arms`), and the finished SAEs that are
    measured beside them.

    Raises:
        InputError: as `by_part` and `chosen_arms`.
    """
    keys = list(keys)
    sites = {name: getattr(part.data, "site", None) for name, part in parts.items()}
    beside = by_part(released, sites)
    arms = chosen_arms({name: chosen.arms(part) for name, part in parts.items()}, keys)
    return {name: [*arms[name], *beside[name]] for name in parts}


def _data(part: Preset) -> list[Origin]:
    return [part.data, part.scaled_by(), *part.evaluation().values()]


def _caches(wanted: Iterable[Origin], device: str | None) -> dict[Origin, ActivationCache]:
    """Builds or finds them; those that one pass makes together."""
    wanted = list(dict.fromkeys(wanted))
    found: dict[Origin, ActivationCache] = {}
    for origin in wanted:
        if origin not in found:
            found |= origin.caches(wanted, device)
    return found


def _held_out(cache: ActivationCache) -> ActivationCache:
    assert cache.held_out is not None  # every origin gives one
    return cache.held_out


def _keep(name: str, measure: Callable[[Finished], pd.DataFrame], finished: Finished) -> None:
    """Measures and writes a further table, unless that was done for the same arms."""
    folder = finished.folder / FURTHER
    table, record = folder / f"{name}.parquet", folder / f"{name}.json"
    inputs = {"arms": digest(sorted(finished.table["arm"]))}
    if table.exists() and record.exists() and read_record(record) == inputs:
        return
    folder.mkdir(exist_ok=True)
    write_table(table, measure(finished))
    write_record(record, inputs)
