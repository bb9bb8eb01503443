"""What the commands of the command line do, given their arguments."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sae_bench import ablation, modules, plots
from sae_bench.arm import Arm
from sae_bench.cache import ActivationCache
from sae_bench.component_checks import SUITES
from sae_bench.components import Component
from sae_bench.conformance import ARCHITECTURE
from sae_bench.contexts import Packed, PerDocument
from sae_bench.conversion import to_gated, to_jumprelu
from sae_bench.cost import Cost
from sae_bench.devices import default_device
from sae_bench.errors import InputError
from sae_bench.evaluate import evaluate
from sae_bench.files import check_writable, write_atomically, write_table
from sae_bench.hub_upload import push_to_hub
from sae_bench.loading import check_target, load_sae, save_sae
from sae_bench.noise import gradient_noise, standard
from sae_bench.released import FINGERPRINT, Released, released_at
from sae_bench.report import Section, report
from sae_bench.results import Results, is_published, published_tables
from sae_bench.sae import SparseAutoencoder
from sae_bench.specification import NO_ARMS
from sae_bench.status import STATES, status
from sae_bench.store import RELEASED
from sae_bench.study import chosen_parts, grids_of, study
from sae_bench.suite import Suite

SHOWN = {
    "series": "arm",
    "released": "SAE",
    "setting": "setting",
    "seed": "seed",
    "l0": "L0",
    "fvu": "FVU",
    "delta_lm_loss": "delta LM loss",
    "loss_recovered": "recovered",
    "dead": "dead",
    "above_10pct": ">10%",
    "status": "status",
}


CONVERSIONS: dict[str, Callable[[SparseAutoencoder], SparseAutoencoder]] = {
    "itself": lambda sae: sae,
    "jumprelu": to_jumprelu,
    "gated": to_gated,
}
"""What an SAE can be turned into on its way to another format."""

PUBLISHED = Path("results")
"""Where tables and figures that are committed stand, from the root of the project."""


def _shown(table: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Columns of a table of arms under other names, and in `setting` what the arm's sparsity hangs
    on."""
    choice = table["penalty"] + "(" + table["coefficient"].map("{:g}".format) + ")"
    setting = choice.where(table["coefficient"] > 0, table["activation"])
    shown = table.assign(setting=setting)
    shown = shown[[name for name in columns if name in shown]].rename(columns=columns)
    if "seed" in shown:  # empty for SAEs that were finished elsewhere
        shown["seed"] = shown["seed"].astype("Int64")
    return shown.to_string(index=False, float_format="{:.3f}".format, na_rep="-")


def planned(arms: Sequence[Arm | Released]) -> str:
    """The arms of a run before it, as they are shown on the screen.

    Raises:
        InputError: there are none.
    """
    if not arms:
        raise InputError(NO_ARMS)
    table = pd.DataFrame([{**arm.columns(), "skipped": arm.objection or ""} for arm in arms])
    columns = {"arm": "key", "series": "arm", "released": "SAE", "setting": "setting"}
    return _shown(table, {**columns, "d_sae": "d_sae", "seed": "seed", "skipped": "skipped"})


def summary(table: pd.DataFrame) -> str:
    """The table as it is shown on the screen."""
    one_seed = "seed" in table and table["seed"].nunique() <= 1
    text = _shown(table.drop(columns="seed") if one_seed else table, SHOWN)
    reasons = table.loc[table["reason"].astype(bool), ["arm", "status", "reason"]]
    lines = [f"{row.arm}: {row.status}: {row.reason}" for row in reasons.itertuples()]
    return "\n".join([text, *lines])


def build_cache(arguments: argparse.Namespace) -> None:
    """cache: runs the language model and says what the caches hold."""
    policy = PerDocument if arguments.per_document else Packed
    caches = ActivationCache.build(
        arguments.model,
        arguments.site,
        arguments.text,
        arguments.tokens,
        held_out_tokens=arguments.held_out_tokens,
        context=policy(arguments.context),
        dtype=arguments.dtype,
        model_dtype=arguments.model_dtype,
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
    )
    for site, cache in caches.items():
        held_out = cache.held_out.rows if cache.held_out else 0
        print(
            f"{site}: {cache.rows} training and {held_out} held-out tokens of width {cache.d_in}, "
            f"root mean square norm {cache.scale:.4g}\n  {cache.folder}"
        )


