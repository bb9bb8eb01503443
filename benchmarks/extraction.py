"""What is around training: extraction, reading batches, evaluation of many arms. `make bench`.

SmolLM2-135M, residual stream after layer 9, the quickstart's text. Every figure is a ratio to work
that was timed in the same round; rounds alternate through all works of a part.

    extraction   reading the text into rows (tokenise, pack, forward up to the site, gather), and
                 the same written as four shards, against the bare forward of the truncated model on
                 the same contexts, those of the shards, tokenised before
    reading      what a training loop waits for its next batch, for rows on the device, in host
                 memory and on disk, against the step (TopK) that it does meanwhile
    evaluation   delta LM loss of one arm and of many, against one prefix (the model up to the site)
                 and one suffix (the rest, with cross-entropy) an arm; the clean run and zero
                 ablation are two more suffixes

**results/tables/extraction.csv**, one row a work: `seconds` (median over rounds), `per_second`
(tokens of it), `reference`, and `ratio` = seconds / seconds of the reference in the same round
(median; _low and _high are quartiles).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ablations.quickstart import PRESETS
from architectures import TopKSAE
from benchmarks.case import Case
from benchmarks.meter import seconds
from benchmarks.ours import ARMS
from benchmarks.rounds import Bench, Times, interleaved, row
from benchmarks.table import Table, code, machine
from sae_bench.ablation import Data
from sae_bench.cache import ActivationCache
from sae_bench.components import digest
from sae_bench.contexts import Context
from sae_bench.devices import default_device
from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.placement import DeviceRows, DiskRows, HostRows, Placement
from sae_bench.progress import Progress, shown
from sae_bench.reading import Reading
from sae_bench.sites import capture, resolve_site, resume_at
from sae_bench.splicing import splice, text_batches
from sae_bench.text import resolve_text

DATA = cast(Data, PRESETS["smollm2"].data)
SHARDS = 4
"""Written at one extraction: all but the last overlap with the model."""


@contextmanager
def truncated(lm: LanguageModel, layers: int) -> Iterator[nn.Module]:
    """The model without head and with its first layers alone."""
    base = lm.model.base_model
    every = base.layers
    base.layers = every[:layers]
    try:
        yield base
    finally:
        base.layers = every


def extraction(bench: Bench) -> Iterator[dict[str, Any]]:
    """Rows of the first part."""
    reading = Reading(bench.lm, resolve_text(DATA.text), DATA.context)
    size = bench.tokens // SHARDS

    def contexts() -> list[Context]:
        return [each for shard in islice(reading.shards(False, size), SHARDS) for each in shard]

    passes = list(reading.passes(contexts()))
    tokens = sum(each.rows for each in passes)

    @torch.no_grad()
    def bare() -> None:
        with truncated(bench.lm, bench.site.skippable) as model:
            for each in passes:
                ids, mask = (
                    torch.from_numpy(array).to(bench.device)
                    for array in (each.batch.ids, each.batch.mask)
                )
                model(input_ids=ids, attention_mask=mask.long(), use_cache=False)

    def rows() -> None:
        with Progress("rows", tokens, "tokens") as progress:
            reading.shard_rows(contexts(), [bench.site], torch.float32, progress)

    def written() -> None:
        with TemporaryDirectory() as folder:
            ActivationCache.build(
                bench.lm,
                [bench.site.name],
                DATA.text,
                bench.tokens,
                held_out_tokens=0,
                shard_tokens=size,
                context=DATA.context,
                root=folder,
            )

    works = {"bare truncated forward": bare, "rows": rows, "rows, written": written}
    times = interleaved(works, bench, "extraction")
    for work in works:
        yield row("extraction", work, times[work], "bare truncated forward", times, tokens)


def reading(bench: Bench) -> Iterator[dict[str, Any]]:
    """Rows of the second part."""
    size = bench.case.batch
    first = next(bench.cache.placed(bench.device).batches(size, 0))
    learner = ARMS["TopK"](bench.case, first)
    placements: dict[str, Placement] = {"device": DeviceRows, "host": HostRows, "disk": DiskRows}
    sources = {
        name: bench.cache.placed(bench.device, place).batches(size, 0)
        for name, place in placements.items()
    }
    times: Times = {f"{kind} ({name})": [] for name in sources for kind in ("wait", "step")}

    def turn(name: str) -> tuple[float, float]:
        found: list[torch.Tensor] = []
        wait = seconds(lambda: found.append(next(sources[name])), bench.device)
        return wait, seconds(lambda: learner.step(found[0]), bench.device)

    for round_ in shown(range(3 * bench.rounds + 1), "reading", 3 * bench.rounds + 1, "rounds"):
        for name in sources:
            wait, step = turn(name)
            if round_:
                times[f"wait ({name})"].append(wait)
                times[f"step ({name})"].append(step)
    for name in sources:
        yield row(
            "reading", f"wait ({name})", times[f"wait ({name})"], f"step ({name})", times, size
        )


def evaluation(bench: Bench) -> Iterator[dict[str, Any]]:
    """Rows of the third part."""
    cache = bench.cache.held_out
    assert cache is not None
    case, lm = bench.case, bench.lm
    saes = [
        TopKSAE(cache.d_in, case.d_sae, seed=seed).to(bench.device).eval()
        for seed in range(bench.arms)
    ]
    batches = list(text_batches(cache, lm, bench.lm_tokens, 1024))
    passed = [resume_at(lm, batch.ids, batch.mask, bench.site) for batch in batches]

    def prefix() -> None:
        for batch in batches:
            capture(lm, batch.ids, batch.mask, [bench.site])

    def suffix() -> None:
        for batch, run in zip(batches, passed, strict=True):
            batch.losses(run.logits_with(run.activations))

    many = f"{bench.arms} arms"
    times = interleaved(
        {
            "prefix": prefix,
            "suffix": suffix,
            "1 arm": lambda: splice(saes[:1], cache, lm, bench.lm_tokens),
            many: lambda: splice(saes, cache, lm, bench.lm_tokens),
        },
        bench,
        "evaluation",
    )
    prefixes, suffixes = np.array(times["prefix"]), np.array(times["suffix"])
    tokens = sum(int(batch.scored.sum()) for batch in batches)
    for arms, work in ((1, "1 arm"), (bench.arms, many)):
        for extra in (0, 2):
            reference = f"prefix + {arms + extra} suffixes"
            times[reference] = list(prefixes + (arms + extra) * suffixes)
            yield row("evaluation", work, times[work], reference, times, tokens)


PARTS: Mapping[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "extraction": extraction,
    "reading": reading,
    "evaluation": evaluation,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.extraction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="what is measured")
    add("--device", default="cpu", help="where everything runs (untested but on cpu)")
    add("--threads", type=int, default=1, help="threads of the process (default 1)")
    add("--tokens", type=int, default=32_768, help="of one extraction, at least")
    add("--lm-tokens", type=int, default=1024, help="of one evaluation")
    add("--arms", type=int, default=8, help="of one evaluation")
    add("--d-sae", type=int, default=Case.d_sae, help="number of latents")
    add("--batch", type=int, default=Case.batch, help="tokens of a step")
    add("--rounds", type=int, default=5, help="of each work")
    add("--out", type=Path, default=Path("results"), help="folder of tables/")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    arguments = parser().parse_args(words)
    torch.set_num_threads(max(arguments.threads, 1))
    try:
        device = default_device(arguments.device)
        table = Table(arguments.out / "tables" / "extraction.csv")
        cache = DATA.cache(str(device))
        lm = cache.language_model()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    case = Case("TopK", d_sae=arguments.d_sae, batch=arguments.batch, device=str(device))
    assert lm is not None  # the cache has just been built with it
    site = resolve_site(lm, DATA.site)
    sizes = arguments.tokens, arguments.lm_tokens, arguments.arms, arguments.rounds
    bench = Bench(cache, lm, site, case, *sizes)
    about = {"device": str(device), "threads": torch.get_num_threads()}
    about |= {"torch": torch.__version__, "machine": machine(device)}
    sized = {"tokens": sizes[0], "lm_tokens": sizes[1], "arms": sizes[2]}
    sized |= {"d_sae": case.d_sae, "batch": case.batch}
    this = {**about, **sized, "rounds": bench.rounds, "code": code()}
    keys = {part: digest({**this, "part": part}) for part in arguments.parts}
    for part, key in keys.items():
        if not table.has(key):
            rows = [{**each, **about, **sized, "id": key} for each in PARTS[part](bench)]
            table.add([{**each, "case": digest({**sized, **_named(each)})} for each in rows])
    columns = ["part", "work", "reference", "seconds", "per_second", "ratio"]
    print(table.frame(list(keys.values()))[columns].to_string(index=False, float_format="%.4g"))
    return 0


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("work", "reference", "rounds", "device", "threads")}


if __name__ == "__main__":
    sys.exit(main())
