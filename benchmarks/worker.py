"""A process that trains one arm of one library and measures it on request.

`python -m benchmarks.worker LIBRARY` reads one JSON object a line from standard input and answers
each with one on standard output. Whatever else the library prints goes to standard error.

    {"do": "build", "case": {...}, "activations": path, "threads": n}  -> versions
    {"do": "warm", "steps": n}  trains                                  -> nothing
    {"do": "quality"}           on held-out rows                        -> fvu, l0, coefficient
    {"do": "time", "repeats": n}  -> product and step in seconds, each n times; peak_mb
"""

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.case import Case, Learner, known, quality
from benchmarks.meter import Memory, seconds
from sae_bench.errors import InputError, one_line

LIBRARIES = {
    "ours": ("benchmarks.ours", "sae-ablations"),
    "ours_dense": ("benchmarks.ours_dense", "sae-ablations"),
    "dense": ("benchmarks.dense", "torch"),
    "saelens": ("benchmarks.saelens", "sae-lens"),
    "dictionary_learning": ("benchmarks.dictionary_learning", "dictionary-learning"),
    "sparsify": ("benchmarks.sparsify", "eai-sparsify"),
}
"""Library -> the module with its arms, and the distribution whose version is recorded."""

STEER_EVERY, GAIN = 10, 0.1


class Several(Learner):
    """Arms that take each step on the same batch, one after the other, as in lockstep training."""

    def __init__(self, learners: list[Learner]) -> None:
        self._learners = learners

    def step(self, x: Tensor) -> None:  # noqa: D102
        for learner in self._learners:
            learner.step(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self._learners[0].forward(x)

    def coefficient(self) -> float | None:
        """The first arm's."""
        return self._learners[0].coefficient()

    def charge(self, coefficient: float) -> None:  # noqa: D102
        for learner in self._learners:
            learner.charge(coefficient)


class Bench:
    """The arm, its data, and where in the data it stands."""

    def __init__(self, library: str, case: Case, activations: str) -> None:
        self.case, self.device = case, torch.device(case.device)
        torch.manual_seed(case.seed)
        data = load_file(activations)
        self.x, self.held_out = (data[name].clone().to(self.device) for name in ("train", "test"))
        del data
        self.W = torch.randn(self.x.shape[1], case.d_sae, device=self.device)
        build = known(importlib.import_module(LIBRARIES[library][0]).ARMS, case, library)
        if max(case.batch, case.warm_batch) > len(self.x):
            raise InputError(f"a batch of {case.batch} is more than {len(self.x)} rows")
        self.product()
        rehearse(build, case, self.x)
        self.place = self.index = 0
        self.memory = Memory(self.device)
        first = self.x[: case.warm_batch]
        seeds = range(case.seed, case.seed + case.arms)
        learners = [build(replace(case, seed=seed), first) for seed in seeds]
        self.learner: Learner = learners[0] if case.arms == 1 else Several(learners)

    def product(self) -> Tensor:
        """The unit of time: x W_enc, (batch, d_in) times (d_in, d_sae)."""
        return self.x[: self.case.batch] @ self.W

    def batch(self, size: int) -> Tensor:
        """The next rows of the shuffled matrix: the same in every library."""
        if self.place + size > len(self.x):
            self.place = 0
        rows = self.x[self.place : self.place + size]
        self.place += size
        return rows

    def warm(self, steps: int) -> dict[str, Any]:
        """Trains; every tenth step moves the coefficient by (L0 / wanted)^GAIN, slowly against what
        L0 needs to follow."""
        for _ in range(steps):
            x = self.batch(self.case.warm_batch)
            self.learner.step(x)
            coefficient = self.learner.coefficient()
            if self.case.steer and self.index % STEER_EVERY == 0 and coefficient is not None:
                with torch.no_grad():
                    f, _ = self.learner.forward(x)
                    l0 = max((f > 0).sum().item() / len(x), 1.0)
                self.learner.charge(coefficient * (l0 / self.case.l0) ** GAIN)
            self.index += 1
        return {}

    def quality(self) -> dict[str, Any]:
        """FVU and L0 on held-out rows, and the coefficient that training ended with."""
        found = quality(self.learner, self.held_out, self.case.batch)
        return {**found, "coefficient": self.learner.coefficient()}

    def time(self, repeats: int) -> dict[str, Any]:
        """Product and step, one after the other, `repeats` times; peak memory meanwhile."""
        self.memory.restart()
        product, step = [], []
        for _ in range(repeats):
            x = self.batch(self.case.batch)
            product.append(seconds(self.product, self.device))
            step.append(seconds(partial(self.learner.step, x), self.device))
        return {"product": product, "step": step, "peak_mb": self.memory.peak_mb()}


def rehearse(build: Callable[[Case, Tensor], Learner], case: Case, x: Tensor) -> None:
    """A step of a tiny arm: what a library loads at its first step is not the arm's memory."""
    small = replace(case, d_sae=2 * case.l0, warm_batch=16, batch=16)
    build(small, x[:16]).step(x[:16])
    gc.collect()


def versions(library: str) -> dict[str, str]:
    """Of what is measured."""
    return {name: version(name) for name in ("torch", LIBRARIES[library][1])}


def main() -> None:
    """Answers until standard input ends."""
    library = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench: Bench | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "build":
                torch.set_num_threads(request["threads"])
                bench = Bench(library, Case.of(request["case"]), request["activations"])
                answer: dict[str, Any] = {"versions": versions(library)}
            else:
                assert bench is not None
                answer = getattr(bench, what)(**request)
        except Exception as error:  # the driver goes on with the others
            kind = str(error) if isinstance(error, InputError) else one_line(error)
            answer = {"error": kind}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