def run_grid(arguments: argparse.Namespace) -> None:
    """run: trains, evaluates, draws."""
    chosen = ablation.load(arguments.ablation)
    preset = chosen.preset(arguments.preset)
    changes = {
        name: getattr(arguments, name)
        for name in ("model", "site", "text", "tokens")
        if getattr(arguments, name) is not None
    }
    known = {field.name for field in dataclasses.fields(preset.data)}
    if absent := [name for name in changes if name not in known]:
        raise InputError(
            f"--{absent[0]}: the activations of {chosen.name} are {type(preset.data).__name__}, "
            f"which has no {absent[0]}"
        )
    preset = preset.replace(data=preset.data.replace(**changes))
    if arguments.d_sae is not None:
        preset = preset.replace(d_sae=arguments.d_sae)
    released = [each for path in arguments.released for each in released_at(path)]
    if arguments.site is None:
        preset = preset.measuring(sorted({each.site for each in released if each.site}))
    parts = chosen_parts(preset, arguments.parts)
    if arguments.dry_run or arguments.cost is not None:
        _plan(chosen, parts, released, arguments)
        return
    results = study(
        chosen,
        parts,
        arguments.out,
        device=arguments.device,
        released=released,
        keys=arguments.arms,
        checkpoint_every=60 * arguments.checkpoint_minutes,
    )
    print(summary(results.table))
    _save(chosen.figures(results), arguments.out / "figures")
    if verdict := chosen.answer(results):
        print(verdict)
    for name in parts:
        print(f"table: {arguments.out / name / 'table.csv'}")


def _plan(
    chosen: ablation.Ablation,
    parts: Mapping[str, ablation.Preset],
    released: Sequence[Released],
    arguments: argparse.Namespace,
) -> None:
    """Arms part by part and, where the width is given or known, what they cost."""
    costs = []
    grids = grids_of(chosen, parts, released, arguments.arms)
    for name, part in parts.items():
        lines = [name, planned(grids[name])]
        width = part.data.width if arguments.cost is None else arguments.cost
        if width is not None:
            arms = [arm for arm in grids[name] if isinstance(arm, Arm)]
            costs.append((part.data, Cost.of(arms, part.data, width)))
            lines.append(str(costs[-1][1]))
        print(*filter(None, lines), sep="\n")
    if len(costs) > 1:
        print(f"all parts together\n{Cost.total(costs)}")


def _save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    paths = []
    for name, drawn in figures.items():
        path, *_ = plots.save(drawn, folder, name)
        print(f"figure: {path}")
        paths.append(path)
    return paths


def show_status(arguments: argparse.Namespace) -> None:
    """status: where a run stands."""
    table = status(arguments.run)
    print(table.to_string(index=False, na_rep="-"))
    for state, count in table["state"].value_counts().items():
        print(f"{count:4} {state}: {STATES[str(state)]}")


def draw_figures(arguments: argparse.Namespace) -> None:
    """figures: draws again from tables, or the published figures that a run is held against."""
    if arguments.reference:
        _draw_reference(arguments.ablation)
        return
    if arguments.ablation is not None:
        chosen, folder = ablation.load(arguments.ablation), arguments.folder
        if not folder.exists() and is_published(chosen.name, PUBLISHED):
            _draw_published(chosen)
        else:
            _save(chosen.figures(Results.read(folder)), folder / "figures")
        return
    if arguments.folder is not None:
        results = Results.read(arguments.folder)
        drawn = plots.comparison(results.table, results.frequencies)
        _save(drawn, arguments.folder / "figures")
        return
    for name in _published():
        _draw_published(ablation.load(name))


def _draw_reference(spec: str | None) -> None:
    if spec is None:
        raise InputError("--reference: of which ablation? e.g. sae-bench figures paper --reference")
    chosen = ablation.load(spec)
    if chosen.reference is None:
        raise InputError(
            f"{chosen.name}: it has no published figures to redraw (no `reference` in its file); "
            "leave --reference out"
        )
    _save(chosen.reference(), PUBLISHED / "figures" / f"{chosen.name}-reference")


def _draw_published(chosen: ablation.Ablation) -> list[Path]:
    figures = chosen.figures(Results.published(chosen.name, PUBLISHED))
    return _save(figures, PUBLISHED / "figures" / chosen.name)


def _published() -> list[str]:
    """Names of the published ablations."""
    found = [name for name in ablation.names() if is_published(name, PUBLISHED)]
    if not found:
        raise InputError(f"{PUBLISHED / 'tables'}: nothing is published; run `sae-bench publish`")
    return found


def write_report(arguments: argparse.Namespace) -> None:
    """report: question, answer and figures of everything published."""
    sections = []
    for name in _published():
        chosen, results = ablation.load(name), Results.published(name, PUBLISHED)
        drawn = _draw_published(chosen)
        tables = [PUBLISHED / "tables" / f"{each}.csv" for each in published_tables(name, results)]
        if chosen.contrasts is not None and len(rows := chosen.contrasts(results)):
            tables.append(PUBLISHED / "contrasts" / f"{name}.csv")
            tables[-1].parent.mkdir(exist_ok=True)
            write_table(tables[-1], rows)
        found = ([path.relative_to(PUBLISHED) for path in paths] for paths in (drawn, tables))
        sections.append(Section(chosen, results, *found))
    path = PUBLISHED / "REPORT.md"
    write_atomically(path, lambda partial: partial.write_text(report(sections), encoding="utf-8"))
    print(f"report: {path}")


