"""The command line."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_bench import commands, listing, modules
from sae_bench.checkpoints import EVERY
from sae_bench.errors import InputError
from sae_bench.evaluate import LM_TOKENS
from sae_bench.files import FULL
from sae_bench.formats import FORMATS


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
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, action: object, text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(
            name,
            help=text,
            description=text,
            formatter_class=_HelpFormatter,
        )
        added.set_defaults(action=action)
        return added

    def importing(*loading_saes: argparse.ArgumentParser) -> None:
        for each in loading_saes:
            each.add_argument(
                "--import",
                dest="imports",
                nargs="+",
                default=(),
                metavar="FILE_OR_MODULE",
                help="where classes of your own are defined, for SAEs that need them",
            )

    cache = command(
        "cache", commands.build_cache, "Run a language model over text and keep its activations."
    )
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
        "run",
        commands.run_grid,
        "Train and evaluate every arm of an ablation, then draw its figures.",
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
        "--released",
        nargs="+",
        default=(),
        metavar="SAE",
        help="finished SAEs in any known format, or folders of them, each measured at the site it "
        "names, beside the trained ones",
    )
    grid.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=EVERY / 60,
        help="minutes of training between two checkpoints, from which a stopped run goes on",
    )
    grid.add_argument(
        "--parts", nargs="+", default=(), metavar="PART", help="parts of it (default: all)"
    )
    grid.add_argument(
        "--arms",
        nargs="+",
        default=(),
        metavar="KEY",
        help="arms of the parts, by the keys that --dry-run lists (default: all)",
    )
    grid.add_argument(
        "--dry-run",
        action="store_true",
        help="list the arms, say what they will cost if the model's widths are known, and stop",
    )
    grid.add_argument(
        "--cost",
        type=int,
        default=None,
        metavar="WIDTH",
        help="list the arms, say what they will cost on activations of this width, and stop",
    )

    command(
        "report",
        commands.write_report,
        "Write results/REPORT.md: question, answer and figures of everything that is published.",
    )

    state = command("status", commands.show_status, "Say where a run stands, from its folder.")
    state.add_argument("run", type=Path, help="folder of a run, e.g. results/runs/quickstart")

    figures = command(
        "figures",
        commands.draw_figures,
        "Draw the figures of a finished run again, from its tables: those of its ablation, or for "
        "a --folder alone the standard comparison.",
    )
    figures.add_argument(
        "ablation", nargs="?", help="the ablation that was run (default: all that is published)"
    )
    source = figures.add_mutually_exclusive_group()
    source.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="any run (default: results/runs/ABLATION; if there is none, the published tables)",
    )
    source.add_argument(
        "--reference",
        action="store_true",
        help="no run: the published figures that the ablation redraws, from their own points, into "
        "results/figures/ABLATION-reference",
    )

    publish = command(
        "publish",
        commands.publish,
        "Copy the tables of a finished run to results/ and draw its figures there.",
    )
    publish.add_argument("ablation", help="the ablation that was run")
    publish.add_argument(
        "--folder", type=Path, default=None, help="its folder (default: results/runs/ABLATION)"
    )

    noise = command(
        "noise",
        commands.measure_noise,
        "Measure bias and noise of threshold gradients of a trained SAE.",
    )
    noise.add_argument("sae", help="saved SAE with trainable thresholds: its folder or hub path")
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

    convert = command("convert", commands.convert, "Write an SAE in another library's format.")
    convert.add_argument("source", help="folder, file or hub path of an SAE in any known format")
    convert.add_argument("target", type=Path, help="folder or file to write")
    convert.add_argument("--to", choices=FORMATS, required=True, help="the format")
    convert.add_argument(
        "--as",
        dest="as_",
        choices=commands.CONVERSIONS,
        default="itself",
        help="the architecture: a JumpReLU SAE runs in Gated implementations, and back",
    )
    convert.add_argument("--model", default=None, help="model to name in the record (if unknown)")
    convert.add_argument(
        "--site", default=None, help="site to name in the record, e.g. layers.9.resid_post"
    )

    measured = command(
        "evaluate", commands.measure, "Measure SAEs in any known format on a cache's held-out side."
    )
    measured.add_argument("sae", nargs="+", help="folder, file or hub path of an SAE")
    measured.add_argument("--cache", type=Path, required=True, help="folder of a cache of the site")
    measured.add_argument("--lm-tokens", type=int, default=LM_TOKENS, help="0: no delta LM loss")
    measured.add_argument("--out", type=Path, default=None, help="table to write (.csv, .parquet)")
    measured.add_argument(
        "--device", default=None, help="cpu, cuda, ... (default: the accelerator)"
    )

    upload = command(
        "upload", commands.upload, "Put a saved SAE with a model card into a hub repository."
    )
    upload.add_argument("sae", type=Path, help="folder of a saved SAE, such as an arm's sae/")
    upload.add_argument("repo", help="owner/name; made if it does not exist")
    upload.add_argument("--path", default=None, help="folder in the repository (default: its root)")
    upload.add_argument("--private", action="store_true", help="make a new repository private")
    upload.add_argument("--revision", default=None, help="branch (default: the main one)")
    upload.add_argument("--to", choices=FORMATS, default="sae-ablations", help="format")
    upload.add_argument("--license", default=None, help="for the card, e.g. mit (default: none)")

    check = command(
        "check",
        commands.check,
        "Run the conformance suite on an architecture or a component of your own.",
    )
    check.add_argument("thing", help="module:Name or path/to/file.py:Name, a class or an object")

    command("list", listing.show, "List architectures, components and ablations.")
    importing(grid, noise, convert, measured, upload)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; wrong input prints one line and exits with code 2."""
    arguments = parser().parse_args(argv)
    if asked := getattr(arguments, "ablation", None):
        for name in ("out", "folder"):
            if getattr(arguments, name, ...) is None:
                setattr(arguments, name, commands.PUBLISHED / "runs" / Path(asked).stem)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            for place in getattr(arguments, "imports", ()):
                modules.load(place)
            return arguments.action(arguments) or 0
        except InputError as error:
            print(f"sae-bench: error: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            if error.filename is None and error.errno not in FULL:
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(f"sae-bench: error: {where}{error.strerror}", file=sys.stderr)
            return 2


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"sae-bench: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
