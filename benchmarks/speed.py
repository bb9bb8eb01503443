"""Speed, memory and final loss of one training step, ours beside other libraries. `make bench`.

**What is compared.** `ours` (this library on the path that its trainer takes by default),
`ours_dense` (kept off the sparse path), `dense` (a plain PyTorch loop with the same arithmetic,
benchmarks/dense.py), `saelens`,
`dictionary_learning` and `sparsify` (their training classes stepped by their own trainers; the
modules of these names in benchmarks/ say what a step is there). Every library starts from the same
decoder, sees the same batches (real activations: SmolLM2-135M, residual stream after layer 9,
E||x||^2 = 1) and has the same learning rate and Adam betas, without warm-up. TopK, BatchTopK and
Matryoshka have k = 64. The coefficients of the others are steered to an L0 of 64 during the
warm-up, by one rule for all, since libraries normalise their terms differently;
dictionary_learning's JumpReLU has a target L0 of 64 in its loss. No auxiliary loss acts: within the
benchmark no latent is dead by the criterion of 10M tokens.

**How.** One process for each arm. It warms up (1,000 steps of 256 tokens), then its full optimiser
steps of 2,048 tokens are timed, each right after the encoder product x W_enc (2,048 x 576 times 576
x d_sae) in the same process with the same threads; libraries take turns in rounds, and nothing else
runs meanwhile. On other devices than the CPU clocks wait for the device; on CUDA `ours` chooses its
path during the warm-up, so give it --warm-batch as large as --batch.

**results/tables/speed.csv**, one row a library, architecture and width:

    encoder_products       time of a step / time of the encoder product just before it: median over
                           timed steps; _low and _high are quartiles
    encoder_ms, step_ms    medians
    peak_mb                largest resident memory (CUDA: allocated memory) during timed steps,
                           above the process with library and activations but without the arm
    fvu, l0                after the warm-up, on held-out rows, with the codes of training
    coefficient            that the warm-up ended with, in the library's own normalisation
    steps, warm_batch      of the warm-up

The rows of an architecture are written when it is measured, and a run with the same arguments and
code, on the same kind of machine, goes on where another stopped. Arms that fail are listed at the
end and measured again by the next run.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import figures
from benchmarks.case import Case
from benchmarks.data import default_cache, shape, shared
from benchmarks.ours import ARMS as OURS
from benchmarks.pool import pythons
from benchmarks.sides import Setting, run
from benchmarks.table import Table, code, machine
from sae_bench.devices import default_device
from sae_bench.errors import InputError

SIX = ("ReLU", "TopK", "BatchTopK", "Matryoshka", "Gated", "JumpReLU")
HAS: Mapping[str, Sequence[str]] = {
    "ours": tuple(OURS),
    "ours_dense": tuple(OURS),
    "dense": SIX,
    "saelens": SIX,
    "dictionary_learning": SIX,
    "sparsify": ("TopK",),
}
"""Library -> its architectures here."""

START: Mapping[str, float] = {"ReLU": 2e-2, "Gated": 4e-2, **dict.fromkeys(HAS["ours"][5:], 6e-4)}
"""Coefficient from which steering starts."""


def case_of(architecture: str, base: Case) -> Case:
    """A case of this architecture, else as `base`."""
    return replace(base, architecture=architecture, coefficient=START.get(architecture, 0.0))


def grid(
    base: Case, widths: Sequence[int], architectures: Sequence[str], libraries: Sequence[str]
) -> list[dict[str, Case]]:
    """What is measured side by side: for each width and architecture, the libraries that have it.

    Raises:
        InputError: an architecture or library that there is not.
    """
    for kind, names, known in (
        ("architecture", architectures, HAS["ours"]),
        ("library", libraries, HAS),
    ):
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"unknown {kind} {unknown[0]!r}; choose from {', '.join(known)}")
    cells = []
    for width in widths:
        for name in architectures:
            case = case_of(name, replace(base, d_sae=width))
            cell = {library: case for library in libraries if name in HAS[library]}
            if cell:
                cells.append(cell)
    return cells


def common(parser: argparse.ArgumentParser, warm_steps: int) -> None:
    """Arguments that all benchmarks of training share."""
    add = parser.add_argument
    add("--peers", default=".venv-interop/bin/python", help="Python that has the other libraries")
    add("--device", default="cpu", help="where everything is trained (untested but on cpu)")
    add("--threads", type=int, default=1, help="threads of each process (default 1)")
    add(
        "--cache", help="folder of an activation cache; default: the quickstart's, built if need be"
    )
    add("--warm-steps", type=int, default=warm_steps, help="training before timing")
    add("--warm-batch", type=int, default=256, help="tokens of a step of it")
    add("--rounds", type=int, default=5, help="turns that each arm takes")
    add("--repeats", type=int, default=4, help="timed steps of a turn")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="arms that warm up at the same time")
    add("--lr", type=float, default=Case.lr, help="learning rate of every library")
    add("--seed", type=int, default=0, help="of the initial decoder")
    add("--out", type=Path, default=Path("results"), help="folder of tables/ and figures/")


def base_of(arguments: argparse.Namespace) -> Case:
    """The case that others are made from.

    Raises:
        InputError: a number out of range, or no such device.
    """
    for name in ("threads", "warm_steps", "warm_batch", "rounds", "repeats", "jobs", "batch", "l0"):
        if getattr(arguments, name, 1) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive")
    return Case(
        architecture="",
        l0=getattr(arguments, "l0", Case.l0),
        batch=getattr(arguments, "batch", Case.batch),
        warm_batch=arguments.warm_batch,
        warm_steps=arguments.warm_steps,
        lr=arguments.lr,
        seed=arguments.seed,
        device=str(default_device(arguments.device)),
    )


def setting_of(arguments: argparse.Namespace, libraries: Sequence[str]) -> Setting:
    """How it is measured; the activations are extracted if they are not there.

    Raises:
        InputError: the environment with the other libraries is not there.
    """
    found = pythons(arguments.peers)
    for library in libraries:
        if not Path(found[library]).exists():
            raise InputError(
                f"{library} needs {found[library]}, which is not there: `make bench` makes it; "
                "or name an environment with --peers, or leave it out with --libraries"
            )
    work = arguments.out / "runs" / "speed"
    cache = default_cache(arguments.cache, arguments.device)
    activations, name = shared(cache, work)
    return Setting(
        activations.resolve(),
        name,
        shape(activations)[1],
        code(),
        machine(default_device(arguments.device)),
        found,
        work,
        threads=arguments.threads,
        rounds=arguments.rounds,
        repeats=arguments.repeats,
        jobs=arguments.jobs,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common(made, Case.warm_steps)
    add = made.add_argument
    add("--libraries", nargs="+", default=list(HAS), metavar="NAME", help=", ".join(HAS))
    add("--architectures", nargs="+", default=list(HAS["ours"]), metavar="NAME", help="of them")
    add("--d-sae", type=int, nargs="+", default=[Case.d_sae], help="numbers of latents")
    add("--l0", type=int, default=Case.l0, help="k, and the L0 that coefficients are steered to")
    add("--batch", type=int, default=Case.batch, help="tokens of a timed step")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = parser().parse_args(words)
    try:
        cells = grid(
            base_of(arguments), arguments.d_sae, arguments.architectures, arguments.libraries
        )
        table = Table(arguments.out / "tables" / "speed.csv")
        setting = setting_of(arguments, arguments.libraries)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    failed = run(cells, setting, table)
    keys = [setting.key(library, case) for cell in cells for library, case in cell.items()]
    shown = table.frame(keys)
    if len(shown):
        figures.speed(shown, arguments.out / "figures" / "speed")
        print(shown[[*figures.SHOWN]].to_string(index=False, float_format="%.4g"))
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