def publish(arguments: argparse.Namespace) -> None:
    """publish: copies tables to the committed results."""
    chosen = ablation.load(arguments.ablation)
    Results.read(arguments.folder).publish(chosen.name, PUBLISHED)
    _draw_published(chosen)


def measure_noise(arguments: argparse.Namespace) -> None:
    """noise: the gradient-noise instrument."""
    path = arguments.out / "noise.csv"
    if path.exists():
        raise InputError(f"{path} exists already; choose another --out, or remove it")
    check_writable(arguments.out)
    sae = load_sae(arguments.sae)
    cache = ActivationCache.open(arguments.cache, device=arguments.device)
    kernel = sae.kernel.kernel.rescaled(1 / cache.scale)
    if arguments.bandwidth is not None:
        kernel = kernel.replace(bandwidth=arguments.bandwidth)
    table = gradient_noise(
        sae,
        cache,
        standard(kernel, arguments.memory),
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        seed=arguments.seed,
        block=arguments.block,
        device=arguments.device,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_table(path, table)
    drawn, *_ = plots.save(plots.noise_panels(table), arguments.out, "noise")
    print(f"table: {path}\nfigure: {drawn}")


def upload(arguments: argparse.Namespace) -> None:
    """upload: an SAE and its card, in one commit."""
    commit = push_to_hub(
        arguments.sae,
        arguments.repo,
        path_in_repo=arguments.path or "",
        private=arguments.private,
        revision=arguments.revision,
        format=arguments.to,
        license=arguments.license,
    )
    print(f"uploaded: {commit}")


def convert(arguments: argparse.Namespace) -> None:
    """convert: from any known format to another."""
    if arguments.target.exists():
        raise InputError(f"{arguments.target} exists already; choose another place, or remove it")
    check_target(arguments.target, arguments.to)
    sae = CONVERSIONS[arguments.as_](load_sae(arguments.source))
    if arguments.model is not None:
        sae.provenance |= {"model": arguments.model, FINGERPRINT: None}
    if arguments.site is not None:
        sae.provenance["site"] = arguments.site
    save_sae(sae, arguments.target, arguments.to)
    print(f"{type(sae).__name__}, d_in {sae.d_in}, d_sae {sae.d_sae}: {arguments.target}")


def measure(arguments: argparse.Namespace) -> None:
    """evaluate: rows for SAEs that are finished."""
    if arguments.out is not None and arguments.out.exists():
        raise InputError(f"{arguments.out} exists already; choose another --out, or remove it")
    if arguments.out is not None:
        if arguments.out.suffix not in (".csv", ".parquet"):
            raise InputError(f"{arguments.out}: --out must end in .csv or .parquet")
        check_writable(arguments.out.parent)
    cache = ActivationCache.open(arguments.cache, device=arguments.device)
    chosen = [Released(path, name=str(path)) for path in arguments.sae]
    for each in chosen:
        each.check_source(cache.d_in, cache.record())
        each.sae.to(default_device(arguments.device))
    rows = evaluate(
        [each.sae for each in chosen],
        {"training": cache} if cache.held_out is None else {"held-out": cache.held_out},
        lm_tokens=arguments.lm_tokens,
    )
    known = pd.DataFrame([{**each.columns(), "status": RELEASED, "reason": ""} for each in chosen])
    table = known.join(rows.set_index("sae"))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_table(arguments.out, table.drop(columns="frequency"))
    print(summary(table.drop(columns="released")))


def check(arguments: argparse.Namespace) -> int:
    """check: the conformance suite that a thing belongs to; 1 if a check failed."""
    thing = _checkable(modules.find(arguments.thing), arguments.thing)
    suites: tuple[Suite[Any], ...] = (ARCHITECTURE, *SUITES)
    suite = next((each for each in suites if each.belongs(thing)), None)
    if suite is None:
        kinds = ", ".join(each.kind for each in suites)
        raise InputError(f"{arguments.thing!r} is nothing that can be checked, which is: {kinds}")
    failed = suite.failures(thing)
    for name, _ in suite.named(thing):
        print(f"{'FAILED' if name in failed else 'passed'}  {name}")
        if name in failed:
            print(f"        {failed[name]}")
    return 1 if failed else 0


def _checkable(thing: Any, spec: str) -> Any:
    """An object of a component's class, built with its defaults; anything else as it is."""
    if not (isinstance(thing, type) and issubclass(thing, Component)):
        return thing
    needed = [
        field.name
        for field in dataclasses.fields(thing)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if needed:
        raise InputError(
            f"{spec!r}: {thing.__name__} has no default for {', '.join(needed)}; give the name of "
            f"an object instead, such as example = {thing.__name__}({needed[0]}=...)"
        )
    return thing()
