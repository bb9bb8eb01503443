"""Running a grid: train what is missing, evaluate what is missing, return the table."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sae_bench.annotations import typed
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import EVERY
from sae_bench.components import Component, from_record
from sae_bench.contexts import ContextPolicy
from sae_bench.devices import default_device
from sae_bench.environment import environment
from sae_bench.errors import InputError, a, counted, one_line
from sae_bench.evaluate import LM_TOKENS, evaluate, language_models, named_sets
from sae_bench.models import LanguageModel
from sae_bench.released import FINGERPRINT, Released
from sae_bench.sae import SparseAutoencoder
from sae_bench.source import ActivationSource
from sae_bench.store import SKIPPED, RunFolder
from sae_bench.train import Trained
from sae_bench.train import train as train_arms


@typed("arms", "train", "evaluate")
def run(
    arms: Iterable[Arm | Released],
    train: ActivationSource,
    evaluate: ActivationCache | Mapping[str, ActivationCache] | None = None,
    *,
    out: str | Path,
    device: str | torch.device | None = None,
    lm_tokens: int = LM_TOKENS,
    language_model: LanguageModel | None = None,
    data: Component | None = None,
    checkpoint_every: float = EVERY,
) -> pd.DataFrame:
    """Trains every arm on one shared source, evaluates it, and returns one row for each arm and
    evaluation set.

    A run that was stopped goes on where it stood, to the same bits: arms that `out` holds are
    neither trained nor evaluated again, arms under way go on from their newest checkpoint, and arms
    may be added. SIGINT and SIGTERM write a checkpoint before they end the process. Cells without
    meaning and arms that fail have a row with their reason. SAEs are saved under `out`, folded so
    that they take raw activations.

    Args:
        arms: what to train (see `grid`), and finished SAEs to measure beside it (`Released`).
        train: the activations, shared by all.
        evaluate: an evaluation cache, or several by name; None: the training source's held-out
            split.
        out: folder of the run.
        device: where to train; None: the accelerator if there is one.
        lm_tokens: tokens of the language-model evaluation; 0 leaves it out.
        language_model: the model, if it is at hand; else the cache's own is loaded.
        data: what `train` was built from, if someone described it; kept with the run.
        checkpoint_every: seconds of training between two checkpoints.

    Raises:
        InputError: no arms, the same arm twice, fewer tokens than one batch, no evaluation data, a
            language model that cannot be found again, a folder that holds another grid, a negative
            time between checkpoints. Nothing has been trained or written then.
    """
    arms = _listed(arms)
    if not isinstance(train, ActivationSource):
        raise InputError(
            f"run: train must be one source of activations, got {type(train).__name__}; "
            "`ActivationCache.build` gives one cache a site: pass caches[site]"
        )
    sets = _evaluation_sets(train, evaluate)
    _check(arms, train)
    device = default_device(device)
    inputs = {
        "train": train.record(),
        "evaluate": {name: cache.record() for name, cache in sets.items()},
        "lm_tokens": lm_tokens,
        "data": data,
    }
    place = _place(train)
    folder = RunFolder(Path(out))
    checkpoints = folder.checkpoints(train.record(), checkpoint_every)
    folder.specification.check(arms, inputs)
    ahead = [arm for arm in arms if arm.objection is None and not folder.is_evaluated(arm)]
    if ahead:
        language_models(sets, lm_tokens, language_model)
    with folder.in_use():
        folder.specification.write(arms, inputs, environment(device))
        missing = [arm for arm in ahead if not folder.is_trained(arm)]
        for released in (arm for arm in arms if isinstance(arm, Released)):
            folder.adopt(released)
        if cells := [arm for arm in missing if isinstance(arm, Arm)]:
            source = train.placed(device) if isinstance(train, ActivationCache) else train

            def kept(ended: Trained) -> None:
                folder.keep(ended, train.scale, place)
                ended.sae = None  # the arms to come need its memory

            train_arms(cells, source, device=device, finished=kept, checkpoints=checkpoints)
        cells = [arm for arm in arms if isinstance(arm, Arm)]
        checkpoints.clear(arm for arm in cells if folder.is_trained(arm))
        unmeasured = [arm for arm in ahead if folder.is_trained(arm)]
        unmeasurable: dict[str, str] = {}
        if unmeasured:
            placed = {name: cache.placed(device) for name, cache in sets.items()}
            found = _measured(
                unmeasured, lambda arm: folder.sae(arm, device), placed, lm_tokens, language_model
            )
            for arm, rows in zip(unmeasured, found, strict=True):
                if isinstance(rows, str):
                    unmeasurable[arm.key] = f"not measured: {rows}"
                else:
                    folder.keep_evaluation(arm, rows)
        table = folder.finish(arms, _columns(place), unmeasurable)
    _report_failed(table)
    return table


def _measured(
    arms: Sequence[Arm | Released],
    load: Callable[[Arm | Released], SparseAutoencoder],
    sets: Mapping[str, ActivationCache],
    lm_tokens: int,
    language_model: LanguageModel | None,
) -> list[pd.DataFrame | str]:
    """The metrics of each arm, or why there are none: all in one pass or, if one of them fails or
    memory runs out, one half after the other."""
    try:
        rows = evaluate(
            [load(arm) for arm in arms], sets, lm_tokens=lm_tokens, language_model=language_model
        )
        return [rows[rows["sae"] == index].drop(columns="sae") for index in range(len(arms))]
    except InputError:
        raise
    except Exception as error:  # whatever an SAE does, the others are measured
        reason = one_line(error)
    if len(arms) == 1:
        return [reason]
    half = len(arms) // 2  # the error is gone by now, and the SAEs that it held
    given = load, sets, lm_tokens, language_model
    return [*_measured(arms[:half], *given), *_measured(arms[half:], *given)]


def _listed(arms: Any) -> list[Arm | Released]:
    if isinstance(arms, Arm | Released):
        raise InputError("run: arms must be a list; put the one arm into [ ]")
    if not isinstance(arms, Iterable):
        raise InputError(f"run: arms must be a list of arms, got {a(type(arms).__name__)}")
    arms = list(arms)
    for arm in arms:
        if not isinstance(arm, Arm | Released):
            advice = "; join grids with [*grid(...), *grid(...)]" if isinstance(arm, list) else ""
            raise InputError(f"run: arms must be Arm objects, got {a(type(arm).__name__)}{advice}")
    return arms


def _evaluation_sets(
    train: ActivationSource, given: ActivationCache | Mapping[str, ActivationCache] | None
) -> dict[str, ActivationCache]:
    if given is None:
        if train.held_out is None:
            raise InputError(
                "run: the training source has no held-out split; "
                "pass evaluate={'name': cache} with other documents"
            )
        return {"held-out": train.held_out}
    if isinstance(given, ActivationCache) and given.record() == train.record():
        given = {"training": given}
    sets = named_sets(given)
    for name, cache in sets.items():
        if cache.d_in != train.d_in:
            raise InputError(
                f"run: evaluation set {name!r} has width {cache.d_in}, "
                f"the training activations have {train.d_in}"
            )
        if cache.record() == train.record():
            warnings.warn(f"evaluation set {name!r} is the training data", stacklevel=3)
    return sets


def _check(arms: list[Arm | Released], train: ActivationSource) -> None:
    for arm in arms:
        if isinstance(arm, Released):
            arm.check_source(train.d_in, train.record())
        else:
            train.batches(arm.recipe.batch_size, arm.recipe.data_seed)  # refuses what it can't give
    cells = [arm for arm in arms if isinstance(arm, Arm)]
    if short := [arm.key for arm in cells if not arm.ends_warm]:
        warnings.warn(
            f"{counted(len(short), 'arm')} would be trained for too few steps for the warm-ups and "
            f"decay, {short[0]} for example: penalty or learning rate never reach the value in the "
            "table; shorten lr_warmup, lr_decay or penalty_warmup",
            stacklevel=3,
        )


def _report_failed(table: pd.DataFrame) -> None:
    failed = table[table["reason"].astype(bool) & (table["status"] != SKIPPED)]
    if len(failed):
        first = failed.iloc[0]
        warnings.warn(
            f"{counted(len(failed), 'arm')} of {len(table['arm'].unique())} failed: "
            f"{first['arm']}: {first['reason']}",
            stacklevel=3,
        )


def _place(train: ActivationSource) -> dict[str, Any]:
    """Where the activations come from: model and site by name, the model's fingerprint, the records
    of context policy and text; None where it is not known."""
    record = train.record()
    model = record.get("model")
    return {
        "model": model["name"] if model else record.get("name"),
        FINGERPRINT: model["fingerprint"] if model else None,
        "site": record.get("site"),
        "context": record.get("context"),
        "text": record.get("text"),
    }


def _columns(place: Mapping[str, Any]) -> dict[str, str]:
    """Columns that all rows of a run share."""
    context = place["context"]
    policy = from_record(ContextPolicy, context) if context else None  # type: ignore[type-abstract]
    return {
        "model": place["model"] or "",
        "site": place["site"] or "",
        "train_context": policy.label if policy else "",
    }
