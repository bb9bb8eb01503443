"""Measuring libraries side by side: all arms of one case, warmed and then timed in turn."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from benchmarks.case import Case
from benchmarks.pool import Worker, WorkerError
from benchmarks.table import Table
from sae_bench.components import digest
from sae_bench.progress import Progress

CHUNK = 25
"""Warm-up steps between two looks at the progress."""


@dataclass(frozen=True)
class Setting:
    """How everything in one table is measured.

    Args:
        activations: file that all libraries read; name: identifies its content; d_in: its width.
        code, machine: what is measured, and on what.
        pythons: library -> interpreter.
        work: folder of the workers' logs.
        threads: of each process.
        rounds, repeats: timed steps are rounds x repeats; libraries alternate between rounds, the
            encoder product and the step within them.
        jobs: arms that warm up at the same time; nothing else runs while one is timed.
    """

    activations: Path
    name: str
    d_in: int
    code: str
    machine: str
    pythons: Mapping[str, str]
    work: Path
    threads: int = 1
    rounds: int = 5
    repeats: int = 4
    jobs: int = 1

    def case_key(self, library: str, case: Case) -> str:
        """Identifies what is measured."""
        timed = {"threads": self.threads, "rounds": self.rounds, "repeats": self.repeats}
        return digest({**case.record(), "library": library, "data": self.name, **timed})

    def key(self, library: str, case: Case) -> str:
        """Identifies the measurement: the same code on the same machine."""
        by = {"code": self.code, "machine": self.machine}
        return digest({"case": self.case_key(library, case), **by})

    def steps(self, case: Case) -> int:
        """Steps that an arm takes."""
        return case.warm_steps + self.rounds * self.repeats


@dataclass
class Side:
    """One library's arm on its way to a row."""

    worker: Worker
    case: Case
    built: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    product: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    error: str = ""

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """The worker's answer; empty once it has failed."""
        if self.error:
            return {}
        try:
            return self.worker.ask(what, **arguments)
        except WorkerError as error:
            self.error = str(error)
            return {}

    def time(self, repeats: int) -> None:
        """One round."""
        answer = self.ask("time", repeats=repeats)
        if answer:
            self.product += answer["product"]
            self.step += answer["step"]
            self.peak_mb = max(self.peak_mb, answer["peak_mb"])

    def row(self, setting: Setting) -> dict[str, Any]:
        """The row of the table. encoder_products: quartiles over steps of the step's time, each
        divided by the time of the encoder product that was taken just before it."""
        case = self.case
        found: dict[str, Any] = {}
        if not self.error:
            ratio = np.array(self.step) / np.array(self.product)
            low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
            found = {
                "encoder_products": middle,
                "encoder_products_low": low,
                "encoder_products_high": high,
                "encoder_ms": 1e3 * np.median(self.product),
                "step_ms": 1e3 * np.median(self.step),
                "peak_mb": self.peak_mb,
                **self.quality,
            }
        return {
            "library": self.worker.library,
            "architecture": case.architecture,
            "d_in": setting.d_in,
            "d_sae": case.d_sae,
            "wanted_l0": case.l0,
            "batch": case.batch,
            "arms": case.arms,
            **found,
            "steps": case.warm_steps,
            "warm_batch": case.warm_batch,
            "timed_steps": len(self.step),
            "lr": case.lr,
            "seed": case.seed,
            "device": case.device,
            "threads": setting.threads,
            **self.built.get("versions", {}),
            "activations": setting.name,
            "machine": setting.machine,
            "case": setting.case_key(self.worker.library, case),
            "id": setting.key(self.worker.library, case),
            "error": self.error,
        }


def measure(
    cases: Mapping[str, Case], setting: Setting, table: Table, progress: Progress
) -> list[str]:
    """Measures the case of each library (they differ in nothing that matters to speed) side by
    side, and puts a row for each into the table as soon as the last round is over.

    Returns:
        One line for each arm that failed.
    """
    lock = Lock()
    with ExitStack() as stack:
        sides = []
        for library, case in cases.items():
            log = setting.work / "logs" / f"{setting.key(library, case)}.txt"
            worker = Worker(library, setting.pythons[library], log, setting.threads)
            sides.append(Side(stack.enter_context(worker), case))

        def prepare(side: Side) -> None:
            side.built = side.ask(
                "build",
                case=side.case.record(),
                activations=str(setting.activations),
                threads=setting.threads,
            )
            for start in range(0, side.case.warm_steps, CHUNK):
                steps = min(CHUNK, side.case.warm_steps - start)
                side.ask("warm", steps=steps)
                with lock:
                    progress.update(steps)
            side.quality = side.ask("quality")

        with ThreadPoolExecutor(setting.jobs) as threads:
            list(threads.map(prepare, sides))
        for side in sides:
            side.ask("time", repeats=1)  # allocations of this batch size
        for round_ in range(setting.rounds):
            first = round_ % len(sides)
            for side in (*sides[first:], *sides[:first]):
                side.time(setting.repeats)
                progress.update(setting.repeats)
        table.add([side.row(setting) for side in sides])
    return [f"{_name(side)}: {side.error}" for side in sides if side.error]


def _name(side: Side) -> str:
    return f"{side.worker.library} {side.case.architecture}"


def missing(
    wanted: Sequence[Mapping[str, Case]], setting: Setting, table: Table
) -> list[dict[str, Case]]:
    """What is not in the table yet."""
    left = (
        {
            library: case
            for library, case in cases.items()
            if not table.has(setting.key(library, case))
        }
        for cases in wanted
    )
    return [cases for cases in left if cases]


def run(wanted: Sequence[Mapping[str, Case]], setting: Setting, table: Table) -> list[str]:
    """Measures all that is not in the table yet; what failed is said at the end."""
    left = missing(wanted, setting, table)
    total = sum(setting.steps(case) for cases in left for case in cases.values())
    failed: list[str] = []
    with Progress("benchmark", total, "steps") as progress:
        for cases in left:
            case = next(iter(cases.values()))
            progress.note(f"{case.architecture} d_sae {case.d_sae}")
            failed += measure(cases, setting, table, progress)
    return failed
