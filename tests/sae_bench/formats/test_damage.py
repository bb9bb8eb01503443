"""Files that were cut off or overwritten somewhere: read, or refused in one line; never an
exception of another type, whatever library noticed it."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_bench.errors import InputError
from sae_bench.formats import FORMATS
from sae_bench.loading import load_sae, save_sae
from tests.foreign import SAES
from tests.refusals import refused

FILES = {
    "saelens": ("sae_weights.safetensors", "cfg.json"),
    "gemma-scope": ("params.npz",),
    "dictionary-learning": ("ae.pt", "config.json"),
    "sparsify": ("sae.safetensors", "cfg.json"),
    "sae-ablations": ("sae.safetensors", "config.json"),
}
PAIRS = [(format, file) for format, files in FILES.items() for file in files]
each = pytest.mark.parametrize(("format", "file"), PAIRS)


def saved(format: str, folder: Path) -> Path:
    save_sae(SAES["TopKSAE" if format == "sparsify" else "BatchTopKSAE"], folder, format)
    return folder


def damaged(content: bytes, times: int) -> Iterator[bytes]:
    """Bytes overwritten: near the beginning and the end, where formats keep their own, or
    anywhere."""
    draw = random.Random(0)
    for _ in range(times):
        changed = bytearray(content)
        near = draw.choice([min(600, len(content)), len(content)])
        for _ in range(draw.choice([1, 1, 4])):
            position = draw.randrange(near)
            if draw.random() < 0.3:
                position = len(content) - 1 - position
            changed[position] = draw.choice([0, 255, draw.randrange(256)])
        yield bytes(changed)


def complaint_about(path: Path) -> str | None:
    """What is said against reading it."""
    try:
        load_sae(path)
    except InputError as error:
        return str(error)
    return None


def test_every_format_is_here() -> None:
    assert FILES.keys() == FORMATS.keys()


@each
@pytest.mark.filterwarnings("ignore")
def test_overwritten_bytes(format: str, file: str, tmp_path: Path) -> None:
    path = saved(format, tmp_path) / file
    for content in damaged(path.read_bytes(), 300):
        path.write_bytes(content)
        complaint = complaint_about(tmp_path)
        assert complaint is None or complaint.startswith(str(tmp_path))
        assert complaint is None or "\n" not in complaint


@each
def test_truncated_files(format: str, file: str, tmp_path: Path) -> None:
    path = saved(format, tmp_path) / file
    content = path.read_bytes()
    for kept in (0, 1, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        refused(tmp_path, file, "not ")


@each
def test_missing_files(format: str, file: str, tmp_path: Path) -> None:
    path = saved(format, tmp_path) / file
    path.unlink()
    refused(tmp_path, "")
    path.mkdir()
    refused(tmp_path, file)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"cfg"', "[" * 100_000, "{", "", "{}"])
@pytest.mark.parametrize(("format", "file"), [pair for pair in PAIRS if pair[1].endswith("json")])
def test_configs_that_are_no_objects(format: str, file: str, content: str, tmp_path: Path) -> None:
    (saved(format, tmp_path) / file).write_text(content)
    refused(tmp_path, file)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npz", "nowhere.pt", "nowhere/params.npz"])
def test_no_such_path(name: str, tmp_path: Path) -> None:
    refused(tmp_path / name, "", "no such file or folder")


def test_a_folder_without_an_sae(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    refused(tmp_path, "", "no SAE in a known format (saelens: cfg.json and sae_weights")
    refused(tmp_path / "readme.txt", "", "no SAE in a known format")


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_folders_called_like_files(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / f"sae{suffix}"
    folder.mkdir()
    with pytest.raises(InputError, match=rf"sae\{suffix}|config\.json"):
        load_sae(folder)
