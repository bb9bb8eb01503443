"""How the rows of both tables are refused: `python -m tests.wrong FOLDER` prints what is wrong with
each."""

import contextlib
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_bench.cli import main
from sae_bench.errors import InputError
from sae_bench.models import LanguageModel
from sae_bench.train import Trainee
from tests.desk import contents
from tests.wrong.commands import COMMANDS, arguments
from tests.wrong.desk import prepare
from tests.wrong.functions import FUNCTIONS


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what takes longer."""

    def end(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(call: Callable[[], object]) -> dict[str, Any]:
    """What a call ended with: the kind of the error and its text, or the exit code and what stands
    on stderr without warnings; what it printed, and whether it trained."""
    trained: list[int] = []
    step, out, err = Trainee.step, io.StringIO(), io.StringIO()

    def watched(*args: Any, **options: Any) -> Any:
        trained.append(1)
        return step(*args, **options)

    Trainee.step = watched  # type: ignore[method-assign]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            with limited(60):
                ended = f"returned {call()!r:.40}"
            lines = err.getvalue().splitlines()
            text = "\n".join(line for line in lines if not line.startswith("sae-bench: warning: "))
        except SystemExit as error:  # argparse: its usage, and one line
            ended, text = f"returned {error.code}", err.getvalue().splitlines()[-1]
        except Exception as error:
            ended, text = type(error).__name__, str(error)
        finally:
            Trainee.step = step  # type: ignore[method-assign]
    return {"ended": ended, "text": text, "printed": out.getvalue(), "trained": len(trained)}


def judged(words: str, refused: str, call: Callable[[], object]) -> str:
    """What is wrong with how a call is refused; nothing if all is well."""
    before = contents(Path())
    found = outcome(call)
    after: Mapping[str, bytes] = contents(Path())
    faults = [
        f"ended: {found['ended']}" * (found["ended"] != refused),
        "more than one line" * ("\n" in found["text"]),
        f"no words {words!r}" * (words not in found["text"]),
        f"printed {found['printed']!r}" * bool(found["printed"]),
        "trained" * bool(found["trained"]),
        f"wrote {sorted(after.keys() - before.keys())}" * (after != before),
    ]
    if after != before:  # the next row begins as this one did
        for name in after.keys() - before.keys():
            Path(name).unlink()
    faults = [fault for fault in faults if fault]
    return "; ".join([*faults, found["text"][:300]]) if faults else ""


def judge(desk: Path) -> list[str]:
    """Of every row, in order; commands come last."""
    os.chdir(desk)
    os.environ["SAE_BENCH_CACHE"] = str(desk / "kept")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare(desk)
        LanguageModel.load("model", device="cpu")
    functions = [judged(words, InputError.__name__, call) for words, call in FUNCTIONS]
    return functions + [
        judged(words, "returned 2", lambda line=line: main(arguments(line)))  # type: ignore[misc]
        for words, line in COMMANDS
    ]


if __name__ == "__main__":
    print(json.dumps(judge(Path(sys.argv[1]))))
