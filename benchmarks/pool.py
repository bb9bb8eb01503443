"""The driver's end of workers: one process for each arm of each library."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[1]


class WorkerError(RuntimeError):
    """What a worker could not do, in one line."""


class Worker:
    """A process that trains one arm. Use as a context.

    Args:
        library: whose arm.
        python: of the environment that has the library.
        log: file that takes what the process prints.
        threads: of every library in it that starts some.
    """

    def __init__(self, library: str, python: str, log: Path, threads: int) -> None:
        self.library, self.threads, self._log = library, threads, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", library],
                cwd=ROOT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(threads),
                    "MKL_NUM_THREADS": str(threads),
                    "HF_HUB_OFFLINE": "1",
                    "WANDB_MODE": "disabled",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request; see `benchmarks.worker`.

        Raises:
            WorkerError: it failed, or the process is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        lines = self._log.read_text().strip().splitlines() or ["without a word"]
        return f"{lines[-1][:200]} (exit code {self._process.returncode}; see {self._log})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()


def pythons(peers: str) -> dict[str, str]:
    """The interpreter of each library: ours and the dense reference run in this environment."""
    here = dict.fromkeys(("ours", "ours_dense", "dense"), sys.executable)
    return {**here, **dict.fromkeys(("saelens", "dictionary_learning", "sparsify"), peers)}
