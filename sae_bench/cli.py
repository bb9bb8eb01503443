"""The command line."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sae_bench import ablation, plots, registry
from sae_bench.cache import ActivationCache
from sae_bench.checkpoints import EVERY
from sae_bench.conformance import ARCHITECTURE
from sae_bench.contexts import Packed, PerDocument
from sae_bench.errors import InputError
from sae_bench.files import write_table
from sae_bench.loading import load_sae
from sae_bench.noise import gradient_noise, standard
from sae_bench.run import run
from sae_bench.store import RunFolder

SHOWN = {
    "series": "arm",
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


PUBLISHED = Path("results")
"""Where tables and figures that are committed stand, from the root of the project."""


def summary(table: pd.DataFrame) -> str:
    """The table as it is shown on the screen."""
    choice = table["penalty"] + "(" + table["coefficient"].map("{:g}".format) + ")"
    setting = choice.where(table["coefficient"] > 0, table["activation"])
    shown = table.assign(setting=setting)
    shown = shown[[name for name in SHOWN if name in shown]].rename(columns=SHOWN)
    if len(set(table["seed"])) == 1:
        shown = shown.drop(columns="seed")
    text = shown.to_string(index=False, float_format="{:.3f}".format, na_rep="-")
    reasons = table.loc[table["reason"].astype(bool), ["arm", "status", "reason"]]
    lines = [f"{row.arm}: {row.status}: {row.reason}" for row in reasons.itertuples()]
    return "\n".join([text, *lines])


def _cache(arguments: argparse.Namespace) -> None:
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


def _run(arguments: argparse.Namespace) -> None:
    chosen = ablation.load(arguments.ablation)
    preset = chosen.preset(arguments.preset)
    changes = {
        name: getattr(arguments, name)
        for name in ("model", "site", "text", "tokens")
        if getattr(arguments, name) is not None
    }
    preset = preset.replace(data=preset.data.replace(**changes))
    if arguments.d_sae is not None:
        preset = preset.replace(d_sae=arguments.d_sae)
    arms = chosen.arms(preset)
    if arguments.dry_run:
        for arm in arms:
            print(arm.key, arm.objection or "")
        return
    RunFolder(arguments.out).check(arms, {"data": preset.data})
    table = run(
        arms,
        preset.data.cache(arguments.device),
        out=arguments.out,
        device=arguments.device,
        lm_tokens=preset.data.lm_tokens,
        data=preset.data,
        checkpoint_every=60 * arguments.checkpoint_minutes,
    )
    print(summary(table))
    _draw(chosen, ablation.Results.read(arguments.out), arguments.out / "figures")
    if verdict := chosen.answer(table):
        print(verdict)
    print(f"table: {arguments.out / 'table.csv'}")


def _draw(chosen: ablation.Ablation, results: ablation.Results, folder: Path) -> None:
    for name, drawn in chosen.figures(results).items():
        path, *_ = plots.save(drawn, folder, name)
        print(f"figure: {path}")


def _figures(arguments: argparse.Namespace) -> None:
    if arguments.ablation is not None:
        chosen, folder = ablation.load(arguments.ablation), arguments.folder
        _draw(chosen, ablation.Results.read(folder), folder / "figures")
        return
    found = ablation.published_names(PUBLISHED)
    if not found:
        raise InputError(f"{PUBLISHED / 'tables'}: nothing is published; run `sae-bench publish`")
    for name in found:
        results = ablation.Results.published(name, PUBLISHED)
        _draw(ablation.load(name), results, PUBLISHED / "figures" / name)


def _publish(arguments: argparse.Namespace) -> None:
    chosen = ablation.load(arguments.ablation)
    ablation.Results.read(arguments.folder).publish(chosen.name, PUBLISHED)
    results = ablation.Results.published(chosen.name, PUBLISHED)
    _draw(chosen, results, PUBLISHED / "figures" / chosen.name)


def _noise(arguments: argparse.Namespace) -> None:
    path = arguments.out / "noise.csv"
    if path.exists():
        raise InputError(f"{path} exists already; choose another --out, or remove it")
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


def _check(arguments: argparse.Namespace) -> int:
    cls = registry.from_spec(arguments.architecture)
    failed = ARCHITECTURE.failures(cls)
    for name, _ in ARCHITECTURE.named(cls):
        print(f"{'FAILED' if name in failed else 'passed'}  {name}")
        if name in failed:
            print(f"        {failed[name]}")
    return 1 if failed else 0


def _list(arguments: argparse.Namespace) -> None:
    def first_line(text: str | None) -> str:
        return (text or "").strip().split("\n")[0]

    print("architectures")
    for name, cls in sorted(registry.architectures().items()):
        print(f"  {name:16} {first_line(cls.__doc__)}")
    print("ablations")
    for name in ablation.names():
        loaded = ablation.load(name)
        print(f"  {name:16} {first_line(loaded.question)} (presets: {', '.join(loaded.presets)})")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except None, which each help text explains."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    top = argparse.ArgumentParser(
        prog="sae-bench",
        description="Compare sparse autoencoder architectures on one language model.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=_HelpFormatter,
        )
        added.set_defaults(action=action)
        return added

    cache = command("cache", _cache, "Run a language model over text and keep its activations.")
    cache.add_argument(
        "--model", default="smollm2", help="hub name, folder, .gguf file, or smollm2"
    )
    cache.add_argument(
        "--site",
        nargs="+",
        default=["layers.9.resid_post"],
        help="layers.N.resid_pre, resid_post, mlp_out, attn_z, or any module path",
    )
    cache.add_argument(
        "--text",
        default="documentation",
        help="hub data set, .txt/.jsonl/.parquet file or folder, or documentation",
    )
    cache.add_argument(
        "--tokens", type=int, default=100_000, help="training tokens, rounded up to whole shards"
    )
    cache.add_argument(
        "--held-out-tokens", type=int, default=16_384, help="evaluation tokens, rounded up likewise"
    )
    cache.add_argument("--context", type=int, default=256, help="tokens a context, BOS included")
    cache.add_argument("--per-document", action="store_true", help="do not pack across documents")
    cache.add_argument("--dtype", default="float32", help="storage: float32, bfloat16, float16")
    cache.add_argument("--model-dtype", default="float32", help="the model's: likewise")
    cache.add_argument("--device", default=None, help="cpu, cuda, ... (default: the accelerator)")
    cache.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the model"
    )

    grid = command(
        "run", _run, "Train and evaluate every arm of an ablation, then draw its figures."
    )
    grid.add_argument("ablation", help="a name from `sae-bench list`, or the path of a .py file")
    grid.add_argument("--preset", default=None, help="a preset (default: the first)")
    grid.add_argument(
        "--out", type=Path, default=None, help="folder (default: results/runs/ABLATION)"
    )
    for name, text in (("model", "model"), ("site", "site"), ("text", "text")):
        grid.add_argument(f"--{name}", default=None, help=f"another {text} than the preset's")
    grid.add_argument("--tokens", type=int, default=None, help="another size of the cache")
    grid.add_argument("--d-sae", type=int, default=None, help="another number of latents")
    grid.add_argument("--device", default=None, help="cpu, cuda, ... (default: the accelerator)")
    grid.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=EVERY / 60,
        help="minutes of training between two checkpoints, from which a stopped run goes on",
    )
    grid.add_argument("--dry-run", action="store_true", help="list the arms and stop")

    figures = command(
        "figures", _figures, "Draw the figures of a finished run again, from its tables."
    )
    figures.add_argument(
        "ablation", nargs="?", help="the ablation that was run (default: all published tables)"
    )
    figures.add_argument(
        "--folder", type=Path, default=None, help="its folder (default: results/runs/ABLATION)"
    )

    publish = command(
        "publish",
        _publish,
        "Copy the tables of a finished run to results/ and draw its figures there.",
    )
    publish.add_argument("ablation", help="the ablation that was run")
    publish.add_argument(
        "--folder", type=Path, default=None, help="its folder (default: results/runs/ABLATION)"
    )

    noise = command(
        "noise", _noise, "Measure bias and noise of threshold gradients of a trained SAE."
    )
    noise.add_argument("sae", type=Path, help="folder of a saved SAE with trainable thresholds")
    noise.add_argument("--cache", type=Path, required=True, help="folder of a cache of its site")
    noise.add_argument("--out", type=Path, required=True, help="folder for table and figure")
    noise.add_argument("--batch-size", type=int, default=1024, help="tokens of a batch")
    noise.add_argument("--steps", type=int, default=None, help="batches (None: one epoch)")
    noise.add_argument("--memory", type=int, default=8, help="steps that estimators remember")
    noise.add_argument("--block", type=int, default=16, help="batches a block, >= 2 memories")
    noise.add_argument(
        "--bandwidth",
        type=float,
        default=None,
        help="of the kernel, as in an arm (None: the SAE's)",
    )
    noise.add_argument("--seed", type=int, default=0, help="of the order of the batches")
    noise.add_argument("--device", default=None, help="cpu, cuda, ... (default: the accelerator)")

    check = command("check", _check, "Run the conformance suite on an architecture of your own.")
    check.add_argument("architecture", help="module:Class, or path/to/file.py:Class")

    command("list", _list, "List architectures and ablations.")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; wrong input prints one line and exits with code 2."""
    arguments = parser().parse_args(argv)
    for name in ("out", "folder"):
        if getattr(arguments, name, ...) is None and arguments.ablation is not None:
            setattr(arguments, name, PUBLISHED / "runs" / Path(arguments.ablation).stem)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return arguments.action(arguments) or 0
        except InputError as error:
            print(f"sae-bench: error: {error}", file=sys.stderr)
            return 2


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sae-bench: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
