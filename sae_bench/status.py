"""Where a run stands, read from its folder alone: no model, no data, no user's class is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sae_bench.errors import DamagedFileError, InputError
from sae_bench.store import EVALUATION, FAILED, RunFolder

STATES = {
    "done": "trained and measured",
    "trained": "trained, not measured yet",
    "running": "begun, and a process is at work in the folder now",
    "stopped": "begun, and nobody is at work: run again to go on from the checkpoint",
    "waiting": "not begun, or stopped before its first checkpoint",
    "failed": "ended with the reason given; tried again at the next run",
    "skipped": "a combination without meaning",
    "stale": "left from another specification; not used",
    "damaged": "a file of it is not as it was written; made anew at the next run, as `detail` says",
}
"""What the states of arms mean."""


def status(path: str | Path) -> pd.DataFrame:
    """One row for each arm of the run in a folder, and for what other grids left there. Every file
    of the arms is read; nothing is written, and a run at work is not disturbed.

    Columns: `arm` (its key), `state` (see `STATES`), `step` and `steps` of training, `detail` (a
    reason). Times, losses and metrics are in the tables.

    Raises:
        InputError: the folder holds no run, or cannot be read.
    """
    folder = RunFolder(Path(path))
    specification = folder.specification.read()
    if specification is None:
        raise InputError(f"{path}: holds no run (no grid.json)")
    arms, skipped = specification["arms"], specification["skipped"]
    busy = folder.is_in_use
    rows = [_row(folder, key, record, skipped.get(key), busy) for key, record in arms.items()]
    left = sorted(entry.name for entry in (folder.path / "arms").glob("*") if entry.is_dir())
    rows += [{"arm": key, "state": "stale", "detail": ""} for key in left if key not in arms]
    columns = ["arm", "state", "step", "steps", "detail"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    table[["step", "steps"]] = table[["step", "steps"]].astype("Int64")
    return table


def _row(
    folder: RunFolder, key: str, record: Mapping[str, Any], skipped: str | None, busy: bool
) -> dict[str, Any]:
    recipe = record.get("recipe")
    steps = recipe["tokens"] // recipe["batch_size"] if recipe else None
    row = {"arm": key, "step": None, "steps": steps, "detail": ""}
    if skipped:
        return {**row, "state": "skipped", "detail": skipped}
    step = folder.checkpointed(key)
    if busy and step is not None:
        return {**row, "state": "running", "step": step}
    try:
        outcome = folder.recorded(key)
    except DamagedFileError as error:
        return {**row, "state": "damaged", "detail": f"{error}; the arm is trained again"}
    if outcome is None:
        return {**row, "state": "stopped", "step": step} if step else {**row, "state": "waiting"}
    if outcome["status"] == FAILED:
        return {**row, "state": "failed", "detail": outcome["reason"]}
    if damage := folder.damage(key, outcome):
        return {**row, "state": "damaged", "detail": damage}
    state = "done" if EVALUATION in outcome["files"] else "trained"
    return {**row, "state": state, "step": steps}
